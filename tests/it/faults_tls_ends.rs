//! How streams inside TLS end (T12): in order where that was announced, and broken off where it was not.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use rustls::ClientConfig;

use crate::support::SOON;
use crate::support::authority::{Authority, Key, Stream, is_cut_off, shake};
use crate::support::backend::Backend;
use crate::support::process::finish;
use crate::support::proxy::Proxy;

/// A proxy that ends TLS for `a.test`.
fn proxy_to(authority: &Authority, to: &Backend) -> Proxy {
    Proxy::start(&format!("{}[[route]]\nsni = 'a.test'\ntls = 'files'\nto = '{to}'\n", authority.top()))
}

/// What a backend saw at the end of a connection: whether that was in order, and what came before.
type Seen = (Result<(), ErrorKind>, Vec<u8>);

/// A backend that tells what it saw, and answers after the end.
fn watching(answer: &'static str) -> (Backend, Receiver<Seen>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let backend = Backend::new(move |mut stream| {
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard).map(|_| ()).map_err(|error| error.kind());
        let _ = stream.write_all(answer.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let _ = tell.lock().unwrap().send((end, heard));
    });
    (backend, told)
}

/// T12: an end that was not announced may be anybody's, and is no end.
#[test]
fn a_stream_that_is_cut_off_does_not_end_as_a_whole_one() {
    let authority = Authority::of(&["a.test"]);
    let (backend, told) = watching("");
    let proxy = proxy_to(&authority, &backend);
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let config = Arc::new(with_versions(&authority, versions));
        let mut stream = shake(proxy.addr(), &config, "a.test").unwrap();
        stream.write_all(b"half of it").unwrap();
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        let (end, _) = told.recv_timeout(SOON).unwrap();
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{versions:?}");
        let mut heard = Vec::new();
        let error = stream.read_to_end(&mut heard).unwrap_err();
        assert!(is_cut_off(&error), "{error:?}");
        // The same where the end was announced.
        let mut stream = shake(proxy.addr(), &config, "a.test").unwrap();
        assert_eq!(finished(&mut stream, b"all of it").unwrap(), b"");
        assert_eq!(told.recv_timeout(SOON).unwrap(), (Ok(()), b"all of it".to_vec()));
    }
    let line = proxy.access_line("cut off", |line| line["reason"] == "truncated");
    assert_eq!(line["cause"], "client");
}

fn with_versions(
    authority: &Authority,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::pem::PemObject::from_pem_file(authority.ca()).unwrap();
    roots.add(ca).unwrap();
    ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots).with_no_client_auth()
}

/// Says the last words and announces that; all that is answered.
fn finished(stream: &mut Stream, words: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(words)?;
    stream.conn.send_close_notify();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    Ok(heard)
}

/// T12 and L16: each direction ends by itself.
#[test]
fn the_answer_comes_after_the_end_of_the_question() {
    let authority = Authority::of(&["a.test"]);
    let (backend, told) = watching("the answer after the end");
    let proxy = proxy_to(&authority, &backend);
    let mut stream = shake(proxy.addr(), &Arc::new(authority.config()), "a.test").unwrap();
    assert_eq!(finished(&mut stream, b"the question").unwrap(), b"the answer after the end");
    assert_eq!(told.recv_timeout(SOON).unwrap(), (Ok(()), b"the question".to_vec()));
    let line = proxy.access_line("both", |line| line["action"] == "terminate");
    assert_eq!(line["cause"], "done", "{line}");
}

/// T12: a backend that ends is told to the client as an end; one that breaks off is not.
#[test]
fn the_end_of_a_backend_is_announced_and_its_break_is_not() {
    let authority = Authority::of(&["a.test"]);
    let whole = Backend::new(|mut stream| {
        let _ = stream.read(&mut [0; 6]);
        let _ = stream.write_all(b"whole");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let broken = Backend::new(|mut stream| {
        let _ = stream.read(&mut [0; 6]);
        let _ = stream.write_all(b"broken");
        // What it wrote has arrived before the reset: the client says so.
        let _ = stream.read(&mut [0; 1]);
        crate::support::client::reset(stream);
    });
    authority.server("b", &["b.test"], Key::Ecdsa);
    let proxy = Proxy::start(&format!(
        "{}[[route]]\nsni = 'a.test'\ntls = 'files'\nto = '{whole}'\n\
         [[route]]\nsni = 'b.test'\ntls = 'files'\nto = '{broken}'\n",
        authority.top()
    ));
    let script = "
import socket, ssl, sys
port, ca, version = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.maximum_version = getattr(ssl.TLSVersion, version)
s = context.wrap_socket(socket.create_connection(('127.0.0.1', int(port)), 20), server_hostname='a.test',
                        suppress_ragged_eofs=False)
s.sendall(b'hello\\n')
heard = b''
while True:
    part = s.recv(100)
    if not part:
        break
    heard += part
s.unwrap()
print('unwrapped', heard.decode())
";
    for version in ["TLSv1_2", "TLSv1_3"] {
        let mut command = Command::new("python3");
        command.args(["-c", script, &proxy.addr().port().to_string()]).arg(authority.ca()).arg(version);
        let done = finish(&mut command, "python3", "");
        assert_eq!(done.stdout.trim(), "unwrapped whole", "{}", done.stderr);
    }
    let mut stream = shake(proxy.addr(), &Arc::new(authority.config()), "b.test").unwrap();
    stream.write_all(b"hello\n").unwrap();
    let mut heard = [0; 6];
    stream.read_exact(&mut heard).unwrap();
    stream.write_all(b"!").unwrap();
    let end = stream.read(&mut heard);
    assert!(end.as_ref().is_err_and(is_cut_off), "{end:?}");
}
