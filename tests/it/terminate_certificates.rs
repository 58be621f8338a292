//! Certificates of a running proxy: whose is served, what is done with bad ones, and what takes the place of which (T6, T7, T13).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use rustls::AlertDescription;

use crate::support::authority::{
    Authority, DAY, Key, Pair, alert, converse, der, openssl, params, put, served_certificate, shake,
};
use crate::support::backend::Backend;
use crate::support::client::timed;
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, until, wait_for};

const ERRORS: &str = "portcullis_tls_certificate_errors_total";
const ENDS: &str = "portcullis_tls_certificate_not_after_timestamp_seconds";
/// How long files may have changed before it is seen: it is looked every five seconds.
const SEEN: Duration = Duration::from_secs(30);

fn proxy_for(authority: &Authority, sni: &str, to: &Backend) -> Proxy {
    Proxy::start(&format!(
        "{}{UNLIMITED}[[route]]\nsni = {sni}\ntls = 'files'\nto = '{to}'\n",
        authority.top()
    ))
}

#[test]
fn nobody_gets_the_certificate_of_another_name() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    authority.server("a", &["a.test"], Key::Ecdsa);
    authority.server("wild", &["*.wild.test"], Key::Ecdsa);
    let proxy = proxy_for(&authority, "['a.test', '*.a.test', '*.wild.test']", &backend);
    let table = [
        ("a.test", None),
        ("A.TEST", None),
        ("x.wild.test", None),
        // There are routes for these, but no certificates: a wildcard is of one label.
        ("x.a.test", Some("no_certificate")),
        ("x.y.wild.test", Some("no_certificate")),
        ("other.test", Some("unknown_sni")),
    ];
    for (name, reason) in table {
        let done = openssl(proxy.addr(), Some(name), &authority.ca(), &[]);
        let Some(reason) = reason else {
            assert!(done.stdout.contains("tag:a"), "{name}: {}", done.stderr);
            continue;
        };
        assert!(done.stderr.contains("SSL alert number 112"), "{name}: {}", done.stderr);
        assert!(done.stdout.contains("no peer certificate available"), "{name}: {}", done.stdout);
        let line = proxy.access_line(name, |line| line["sni"] == name);
        assert_eq!((&line["reason"], &line["cause"]), (&reason.into(), &"policy".into()), "{name}");
    }
    let nobody = openssl(proxy.addr(), None, &authority.ca(), &[]);
    assert!(nobody.stdout.contains("no peer certificate available"), "{}", nobody.stdout);
    assert_eq!(backend.hits(), 3);
    proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", "no_certificate")], 2.0);
}

#[test]
fn a_new_file_is_served_without_a_reload() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    let [first, second] = [(); 2].map(|()| authority.pair(&["a.test"], Key::Ecdsa));
    authority.put("a", &first);
    let proxy = proxy_for(&authority, "['a.test', 'b.test']", &backend);
    let config = Arc::new(authority.config());
    let served = |name: &str| served_certificate(proxy.addr(), &config, name);
    assert_eq!(served("a.test"), der(&first));
    authority.put("a", &second);
    // Another name comes with a file of its own.
    let other = authority.pair(&["b.test"], Key::Rsa);
    authority.put("b", &other);
    until("the new certificate", SEEN, || (served("a.test") == der(&second)).then_some(()));
    assert_eq!(served("b.test"), der(&other));
    // And goes with it.
    std::fs::remove_file(authority.certs().join("b.pem")).unwrap();
    until("it to be gone", SEEN, || shake(proxy.addr(), &config, "b.test").err());
    let gone = shake(proxy.addr(), &config, "b.test").unwrap_err();
    assert_eq!(alert(&gone), Some(AlertDescription::UnrecognisedName));
    assert_eq!(served("a.test"), der(&second));
}

#[test]
fn a_bad_file_leaves_the_certificate_that_was_good() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    let [first, second] = [(); 2].map(|()| authority.pair(&["a.test"], Key::Ecdsa));
    authority.put("a", &first);
    let proxy = proxy_for(&authority, "'a.test'", &backend);
    let config = Arc::new(authority.config());
    let file = authority.certs().join("a.pem");
    let mixed = Pair { certificate: second.certificate.clone(), key: first.key.clone() };
    let bad = [
        "no certificate".to_owned(),
        String::new(),
        // The key of another, none, and one that was cut off.
        format!("{}{}", mixed.certificate, mixed.key),
        first.certificate.clone(),
        format!("{}{}", second.certificate, &second.key[..60]),
    ];
    for (index, bad) in bad.iter().enumerate() {
        put(&file, bad);
        // What has been told once is not told again: each of them is another error, or the same.
        assert_eq!(proxy.reload().code, Some(0), "{index}");
        assert_eq!(served_certificate(proxy.addr(), &config, "a.test"), der(&first), "{index}");
    }
    let errors = proxy.metrics().sum(ERRORS, &[]);
    assert!((1.0..=5.0).contains(&errors), "{errors}");
    assert!(proxy.process.stderr.contains("certificate not read"), "{:?}", proxy.process.stderr.all());
    authority.put("a", &second);
    assert_eq!(proxy.reload().code, Some(0));
    assert_eq!(served_certificate(proxy.addr(), &config, "a.test"), der(&second));
}

/// As certbot and Kubernetes do it: a link is turned, and with it both files at once.
#[test]
fn a_link_that_is_turned_leads_to_the_new_certificate() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, pair: &Pair| {
        let at = folder.path().join(name);
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("tls.crt"), &pair.certificate).unwrap();
        std::fs::write(at.join("tls.key"), &pair.key).unwrap();
        at
    };
    let turn = |to: &Path| {
        let new = folder.path().join("..data.new");
        std::os::unix::fs::symlink(to, &new).unwrap();
        std::fs::rename(new, folder.path().join("..data")).unwrap();
    };
    let [first, second] = [(); 2].map(|()| authority.pair(&["a.test"], Key::Ecdsa));
    turn(&version("..1", &first));
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), folder.path().join(file)).unwrap();
    }
    let at = folder.path().display();
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n\
         certificates = {{ certificate = '{at}/tls.crt', key = '{at}/tls.key' }}\n\
         [[route]]\nsni = 'a.test'\ntls = 'files'\nto = '{backend}'\n\
         [[route]]\nsni = 'b.test'\ntls = {{ certificates = '{at}' }}\nto = '{backend}'\n\
         [[route]]\nsni = 'c.test'\nto = '{backend}'\n"
    ));
    let config = Arc::new(authority.config());
    assert_eq!(served_certificate(proxy.addr(), &config, "a.test"), der(&first));
    turn(&version("..2", &second));
    until("the new certificate", SEEN, || {
        (served_certificate(proxy.addr(), &config, "a.test") == der(&second)).then_some(())
    });
    assert!(!proxy.metrics().has(ERRORS) || proxy.metrics().sum(ERRORS, &[]) < 0.5);
}

/// T6: whatever is written, however often, no handshake fails.
#[test]
fn good_and_bad_files_come_and_go_while_handshakes_go_on() {
    const TURNS: usize = 100;
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    let pairs = [(); 4].map(|()| authority.pair(&["a.test"], Key::Ecdsa));
    authority.put("a", &pairs[0]);
    let proxy = proxy_for(&authority, "'a.test'", &backend);
    let config = Arc::new(authority.config());
    let file = authority.certs().join("a.pem");
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let mut stream = shake(proxy.addr(), &config, "a.test").expect("a handshake");
                    assert_eq!(converse(&mut stream, "hello\n").unwrap(), "tag:a\nhello\n");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for turn in 1..=TURNS {
            let pair = &pairs[turn % pairs.len()];
            if turn % 2 == 0 {
                // Half a file, as editors leave it that write in place; then nothing of it.
                let whole = format!("{}{}", pair.certificate, pair.key);
                std::fs::write(&file, &whole[..whole.len() / (1 + turn % 5)]).unwrap();
                if turn % 8 == 0 {
                    put(&file, &format!("nothing {turn}"));
                }
            } else {
                authority.put("a", pair);
            }
            let (status, answer) = proxy.api("POST", "reload", "");
            assert_eq!(status, 200, "{answer}");
        }
        let done = count.load(Ordering::Relaxed);
        wait_for("some more", || count.load(Ordering::Relaxed) > done + 5);
        over.store(true, Ordering::SeqCst);
    });
    let last = &pairs[(TURNS - 1) % pairs.len()];
    authority.put("a", last);
    proxy.process.signal(Signal::HUP);
    wait_for("the last one", || served_certificate(proxy.addr(), &config, "a.test") == der(last));
    assert!(proxy.metrics().sum(ERRORS, &[]) >= 10.0);
    println!("{} handshakes during {TURNS} turns", count.into_inner());
}

/// T7: when each ends is told, and of those that have ended or not begun.
#[test]
fn certificates_that_are_not_valid_are_told_of() {
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    let now = SystemTime::now();
    let ends = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as f64;
    let dated = |name: &str, from: SystemTime, to: SystemTime| {
        let mut params = params(&[name]);
        (params.not_before, params.not_after) = (from.into(), to.into());
        authority.put(name, &authority.issue(params, &Key::Ecdsa.generate()));
        (name.to_owned(), ends(to))
    };
    let all = [
        dated("good.test", now - DAY, now + 90 * DAY),
        dated("near.test", now - 80 * DAY, now + 2 * DAY),
        dated("over.test", now - 30 * DAY, now - DAY),
        dated("early.test", now + DAY, now + 30 * DAY),
    ];
    let proxy = proxy_for(&authority, "'*.test'", &backend);
    for (name, end) in &all {
        let told = proxy.metrics().sum(ENDS, &[("certificate", name)]);
        assert!((told - end).abs() <= 1.0, "{name}: {told}, not {end}");
    }
    for (name, words) in
        [("near.test", "about to end"), ("over.test", "has expired"), ("early.test", "becomes valid only")]
    {
        let lines = proxy.process.stderr.all();
        let told = |line: &&String| line.contains(name) && line.contains(words);
        assert_eq!(lines.iter().filter(told).count(), 1, "{name}: {lines:#?}");
    }
    assert!(!proxy.process.stderr.contains("good.test"), "{:?}", proxy.process.stderr.all());
    // They are served all the same: whom it matters sees it.
    for (name, words) in [("over.test", "certificate has expired"), ("early.test", "not yet valid")] {
        let done = openssl(proxy.addr(), Some(name), &authority.ca(), &[]);
        assert!(done.stderr.contains(words) || done.stdout.contains(words), "{name}: {}", done.stderr);
    }
}

/// What is told counts the certificates of all routes, each once.
#[test]
fn certificates_of_several_places_are_counted_together() {
    let (authority, other, backend) = (Authority::new(), Authority::new(), Backend::of_lines("a"));
    authority.server("a", &["a.test"], Key::Ecdsa);
    authority.server("b", &["b.test"], Key::Ecdsa);
    other.server("c", &["c.test"], Key::Ecdsa);
    let all = |routes: &str| format!("{}{routes}", authority.top());
    let first = format!("[[route]]\nsni = ['a.test', 'b.test']\ntls = 'files'\nto = '{backend}'\n");
    let second = format!(
        "[[route]]\nsni = 'c.test'\ntls = {{ certificates = '{}' }}\nto = '{backend}'\n",
        other.certs().display()
    );
    let proxy = Proxy::start(&all(&format!("{first}{second}")));
    let told = |name: &str| proxy.metrics().sum(ENDS, &[("certificate", name)]);
    proxy.wait_metric("portcullis_tls_certificates", &[], 3.0);
    for name in ["a.test", "b.test", "c.test"] {
        assert!(told(name) > 1e9, "{name}: {}", told(name));
    }
    for (config, ca) in [(authority.config(), "a.test"), (other.config(), "c.test")] {
        shake(proxy.addr(), &Arc::new(config), ca).unwrap();
    }
    // What nobody uses any more is not told of.
    proxy.reconfigure(&all(&first));
    proxy.wait_metric("portcullis_tls_certificates", &[], 2.0);
    wait_for("the series to end", || told("c.test").is_nan());
    assert!(told("a.test") > 1e9);
}

/// T13: names are looked up, not looked for; keys are made ready when they are wanted.
#[test]
fn two_thousand_names_cost_little() {
    const NAMES: usize = 2000;
    let (authority, backend) = (Authority::new(), Backend::of_lines("a"));
    authority.server("0", &["0.test"], Key::Ecdsa);
    let config = Arc::new(authority.config());
    let start = || timed(|| proxy_for(&authority, "'*.test'", &backend));
    let (_, few) = start();
    let before = few.process.rss();
    drop(few);
    for number in 1..NAMES {
        authority.server(&number.to_string(), &[&format!("{number}.test")], Key::Ecdsa);
    }
    let (took, proxy) = start();
    let each = proxy.process.rss().saturating_sub(before) / NAMES;
    println!("{NAMES} certificates: started after {took:?}, {each} bytes each");
    assert!(took < SOON && each < 32 * 1024, "{took:?}, {each} bytes each");
    for number in [0, 1, NAMES / 2, NAMES - 1] {
        let name = format!("{number}.test");
        let mut stream = shake(proxy.addr(), &config, &name).unwrap();
        assert_eq!(converse(&mut stream, "hello\n").unwrap(), "tag:a\nhello\n");
    }
    let nobody = shake(proxy.addr(), &config, "nobody.test").unwrap_err();
    assert_eq!(alert(&nobody), Some(AlertDescription::UnrecognisedName));
}
