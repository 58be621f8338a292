//! Real servers behind one port, real clients in front: each name gets its own server and certificate.

use std::process::Command;

use crate::support::process::{Finished, finish};
use crate::support::programs::{Nginx, curl, s_client};
use crate::support::proxy::Proxy;

/// Two nginx processes, one for a.test and one for b.test, and the proxy in front of both.
fn two_sites() -> (Nginx, Nginx, Proxy) {
    let (a, b) = (Nginx::start(&["a.test"]), Nginx::start(&["b.test"]));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n\
         [[route]]\nsni = 'a.test'\nto = '{}'\n\
         [[route]]\nsni = 'b.test'\nto = '{}'\n",
        a.addr(),
        b.addr()
    ));
    (a, b, proxy)
}

#[test]
fn curl_gets_the_page_and_certificate_of_each_name() {
    let (a, b, proxy) = two_sites();
    for options in [[].as_slice(), &["--http1.1"], &["--tlsv1.3"], &["--tls-max", "1.2"]] {
        for (name, site) in [("a.test", &a), ("b.test", &b)] {
            let got = curl(name, proxy.addr(), &site.certificate(name), options);
            assert_eq!((got.code, got.stdout), (Some(0), format!("page of {name}")), "{}", got.stderr);
        }
    }
    let wrong = curl("a.test", proxy.addr(), &b.certificate("b.test"), &[]);
    assert_eq!(
        wrong.code,
        Some(60),
        "the certificate of a.test must not pass for that of b.test: {}",
        wrong.stderr
    );
}

#[test]
fn curl_refuses_a_name_that_no_route_knows() {
    let (a, _b, proxy) = two_sites();
    let got = curl("c.test", proxy.addr(), &a.certificate("a.test"), &[]);
    // 35: the TLS handshake failed, here by the alert unrecognized_name.
    assert_eq!(got.code, Some(35), "{}", got.stderr);
    assert!(got.stderr.contains("unrecognized name"), "{}", got.stderr);
}

#[test]
fn openssl_sees_each_certificate_over_tls_1_2_and_1_3() {
    let (a, b, proxy) = two_sites();
    for (version, said) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        for (name, site) in [("a.test", &a), ("b.test", &b)] {
            let got = s_client(name, proxy.addr(), &site.certificate(name), version);
            let text = got.stdout.replace(' ', "");
            assert_eq!(got.code, Some(0), "{got:?}");
            assert!(text.contains(&format!("CN={name}")), "{text}");
            assert!(
                text.contains(&format!("New,{said}")) || text.contains(&format!("Protocol:{said}")),
                "{text}"
            );
            assert!(text.contains("Verification:OK"), "{text}");
        }
    }
}

#[test]
fn one_nginx_with_two_server_blocks_chooses_by_the_same_hello() {
    let both = Nginx::start(&["a.test", "b.test"]);
    let proxy =
        Proxy::start(&format!("listen = '127.0.0.1:0'\n[[route]]\nsni = '*.test'\nto = '{}'\n", both.addr()));
    for name in ["b.test", "a.test"] {
        let got = curl(name, proxy.addr(), &both.certificate(name), &[]);
        assert_eq!((got.code, got.stdout), (Some(0), format!("page of {name}")), "{}", got.stderr);
    }
}

#[test]
fn python_talks_to_each_name() {
    const SCRIPT: &str = r"
import socket, ssl, sys
name, port, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.create_default_context(cafile=ca)
with socket.create_connection(('127.0.0.1', port), timeout=10) as tcp:
    with context.wrap_socket(tcp, server_hostname=name) as tls:
        tls.sendall(f'GET / HTTP/1.0\r\nHost: {name}\r\n\r\n'.encode())
        answer = b''
        while chunk := tls.recv(65536):
            answer += chunk
        print(tls.version(), answer.partition(b'\r\n\r\n')[2].decode())
";
    let (a, b, proxy) = two_sites();
    for (name, site) in [("a.test", &a), ("b.test", &b)] {
        let port = proxy.addr().port().to_string();
        let mut command = Command::new("python3");
        command.args(["-", name, &port]).arg(site.certificate(name));
        let Finished { code, stdout, stderr } = finish(&mut command, "python3", SCRIPT);
        assert_eq!((code, stdout.trim()), (Some(0), format!("TLSv1.3 page of {name}").as_str()), "{stderr}");
    }
}
