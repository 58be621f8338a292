//! Connections that the kernel gives to one worker are shared among all.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::backend::Backend;
use crate::support::client::reset;
use crate::support::hello;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, wait_for};

/// Connections that all come to the same worker.
const COUNT: usize = 24;

/// A connection from this port, 0 for any, over which the backend has answered.
fn open(port: u16, proxy: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.connect_timeout(&proxy.into(), SOON).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&hello::to("a.test")).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

/// The worker that served the connection from this port: the upper digits of its id.
fn worker(proxy: &Proxy, client: SocketAddr) -> u64 {
    let line = proxy.access_line_of(client);
    u64::from_str_radix(line["id"].as_str().unwrap(), 16).unwrap() >> 48
}

/// The kernel chooses by a hash of addresses and ports: who comes again from the same port comes to the same
/// worker. Alone there, one by one, each is served where it was accepted.
fn ports_of_one_worker(proxy: &Proxy) -> Vec<u16> {
    let mut ports = Vec::new();
    for _ in 0..20 * COUNT {
        let stream = open(0, proxy.addr());
        let client = stream.local_addr().unwrap();
        // Leaves nothing behind that would keep the port.
        reset(stream);
        // The same port may come again.
        if worker(proxy, client) == 0 && !ports.contains(&client.port()) {
            ports.push(client.port());
        }
        if ports.len() == COUNT {
            return ports;
        }
    }
    panic!("only {} of {} connections came to the first worker", ports.len(), 20 * COUNT);
}

#[test]
fn a_crowd_at_one_worker_is_shared_with_the_other() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n{UNLIMITED}admin = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{}'\n",
        backend.addr()
    ));
    let ports = ports_of_one_worker(&proxy);
    let live = |worker| proxy.metrics().sum("portcullis_worker_connections", &[("worker", worker)]);
    wait_for("no connections", || live("0") + live("1") < 0.5);

    let lines_before = proxy.access_log().len();
    let mut streams = ports.iter().map(|port| open(*port, proxy.addr())).collect::<Vec<_>>();
    wait_for("all connections", || (live("0") + live("1") - 24.0).abs() < 0.5);
    let handed_over = proxy.metrics().sum("portcullis_connections_handed_over_total", &[]);
    assert!((handed_over - live("1")).abs() < 0.5, "{handed_over}");
    assert!(handed_over >= 8.0, "{handed_over} of {COUNT}");

    // Those that were handed over work and end like all others.
    for stream in &mut streams {
        stream.write_all(b"still there?").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"still there?"), "{} bytes", rest.len());
    }
    wait_for("all lines", || proxy.access_log().len() == lines_before + COUNT);
    let lines = proxy.access_log().split_off(lines_before);
    let by_other = lines.iter().filter(|line| line["id"].as_str().unwrap().starts_with("0001"));
    assert_eq!(by_other.count(), handed_over as usize);
    wait_for("no connections", || live("0") + live("1") < 0.5);
}
