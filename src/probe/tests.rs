use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::lint::{DAY, Key};
use super::watch::{News, compare};
use super::*;
use crate::config::Config;
use crate::net::{ProxyHeader, UpstreamAddr};
use crate::tls::inspect::{Agreed, Authorities, Certificate, CertifiedName, Trust};
use crate::upstream::Target;

const NOW: i64 = 1_800_000_000;

/// What a round over `toml` is about, whose backends are addresses.
fn scope(toml: &str) -> Scope {
    let text = format!("listen = ':443'\n{toml}");
    let config = Config::parse(Path::new("test.toml"), &text).unwrap_or_else(|errors| panic!("{errors:?}"));
    Scope::with(&config, |passthrough| {
        let address = |address: &UpstreamAddr| match address {
            UpstreamAddr::Ip(socket) => Some((address.to_string().into(), Target::Tcp(*socket))),
            _ => None,
        };
        passthrough.upstream.addresses().filter_map(address).collect()
    })
}

fn facts(names: &str, alpn: &str) -> Facts {
    Facts {
        certificate: Some(Certificate {
            names: names.split_whitespace().filter_map(CertifiedName::parse).collect(),
            not_after: NOW + 90 * DAY,
            issuer: "An Authority".into(),
        }),
        agreed: Agreed {
            version: "1.3",
            group: "x25519mlkem768",
            post_quantum: true,
            alpn: Some(alpn.as_bytes().into()),
        },
        trust: Trust::Trusted,
    }
}

/// What is seen where backends, by their last byte, have a certificate for `names` and choose a protocol.
fn seen(scope: &Scope, backends: &[(u8, &str, &str)]) -> Vec<Seen> {
    let outcome = |aim: &Aim| {
        let last = |last: u8| format!("10.0.0.{last}:443");
        let found = backends.iter().find(|(number, ..)| last(*number) == *aim.backend);
        found.map_or(Err(Failure::Other("no one there".into())), |(_, names, alpn)| Ok(facts(names, alpn)))
    };
    let aims = scope.plan.aims.iter();
    aims.map(|aim| Seen { outcome: outcome(aim), aim: aim.clone() }).collect()
}

/// Pairs of routes with coalescing and the names concerned, as in `a>b: *.test`.
fn pairs(findings: &Findings) -> Vec<String> {
    let pair = |finding: &Finding| match &finding.what {
        What::Coalescing { other, names, .. } => {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            Some(format!("{}>{}: {}", finding.route.name, other.name, names.join(", ")))
        }
        _ => None,
    };
    findings.all.iter().filter_map(pair).collect()
}

/// A route by the name `name` for `sni` to the backend whose last byte is `to`.
fn route(name: &str, sni: &str, to: u8, more: &str) -> String {
    format!("[[route]]\nname = '{name}'\nsni = '{sni}'\nto = '10.0.0.{to}:443'\n{more}\n")
}

#[test]
fn which_certificates_draw_requests_for_another_route() {
    let two = route("a", "a.test", 1, "") + &route("b", "b.test", 2, "");
    let wild = route("a", "*.a.test", 1, "") + &route("b", "b.a.test", 2, "");
    let deep = route("a", "a.test", 1, "") + &route("b", "*.b.test", 2, "");
    let any = route("a", "a.test", 1, "") + &route("b", "*", 2, "");
    type Row<'a> = (&'a str, &'a [(u8, &'a str, &'a str)], &'a [&'a str]);
    let table: [Row<'_>; 17] = [
        (&two, &[(1, "a.test", "h2"), (2, "b.test", "h2")], &[]),
        (
            &two,
            &[(1, "*.test", "h2"), (2, "*.test", "h2")],
            &["a>b: b.test (by *.test)", "b>a: a.test (by *.test)"],
        ),
        // Whoever has HTTP/2 draws requests, whatever the other one speaks.
        (&two, &[(1, "*.test", "h2"), (2, "*.test", "http/1.1")], &["a>b: b.test (by *.test)"]),
        (&two, &[(1, "*.test", "http/1.1"), (2, "*.test", "http/1.1")], &[]),
        (&two, &[(1, "a.test b.test", "h2"), (2, "b.test", "h2")], &["a>b: b.test"]),
        (&two, &[(1, "a.test c.test", "h2"), (2, "b.test", "h2")], &[]),
        (&two, &[(1, "a.test *.b.test", "h2"), (2, "b.test", "h2")], &[]),
        // Nothing is known of the other one, and nothing needs to be.
        (&two, &[(1, "*.test", "h2")], &["a>b: b.test (by *.test)"]),
        // The exact name goes before the wildcard.
        (&wild, &[(1, "*.a.test", "h2"), (2, "b.a.test", "h2")], &["a>b: b.a.test (by *.a.test)"]),
        (&wild, &[(1, "c.a.test", "h2"), (2, "*.a.test", "h2")], &["b>a: *.a.test"]),
        (&wild, &[(1, "c.a.test", "h2"), (2, "b.a.test", "h2")], &[]),
        // A route takes any number of labels, a certificate one.
        (&deep, &[(1, "a.test *.b.test", "h2"), (2, "x", "h2")], &["a>b: *.b.test"]),
        (&deep, &[(1, "a.test *.c.b.test", "h2"), (2, "x", "h2")], &["a>b: *.c.b.test"]),
        (&deep, &[(1, "a.test x.y.b.test", "h2"), (2, "x", "h2")], &["a>b: x.y.b.test"]),
        (&deep, &[(1, "a.test *.test", "h2"), (2, "x", "h2")], &[]),
        (&any, &[(1, "a.test www.a.test", "h2"), (2, "x", "h2")], &["a>b: www.a.test"]),
        (&any, &[(1, "a.test", "h2")], &[]),
    ];
    for (toml, backends, expected) in table {
        let scope = scope(toml);
        let found = lint(&scope, &seen(&scope, backends), NOW);
        assert_eq!(pairs(&found), expected, "{toml} {backends:?}");
    }
}

#[test]
fn routes_that_may_share_a_certificate() {
    let a = |more| route("a", "a.test", 1, more);
    let b = |to, more| route("b", "b.test", to, more);
    let listeners = "[[listener]]\nname = 'other'\nbind = ':8443'\n";
    let upstream = "[[upstream]]\nname = 'u'\nto = ['10.0.0.1:443', '10.0.0.2:443']\n";
    let led = |name| format!("[[route]]\nname = '{name}'\nsni = '{name}.test'\nupstream = 'u'\n");
    let both = ["a>b: b.test (by *.test)", "b>a: a.test (by *.test)"];
    let table: [(String, &[&str]); 12] = [
        (a("") + &b(2, ""), &both),
        (a("") + &b(1, ""), &[]),
        (upstream.to_owned() + &led("a") + &led("b"), &[]),
        // One of two backends serves both.
        (upstream.to_owned() + &led("a") + &b(1, ""), &both[..1]),
        (listeners.to_owned() + &a("listener = 'default'") + &b(2, "listener = 'other'"), &[]),
        (listeners.to_owned() + &a("listener = 'default'") + &b(2, ""), &both),
        // Clients of some networks, or all: who asks at one route by name may be meant at the other.
        (a("") + &b(2, "from = '10.0.0.0/8'"), &both),
        (a("") + &route("b", "a.test", 2, "from = '10.0.0.0/8'"), &[]),
        (a("") + &b(2, "alpn = 'acme-tls/1'"), &[]),
        (a("") + &b(2, "protocol = 'smtp'"), &[]),
        (a("") + "[[route]]\nname = 'b'\nsni = 'b.test'\nreject = 'close'\n", &[]),
        // Who is not offered HTTP/2 draws nothing.
        (a("alpn = 'http/1.1'") + &b(2, ""), &both[1..]),
    ];
    for (toml, expected) in table {
        let scope = scope(&toml);
        let mut seen = seen(&scope, &[(1, "*.test", "h2"), (2, "*.test", "h2")]);
        for seen in &mut seen {
            // Only what is offered can be chosen.
            if let (Ok(facts), false) = (&mut seen.outcome, seen.aim.alpn.iter().any(|alpn| **alpn == *b"h2"))
            {
                facts.agreed.alpn = None;
            }
        }
        let found = lint(&scope, &seen, NOW);
        assert_eq!(pairs(&found), expected, "{toml}");
    }
}

#[test]
fn one_certificate_for_hundreds_is_told_in_bounds() {
    let routes: String = (0..100).map(|n| route(&format!("r{n}"), &format!("n{n}.test"), n, "")).collect();
    let scope = scope(&routes);
    let backends: Vec<_> = (0..100).map(|n| (n, "*.test", "h2")).collect();
    let found = lint(&scope, &seen(&scope, &backends), NOW);
    assert_eq!((pairs(&found).len(), found.more), (200, 100 * 99 - 200));
    let names: String = (0..100).map(|n| format!("'n{n}.test',")).collect();
    let scope = self::scope(&format!(
        "[[route]]\nname = 'all'\nsni = [{names}]\nto = '10.0.0.1:443'\n{}",
        route("x", "x.test", 2, "")
    ));
    let found = lint(&scope, &seen(&scope, &[(2, "*.test", "h2")]), NOW);
    assert_eq!(pairs(&found)[0].matches("test").count(), 8 + 1);
}

#[test]
fn what_is_wrong_with_one_backend() {
    let kinds = |toml: &str, outcome: Result<Facts, Failure>| -> Vec<&str> {
        let scope = scope(toml);
        let seen = |aim: &Aim| Seen { aim: aim.clone(), outcome: outcome.clone() };
        let seen: Vec<_> = scope.plan.aims.iter().map(seen).collect();
        assert!(!seen.is_empty(), "{toml}");
        lint(&scope, &seen, NOW).all.iter().map(|finding| finding.what.kind()).collect()
    };
    let exact = route("a", "a.test", 1, "");
    let until = |end: i64| {
        let mut facts = facts("a.test", "h2");
        facts.certificate.iter_mut().for_each(|certificate| certificate.not_after = end);
        Ok(facts)
    };
    assert_eq!(kinds(&exact, until(NOW + 14 * DAY)), [""; 0]);
    assert_eq!(kinds(&exact, until(NOW + 14 * DAY - 1)), ["expires"]);
    assert_eq!(kinds(&exact, until(NOW + 1)), ["expires"]);
    assert_eq!(kinds(&exact, until(NOW)), ["expired"]);
    assert_eq!(kinds(&exact, Ok(facts("b.test", "h2"))), ["other_name"]);
    assert_eq!(kinds(&exact, Err(Failure::OldTls)), ["old_tls"]);
    assert_eq!(kinds(&exact, Err(Failure::Other("x".into()))), ["no_handshake"]);
    assert_eq!(kinds(&exact, Err(Failure::Ours("x".into()))), [""; 0]);
    assert_eq!(kinds(&exact, Ok(Facts { certificate: None, ..facts("", "h2") })), [""; 0]);
    // Of a wildcard any of its names will do.
    let wildcard = route("a", "*.a.test", 1, "");
    for (names, found) in
        [("*.a.test", 0), ("x.a.test", 0), ("x.y.a.test", 0), ("*.y.a.test", 0), ("a.test", 1), ("*.test", 1)]
    {
        assert_eq!(kinds(&wildcard, Ok(facts(names, "h2"))).len(), found, "{names}");
    }
}

#[test]
fn findings_name_all_that_is_concerned() {
    let scope = scope(&(route("a", "a.test", 1, "") + &route("b", "b.test", 2, "")));
    let found = lint(&scope, &seen(&scope, &[(1, "a.test *.test", "h2"), (2, "b.test", "h2")]), NOW);
    let text = found.all[0].to_string();
    for part in
        ["`a` (test.toml:2)", "`b` (test.toml:7)", "10.0.0.1:443", "10.0.0.2:443", "b.test (by *.test)"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = findings_to_json(&found);
    assert_eq!(json[0]["kind"], "coalescing");
    assert_eq!(json[0]["other_origin"], "test.toml:7");
    assert_eq!(json[0]["names"][0]["covers"][0], "b.test");
}

#[test]
fn which_handshakes_are_made() {
    let aims = |toml: &str| -> Vec<String> {
        let scope = scope(toml);
        let aim = |aim: &Aim| {
            let alpn: Vec<_> = aim.alpn.iter().map(|name| name.escape_ascii().to_string()).collect();
            format!("{} {} {}", aim.name, aim.target, alpn.join(","))
        };
        scope.plan.aims.iter().map(aim).collect()
    };
    let table: [(String, &[&str]); 12] = [
        (route("a", "a.test", 1, ""), &["a.test 10.0.0.1:443 h2,http/1.1"]),
        (route("a", "*.a.test", 1, ""), &["probe.a.test 10.0.0.1:443 h2,http/1.1"]),
        (
            route("a", "*.a.test", 1, "") + &route("b", "probe.a.test", 2, ""),
            &["portcullis-probe.a.test 10.0.0.1:443 h2,http/1.1", "probe.a.test 10.0.0.2:443 h2,http/1.1"],
        ),
        (route("a", "a.test", 1, "alpn = 'http/1.1'"), &["a.test 10.0.0.1:443 http/1.1"]),
        (route("a", "a.test", 1, "alpn = ['acme-tls/1', 'h2']"), &["a.test 10.0.0.1:443 h2"]),
        (route("a", "a.test", 1, "alpn = ['acme-tls/1', 'imap']"), &["a.test 10.0.0.1:443 imap"]),
        (route("a", "a.test", 1, "alpn = 'acme-tls/1'"), &[]),
        (route("a", "a.test", 1, "protocol = 'imap'"), &["a.test 10.0.0.1:443 "]),
        (route("a", "a.test", 1, "protocol = 'ldap'\nstarttls = true"), &[]),
        (route("a", "~[ab]\\.test", 1, ""), &[]),
        (
            route("a", "~[ab]\\.test", 1, "")
                + "[[test]]\nhello = { sni = 'b.test' }\nexpect = 'passthrough'\n",
            &["b.test 10.0.0.1:443 h2,http/1.1"],
        ),
        ("[[route]]\nsni = 'none'\nto = '10.0.0.1:443'\n".to_owned(), &[]),
    ];
    for (toml, expected) in table {
        assert_eq!(aims(&toml), expected, "{toml}");
    }
    let scope = scope(&route("a", "~[ab]\\.test", 1, ""));
    assert_eq!(scope.plan.unnamed.len(), 1);
}

#[test]
fn a_round_is_bounded_and_has_one_of_each_route_first() {
    let routes: String = (0..900)
        .map(|n| {
            format!(
                "[[route]]\nname = 'r{n}'\nsni = ['a{n}.test', 'b{n}.test', 'c{n}.test', 'd{n}.test', 'e{n}.test']\n\
                 to = '10.0.{}.{}:443'\n",
                n / 250,
                n % 250
            )
        })
        .collect();
    let scope = scope(&routes);
    assert_eq!((scope.plan.aims.len(), scope.plan.left_out), (1_000, 4 * 900 - 1_000));
    assert!(scope.plan.aims[..900].iter().all(|aim| aim.name.as_str().starts_with('a')));
    assert!(scope.plan.aims[900..].iter().all(|aim| aim.name.as_str().starts_with('b')));
}

#[test]
fn a_finding_is_news_once_and_stays_while_its_backend_is_not_heard() {
    let scope = scope(&(route("a", "a.test", 1, "") + &route("b", "b.test", 2, "")));
    let round = |backends: &[(u8, &str, &str)]| lint(&scope, &seen(&scope, backends), NOW).all;
    let failed = |name: &str, last: u8, ours: bool| {
        BTreeMap::from([((Arc::from(name), Arc::from(format!("10.0.0.{last}:443"))), ours)])
    };
    let kinds = |news: &[News]| -> Vec<String> {
        let word = |news: &News| match news {
            News::New(finding) => format!("+{}", finding.what.kind()),
            News::Gone(finding) => format!("-{}", finding.what.kind()),
        };
        news.iter().map(word).collect()
    };
    let none = BTreeMap::<Key, Finding>::new();
    let bad: &[_] = &[(1, "*.test", "h2"), (2, "b.test", "h2")];
    let (standing, news) = compare(&none, round(bad), &BTreeMap::new());
    assert_eq!(kinds(&news), ["+coalescing"]);
    let (standing, news) = compare(&standing, round(bad), &BTreeMap::new());
    assert_eq!(kinds(&news), [""; 0]);
    let (standing, news) = compare(&standing, round(&bad[1..]), &failed("a", 1, false));
    assert_eq!(kinds(&news), ["+no_handshake"]);
    assert_eq!(standing.len(), 2);
    let (standing, news) = compare(&standing, Vec::new(), &failed("a", 1, true));
    assert_eq!((standing.len(), kinds(&news)), (2, vec![]));
    let good: &[_] = &[(1, "a.test", "h2"), (2, "b.test", "h2")];
    let (standing, news) = compare(&standing, round(good), &BTreeMap::new());
    assert_eq!(kinds(&news), ["-coalescing", "-no_handshake"]);
    assert!(standing.is_empty());
}

/// A server of this library, which has post-quantum groups, at an address of its own.
async fn server(names: &[&str], alpn: &[&str], header: bool) -> Target {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if header {
                let mut bytes = [0; 16];
                stream.read_exact(&mut bytes).await.unwrap();
                assert!(matches!(ProxyHeader::read(&bytes), Ok(Some(_))), "{bytes:?}");
            }
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    // Until it is left, properly.
                    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
                }
            });
        }
    });
    target
}

#[tokio::test]
async fn handshakes_show_certificate_version_group_and_protocol() {
    let plain = server(&["a.test", "*.a.test"], &["h2", "http/1.1"], false).await;
    let proxied = server(&["b.test"], &["http/1.1"], true).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let scope = scope(&format!(
        "[[route]]\nname = 'a'\nsni = 'a.test'\nto = '{plain}'\n\
         [[route]]\nname = 'b'\nsni = 'b.test'\nto = '{proxied}'\nproxy_protocol = 'v2'\n\
         [[route]]\nname = 'c'\nsni = 'c.test'\nto = '{closed}'\n"
    ));
    let seen = run(&scope.plan, &Arc::new(Authorities::of_the_system())).await;
    let [a, b, c] = seen.as_slice() else { panic!("{seen:?}") };
    let facts = a.outcome.as_ref().unwrap();
    let agreed = &facts.agreed;
    assert_eq!((agreed.version, agreed.group, agreed.post_quantum), ("1.3", "x25519mlkem768", true));
    assert!(agreed.is_h2() && facts.trust != Trust::Trusted);
    let names: Vec<_> = facts.certificate.iter().flat_map(|certificate| &certificate.names).collect();
    assert_eq!(names.len(), 2);
    let facts = b.outcome.as_ref().unwrap();
    assert_eq!(facts.agreed.alpn_text(), "http/1.1");
    assert!(matches!(&c.outcome, Err(Failure::Other(why)) if why.contains("no connection")), "{c:?}");
    let table = table(&scope, &seen, NOW);
    assert_eq!(table.lines().count(), 4);
    assert!(table.contains("x25519mlkem768") && table.contains("no connection"), "{table}");
}
