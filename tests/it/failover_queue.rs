//! Backends with as many connections as they may have: others are used, then connections wait in turn, or are refused.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{
    End, Outcome, connect, held, outcome, probe, read_to_end, read_while, reset, served, tag, timed,
};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until};

const INTERNAL_ERROR: Outcome = Outcome::Alert(80);
const LENGTH: &str = "portcullis_upstream_queue_length";
const REJECTIONS: &str = "portcullis_upstream_queue_rejections_total";

fn proxy_to(backends: &[&Backend], keys: &str) -> Proxy {
    let backends: Vec<_> = backends.iter().map(|backend| format!("'{backend}'")).collect();
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nname = 'r'\nsni = 'a.test'\n\
         to = [{}]\n{keys}\n",
        backends.join(", ")
    ))
}

fn hold(proxy: &Proxy) -> TcpStream {
    held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"))
}

/// A client that has said what it wants, and waits for a backend.
fn waiting(proxy: &Proxy, queue: usize) -> TcpStream {
    let mut stream = connect(proxy.addr());
    stream.write_all(&to("a.test")).unwrap();
    proxy.wait_metric(LENGTH, &[("upstream", "r")], queue as f64);
    stream
}

/// Whether the backend has answered within that time.
fn is_served(stream: &mut TcpStream, within: Duration) -> bool {
    tag(&read_while(stream, within, |bytes| tag(bytes).is_none()).bytes).is_some()
}

#[test]
fn without_a_queue_more_than_all_may_have_are_refused() {
    let (one, two) = (Backend::tagged("one"), Backend::tagged("two"));
    let proxy = proxy_to(&[&one, &two], "max_connections = 2");
    let mut held: Vec<_> = (0..4).map(|_| hold(&proxy)).collect();
    assert_eq!((one.hits(), two.hits()), (2, 2));
    let (took, refused) = timed(|| probe(proxy.addr(), &to("a.test")));
    assert_eq!(refused, INTERNAL_ERROR);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let line = proxy.access_line("full", |line| line["reason"] == "full");
    assert_eq!((&line["cause"], &line["stage"]), (&"upstream".into(), &"connect".into()));
    proxy.wait_metric(REJECTIONS, &[("upstream", "r"), ("reason", "full")], 1.0);
    held.pop();
    until("room", SOON, || matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)).then_some(()));
}

#[test]
fn those_that_wait_are_served_in_turn_when_there_is_room() {
    let backend = Backend::tagged("one");
    let proxy = proxy_to(&[&backend], "max_connections = 1\nqueue = { size = 3, timeout = '20s' }");
    let first = hold(&proxy);
    let mut line: Vec<_> = (1..=3).map(|place| waiting(&proxy, place)).collect();
    assert_eq!(probe(proxy.addr(), &to("a.test")), INTERNAL_ERROR, "a fourth of three");
    drop(first);
    for left in (0..3).rev() {
        let mut next = line.remove(0);
        assert!(is_served(&mut next, SOON));
        assert!(line.iter_mut().all(|stream| !is_served(stream, Duration::from_millis(20))));
        proxy.wait_metric(LENGTH, &[("upstream", "r")], left as f64);
        drop(next);
    }
    assert_eq!(backend.hits(), 4);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("one"));
}

#[test]
fn nobody_waits_longer_than_that() {
    let backend = Backend::tagged("one");
    let proxy = proxy_to(&[&backend], "max_connections = 1\nqueue = { size = 9, timeout = '300ms' }");
    let _held = hold(&proxy);
    let (took, refused) = timed(|| probe(proxy.addr(), &to("a.test")));
    assert_eq!(refused, INTERNAL_ERROR);
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(2), "{took:?}");
    let line = proxy.access_line("late", |line| line["reason"] == "queue_timeout");
    assert_eq!(line["cause"], "upstream_timeout");
    proxy.wait_metric(REJECTIONS, &[("upstream", "r"), ("reason", "queue_timeout")], 1.0);
    proxy.wait_metric(LENGTH, &[("upstream", "r")], 0.0);
}

#[test]
fn clients_that_go_away_leave_their_place() {
    let backend = Backend::tagged("one");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[upstream]]\nname = 'r'\nto = '{backend}'\n\
         max_connections = 1\nqueue = {{ size = 9, timeout = '1m' }}\n[[route]]\nsni = 'a.test'\nupstream = 'r'\n\
         [[route]]\nprotocol = 'ssh'\nupstream = 'r'\n"
    ));
    let held = hold(&proxy);
    let closing = waiting(&proxy, 1);
    let resetting = waiting(&proxy, 2);
    let mut ssh = connect(proxy.addr());
    ssh.write_all(b"SSH-2.0-x\r\n").unwrap();
    proxy.wait_metric(LENGTH, &[("upstream", "r")], 3.0);
    let mut last = waiting(&proxy, 4);
    drop(closing);
    proxy.wait_metric(LENGTH, &[("upstream", "r")], 3.0);
    reset(resetting);
    proxy.wait_metric(LENGTH, &[("upstream", "r")], 2.0);
    let line = proxy.access_line("a client that went", |line| line["reason"] == "closed");
    assert_eq!((&line["cause"], &line["stage"]), (&"client".into(), &"connect".into()));
    // Other protocols may end a stream and wait for the answer.
    ssh.shutdown(Shutdown::Write).unwrap();
    drop(held);
    let reply = read_to_end(&mut ssh, SOON);
    assert_eq!((reply.end, reply.bytes), (End::Eof, b"tag:one\nSSH-2.0-x\r\n".to_vec()));
    assert!(is_served(&mut last, SOON));
    assert_eq!(backend.hits(), 3);
}

#[test]
fn a_limit_that_is_raised_serves_those_that_wait() {
    let backend = Backend::tagged("one");
    let config = |limit: u32| {
        format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nname = 'r'\nsni = 'a.test'\n\
             to = '{backend}'\nmax_connections = {limit}\nqueue = 9\n"
        )
    };
    let proxy = Proxy::start(&config(1));
    let _held = hold(&proxy);
    let (mut one, mut two) = (waiting(&proxy, 1), waiting(&proxy, 2));
    proxy.reconfigure(&config(2));
    assert!(is_served(&mut one, SOON));
    assert!(!is_served(&mut two, Duration::from_millis(50)));
}

/// Both workers take and give back at once: nobody is forgotten, and no more are served at a time than may be.
#[test]
fn a_rush_through_a_narrow_place_serves_everybody() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let backend = Backend::new(|mut stream| {
        MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        stream.write_all(b"tag:one\n").unwrap();
        // Until the client closes.
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
        NOW.fetch_sub(1, Ordering::SeqCst);
    });
    let proxy = proxy_to(&[&backend], "max_connections = 4\nqueue = { size = 200, timeout = '15s' }");
    crate::support::in_parallel(40, 400, |_| {
        let mut stream = connect(proxy.addr());
        assert_eq!(outcome(&mut stream, &to("a.test"), SOON), served("one"));
    });
    assert_eq!(backend.hits(), 400);
    // One that ends at the proxy may not have been seen to by the backend's thread.
    assert!(MOST.load(Ordering::SeqCst) <= 4 + 4, "{MOST:?}");
    proxy.wait_metric(LENGTH, &[("upstream", "r")], 0.0);
}
