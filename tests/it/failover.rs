//! Backends that fail: passed over for a time, come back, and take their connections with them where that is asked for.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::client::{
    End, Outcome, exchange, held, loopback, probe, probe_from, read_to_end, reset, served,
};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until};
use crate::upstream::refusing;

const INTERNAL_ERROR: Outcome = Outcome::Alert(80);

fn config(backends: &str, keys: &str) -> String {
    format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nname = 'r'\nsni = 'a.test'\n\
         to = [{backends}]\n{keys}\n"
    )
}

fn proxy_to(backends: &str, keys: &str) -> Proxy {
    Proxy::start(&config(backends, keys))
}

/// A backend that says nothing while the switch is on, but ends each connection as `refuse` does.
struct Moody {
    backend: Backend,
    moody: Arc<AtomicBool>,
}

impl Moody {
    fn new(tag: &'static str, refuse: fn(TcpStream)) -> Self {
        let moody = Arc::new(AtomicBool::new(false));
        let (mood, hello) = (Arc::clone(&moody), to("a.test").len());
        let backend = Backend::new(move |mut stream| {
            // Fails where a probe closes.
            let whole = stream.read_exact(&mut vec![0; hello]).is_ok();
            if whole && mood.load(Ordering::SeqCst) {
                return refuse(stream);
            }
            let _ = stream.write_all(format!("tag:{tag}\n").as_bytes());
            let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
        Self { backend, moody }
    }

    fn set(&self, moody: bool) {
        self.moody.store(moody, Ordering::SeqCst);
    }
}

fn state(proxy: &Proxy, backend: &impl ToString) -> Value {
    let (status, all) = proxy.api("GET", "upstreams", "");
    assert_eq!(status, 200, "{all}");
    let endpoints = find(&all, &backend.to_string()).unwrap_or_else(|| panic!("{all}"));
    endpoints["state"].clone()
}

/// The endpoint of this address, wherever it stands.
fn find(value: &Value, address: &str) -> Option<Value> {
    match value {
        Value::Object(map) if map.get("address").is_some_and(|at| at == address) => Some(value.clone()),
        Value::Object(map) => map.values().find_map(|value| find(value, address)),
        Value::Array(all) => all.iter().find_map(|value| find(value, address)),
        _ => None,
    }
}

fn ejections(proxy: &Proxy, backend: &Backend) -> f64 {
    let labels = [("upstream", "r"), ("backend", &backend.to_string())];
    proxy.metrics().sum("portcullis_upstream_ejections_total", &labels)
}

/// Kernels accept connections for programs that reset each of them, or close them at once.
#[test]
fn a_backend_without_a_first_byte_is_passed_over_until_it_serves_again() {
    for refuse in [reset as fn(_), drop as fn(_)] {
        let (good, moody) = (Backend::tagged("good"), Moody::new("moody", refuse));
        let proxy =
            proxy_to(&format!("'{good}', '{}'", moody.backend), "eject = { failures = 3, for = '1s' }");
        for _ in 0..10 {
            assert!(matches!(probe(proxy.addr(), &to("a.test")), Outcome::Served(_)));
        }
        moody.set(true);
        let met = moody.backend.hits();
        until("the ejection", SOON, || {
            // Whoever meets it is led on to the other.
            assert_eq!(probe(proxy.addr(), &to("a.test")), served("good"));
            (state(&proxy, &moody.backend) == "ejected").then_some(())
        });
        let before = moody.backend.hits();
        assert!((3..=5).contains(&(before - met)), "{met} {before}");
        for _ in 0..10 {
            assert_eq!(probe(proxy.addr(), &to("a.test")), served("good"));
        }
        // Its probe may have come meanwhile.
        assert!(moody.backend.hits() <= before + 1);
        assert!((ejections(&proxy, &moody.backend) - 1.0).abs() < 0.5);
        moody.set(false);
        until("clients to come back", SOON, || {
            (probe(proxy.addr(), &to("a.test")) == served("moody")).then_some(())
        });
        assert_eq!(state(&proxy, &moody.backend), "up");
    }
}

#[test]
fn a_backend_that_cannot_be_reached_is_probed_before_clients_come_back() {
    let (held, away) = refusing();
    let good = Backend::tagged("good");
    let proxy = proxy_to(&format!("'{good}', '{away}'"), "eject = { failures = 2, for = '300ms' }");
    until("the ejection", SOON, || {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("good"));
        (state(&proxy, &away) == "ejected").then_some(())
    });
    // Probed in vain, and out for longer each time.
    until("two probes", SOON, || (proxy.logged("a backend was probed").len() >= 2).then_some(()));
    let lines = proxy.logged("a backend was probed");
    assert_eq!((&lines[0]["reached"], &lines[1]["reached"]), (&false.into(), &false.into()));
    assert!(lines[1]["for_s"].as_f64().unwrap() > lines[0]["for_s"].as_f64().unwrap(), "{lines:?}");
    let refused = |proxy: &Proxy| {
        let labels = [("backend", &*away.to_string()), ("reason", "refused")];
        proxy.metrics().sum("portcullis_upstream_connect_failures_total", &labels)
    };
    let before = refused(&proxy);
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("good"));
    }
    assert!((refused(&proxy) - before).abs() < 0.5, "no client was sent there");
    drop(held);
    let _back = Backend::tagged_at(away, "back");
    until("clients to come back", SOON, || {
        (probe(proxy.addr(), &to("a.test")) == served("back")).then_some(())
    });
}

#[test]
fn clients_that_end_first_and_those_of_other_protocols_tell_nothing_against_a_backend() {
    let silent = || Backend::new(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let (one, two) = (silent(), silent());
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[upstream]]\nname = 'r'\nto = ['{one}', '{two}']\n\
         eject = 2\n[[route]]\nsni = 'a.test'\nupstream = 'r'\n[[route]]\nprotocol = 'ssh'\nupstream = 'r'\n"
    ));
    for bytes in [to("a.test"), b"SSH-2.0-x\r\n".to_vec()] {
        for _ in 0..10 {
            let reply = exchange(proxy.addr(), &[&bytes]);
            assert_eq!((reply.bytes.len(), reply.end), (0, End::Eof));
        }
    }
    assert_eq!((one.hits(), two.hits()), (10, 10));
    assert!(ejections(&proxy, &one) + ejections(&proxy, &two) < 0.5);
    assert_eq!((state(&proxy, &one), state(&proxy, &two)), ("up".into(), "up".into()));
}

#[test]
fn not_all_backends_are_passed_over() {
    let moody = [(); 3].map(|()| Moody::new("moody", reset));
    let to_all: Vec<_> = moody.iter().map(|one| format!("'{}'", one.backend)).collect();
    let proxy = proxy_to(&to_all.join(", "), "eject = { failures = 2, for = '1m' }");
    moody.iter().for_each(|one| one.set(true));
    for _ in 0..30 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Reset);
    }
    let out = moody.iter().filter(|one| state(&proxy, &one.backend) == "ejected").count();
    assert_eq!(out, 1, "a third is all that is below a half");
}

#[test]
fn connections_of_a_backend_that_goes_down_are_closed_where_that_is_asked_for() {
    for (on_down, closed) in [("close", true), ("leave", false)] {
        let (good, moody) = (Backend::tagged("good"), Moody::new("moody", reset));
        let backends = format!("'{good}', '{}'", moody.backend);
        let proxy =
            proxy_to(&backends, &format!("eject = {{ failures = 2, for = '1m' }}\non_down = '{on_down}'"));
        // Of each backend so many.
        let open: Vec<_> = (0..20).map(|_| held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"))).collect();
        moody.set(true);
        until("the ejection", SOON, || {
            probe(proxy.addr(), &to("a.test"));
            (state(&proxy, &moody.backend) == "ejected").then_some(())
        });
        if closed {
            let told = || proxy.logged("closed the connections of a backend").pop();
            assert_eq!(until("the end of its connections", SOON, told)["closed"], 10);
        }
        let mut ends = [0, 0];
        for mut stream in open {
            match read_to_end(&mut stream, Duration::from_millis(50)).end {
                End::Reset => ends[0] += 1,
                End::Open => ends[1] += 1,
                End::Eof => panic!("a broken stream looks whole"),
            }
        }
        assert_eq!(ends, if closed { [10, 10] } else { [0, 20] }, "{on_down}");
        if closed {
            let line = proxy.access_line("closed", |line| line["reason"] == "backend_down");
            assert_eq!((&line["cause"], &line["stage"]), (&"upstream".into(), &"relay".into()));
            assert_eq!(line["backend"], moody.backend.to_string());
        }
    }
}

#[test]
fn a_client_stays_with_its_backend_also_over_a_reload() {
    let tags = ["one", "two", "three"];
    let backends = tags.map(Backend::tagged);
    let list = |backends: &[&Backend]| {
        backends.iter().map(|backend| format!("'{backend}'")).collect::<Vec<_>>().join(", ")
    };
    let all = list(&backends.iter().collect::<Vec<_>>());
    let proxy = proxy_to(&all, "sticky = '1m'\neject = 'off'");
    let given = |last: u8| probe_from(loopback(last), proxy.addr(), &to("a.test"));
    let first: Vec<_> = (101..119).map(given).collect();
    for tag in tags {
        assert_eq!(first.iter().filter(|outcome| **outcome == served(tag)).count(), 6, "shared in turn");
    }
    assert_eq!((101..119).map(given).collect::<Vec<_>>(), first);
    proxy.reconfigure(&config(&all, "sticky = '1m'\neject = 'off'\nslow_start = '1s'"));
    assert_eq!((101..119).map(given).collect::<Vec<_>>(), first, "known over a reload");
    // Those of one that is gone are given another one, and stay with that.
    let [_one, _two, three] = backends;
    drop(three);
    let moved: Vec<_> = (101..119).map(given).collect();
    for (before, now) in first.iter().zip(&moved) {
        assert!(
            *before == *now || *before == served("three") && *now != served("three"),
            "{before:?} {now:?}"
        );
    }
    assert_eq!((101..119).map(given).collect::<Vec<_>>(), moved);
}

#[test]
fn a_tier_serves_when_the_one_before_it_is_gone() {
    let (main, spare) = (Backend::tagged("main"), Backend::tagged("spare"));
    let proxy = proxy_to(
        &format!("'{main}', {{ address = '{spare}', tier = 2 }}"),
        "eject = { failures = 2, for = '300ms' }",
    );
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("main"));
    }
    let addr = main.addr();
    drop(main);
    for _ in 0..10 {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("spare"));
    }
    until("its port", SOON, || TcpListener::bind(addr).ok());
    let _main = Backend::tagged_at(addr, "main");
    until("the first tier again", SOON, || {
        (probe(proxy.addr(), &to("a.test")) == served("main")).then_some(())
    });
}

#[test]
fn when_no_backend_is_available_clients_are_refused_at_once() {
    let moody = Moody::new("moody", reset);
    let proxy =
        proxy_to(&format!("'{}'", moody.backend), "eject = { failures = 2, for = '1m', at_most = '100%' }");
    moody.set(true);
    until("the ejection", SOON, || {
        probe(proxy.addr(), &to("a.test"));
        (state(&proxy, &moody.backend) == "ejected").then_some(())
    });
    assert_eq!(probe(proxy.addr(), &to("a.test")), INTERNAL_ERROR);
    let line = proxy.access_line("no endpoint", |line| line["reason"] == "no_endpoint");
    assert_eq!((&line["cause"], &line["stage"]), (&"upstream".into(), &"connect".into()));
    assert!(line["duration_ms"].as_f64().unwrap() < 1000.0, "{line}");
}

#[test]
fn a_backend_that_comes_back_starts_slowly() {
    let (good, moody) = (Backend::tagged("good"), Moody::new("moody", reset));
    let proxy = proxy_to(
        &format!("'{good}', '{}'", moody.backend),
        "eject = { failures = 2, for = '300ms' }\nslow_start = '6s'",
    );
    moody.set(true);
    until("the ejection", SOON, || {
        probe(proxy.addr(), &to("a.test"));
        (state(&proxy, &moody.backend) == "ejected").then_some(())
    });
    moody.set(false);
    until("its return", SOON, || (state(&proxy, &moody.backend) == "up").then_some(()));
    let share = || {
        let served_by_it = (0..100).filter(|_| probe(proxy.addr(), &to("a.test")) == served("moody"));
        served_by_it.count()
    };
    let first = share();
    assert!(first < 35, "{first} of 100 at first");
    let last = until("its whole share", SOON, || Some(share()).filter(|share| *share >= 45));
    assert!(last <= 55, "{last} of 100 at last");
}

#[test]
fn retries_are_a_part_of_the_connections() {
    let (_held, away) = refusing();
    let good = Backend::tagged("good");
    let proxy = proxy_to(&format!("'{away}', '{good}'"), "eject = 'off'\nretry_budget = '10%'");
    let mut refused = 0;
    for _ in 0..400 {
        match probe(proxy.addr(), &to("a.test")) {
            Outcome::Served(tag) => assert_eq!(tag, "good"),
            other => {
                assert_eq!(other, INTERNAL_ERROR);
                refused += 1;
            }
        }
    }
    // Half of them come to the one that refuses; a hundred in ten seconds are free, and a tenth of all beside them.
    assert!(refused >= 20, "{refused}");
    proxy.access_line("retry budget", |line| line["reason"] == "retry_budget" && line["cause"] == "upstream");
    let metrics = proxy.metrics();
    let sum = |name| metrics.sum(name, &[("upstream", "r")]);
    assert!((sum("portcullis_upstream_retries_exhausted_total") - f64::from(refused)).abs() < 0.5);
    // 400 connections make 40 of them, if all came within ten seconds.
    let retries = sum("portcullis_upstream_retries_total");
    assert!((100.0..=141.0).contains(&retries) || refused < 260, "{retries}");
    let unlimited = proxy_to(&format!("'{away}', '{good}'"), "eject = 'off'\nretry_budget = 'off'");
    for _ in 0..300 {
        assert_eq!(probe(unlimited.addr(), &to("a.test")), served("good"));
    }
}
