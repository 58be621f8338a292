//! Bytes pass untouched, in order, to their own peer only, and are counted exactly.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::client::{End, connect, read_to_end, reset};
use crate::support::hello::to;
use crate::support::netns::{Host, with_hosts};
use crate::support::pattern::{download, exchange, pattern, request, serve};
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, UNLIMITED, in_parallel, until, wait_for};

const MIB: usize = 1024 * 1024;

fn proxy_to(backend: &Backend) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}[[route]]\nname = 'relay'\nsni = 'relay.test'\nto = '{backend}'\n"
    ))
    .streaming()
}

/// Writes `bytes` in pieces of random size.
fn write_randomly(stream: &mut TcpStream, mut bytes: &[u8], seed: u64) {
    let mut random = Random::new(seed);
    while !bytes.is_empty() {
        let most = if random.below(4) == 0 { 300 } else { 100_000 };
        let (chunk, rest) = bytes.split_at(1 + random.below(bytes.len().min(most)));
        stream.write_all(chunk).unwrap();
        bytes = rest;
    }
}

#[test]
fn both_directions_at_once_are_exact_and_counted() {
    let hello = to("relay.test");
    let hello_len = hello.len();
    let backend = Backend::new(move |mut stream| {
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            write_randomly(&mut writer, &Random::new(2).bytes(8 * MIB), 20);
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received[hello_len..] == Random::new(1).bytes(8 * MIB), "the backend received other bytes");
        sender.join().unwrap();
    });
    let proxy = proxy_to(&backend);
    let mut stream = connect(proxy.addr());
    stream.write_all(&hello).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        write_randomly(&mut writer, &Random::new(1).bytes(8 * MIB), 10);
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let reply = read_to_end(&mut stream, SOON);
    sender.join().unwrap();
    assert_eq!(reply.end, End::Eof, "a reset here means that the backend did not get what was sent");
    assert!(reply.bytes == Random::new(2).bytes(8 * MIB), "the client received other bytes");
    let line = proxy.access_line_of(stream.local_addr().unwrap());
    assert_eq!(line["bytes_in"], hello_len + 8 * MIB);
    assert_eq!(line["bytes_out"], 8 * MIB);
    assert_eq!((&line["cause"], &line["route"]), (&"done".into(), &"relay".into()));
    proxy.wait_metric("portcullis_received_bytes_total", &[("route", "relay")], (hello_len + 8 * MIB) as f64);
    proxy.wait_metric("portcullis_sent_bytes_total", &[("route", "relay")], (8 * MIB) as f64);
}

/// A stream goes through pipes, exchanges do not: splicing those costs more than copying.
#[test]
fn what_streams_is_spliced_and_what_does_not_is_copied() {
    let backend = Backend::new(|mut stream| {
        let mut hello = vec![0; to("relay.test").len()];
        stream.read_exact(&mut hello).unwrap();
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            stream.write_all(&vec![request[0]; if request[0] == 1 { 64 * MIB } else { 1000 }]).unwrap();
        }
    });
    let proxy = proxy_to(&backend);
    let spliced = |requests: &[(u8, usize)]| {
        let mut stream = connect(proxy.addr());
        stream.write_all(&to("relay.test")).unwrap();
        for (kind, answer) in requests {
            stream.write_all(&[*kind; 100]).unwrap();
            let mut bytes = vec![0; *answer];
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| byte == kind), "other bytes than the backend sent");
        }
        let addr = stream.local_addr().unwrap();
        drop(stream);
        proxy.access_line_of(addr)["bytes_spliced"].as_u64().unwrap() as usize
    };
    assert_eq!(spliced(&[(0, 1000); 50]), 0);
    let mixed = spliced(&[(0, 1000), (1, 64 * MIB), (0, 1000), (1, 64 * MIB), (0, 1000)]);
    assert!(mixed > 64 * MIB, "{mixed} of {} bytes", 128 * MIB);
    proxy.wait_metric("portcullis_spliced_bytes_total", &[("route", "relay")], mixed as f64);
}

#[test]
fn bytes_behind_the_hello_in_its_segment_arrive() {
    let backend = Backend::tagged("early");
    let proxy = proxy_to(&backend);
    for extra in [1, 1000, 60_000] {
        let bytes = [to("relay.test"), Random::new(7).bytes(extra)].concat();
        let mut stream = connect(proxy.addr());
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let reply = read_to_end(&mut stream, SOON);
        assert!(reply.bytes == [b"tag:early\n", bytes.as_slice()].concat(), "{extra} bytes behind the hello");
    }
}

#[test]
fn aborted_transfers_leave_no_byte_for_later_ones() {
    const ABORTED: usize = 1000;
    const CHECKED: usize = 1000;
    const LEN: usize = MIB / 2;
    let hello = to("relay.test");
    let hello_len = hello.len();
    let backend = Backend::new(move |stream| serve(stream, hello_len));
    let mut proxy = proxy_to(&backend);
    let sockets = proxy.process.sockets();
    in_parallel(32, ABORTED, |id| {
        let stream = connect(proxy.addr());
        stream.set_read_timeout(Some(SOON)).unwrap();
        // With little room at the client the pipe is full most of the time.
        socket2::SockRef::from(&stream).set_recv_buffer_size(131_072).unwrap();
        request(&stream, &hello, id, 1024 * MIB).unwrap();
        // Some are aborted early, some after several trips through a pipe.
        download(&stream, id, 0..id % 4 * MIB / 2).unwrap();
        reset(stream);
    });
    wait_for("all aborted ones to be logged", || proxy.access_log().len() == ABORTED);
    let spliced = |line: &Value| line["bytes_spliced"].as_u64().unwrap() > 0;
    let aborted = proxy.access_log().iter().filter(|line| spliced(line)).count();
    in_parallel(32, CHECKED, |id| {
        let stream = connect(proxy.addr());
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        exchange(&stream, &hello, ABORTED + id, LEN, |_| ());
    });
    wait_for("all to be logged", || proxy.access_log().len() == ABORTED + CHECKED);
    let checked = proxy.access_log()[ABORTED..].iter().filter(|line| spliced(line)).count();
    println!("spliced: {aborted} of {ABORTED} aborted ones, {checked} of {CHECKED} checked ones");
    assert!(aborted > ABORTED / 4 && checked > CHECKED / 4, "{aborted} and {checked} were spliced");
    wait_for("sockets to be given back", || proxy.process.sockets() <= sockets + 4);
    proxy.assert_sound();
}

#[test]
fn slow_readers_and_pausing_senders_lose_nothing() {
    const LEN: usize = MIB / 2;
    let backend = Backend::tagged("echo");
    let mut proxy = proxy_to(&backend);
    let hello = to("relay.test");
    in_parallel(64, 128, |id| {
        let sent = [hello.clone(), pattern(id, LEN)].concat();
        let mut stream = connect(proxy.addr());
        socket2::SockRef::from(&stream).set_recv_buffer_size(131_072).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let received = std::thread::scope(|scope| {
            scope.spawn(|| {
                for chunk in sent.chunks(100_000) {
                    writer.write_all(chunk).unwrap();
                    // Long enough for every buffer on the way to run dry.
                    std::thread::sleep(Duration::from_millis(3));
                }
                writer.shutdown(Shutdown::Write).unwrap();
            });
            read_slowly(&mut stream, id as u64)
        });
        assert!(
            received == [b"tag:echo\n", sent.as_slice()].concat(),
            "foreign or lost bytes in transfer {id}"
        );
    });
    proxy.assert_sound();
}

/// Reads to the end in pieces of random size, with a pause now and then in which buffers fill up.
fn read_slowly(stream: &mut TcpStream, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut received = Vec::new();
    let mut chunk = vec![0; 20_000];
    loop {
        if random.below(8) == 0 {
            // A slow reader, now and then: buffers on the way fill up.
            std::thread::sleep(Duration::from_millis(2));
        }
        let size = 1 + random.below(chunk.len());
        match stream.read(&mut chunk[..size]).unwrap() {
            0 => return received,
            n => received.extend_from_slice(&chunk[..n]),
        }
    }
}

#[test]
fn stalled_readers_cost_little_memory_and_get_everything_in_the_end() {
    with_hosts(|| {
        let host = Host::new();
        host.limit_buffers(MIB / 2);
        host.run(stall_readers);
    });
}

fn stall_readers() {
    const READERS: usize = 200;
    const ASKED: usize = 1024 * MIB;
    const READ_ON: usize = 20 * MIB;
    let hello = to("relay.test");
    let hello_len = hello.len();
    let backend = Backend::new(move |stream| serve(stream, hello_len));
    let mut proxy = proxy_to(&backend);
    let before = proxy.process.rss();
    let readers: Vec<TcpStream> = (0..READERS)
        .map(|id| {
            let stream = connect(proxy.addr());
            // Twice the loopback's segment: with less, reading on would crawl from one window probe to the next.
            socket2::SockRef::from(&stream).set_recv_buffer_size(131_072).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            request(&stream, &hello, id, ASKED).unwrap();
            stream
        })
        .collect();
    wait_for("all backends to be connected", || backend.hits() == READERS);
    // The kernel's buffers fill up: the processor time of the proxy stands still once they are full.
    let mut cpu = proxy.process.cpu();
    until("the readers to stall", SOON, || {
        // The window in which no processor time may be used.
        std::thread::sleep(Duration::from_millis(200));
        let now = proxy.process.cpu();
        let stalled = now - cpu < Duration::from_millis(4);
        cpu = now;
        stalled.then_some(())
    });
    let grown = proxy.process.rss().saturating_sub(before);
    println!("{READERS} stalled readers: {} bytes each", grown / READERS);
    assert!(grown <= READERS * 65_536, "{grown} bytes for {READERS} stalled readers");
    for (id, stream) in readers.iter().enumerate().step_by(READERS / 5) {
        download(stream, id, 0..READ_ON).unwrap();
    }
    drop(readers);
    wait_for("all to be logged", || proxy.access_log().len() == READERS);
    proxy.assert_sound();
}
