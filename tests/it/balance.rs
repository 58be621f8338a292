//! Connections that the kernel gives to one worker are shared among all (L25), as long as those take them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect, outcome, reset, served};
use crate::support::hello;
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until, wait_for};

/// Connections that all come to the same worker.
const COUNT: usize = 24;

/// A connection from this port, 0 for any, over which the backend has answered.
fn open(port: u16, proxy: SocketAddr) -> TcpStream {
    try_open(port, proxy).unwrap()
}

/// The same where another program may have taken the port.
fn try_open(port: u16, proxy: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.connect_timeout(&proxy.into(), SOON)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&hello::to("a.test")).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    Ok(stream)
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

/// The ports of `count` connections at least that come to the first worker, found by as many as it takes.
fn many_ports_of_one_worker(proxy: &Proxy, count: usize) -> Vec<u16> {
    let mut lines = 0;
    while lines < 10 * count {
        for _ in 0..count {
            reset(open(0, proxy.addr()));
        }
        lines += count;
        wait_for("a line each", || proxy.process.stdout.all().len() == lines);
        let by_first = |line: &serde_json::Value| {
            let client: SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
            line["id"].as_str().unwrap().starts_with("0000").then(|| client.port())
        };
        let ports: BTreeSet<u16> = proxy.access_log().iter().filter_map(by_first).collect();
        if ports.len() >= count {
            return ports.into_iter().collect();
        }
    }
    panic!("{lines} connections, and the first worker got fewer than {count}");
}

/// The worst that the kernel's hash may do: all of a thousand to one worker.
#[test]
fn a_thousand_connections_are_shared_out_whatever_the_kernel_does() {
    const CROWD: usize = 1000;
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n{UNLIMITED}admin = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    // Some more, for those whose ports have been taken meanwhile.
    let ports = many_ports_of_one_worker(&proxy, CROWD + 100);
    let live = |worker| proxy.metrics().sum("portcullis_worker_connections", &[("worker", worker)]);
    wait_for("no connections", || live("0") + live("1") < 0.5);
    let streams = ports.iter().filter_map(|port| try_open(*port, proxy.addr()).ok()).take(CROWD);
    let streams: Vec<_> = streams.collect();
    assert_eq!(streams.len(), CROWD);
    wait_for("all connections", || (live("0") + live("1") - CROWD as f64).abs() < 0.5);
    let (one, other) = (live("0"), live("1"));
    println!("{one} and {other} connections");
    let fair = CROWD as f64 / 2.0;
    assert!(one.max(other) <= fair * 1.25, "{one} and {other} connections");
    assert!(proxy.metrics().sum("portcullis_connections_handed_over_total", &[]) >= fair / 2.0);
    drop(streams);
    wait_for("no connections", || live("0") + live("1") < 0.5);
    proxy.assert_sound();
}

/// A worker that stands still keeps what the kernel gave it, and a few that it was handed before that was noticed. All
/// others are served by the other one, and its own are too when it goes on.
#[test]
fn a_worker_that_stands_still_holds_up_its_own_connections_and_few_others() {
    const CLIENTS: usize = 120;
    const HANDED: f64 = 8.0;
    /// A connection without an answer for so long is one of the worker that stands still.
    const STILL: Duration = Duration::from_millis(500);
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n{UNLIMITED}admin = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let worker = crate::service::thread(&proxy, "worker-1");
    // Each of its waits takes longer than the test.
    let mut hold = Command::new("strace");
    hold.args(["-p", &worker, "-e", "trace=/^epoll_p?wait", "-e", "inject=/^epoll_p?wait:delay_exit=60s"]);
    let hold = Process::start(&mut hold, "strace");
    let hello = hello::to("a.test");
    // The wait that it was in when strace came still ends, and it serves what that brought.
    let waiting = until("the worker to stand still", 3 * SOON, || {
        let mut stream = connect(proxy.addr());
        (outcome(&mut stream, &hello, STILL) == Outcome::Open).then_some(stream)
    });
    let handed = || proxy.metrics().sum("portcullis_connections_handed_over_total", &[]);
    let before = handed();
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let ask = || {
            let mut client = connect(proxy.addr());
            assert_eq!(outcome(&mut client, &hello, 2 * SOON), served("a"));
            answered.fetch_add(1, Ordering::SeqCst);
            client
        };
        // They stay open until all are joined.
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        wait_for("many to be served", || answered.load(Ordering::SeqCst) >= CLIENTS / 4);
        let handed = handed() - before;
        println!("{answered:?} served, {handed} handed over while one worker stands still");
        assert!(answered.load(Ordering::SeqCst) < CLIENTS, "the worker was not held");
        drop(hold);
        clients.into_iter().map(|client| client.join().unwrap()).for_each(drop);
        assert!(handed <= HANDED, "{handed} connections handed to a worker that stands still");
    });
    assert_eq!(answered.load(Ordering::SeqCst), CLIENTS);
    drop(waiting);
    proxy.assert_sound();
}
