//! What follows from health checks, and what does not, with real servers: where clients go, whose connections end, what outlives
//! a reload, and what the checks themselves do to a server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::support::client::{End, connect, read_to_end};
use crate::support::metrics::Metrics;
use crate::support::netns::{Host, with_hosts};
use crate::support::process::finish;
use crate::support::proxy::Proxy;
use crate::support::servers::{Mariadb, Postfix, Redis};
use crate::support::{SOON, UNLIMITED, until, wait_for};

/// How often is checked in these tests, and how long a check may take, as keys of `health`.
const OFTEN: &str = "interval = '500ms', timeout = '400ms'";

fn config(zone: &str, backends: &[String], keys: &str) -> String {
    format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsilent_after = '20ms'\n{zone}\n{UNLIMITED}\
         [[upstream]]\nname = 'u'\nto = [{}]\n{keys}\n[[route]]\nprotocol = 'any'\nupstream = 'u'\n\
         [[route]]\nprotocol = 'silent'\nupstream = 'u'\n",
        backends.join(", ")
    )
}

fn plain(addr: SocketAddr) -> String {
    format!("'{addr}'")
}

fn wait_healthy(proxy: &Proxy, backend: SocketAddr, healthy: bool) {
    let labels = [("upstream", "u"), ("backend", &*backend.to_string())];
    proxy.wait_metric("portcullis_upstream_healthy", &labels, if healthy { 1.0 } else { 0.0 });
}

/// How many checks of a backend have come to this.
fn checks(metrics: &Metrics, backend: SocketAddr, result: &str) -> f64 {
    let labels = [("upstream", "u"), ("backend", &*backend.to_string()), ("result", result)];
    metrics.sum("portcullis_upstream_health_checks_total", &labels)
}

fn wait_checks(proxy: &Proxy, backend: SocketAddr, result: &str, more: f64) {
    let before = checks(&proxy.metrics(), backend, result);
    wait_for("more checks", || checks(&proxy.metrics(), backend, result) >= before + more);
}

/// The port of the Redis that serves a connection.
fn port_of(mut stream: &TcpStream) -> io::Result<u16> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"CONFIG GET port\r\n")?;
    // An array of two strings, each behind its length: the last line is the value.
    let value = BufReader::new(stream).lines().nth(4).ok_or(io::ErrorKind::UnexpectedEof)??;
    value.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn asked(proxy: &Proxy) -> u16 {
    port_of(&connect(proxy.addr())).unwrap()
}

/// Waits until clients come to the server at this address, and to no other.
fn wait_served_by(proxy: &Proxy, server: SocketAddr) {
    wait_for("the server to be chosen", || asked(proxy) == server.port());
    for _ in 0..6 {
        assert_eq!(asked(proxy), server.port());
    }
}

#[test]
fn clients_go_to_the_near_zone_while_it_is_well_and_are_let_go_when_it_is_not() {
    let (near, far) = (Redis::start(), Redis::start());
    let in_zone = |addr: SocketAddr, zone: &str| format!("{{ address = '{addr}', zone = '{zone}' }}");
    let proxy = Proxy::start(&config(
        "zone = 'here'",
        &[in_zone(far.addr(), "there"), in_zone(near.addr(), "here")],
        &format!("on_down = 'close'\nhealth = {{ check = 'redis', fall = 2, {OFTEN} }}"),
    ));
    wait_checks(&proxy, near.addr(), "passed", 1.0);
    wait_served_by(&proxy, near.addr());
    let mut session = connect(proxy.addr());
    assert_eq!(port_of(&session).unwrap(), near.addr().port());
    near.signal(Signal::STOP);
    // The server has the connection still, and says nothing: only the proxy can end it.
    assert_eq!(read_to_end(&mut session, SOON).end, End::Reset);
    let line = proxy.access_line_of(session.local_addr().unwrap());
    assert_eq!(
        (&line["reason"], &line["backend"]),
        (&"backend_down".into(), &near.addr().to_string().into())
    );
    wait_served_by(&proxy, far.addr());
    let other = connect(proxy.addr());
    assert_eq!(port_of(&other).unwrap(), far.addr().port());
    near.signal(Signal::CONT);
    wait_healthy(&proxy, near.addr(), true);
    wait_served_by(&proxy, near.addr());
    assert_eq!(port_of(&other).unwrap(), far.addr().port(), "who is served elsewhere stays there");
    let told = |message| {
        proxy.logged(message).iter().filter(|line| line["backend"] == near.addr().to_string()).count()
    };
    assert_eq!((told("a backend is down"), told("a backend is up"), told("a backend changed")), (1, 2, 0));
}

/// It takes a hundred good checks until the server is up again: were it forgotten that it is down, the first would do.
#[test]
fn what_checks_have_found_is_known_over_a_reload() {
    let (one, other) = (Redis::start(), Redis::start());
    let with = |fall: u32| {
        let health = format!("health = {{ check = 'redis', rise = 100, fall = {fall}, {OFTEN} }}");
        config("", &[plain(one.addr()), plain(other.addr())], &health)
    };
    let proxy = Proxy::start(&with(2));
    wait_checks(&proxy, other.addr(), "passed", 1.0);
    one.signal(Signal::STOP);
    wait_healthy(&proxy, one.addr(), false);
    one.signal(Signal::CONT);
    wait_served_by(&proxy, other.addr());
    proxy.reconfigure(&with(3));
    for _ in 0..6 {
        assert_eq!(asked(&proxy), other.addr().port(), "before the first check");
    }
    wait_checks(&proxy, one.addr(), "passed", 2.0);
    wait_served_by(&proxy, other.addr());
    wait_healthy(&proxy, one.addr(), false);
}

/// What the proxy lacks tells nothing of a server.
#[test]
fn without_descriptors_a_server_stays_what_it_was() {
    let redis = Redis::start();
    let health = format!("health = {{ check = 'redis', fall = 2, {OFTEN} }}");
    let proxy = Proxy::start(&config("", &[plain(redis.addr())], &health));
    wait_checks(&proxy, redis.addr(), "passed", 1.0);
    let session = connect(proxy.addr());
    assert_eq!(port_of(&session).unwrap(), redis.addr().port());
    // Open by now, so that it can go on asking.
    let mut admin = connect(proxy.admin());
    scrape(&mut admin);
    let pid = Pid::from_raw(i32::try_from(proxy.process.id()).unwrap());
    // Behind the standard streams there is no room for one more. The hard limit is that of the tests.
    let none = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    wait_for("checks in vain", || checks(&scrape(&mut admin), redis.addr(), "resource") >= 4.0);
    let healthy = scrape(&mut admin).sum("portcullis_upstream_healthy", &[("upstream", "u")]);
    assert!((healthy - 1.0).abs() < 0.1, "{healthy}");
    assert_eq!(port_of(&session).unwrap(), redis.addr().port(), "it is served all the time");
    prlimit(pid, Resource::Nofile, before).unwrap();
    wait_served_by(&proxy, redis.addr());
    wait_checks(&proxy, redis.addr(), "passed", 1.0);
    let told = ["a backend cannot be checked", "a backend can be checked again", "a backend is down"];
    assert_eq!(told.map(|message| proxy.logged(message).len()), [1, 1, 0], "told once, however many checks");
}

/// Metrics over a connection that stays.
fn scrape(admin: &mut TcpStream) -> Metrics {
    admin.set_read_timeout(Some(SOON)).unwrap();
    admin.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut reader = BufReader::new(&mut *admin);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            None if line == "\r\n" => break,
            Some(_) | None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Metrics::parse(&String::from_utf8(body).unwrap())
}

/// It counts who hears its greeting and goes, and refuses their host after a while. Hosts on loopback are not counted.
#[test]
fn mariadb_does_not_refuse_the_host_that_checks_it() {
    with_hosts(|| {
        let (host, addr) = (Host::new(), Ipv4Addr::new(10, 9, 9, 1));
        host.execute(&format!("ip address add {addr}/32 dev lo"), "");
        host.run(|| {
            let mariadb = Mariadb::counting(addr, "checker.test", 3);
            let health = format!("health = {{ check = 'mysql', fall = 2, {OFTEN} }}");
            let proxy = Proxy::start(&config("", &[plain(mariadb.addr())], &health));
            wait_checks(&proxy, mariadb.addr(), "passed", 8.0);
            let port = mariadb.addr().port().to_string();
            let mut client = Command::new("mysql");
            client.args([
                "--no-defaults",
                "-h",
                "10.9.9.1",
                "-P",
                &port,
                "-u",
                "root",
                "-Ne",
                "select 6 * 7",
            ]);
            let done = finish(&mut client, "mariadb-client", "");
            assert_eq!(done.stdout, "42\n", "{}", done.stderr);
            // A check by its greeting alone would have been the end of it.
            let blocked = until("the host to be refused", SOON, || {
                let mut greeting = [0; 128];
                let n = connect(mariadb.addr()).read(&mut greeting).unwrap();
                let text = String::from_utf8_lossy(&greeting[..n]).into_owned();
                text.contains("is blocked because of many connection errors").then_some(text)
            });
            assert!(blocked.contains("10.9.9.1"), "{blocked}");
            wait_healthy(&proxy, mariadb.addr(), false);
        });
    });
}

/// What a mail server says first.
fn greeting(addr: SocketAddr) -> String {
    let stream = connect(addr);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut line = String::new();
    // Fails where there is no server: then it has said nothing.
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

#[test]
fn postfix_is_followed() {
    let (mut one, other) = (Postfix::start(), Postfix::start());
    let health = format!("health = {{ check = 'smtp', fall = 2, {OFTEN} }}");
    let proxy = Proxy::start(&config("", &[plain(one.addr()), plain(other.addr())], &health));
    let by = |server: SocketAddr| format!("220 {}.postfix.test ESMTP Postfix", server.port());
    let both = [one.addr(), other.addr()];
    for server in both {
        wait_checks(&proxy, server, "passed", 2.0);
        wait_for("both to serve", || greeting(proxy.addr()).starts_with(&by(server)));
    }
    one.kill();
    wait_healthy(&proxy, one.addr(), false);
    for _ in 0..6 {
        assert!(greeting(proxy.addr()).starts_with(&by(other.addr())));
    }
    one.restart();
    wait_healthy(&proxy, one.addr(), true);
    for server in both {
        wait_for("both to serve again", || greeting(proxy.addr()).starts_with(&by(server)));
    }
}
