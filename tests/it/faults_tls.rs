//! What clients do to TLS that ends here (T1 to T3, T10 and T11), and that nobody else feels it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::aead;
use rustls::{ClientConfig, ConnectionTrafficSecrets, HandshakeKind};

use crate::support::authority::{Authority, Key, Stream, converse, openssl_typing, shake};
use crate::support::backend::Backend;
use crate::support::client::{
    End, Outcome, connect, loopback, outcome, probe_from, read_to_end, served, timed,
};
use crate::support::hello::{alpn, built, extension, message_of, record, sni, to};
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until, wait_for};

const REJECTED: &str = "portcullis_connections_rejected_total";

/// A proxy that ends TLS for `a.test` and passes `pass.test` through, with more at the top.
fn proxy_with(authority: &Authority, more: &str, to: &Backend, pass: &Backend) -> Proxy {
    Proxy::start(&format!(
        "{}{more}[[route]]\nsni = 'a.test'\ntls = 'files'\nto = '{to}'\n\
         [[route]]\nsni = 'pass.test'\nto = '{pass}'\n",
        authority.top()
    ))
}

/// How long small exchanges take on a connection that is passed through, until `over`: the 99th percentile.
fn exchanges(addr: SocketAddr, over: &AtomicBool) -> Duration {
    let mut stream = connect(addr);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let hello = to("pass.test");
    stream.write_all(&hello).unwrap();
    // The backend sends that back, too.
    let mut echo = vec![0; b"tag:pass\n".len() + hello.len()];
    stream.read_exact(&mut echo).unwrap();
    assert!(echo.ends_with(&hello));
    let mut times = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let mut answer = [0; 8];
        let word = (times.len() as u64).to_le_bytes();
        let (took, ()) = timed(|| {
            stream.write_all(&word).unwrap();
            stream.read_exact(&mut answer).unwrap();
        });
        assert_eq!(answer, word);
        times.push(took);
        // A steady beat, not a load of its own.
        std::thread::sleep(Duration::from_millis(2));
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// The same for so long beside `threads` that shake hands for `a.test` as fast as they can; and how often they did.
fn beside(proxy: &Proxy, config: &Arc<ClientConfig>, threads: usize, time: Duration) -> (Duration, usize) {
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let p99 = std::thread::scope(|scope| {
        for _ in 0..threads {
            let flood = || {
                while !over.load(Ordering::SeqCst) {
                    let stream = shake(proxy.addr(), config, "a.test").expect("a handshake");
                    assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            };
            std::thread::Builder::new().stack_size(512 * 1024).spawn_scoped(scope, flood).unwrap();
        }
        let measured = scope.spawn(|| exchanges(proxy.addr(), &over));
        std::thread::sleep(time);
        over.store(true, Ordering::SeqCst);
        measured.join().unwrap()
    });
    (p99, count.into_inner())
}

/// T1: handshakes take turns with what else a thread has to do, and slow ones are none of its business.
#[test]
fn floods_of_handshakes_are_not_felt_by_who_is_passed_through() {
    for (key, threads) in [(Key::Ecdsa, 4), (Key::LongRsa, 64)] {
        let authority = Authority::new();
        authority.server("a", &["a.test"], key);
        let (backend, pass) = (Backend::tagged("a"), Backend::tagged("pass"));
        let mut proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
        let mut config = authority.config();
        config.alpn_protocols.clear();
        let config = Arc::new(config);
        let (quiet, _) = beside(&proxy, &config, 0, Duration::from_secs(2));
        let (loud, count) = beside(&proxy, &config, threads, Duration::from_secs(5));
        println!("{key:?}: p99 {quiet:?} alone, {loud:?} beside {count} handshakes");
        assert!(count >= 50, "{count} handshakes are no flood");
        // The clients and whatever else runs here take their part of two cores.
        assert!(loud < Duration::from_millis(50).max(quiet * 10), "{loud:?}, {quiet:?} alone");
        proxy.assert_sound();
    }
}

/// T1: what may be under way at once is bounded; what is beyond is told so, and costs nothing.
#[test]
fn handshakes_under_way_are_bounded() {
    const STALLED: usize = 16;
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::of_lines("a"), Backend::tagged("pass"));
    let config = format!(
        "{}{UNLIMITED}[[route]]\nsni = 'a.test'\ntls = 'files'\nto = '{backend}'\n\
         [[route]]\nsni = 'pass.test'\nto = '{pass}'\n",
        authority.top()
    );
    let proxy = Proxy::start_under(&["prlimit", "--nofile=128"], &config);
    let mut stalled: Vec<TcpStream> = (0..STALLED).map(|_| stall(proxy.addr(), "a.test")).collect();
    let mut beyond = connect(proxy.addr());
    let told = outcome(&mut beyond, &to("a.test"), SOON);
    assert_eq!(told, Outcome::Alert(80));
    proxy.wait_metric(REJECTED, &[("reason", "handshakes")], 1.0);
    let line = proxy.access_line("beyond", |line| line["reason"] == "handshakes");
    assert_eq!((&line["cause"], &line["stage"]), (&"resource".into(), &"handshake".into()));
    // What is passed through has none.
    let mut through = connect(proxy.addr());
    assert_eq!(outcome(&mut through, &to("pass.test"), SOON), served("pass"));
    stalled.pop();
    let client = Arc::new(authority.config());
    let mut stream = until("room", SOON, || shake(proxy.addr(), &client, "a.test").ok());
    assert_eq!(converse(&mut stream, "hello\n").unwrap(), "tag:a\nhello\n");
}

/// A client that says its hello, hears the server's flight, and stops there.
fn stall(addr: SocketAddr, name: &str) -> TcpStream {
    stall_from(loopback(1), addr, name)
}

fn stall_from(source: std::net::Ipv4Addr, addr: SocketAddr, name: &str) -> TcpStream {
    let mut stream = crate::support::client::connect_from(source, addr);
    stream.write_all(&to(name)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut first = [0; 5];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(first[..2], [22, 3], "a handshake begins");
    stream
}

/// T2: there is one deadline for all of it, which nothing renews.
#[test]
fn handshakes_that_stand_still_are_closed_at_one_deadline() {
    const DEADLINE: Duration = Duration::from_secs(1);
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::of_lines("a"), Backend::tagged("pass"));
    let more = "timeouts = { handshake = '1s' }\n";
    let mut proxy = proxy_with(&authority, more, &backend, &pass);
    let hello = to("a.test");
    crate::support::in_parallel(4, 4, |index| {
        let start = Instant::now();
        let mut stream = connect(proxy.addr());
        match index {
            // After the server's flight.
            0 => stream.write_all(&hello).unwrap(),
            // The hello itself took most of the time.
            1 => {
                stream.write_all(&hello[..20]).unwrap();
                std::thread::sleep(Duration::from_millis(700));
                stream.write_all(&hello[20..]).unwrap();
            }
            // In the middle of a record.
            2 => stream
                .write_all(&[&hello[..], &[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 69, 1, 2, 3]].concat())
                .unwrap(),
            // A byte from time to time.
            _ => {
                stream.write_all(&hello).unwrap();
                let mut dripping = stream.try_clone().unwrap();
                std::thread::spawn(move || {
                    for byte in [23, 3, 3, 0, 255].into_iter().chain(std::iter::repeat_n(7, 40)) {
                        if dripping.write_all(&[byte]).is_err() {
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(100));
                    }
                });
            }
        }
        let reply = read_to_end(&mut stream, SOON);
        let took = start.elapsed();
        assert!(reply.bytes.starts_with(&[22, 3]), "{index}: {reply:?}");
        assert!(took > DEADLINE - Duration::from_millis(200), "{index}: {took:?}");
        assert!(took < DEADLINE + Duration::from_millis(900), "{index}: {took:?}");
    });
    assert_eq!(backend.hits(), 0);
    let line = proxy.access_line("the deadline", |line| line["reason"] == "handshake_timeout");
    assert_eq!((&line["cause"], &line["stage"]), (&"client_timeout".into(), &"handshake".into()));
    // The deadline is over with the handshake.
    let mut stream = shake(proxy.addr(), &Arc::new(authority.config()), "a.test").unwrap();
    std::thread::sleep(DEADLINE + Duration::from_millis(300));
    assert_eq!(converse(&mut stream, "hello\n").unwrap(), "tag:a\nhello\n");
    proxy.assert_sound();
}

/// T1: who does not finish its handshakes takes the place of nobody but itself.
#[test]
fn a_handshake_counts_as_a_part_of_the_hello() {
    const MOST: usize = 4;
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::tagged("a"), Backend::tagged("pass"));
    let more = format!("connection_limit = {{ per_ip = 100, before_hello = {MOST} }}\n");
    let proxy = proxy_with(&authority, &more, &backend, &pass);
    // Those that are done with it count no more.
    let config = Arc::new(authority.config());
    let mut done = Vec::new();
    for _ in 0..2 * MOST {
        let mut stream = shake(proxy.addr(), &config, "a.test").unwrap();
        stream.read_exact(&mut [0; 6]).unwrap();
        done.push(stream);
    }
    let mut stalled: Vec<_> = (0..MOST).map(|_| stall(proxy.addr(), "a.test")).collect();
    let beyond = probe_from(loopback(1), proxy.addr(), &to("pass.test"));
    assert!(matches!(beyond, Outcome::Reset | Outcome::Closed), "{beyond:?}");
    proxy.access_line("refused", |line| line["reason"] == "before_hello");
    assert_eq!(probe_from(loopback(2), proxy.addr(), &to("pass.test")), served("pass"));
    stalled.pop();
    wait_for("room", || probe_from(loopback(1), proxy.addr(), &to("pass.test")) == served("pass"));
}

/// T3: what a client may have begun anew without end is refused.
#[test]
fn renegotiation_is_refused() {
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::tagged("a"), Backend::tagged("pass"));
    let proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
    let done = openssl_typing(proxy.addr(), "a.test", &authority.ca(), &["-tls1_2"], &["R"]);
    assert!(done.stdout.contains("RENEGOTIATING"), "{}", done.stdout);
    assert!(done.stdout.contains("no renegotiation"), "{}", done.stdout);
}

/// T3: keys are changed when the peer asks for it, and not without end.
#[test]
fn updates_of_keys_are_taken_but_not_without_end() {
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::tagged("a"), Backend::tagged("pass"));
    let mut proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
    let config = Arc::new(authority.config());
    let open = || {
        let mut stream = shake(proxy.addr(), &config, "a.test").unwrap();
        stream.read_exact(&mut [0; 6]).unwrap();
        stream
    };
    // Without a look at what is answered: that is updates, too.
    let update = |stream: &mut Stream| -> std::io::Result<()> {
        stream.conn.refresh_traffic_keys().map_err(std::io::Error::other)?;
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut stream.sock)?;
        }
        Ok(())
    };
    let echo = |stream: &mut Stream| {
        stream.write_all(b"are you there?").unwrap();
        let mut heard = [0; 14];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"are you there?");
    };
    let (mut bystander, mut good, mut bad) = (open(), open(), open());
    for _ in 0..100 {
        update(&mut good).unwrap();
        echo(&mut good);
    }
    let taken = (0..200).take_while(|_| update(&mut bad).is_ok()).count();
    let reply = read_to_end(&mut bad.sock, SOON);
    assert!(taken >= 32 && reply.end != End::Open, "{taken} were sent: {:?}", reply.end);
    let line = proxy.access_line("the updates", |line| line["reason"] == "bad_record");
    assert_eq!(line["cause"], "client");
    echo(&mut bystander);
    echo(&mut good);
    // OpenSSL's updates, which ask for ours, are taken as well.
    let lines = ["K", "k", "K", "word", "Q"];
    let done = openssl_typing(proxy.addr(), "a.test", &authority.ca(), &["-tls1_3"], &lines);
    assert!(done.stdout.contains("KEYUPDATE") && done.stdout.contains("\nword"), "{}", done.stdout);
    proxy.assert_sound();
}

/// T10: old versions, and what is no TLS behind a hello that is.
#[test]
fn old_versions_and_garbage_end_in_an_alert() {
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::of_lines("a"), Backend::tagged("pass"));
    let mut proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
    let groups = extension(10, &[0, 2, 0, 23]);
    let schemes = extension(13, &[0, 2, 4, 3]);
    let points = extension(11, &[1, 0]);
    let extensions = [sni(b"a.test"), groups, points, schemes].concat();
    let old = |version: u16, suites: &[u8]| record(&message_of(version, suites, &[0], Some(&extensions)));
    let hello = to("a.test");
    let behind = |more: &[u8]| [&hello[..], more].concat();
    let garbage = crate::support::Random::new(3).bytes(4000);
    let table = [
        ("TLS 1.0", old(0x0301, &[0xc0, 0x09, 0xc0, 0x2b]), Some(70)),
        ("TLS 1.1", old(0x0302, &[0xc0, 0x09, 0xc0, 0x2b]), Some(70)),
        ("old suites", old(0x0303, &[0x00, 0x2f, 0x00, 0x35, 0xc0, 0x09]), Some(40)),
        ("no suite", built(&[sni(b"a.test"), alpn(&[b"h2"])]), None),
        ("an empty record", behind(&[22, 3, 3, 0, 0]), None),
        ("a record too long", behind(&[23, 3, 3, 0xff, 0xff, 1]), None),
        ("an unknown record", behind(&[99, 3, 3, 0, 1, 1]), None),
        ("a second hello", behind(&hello), None),
        ("clear text", behind(b"GET / HTTP/1.0\r\n\r\n"), None),
        ("noise", behind(&garbage), None),
        ("noise in a record", behind(&[&[23, 3, 3, 0x0f, 0xa0], &garbage[..]].concat()), None),
    ];
    for (what, bytes, number) in table {
        let mut stream = connect(proxy.addr());
        let written = stream.write_all(&bytes);
        let (took, reply) = timed(|| read_to_end(&mut stream, SOON));
        assert!(took < Duration::from_secs(5), "{what}: {took:?} {reply:?} {written:?}");
        if let Some(number) = number {
            assert!(reply.bytes.ends_with(&[21, 3, 3, 0, 2, 2, number]), "{what}: {reply:?}");
        }
    }
    assert_eq!(backend.hits(), 0);
    // A hello, and then nothing but the end.
    let mut stream = stall(proxy.addr(), "a.test");
    stream.shutdown(Shutdown::Write).unwrap();
    read_to_end(&mut stream, SOON);
    proxy.access_line("gone", |line| line["reason"] == "handshake_closed");
    proxy.assert_sound();
}

/// T10: records with nothing in them are work for nothing.
#[test]
fn a_flood_of_empty_records_is_ended() {
    const RECORDS: u64 = 100_000;
    let authority = Authority::of(&["a.test"]);
    let (backend, pass) = (Backend::tagged("a"), Backend::tagged("pass"));
    let mut proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
    let mut config = authority.config();
    config.enable_secret_extraction = true;
    let mut stream = shake(proxy.addr(), &Arc::new(config), "a.test").unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
    let before = proxy.process.cpu();
    let Stream { conn, mut sock } = stream;
    let (first, secrets) = conn.dangerous_extract_secrets().unwrap().tx;
    let mut sent = 0;
    for batch in 0..RECORDS / 1000 {
        let numbers = (0..1000).map(|n| first + batch * 1000 + n);
        let records: Vec<u8> = numbers.flat_map(|number| seal(&secrets, number, 23, b"")).collect();
        if sock.write_all(&records).is_err() {
            break;
        }
        sent += 1000;
    }
    let reply = read_to_end(&mut sock, SOON);
    let spent = proxy.process.cpu() - before;
    println!("ended within {sent} records, for {spent:?}; {:?}", reply.end);
    assert_ne!(reply.end, End::Open);
    assert!(spent < Duration::from_secs(1), "{spent:?}");
    let line = proxy.access_line("the flood", |line| line["reason"] == "bad_record");
    assert!(line["bytes_in"].as_u64() < Some(10 * 1024 * 1024), "{line}");
    proxy.assert_sound();
}

/// A record of TLS 1.3 with this content (RFC 8446 §5.2 and §5.3).
fn seal(secrets: &ConnectionTrafficSecrets, number: u64, kind: u8, content: &[u8]) -> Vec<u8> {
    let (algorithm, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
        _ => panic!("an unknown suite"),
    };
    let key = aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key.as_ref()).unwrap());
    let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
    for (byte, with) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
        *byte ^= with;
    }
    let header = [23, 3, 3, 0, content.len() as u8 + 17];
    let mut sealed = [content, &[kind]].concat();
    key.seal_in_place_append_tag(
        aead::Nonce::assume_unique_for_key(nonce),
        aead::Aad::from(header),
        &mut sealed,
    )
    .unwrap();
    [&header[..], &sealed].concat()
}

/// A message that comes in pieces leaves the library in the middle of it, while there may be much to say to its sender.
#[test]
fn half_a_message_is_waited_for_while_the_backend_speaks() {
    const BYTES: usize = 100;
    let authority = Authority::of(&["a.test"]);
    let backend = Backend::new(|mut stream| {
        for _ in 0..BYTES {
            if stream.write_all(b"x").is_err() {
                return;
            }
            // Each is a record of its own.
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let pass = Backend::tagged("pass");
    let mut proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
    let mut config = authority.config();
    config.enable_secret_extraction = true;
    let mut stream = shake(proxy.addr(), &Arc::new(config), "a.test").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    let Stream { conn, mut sock } = stream;
    let (first, secrets) = conn.dangerous_extract_secrets().unwrap().tx;
    // A message of type key_update, of which more is to come.
    sock.write_all(&seal(&secrets, first, 22, &[24, 0])).unwrap();
    let reply = read_to_end(&mut sock, SOON);
    assert_eq!(reply.end, End::Eof);
    assert!(reply.bytes.len() > BYTES / 2 * 23, "{} bytes", reply.bytes.len());
    // The rest of it is taken as ever.
    sock.write_all(&seal(&secrets, first + 1, 22, &[0, 1, 0])).unwrap();
    drop(sock);
    let line = proxy.access_line("the end", |line| line["action"] == "terminate");
    assert_eq!(line["reason"], "truncated", "{line}");
    proxy.assert_sound();
}

/// T11: who does not read is waited for, not stored for.
#[test]
fn a_reader_that_stops_costs_no_memory() {
    const LEN: usize = 256 * 1024 * 1024;
    const BLOCK: usize = 64 * 1024;
    let authority = Authority::of(&["a.test"]);
    let written = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&written);
    let backend = Backend::new(move |mut stream| {
        let block: Vec<u8> = (0..BLOCK).map(|n| (n / 251) as u8).collect();
        let _ = stream.read(&mut [0; 1]);
        while progress.load(Ordering::SeqCst) < LEN && stream.write_all(&block).is_ok() {
            progress.fetch_add(BLOCK, Ordering::SeqCst);
        }
    });
    let pass = Backend::tagged("pass");
    let mut proxy = proxy_with(&authority, UNLIMITED, &backend, &pass);
    let config = Arc::new(authority.config());
    drop(shake(proxy.addr(), &config, "a.test").unwrap());
    let before = proxy.process.rss();
    let mut stream = shake(proxy.addr(), &config, "a.test").unwrap();
    stream.write_all(b"x").unwrap();
    let mut last = (0, Instant::now());
    wait_for("the backend to stand still", || {
        let now = written.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > 0 && last.1.elapsed() > Duration::from_millis(700)
    });
    let (sent, grown) = (last.0, proxy.process.rss().saturating_sub(before));
    println!("{sent} bytes were sent to a reader that stopped, for {grown} bytes of memory");
    assert!(sent < LEN / 2 && grown < 8 * 1024 * 1024, "{sent} sent, {grown} more memory");
    assert_eq!(crate::support::client::probe(proxy.addr(), &to("pass.test")), served("pass"));
    let (mut at, mut part) = (0, vec![0; 256 * 1024]);
    loop {
        let n = stream.read(&mut part).unwrap();
        if n == 0 {
            break;
        }
        let right =
            part[..n].iter().enumerate().all(|(index, byte)| *byte == ((at + index) % BLOCK / 251) as u8);
        assert!(right, "other bytes after {at}");
        at += n;
    }
    assert_eq!(at, LEN);
    proxy.assert_sound();
}
