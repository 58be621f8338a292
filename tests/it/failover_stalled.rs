//! Servers that accept and say nothing, as the kernel does for one that is stopped: as long as nothing tells the client's
//! first bytes from those of a later client, they are sent to the next server; after that a connection stays where it is.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::backend::{Backend, Recorder};
use crate::support::client::{
    End, Outcome, Reply, connect, outcome, probe, read_to_end, reset, served, timed,
};
use crate::support::hello::{Keys, built, extension, in_records, real, sni, to};
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::Proxy;
use crate::support::servers::{Mariadb, Redis, Server, Web};
use crate::support::{SOON, UNLIMITED, in_parallel, until};
use crate::upstream::refusing;

/// `timeouts.connect` of the proxies before real servers, and what all attempts of a connection may take, on a busy machine.
const CONNECT: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_millis(2500);
/// `timeouts.connect` of the others, and a time after which nothing more is tried.
const SHORT: Duration = Duration::from_millis(200);
const OVER: Duration = Duration::from_millis(1500);

/// The extension by which a hello announces early data (RFC 8446 §4.2.10).
const EARLY_DATA: u16 = 42;

fn proxy_to(backends: &[String], connect: Duration, keys: &str) -> Proxy {
    let backends: Vec<_> = backends.iter().map(|backend| format!("'{backend}'")).collect();
    Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsilent_after = '50ms'\n{UNLIMITED}\
         timeouts = {{ connect = '{}ms' }}\n[[upstream]]\nname = 'u'\nto = [{}]\n{keys}\n\
         [[route]]\nsni = 'a.test'\nupstream = 'u'\n[[route]]\nprotocol = 'any'\nupstream = 'u'\n\
         [[route]]\nprotocol = 'silent'\nupstream = 'u'\n",
        connect.as_millis(),
        backends.join(", ")
    ))
}

/// The same, which asks the backends in their order and passes none over.
fn proxy_to_first(backends: &[String], keys: &str) -> Proxy {
    proxy_to(backends, SHORT, &format!("balance = 'first'\neject = 'off'\nretry_budget = 'off'\n{keys}"))
}

/// Takes what it is sent and says nothing; keeps the bytes of each connection, and how it ended.
struct Mute {
    backend: Backend,
    seen: Arc<Mutex<Vec<Reply>>>,
}

impl Mute {
    fn new() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let backend = Backend::new(move |mut stream| {
            let reply = read_to_end(&mut stream, SOON * 3);
            sink.lock().unwrap().push(reply);
        });
        Self { backend, seen }
    }

    fn name(&self) -> String {
        self.backend.to_string()
    }

    /// The first connection that has ended.
    fn first(&self) -> Reply {
        until("the end of a connection", SOON, || self.seen.lock().unwrap().first().cloned())
    }
}

/// Answers after so long, with its tag.
fn slow(tag: &'static str, after: Duration) -> Backend {
    Backend::new(move |mut stream| {
        // What is slow is the point.
        std::thread::sleep(after);
        let _ = stream.write_all(format!("tag:{tag}\n").as_bytes());
        let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    })
}

/// A client that asks for a page over TLS, and believes these servers alone.
struct Browser(Arc<ClientConfig>);

impl Browser {
    fn new(servers: &[Server]) -> Self {
        let mut roots = RootCertStore::empty();
        for server in servers {
            let file = server.folder().join("certificate.pem");
            roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
        }
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        Self(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }

    fn page(&self, addr: SocketAddr) -> io::Result<String> {
        let stream = connect(addr);
        stream.set_read_timeout(Some(SOON))?;
        let name = ServerName::try_from("a.test").unwrap();
        // A session that is resumed would ask for less.
        let tls = ClientConnection::new(Arc::clone(&self.0), name).unwrap();
        let mut stream = StreamOwned::new(tls, stream);
        stream.write_all(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Whether it was served, and how long that took.
    fn served(&self, addr: SocketAddr) -> (Duration, bool) {
        timed(|| self.page(addr).is_ok_and(|answer| answer.contains("\r\n\r\nport ")))
    }
}

fn three_nginx() -> Vec<Server> {
    let next_year = SystemTime::now() + Duration::from_secs(365 * 86_400);
    (0..3).map(|_| Web::with_tls(next_year)).collect()
}

/// Opens `count` connections, so many a second, and stops the second server after a third of them: at least 99.9 % are
/// served, and none takes longer than its attempts may.
fn one_is_stopped(count: usize, rate: f64, keys: &str) -> Proxy {
    let servers = three_nginx();
    let names: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    let (browser, proxy) = (Browser::new(&servers), proxy_to(&names, CONNECT, keys));
    let (start, seen, stopped) = (Instant::now(), Mutex::new(Vec::new()), OnceLock::new());
    in_parallel(64, count, |number| {
        let at = start + Duration::from_secs_f64(number as f64 / rate);
        // The pace is the load.
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if number == count / 3 {
            servers[1].signal(Signal::STOP);
            stopped.set(Instant::now()).unwrap();
        }
        let begun = Instant::now();
        let (took, served) = browser.served(proxy.addr());
        seen.lock().unwrap().push((begun, took, served));
    });
    let (seen, stopped) = (seen.into_inner().unwrap(), *stopped.get().unwrap());
    // Those that it was about to serve when it was stopped are lost with it: it had begun to answer.
    let was_open = |begun: Instant, took: Duration| begun < stopped && begun + took > stopped;
    let new = seen.into_iter().filter(|(begun, took, _)| !was_open(*begun, *took));
    let seen: Vec<_> = new.map(|(_, took, served)| (took, served)).collect();
    assert!(seen.len() + 10 > count, "only {} are new", seen.len());
    let failed = seen.iter().filter(|(_, served)| !served).count();
    let longest = seen.iter().map(|(took, _)| *took).max().unwrap();
    println!("{failed} of {} failed, the longest took {longest:?}", seen.len());
    assert!(failed * 1000 <= seen.len(), "{failed} of {} failed", seen.len());
    assert!(longest < LONGEST, "{longest:?}");
    assert!(unanswered(&proxy, &names[1]) >= 5.0);
    proxy
}

/// Connections that were moved away from a backend.
fn unanswered(proxy: &Proxy, backend: &str) -> f64 {
    let labels = [("upstream", "u"), ("backend", backend), ("reason", "unanswered")];
    proxy.metrics().sum("portcullis_upstream_connect_failures_total", &labels)
}

#[test]
fn a_server_that_is_stopped_costs_no_connection_of_tls() {
    let proxy = one_is_stopped(1500, 200.0, "");
    assert!(proxy.metrics().sum("portcullis_upstream_ejections_total", &[("upstream", "u")]) >= 1.0);
}

#[test]
fn neither_does_one_that_is_not_passed_over() {
    one_is_stopped(360, 60.0, "eject = 'off'\nretry_budget = 'off'");
}

#[test]
fn the_first_bytes_come_to_the_next_backend_whole_and_once() {
    let large = real(Some("a.test"), &["h2"], Keys::PostQuantum);
    for hello in [to("a.test"), large.clone(), in_records(&large, 100)] {
        let (mute, recorder) = (Mute::new(), Recorder::new("second"));
        let proxy = proxy_to_first(&[mute.name(), recorder.backend.to_string()], "");
        let mut stream = connect(proxy.addr());
        assert_eq!(outcome(&mut stream, &hello, SOON), served("second"));
        // The one that was left does not take the beginning for all.
        assert_eq!(mute.first(), Reply { bytes: hello.clone(), end: End::Reset });
        stream.write_all(b"more").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let reply = read_to_end(&mut stream, SOON);
        assert!(reply.bytes.ends_with(b"more") && reply.end == End::Eof, "{reply:?}");
        let whole = [hello.as_slice(), b"more"].concat();
        until("what it received", SOON, || (recorder.received() == [whole.clone()]).then_some(()));
        let line = proxy.access_line_of(stream.local_addr().unwrap());
        assert_eq!(
            (&line["backend"], &line["cause"]),
            (&recorder.backend.to_string().into(), &"done".into())
        );
        assert_eq!(line["bytes_in"], whole.len(), "{line}");
        assert!(line["connect_ms"].as_f64().unwrap() >= 200.0, "{line}");
        assert!((unanswered(&proxy, &mute.name()) - 1.0).abs() < 0.5);
    }
}

#[test]
fn a_header_goes_before_the_first_bytes_each_time() {
    let (mute, recorder) = (Mute::new(), Recorder::new("second"));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n{UNLIMITED}timeouts = {{ connect = '200ms' }}\n[[route]]\nsni = 'a.test'\n\
         to = ['{}', '{}']\nbalance = 'first'\nproxy_protocol = 'v1'\n",
        mute.name(),
        recorder.backend
    ));
    let mut stream = connect(proxy.addr());
    assert_eq!(outcome(&mut stream, &to("a.test"), SOON), served("second"));
    let header = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        stream.local_addr().unwrap().port(),
        proxy.addr().port()
    );
    drop(stream);
    let first = mute.first().bytes;
    assert!(first.starts_with(header.as_bytes()));
    until("what it received", SOON, || (recorder.received() == [first.clone()]).then_some(()));
}

#[test]
fn a_unix_socket_that_nobody_accepts_at_is_left_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mute");
    let _mute = UnixListener::bind(&path).unwrap();
    let good = Backend::tagged("second");
    let name = format!("unix:{}", path.display());
    let proxy = proxy_to_first(&[name.clone(), good.to_string()], "");
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("second"));
    assert_eq!(probe(proxy.addr(), b""), served("second"), "a client that waits for the server");
    assert!((unanswered(&proxy, &name) - 2.0).abs() < 0.5);
}

/// What a backend may have acted upon is never said again.
#[test]
fn a_client_that_has_said_more_than_its_hello_stays() {
    let hello = to("a.test");
    let early = built(&[sni(b"a.test"), extension(EARLY_DATA, &[])]);
    let followed = [hello.as_slice(), &[20, 3, 3, 0, 1, 1]].concat();
    let cases: [(&str, &[u8], bool); 7] = [
        ("a hello", &hello, true),
        ("nothing", b"", true),
        ("a built hello", &built(&[sni(b"a.test")]), true),
        ("early data announced", &early, false),
        ("bytes behind the hello", &followed, false),
        ("a request", b"GET / HTTP/1.0\r\n\r\n", false),
        ("an unknown protocol", b"PING\r\n", false),
    ];
    for (what, bytes, moves) in cases {
        let (mute, good) = (Mute::new(), Backend::tagged("second"));
        let proxy = proxy_to_first(&[mute.name(), good.to_string()], "");
        let mut stream = connect(proxy.addr());
        let (quiet, expected) = if moves { (SOON, served("second")) } else { (OVER, Outcome::Open) };
        assert_eq!(outcome(&mut stream, bytes, quiet), expected, "{what}");
        assert_eq!(good.hits(), usize::from(moves), "{what}");
        drop(stream);
        assert_eq!(mute.first().bytes, bytes, "{what}");
    }
}

#[test]
fn a_client_that_goes_on_before_the_answer_stays_and_so_does_one_that_ends_its_stream() {
    let hello = to("a.test");
    for more in [&b"x"[..], b""] {
        let (mute, good) = (Mute::new(), Backend::tagged("second"));
        let proxy = proxy_to_first(&[mute.name(), good.to_string()], "");
        let mut stream = connect(proxy.addr());
        stream.write_all(&hello).unwrap();
        until("the first backend", SOON, || (mute.backend.hits() == 1).then_some(()));
        stream.write_all(more).unwrap();
        if more.is_empty() {
            stream.shutdown(Shutdown::Write).unwrap();
            // The end is passed on, and the backend's own comes back.
            assert_eq!(mute.first(), Reply { bytes: hello.clone(), end: End::Eof });
            assert_eq!(read_to_end(&mut stream, SOON).end, End::Eof);
        } else {
            assert_eq!(read_to_end(&mut stream, OVER).end, End::Open);
        }
        assert_eq!(good.hits(), 0);
    }
}

#[test]
fn a_client_that_is_gone_is_noticed_while_its_answer_is_awaited() {
    let (hello, mute, good) = (to("a.test"), Mute::new(), Backend::tagged("second"));
    let proxy = proxy_to(&[mute.name(), good.to_string()], Duration::from_secs(60), "balance = 'first'");
    let mut stream = connect(proxy.addr());
    let client = stream.local_addr().unwrap();
    stream.write_all(&hello).unwrap();
    until("the first backend", SOON, || (mute.backend.hits() == 1).then_some(()));
    reset(stream);
    assert_eq!(mute.first(), Reply { bytes: hello, end: End::Reset });
    let line = proxy.access_line_of(client);
    assert_eq!((&line["cause"], &line["reason"]), (&"client".into(), &"reset".into()), "{line}");
}

/// As the kernel does for a server that is killed with connections that it has not accepted yet.
#[test]
fn a_backend_that_ends_a_connection_without_a_word_is_left_too() {
    let closing = Backend::new(drop);
    let resetting = Backend::new(reset);
    let good = Backend::tagged("good");
    for rude in [closing.to_string(), resetting.to_string()] {
        let proxy = proxy_to_first(&[rude.clone(), good.to_string()], "");
        for hello in [to("a.test"), Vec::new()] {
            let (took, outcome) = timed(|| probe(proxy.addr(), &hello));
            assert_eq!(outcome, served("good"), "{} bytes, {rude}", hello.len());
            assert!(took < OVER, "{took:?}");
        }
        // What has been asked in clear may have been done.
        assert!(matches!(probe(proxy.addr(), b"GET / HTTP/1.0\r\n\r\n"), Outcome::Closed | Outcome::Reset));
    }
    // Last words are the client's to hear, and nobody is asked again.
    let refusing = Backend::new(|mut stream| {
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(&[21, 3, 3, 0, 2, 2, 40]).unwrap();
    });
    let proxy = proxy_to_first(&[refusing.to_string(), good.to_string()], "");
    assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Alert(40));
    assert_eq!(good.hits(), 4);
}

#[test]
fn without_another_one_a_slow_backend_serves_as_ever() {
    let late = Duration::from_millis(1200);
    let [slow, other] = ["slow", "other"].map(|tag| slow(tag, late));
    let (_held, away) = refusing();
    let alone = proxy_to_first(&[slow.to_string()], "");
    assert_eq!(probe(alone.addr(), &to("a.test")), served("slow"));
    let beside_one_that_refuses = proxy_to_first(&[slow.to_string(), away.to_string()], "");
    assert_eq!(probe(beside_one_that_refuses.addr(), &to("a.test")), served("slow"));
    // The time for all attempts is over with the second one, so that this stays.
    let beside_another = proxy_to_first(&[slow.to_string(), other.to_string()], "");
    assert_eq!(probe(beside_another.addr(), &to("a.test")), served("other"));
    let full = proxy_to_first(&[slow.to_string(), other.to_string()], "max_connections = 1");
    let outcomes = Mutex::new(Vec::new());
    in_parallel(2, 2, |_| {
        let outcome = probe(full.addr(), &to("a.test"));
        outcomes.lock().unwrap().push(outcome);
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|outcome| format!("{outcome:?}"));
    assert_eq!(outcomes, [served("other"), served("slow")]);
    for proxy in [&alone, &full] {
        assert!(unanswered(proxy, &slow.to_string()) < 0.5, "nobody to blame it before");
    }
}

#[test]
fn how_long_an_answer_may_take_is_for_the_configuration() {
    let (slow, good) = (slow("slow", Duration::from_millis(1200)), Backend::tagged("second"));
    let with = |answer: &str| {
        Proxy::start(&format!(
            "listen = '127.0.0.1:0'\n{UNLIMITED}timeouts = {{ connect = '200ms', answer = '300ms' }}\n[[route]]\n\
             sni = 'a.test'\nto = ['{slow}', '{good}']\nbalance = 'first'\n{answer}\n"
        ))
    };
    for (answer, tag) in [
        ("", "second"),
        ("timeouts = { answer = '700ms' }", "second"),
        ("timeouts = { answer = '5s' }", "slow"),
        ("timeouts = { answer = 'off' }", "slow"),
    ] {
        assert_eq!(probe(with(answer).addr(), &to("a.test")), served(tag), "{answer}");
    }
}

/// Servers that wait for their clients say nothing to those that say nothing, and are well all the same.
#[test]
fn clients_that_say_nothing_to_servers_that_wait_for_them_tell_nothing_against_these() {
    let servers = [Redis::start(), Redis::start(), Redis::start()];
    let names: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    let proxy = proxy_to(&names, SHORT, "eject = 2\nretry_budget = 'off'");
    let quiet: Vec<_> = (0..12).map(|_| connect(proxy.addr())).collect();
    let moved = || names.iter().map(|name| unanswered(&proxy, name)).sum::<f64>();
    until("all to be moved", SOON, || (moved() >= 12.0).then_some(()));
    for mut stream in quiet {
        stream.write_all(b"PING\r\n").unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
    }
    assert!(proxy.metrics().sum("portcullis_upstream_ejections_total", &[("upstream", "u")]) < 0.5);
}

/// Once it goes on it finds the connections that it was left with. It refuses hosts that close too many of them before their
/// login; of connections that were reset it cannot tell any more whose they were.
#[test]
fn mariadb_does_not_refuse_the_host_that_left_it() {
    with_hosts(|| {
        let (host, addr) = (Host::new(), Ipv4Addr::new(10, 9, 9, 2));
        host.execute(&format!("ip address add {addr}/32 dev lo"), "");
        host.run(|| {
            let (mariadb, good) = (Mariadb::counting(addr, "left.test", 3), Backend::tagged("second"));
            let proxy = proxy_to_first(&[mariadb.addr().to_string(), good.to_string()], "");
            mariadb.signal(Signal::STOP);
            for _ in 0..8 {
                assert_eq!(probe(proxy.addr(), b""), served("second"));
            }
            mariadb.signal(Signal::CONT);
            // Those before it in the queue have been seen by then.
            let mut greeting = [0; 128];
            let n = connect(mariadb.addr()).read(&mut greeting).unwrap();
            let text = String::from_utf8_lossy(&greeting[..n]);
            assert!(text.contains("MariaDB") && !text.contains("blocked"), "{text}");
        });
    });
}

/// A group of which all are slow gets no more connections than its retries allow.
#[test]
fn moves_are_retries_and_what_may_not_move_stays() {
    let (mute, good) = (Mute::new(), Backend::tagged("second"));
    let proxy = proxy_to(
        &[mute.name(), good.to_string()],
        SHORT,
        "balance = 'first'\neject = 'off'\nretry_budget = '1%'",
    );
    let outcomes = Mutex::new(Vec::new());
    in_parallel(150, 150, |_| {
        let mut stream = connect(proxy.addr());
        let outcome = outcome(&mut stream, &to("a.test"), OVER * 2);
        outcomes.lock().unwrap().push(outcome);
    });
    let outcomes = outcomes.into_inner().unwrap();
    let of = |wanted: &Outcome| outcomes.iter().filter(|outcome| *outcome == wanted).count();
    let (moved, stayed) = (of(&served("second")), of(&Outcome::Open));
    assert_eq!(moved + stayed, 150, "{outcomes:?}");
    // A hundred in ten seconds are free, and a hundredth of all beside them; half of that is for those without a backend.
    assert!((50..=52).contains(&moved), "{moved}");
}
