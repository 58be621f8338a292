//! What HTTP/2 lets peers do wrong: nothing of it reaches a backend, and it costs next to nothing.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, Seen, WHOLE, WINDOW_UPDATE, field, frame, head, head_with, kept_field,
};
use crate::support::programs::PlainNginx;
use crate::support::proxy::Proxy;
use crate::support::web::{Asking, Received, Web, ok};
use crate::support::{SOON, UNLIMITED, until, wait_for};

/// Reasons (RFC 9113 §7).
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Frames of a flood.
const FLOOD: u32 = 100_000;
/// Frames that are written at once.
const BATCH: u32 = 500;
/// What a connection may cost of memory.
const MEMORY: usize = 16 * 1024 * 1024;

/// A proxy that takes both versions in clear; `keys` say more of the route.
fn proxy_to(to: &str, keys: &str) -> Proxy {
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\n[[route]]\nname = 'web'\n\
         protocol = ['http', 'h2c']\nto = '{to}'\n{keys}"
    ))
}

/// What becomes of the first request of a connection, whose head is this.
fn seen(addr: SocketAddr, head: &[u8]) -> Seen {
    let mut frames = Frames::to(addr);
    frames.send(&frame(HEADERS, WHOLE, 1, head));
    frames.seen(1)
}

/// Writes `one` for every number below `count`, many at once; stops when nobody reads any more.
fn flood(frames: &mut Frames, count: u32, one: impl Fn(u32) -> Vec<u8>) {
    for batch in 0..count / BATCH {
        let bytes: Vec<u8> = (batch * BATCH..(batch + 1) * BATCH).flat_map(&one).collect();
        if !frames.send(&bytes) {
            return;
        }
    }
}

/// Whether the connection comes to its end, and what for if that is told.
fn end(frames: &mut Frames) -> Option<u32> {
    frames.next_of(GOAWAY).map(|frame| frame.code())
}

/// Heads of requests that are none (RFC 9113 §8.2, §8.3).
fn malformed_heads() -> Vec<Vec<u8>> {
    let pseudo =
        |name: &str, value: &str| [head("GET", "/"), field(name.as_bytes(), value.as_bytes())].concat();
    let without = |name: &str| {
        let all = [(":method", "GET"), (":scheme", "http"), (":authority", "x.test"), (":path", "/")];
        let kept = all.iter().filter(|(key, _)| *key != name);
        kept.flat_map(|(key, value)| field(key.as_bytes(), value.as_bytes())).collect::<Vec<u8>>()
    };
    let mut heads = vec![
        without(":method"),
        without(":scheme"),
        without(":path"),
        without(":authority"),
        pseudo(":path", "/other"),
        pseudo(":status", "200"),
        pseudo(":unknown", "1"),
        pseudo(":protocol", "websocket"),
        [head_with("x-a", "b"), field(b":path", b"/other")].concat(),
        [without(":authority"), field(b"host", b"a.test"), field(b"host", b"b.test")].concat(),
        [without(":authority"), field(b"host", b"a.test"), field(b"host", b"a.test")].concat(),
        head_with("host", "other.test"),
        head_with("content-length", "2"),
        [&[0x80][..], &head("GET", "/")].concat(),
    ];
    let fields = [
        ("x-a", "b\r\nx-c: d"),
        ("x-a", "b\n"),
        ("x-a", "\0"),
        ("x-a", " b"),
        ("x-a", "b\t"),
        ("x\r\na", "b"),
        ("x:a", "b"),
        ("x a", "b"),
        ("X-A", "b"),
        ("", "b"),
        ("transfer-encoding", "chunked"),
        ("connection", "x-a"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
    ];
    heads.extend(fields.map(|(name, value)| head_with(name, value)));
    let paths = ["", "x", "*", "/a b", "/a\r\nb", "http://other.test/", "/a?b c", "/%", "/%00", "/a\\b"];
    heads.extend(paths.map(|path| head("GET", path)));
    heads.extend(["GE T", "GET / HTTP/1.1\r\nx: ", "", "CONNECT", "TRACE"].map(|method| head(method, "/")));
    heads
}

#[test]
fn malformed_heads_reach_no_backend() {
    let web = Web::saying("hello");
    let proxy = proxy_to(&format!("http://{web}"), "");
    for head in malformed_heads() {
        let text = String::from_utf8_lossy(&head).into_owned();
        match seen(proxy.addr(), &head) {
            Seen::Reset(PROTOCOL_ERROR) | Seen::Answer(400 | 405) => {}
            // A connection whose heads cannot be read is over (RFC 9113 §4.3).
            Seen::GoAway(PROTOCOL_ERROR | 9) => {}
            other => panic!("{text:?}: {other:?}"),
        }
    }
    assert_eq!(web.received(), [], "none of them went on");
    assert_eq!(seen(proxy.addr(), &head_with("te", "trailers")), Seen::Answer(200));
    assert_eq!(seen(proxy.addr(), &head_with("host", "x.test")), Seen::Answer(200));
}

#[test]
fn bodies_are_as_long_as_their_heads_say() {
    let web = Web::saying("hello");
    let proxy = proxy_to(&format!("http://{web}"), "");
    let post = |fields: &[&str], data: &[u8]| {
        let fields: Vec<u8> =
            fields.iter().flat_map(|length| field(b"content-length", length.as_bytes())).collect();
        let mut frames = Frames::to(proxy.addr());
        frames.send(&frame(HEADERS, END_HEADERS, 1, &[head("POST", "/"), fields].concat()));
        frames.send(&frame(DATA, END_STREAM, 1, data));
        frames.seen(1)
    };
    for fields in [&["5"][..], &["2"], &["3", "4"], &["+3"], &["3, 3"], &["-3"], &["0x3"], &[""]] {
        let seen = post(fields, b"abc");
        assert_ne!(seen, Seen::Answer(200), "{fields:?}");
    }
    let whole = |received: &Received| match received.field("content-length") {
        Some(length) => length == received.body.len().to_string(),
        None => received.body.ends_with(b"0\r\n\r\n"),
    };
    assert!(!web.received().iter().any(whole), "{:?}", web.received());
    assert_eq!(post(&["3"], b"abc"), Seen::Answer(200));
    assert_eq!(post(&[], b"abc"), Seen::Answer(200));
    let bodies: Vec<_> = web.received().into_iter().filter(whole).map(|received| received.body).collect();
    assert_eq!(bodies, [b"abc".to_vec(), b"3\r\nabc\r\n0\r\n\r\n".to_vec()]);
}

#[test]
fn fields_behind_a_body_are_held_to_the_same_rules() {
    let web = Web::saying("hello");
    let proxy = proxy_to(&format!("http://{web}"), "");
    for trailers in [field(b"x-a", b"\r\nb: c"), field(b"transfer-encoding", b"chunked")] {
        let mut frames = Frames::to(proxy.addr());
        frames.send(&frame(HEADERS, END_HEADERS, 1, &head("POST", "/")));
        frames.send(&frame(DATA, 0, 1, b"abc"));
        frames.send(&frame(HEADERS, WHOLE, 1, &trailers));
        assert_ne!(frames.seen(1), Seen::Answer(200), "{trailers:?}");
    }
    let mut frames = Frames::to(proxy.addr());
    frames.send(&frame(HEADERS, END_HEADERS, 1, &head("POST", "/")));
    frames.send(&frame(DATA, 0, 1, b"abc"));
    // What is none of those does not go on.
    let others = [(":path", "/"), ("content-length", "70"), ("host", "b.test")];
    let others = others.map(|(name, value)| field(name.as_bytes(), value.as_bytes())).concat();
    let trailers = [others, field(b"x-sum", b"7")];
    frames.send(&frame(HEADERS, WHOLE, 1, &trailers.concat()));
    assert_eq!(frames.seen(1), Seen::Answer(200));
    let bodies: Vec<_> =
        web.received().iter().map(|got| String::from_utf8_lossy(&got.body).into_owned()).collect();
    assert!(bodies.contains(&"3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n".to_owned()), "{bodies:?}");
}

#[test]
fn limits_of_heads_apply() {
    let web = Web::saying("hello");
    let proxy = proxy_to(
        &format!("http://{web}"),
        "http = { max_headers = 10, max_uri = '1KiB', max_header_size = '8KiB' }\n",
    );
    let many = (0..11).flat_map(|n| field(format!("x-{n}").as_bytes(), b"1")).collect();
    assert_eq!(seen(proxy.addr(), &[head("GET", "/"), many].concat()), Seen::Answer(431));
    assert_eq!(seen(proxy.addr(), &head("GET", &format!("/{}", "a".repeat(1024)))), Seen::Answer(414));
    assert_eq!(seen(proxy.addr(), &head_with("x-a", &"b".repeat(9000))), Seen::Answer(431));
    assert_eq!(web.received(), []);
    assert_eq!(seen(proxy.addr(), &head_with("x-a", &"b".repeat(7000))), Seen::Answer(200));
}

#[test]
fn requests_that_are_taken_back_at_once_cost_no_backend() {
    let web = Web::saying("hello");
    let mut proxy = proxy_to(&format!("http://{web}"), "");
    let cancel = 8_u32.to_be_bytes();
    let mut frames = Frames::to(proxy.addr());
    flood(&mut frames, FLOOD, |n| {
        [frame(HEADERS, WHOLE, 2 * n + 1, &head("GET", "/")), frame(RST_STREAM, 0, 2 * n + 1, &cancel)]
            .concat()
    });
    assert!(matches!(end(&mut frames), Some(ENHANCE_YOUR_CALM) | None));
    assert!(web.received().len() < 200, "{} requests for a backend", web.received().len());
    assert_eq!(seen(proxy.addr(), &head("GET", "/")), Seen::Answer(200));
    proxy.assert_sound();
}

#[test]
fn requests_that_are_taken_back_while_they_are_answered_are_numbered() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // Reads, and says nothing.
    let backend = Backend::new(move |stream| {
        let mut asking = Asking::over(stream);
        while asking.request().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let proxy = proxy_to(&format!("http://{backend}"), "");
    let mut frames = Frames::to(proxy.addr());
    let mut given = 0;
    let ended = (0..10_000).find(|n| {
        let stream = 2 * n + 1;
        let sent = frames.send(&frame(HEADERS, WHOLE, stream, &head("GET", "/")))
            && frames.pings()
            && frames.send(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        given += 1;
        !sent
    });
    assert!(ended.is_some(), "it went on for {given} requests");
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked < 3000, "{asked} requests for a backend");
}

#[test]
fn requests_that_the_proxy_is_made_to_reset_cost_no_backend() {
    let web = Web::saying("hello");
    let mut proxy = proxy_to(&format!("http://{web}"), "");
    let ways: [fn(u32) -> Vec<u8>; 5] = [
        |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]),
        |stream| frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]),
        |stream| frame(DATA, 0, stream, b"x"),
        |stream| frame(PRIORITY, 0, stream, &[0; 4]),
        |stream| frame(HEADERS, WHOLE, stream, &field(b"x", b"y")),
    ];
    for (number, way) in ways.iter().enumerate() {
        let before = web.received().len();
        let mut frames = Frames::to(proxy.addr());
        flood(&mut frames, FLOOD, |n| {
            [frame(HEADERS, WHOLE, 2 * n + 1, &head("GET", "/")), way(2 * n + 1)].concat()
        });
        while frames.next_of(GOAWAY).is_some() {}
        let asked = web.received().len() - before;
        assert!(asked < 600, "way {number}: {asked} requests for a backend");
        assert_eq!(seen(proxy.addr(), &head("GET", "/")), Seen::Answer(200), "way {number}");
    }
    proxy.assert_sound();
}

/// A name, and what is sent at the nth time.
type Flood = (&'static str, Box<dyn Fn(u32) -> Vec<u8>>);

/// Floods of frames that say nothing, each after the head of a request whose body is to come.
fn floods() -> Vec<Flood> {
    vec![
        ("settings", Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        ("changing settings", Box::new(|n| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x80, n as u8]))),
        ("pings", Box::new(|_| frame(PING, 0, 0, &[0; 8]))),
        ("priorities", Box::new(|n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 7]))),
        ("windows", Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("empty data", Box::new(|_| frame(DATA, 0, 1, &[]))),
        ("padded data", Box::new(|_| frame(DATA, 8, 1, &[3, 0, 0, 0]))),
        ("unknown frames", Box::new(|_| frame(0x77, 0, 0, b"?"))),
    ]
}

#[test]
fn floods_are_ended_or_cost_little() {
    let web = Web::saying("hello");
    let mut proxy = proxy_to(&format!("http://{web}"), "");
    assert_eq!(seen(proxy.addr(), &head("GET", "/")), Seen::Answer(200));
    for (name, one) in floods() {
        let (rss, cpu) = (proxy.process.rss(), proxy.process.cpu());
        let mut frames = Frames::to(proxy.addr());
        frames.send(&frame(HEADERS, END_HEADERS, 1, &head("POST", "/")));
        let mut reading = Frames::over_clone(&frames);
        let reader =
            std::thread::spawn(move || while reading.stream.read(&mut [0; 65536]).is_ok_and(|n| n > 0) {});
        flood(&mut frames, FLOOD, one);
        let grown = proxy.process.rss().saturating_sub(rss);
        assert!(grown < MEMORY / 2, "{name}: {grown} bytes");
        drop(frames.stream.shutdown(std::net::Shutdown::Both));
        reader.join().unwrap();
        assert_eq!(seen(proxy.addr(), &head("GET", "/")), Seen::Answer(200), "{name}");
        let spent = proxy.process.cpu() - cpu;
        assert!(spent < Duration::from_secs(5), "{name}: {spent:?}");
    }
    proxy.assert_sound();
}

#[test]
fn a_head_without_end_is_ended() {
    let web = Web::saying("hello");
    let mut proxy = proxy_to(&format!("http://{web}"), "");
    let rss = proxy.process.rss();
    for part in [Vec::new(), field(b"x", &[b'y'; 1000])] {
        let mut frames = Frames::to(proxy.addr());
        frames.send(&frame(HEADERS, END_STREAM, 1, &head("GET", "/")));
        flood(&mut frames, FLOOD, |_| frame(CONTINUATION, 0, 1, &part));
        assert!(matches!(end(&mut frames), Some(ENHANCE_YOUR_CALM) | None));
    }
    assert!(proxy.process.rss() < rss + MEMORY);
    assert_eq!(web.received(), []);
    proxy.assert_sound();
}

#[test]
fn streams_that_take_nothing_hold_little_and_are_reset() {
    let text = "x".repeat(3_000_000);
    let web = Web::new(move |request| {
        if request.head.contains(" /chunked ") {
            return [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &*ok(&text)].concat();
        }
        ok(&text)
    });
    let keys = "http = { write_timeout = '3s' }\n";
    let mut proxy = proxy_to(&format!("http://{web}"), keys);
    assert_eq!(Asking::of(proxy.addr()).ask("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").status, 200);
    let rss = proxy.process.rss();
    let mut frames = Frames::with_settings(proxy.addr(), &[(4, 0)]);
    // One large field and many small references to it, as often as a head may be large.
    let large = kept_field(b"x-large", &[b'v'; 3900]);
    frames.send(&frame(HEADERS, WHOLE, 1, &[head("GET", "/"), large].concat()));
    for n in 1..100 {
        let block = [head("GET", "/"), vec![0xbe; 7]].concat();
        frames.send(&frame(HEADERS, WHOLE, 2 * n + 1, &block));
    }
    wait_for("all requests at the backend", || web.received().len() == 101);
    let mut most = 0;
    let mut reset = 0;
    frames.stream.set_read_timeout(Some(SOON)).unwrap();
    while reset < 100 {
        let frame = frames.next().expect("a connection that goes on");
        most = most.max(proxy.process.rss().saturating_sub(rss));
        reset += usize::from(frame.kind == RST_STREAM);
    }
    println!("{most} bytes for 100 streams");
    assert!(most <= MEMORY, "{most} bytes for 100 streams");
    assert!(frames.pings());
    proxy.assert_sound();
}

#[test]
fn lists_of_fields_out_of_a_few_bytes_are_refused() {
    let web = Web::saying("hello");
    let mut proxy = proxy_to(&format!("http://{web}"), "");
    assert_eq!(seen(proxy.addr(), &head("GET", "/")), Seen::Answer(200));
    let rss = proxy.process.rss();
    for (entry, references) in [(field_of(0), 900), (field_of(0), 15_000), (field_of(3900), 15_000)] {
        let mut frames = Frames::with_settings(proxy.addr(), &[(4, 0)]);
        frames.send(&frame(HEADERS, WHOLE, 1, &[head("GET", "/"), entry].concat()));
        for n in 1..100 {
            let block = [head("GET", "/"), vec![0xbe; references]].concat();
            if !frames.send(&frame(HEADERS, WHOLE, 2 * n + 1, &block)) {
                break;
            }
        }
        let grown = proxy.process.rss().saturating_sub(rss);
        assert!(grown <= MEMORY, "{references} references: {grown} bytes");
    }
    assert!(web.received().len() <= 4, "{} requests for a backend", web.received().len());
    proxy.assert_sound();
}

/// A field that is kept, with a value of this length.
fn field_of(length: usize) -> Vec<u8> {
    kept_field(b"x", &vec![b'v'; length])
}

/// A backend of HTTP/2 that serves each connection by `serve`.
fn h2_backend(serve: impl Fn(&mut Frames) + Send + Sync + 'static) -> Backend {
    Backend::new(move |stream| serve(&mut Frames::serving(stream)))
}

/// An answer of 200 without a body.
fn answer(stream: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &[0x88])
}

#[test]
fn what_a_backend_did_not_begin_is_sent_again() {
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    // Refuses the first request, and answers all others.
    let backend = h2_backend(move |frames| {
        while let Some(asked) = frames.next_of(HEADERS) {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            let refusal = frame(RST_STREAM, 0, asked.stream, &REFUSED_STREAM.to_be_bytes());
            frames.send(&if first { refusal } else { answer(asked.stream) });
        }
    });
    let proxy = proxy_to(&format!("h2c://{backend}"), "");
    let answer = Asking::of(proxy.addr()).ask("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert_eq!(refused.load(Ordering::SeqCst), 2, "requests");
}

#[test]
fn what_is_gone_of_a_body_is_not_sent_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // Refuses the first request when a part of its body has come, and answers all others.
    let backend = h2_backend(move |frames| {
        while let Some(asked) = frames.next_of(HEADERS) {
            if count.fetch_add(1, Ordering::SeqCst) > 0 {
                frames.send(&answer(asked.stream));
                continue;
            }
            frames.next_of(DATA);
            frames.send(&frame(RST_STREAM, 0, asked.stream, &REFUSED_STREAM.to_be_bytes()));
        }
    });
    let proxy = proxy_to(&format!("h2c://{backend}"), "");
    let mut client = Asking::of(proxy.addr());
    let head = "PUT / HTTP/1.1\r\nHost: x.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    std::io::Write::write_all(&mut client.stream, head.as_bytes()).unwrap();
    let answer = client.answer(false).unwrap();
    assert_eq!(answer.status, 502);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "requests");
}

#[test]
fn a_backend_that_goes_gets_no_more_requests() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // Says with each answer that it takes no more.
    let backend = h2_backend(move |frames| {
        while let Some(asked) = frames.next_of(HEADERS) {
            count.fetch_add(1, Ordering::SeqCst);
            let last = [asked.stream.to_be_bytes(), [0; 4]].concat();
            frames.send(&[answer(asked.stream), frame(GOAWAY, 0, 0, &last)].concat());
        }
    });
    let proxy = proxy_to(&format!("h2c://{backend}"), "");
    let mut client = Asking::of(proxy.addr());
    for _ in 0..20 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(answer.status, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 20);
    assert_eq!(backend.hits(), 20);
}

#[test]
fn clients_that_take_nothing_hold_up_no_others_of_a_session() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("large"), vec![b'x'; 32 << 20]).unwrap();
    std::fs::write(dir.path().join("small"), "small").unwrap();
    let nginx = PlainNginx::start("http", |addr| {
        format!("server {{ listen {addr} http2; root {}; }}", dir.path().display())
    });
    let proxy = proxy_to(&format!("h2c://{}", nginx.addr()), "");
    let stalled: Vec<Asking> = (0..60)
        .map(|_| {
            let mut client = Asking::of(proxy.addr());
            std::io::Write::write_all(&mut client.stream, b"GET /large HTTP/1.1\r\nHost: x.test\r\n\r\n")
                .unwrap();
            until("the answer to begin", SOON, || client.stream.peek(&mut [0]).ok());
            client
        })
        .collect();
    // Those go on until nobody takes any more of them; others are answered nevertheless.
    for _ in 0..50 {
        let answer = Asking::of(proxy.addr()).ask("GET /small HTTP/1.1\r\nHost: x.test\r\n\r\n");
        assert_eq!(answer.text(), "small");
    }
    drop(stalled);
}
