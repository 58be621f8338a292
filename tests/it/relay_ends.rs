//! Every kind of end passes through in kind: FIN as FIN, RST as RST, silence as a closed connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::client::{End, connect, read_to_end, read_while, reset, timed};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, wait_for};

const MIB: usize = 1024 * 1024;

/// The proxy in front of a backend whose connections the test holds itself, hello read.
struct Tunnel {
    proxy: Proxy,
    _backend: Backend,
    accepted: Receiver<TcpStream>,
    hello: Vec<u8>,
}

impl Tunnel {
    fn new(timeouts: &str) -> Self {
        let hello = to("relay.test");
        let (sender, accepted) = channel();
        let len = hello.len();
        let backend = Backend::new(move |mut stream| {
            let mut hello = vec![0; len];
            stream.read_exact(&mut hello).unwrap();
            // Fails at the end of the test, when nobody waits any more.
            let _ = sender.send(stream);
        });
        let config =
            format!("listen = '127.0.0.1:0'\n{timeouts}\n[[route]]\nsni = 'relay.test'\nto = '{backend}'\n");
        Self { proxy: Proxy::start(&config).streaming(), _backend: backend, accepted, hello }
    }

    /// Both ends of a connection.
    fn open(&self) -> (TcpStream, TcpStream) {
        let mut client = connect(self.proxy.addr());
        client.write_all(&self.hello).unwrap();
        (client, self.accepted.recv_timeout(SOON).unwrap())
    }

    /// The reason, cause and stage of the connection's log line.
    fn end_of(&self, client: std::net::SocketAddr) -> (String, String, String) {
        let line = self.proxy.access_line_of(client);
        let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        (word("reason"), word("cause"), word("stage"))
    }
}

#[test]
fn an_answer_after_the_clients_fin_arrives_whole() {
    let tunnel = Tunnel::new("");
    let (mut client, mut backend) = tunnel.open();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut backend, SOON).bytes, b"question");
    let answer = Random::new(1).bytes(32 * MIB);
    let sent = answer.clone();
    let sender = std::thread::spawn(move || backend.write_all(&sent).unwrap());
    let reply = read_to_end(&mut client, SOON);
    sender.join().unwrap();
    assert!(reply.end == End::Eof && reply.bytes == answer, "{} bytes, {:?}", reply.bytes.len(), reply.end);
    assert_eq!(tunnel.end_of(client.local_addr().unwrap()).1, "done");
}

#[test]
fn the_backends_fin_leaves_the_other_direction_open() {
    let tunnel = Tunnel::new("");
    let (mut client, mut backend) = tunnel.open();
    backend.write_all(b"bye").unwrap();
    backend.shutdown(Shutdown::Write).unwrap();
    let reply = read_to_end(&mut client, SOON);
    assert_eq!((reply.bytes.as_slice(), reply.end), (b"bye".as_slice(), End::Eof));
    let rest = Random::new(2).bytes(4 * MIB);
    let sent = rest.clone();
    let sender = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let received = read_to_end(&mut backend, SOON);
    let client = sender.join().unwrap();
    assert!(received.end == End::Eof && received.bytes == rest, "{} bytes", received.bytes.len());
    assert_eq!(tunnel.end_of(client.local_addr().unwrap()).1, "done");
}

#[test]
fn a_backends_reset_reaches_the_client_as_a_reset() {
    let tunnel = Tunnel::new("");
    for half_closed in [false, true] {
        let (mut client, backend) = tunnel.open();
        if half_closed {
            client.shutdown(Shutdown::Write).unwrap();
        }
        let mut watched = backend.try_clone().unwrap();
        client.set_nodelay(true).unwrap();
        if half_closed {
            assert_eq!(read_to_end(&mut watched, SOON).end, End::Eof);
        }
        drop(watched);
        reset(backend);
        assert_eq!(read_to_end(&mut client, SOON).end, End::Reset, "client half-closed: {half_closed}");
        let (_, cause, stage) = tunnel.end_of(client.local_addr().unwrap());
        assert_eq!((cause.as_str(), stage.as_str()), ("upstream", "relay"));
    }
}

#[test]
fn a_clients_reset_reaches_the_backend_as_a_reset() {
    let tunnel = Tunnel::new("");
    for transfer in [false, true] {
        let (mut client, mut backend) = tunnel.open();
        let addr = client.local_addr().unwrap();
        if transfer {
            client.write_all(b"abc").unwrap();
            assert_eq!(read_while(&mut backend, SOON, |bytes| bytes.len() < 3).bytes, b"abc");
            backend.write_all(&vec![1; 100_000]).unwrap();
            read_while(&mut client, SOON, |bytes| bytes.len() < 50_000);
        }
        reset(client);
        assert_eq!(
            read_to_end(&mut backend, SOON).end,
            End::Reset,
            "in the middle of a transfer: {transfer}"
        );
        let (_, cause, stage) = tunnel.end_of(addr);
        assert_eq!((cause.as_str(), stage.as_str()), ("client", "relay"));
    }
}

#[test]
fn what_was_sent_before_a_reset_arrives_before_it() {
    let tunnel = Tunnel::new("");
    for (backend_resets, other_writes) in [(true, false), (true, true), (false, false), (false, true)] {
        let (client, backend) = tunnel.open();
        let (mut resetter, mut other) = if backend_resets { (backend, client) } else { (client, backend) };
        // All of it is there when the proxy looks.
        tunnel.proxy.process.signal(Signal::STOP);
        if other_writes {
            other.write_all(b"meanwhile").unwrap();
        }
        resetter.write_all(&[b'x'; 100]).unwrap();
        reset(resetter);
        tunnel.proxy.process.signal(Signal::CONT);
        let reply = read_to_end(&mut other, SOON);
        assert!(
            reply.bytes == [b'x'; 100] && reply.end == End::Reset,
            "{} bytes, {:?}; the backend resets: {backend_resets}, the other writes: {other_writes}",
            reply.bytes.len(),
            reply.end
        );
    }
}

/// Writes until the connection takes no more for a while.
fn fill(stream: &mut TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while stream.write_all(&vec![1; 1_000_000]).is_ok() {}
}

#[test]
fn a_reset_is_noticed_though_the_other_side_takes_nothing() {
    let tunnel = Tunnel::new("");
    let idle = tunnel.proxy.process.sockets();
    for client_resets in [true, false] {
        let (mut client, mut backend) = tunnel.open();
        let addr = client.local_addr().unwrap();
        // The other end stays open and neither reads nor writes.
        let _other = if client_resets {
            fill(&mut client);
            reset(client);
            backend
        } else {
            fill(&mut backend);
            reset(backend);
            client
        };
        wait_for("both sockets to be given back", || tunnel.proxy.process.sockets() <= idle);
        let (_, cause, stage) = tunnel.end_of(addr);
        let expected = if client_resets { "client" } else { "upstream" };
        assert_eq!((cause.as_str(), stage.as_str()), (expected, "relay"));
    }
}

#[test]
fn a_reset_is_noticed_when_both_directions_are_full() {
    let tunnel = Tunnel::new("");
    let idle = tunnel.proxy.process.sockets();
    for client_resets in [true, false] {
        let (mut client, mut backend) = tunnel.open();
        let addr = client.local_addr().unwrap();
        fill(&mut client);
        fill(&mut backend);
        // The other end stays open and neither reads nor writes.
        let _other = if client_resets {
            reset(client);
            backend
        } else {
            reset(backend);
            client
        };
        wait_for("both sockets to be given back", || tunnel.proxy.process.sockets() <= idle);
        let expected = if client_resets { "client" } else { "upstream" };
        assert_eq!(tunnel.end_of(addr).1, expected);
    }
}

#[test]
fn what_a_backend_sent_before_its_fin_is_not_lost_to_a_slow_client() {
    let tunnel = Tunnel::new("");
    let (mut client, mut backend) = tunnel.open();
    let sent = Random::new(5).bytes(16 * MIB);
    // All that fits on the way while the client reads nothing.
    backend.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut taken = 0;
    while let Ok(n @ 1..) = backend.write(&sent[taken..]) {
        taken += n;
    }
    drop(backend);
    let reply = read_to_end(&mut client, SOON);
    assert!(
        reply.end == End::Eof && reply.bytes == sent[..taken],
        "{} of {taken}, {:?}",
        reply.bytes.len(),
        reply.end
    );
}

#[test]
fn an_idle_connection_is_closed_on_both_sides() {
    let tunnel = Tunnel::new("timeouts = { idle = '1s' }");
    let (mut client, mut backend) = tunnel.open();
    // Traffic in either direction keeps it open beyond the limit.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(400));
        backend.write_all(b"x").unwrap();
    }
    assert_eq!(read_while(&mut client, SOON, |bytes| bytes.len() < 4).bytes, b"xxxx");
    let (took, reply) = timed(|| read_to_end(&mut client, SOON));
    assert_ne!(reply.end, End::Open);
    assert!(took > Duration::from_millis(600) && took < Duration::from_millis(2500), "{took:?}");
    assert_ne!(read_to_end(&mut backend, SOON).end, End::Open);
    let (reason, cause, stage) = tunnel.end_of(client.local_addr().unwrap());
    assert_eq!((reason.as_str(), stage.as_str()), ("idle", "relay"));
    assert!(cause.ends_with("_timeout"), "{cause}");
}

#[test]
fn a_half_closed_connection_has_a_limit_of_its_own() {
    let tunnel = Tunnel::new("timeouts = { idle = '1m', half_closed = '1s' }");
    for client_ends in [true, false] {
        let (mut client, mut backend) = tunnel.open();
        let (ender, waiter) =
            if client_ends { (&mut client, &mut backend) } else { (&mut backend, &mut client) };
        ender.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(waiter, SOON).end, End::Eof);
        let (took, reply) = timed(|| read_to_end(ender, SOON));
        assert_ne!(reply.end, End::Open);
        assert!(took < Duration::from_millis(2500), "{took:?}");
        let (_, cause, stage) = tunnel.end_of(client.local_addr().unwrap());
        // The side that has not ended is the one that is waited for.
        let expected = if client_ends { "upstream_timeout" } else { "client_timeout" };
        assert_eq!((cause.as_str(), stage.as_str()), (expected, "relay"));
    }
    let sockets = tunnel.proxy.process.sockets();
    let (client, backend) = tunnel.open();
    drop((client, backend));
    wait_for("sockets to be given back", || tunnel.proxy.process.sockets() <= sockets);
}

#[test]
fn a_route_has_its_own_limits() {
    let backend = Backend::tagged("quick");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ idle = '1m' }}\n\
         [[route]]\nsni = 'quick.test'\nto = '{backend}'\ntimeouts = {{ idle = '500ms' }}\n"
    ));
    let mut client = connect(proxy.addr());
    client.write_all(&to("quick.test")).unwrap();
    let (took, reply) = timed(|| read_to_end(&mut client, SOON));
    assert_ne!(reply.end, End::Open);
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// A read stops before urgent data, however much follows; the urgent byte itself is not passed on.
#[test]
fn what_follows_urgent_data_is_not_held_up() {
    let tunnel = Tunnel::new("");
    let (mut client, mut backend) = tunnel.open();
    // All is there when the proxy reads.
    tunnel.proxy.process.signal(Signal::STOP);
    client.write_all(b"before").unwrap();
    rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
    client.write_all(b"after").unwrap();
    tunnel.proxy.process.signal(Signal::CONT);
    let got = read_while(&mut backend, SOON, |bytes| bytes.len() < b"beforeafter".len());
    assert_eq!(got.bytes, b"beforeafter");
}
