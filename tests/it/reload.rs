//! Another configuration for a process that serves: taken whole or not at all, and noticed by nobody.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::client::{End, Outcome, connect, free_port, held, probe, read_to_end, served, timed};
use crate::support::hello::to;
use crate::support::load::Load;
use crate::support::metrics::Metrics;
use crate::support::named::Named;
use crate::support::proxy::{Proxy, on_config, on_file};
use crate::support::{Random, SOON, UNLIMITED, until, wait_for};

/// A configuration with an admin address and one route.
fn config(listen: &str, name: &str, to: impl std::fmt::Display) -> String {
    format!("listen = {listen}\nadmin = '127.0.0.1:0'\n{UNLIMITED}\n[[route]]\nsni = '{name}'\nto = '{to}'\n")
}

const ANY: &str = "'127.0.0.1:0'";

/// A listener that is there every other time.
fn second_listener(round: usize) -> &'static str {
    if round.is_multiple_of(2) { "[[listener]]\nname = 'second'\nbind = '127.0.0.1:0'\n" } else { "" }
}

#[test]
fn a_signal_brings_new_routes_and_connections_keep_theirs() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let proxy = Proxy::start(&config(ANY, "a.test", &a));
    let mut before = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    proxy.write(&config(ANY, "b.test", &b));
    proxy.process.signal(Signal::HUP);
    until("the new configuration", SOON, || proxy.logged("the new configuration serves").pop());
    assert_eq!(probe(proxy.addr(), &to("b.test")), served("b"));
    assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Alert(112));
    before.write_all(b"still there").unwrap();
    before.shutdown(Shutdown::Write).unwrap();
    let reply = read_to_end(&mut before, SOON);
    // The backend gives everything back, the hello first.
    assert!(reply.bytes.ends_with(b"still there") && reply.end == End::Eof, "{reply:?}");
    assert_eq!(proxy.logged("listening").len(), 1, "the socket stayed");
}

#[test]
fn a_bad_configuration_is_told_whole_and_changes_nothing() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&config(ANY, "a.test", &backend));
    proxy.write("listen = ':0'\nlimit_rate = 5\n[[route]]\nsni = 'b..test'\nto = '10.0.0.300:1'\n");
    let refused = proxy.reload();
    assert_eq!(refused.code, Some(78), "{refused:?}");
    for error in ["unknown key `limit_rate`", "b..test", "10.0.0.300", "goes on with its old configuration"] {
        assert!(refused.stderr.contains(error), "{error}: {}", refused.stderr);
    }
    for error in ["unknown key `limit_rate`", "b..test", "10.0.0.300"] {
        assert!(proxy.process.stderr.contains(error), "not in the log: {error}");
    }
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    let failing = "[[test]]\nhello = { sni = 'a.test' }\nexpect = 'reject'\n";
    proxy.write(&(config(ANY, "a.test", &backend) + failing));
    let refused = proxy.reload();
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("a.test"), "{}", refused.stderr);
    let metrics = proxy.metrics();
    assert!((metrics.sum("portcullis_config_reloads_total", &[("result", "refused")]) - 2.0).abs() < 0.5);
    assert!(metrics.sum("portcullis_config_last_reload_successful", &[]).abs() < 0.5);
    proxy.reconfigure(&config(ANY, "c.test", &backend));
    assert_eq!(probe(proxy.addr(), &to("c.test")), served("a"));
    assert!((proxy.metrics().sum("portcullis_config_last_reload_successful", &[]) - 1.0).abs() < 0.5);
}

#[test]
fn a_file_that_is_gone_and_an_address_that_is_taken_change_nothing() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&config(ANY, "a.test", &backend));
    std::fs::remove_file(proxy.file()).unwrap();
    let refused = proxy.reload();
    assert_eq!(refused.code, Some(78), "{refused:?}");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = format!("['127.0.0.1:0', '{}']", taken.local_addr().unwrap());
    proxy.write(&config(&listen, "b.test", &backend));
    let refused = proxy.reload();
    assert_eq!(refused.code, Some(75), "{refused:?}");
    assert!(refused.stderr.contains("cannot listen"), "{}", refused.stderr);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    assert_eq!(probe(proxy.addr(), &to("b.test")), Outcome::Alert(112), "half a configuration");
}

#[test]
fn addresses_come_and_go_and_those_that_stay_are_never_closed() {
    let backend = Backend::tagged("a");
    let [stays, goes, comes] = [(); 3].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    let proxy = Proxy::start(&config(&format!("['{stays}', '{goes}']"), "a.test", &backend));
    let mut on_gone = held(Ipv4Addr::LOCALHOST, goes, &to("a.test"));
    proxy.reconfigure(&config(&format!("['{stays}', '{comes}']"), "a.test", &backend));
    assert_eq!(probe(comes, &to("a.test")), served("a"));
    wait_for("the address to be closed", || TcpStream::connect(goes).is_err());
    on_gone.write_all(b"on").unwrap();
    on_gone.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&mut on_gone, SOON).bytes.ends_with(b"on"));
    // The same address under another name: its socket stays, and new connections count for the new one.
    let named = format!(
        "admin = '127.0.0.1:0'\n[[listener]]\nname = 'renamed'\nbind = '{stays}'\n\
         [[route]]\nsni = 'a.test'\nlistener = 'renamed'\nto = '{backend}'\n"
    );
    proxy.reconfigure(&named);
    let client = held(Ipv4Addr::LOCALHOST, stays, &to("a.test"));
    let local = client.local_addr().unwrap();
    drop(client);
    assert_eq!(proxy.access_line_of(local)["listener"], "renamed");
    assert_eq!(proxy.logged("listening").len(), 3, "{:?}", proxy.logged("listening"));
}

#[test]
fn fifty_reloads_under_load_are_noticed_by_nobody() {
    const RELOADS: usize = 50;
    let (load, tagged) = (Load::new(), Backend::tagged("a"));
    let text = |round: usize| {
        config(ANY, "a.test", &tagged)
            + &load.routes()
            + &format!("[[route]]\nsni = 'round{round}.test'\nto = '{tagged}'\n")
            + second_listener(round)
    };
    let mut proxy = Proxy::start(&text(1));
    let addr = proxy.addr();
    let count = load.during(addr, || {
        for round in 2..2 + RELOADS {
            proxy.reconfigure(&text(round));
            assert_eq!(probe(addr, &to(&format!("round{round}.test"))), served("a"));
        }
    });
    println!("{count} new connections during {RELOADS} reloads");
    assert!(count >= RELOADS, "{count}");
    let failed = |line: &Value| line["cause"] != "done" && line["cause"] != "client";
    assert_eq!(proxy.access_log().into_iter().filter(failed).count(), 0);
    proxy.assert_sound();
}

#[test]
fn two_hundred_reloads_leave_nothing_behind() {
    const WARM_UP: usize = 20;
    const RELOADS: usize = 200;
    let backend = Backend::tagged("a");
    let text = |round: usize| {
        let routes: String = (0..200)
            .map(|n| format!("[[route]]\nsni = 'r{}n{n}.test'\nto = '{backend}'\n", round % 2))
            .collect();
        config(ANY, "a.test", &backend) + &routes + second_listener(round)
    };
    let mut proxy = Proxy::start(&text(1));
    let generation =
        |metrics: &Metrics| metrics.sum("portcullis_config_reloads_total", &[("result", "taken")]);
    let mut taken = 0.0;
    let mut reload = |proxy: &Proxy, round: usize| {
        proxy.write(&text(round));
        proxy.process.signal(Signal::HUP);
        taken += 1.0;
        wait_for("the reload", || generation(&proxy.metrics()) > taken - 0.5);
    };
    (0..WARM_UP).for_each(|round| reload(&proxy, round));
    let settled = |proxy: &Proxy| {
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
        wait_for("connections to end", || proxy.metrics().sum("portcullis_connections_active", &[]) < 0.5);
        (proxy.process.rss(), proxy.process.fds())
    };
    let before = settled(&proxy);
    (WARM_UP..WARM_UP + RELOADS).for_each(|round| reload(&proxy, round));
    wait_for("descriptors to be as before", || settled(&proxy).1 <= before.1);
    let after = settled(&proxy);
    println!("before {before:?}, after {after:?}");
    assert!(after.0 <= before.0 + 4 * 1024 * 1024, "{before:?} {after:?}");
    proxy.assert_sound();
}

/// Whatever stands in the file: the process serves on as before.
#[test]
fn fifty_broken_configurations_hurt_nobody() {
    let backend = Backend::tagged("a");
    let good = config(ANY, "a.test", &backend);
    let mut proxy = Proxy::start(&good);
    let mut random = Random::new(20);
    let refusals =
        |proxy: &Proxy| proxy.metrics().sum("portcullis_config_reloads_total", &[("result", "refused")]);
    let mut refused = 0.0;
    for round in 0..50 {
        let mut bytes = good.clone().into_bytes();
        match round {
            0 => bytes.clear(),
            1 => bytes = vec![b'#'; 17 * 1024 * 1024],
            2 => bytes = format!("{good}{}", "[[route]]\nsni = 'a.test'\nto = 'x:1'\n".repeat(20_000)).into(),
            _ => {
                for _ in 0..3 {
                    let at = random.below(bytes.len());
                    bytes[at] = b"\0\xff=[\"'\n{"[random.below(8)];
                }
                bytes.extend(b"\nnot = toml =");
            }
        }
        std::fs::write(proxy.file(), &bytes).unwrap();
        proxy.process.signal(Signal::HUP);
        refused += 1.0;
        assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"), "round {round}");
        wait_for("the refusal", || refusals(&proxy) > refused - 0.5);
    }
    proxy.assert_sound();
}

/// Who asks during the drain is told so, and does not wait for its end.
#[test]
fn a_reload_during_the_drain_is_refused_at_once() {
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&config(ANY, "a.test", &backend));
    let open = held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"));
    proxy.process.signal(Signal::TERM);
    until("draining", SOON, || proxy.logged("draining").pop());
    let (took, refused) = timed(|| proxy.reload());
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("about to end"), "{}", refused.stderr);
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(open);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

/// The reader of the log has gone: opening it waits, and everything else goes on.
#[test]
fn a_log_that_cannot_be_opened_now_holds_up_nothing_else() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("access.pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let mut proxy = Proxy::start(&config(ANY, "a.test", &backend));
    proxy.write(&format!("access_log = '{}'\n{}", pipe.display(), config(ANY, "b.test", &backend)));
    proxy.process.signal(Signal::HUP);
    until("the reload", SOON, || proxy.logged("reading the configuration again").pop());
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    assert_eq!(proxy.ask("/readyz").status, 200);
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
}

#[test]
fn names_of_backends_are_never_without_addresses() {
    let backend = Backend::tagged("a");
    let mut dns = Named::start(&[("app", Ipv4Addr::LOCALHOST)]);
    let text = |round: usize| {
        format!(
            "dns = {{ servers = '{}', timeout = '1s', max_ttl = '1s' }}\n{}",
            dns.addr(),
            config(ANY, "a.test", format!("app.backend.test:{}", backend.addr().port()))
        ) + &format!("[[route]]\nsni = 'round{round}.test'\nreject = 'close'\n")
    };
    let texts = [text(1), text(2)];
    let proxy = Proxy::start(&texts[0]);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    // The nameserver knows nothing any more.
    dns.replace(&[]);
    proxy.reconfigure(&texts[1]);
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
}

/// Nobody says a word: the files are followed, and a bad one is told of once.
#[test]
fn files_that_change_are_followed_on_request() {
    let (a, b) = (Backend::tagged("a"), Backend::tagged("b"));
    let follow = |name: &str, to: &Backend| format!("reload_on = 'change'\n{}", config(ANY, name, to));
    let proxy = Proxy::start(&follow("a.test", &a));
    proxy.write(&follow("b.test", &b));
    wait_for("the new route", || probe(proxy.addr(), &to("b.test")) == served("b"));
    proxy.write("listen = 5\n");
    wait_for("a word about it", || !proxy.logged("the configuration stays as it was").is_empty());
    proxy.write(&config(ANY, "a.test", &a));
    wait_for("the last one that is followed", || probe(proxy.addr(), &to("a.test")) == served("a"));
    assert_eq!(proxy.logged("the configuration stays as it was").len(), 1);
}

#[test]
fn what_a_reload_would_change_is_told_before() {
    let backend = Backend::tagged("a");
    let old = config(ANY, "a.test", &backend);
    let proxy = Proxy::start(&old);
    let admin = proxy.admin().to_string();
    let new = format!("workers = 7\ntimeouts = {{ idle = '7m' }}\n{}", config(ANY, "b.test", &backend));
    let told = on_config("diff", &new, &["--admin", &admin]);
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    for line in [
        "~ timeouts.idle = \"5m\" -> \"7m\"",
        "~ workers = \"auto\" -> 7  (needs a restart)",
        "+ route[b.test].sni = \"b.test\"",
        "- route[a.test].sni = \"a.test\"",
    ] {
        assert!(told.stdout.contains(line), "{line}: {}", told.stdout);
    }
    let same = on_file("diff", &proxy.file(), &["--admin", &admin]);
    assert_eq!(same.stdout, "no difference\n");
    let files = on_config("diff", &new, &["--against", proxy.file().to_str().unwrap()]);
    assert_eq!(files.stdout, told.stdout);
    // The reload tells the same, and goes on telling what waits for a restart.
    for _ in 0..2 {
        let done = proxy.reconfigure(&new);
        assert!(done.stdout.contains("workers = \"auto\" -> 7  (needs a restart)"), "{}", done.stdout);
    }
    assert_eq!(on_config("diff", "listen = 5\n", &["--admin", &admin]).code, Some(78));
}

#[test]
fn nobody_reloads_from_a_page_of_another_origin() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&config(ANY, "a.test", &backend));
    let ask = |head: &str| {
        let mut stream = connect(proxy.admin());
        let request =
            format!("POST /api/v1/reload HTTP/1.1\r\n{head}Connection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8(read_to_end(&mut stream, SOON).bytes).unwrap()
    };
    assert!(ask("Host: 127.0.0.1:9901\r\n").starts_with("HTTP/1.1 200"));
    for head in ["Host: evil.test\r\n", "Host: 127.0.0.1\r\nOrigin: http://evil.test\r\n"] {
        assert!(ask(head).starts_with("HTTP/1.1 403"), "{head}");
    }
    assert_eq!(proxy.api("GET", "reload", "").0, 405);
}

#[test]
fn a_log_that_was_moved_away_is_opened_again() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let (log, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let text = format!("access_log = '{}'\n{}", log.display(), config(ANY, "a.test", &backend));
    let proxy = Proxy::start(&text);
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    drop(held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test")));
    wait_for("its line", || lines(&log) == 1);
    std::fs::rename(&log, &moved).unwrap();
    proxy.process.signal(Signal::USR1);
    until("the log to be opened", SOON, || proxy.logged("the access log is opened again").pop());
    drop(held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test")));
    wait_for("the next line in the new file", || lines(&log) == 1);
    assert_eq!(lines(&moved), 1);
    // And a reload may send it elsewhere.
    let elsewhere = dir.path().join("other.log");
    proxy.reconfigure(&text.replace("access.log", "other.log"));
    drop(held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test")));
    wait_for("the line in the other file", || lines(&elsewhere) == 1);
}
