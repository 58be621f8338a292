//! What backends of requests are told of clients beside the requests: PROXY headers, and certificates.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::http::proxy_to;
use crate::support::authority::{Authority, Identity, converse, shake};
use crate::support::backend::Backend;
use crate::support::headers::SIGNATURE;
use crate::support::proxy::Proxy;
use crate::support::web::{Asking, Web, ok};

/// Whom the header of a connection names, and the head of a request that came behind it.
type Told = Arc<Mutex<Vec<(SocketAddr, String)>>>;

/// A server whose connections begin with headers of version 2.
fn behind_headers() -> (Backend, Told) {
    let told = Told::default();
    let kept = Arc::clone(&told);
    let backend = Backend::new(move |mut stream| {
        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        assert_eq!((&header[..12], header[12], header[13]), (SIGNATURE, 0x21, 0x11));
        let mut block = vec![0; usize::from(u16::from_be_bytes([header[14], header[15]]))];
        stream.read_exact(&mut block).unwrap();
        let ip = Ipv4Addr::new(block[0], block[1], block[2], block[3]);
        let client = SocketAddr::from((ip, u16::from_be_bytes([block[8], block[9]])));
        let mut asking = Asking::over(stream);
        while let Some(head) = asking.request() {
            kept.lock().unwrap().push((client, head));
            if asking.stream.write_all(&ok("told")).is_err() {
                return;
            }
        }
    });
    (backend, told)
}

#[test]
fn connections_that_begin_with_a_header_serve_the_client_that_it_names_alone() {
    let (backend, told) = behind_headers();
    let by_route = proxy_to(&backend, "proxy_protocol = 'v2'\n");
    let by_rule = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[route]]\nprotocol = 'http'\n\
         [[route.rule]]\npath = '/*'\nto = 'http://{backend}'\nproxy_protocol = 'v2'\n"
    ));
    for proxy in [&by_route, &by_rule] {
        let mut clients = [Asking::of(proxy.addr()), Asking::of(proxy.addr())];
        for _ in 0..3 {
            for client in &mut clients {
                let own = client.stream.local_addr().unwrap();
                let answer = client.ask(&format!("GET /{own} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
                assert_eq!((answer.status, answer.text().as_str()), (200, "told"));
            }
        }
        let told = std::mem::take(&mut *told.lock().unwrap());
        assert_eq!(told.len(), 6);
        for (client, head) in told {
            assert!(head.starts_with(&format!("GET /{client} HTTP/1.1\r\n")), "{client} asked for {head}");
        }
    }
}

/// The field that a backend receives of a client with this certificate, which sends one of its own making, too.
fn received(web: &Web, proxy: &Proxy, authority: &Authority, identity: Option<&Identity>) -> Option<String> {
    let config = match identity {
        Some(identity) => authority.config_of(identity),
        None => authority.config(),
    };
    let mut stream = shake(proxy.addr(), &Arc::new(config), "a.test").unwrap();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nClient-Cert: :Zm9yZ2Vk:\r\nclient-cert: :Zm9yZ2Vk:\r\n\
                   Client-Cert-Chain: :Zm9yZ2Vk:\r\nConnection: close, client-cert\r\n\r\n";
    let answer = converse(&mut stream, request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let received = web.received().pop().unwrap();
    assert!(!received.head.contains("Zm9yZ2Vk"), "{}", received.head);
    let lines = received.head.split("\r\n").filter(|line| line.starts_with("client-cert"));
    assert!(lines.count() <= 1, "{}", received.head);
    received.field("client-cert").map(ToOwned::to_owned)
}

#[test]
fn backends_are_told_of_certificates_that_clients_have_shown_and_of_no_others() {
    let authority = Authority::of(&["a.test"]);
    let identity = authority.client(&["ann.test"]);
    let web = Web::saying("ok");
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nsni = 'a.test'\ntls = {{ client_auth = {{ ca = '{}', mode = 'optional' }} }}\nto = 'http://{web}'\n",
        authority.top(),
        authority.ca().display()
    ));
    let shown = CertificateDer::from_pem_file(&identity.certificate).unwrap();
    let expected = format!(":{}:", BASE64_STANDARD.encode(&shown));
    assert_eq!(received(&web, &proxy, &authority, Some(&identity)), Some(expected));
    assert_eq!(received(&web, &proxy, &authority, None), None);
    // In clear there is none.
    let in_clear = proxy_to(&web, "");
    let request =
        "GET / HTTP/1.1\r\nHost: a.test\r\nClient-Cert: :Zm9yZ2Vk:\r\nClient-Cert-Chain: :Zm9yZ2Vk:\r\n\r\n";
    assert_eq!(Asking::of(in_clear.addr()).ask(request).status, 200);
    let received = web.received().pop().unwrap();
    assert!(!received.head.contains("client-cert"), "{}", received.head);
    // Nor does one come behind a body.
    let request = "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n\
                   1\r\na\r\n0\r\nClient-Cert: :Zm9yZ2Vk:\r\nX-Sum: 7\r\n\r\n";
    assert_eq!(Asking::of(in_clear.addr()).ask(request).status, 200);
    let received = web.received().pop().unwrap();
    assert_eq!(String::from_utf8_lossy(&received.body), "1\r\na\r\n0\r\nx-sum: 7\r\n\r\n");
}
