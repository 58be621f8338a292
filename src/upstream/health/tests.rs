use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;

use super::agent::{AgentReport, AgentState};
use super::greeting::{self, Greeting, Heard};
use super::*;
use crate::config::{Check, HealthConfig, HttpCheck, Roots, TlsCheck, Verify};
use crate::net::{ProxyHeader, ProxyVersion};
use crate::telemetry::Registry;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(10);

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(2 * LONG, work).await.expect("an end in time") })
}

fn config(check: Check) -> HealthConfig {
    let interval = Duration::from_millis(100);
    HealthConfig {
        check,
        interval,
        timeout: LONG,
        rise: 2,
        fall: 3,
        port: None,
        agent: None,
        proxy_protocol: None,
    }
}

fn http(path: &str, body: Option<&str>) -> HttpCheck {
    let status = vec![200..=299];
    HttpCheck { path: path.parse().unwrap(), host: None, status, body: body.map(Into::into) }
}

/// A server that answers each connection with `answer` to whatever comes first, or at once if `at_once`, and closes.
async fn server(answer: &'static [u8], at_once: bool) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if !at_once {
                let _question = stream.read(&mut [0; 1024]).await.unwrap();
            }
            // A check that knows enough may have gone.
            let _ = stream.write_all(answer).await;
        }
    });
    target
}

async fn probe(check: Check, target: &Target) -> Result<Passed, String> {
    Probe::new(&config(check)).run(target).await.map_err(|error| error.told())
}

/// What is heard of all of `said`; of every beginning it is nothing yet, or the same.
fn hear(greeting: &Greeting, said: &[u8]) -> Heard {
    let whole = (greeting.hear)(said);
    for end in 0..said.len() {
        let part = (greeting.hear)(&said[..end]);
        assert!(part == Heard::Part || part == whole, "{:?}: {part:?}", &said[..end]);
    }
    whole
}

fn unwell(text: &str) -> Heard {
    Heard::Unwell(Excerpt::of(text.as_bytes()))
}

#[test]
fn greetings_of_postgres_and_mysql() {
    let hear_postgres = |said: &[u8]| hear(&greeting::POSTGRES, said);
    assert_eq!(hear_postgres(b"S"), Heard::Well);
    assert_eq!(hear_postgres(b"N"), Heard::Well);
    let error = b"E\0\0\0\x27SFATAL\0C53300\0Mtoo many clients\0\0\0\0\0\0";
    assert_eq!(hear_postgres(error), unwell("too many clients"));
    assert_eq!(hear_postgres(b"E\0\0\0\x03"), Heard::Strange);
    assert_eq!(hear_postgres(b"HTTP/1.1 400"), Heard::Strange);
    let hear_mysql = |said: &[u8]| hear(&greeting::MYSQL, said);
    assert_eq!(hear_mysql(b"\x08\0\0\0\x0a8.0.36\0"), Heard::Well);
    assert_eq!(hear_mysql(b"\x0d\0\0\0\xff\x10\x04Too many c"), unwell("Too many c"));
    assert_eq!(hear_mysql(b"\x08\0\0\0\x0a8.0."), Heard::Part);
    for strange in
        [&b"\x08\0\0\x01\x0a8.0.36\0"[..], b"\0\0\0\0", b"\x01\x10\0\0\x0a", b"\x02\0\0\0\x09x", b"SSH-2.0-x"]
    {
        assert_eq!(hear_mysql(strange), Heard::Strange, "{strange:?}");
    }
}

#[test]
fn greetings_in_lines() {
    let hear_redis = |said: &str| hear(&greeting::REDIS, said.as_bytes());
    assert_eq!(hear_redis("+PONG\r\n"), Heard::Well);
    assert_eq!(hear_redis("-NOAUTH Authentication required.\r\n"), Heard::Well);
    assert_eq!(hear_redis("-NOPERM this user has no permissions\r\n"), Heard::Well);
    let loading = "-LOADING Redis is loading the dataset in memory";
    assert_eq!(hear_redis(&format!("{loading}\r\n")), unwell(loading));
    assert_eq!(hear_redis("+PONG"), Heard::Part);
    assert_eq!(hear_redis("+OK\r\n"), Heard::Strange);
    assert_eq!(hear_redis("HTTP/1.1 400"), Heard::Strange);
    let hear_ssh = |said: &str| hear(&greeting::SSH, said.as_bytes());
    assert_eq!(hear_ssh("SSH-2.0-OpenSSH_9.2\r\n"), Heard::Well);
    assert_eq!(hear_ssh("SSH-1.99-x\n"), Heard::Well);
    assert_eq!(hear_ssh("welcome\r\nto all\r\nSSH-2.0-x\r\n"), Heard::Well);
    assert_eq!(hear_ssh("SSH-1.5-x\r\n"), Heard::Strange);
    assert_eq!(hear_ssh("SSH-2.0-x"), Heard::Part);
    let hear_smtp = |said: &str| hear(&greeting::SMTP, said.as_bytes());
    assert_eq!(hear_smtp("220 mail.test ESMTP\r\n"), Heard::Well);
    assert_eq!(hear_smtp("220\r\n"), Heard::Well);
    assert_eq!(hear_smtp("220-mail.test\r\n220 ESMTP\r\n"), Heard::Well);
    assert_eq!(hear_smtp("220-mail.test\r\n"), Heard::Part);
    assert_eq!(hear_smtp("421 too busy\r\n"), unwell("421 too busy"));
    assert_eq!(hear_smtp("554-no\r\n554 service\r\n"), unwell("554-no"));
    assert_eq!(hear_smtp("250 ok\r\n"), Heard::Strange);
    assert_eq!(hear_smtp("45\r\n"), Heard::Strange);
}

proptest! {
    #[test]
    fn no_bytes_break_a_greeting(said in prop::collection::vec(any::<u8>(), 0..64)) {
        for greeting in [greeting::POSTGRES, greeting::MYSQL, greeting::REDIS, greeting::SSH, greeting::SMTP] {
            (greeting.hear)(&said);
        }
        let _ = AgentReport::parse(&said);
        let text = Excerpt::of(&said).to_string();
        prop_assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    /// A state only changes after as many results in a row as it says, and then it does.
    #[test]
    fn a_tally_changes_after_results_in_a_row(
        rise in 1u32..5,
        fall in 1u32..5,
        results in prop::collection::vec(any::<bool>(), 1..60),
    ) {
        let mut tally = Tally::new(rise, fall, None);
        let mut row = 0;
        for (index, result) in results.iter().enumerate() {
            row = if index > 0 && results[index - 1] == *result { row + 1 } else { 1 };
            let before = tally.up();
            let change = tally.note(*result);
            let needed = match before {
                None => 1,
                Some(true) => fall,
                Some(false) => rise,
            };
            let expected = before != Some(*result) && row >= needed;
            prop_assert_eq!(change != Change::None, expected, "{} at {}", result, index);
            let after = if expected { Some(*result) } else { before };
            prop_assert_eq!(tally.up(), after);
        }
    }
}

#[test]
fn results_that_change_to_and_fro_change_nothing() {
    let mut tally = Tally::new(2, 3, None);
    assert_eq!((tally.up(), tally.note(true)), (None, Change::Up));
    for result in [false, false, true, false, true, false, false, true] {
        assert_eq!(tally.note(result), Change::None);
    }
    let down = [false, false, false].map(|result| tally.note(result));
    assert_eq!(down, [Change::None, Change::None, Change::Down]);
    for result in [true, false, true, false] {
        assert_eq!(tally.note(result), Change::None);
    }
    assert_eq!([true, true].map(|result| tally.note(result)), [Change::None, Change::Up]);
    assert_eq!(Tally::new(2, 3, None).note(false), Change::Down);
}

#[test]
fn agents_say_a_state_and_a_share() {
    let parse = |line: &str| AgentReport::parse(line.as_bytes());
    let said = |state, weight| Ok(AgentReport { state, weight });
    assert_eq!(parse("up\n"), said(Some(AgentState::Up), None));
    assert_eq!(parse("DOWN\r\nup\n"), said(Some(AgentState::Down), None));
    assert_eq!(parse("drain"), said(Some(AgentState::Drain), None));
    assert_eq!(parse("75%\n"), said(None, Some(75)));
    assert_eq!(parse("up, 0%\n"), said(Some(AgentState::Up), Some(0)));
    for bad in ["", "\n", "101%\n", "%\n", "+5%\n", "7.5%\n", "sideways\n", "up sideways\n"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let mut last = parse("drain 50%").unwrap();
    last.update(parse("up").unwrap());
    assert_eq!(Ok(last), said(Some(AgentState::Up), Some(50)));
}

#[test]
fn what_a_peer_said_is_told_in_one_bounded_line() {
    assert_eq!(Excerpt::of(b"").to_string(), "nothing");
    assert_eq!(Excerpt::of(b"a\r\nb\x1b[31m\r\n").to_string(), r"`a\r\nb\u{1b}[31m`");
    let long = Excerpt::of(&[b'a'; 5000]).to_string();
    assert_eq!(long, format!("`{}…`", "a".repeat(80)));
    let error = CheckError::Connect(std::io::Error::other("a\nb"));
    assert_eq!(error.told(), r"no connection: a\nb");
    for (error, reason) in [(CheckError::Body, "body"), (CheckError::Status(500), "status")] {
        assert_eq!(error.reason(), reason);
    }
}

#[test]
fn a_connection_is_enough_for_tcp() {
    run(async {
        let target = server(b"", true).await;
        assert_eq!(probe(Check::Tcp, &target).await, Ok(Passed::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = Target::Tcp(listener.local_addr().unwrap());
        drop(listener);
        let told = probe(Check::Tcp, &gone).await.unwrap_err();
        assert!(told.starts_with("no connection: Connection refused"), "{told}");
    });
}

#[test]
fn a_unix_socket_is_checked_and_has_no_ports() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let target = Target::Unix(Arc::from(path.as_path()));
    run(async {
        let told = probe(Check::Tcp, &target).await.unwrap_err();
        assert!(told.starts_with("no connection: No such file"), "{told}");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 here\r\n").await.unwrap();
            assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), b"QUIT\r\n".len());
        });
        let config = HealthConfig { port: Some(1), agent: Some(1), ..config(Check::Smtp) };
        let probe = Probe::new(&config);
        assert!(probe.run(&target).await.is_ok());
        assert!(probe.ask_agent(&target).await.is_none());
    });
}

#[test]
fn answers_that_end_early_go_on_for_ever_or_never_come_are_told() {
    run(async {
        let told = probe(Check::Redis, &server(b"", false).await).await.unwrap_err();
        assert!(told.starts_with("the connection ended before the answer"), "{told}");
        let told = probe(Check::Redis, &server(b"+PO", false).await).await.unwrap_err();
        assert_eq!(told, "expected +PONG of Redis, got `+PO`");
        let told = probe(Check::Mysql, &server(b"SSH-2.0-x\r\n", true).await).await.unwrap_err();
        assert_eq!(told, "expected a greeting of MySQL, got `SSH-2.0-x`");
        static ENDLESS: [u8; 1 << 20] = [b'x'; 1 << 20];
        let told = probe(Check::Ssh, &server(&ENDLESS, true).await).await.unwrap_err();
        assert!(told.starts_with("expected an identification of SSH, got `xxx"), "{told}");
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::Tcp(silent.local_addr().unwrap());
        for check in [Check::Smtp, Check::Http(http("/", None), None)] {
            let config = HealthConfig { timeout: Duration::from_millis(200), ..config(check) };
            let told = Probe::new(&config).run(&target).await.unwrap_err().told();
            assert_eq!(told, "no answer in time");
        }
    });
}

/// A server of MySQL 8 asks those whom it does not know for another way to log in.
#[test]
fn mysql_is_left_by_a_login_that_fails() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::Tcp(listener.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"\x08\0\0\0\x0a8.0.36\0").await.unwrap();
            let mut login = [0; 70];
            stream.read_exact(&mut login).await.unwrap();
            assert_eq!((login[0] as usize, login[3]), (login.len() - 4, 1));
            assert_eq!(&login[36..], b"portcullis\0\0mysql_native_password\0");
            stream.write_all(b"\x16\0\0\x02\xfecaching_sha2_password\0").await.unwrap();
            let mut empty = [0; 4];
            stream.read_exact(&mut empty).await.unwrap();
            assert_eq!(empty, [0, 0, 0, 3]);
            stream.write_all(b"\x09\0\0\x04\xff\x15\x04denied").await.unwrap();
            assert_eq!(stream.read(&mut empty).await.unwrap(), 0);
        };
        let (passed, ()) = tokio::join!(probe(Check::Mysql, &target), server);
        assert_eq!(passed, Ok(Passed::default()));
    });
}

#[test]
fn a_header_of_the_proxy_protocol_goes_first() {
    run(async {
        for (version, length) in [(ProxyVersion::V1, 15), (ProxyVersion::V2, 16)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = Target::Tcp(listener.local_addr().unwrap());
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut said = vec![0; length + b"PING\r\n".len()];
                stream.read_exact(&mut said).await.unwrap();
                stream.write_all(b"+PONG\r\n").await.unwrap();
                said
            };
            let probe = Probe::new(&HealthConfig { proxy_protocol: Some(version), ..config(Check::Redis) });
            let (passed, said) = tokio::join!(probe.run(&target), server);
            assert!(passed.is_ok(), "{version}");
            let header = ProxyHeader::read(&said).unwrap().expect("a whole header");
            assert_eq!((header.len, header.ends), (length, None), "{version}");
            assert_eq!(&said[length..], b"PING\r\n", "{version}");
        }
    });
}

#[test]
fn http_is_asked_for_status_and_body() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nall ok\n";
    run(async {
        let check = |body, answer| async move {
            probe(Check::Http(http("/up", body), None), &server(answer, false).await).await
        };
        assert!(check(None, OK).await.is_ok());
        assert!(check(Some("ok"), OK).await.is_ok());
        assert_eq!(check(Some("bad"), OK).await.unwrap_err(), "the body does not contain what it should");
        let failed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(check(None, failed).await.unwrap_err(), "the status is 503");
        let told = check(None, b"SSH-2.0-x\r\n").await.unwrap_err();
        assert!(told.starts_with("no HTTP: "), "{told}");
        let told = check(Some("ok"), b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nall").await.unwrap_err();
        assert!(told.starts_with("the connection ended before the answer"), "{told}");
        // In two pieces of a chunked body.
        let parts = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nall o\r\n1\r\nk\r\n0\r\n\r\n";
        assert!(check(Some("all ok"), parts).await.is_ok());
    });
}

#[test]
fn of_a_body_64_kib_are_looked_at() {
    let answer = |at: usize| -> &'static [u8] {
        let body = format!("{}needle{}", "x".repeat(at), "x".repeat(100_000));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        Box::leak(format!("{head}{body}").into_bytes().into_boxed_slice())
    };
    run(async {
        let check = |at| async move {
            let target = server(answer(at), false).await;
            probe(Check::Http(http("/", Some("needle")), None), &target).await
        };
        assert!(check(64 * 1024 - 6).await.is_ok());
        assert!(check(64 * 1024 - 5).await.is_err());
    });
}

/// A TLS server for `a.test` that answers by HTTP; its certificate, which ends in 2030.
async fn tls_server() -> (Target, rustls::pki_types::CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                if stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    (target, certificate)
}

#[test]
fn tls_takes_any_certificate_unless_it_is_to_be_verified() {
    let tls = |sni: Option<&str>, verify| TlsCheck {
        sni: sni.map(|sni| crate::peek::ServerName::parse(sni.as_bytes()).unwrap()),
        verify,
        expiry_warning: Duration::from_secs(1),
    };
    run(async {
        let (target, certificate) = tls_server().await;
        let roots = || Verify::Roots(Roots { file: None, certificates: Arc::from([certificate.clone()]) });
        let passed = Ok(Passed { not_after: Some(1_893_456_000) });
        assert_eq!(probe(Check::Tls(tls(None, Verify::Off)), &target).await, passed);
        assert_eq!(probe(Check::Tls(tls(Some("b.test"), Verify::Off)), &target).await, passed);
        assert_eq!(probe(Check::Tls(tls(Some("a.test"), roots())), &target).await, passed);
        let https = Check::Http(http("/", None), Some(tls(Some("a.test"), roots())));
        assert_eq!(probe(https, &target).await, passed);
        let told = probe(Check::Tls(tls(Some("b.test"), roots())), &target).await.unwrap_err();
        assert!(told.starts_with("no TLS: invalid peer certificate"), "{told}");
        let other = tls_server().await.0;
        let told = probe(Check::Tls(tls(Some("a.test"), roots())), &other).await.unwrap_err();
        assert!(told.starts_with("no TLS: invalid peer certificate"), "{told}");
        let plain = server(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).await;
        let told = probe(Check::Tls(tls(None, Verify::Off)), &plain).await.unwrap_err();
        assert!(told.starts_with("no TLS: "), "{told}");
    });
}

/// The sample of a metric of the backend `b`.
fn sample(registry: &Registry, name: &str, more: &str) -> Option<f64> {
    let text = registry.render();
    let line =
        text.lines().find(|line| line.starts_with(&format!("{name}{{upstream=\"u\",backend=\"b\"{more}")));
    line.and_then(|line| line.rsplit(' ').next()).map(|value| value.parse().unwrap())
}

/// Watches `target` until `until` says so of the reports so far.
async fn reports(
    config: &HealthConfig,
    target: &Target,
    registry: &Arc<Registry>,
    until: impl Fn(&[Report]) -> bool,
) -> Vec<Report> {
    let metrics = HealthMetrics::new(registry, &Arc::from("u"), &Arc::from("b"));
    let checked = Checked { target: target.clone(), metrics, before: None };
    let (probe, slots) = (Probe::new(config), Semaphore::new(1));
    let (seen, enough) = (RefCell::new(Vec::new()), tokio::sync::Notify::new());
    let report = |report| {
        seen.borrow_mut().push(report);
        if until(&seen.borrow()) {
            enough.notify_one();
        }
    };
    tokio::select! {
        () = Box::pin(watch(checked, config, &probe, &slots, report)) => {}
        () = enough.notified() => {}
    }
    assert_eq!(slots.available_permits(), 1);
    seen.into_inner()
}

#[test]
fn an_endpoint_goes_down_after_fall_and_up_after_rise() {
    let registry = Arc::new(Registry::new().unwrap());
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, listener) = (Target::Tcp(address), RefCell::new(Some(listener)));
        let seen = reports(&config(Check::Tcp), &target, &registry, |seen| match seen.last() {
            Some(last) if last.state == State::Up && seen.len() == 1 => {
                assert_eq!(sample(&registry, "portcullis_upstream_healthy", ""), Some(1.0));
                listener.take();
                false
            }
            Some(last) if last.state == State::Down && last.changed => {
                assert_eq!(sample(&registry, "portcullis_upstream_healthy", ""), Some(0.0));
                let again = std::net::TcpListener::bind(address).unwrap();
                again.set_nonblocking(true).unwrap();
                listener.replace(Some(TcpListener::from_std(again).unwrap()));
                false
            }
            Some(last) => last.state == State::Up && last.changed,
            None => false,
        })
        .await;
        let states: Vec<_> =
            seen.iter().map(|report| (report.state, report.changed, report.error.is_some())).collect();
        let (up, down) = (State::Up, State::Down);
        assert_eq!(
            states,
            [
                (up, true, false),
                (up, false, true),
                (up, false, true),
                (down, true, true),
                (down, false, false),
                (up, true, false),
            ]
        );
    });
    let count = |result| {
        sample(&registry, "portcullis_upstream_health_checks_total", &format!(",result=\"{result}\""))
    };
    assert_eq!((count("passed"), count("connect")), (Some(3.0), Some(3.0)));
    assert_eq!(sample(&registry, "portcullis_upstream_healthy", ""), Some(0.0), "nobody watches");
}

#[test]
fn the_first_result_decides_and_certificates_are_counted() {
    let registry = Arc::new(Registry::new().unwrap());
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = Target::Tcp(listener.local_addr().unwrap());
        drop(listener);
        let seen = reports(&config(Check::Tcp), &gone, &registry, |seen| !seen.is_empty()).await;
        assert_eq!((seen[0].state, seen[0].changed, seen[0].weight), (State::Down, true, None));
        let name = "portcullis_upstream_certificate_not_after_timestamp_seconds";
        assert_eq!(sample(&registry, name, ""), None);
        let tls = TlsCheck { sni: None, verify: Verify::Off, expiry_warning: Duration::from_secs(1) };
        let target = tls_server().await.0;
        reports(&config(Check::Tls(tls)), &target, &registry, |seen| !seen.is_empty()).await;
        assert_eq!(sample(&registry, name, ""), Some(1_893_456_000.0));
    });
}

#[test]
fn an_agent_drains_and_weighs_and_its_silence_changes_nothing() {
    let registry = Arc::new(Registry::new().unwrap());
    run(async {
        let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = agent.local_addr().unwrap().port();
        tokio::spawn(async move {
            for line in ["up 75%\n", "drain\n", "who knows\n", "down\n", "up 100%\n"] {
                let (mut stream, _): (TcpStream, _) = agent.accept().await.unwrap();
                stream.write_all(line.as_bytes()).await.unwrap();
            }
        });
        let config = HealthConfig { agent: Some(port), ..config(Check::Tcp) };
        let target = server(b"", true).await;
        let seen = reports(&config, &target, &registry, |seen| seen.len() == 6).await;
        let told: Vec<_> = seen.iter().map(|report| (report.state, report.weight)).collect();
        assert_eq!(
            told,
            [
                (State::Up, Some(75)),
                (State::Draining, Some(75)),
                (State::Draining, Some(75)),
                (State::Down, Some(75)),
                (State::Up, Some(100)),
                (State::Up, Some(100)),
            ]
        );
    });
}
