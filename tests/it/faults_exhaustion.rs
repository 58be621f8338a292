//! The end of what there is: memory for hellos.

use std::io::Write;
use std::net::TcpStream;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect_from, loopback, outcome, probe, served};
use crate::support::hello::{padded, to};
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, wait_for};

/// Clients that begin a hello of 8 KB and do not end it: what they hold is bounded, the next one that would hold
/// more is reset, and whoever says what he wants at once is served all the while.
#[test]
fn unfinished_hellos_share_a_bounded_memory() {
    const LIMIT: usize = 64 * 1024;
    const BEGUN: usize = 4000;
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nhello_memory = '64KiB'\ntimeouts = {{ hello = '1m' }}\n\
         {UNLIMITED}[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let (large, small) = (padded(b"a.test", 8000), to("a.test"));
    let begin = |n| {
        let mut stream = connect_from(loopback(n), proxy.addr());
        stream.write_all(&large[..BEGUN]).unwrap();
        stream
    };
    let mut begun: Vec<TcpStream> = (2..40).map(begin).collect();
    let refused = |proxy: &Proxy| {
        let labels = [("reason", "hello_memory")];
        proxy.metrics().sum("portcullis_clienthello_errors_total", &labels) as usize
    };
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
    proxy.assert_sound();
}
