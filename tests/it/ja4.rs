//! Fingerprints of real clients: in the log, and as what a route goes by.

use std::process::Command;

use crate::support::SOON;
use crate::support::backend::{Backend, Recorder};
use crate::support::client::{Outcome, exchange, loopback, probe, probe_from, served};
use crate::support::hello::{Keys, in_records, real, to};
use crate::support::process::finish;
use crate::support::programs::{Nginx, curl, s_client};
use crate::support::proxy::{Proxy, on_config};
use crate::support::until;

/// A second opinion: the fingerprint of a hello in one record, written from the specification in another language.
const ORACLE: &str = r"
import hashlib, re, sys
hello = bytes.fromhex(sys.stdin.read())[5:]
at = 4
def take(n):
    global at
    at += n
    return hello[at - n:at]
def number(n): return int.from_bytes(take(n), 'big')
def words(data): return [data[i:i + 2].hex() for i in range(0, len(data), 2)]
def plain(list): return [one for one in list if not re.fullmatch(r'(.a)\1', one)]
def digest(text): return hashlib.sha256(text.encode()).hexdigest()[:12] if text else '0' * 12
version, _, _ = take(2).hex(), take(32), take(number(1))
ciphers, _ = plain(words(take(number(2)))), take(number(1))
extensions, end = {}, number(2) + at
while at < end:
    kind = take(2).hex()
    extensions[kind] = take(number(2))
version = max(plain(words(extensions['002b'][1:]))) if '002b' in extensions else version
protocols = extensions.get('0010', b'')
first = protocols[3:3 + protocols[2]].decode() if protocols else '00'
kinds = plain(extensions)
hashed = ','.join(sorted(kind for kind in kinds if kind not in ('0000', '0010')))
signatures = ','.join(plain(words(extensions.get('000d', b'')[2:])))
print('t%s%s%02d%02d%s_%s_%s' % (
    {'0304': '13', '0303': '12'}[version], 'd' if '0000' in extensions else 'i', min(len(ciphers), 99),
    min(len(kinds), 99), first[0] + first[-1], digest(','.join(sorted(ciphers))),
    digest(hashed + '_' + signatures if signatures else hashed)))
";

fn oracle(hello: &[u8]) -> String {
    let hex: String = hello.iter().map(|byte| format!("{byte:02x}")).collect();
    let said = finish(Command::new("python3").args(["-c", ORACLE]), "python3", &hex);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    said.stdout.trim().to_owned()
}

/// The fingerprint in a line of the log, counted from nought.
fn logged(proxy: &Proxy, number: usize) -> String {
    let line = until("a line of the access log", SOON, || proxy.access_log().get(number).cloned());
    line["ja4"].as_str().unwrap_or_else(|| panic!("no fingerprint: {line}")).to_owned()
}

#[test]
fn the_log_tells_the_fingerprints_of_real_clients() {
    let recorder = Recorder::new("r");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\naccess_log = {{ ja4 = true }}\n[[route]]\nsni = '*'\nto = '{}'\n",
        recorder.backend
    ));
    // The backend's answer is no TLS, so that the clients give up after their hello; they want some authority to trust.
    let authority = tempfile::NamedTempFile::new().unwrap();
    let certificate = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    std::fs::write(&authority, certificate.cert.pem()).unwrap();
    let clients: [&dyn Fn(); 4] = [
        &|| drop(s_client("a.test", proxy.addr(), authority.path(), "-tls1_3")),
        &|| drop(s_client("a.test", proxy.addr(), authority.path(), "-tls1_2")),
        &|| drop(curl("a.test", proxy.addr(), authority.path(), &[])),
        &|| drop(exchange(proxy.addr(), &[&real(Some("a.test"), &["http/1.1"], Keys::PostQuantum)])),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (number, client) in clients.iter().enumerate() {
        client();
        let ja4 = logged(&proxy, number);
        let received = until("the hello", SOON, || recorder.received().get(number).cloned());
        let record = 5 + usize::from(u16::from_be_bytes([received[3], received[4]]));
        assert_eq!(ja4, oracle(&received[..record]));
        seen.insert(ja4);
    }
    assert_eq!(seen.len(), clients.len(), "four clients, four fingerprints: {seen:?}");
}

#[test]
fn records_do_not_change_a_fingerprint_and_what_is_not_tls_has_none() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\naccess_log = {{ ja4 = true }}\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n[[route]]\nprotocol = 'any'\nto = '{backend}'\n"
    ));
    let hello = real(Some("a.test"), &["h2"], Keys::PostQuantum);
    for split in [hello.clone(), in_records(&hello, 7)] {
        exchange(proxy.addr(), &[&split]);
    }
    assert_eq!(logged(&proxy, 0), oracle(&hello));
    assert_eq!(logged(&proxy, 1), oracle(&hello));
    exchange(proxy.addr(), &[b"SSH-2.0-test\r\n"]);
    let line = proxy.access_line("the SSH client", |line| line["protocol"] == "ssh");
    assert_eq!(line.get("ja4"), None, "{line}");
}

#[test]
fn a_route_refuses_one_client_by_its_fingerprint_and_lets_another_through() {
    let site = Nginx::start(&["a.test"]);
    let certificate = site.certificate("a.test");
    let sites = format!("[[route]]\nsni = 'a.test'\nto = '{}'\n", site.addr());
    let asking = Proxy::start(&format!("listen = '127.0.0.1:0'\naccess_log = {{ ja4 = true }}\n{sites}"));
    let s_client = |proxy: &Proxy| s_client("a.test", proxy.addr(), &certificate, "-tls1_3");
    let curl = |proxy: &Proxy| curl("a.test", proxy.addr(), &certificate, &[]);
    assert_eq!(s_client(&asking).code, Some(0));
    let ja4 = logged(&asking, 0);
    for pattern in [ja4.clone(), format!("{}*", &ja4[..20])] {
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\n{sites}\
             [[route]]\nname = 'unwanted'\nsni = ['a.test', '*']\nja4 = '{pattern}'\nreject = 'alert'\n"
        ));
        let refused = s_client(&proxy);
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert!(refused.stderr.contains("unrecognized name"), "{refused:?}");
        let served = curl(&proxy);
        assert_eq!((served.code, served.stdout.as_str()), (Some(0), "page of a.test"), "{}", served.stderr);
        let line = proxy.access_line("the refusal", |line| line["action"] == "reject");
        assert_eq!((&line["route"], &line["reason"]), (&"unwanted".into(), &"rejected".into()), "{line}");
        assert_eq!(line.get("ja4"), None, "not asked for: {line}");
    }
}

#[test]
fn a_route_sends_clients_by_their_fingerprint() {
    let (old, new) = (Backend::tagged("old"), Backend::tagged("new"));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nja4 = 't13d*'\nto = '{new}'\n\
         [[route]]\nsni = 'a.test'\nja4 = 't13i*'\nto = '{old}'\n"
    ));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("new"));
    let mut old_hello = to("a.test");
    // supported_versions as another kind, which no one knows: the hello is one of TLS 1.2.
    let at = old_hello.windows(4).position(|bytes| bytes[..2] == [0, 43] && bytes[2] == 0).unwrap();
    old_hello[at + 1] = 99;
    assert_eq!(probe(proxy.addr(), &old_hello), Outcome::Alert(112));
}

#[test]
fn clients_of_a_fingerprint_are_limited_together() {
    let backend = Backend::tagged("a");
    let alpn = real(Some("a.test"), &["h2"], Keys::Classic);
    let ja4 = oracle(&alpn);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[limit]]\nname = 'bots'\nper = 'all'\nrate = '2/h'\nroute = 'bots'\n\
         [[route]]\nname = 'bots'\nsni = 'a.test'\nja4 = '{ja4}'\nto = '{backend}'\n\
         [[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    for last in 1..=2 {
        assert_eq!(probe_from(loopback(last), proxy.addr(), &alpn), served("a"));
    }
    assert_eq!(probe_from(loopback(3), proxy.addr(), &alpn), Outcome::Reset);
    assert_eq!(probe_from(loopback(3), proxy.addr(), &to("a.test")), served("a"), "another fingerprint");
}

#[test]
fn explain_and_tests_make_up_a_fingerprint() {
    const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";
    let config = format!(
        "listen = '127.0.0.1:0'\n[[route]]\nname = 'app'\nsni = 'a.test'\nto = '127.0.0.1:9001'\n\
         [[route]]\nname = 'unwanted'\nsni = 'a.test'\nja4 = ['t12*', '{JA4}']\nreject = 'drop'\n\
         [[test]]\nhello = {{ sni = 'a.test', ja4 = '{JA4}' }}\nexpect = {{ route = 'unwanted' }}\n\
         [[test]]\nhello = {{ sni = 'a.test' }}\nexpect = {{ route = 'app' }}\n"
    );
    let checked = on_config("check", &config, &["--effective"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for part in ["2 of 2 tests", "route[unwanted].ja4", "ja4 t12* or t13d1516h2_", "access_log.ja4 = false"] {
        assert!(checked.stdout.contains(part), "{part} in {}", checked.stdout);
    }
    let with = on_config("explain", &config, &["--sni", "a.test", "--ja4", JA4]).stdout;
    assert!(with.contains(JA4) && with.contains("by route `unwanted`"), "{with}");
    let without = on_config("explain", &config, &["--sni", "a.test"]).stdout;
    assert!(without.contains("by route `app`"), "{without}");
    let unwanted = without.lines().find(|line| line.contains("`unwanted`")).unwrap();
    assert!(unwanted.contains("fingerprint (JA4) is none of its"), "{unwanted}");
    let bad = on_config("explain", &config, &["--sni", "a.test", "--ja4", "t13d"]);
    assert!(bad.code == Some(2) && bad.stderr.contains("4 characters of 36"), "{bad:?}");
}
