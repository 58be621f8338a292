//! Floods (L11) and the end of file descriptors (L13): refusing is cheap, starving is quiet.

use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{
    Outcome, connect, connect_from, loopback, outcome, probe, probe_from, served, timed, try_connect,
};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, in_parallel, until};

#[test]
fn a_flood_from_one_address_costs_little_and_hurts_nobody_else() {
    const FLOOD: usize = 5000;
    const BURST: usize = 10;
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nrate_limit = {{ per_ip = '1/s', burst = {BURST} }}\n{UNLIMITED}\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let (addr, hello) = (proxy.addr(), to("a.test"));
    let rss = proxy.process.rss();
    let cpu = proxy.process.cpu();
    let (took, ()) = timed(|| {
        in_parallel(4, FLOOD, |number| {
            let Ok(mut stream) = try_connect(Ipv4Addr::LOCALHOST, addr) else { return };
            if number % 20 == 0 {
                outcome(&mut stream, &hello, SOON);
            } else {
                // Refused connections may be gone already.
                let _ = std::io::Write::write_all(&mut stream, &hello);
            }
        });
    });
    let each = (proxy.process.cpu() - cpu) / FLOOD as u32;
    println!(
        "{FLOOD} connections in {took:?}: {each:?} of processor time each, {} in all at the backend",
        backend.hits()
    );
    assert!(backend.hits() > 0, "the burst was refused too");
    assert!(backend.hits() <= BURST + took.as_secs() as usize + 1, "{} got through", backend.hits());
    assert!(each <= Duration::from_micros(40), "{each:?} for a refused connection");
    for other in 2..12 {
        assert_eq!(probe_from(loopback(other), addr, &hello), served("a"), "127.0.0.{other}");
    }
    let refused = proxy.metrics().sum("portcullis_connections_rejected_total", &[("reason", "rate_limit")]);
    assert!(refused >= (FLOOD - BURST - 2 * took.as_secs() as usize - 1) as f64, "{refused}");
    let grown = proxy.process.rss().saturating_sub(rss);
    assert!(grown < 8 * 1024 * 1024, "{grown} bytes");
    proxy.assert_sound();
}

#[test]
fn without_descriptors_it_waits_quietly_and_recovers_at_once() {
    const NOFILE: usize = 96;
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start_under(
        &["prlimit", "--nofile=96:96"],
        &format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\ntimeouts = {{ hello = '1m' }}\n\
             connection_limit = {{ per_ip = 'off', before_hello = 'off', total = 1000 }}\n\
             [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        ),
    );
    let (addr, hello) = (proxy.addr(), to("a.test"));
    assert_eq!(probe(addr, &hello), served("a"));
    let holders: Vec<TcpStream> = (0..150).map(|n| connect_from(Ipv4Addr::new(127, 0, 2, n), addr)).collect();
    until("no descriptor to be left", SOON, || (proxy.process.fds() >= NOFILE).then_some(()));
    let cpu = proxy.process.cpu();
    // The figure is one of time: how much of two seconds is spent while starved.
    std::thread::sleep(Duration::from_secs(2));
    let spent = proxy.process.cpu() - cpu;
    println!("{spent:?} of processor time in two seconds without descriptors");
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    proxy.assert_sound();
    drop(holders);
    let (took, outcome) = timed(|| outcome(&mut connect(addr), &hello, SOON));
    assert_eq!(outcome, served("a"));
    assert!(took <= Duration::from_secs(1), "recovered after {took:?}");
    let errors = proxy.metrics().sum("portcullis_accept_errors_total", &[]);
    assert!(errors >= 1.0, "accept never failed");
    assert!(errors <= 1000.0, "accept was tried {errors} times in two seconds");
    proxy.assert_sound();
}

#[test]
fn without_a_cap_in_the_configuration_the_limit_of_files_sets_one() {
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start_under(
        &["prlimit", "--nofile=128:128"],
        &format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\ntimeouts = {{ hello = '1m' }}\n{UNLIMITED}\
             [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
        ),
    );
    let (addr, hello) = (proxy.addr(), to("a.test"));
    let clients: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect(addr);
            std::io::Write::write_all(&mut stream, &hello).unwrap();
            stream
        })
        .collect();
    until("some to be served", SOON, || (backend.hits() >= 5).then_some(()));
    // The admin server works while connections wait.
    assert_eq!(proxy.ask("/healthz").status, 200);
    assert!(
        (proxy.metrics().sum("portcullis_accept_errors_total", &[])).abs() < 0.5,
        "accept ran out of files"
    );
    drop(clients);
    until("the next one to be served", SOON, || {
        (probe(addr, &hello) == Outcome::Served("a".to_owned())).then_some(())
    });
    proxy.assert_sound();
}
