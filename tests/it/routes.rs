//! Which route takes a connection, seen by which backend answers.

use std::net::Ipv4Addr;

use crate::support::SOON;
use crate::support::backend::Backend;
use crate::support::client::{Outcome, connect, outcome, probe, probe_from, served};
use crate::support::hello::{Keys, real, to};
use crate::support::proxy::Proxy;

/// A backend for each of `tags`, and its address by tag.
fn backends<const N: usize>(tags: [&str; N]) -> [Backend; N] {
    tags.map(Backend::tagged)
}

#[test]
fn the_most_specific_name_wins_whatever_the_order_in_the_file() {
    let tags = ["any", "regex", "short", "long", "exact"];
    let keys = ["*", "~(w+|api-[0-9]+)[.]a[.]test", "*.test", "*.a.test", "www.a.test"];
    let backends = backends(tags);
    let table = [
        ("www.a.test", "exact"),
        ("WWW.A.TEST.", "exact"),
        ("api.a.test", "long"),
        ("x.y.a.test", "long"),
        ("api-7.a.test", "long"),
        ("a.test", "short"),
        ("b.test", "short"),
        ("api-7.a.test.example", "any"),
        ("test", "any"),
        ("other.example", "any"),
    ];
    for turn in 0..2 {
        let mut routes: Vec<String> = keys
            .iter()
            .zip(&backends)
            .map(|(key, backend)| format!("[[route]]\nsni = '{key}'\nto = '{backend}'\n"))
            .collect();
        if turn == 1 {
            routes.reverse();
        }
        let proxy = Proxy::start(&format!("listen = '127.0.0.1:0'\n{}", routes.concat()));
        for (name, tag) in table {
            assert_eq!(probe(proxy.addr(), &to_any(name)), served(tag), "{name}, turn {turn}");
        }
    }
}

/// A hello for a name that rustls would not send as it stands.
fn to_any(name: &str) -> Vec<u8> {
    use crate::support::hello::{built, sni};
    built(&[sni(name.as_bytes())])
}

#[test]
fn regular_expressions_match_whole_names_in_file_order() {
    let [first, second, any] = &backends(["first", "second", "any"]);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = '~[a-z]+-[0-9]+[.]test'\nto = '{first}'\n\
         [[route]]\nsni = '~[a-z]+-.*[.]test'\nto = '{second}'\n[[route]]\nsni = '*'\nto = '{any}'\n"
    ));
    for (name, tag) in [
        ("web-1.test", "first"),
        ("WEB-1.test", "first"),
        ("web-x.test", "second"),
        ("web-1.test.example", "any"),
        ("1.web-1.test", "any"),
        ("web1.test", "any"),
    ] {
        assert_eq!(probe(proxy.addr(), &to(name)), served(tag), "{name}");
    }
}

#[test]
fn a_wildcard_never_stands_for_its_apex() {
    let [wild, apex] = &backends(["wild", "apex"]);
    let proxy =
        Proxy::start(&format!("listen = '127.0.0.1:0'\n[[route]]\nsni = '*.a.test'\nto = '{wild}'\n"));
    assert_eq!(probe(proxy.addr(), &to("x.a.test")), served("wild"));
    assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Alert(112));
    assert_eq!(probe(proxy.addr(), &to("xa.test")), Outcome::Alert(112));
    let both = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = ['a.test']\nto = '{apex}'\n[[route]]\nsni = '*.a.test'\nto = '{wild}'\n"
    ));
    assert_eq!(probe(both.addr(), &to("a.test")), served("apex"));
    assert_eq!(probe(both.addr(), &to("x.a.test")), served("wild"));
}

#[test]
fn alpn_chooses_among_routes_for_a_name() {
    let [acme, h2, plain] = &backends(["acme", "h2", "plain"]);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{plain}'\n\
         [[route]]\nsni = 'a.test'\nalpn = 'acme-tls/1'\nto = '{acme}'\n\
         [[route]]\nsni = 'a.test'\nalpn = ['h2', 'h2c']\nto = '{h2}'\n"
    ));
    let table: [(&[&str], &str); 5] = [
        (&["acme-tls/1"], "acme"),
        (&["h2", "http/1.1"], "h2"),
        (&["http/1.1", "h2"], "h2"),
        (&["http/1.1"], "plain"),
        (&[], "plain"),
    ];
    for (alpn, tag) in table {
        for keys in [Keys::Classic, Keys::PostQuantum] {
            assert_eq!(probe(proxy.addr(), &real(Some("a.test"), alpn, keys)), served(tag), "{alpn:?}");
        }
    }
}

#[test]
fn the_clients_address_chooses_by_the_longest_network() {
    let [office, desk, rest] = &backends(["office", "desk", "rest"]);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nfrom = ['127.0.7.0/24']\nto = '{office}'\n\
         [[route]]\nsni = 'a.test'\nfrom = '127.0.7.9'\nto = '{desk}'\n\
         [[route]]\nsni = '*.test'\nto = '{rest}'\n"
    ));
    for (source, tag) in [([127, 0, 7, 1], "office"), ([127, 0, 7, 9], "desk"), ([127, 0, 0, 1], "rest")] {
        assert_eq!(
            probe_from(Ipv4Addr::from(source), proxy.addr(), &to("a.test")),
            served(tag),
            "{source:?}"
        );
    }
}

#[test]
fn a_listener_has_its_own_routes() {
    let [public, internal] = &backends(["public", "internal"]);
    let proxy = Proxy::start(&format!(
        "[[listener]]\nname = 'public'\nbind = '127.0.0.1:0'\n[[listener]]\nname = 'internal'\nbind = '127.0.0.1:0'\n\
         [[route]]\nsni = 'a.test'\nto = '{public}'\n\
         [[route]]\nsni = 'a.test'\nlistener = 'internal'\nto = '{internal}'\n\
         [[route]]\nsni = 'admin.test'\nlistener = 'internal'\nto = '{internal}'\n"
    ));
    let (outside, inside) = (proxy.listener("public"), proxy.listener("internal"));
    assert_ne!(outside, inside);
    assert_eq!(probe(outside, &to("a.test")), served("public"));
    assert_eq!(probe(inside, &to("a.test")), served("internal"));
    assert_eq!(probe(inside, &to("admin.test")), served("internal"));
    assert_eq!(probe(outside, &to("admin.test")), Outcome::Alert(112), "it is for the other listener only");
    let line =
        proxy.access_line("internal", |line| line["sni"] == "admin.test" && line["action"] == "passthrough");
    assert_eq!(line["listener"], "internal");
}

#[test]
fn rejecting_routes_refuse_as_they_say() {
    let [rest] = &backends(["rest"]);
    let kinds = [("alert", Outcome::Alert(112)), ("close", Outcome::Closed), ("reset", Outcome::Reset)];
    let routes = kinds
        .each_ref()
        .map(|(kind, _)| format!("[[route]]\nname = 'no-{kind}'\nsni = '{kind}.test'\nreject = '{kind}'\n"));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{}[[route]]\nsni = 'drop.test'\nreject = 'drop'\n\
         [[route]]\nsni = '*'\nto = '{rest}'\n",
        routes.concat()
    ));
    for (kind, expected) in &kinds {
        assert_eq!(probe(proxy.addr(), &to(&format!("{kind}.test"))), *expected, "{kind}");
        let line = proxy.access_line(kind, |line| line["sni"] == format!("{kind}.test"));
        assert_eq!((&line["action"], &line["cause"]), (&"reject".into(), &"policy".into()));
        assert_eq!(line["route"], format!("no-{kind}"));
    }
    // On loopback the reset of a dropped connection still arrives; what must not come is a byte or a FIN.
    let dropped =
        outcome(&mut connect(proxy.addr()), &to("drop.test"), std::time::Duration::from_millis(500));
    assert!(matches!(dropped, Outcome::Open | Outcome::Reset), "{dropped:?}");
    assert_eq!(outcome(&mut connect(proxy.addr()), &to("other.test"), SOON), served("rest"));
    assert_eq!(rest.hits(), 1);
}

#[test]
fn any_protocol_at_all_may_have_a_route() {
    let [a, any] = &backends(["a", "any"]);
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ hello = '300ms' }}\n[[route]]\nsni = 'a.test'\nto = '{a}'\n\
         [[route]]\nprotocol = 'any'\nto = '{any}'\n"
    ));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    let other = real(None, &[], Keys::Classic);
    for bytes in [b"SSH-2.0-x\r\n".as_slice(), b"GET / HTTP/1.0\r\n\r\n", b"\0\0\0", &other, &to("b.test")] {
        assert_eq!(probe(proxy.addr(), bytes), served("any"), "{}", bytes.escape_ascii());
    }
    // Silence must be named: waiting would else be a way past every rule about names.
    assert_eq!(probe(proxy.addr(), b""), Outcome::Closed);
    // What begins like TLS and is broken is refused all the same.
    assert_eq!(probe(proxy.addr(), &[22, 3, 1, 0, 0]), Outcome::Alert(50));
}
