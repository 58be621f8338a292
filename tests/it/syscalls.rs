//! What a connection costs in system calls: nearly all of its cost.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
};

use crate::support::backend::Backend;
use crate::support::client::connect;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until};

/// System calls of the proxy for a TLS 1.3 connection with one request and an answer of 100 bytes, which
/// passes in five pieces: hello, the server's flight, finished and request, answer, close_notify. One to
/// accept, two to watch, five for a socket to the backend, two for each piece, three for both ends of stream, two
/// to close: 23; the rest is six waits, since each piece waits for its sender, and one more on a busy machine.
const LIMIT: usize = 30;
/// Connections that are counted, enough for the ticks of the clock to weigh less than one call.
const COUNTED: usize = 400;

#[test]
fn a_tls_connection_costs_few_system_calls() {
    let tls = Tls::new("a.test");
    let backend = Backend::at(quiet_port(), tls.server());
    // What starting and ending cost is in both.
    let few = calls(&tls, &backend, 10);
    let many = calls(&tls, &backend, 10 + COUNTED);
    let each = (many - few).div_ceil(COUNTED);
    println!("{each} system calls a connection");
    assert!(each <= LIMIT, "{each} system calls a connection");
}

/// A port that the kernel never chooses for a client: connecting to any other on loopback takes one call more.
fn quiet_port() -> SocketAddr {
    let ports = (20_000..30_000).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    ports.into_iter().find(|addr| std::net::TcpListener::bind(addr).is_ok()).expect("a free port")
}

/// The system calls of a proxy that serves so many connections, from its start to its end.
fn calls(tls: &Tls, backend: &Backend, connections: usize) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let summary = dir.path().join("summary");
    let strace = ["strace", "-D", "-f", "-c", "-o", summary.to_str().unwrap()];
    let config = format!(
        "listen = '127.0.0.1:0'\naccess_log = 'off'\n{UNLIMITED}[[route]]\nsni = 'a.test'\nto = '{}'\n",
        backend.addr()
    );
    let mut proxy = Proxy::start_by(&strace, "strace", &config);
    for _ in 0..connections {
        tls.talk(proxy.addr());
    }
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
    until("the summary of strace", SOON, || total(&summary))
}

/// The number of calls in a summary, once it is written, without those by which only debug builds make sure
/// that a descriptor is open before they close it.
fn total(summary: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(summary).ok()?;
    let calls = |name| {
        let line = text.lines().find(|line| line.split_whitespace().last() == Some(name))?;
        line.split_whitespace().nth(3)?.parse::<usize>().ok()
    };
    Some(calls("total")? - calls("fcntl").unwrap_or(0))
}

/// Both sides of TLS 1.3 for one name, which send what they have to say in as few pieces as there can be.
struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
}

impl Tls {
    fn new(name: &str) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let client = client.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let server = ServerConfig::builder_with_provider(provider);
        let server = server.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        Self {
            client: Arc::new(client.with_root_certificates(roots).with_no_client_auth()),
            server: Arc::new(server),
            name: ServerName::try_from(name.to_owned()).unwrap(),
        }
    }

    /// A backend that answers a request of four bytes with 100, and closes.
    fn server(&self) -> impl Fn(TcpStream) + Send + Sync + 'static {
        let config = Arc::clone(&self.server);
        move |mut stream| {
            let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            while receive(&mut tls, &mut stream, 4).is_none() {
                send(&mut tls, &mut stream);
            }
            tls.writer().write_all(&[b'x'; 100]).unwrap();
            tls.send_close_notify();
            send(&mut tls, &mut stream);
        }
    }

    /// Asks and reads the answer.
    fn talk(&self, proxy: SocketAddr) {
        let mut stream = connect(proxy);
        let mut tls = ClientConnection::new(Arc::clone(&self.client), self.name.clone()).unwrap();
        send(&mut tls, &mut stream);
        while tls.is_handshaking() {
            receive(&mut tls, &mut stream, 1);
        }
        tls.writer().write_all(b"give").unwrap();
        send(&mut tls, &mut stream);
        let answer = std::iter::repeat_with(|| receive(&mut tls, &mut stream, 100)).flatten().next().unwrap();
        assert_eq!(answer, [b'x'; 100]);
        tls.send_close_notify();
        send(&mut tls, &mut stream);
    }
}

/// Sends all that there is to send, in one piece.
fn send<D>(tls: &mut ConnectionCommon<D>, stream: &mut TcpStream) {
    let mut piece = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut piece).unwrap();
    }
    stream.write_all(&piece).unwrap();
}

/// Reads once; gives the first `len` bytes of plain text when they are there.
fn receive<D>(tls: &mut ConnectionCommon<D>, stream: &mut TcpStream, len: usize) -> Option<Vec<u8>> {
    assert!(tls.read_tls(stream).unwrap() > 0, "the peer closed too early");
    tls.process_new_packets().unwrap();
    let mut plain = vec![0; len];
    match tls.reader().read_exact(&mut plain) {
        Ok(()) => Some(plain),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}
