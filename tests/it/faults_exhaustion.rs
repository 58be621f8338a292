//! The end of what there is: memory for hellos, descriptors (L12, O12), ports (L14).

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect_from, loopback, outcome, probe, served, timed};
use crate::support::hello::{padded, to};
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::{Proxy, portcullis_under};
use crate::support::{SOON, UNLIMITED, until, wait_for};

fn refused(proxy: &Proxy) -> usize {
    let labels = [("reason", "hello_memory")];
    proxy.metrics().sum("portcullis_clienthello_errors_total", &labels) as usize
}

/// Clients that begin a hello of 8 KB and do not end it: what they hold is bounded, the next one that would hold
/// more is reset, and whoever says what he wants at once is served all the while.
#[test]
fn unfinished_hellos_share_a_bounded_memory() {
    const LIMIT: usize = 64 * 1024;
    const BEGUN: usize = 4000;
    let backend = Backend::tagged("a");
    let config = |memory| {
        format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nhello_memory = '{memory}'\n\
             timeouts = {{ hello = '1m' }}\n{UNLIMITED}[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        )
    };
    let mut proxy = Proxy::start(&config("64KiB"));
    let (large, small) = (padded(b"a.test", 8000), to("a.test"));
    let begin = |n| {
        let mut stream = connect_from(loopback(n), proxy.addr());
        stream.write_all(&large[..BEGUN]).unwrap();
        stream
    };
    let mut begun: Vec<TcpStream> = (2..40).map(begin).collect();
    let room = LIMIT / BEGUN;
    wait_for("the others to be refused", || refused(&proxy) == begun.len() - room);
    proxy.wait_metric("portcullis_hello_bytes_in_use", &[], (room * BEGUN) as f64);
    proxy.wait_metric("portcullis_hello_bytes_limit", &[], LIMIT as f64);
    // Those who hold what there is may still end, by which they hold nothing any more; the others were reset.
    let mut ends = [0, 0];
    for stream in &mut begun {
        let mut rest = stream.try_clone().unwrap();
        match rest.write_all(&large[BEGUN..]) {
            Ok(()) => match outcome(stream, b"", SOON) {
                Outcome::Served(_) => ends[0] += 1,
                Outcome::Reset | Outcome::Closed => ends[1] += 1,
                other => panic!("{other:?}"),
            },
            Err(_) => ends[1] += 1,
        }
    }
    assert_eq!(ends, [room, begun.len() - room], "served, reset");
    let line = proxy.access_line("a refused one", |line| line["reason"] == "hello_memory");
    assert_eq!((&line["cause"], &line["stage"]), (&"resource".into(), &"peek".into()));
    assert_eq!(line["action"], "reject");
    proxy.wait_metric("portcullis_hello_bytes_in_use", &[], 0.0);
    // Full again: a hello that comes whole needs none of it.
    let full: Vec<TcpStream> = (2..20).map(begin).collect();
    wait_for("the last ones to be refused", || refused(&proxy) == begun.len() - room + full.len() - room);
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &small), served("a"));
    }
    // With another bound there is room again, beside what those have.
    proxy.reconfigure(&config("128KiB"));
    assert_eq!(proxy.metrics().sum("portcullis_hello_bytes_limit", &[]) as usize, 2 * LIMIT);
    let mut late = begin(99);
    assert_eq!(outcome(&mut late, &large[BEGUN..], SOON), served("a"));
    drop(full);
    proxy.assert_sound();
}

/// With 64 descriptors 16 connections are served and the others wait in the kernel's queue; meanwhile the admin
/// server answers, the log is written and opened again, and another configuration is read.
#[test]
fn with_64_descriptors_200_clients_leave_some_for_the_admin_server_and_the_log() {
    const CLIENTS: usize = 200;
    const CAP: usize = 16;
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let config = |name: &str| {
        format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\naccess_log = '{}'\n{UNLIMITED}\
             [[route]]\nname = '{name}'\nsni = 'a.test'\nto = '{backend}'\n",
            log.display()
        )
    };
    let mut proxy = Proxy::start_under(&["prlimit", "--nofile=64:64"], &config("one"));
    let (addr, hello) = (proxy.addr(), to("a.test"));
    let open = |n: usize| {
        let mut stream = connect_from(Ipv4Addr::new(127, 0, 3, n as u8), addr);
        stream.write_all(&hello).unwrap();
        stream
    };
    let clients: Vec<TcpStream> = (0..CLIENTS).map(open).collect();
    until("as many as there may be", SOON, || (backend.hits() == CAP).then_some(()));
    proxy.wait_metric("portcullis_descriptors_in_use", &[("share", "connections")], 2.0 * CAP as f64);
    for path in ["/metrics", "/healthz", "/readyz", "/api/v1/config"].repeat(5) {
        assert_eq!(proxy.ask(path).status, 200, "{path}");
    }
    std::fs::rename(&log, dir.path().join("access.log.1")).unwrap();
    proxy.process.signal(Signal::USR1);
    until("the log to be opened again", SOON, || log.exists().then_some(()));
    proxy.reconfigure(&config("two"));
    assert_eq!(backend.hits(), CAP, "the others wait");
    let metrics = proxy.metrics();
    assert!(metrics.sum("portcullis_accept_errors_total", &[]) < 0.5, "accept ran out of files");
    assert!((metrics.sum("portcullis_descriptors_limit", &[]) - 64.0).abs() < 0.5);
    // All of them get their turn, in the order in which the workers accept.
    std::thread::scope(|scope| {
        for mut client in clients {
            scope.spawn(move || assert_eq!(outcome(&mut client, b"", SOON), served("a")));
        }
    });
    until("a line each", SOON, || {
        let text = std::fs::read_to_string(&log).unwrap();
        (text.lines().count() == CLIENTS).then_some(())
    });
    assert!(proxy.process.fds() < 64);
    proxy.assert_sound();
}

/// From too few descriptors for anything to enough for one connection: it serves, or says at once what is missing.
#[test]
fn with_too_few_descriptors_it_says_so_and_with_just_enough_it_serves() {
    let backend = Backend::tagged("a");
    let config = format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nworkers = 2\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("portcullis.toml");
    std::fs::write(&file, &config).unwrap();
    for limit in 8..26 {
        let limit = format!("--nofile={limit}:{limit}");
        let got = portcullis_under(&["prlimit", &limit], &["run", "--config", file.to_str().unwrap()]);
        assert_eq!(got.code, Some(1), "{limit}: {got:?}");
        assert!(got.stderr.contains("with 2 workers 26 are needed"), "{limit}: {}", got.stderr);
    }
    let mut proxy = Proxy::start_under(&["prlimit", "--nofile=26:26"], &config);
    for _ in 0..3 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
        assert_eq!(proxy.ask("/metrics").status, 200);
    }
    let errors = proxy.metrics().sum("portcullis_accept_errors_total", &[]);
    assert!(errors < 0.5, "accept ran out of files {errors} times");
    proxy.assert_sound();
}

/// A proxy whose host has 20 ports for its connections to backends, and a client on another host.
fn few_ports() -> [Host; 2] {
    let (client, proxy) = (Host::new(), Host::new());
    Host::join((&client, Ipv4Addr::new(10, 0, 8, 1)), (&proxy, Ipv4Addr::new(10, 0, 8, 2)));
    let range = || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40019");
    proxy.run(range).expect("a writable /proc/sys/net");
    [client, proxy]
}

/// Sends a hello; gives the connection and what became of it.
fn ask(addr: SocketAddr, hello: &[u8]) -> (TcpStream, Outcome) {
    let mut stream = TcpStream::connect_timeout(&addr, SOON).unwrap();
    let outcome = outcome(&mut stream, hello, SOON);
    (stream, outcome)
}

#[test]
fn without_a_port_left_clients_are_refused_at_once_and_the_backend_is_not_blamed() {
    with_hosts(|| {
        const PORTS: usize = 20;
        const CLIENTS: usize = 40;
        let [client, host] = few_ports();
        let (backend, mut proxy) = host.run(|| {
            let backend = Backend::tagged_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 9000)), "a");
            let proxy = Proxy::start(&format!(
                "listen = '10.0.8.2:443'\nadmin = '127.0.0.1:9901'\n{UNLIMITED}\
                 [[route]]\nname = 'r'\nsni = 'a.test'\nto = '{backend}'\n"
            ));
            (backend, proxy)
        });
        let (addr, hello) = (proxy.addr(), to("a.test"));
        let asked = client.run(|| (0..CLIENTS).map(|_| timed(|| ask(addr, &hello))).collect::<Vec<_>>());
        let (held, refused): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|(_, (_, outcome))| *outcome == served("a"));
        assert_eq!((held.len(), refused.len()), (PORTS, CLIENTS - PORTS));
        assert_eq!(backend.hits(), PORTS);
        for (took, (_, outcome)) in &refused {
            assert_eq!(*outcome, Outcome::Alert(80));
            assert!(*took < Duration::from_secs(1), "refused after {took:?}");
        }
        let line = proxy.access_line("one without a port", |line| line["reason"] == "resource");
        assert_eq!((&line["cause"], &line["stage"]), (&"resource".into(), &"connect".into()));
        // One of them goes: its port may be used again at once, since the client's end was the last.
        drop(held);
        client.run(|| {
            until("a port", SOON, || (ask(addr, &hello).1 == served("a")).then_some(()));
        });
        host.run(|| {
            let metrics = proxy.metrics();
            let failures = |reason| {
                metrics.sum(
                    "portcullis_upstream_connect_failures_total",
                    &[("upstream", "r"), ("reason", reason)],
                )
            };
            assert!(failures("resource") >= (CLIENTS - PORTS) as f64, "{}", failures("resource"));
            assert!(failures("refused") + failures("timeout") < 0.5, "the backend is blamed");
        });
        proxy.assert_sound();
    });
}

/// The ports of a source are used again towards another destination (RFC 9293: a connection is both of its ends).
#[test]
fn without_a_port_to_one_backend_the_next_one_serves() {
    with_hosts(|| {
        let [client, host] = few_ports();
        let (backends, proxy) = host.run(|| {
            let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let backends = [Backend::tagged_at(at(9000), "one"), Backend::tagged_at(at(9001), "two")];
            // Both of the first route's ports are taken through the second.
            let proxy = Proxy::start(&format!(
                "listen = '10.0.8.2:443'\nadmin = '127.0.0.1:9901'\n{UNLIMITED}\
                 [[route]]\nsni = 'one.test'\nto = '{0}'\n[[route]]\nsni = 'a.test'\nto = ['{0}', '{1}']\n",
                backends[0], backends[1]
            ));
            (backends, proxy)
        });
        let addr = proxy.addr();
        client.run(|| {
            let held: Vec<_> = (0..20).map(|_| ask(addr, &to("one.test"))).collect();
            assert!(held.iter().all(|(_, outcome)| *outcome == served("one")));
            let others: Vec<_> = (0..20).map(|_| timed(|| ask(addr, &to("a.test")))).collect();
            for (took, (_, outcome)) in &others {
                assert_eq!(*outcome, served("two"));
                assert!(*took < Duration::from_secs(1), "{took:?}");
            }
        });
        assert_eq!((backends[0].hits(), backends[1].hits()), (20, 20));
    });
}
