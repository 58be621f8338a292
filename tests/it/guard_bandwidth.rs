//! Limits of bandwidth: the average holds, copied or spliced, however many connections share it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::support::backend::{Backend, Recorder};
use crate::support::client::{End, connect_from, loopback, probe_from, read_to_end, reset, served};
use crate::support::hello::to;
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, wait_for};

const ME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const TIME: Duration = Duration::from_secs(3);
const MIB: u64 = 1024 * 1024;

/// Sends without end, and takes what comes.
fn spouting() -> Backend {
    Backend::new(|mut stream| {
        let mut reader = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut sink = vec![0; 65536];
            while reader.read(&mut sink).is_ok_and(|n| n > 0) {}
        });
        let bytes = vec![7; 65536];
        while stream.write_all(&bytes).is_ok() {}
    })
}

fn proxy_with(bandwidth: &str, backend: &Backend) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[route]]\nname = 'a'\nsni = 'a.test'\nto = '{backend}'\n\
         [[limit]]\nname = 'slow'\nbandwidth = '{bandwidth}'\n"
    ))
    .streaming()
}

/// Bytes that came in until `end`.
fn receive_until(stream: &mut TcpStream, end: Instant) -> u64 {
    let (mut chunk, mut bytes) = (vec![0; 65536], 0);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return bytes;
        }
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => bytes += n as u64,
            Ok(0) => panic!("the stream ended"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

fn request(source: Ipv4Addr, proxy: &Proxy) -> TcpStream {
    let mut stream = connect_from(source, proxy.addr());
    stream.write_all(&to("a.test")).unwrap();
    stream
}

/// Whether what `receive` gets until the instant that it is given comes at `rate`: never above it since
/// `started`, and near it. A busy machine may keep the receiver waiting, so that nearness is looked at
/// more than once.
fn assert_rate(started: Instant, rate: u64, mut receive: impl FnMut(Instant) -> u64) {
    let mut bytes = 0;
    for _ in 0..3 {
        bytes += receive(Instant::now() + TIME);
        let time = started.elapsed();
        let share = bytes as f64 / (rate as f64 * time.as_secs_f64());
        println!("{bytes} bytes in {time:?}: {share:.3} of the limit");
        assert!(share <= 1.1, "{share:.3} of the limit: {bytes} bytes in {time:?}");
        if share >= 0.9 {
            return;
        }
    }
    panic!("{bytes} bytes in {:?} are far below the limit", started.elapsed());
}

#[test]
fn a_copied_stream_keeps_to_its_bandwidth() {
    let backend = spouting();
    let proxy = proxy_with("100KiB/s", &backend);
    let started = Instant::now();
    let mut stream = request(ME, &proxy);
    assert_rate(started, 100 * 1024, |end| receive_until(&mut stream, end));
    reset(stream);
    let line = proxy.access_line("the stream", |line| line["bytes_out"].as_u64() > Some(100 * 1024));
    assert_eq!(line["bytes_spliced"], 0, "too little at a time for a pipe: {line}");
}

#[test]
fn a_spliced_stream_keeps_to_its_bandwidth() {
    let backend = spouting();
    let proxy = proxy_with("20MiB/s", &backend);
    let started = Instant::now();
    let mut stream = request(ME, &proxy);
    assert_rate(started, 20 * MIB, |end| receive_until(&mut stream, end));
    reset(stream);
    let line = proxy.access_line("the stream", |line| line["bytes_out"].as_u64() > Some(MIB));
    let (spliced, all) = (line["bytes_spliced"].as_u64().unwrap(), line["bytes_out"].as_u64().unwrap());
    assert!(spliced * 2 > all, "{spliced} of {all} bytes were spliced");
}

#[test]
fn connections_of_one_source_share_its_bandwidth_and_others_have_their_own() {
    let backend = spouting();
    let proxy = proxy_with("4MiB/s", &backend);
    let started = Instant::now();
    let mut pair = [request(ME, &proxy), request(ME, &proxy)];
    let mut other = request(loopback(2), &proxy);
    let mut shares = [0, 0];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_rate(started, 4 * MIB, |end| {
                let received = receive_from_both(&mut pair, end);
                shares = [shares[0] + received[0], shares[1] + received[1]];
                received.iter().sum()
            });
        });
        scope.spawn(|| assert_rate(started, 4 * MIB, |end| receive_until(&mut other, end)));
    });
    assert!(shares.iter().all(|bytes| *bytes > MIB), "one of the two got hardly anything: {shares:?}");
}

fn receive_from_both(streams: &mut [TcpStream; 2], end: Instant) -> [u64; 2] {
    std::thread::scope(|scope| {
        streams
            .each_mut()
            .map(|stream| scope.spawn(move || receive_until(stream, end)))
            .map(|reader| reader.join().unwrap())
    })
}

#[test]
fn both_directions_count_together() {
    let backend = spouting();
    let proxy = proxy_with("4MiB/s", &backend);
    let mut stream = request(ME, &proxy);
    let mut writer = stream.try_clone().unwrap();
    let end = Instant::now() + TIME;
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = vec![1; 65536];
            writer.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            while Instant::now() < end {
                // A full buffer is no error here: what counts is what the proxy took.
                let _ = writer.write(&chunk);
            }
        });
        receive_until(&mut stream, end)
    });
    reset(stream);
    drop(writer);
    let line = proxy.access_line("the stream", |line| line["bytes_out"].as_u64() > Some(MIB));
    let sent = line["bytes_in"].as_u64().unwrap();
    assert!(sent > MIB && received > MIB, "{sent} up and {received} down");
    // As long as it went on, be it a moment longer than its client looked.
    let (all, seconds) =
        (sent + line["bytes_out"].as_u64().unwrap(), line["duration_ms"].as_f64().unwrap() / 1e3);
    let share = all as f64 / (4.0 * MIB as f64 * seconds);
    assert!(share <= 1.1, "{all} bytes in both directions in {seconds} s: {share:.3} of the limit");
}

#[test]
fn a_limit_of_a_route_is_for_that_route_only() {
    let backend = spouting();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nname = 'slow'\nsni = 'slow.test'\nto = '{backend}'\n\
         [[route]]\nname = 'fast'\nsni = 'fast.test'\nto = '{backend}'\n\
         [[limit]]\nname = 'slow'\nbandwidth = '1MiB/s'\nroute = 'slow'\n"
    ))
    .streaming();
    let open = |name: &str| {
        let mut stream = connect_from(ME, proxy.addr());
        stream.write_all(&to(name)).unwrap();
        stream
    };
    let started = Instant::now();
    let (mut slow, mut fast) = (open("slow.test"), open("fast.test"));
    assert_rate(started, MIB, |end| receive_until(&mut slow, end));
    let received = receive_until(&mut fast, Instant::now() + Duration::from_millis(500));
    assert!(received > 8 * MIB, "{received} bytes in half a second without a limit");
}

/// Copied, spliced and everything in between: nothing is lost, and ends of stream pass on.
#[test]
fn slowed_bytes_arrive_whole_and_in_order() {
    for (bandwidth, len) in [("200KiB/s", MIB / 4), ("4MiB/s", 4 * MIB), ("40MiB/s", 16 * MIB)] {
        let recorder = Recorder::new("a");
        let proxy = proxy_with(bandwidth, &recorder.backend);
        let sent = [to("a.test"), Random::new(len).bytes(usize::try_from(len).unwrap())].concat();
        let mut stream = connect_from(ME, proxy.addr());
        let mut writer = stream.try_clone().unwrap();
        let reply = std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            read_to_end(&mut stream, SOON)
        });
        assert_eq!(reply.end, End::Eof, "{bandwidth}");
        let echoed = reply.bytes.strip_prefix(b"tag:a\n").unwrap();
        assert!(echoed == sent, "{bandwidth}: {} bytes of {} came back", echoed.len(), sent.len());
        wait_for("the backend to be done", || recorder.received() == [sent.clone()]);
    }
}

#[test]
fn small_exchanges_pass_at_once_under_a_limit_that_they_do_not_reach() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("64KiB/s", &backend);
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(probe_from(ME, proxy.addr(), &to("a.test")), served("a"));
        assert!(start.elapsed() < SOON / 10, "{:?}", start.elapsed());
    }
}
