//! Loads without a proxy: the clients meet the backend directly.

use std::net::TcpListener;

use super::*;

/// Runs `work` until `units` are done; gives what was done and what it took.
fn run<T>(work: Work, units: u64, found: impl Fn(&mut Load<'_>) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = OwnedFd::from(listener);
    let plan = Plan { hello: vec![1; 1780], work, clients: 4 };
    let mut load = Load::new(address, &listener, plan).unwrap();
    load.record();
    load.run(Duration::from_secs(20), |load| load.units >= units).unwrap();
    assert!(load.units >= units, "{} of {units}, {} errors", load.units, load.errors);
    assert_eq!(load.errors, 0);
    let found = found(&mut load);
    assert_eq!(load.close().unwrap(), 0);
    found
}

#[test]
fn connections_and_exchanges_are_counted_and_timed() {
    for work in [Work::Connect { answer: 3000 }, Work::Exchange { request: 200, answer: 1000 }] {
        let (units, latencies) = run(work, 50, |load| (load.units, load.latencies.len()));
        assert_eq!(units, latencies as u64, "{work:?}");
    }
}

#[test]
fn streams_move_bytes_in_each_direction() {
    for (down, up) in [(true, false), (false, true), (true, true)] {
        run(Work::Stream { down, up, rate: 100_000 }, 50_000_000, |_| ());
    }
}

#[test]
fn streams_keep_to_their_pace() {
    let start = Instant::now();
    let units = run(Work::Stream { down: true, up: true, rate: 100 }, 20_000_000, |load| load.units);
    // 100 MB a second are 20 MB in 200 ms; at most a burst of each end comes early.
    assert!(start.elapsed() > Duration::from_millis(180), "{units} bytes in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{units} bytes in {:?}", start.elapsed());
}

#[test]
fn held_connections_are_all_there() {
    run(Work::Hold { answer: 1000 }, 0, |load| {
        load.run(Duration::from_secs(20), |load| load.held() == 4).unwrap();
        assert_eq!((load.held(), load.errors), (4, 0));
    });
}
