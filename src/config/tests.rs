use std::collections::{BTreeSet, HashSet};
use std::fs;

use super::*;

mod backend_tls;
mod forward;
mod hostile;
mod http;
mod schema;
mod tls;
mod upstreams;

/// Every section of the file, as one would write it.
const EXAMPLE: &str = r#"listen     = ":443"
rate_limit = { per_ip = "50/s", burst = 100 }   # before either branch
workers    = 2
max_hello_size = "8KiB"
timeouts   = { idle = "10m", drain = "1m30s" }
connection_limit = { per_ip = "off", total = 20000 }
allow      = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"]
deny       = "10.1.0.0/16"
unknown_sni = "reset"
no_sni     = "drop"
dns        = { servers = ["10.0.0.53", "[::1]:5353"], max_ttl = "1m" }
admin      = { bind = "10.0.0.1:9901", allow = "10.0.0.0/8" }
access_log = { to = "/var/log/portcullis.log", format = "logfmt", ja4 = true }

[[listener]]
name = "alt"
bind = ["127.0.0.1:8443", "[::1]:8443"]
silent_after = "500ms"

[[route]]
sni = "App.Example.com."                # passed through untouched
to  = "10.0.0.11:443"

[[route]]
name = "git"
sni  = ["git.example.com", "*.git.example.com", "~git[0-9]+\\.example\\.com"]
to   = ["10.0.0.21:443", "git.internal:443", "unix:/run/git.sock"]
alpn = ["h2", "http/1.1"]
from = "10.0.0.0/8"
listener = "alt"
timeouts = { idle = "1h" }

[[route]]
sni = "none"
reject = "close"

[[route]]
protocol = ["ssh", "silent"]            # not TLS at all
to       = "10.0.0.41:22"

[[route]]
protocol = "any"
reject = "reset"

[[test]]
hello  = { sni = "app.example.com", alpn = ["h2"], ja4 = "t13d1516h2_8daaf6152771_e5627efa2ab1" }
expect = { action = "passthrough", to = "10.0.0.11:443" }

[[test]]
name = "no listener for ssh but ours"
protocol = "ssh"
from = "192.0.2.7"
listener = "alt"
expect = "passthrough"

[[test]]
hello = {}
expect = { route = "no-sni", reject = "close" }
"#;

/// What a short configuration starts with.
const HEAD: &str = "listen = \":443\"\n[[route]]\nsni = \"a.test\"\nto = \"10.0.0.1:443\"\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("test.toml"), text)
}

fn kinds(errors: &ConfigErrors) -> Vec<&'static str> {
    errors.iter().map(|error| error.kind().as_str()).collect()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn exact(name: &str) -> RouteKey {
    RouteKey::Sni(NamePattern::Exact(ServerName::parse(name.as_bytes()).unwrap()))
}

#[test]
fn every_invalid_sample_fails_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/config/invalid");
    let mut samples: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    samples.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    samples.sort();
    assert!(samples.len() >= 36, "only {} samples found", samples.len());
    let mut seen = BTreeSet::new();
    for path in samples {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        let header = text.lines().next().unwrap().strip_prefix("# error: ").expect("a header");
        let (expected, place) = header.split_once(" @ ").expect("kinds @ line:column");
        let errors = Config::load(&path).expect_err(&path.display().to_string());
        assert_eq!(kinds(&errors).join(", "), expected, "{}\n{errors}", path.display());
        let first = errors.iter().next().unwrap().origin().expect("a place");
        assert_eq!(format!("{}:{}", first.line, first.column), place, "{errors}");
        let drawn = errors.render(false);
        for error in &errors {
            let origin = error.origin().expect("a place");
            let place = format!("{}:{}:{}", origin.file.display(), origin.line, origin.column);
            assert!(drawn.contains(&place), "{place} is not in\n{drawn}");
        }
        assert!(drawn.contains('^'), "{drawn}");
        assert!(errors.render(true).contains("\u{1b}["));
        seen.extend(kinds(&errors));
    }
    // The one kind that needs a file too large to keep here.
    seen.insert(ErrorKind::TooLarge.as_str());
    assert_eq!(seen, ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect());
}

#[test]
fn the_example_resolves_to_what_it_says() {
    let config = parse(EXAMPLE).unwrap();
    let names: Vec<_> = config.listeners.iter().map(|listener| &*listener.name).collect();
    assert_eq!(names, ["default", "alt"]);
    assert_eq!(config.listeners[0].bind, [":443".parse().unwrap()]);
    assert_eq!(config.listeners[0].silent_after, secs(2));
    assert_eq!(config.listeners[1].bind.len(), 2);
    assert_eq!(config.listeners[1].silent_after, Duration::from_millis(500));
    assert_eq!(config.workers, Some(2));
    assert_eq!((config.max_hello_size, config.hello_memory), (8192, None));
    let bounded = parse(&format!("hello_memory = \"32MiB\"\n{HEAD}")).unwrap();
    assert_eq!(bounded.hello_memory, Some(32 << 20));
    let timeouts = &config.timeouts;
    assert_eq!((timeouts.hello, timeouts.connect, timeouts.idle), (secs(5), secs(3), secs(600)));
    assert_eq!((timeouts.half_closed, timeouts.drain), (secs(60), secs(90)));
    let limits = &config.limits;
    let named = |name: &str| limits.by_source.iter().find(|limit| &*limit.name == name).unwrap();
    let rate = RateLimit { rate: Rate { count: 50, period: secs(1) }, burst: 100 };
    assert_eq!(*named("rate_limit"), LimitConfig { rate: Some(rate), ..LimitConfig::named("rate_limit") });
    let open = named("connection_limit");
    assert_eq!((open.connections, open.before_hello, limits.total), (None, Some(32), Some(20_000)));
    assert_eq!(limits.allow, [net("10.0.0.0/8"), net("2001:db8::/32"), net("192.0.2.1/32")]);
    assert_eq!(limits.deny, [net("10.1.0.0/16")]);
    let policies = config.policies;
    assert_eq!((policies.unknown_sni, policies.no_sni), (RejectWith::Reset, RejectWith::Drop));
    assert_eq!(policies.unknown_protocol, RejectWith::Answer);
    assert_eq!(config.dns.servers, ["10.0.0.53:53".parse().unwrap(), "[::1]:5353".parse().unwrap()]);
    assert_eq!((config.dns.timeout, config.dns.min_ttl, config.dns.max_ttl), (secs(5), secs(1), secs(60)));
    let admin = config.admin.unwrap();
    assert_eq!(admin.bind, AdminAddr::Tcp("10.0.0.1:9901".parse().unwrap()));
    assert_eq!(admin.allow, [net("10.0.0.0/8")]);
    let to = LogTarget::File("/var/log/portcullis.log".into());
    assert_eq!(config.access_log, AccessLogConfig { to, format: LogFormat::Logfmt, ja4: true });
}

#[test]
fn the_routes_of_the_example_resolve_to_what_they_say() {
    let config = parse(EXAMPLE).unwrap();
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["app.example.com", "git", "no-sni", "protocol:ssh", "protocol:any"]);
    let [app, git, no_sni, ssh, any] = config.routes.as_slice() else { panic!("five routes") };
    assert_eq!(app.keys, [exact("app.example.com")]);
    assert_eq!(app.origin.to_string(), "test.toml:20");
    let ActionConfig::Passthrough(to) = &app.action else { panic!("passed through") };
    assert!(to.upstream.addresses().eq([&"10.0.0.11:443".parse().unwrap()]));
    assert_eq!((to.connect_timeout, to.idle_timeout, to.half_closed_timeout), (secs(3), secs(600), secs(60)));
    assert_eq!(git.keys[0], exact("git.example.com"));
    assert_eq!(git.keys[1].to_string(), "*.git.example.com");
    assert!(
        matches!(&git.keys[2], RouteKey::Sni(NamePattern::Regex(regex)) if regex.is_match("git7.example.com"))
    );
    assert_eq!(git.conditions.listeners.as_deref(), Some(&[Arc::from("alt")][..]));
    assert_eq!(git.conditions.alpn.as_ref().unwrap()[1].as_ref(), b"http/1.1");
    assert_eq!(git.conditions.from.as_deref(), Some(&[net("10.0.0.0/8")][..]));
    let ActionConfig::Passthrough(to) = &git.action else { panic!("passed through") };
    assert_eq!((to.upstream.backends.len(), to.idle_timeout), (3, secs(3600)));
    assert_eq!(no_sni.keys, [RouteKey::NoSni]);
    assert!(matches!(no_sni.action, ActionConfig::Reject(RejectWith::Close)));
    assert_eq!(ssh.keys, [RouteKey::Protocol(Protocol::Ssh), RouteKey::Protocol(Protocol::Silent)]);
    assert_eq!(any.keys, [RouteKey::Anything]);
}

#[test]
fn the_tests_of_the_example_resolve_to_what_they_say() {
    let config = parse(EXAMPLE).unwrap();
    let [app, ssh, empty] = config.tests.as_slice() else { panic!("three tests") };
    assert_eq!(&*app.name, "app.example.com");
    let TestInput::Hello { sni: Some(sni), alpn, ja4: Some(ja4), within: None } = &app.input else {
        panic!("a hello")
    };
    assert_eq!((sni.as_str(), alpn.len()), ("app.example.com", 1));
    assert_eq!(ja4.as_str(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    assert_eq!(app.expect.action, Some(ExpectedAction::Passthrough));
    assert_eq!(app.expect.to, ["10.0.0.11:443".parse().unwrap()]);
    assert!(matches!(ssh.input, TestInput::Protocol(Protocol::Ssh)));
    assert_eq!((ssh.from, ssh.listener.as_deref()), (Some("192.0.2.7".parse().unwrap()), Some("alt")));
    assert!(
        matches!(&empty.input, TestInput::Hello { sni: None, alpn, ja4: None, within: None } if alpn.is_empty())
    );
    assert_eq!(empty.expect.route.as_deref(), Some("no-sni"));
    assert_eq!(empty.expect.reject, Some(RejectWith::Close));
}

#[test]
fn short_forms_and_keys_made_of_protocol_and_alpn() {
    let text = "listen = [\":443\", \"[::1]:8443\"]\nadmin = \"unix:/run/p.sock\"\naccess_log = \"off\"\n\
                connection_limit = 10\nrate_limit = \"5/10s\"\nworkers = \"auto\"\n\
                [[route]]\nprotocol = \"tls\"\nto = \"a.test:1\"\n\
                [[route]]\nalpn = \"h2\"\nto = \"b.test:1\"\n\
                [[route]]\nalpn = \"h3\"\nto = \"b.test:1\"\n\
                [[route]]\nja4 = [\"t12*\", \"t13d1516h2_8daaf6152771_e5627efa2ab1\"]\nreject = \"drop\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.admin.unwrap().bind, AdminAddr::Unix("/run/p.sock".into()));
    assert_eq!(config.access_log.to, LogTarget::Off);
    let [open, rate] = config.limits.by_source.as_slice() else { panic!("two limits") };
    assert_eq!((open.connections, open.before_hello, config.limits.total), (Some(10), Some(32), None));
    let rate = rate.rate.unwrap();
    assert_eq!((rate.rate.to_string().as_str(), rate.burst), ("5/10s", 5));
    for (route, name) in config.routes.iter().zip(["", "#2", "#3", "#4"]) {
        assert_eq!(route.keys, [RouteKey::Sni(NamePattern::Any), RouteKey::NoSni]);
        assert_eq!(*route.name, format!("protocol:tls{name}"));
    }
    let ja4 = config.routes[3].conditions.ja4.as_deref().unwrap();
    assert_eq!(strings(ja4), ["t12*", "t13d1516h2_8daaf6152771_e5627efa2ab1"]);
    assert!(!config.access_log.ja4);
}

#[test]
fn all_errors_are_told_at_once() {
    let errors = parse("listen = \"443\"\nwrokers = 3\n[[route]]\nsni = \"a..b\"\nto = \"x\"\n").unwrap_err();
    assert_eq!(kinds(&errors), ["bad-address", "unknown-key", "bad-name", "bad-address"]);
    let lines: Vec<_> = errors.iter().map(|error| error.origin().unwrap().line).collect();
    assert_eq!(lines, [1, 2, 4, 5]);
    let drawn = errors.to_string();
    assert!(drawn.contains("did you mean `workers`?"), "{drawn}");
    assert!(drawn.contains("4 errors in the configuration"), "{drawn}");
}

#[test]
fn a_syntax_error_hides_no_others_and_makes_none() {
    let errors =
        parse("listen = \":443\nworkers = 0\n[[route]]\nsni = \"a.test\nto = \"b.test:1\"\n").unwrap_err();
    assert_eq!(kinds(&errors), ["syntax", "out-of-range", "syntax"], "{errors}");
}

#[test]
fn errors_as_json() {
    let json = parse("listen = 443\n").unwrap_err().to_json();
    assert_eq!(json[1]["kind"], "bad-address");
    assert_eq!(json[1]["file"], "test.toml");
    assert_eq!((json[1]["line"].as_u64(), json[1]["column"].as_u64()), (Some(1), Some(10)));
    assert!(json[1]["hint"].as_str().unwrap().contains(":443"), "{json}");
    assert_eq!(json[0]["message"], "there is no route");
}

#[test]
fn a_duplicate_route_points_at_both_places() {
    let errors =
        parse(&format!("{HEAD}\n\n[[route]]\nsni = [\"b.test\", \"A.test\"]\nto = \"b:1\"\n")).unwrap_err();
    assert_eq!(kinds(&errors), ["duplicate-route"]);
    let drawn = errors.to_string();
    assert!(
        drawn.contains("3 | sni = \"a.test\"") && drawn.contains("8 | sni = [\"b.test\", \"A.test\"]"),
        "{drawn}"
    );
}

#[test]
fn routes_overlap_only_under_the_same_kinds_of_conditions() {
    let with = |first: &str, second: &str| {
        let route = "[[route]]\nsni = \"a.test\"\nto = \"10.0.0.1:443\"\n";
        let listeners = "listen = \":443\"\n[[listener]]\nname = \"b\"\nbind = \":444\"\n";
        parse(&format!("{listeners}{route}{first}\n{route}{second}\n"))
            .map_err(|errors| kinds(&errors).join(" "))
    };
    let overlap = Err("duplicate-route".to_owned());
    for (first, second) in [
        ("from = \"10.0.0.0/8\"", ""),
        ("from = \"10.0.0.0/8\"", "from = \"10.1.0.0/16\""),
        ("alpn = \"h2\"", "alpn = \"http/1.1\""),
        ("alpn = \"h2\"", "from = \"10.0.0.0/8\""),
        ("listener = \"b\"", "listener = \"default\""),
        ("ja4 = \"t13d*\"", ""),
        ("ja4 = \"t13d*\"", "ja4 = [\"t12*\", \"t13*\"]"),
        ("ja4 = \"t13d*\"", "alpn = \"h2\""),
        ("ja4 = \"t13d*\"\nalpn = \"h2\"", "ja4 = \"t13d*\"\nalpn = \"h3\""),
        ("listener = \"b\"\nalpn = \"h2\"", "listener = \"b\"\nalpn = \"h3\""),
    ] {
        assert!(with(first, second).is_ok(), "{first} / {second}");
    }
    for (first, second) in [
        ("", ""),
        ("from = [\"10.0.0.0/8\", \"192.0.2.1\"]", "from = [\"192.0.2.1/32\"]"),
        ("ja4 = [\"t13*\", \"t12d*\"]", "ja4 = \"t12d*\""),
        ("listener = [\"default\", \"b\"]\nalpn = \"h2\"", "listener = \"b\"\nalpn = [\"h3\", \"h2\"]"),
    ] {
        assert_eq!(with(first, second).map(|_| ()), overlap, "{first} / {second}");
    }
}

#[test]
fn users_and_groups_by_name_and_number_and_the_sandbox() {
    let identity = |keys: &str| parse(&format!("{keys}\n{HEAD}")).unwrap().identity;
    let account = |name: &str, uid, gid| Identity::Account(Account { name: name.into(), uid, gid });
    assert_eq!(identity(""), Identity::Unsaid);
    assert_eq!(identity("user = \"off\""), Identity::Kept);
    assert_eq!(identity("user = \"root\""), account("root", 0, 0));
    assert_eq!(identity("user = 0"), account("root", 0, 0));
    assert_eq!(identity("user = \"4000000001\"\ngroup = 7"), account("4000000001", 4_000_000_001, 7));
    assert_eq!(identity("user = 4000000001\ngroup = \"root\""), account("4000000001", 4_000_000_001, 0));
    assert_eq!(parse(&format!("sandbox = \"landlock\"\n{HEAD}")).unwrap().sandbox, Sandbox::Landlock);
    assert_eq!(parse(HEAD).unwrap().sandbox, Sandbox::Off);
    for (keys, kind, told) in [
        ("sandbox = \"seccomp\"", "bad-value", "`seccomp` is not one of `off` and `landlock`"),
        ("sandbox = true", "wrong-type", "\"landlock\" or \"off\""),
        ("user = \"no-such-user\"", "bad-value", "there is no user `no-such-user`"),
        ("user = \"root\"\ngroup = \"no-such-group\"", "bad-value", "there is no group `no-such-group`"),
        ("user = 4000000001", "missing-key", "user 4000000001 has no entry on this machine"),
        ("group = \"root\"", "conflict", "`group` needs a `user`"),
        ("user = \"off\"\ngroup = \"root\"", "conflict", "`group` needs a `user`"),
        ("user = -1", "wrong-type", "the name or number of a user"),
        ("group = []\nuser = 0", "wrong-type", "the name or number of a group"),
    ] {
        let errors = parse(&format!("{keys}\n{HEAD}")).unwrap_err();
        assert_eq!(kinds(&errors), [kind], "{keys}: {errors}");
        assert!(errors.to_string().contains(told), "{keys}: {errors}");
    }
}

#[test]
fn a_backend_that_is_the_proxy_itself_is_an_error() {
    let check = |listen: &str, to: &str| {
        let text = format!("listen = \"{listen}\"\n[[route]]\nsni = \"a.test\"\nto = \"{to}\"\n");
        parse(&text).is_err()
    };
    for (listen, to) in [
        (":443", "127.0.0.1:443"),
        (":443", "[::1]:443"),
        ("0.0.0.0:443", "127.8.8.8:443"),
        ("127.0.0.1:443", "127.0.0.1:443"),
        ("127.0.0.1:443", "0.0.0.0:443"),
        ("10.0.0.1:443", "10.0.0.1:443"),
    ] {
        assert!(check(listen, to), "{listen} → {to}");
    }
    for (listen, to) in [
        (":443", "127.0.0.1:444"),
        (":443", "10.0.0.1:443"),
        ("0.0.0.0:443", "[::1]:443"),
        ("[::]:443", "127.0.0.1:443"),
        ("127.0.0.1:443", "127.0.0.2:443"),
        ("127.0.0.1:0", "127.0.0.1:443"),
    ] {
        assert!(!check(listen, to), "{listen} → {to}");
    }
}

/// It is as long as the route's `connect`, unless something else is said for the route or for all.
#[test]
fn an_answer_may_take_as_long_as_is_said_or_as_a_connection() {
    for (all, route, answer, line) in [
        ("connect = '2s'", "", Some(secs(2)), Some(1)),
        ("connect = '2s'", "connect = '1s'", Some(secs(1)), Some(6)),
        ("answer = '5s'", "connect = '1s'", Some(secs(5)), Some(1)),
        ("answer = '5s'", "answer = '7s'", Some(secs(7)), Some(6)),
        ("answer = 'off'", "connect = '1s'", None, Some(1)),
        ("answer = 'off'", "answer = '7s'", Some(secs(7)), Some(6)),
        ("", "answer = 'off'", None, Some(6)),
        ("", "", Some(secs(3)), None),
    ] {
        let text = format!(
            "timeouts = {{ {all} }}\nlisten = ':443'\n[[route]]\nsni = 'a.test'\nto = '10.0.0.1:443'\n\
             timeouts = {{ {route} }}\n"
        );
        let config = parse(&text).unwrap();
        let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("passed through") };
        assert_eq!(to.answer_timeout, answer, "{all}, {route}");
        let told = config.effective.iter().find(|one| one.key == "route[a.test].timeouts.answer").unwrap();
        assert_eq!(told.origin.as_ref().map(|origin| origin.line), line, "{all}, {route}");
    }
}

#[test]
fn effective_settings_tell_where_they_come_from() {
    let config = parse(EXAMPLE).unwrap();
    let find = |key: &str| {
        let setting = config.effective.iter().find(|setting| setting.key == key).expect(key);
        (setting.value.as_str(), setting.origin.as_ref().map(|origin| (origin.line, origin.column)))
    };
    assert_eq!(find("timeouts.idle"), ("\"10m\"", Some((5, 23))));
    assert_eq!(find("timeouts.hello"), ("\"5s\"", None));
    assert_eq!(find("connection_limit.per_ip"), ("\"off\"", Some((6, 31))));
    assert_eq!(find("connection_limit.before_hello"), ("32", None));
    assert_eq!(find("route[git].timeouts.idle"), ("\"1h\"", Some((31, 21))));
    assert_eq!(find("route[app.example.com].timeouts.idle"), ("\"10m\"", Some((5, 23))));
    assert_eq!(find("route[git].timeouts.connect"), ("\"3s\"", None));
    assert_eq!(find("timeouts.answer"), ("\"3s\"", None));
    assert_eq!(find("route[git].timeouts.answer"), ("\"3s\"", None));
    assert_eq!(find("route[no-sni].reject"), ("\"close\"", Some((35, 10))));
    assert_eq!(find("listener[default].silent_after"), ("\"2s\"", None));
    assert_eq!(find("unknown_protocol"), ("\"answer\"", None));
    let keys: HashSet<_> = config.effective.iter().map(|setting| &setting.key).collect();
    assert_eq!(keys.len(), config.effective.len(), "no setting is told twice");
    for setting in &config.effective {
        toml::from_str::<toml::Table>(&format!("x = {}", setting.value)).expect(&setting.key);
    }
}

#[test]
fn proxies_before_and_backends_behind_are_told_of_clients_as_configured() {
    let text = "listen = \":443\"\nproxy_protocol = [\"10.0.0.0/8\", \"::1\"]\n\
                [[listener]]\nname = \"lan\"\nbind = \"10.0.0.1:444\"\n\
                [[route]]\nsni = \"a.test\"\nto = \"10.0.0.2:443\"\nproxy_protocol = \"v2\"\n\
                [[route]]\nsni = \"b.test\"\nto = \"10.0.0.2:443\"\nproxy_protocol = \"off\"\n\
                [[route]]\nsni = \"c.test\"\nto = \"10.0.0.2:443\"\nproxy_protocol = \"v1\"\n";
    let config = parse(text).unwrap();
    assert_eq!(config.listeners[0].proxy_protocol, [net("10.0.0.0/8"), net("::1/128")]);
    assert!(config.listeners[1].proxy_protocol.is_empty());
    let versions = config.routes.iter().map(|route| {
        let ActionConfig::Passthrough(to) = &route.action else { panic!("passed through") };
        to.proxy_protocol
    });
    let versions: Vec<_> = versions.collect();
    assert_eq!(versions, [Some(crate::net::ProxyVersion::V2), None, Some(crate::net::ProxyVersion::V1)]);
    let find = |key: &str| config.effective.iter().find(|setting| setting.key == key).expect(key);
    let listener = find("listener[default].proxy_protocol");
    assert_eq!(listener.value, "[\"10.0.0.0/8\", \"::1/128\"]");
    assert_eq!(listener.origin.as_ref().unwrap().line, 2);
    assert_eq!(find("listener[lan].proxy_protocol").value, "[]");
    assert_eq!(find("route[a.test].proxy_protocol").value, "\"v2\"");
    let bare = parse(&format!("{HEAD}proxy_protocol = \"off\"\n")).unwrap();
    assert!(bare.effective.iter().any(|setting| setting.key == "route[a.test].proxy_protocol"));
    let message = |keys: &str| parse(&format!("{HEAD}{keys}")).unwrap_err().to_string();
    let error = message("proxy_protocol = \"v\"\n");
    assert!(error.contains("`v` is not one of `v1` and `v2`"), "{error}");
    let error = parse(&format!("proxy_protocol = \"v2\"\n{HEAD}")).unwrap_err().to_string();
    assert!(error.contains("`v2` is not a network") && error.contains("10.0.0.0/8"), "{error}");
}

#[test]
fn transparent_routes_tell_where_they_say_so() {
    let with = |line: &str| parse(&format!("{HEAD}{line}\n"));
    let find = |line: &str| {
        let config = with(line).unwrap();
        let ActionConfig::Passthrough(to) = &config.routes[0].action else { panic!("passed through") };
        let key = "route[a.test].transparent";
        let value = config.effective.iter().find(|setting| setting.key == key).unwrap().value.clone();
        (value, to.transparent.as_ref().map(|origin| (origin.line, origin.column)))
    };
    assert_eq!(find("transparent = true"), ("true".to_owned(), Some((5, 15))));
    assert_eq!(find("transparent = false"), ("false".to_owned(), None));
    assert_eq!(find(""), ("false".to_owned(), None));
    let error = with("transparent = 1").unwrap_err().to_string();
    assert!(error.contains("expected true or false, found an integer"), "{error}");
    // A family that clients may have, by any listener or a proxy before one, is enough.
    let route = "[[route]]\nsni = \"a.test\"\nto = \"[2001:db8::1]:443\"\ntransparent = true\n";
    for (listeners, valid) in [
        ("listen = \":443\"\n", true),
        ("listen = \"0.0.0.0:443\"\n", false),
        ("listen = [\"0.0.0.0:443\", \"[::1]:443\"]\n", true),
        ("listen = \"0.0.0.0:443\"\nproxy_protocol = \"10.0.0.1\"\n", true),
        ("listen = \"0.0.0.0:443\"\n[[listener]]\nname = \"b\"\nbind = \"[::]:444\"\n", true),
    ] {
        assert_eq!(parse(&format!("{listeners}{route}")).is_ok(), valid, "{listeners}");
    }
    let bad = "listen = \"0.0.0.0:443\"\n[[listener]]\nname = \"b\"\nbind = \"nonsense\"\n";
    assert_eq!(kinds(&parse(&format!("{bad}{route}")).unwrap_err()), ["bad-address"]);
}

#[test]
fn included_files_are_merged_in_order_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    fs::create_dir(folder.path().join("conf.d")).unwrap();
    write("main.toml", &format!("include = \"conf.d/*.toml\"\n{HEAD}"));
    write("conf.d/b.toml", "[[route]]\nsni = \"b.test\"\nto = \"b.test:1\"\n");
    write("conf.d/a.toml", "workers = 3\n[[route]]\nsni = \"c.test\"\nto = \"c.test:1\"\n");
    write("conf.d/ignored.txt", "nonsense");
    let config = Config::load(&folder.path().join("main.toml")).unwrap();
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["a.test", "c.test", "b.test"]);
    assert_eq!(config.workers, Some(3));
    assert!(config.routes[2].origin.to_string().ends_with("conf.d/b.toml:1"));
    let effective = config.effective.iter().find(|setting| setting.key == "workers").unwrap();
    assert!(effective.origin.as_ref().unwrap().file.ends_with("conf.d/a.toml"));

    write("conf.d/b.toml", "[[route]]\nsni = \"a.test\"\nto = \"b.test:1\"\n");
    let errors = Config::load(&folder.path().join("main.toml")).unwrap_err();
    assert_eq!(kinds(&errors), ["duplicate-route"]);
    let drawn = errors.to_string();
    assert!(drawn.contains("main.toml:4:7") && drawn.contains("conf.d/b.toml:2:7"), "{drawn}");
}

#[test]
fn a_pattern_that_matches_nothing_is_no_error_and_one_that_matches_its_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("main.toml");
    fs::write(&main, format!("include = \"conf.d/*.toml\"\n{HEAD}")).unwrap();
    assert!(Config::load(&main).is_ok());
    fs::write(&main, format!("include = \"*.toml\"\n{HEAD}")).unwrap();
    assert_eq!(kinds(&Config::load(&main).unwrap_err()), ["bad-include"]);
    fs::write(&main, format!("include = \"conf.d/[\"\n{HEAD}")).unwrap();
    assert_eq!(kinds(&Config::load(&main).unwrap_err()), ["bad-include"]);
}

#[test]
fn a_missing_file_is_an_error_with_its_path() {
    let errors = Config::load(Path::new("/nonexistent/portcullis.toml")).unwrap_err();
    assert_eq!(kinds(&errors), ["io"]);
    let drawn = errors.to_string();
    assert!(drawn.contains("/nonexistent/portcullis.toml") && drawn.contains("help:"), "{drawn}");
    assert_eq!(errors.to_json()[0]["file"], "/nonexistent/portcullis.toml");
}

#[test]
fn a_file_above_16_mib_is_refused() {
    let text = "#".repeat(16 * 1024 * 1024 + 1);
    assert_eq!(kinds(&parse(&text).unwrap_err()), ["too-large"]);
}
