//! Real servers that are killed, stopped or cut off under a steady load of new connections; and what is ours to run out of.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::backend::Backend;
use crate::support::client::{
    Outcome, connect, connect_from, loopback, outcome, probe, read_to_end, served, timed,
};
use crate::support::hello::to;
use crate::support::netns::{Host, with_hosts};
use crate::support::programs::PlainNginx;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, in_parallel, until};

/// New connections, and how many a second.
const CONNECTIONS: usize = 1500;
const RATE: f64 = 200.0;
/// `timeouts.connect` of these proxies, and what all attempts of a connection may take, on a busy machine.
const CONNECT: &str = "timeouts = { connect = '500ms' }\n";
const LONGEST: Duration = Duration::from_millis(2500);
/// Connections that a kernel accepts for a server that is stopped and lets one wait, and some to spare.
const ACCEPTED: usize = 4;
const INTERNAL_ERROR: Outcome = Outcome::Alert(80);

/// Three servers that each answer with a page; the second one listens with these parameters.
fn three_nginx(parameters: &str) -> [PlainNginx; 3] {
    ["", parameters, ""].map(|listen| {
        PlainNginx::start("http", |addr| {
            format!("keepalive_timeout 0; server {{ listen {addr}{listen}; location / {{ return 200 'served'; }} }}")
        })
    })
}

fn proxy_to(servers: &[SocketAddr], keys: &str) -> Proxy {
    let servers: Vec<_> = servers.iter().map(|addr| format!("'{addr}'")).collect();
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}{CONNECT}[[route]]\nname = 'r'\nprotocol = 'http'\n\
         to = [{}]\n{keys}\n",
        servers.join(", ")
    ))
}

/// What a client of the page saw, and how long it took.
fn page(addr: SocketAddr) -> (Duration, bool) {
    timed(|| {
        let mut stream = connect(addr);
        stream.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
        read_to_end(&mut stream, SOON).bytes.ends_with(b"served")
    })
}

/// Opens connections at a steady rate, and does `change` after a third of them. Gives what each saw.
fn load(addr: SocketAddr, change: impl Fn() + Sync) -> Vec<(Duration, bool)> {
    let seen = Mutex::new(Vec::new());
    load_into(&seen, addr, change);
    seen.into_inner().unwrap()
}

/// The same, with what was seen so far to be looked at meanwhile.
fn load_into(seen: &Mutex<Vec<(Duration, bool)>>, addr: SocketAddr, change: impl Fn() + Sync) {
    let start = Instant::now();
    in_parallel(48, CONNECTIONS, |number| {
        let at = start + Duration::from_secs_f64(number as f64 / RATE);
        // The pace is the load.
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if number == CONNECTIONS / 3 {
            change();
        }
        let page = page(addr);
        seen.lock().unwrap().push(page);
    });
}

/// At least 99.9 % were served, and none took longer than the time for its attempts.
fn assert_unharmed(seen: &[(Duration, bool)]) {
    let failed = seen.iter().filter(|(_, served)| !served).count();
    let longest = seen.iter().map(|(took, _)| *took).max().unwrap();
    println!("{failed} of {} failed, the longest took {longest:?}", seen.len());
    assert!(failed * 1000 <= seen.len(), "{failed} of {} failed", seen.len());
    assert!(longest < LONGEST, "{longest:?}");
}

#[test]
fn a_server_that_is_killed_costs_no_connection() {
    let servers = three_nginx("");
    let proxy = proxy_to(&servers.each_ref().map(PlainNginx::addr), "");
    assert_unharmed(&load(proxy.addr(), || servers[1].signal(Signal::KILL)));
    let labels = [("upstream", "r"), ("backend", &*servers[1].addr().to_string())];
    assert!(proxy.metrics().sum("portcullis_upstream_ejections_total", &labels) >= 1.0);
}

/// The kernel goes on accepting for a process that is stopped, until its queue is full: of those connections nobody can
/// tell that nobody serves them, which is for health checks to find. All others are served elsewhere.
#[test]
fn a_server_that_is_stopped_costs_only_what_its_kernel_has_accepted() {
    let servers = three_nginx(" backlog=1");
    let proxy = proxy_to(&servers.each_ref().map(PlainNginx::addr), "");
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        load_into(&seen, proxy.addr(), || {
            servers[1].signal(Signal::STOP);
            let (server, seen) = (&servers[1], &seen);
            scope.spawn(move || {
                // What it has accepted is served then.
                until("all others to be served", SOON, || {
                    (seen.lock().unwrap().len() >= CONNECTIONS - ACCEPTED).then_some(())
                });
                server.signal(Signal::CONT);
            });
        });
    });
    let seen = seen.into_inner().unwrap();
    let (late, others): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(took, _)| *took > LONGEST);
    assert!(late.len() <= ACCEPTED, "{late:?}");
    assert!(late.iter().all(|(_, served)| *served), "{late:?}");
    assert_unharmed(&others);
}

#[test]
fn a_server_that_is_cut_off_costs_no_connection() {
    with_hosts(|| {
        let host = Host::new();
        let servers = host.run(|| three_nginx(""));
        let proxy = host.run(|| proxy_to(&servers.each_ref().map(PlainNginx::addr), ""));
        let cut = servers[1].addr().port();
        let seen = host.run(|| {
            load(proxy.addr(), || {
                host.filter(&format!(
                    "table inet cut {{ chain in {{ type filter hook input priority 0;\n\
                     tcp dport {cut} tcp flags & (syn | ack) == syn drop; }}\n}}\n"
                ));
            })
        });
        assert_unharmed(&seen);
        let ejections = host.run(|| proxy.metrics().sum("portcullis_upstream_ejections_total", &[]));
        assert!(ejections >= 1.0, "{ejections}");
    });
}

#[test]
fn a_server_that_comes_and_goes_all_the_time_costs_hardly_a_connection() {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, crate::support::client::free_port()));
    let steady = [(); 2].map(|()| Backend::tagged("steady"));
    let done = AtomicBool::new(false);
    let serve = |listener: TcpListener| {
        listener.set_nonblocking(true).unwrap();
        let until = Instant::now() + Duration::from_millis(100);
        while Instant::now() < until {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    // Whoever has gone by then was served elsewhere.
                    let _ = stream.read(&mut [0; 2048]);
                    let _ = stream.write_all(b"tag:flapping\n");
                }
                // `accept` knows no deadline.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    };
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}{CONNECT}[[route]]\nsni = 'a.test'\n\
         to = ['{}', '{addr}', '{}']\neject = {{ failures = 3, for = '300ms' }}\n",
        steady[0], steady[1]
    ));
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                TcpListener::bind(addr).into_iter().for_each(serve);
                // As long as it is there it is gone.
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let (start, failed) = (Instant::now(), Mutex::new(0));
        in_parallel(16, 1000, |number| {
            let at = start + Duration::from_secs_f64(number as f64 / RATE);
            // The pace is the load.
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if !matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)) {
                *failed.lock().unwrap() += 1;
            }
        });
        done.store(true, Ordering::SeqCst);
        failed.into_inner().unwrap()
    });
    assert!(failed <= 10, "{failed} of 1000");
}

/// A connection from a port that the kernel does not choose from.
fn connect_by(port: u16, addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}

/// What this machine lacks says nothing of a backend.
#[test]
fn without_a_port_of_its_own_the_next_backend_is_tried_and_none_passed_over() {
    with_hosts(|| {
        let host = Host::new();
        let range = || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40019");
        host.run(range).expect("a writable /proc/sys/net");
        host.run(|| {
            let at = |port: u16, tag| Backend::tagged_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), tag);
            let (one, two) = (at(9001, "one"), at(9002, "two"));
            let proxy = Proxy::start(&format!(
                "listen = '127.0.0.1:2443'\nadmin = '127.0.0.1:9901'\n{UNLIMITED}[[route]]\nsni = 'a.test'\n\
                 to = ['{one}', '{two}']\neject = 2\n"
            ));
            let mut held = Vec::new();
            let mut refused = 0;
            for number in 0..50_u8 {
                let mut stream = connect_by(50_000 + u16::from(number), proxy.addr());
                let (took, outcome) = timed(|| outcome(&mut stream, &to("a.test"), SOON));
                assert!(took < Duration::from_secs(2), "{took:?}");
                match outcome {
                    Outcome::Served(_) => held.push(stream),
                    other => {
                        assert_eq!(other, INTERNAL_ERROR);
                        refused += 1;
                    }
                }
            }
            // Twenty to each backend.
            assert_eq!((held.len(), refused), (40, 10));
            proxy.access_line("no port", |line| line["reason"] == "resource");
            held.clear();
            for tag in ["one", "two"] {
                until(tag, SOON, || (probe(proxy.addr(), &to("a.test")) == served(tag)).then_some(()));
            }
            assert!(
                !proxy.process.stderr.contains("passed over for its failures"),
                "{:#?}",
                proxy.process.stderr.all()
            );
        });
    });
}

/// Connections that are being made in this host to a port: those whose SYN nobody has answered.
fn under_way(port: u16) -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let to = format!(":{port:04X}");
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next().is_some_and(|remote| remote.ends_with(&to)) && words.next() == Some("02")
    };
    text.lines().filter(is_one).count()
}

#[test]
fn a_backend_that_comes_back_is_not_run_over_by_those_that_wait() {
    with_hosts(|| {
        let host = Host::new();
        let backend = host.run(|| Backend::tagged_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 9001)), "back"));
        host.filter(
            "table inet cut { chain in { type filter hook input priority 0;\n\
             tcp dport 9001 tcp flags & (syn | ack) == syn drop; }\n}\n",
        );
        host.run(|| {
            let proxy = Proxy::start(&format!(
                "listen = '127.0.0.1:2443'\n{UNLIMITED}timeouts = {{ connect = '8s' }}\n[[route]]\nsni = 'a.test'\n\
                 to = '{backend}'\n"
            ));
            let hello = to("a.test");
            let mut clients: Vec<_> = (0..800_u16)
                .map(|number| {
                    let last = 11 + u8::try_from(number % 200).unwrap();
                    let mut stream = connect_from(loopback(last), proxy.addr());
                    stream.write_all(&hello).unwrap();
                    stream
                })
                .collect();
            until("many attempts", SOON, || (under_way(9001) >= 256).then_some(()));
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(500) {
                let now = under_way(9001);
                assert!(now <= 256, "{now} at once");
            }
            assert_eq!(backend.hits(), 0);
            host.execute("nft delete table inet cut", "");
            for stream in &mut clients {
                let reply = crate::support::client::read_while(stream, SOON, |bytes| bytes.is_empty());
                assert!(reply.bytes.starts_with(b"tag:"), "{reply:?}");
            }
            assert_eq!(backend.hits(), 800);
        });
    });
}
