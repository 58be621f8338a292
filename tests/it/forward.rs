//! Servers that clients name (`to = "sni:443"`): those of the public, and whatever else a name leads to never (L20).

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::client::{Outcome, probe, served, timed};
use crate::support::hello::{built, sni, to};
use crate::support::netns::{Host, with_hosts};
use crate::support::process::Process;
use crate::support::programs::curl;
use crate::support::proxy::{Proxy, on_config};
use crate::support::stub_dns::{StubDns, Zone, records};
use crate::support::{SOON, UNLIMITED, until, wait_for};

const INTERNAL_ERROR: Outcome = Outcome::Alert(80);
/// Where the public is, beyond the proxy's one neighbour.
const WORLD: [Ipv4Addr; 2] = [Ipv4Addr::new(93, 184, 216, 34), Ipv4Addr::new(93, 184, 216, 35)];

/// What the stub says: for each name, its answers in turn.
fn zone(names: &[(&str, &[&[&str]])]) -> Zone {
    let answers = |answers: &[&[&str]]| answers.iter().map(|words| records(words)).collect();
    names.iter().map(|(name, of)| ((*name).to_owned(), answers(of))).collect()
}

/// A host for the proxy, and one that has all addresses of the world.
fn network() -> [Host; 2] {
    let [proxy, world] = [Host::new(), Host::new()];
    let beside = [Ipv4Addr::new(10, 0, 7, 1), Ipv4Addr::new(10, 0, 7, 2)];
    Host::join((&proxy, beside[0]), (&world, beside[1]));
    proxy.route_by(beside[1]);
    for addr in WORLD {
        world.execute(&format!("ip address add {addr}/32 dev lo"), "");
    }
    [proxy, world]
}

fn config(dns: SocketAddr, route: &str) -> String {
    format!(
        "listen = '127.0.0.1:8443'\nadmin = '127.0.0.1:0'\n{UNLIMITED}\
         dns = {{ servers = ['{dns}'], timeout = '2s', min_ttl = '1s' }}\n\
         [[route]]\nname = 'out'\nsni = ['*.fwd.test', 'one.example.test']\nto = 'sni:443'\n{route}\n"
    )
}

/// An `openssl s_server` for a name, with a certificate that signs itself.
struct TlsServer {
    _process: Process,
    dir: TempDir,
}

impl TlsServer {
    fn start(name: &str, addr: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let [certificate, key] = ["cert.pem", "key.pem"].map(|file| dir.path().join(file));
        std::fs::write(&certificate, cert.pem()).unwrap();
        std::fs::write(&key, signing_key.serialize_pem()).unwrap();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-www", "-accept", &addr.to_string()]);
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
        let mut process = Process::start(&mut command, "openssl");
        until("the server's port", SOON, || {
            assert!(process.exit().is_none(), "{:#?}", process.stderr.all());
            std::net::TcpStream::connect(addr).ok()
        });
        Self { _process: process, dir }
    }
}

#[test]
fn clients_reach_the_servers_that_they_name_and_no_others() {
    with_hosts(|| {
        let [host, world] = network();
        let servers: Vec<_> = [("a.fwd.test", WORLD[0]), ("one.example.test", WORLD[1])]
            .map(|(name, addr)| (name, world.run(|| TlsServer::start(name, (addr, 443).into()))))
            .into();
        let [good, unreachable] = [WORLD[0].to_string(), "93.184.216.99".to_owned()];
        let dns = host.run(|| {
            StubDns::start(zone(&[
                ("a.fwd.test", &[&[good.as_str()]]),
                ("one.example.test", &[&["cdn.example.test", "93.184.216.35"]]),
                ("fallback.fwd.test", &[&[unreachable.as_str(), "2606:2800::1", "10.0.7.2", good.as_str()]]),
            ]))
        });
        let proxy = host.run(|| Proxy::start(&config(dns.addr(), "timeouts = { connect = '500ms' }")));
        for (name, server) in &servers {
            let ca = server.dir.path().join("cert.pem");
            let page = host.run(|| curl(name, proxy.addr(), &ca, &["--http1.0"]));
            assert_eq!(page.code, Some(0), "{name}: {}", page.stderr);
        }
        for (name, addr) in [("a.fwd.test", WORLD[0]), ("one.example.test", WORLD[1])] {
            let line = proxy.access_line(name, |line| line["sni"] == name);
            assert_eq!(
                (&line["backend"], &line["address"]),
                (&"sni:443".into(), &format!("{addr}:443").into())
            );
        }
        let connected = host.run(|| probe(proxy.addr(), &to("fallback.fwd.test")));
        // An s_server has no such tag, but it answers the hello, be it by an alert.
        assert!(!matches!(connected, Outcome::Alert(80) | Outcome::Closed | Outcome::Open), "{connected:?}");
        let asked = dns.asked();
        let unlisted = host.run(|| probe(proxy.addr(), &to("a.other.test")));
        assert_eq!(
            (unlisted, dns.asked()),
            (Outcome::Alert(112), asked),
            "nobody is asked for what no route has"
        );
        let literal = host.run(|| probe(proxy.addr(), &built(&[sni(b"93.184.216.34")])));
        assert_eq!(literal, Outcome::Alert(47), "an address is no name");
        assert_eq!(host.run(|| probe(proxy.addr(), &to("none.fwd.test"))), INTERNAL_ERROR);
        let line = proxy.access_line("the one without", |line| line["sni"] == "none.fwd.test");
        assert_eq!((&line["reason"], &line["backend"]), (&"no_endpoint".into(), &"sni:443".into()), "{line}");
        let metrics = host.run(|| proxy.metrics());
        let connects = metrics.sum("portcullis_upstream_connects_total", &[("backend", "sni:443")]);
        assert!((connects - 3.0).abs() < 0.5, "{connects}");
    });
}

#[test]
fn a_name_that_leads_inside_leads_nowhere() {
    with_hosts(|| {
        let host = Host::new();
        // Two addresses of a network that look public: the second is none that the kernel would send from.
        host.execute("ip address add 93.184.216.77/24 dev lo", "");
        host.execute("ip address add 93.184.216.78/24 dev lo", "");
        host.execute("ip address add 10.9.9.9/32 dev lo", "");
        host.execute("ip -6 address add 2606:2800::77/128 dev lo", "");
        let inside = ["0.0.0.0:443", "[::1]:443", "[2606:2800::77]:443"]
            .map(|addr| host.run(|| Backend::tagged_at(addr.parse().unwrap(), "inside")));
        let names: &[(&str, &[&[&str]])] = &[
            ("loopback.fwd.test", &[&["127.0.0.1"]]),
            ("other-loopback.fwd.test", &[&["127.9.9.9"]]),
            ("any.fwd.test", &[&["0.0.0.0"]]),
            ("metadata.fwd.test", &[&["169.254.169.254"]]),
            ("six.fwd.test", &[&["::1"]]),
            ("mapped.fwd.test", &[&["::ffff:127.0.0.1"]]),
            ("compatible.fwd.test", &[&["::127.0.0.1"]]),
            ("nat64.fwd.test", &[&["64:ff9b::7f00:1"]]),
            ("six-to-four.fwd.test", &[&["2002:7f00:1::1"]]),
            ("private.fwd.test", &[&["10.9.9.9"]]),
            ("alias.fwd.test", &[&["db.internal.test", "10.9.9.9"]]),
            ("aliases.fwd.test", &[&["b.internal.test", "c.internal.test", "127.0.0.1"]]),
            ("own.fwd.test", &[&["93.184.216.77"]]),
            ("second-own.fwd.test", &[&["93.184.216.78"]]),
            ("own-six.fwd.test", &[&["2606:2800::77"]]),
            ("several.fwd.test", &[&["127.0.0.1", "10.9.9.9", "::1", "fe80::1", "93.184.216.77"]]),
        ];
        let dns = host.run(|| StubDns::start(zone(names)));
        let mut proxy = host.run(|| Proxy::start(&config(dns.addr(), "")));
        for (name, _) in names {
            let outcome = host.run(|| probe(proxy.addr(), &to(name)));
            assert_eq!(outcome, INTERNAL_ERROR, "{name}");
            let line = proxy.access_line(name, |line| line["sni"] == *name);
            assert_eq!((&line["reason"], &line["stage"]), (&"blocked".into(), &"connect".into()), "{line}");
            assert_eq!((&line["cause"], &line["backend"]), (&"policy".into(), &"sni:443".into()), "{line}");
        }
        assert_eq!(inside.iter().map(Backend::hits).sum::<usize>(), 0);
        let metrics = host.run(|| proxy.metrics());
        let labels = [("backend", "sni:443"), ("reason", "blocked")];
        let blocked = metrics.sum("portcullis_upstream_connect_failures_total", &labels);
        assert!((blocked - names.len() as f64).abs() < 0.5, "{blocked}");
        host.run(|| proxy.assert_sound());
    });
}

/// A nameserver that says one thing to who vets and another to who connects: here those are one, and what was vetted is
/// what is connected to.
#[test]
fn answers_that_change_at_each_question_lead_nobody_inside() {
    with_hosts(|| {
        let [host, world] = network();
        let public = world.run(|| Backend::tagged_at((WORLD[0], 443).into(), "public"));
        let inside = host.run(|| Backend::tagged_at("127.0.0.1:443".parse().unwrap(), "inside"));
        let answers: Vec<&[&str]> = [&["93.184.216.34"][..], &["127.0.0.1"]].repeat(50);
        let dns = host.run(|| StubDns::start(zone(&[("rebinding.fwd.test", &answers)])));
        let proxy = host.run(|| Proxy::start(&config(dns.addr(), "")));
        let mut seen = [0, 0];
        until("both answers", SOON, || {
            match host.run(|| probe(proxy.addr(), &to("rebinding.fwd.test"))) {
                INTERNAL_ERROR => seen[0] += 1,
                outcome => {
                    assert_eq!(outcome, served("public"));
                    seen[1] += 1;
                }
            }
            (seen[0] > 1 && seen[1] > 1 && dns.asked() > 4).then_some(())
        });
        assert_eq!((inside.hits(), public.hits()), (0, seen[1]));
    });
}

#[test]
fn internal_networks_may_be_allowed_but_never_the_proxy_itself() {
    with_hosts(|| {
        let [host, world] = network();
        let other = world.run(|| Backend::tagged_at("10.0.7.2:8443".parse().unwrap(), "other"));
        let inside = host.run(|| Backend::tagged_at("127.0.0.2:8443".parse().unwrap(), "inside"));
        let dns = host.run(|| {
            StubDns::start(zone(&[
                ("other.fwd.test", &[&["10.0.7.2"]]),
                ("inside.fwd.test", &[&["127.0.0.2"]]),
                ("self.fwd.test", &[&["127.0.0.1"]]),
                ("mapped.fwd.test", &[&["::ffff:10.0.7.2"]]),
                ("else.fwd.test", &[&["10.0.8.1"]]),
            ]))
        });
        let config =
            config(dns.addr(), "internal = ['10.0.7.0/24', '127.0.0.0/8']").replace("sni:443", "sni:8443");
        let mut proxy = host.run(|| Proxy::start(&config));
        let reached = |name: &str| host.run(|| probe(proxy.addr(), &to(name)));
        assert_eq!(reached("other.fwd.test"), served("other"));
        assert_eq!(reached("inside.fwd.test"), served("inside"));
        for name in ["self.fwd.test", "mapped.fwd.test", "else.fwd.test"] {
            assert_eq!(reached(name), INTERNAL_ERROR, "{name}");
            proxy.access_line(name, |line| line["sni"] == name && line["reason"] == "blocked");
        }
        wait_for("all to be told of", || proxy.access_log().len() == 5);
        assert_eq!((other.hits(), inside.hits()), (1, 1));
        host.run(|| proxy.assert_sound());
    });
}

#[test]
fn a_nameserver_that_says_nothing_costs_its_clients_no_more_than_a_connect() {
    // Bound and never read: questions vanish.
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let config = config(silent.local_addr().unwrap(), "timeouts = { connect = '500ms' }");
    let proxy = Proxy::start(&config.replace(":8443", ":0"));
    let (took, outcome) = timed(|| probe(proxy.addr(), &to("a.fwd.test")));
    assert_eq!(outcome, INTERNAL_ERROR);
    assert!(took < Duration::from_millis(2500), "{took:?}");
    let line = proxy.access_line("it", |line| line["sni"] == "a.fwd.test");
    assert_eq!((&line["reason"], &line["stage"]), (&"dns".into(), &"connect".into()), "{line}");
    assert_eq!(line["cause"], "upstream_timeout");
}

#[test]
fn check_and_explain_tell_where_such_a_route_leads() {
    let config = config("127.0.0.1:53".parse().unwrap(), "internal = '10.1.0.0/16'");
    let config = format!(
        "{config}[[test]]\nhello = {{ sni = 'a.fwd.test' }}\nexpect = {{ to = 'sni:443', route = 'out' }}\n\
         [[test]]\nhello = {{ sni = 'a.test' }}\nexpect = 'reject'\n"
    );
    let checked = on_config("check", &config, &["--effective"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    for setting in [r#"route[out].to = "sni:443""#, r#"route[out].internal = "10.1.0.0/16""#] {
        assert!(checked.stdout.contains(setting), "{setting}: {}", checked.stdout);
    }
    let explained = on_config("explain", &config, &["--sni", "a.fwd.test"]);
    assert_eq!(explained.code, Some(0), "{}", explained.stderr);
    assert!(
        explained.stdout.contains("the server that the client names, at port 443"),
        "{}",
        explained.stdout
    );
    let open = on_config("check", "listen = ':443'\n[[route]]\nsni = '*'\nto = 'sni:443'\n", &[]);
    assert_eq!(open.code, Some(78), "{}", open.stdout);
    assert!(open.stderr.contains("give the names that may be reached"), "{}", open.stderr);
}
