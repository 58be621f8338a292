use super::super::super::{Config, ConfigErrors};
use super::*;
use crate::net::ProxyVersion;

/// What `health = …` becomes, and what is noted of it.
fn health(value: &str) -> Result<(Option<HealthConfig>, Vec<String>), ConfigErrors> {
    let text = format!(
        "listen = ':443'\n[[upstream]]\nname = 'db'\nto = '10.0.0.1:5432'\nhealth = {value}\n\
         [[route]]\nsni = 'a.test'\nupstream = 'db'\n"
    );
    let config = Config::parse(Path::new("test.toml"), &text)?;
    let noted = config.effective.iter().filter(|setting| setting.key.starts_with("upstream[db].health"));
    let noted = noted.map(|setting| format!("{} = {}", setting.key, setting.value)).collect();
    Ok((config.upstreams[0].health.clone(), noted))
}

fn good(value: &str) -> HealthConfig {
    health(value).unwrap_or_else(|errors| panic!("{value}: {errors}")).0.unwrap()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_word_is_a_check_with_the_defaults() {
    let defaults = |check| HealthConfig {
        check,
        interval: secs(5),
        timeout: secs(2),
        rise: 2,
        fall: 3,
        port: None,
        agent: None,
        proxy_protocol: None,
    };
    let tls = TlsCheck { sni: None, verify: Verify::Off, expiry_warning: secs(14 * 86_400) };
    let http = HttpCheck { path: "/".parse().unwrap(), host: None, status: vec![200..=399], body: None };
    for (word, check) in [
        ("tcp", Check::Tcp),
        ("tls", Check::Tls(tls.clone())),
        ("http", Check::Http(http.clone(), None)),
        ("https", Check::Http(http, Some(tls))),
        ("postgres", Check::Postgres),
        ("mysql", Check::Mysql),
        ("redis", Check::Redis),
        ("ssh", Check::Ssh),
        ("smtp", Check::Smtp),
    ] {
        assert_eq!(check.as_str(), word);
        assert_eq!(good(&format!("'{word}'")), defaults(check.clone()), "{word}");
        assert_eq!(good(&format!("{{ check = '{word}' }}")), defaults(check), "{word}");
    }
    for off in ["'off'", "{ check = 'off' }"] {
        let (found, noted) = health(off).unwrap();
        assert_eq!(found, None);
        assert_eq!(noted, ["upstream[db].health = \"off\""]);
    }
}

#[test]
fn every_key_is_taken_and_noted() {
    let text = "{ check = 'https', interval = '10s', timeout = '3s', rise = 1, fall = 5, port = 8443, \
                sni = 'App.test', expiry_warning = '3d', path = '/up?full=1', host = 'a.test:1', \
                status = [204, '301-302'], body = 'ok', agent = { port = 9000 }, proxy_protocol = 'v2' }";
    let found = good(text);
    assert_eq!((found.interval, found.timeout, found.rise, found.fall), (secs(10), secs(3), 1, 5));
    assert_eq!((found.port, found.agent), (Some(8443), Some(9000)));
    assert_eq!(found.proxy_protocol, Some(ProxyVersion::V2));
    let Check::Http(http, Some(tls)) = &found.check else { panic!("{found:?}") };
    assert_eq!(
        (http.path.as_str(), http.host.as_ref().unwrap().to_str().unwrap(), http.body.as_deref()),
        ("/up?full=1", "a.test:1", Some("ok"))
    );
    assert_eq!(http.status, [204..=204, 301..=302]);
    assert_eq!(tls.sni.as_ref().unwrap().as_str(), "app.test");
    assert_eq!(tls.expiry_warning, secs(3 * 86_400));
    assert_eq!(good("{ check = 'tcp', agent = 9000 }").agent, Some(9000));
    let (_, noted) = health(text).unwrap();
    let expected = [
        "check = \"https\"",
        "interval = \"10s\"",
        "timeout = \"3s\"",
        "rise = 1",
        "fall = 5",
        "port = 8443",
        "agent = 9000",
        "proxy_protocol = \"v2\"",
        "sni = \"app.test\"",
        "verify = \"off\"",
        "expiry_warning = \"3d\"",
        "path = \"/up?full=1\"",
        "host = \"a.test:1\"",
        "status = [\"204\", \"301-302\"]",
        "body = \"ok\"",
    ];
    assert_eq!(noted, expected.map(|line| format!("upstream[db].health.{line}")));
}

#[test]
fn a_short_interval_has_a_shorter_timeout() {
    assert_eq!(good("{ check = 'tcp', interval = '1s' }").timeout, Duration::from_millis(500));
    assert_eq!(good("{ check = 'tcp', interval = '1m' }").timeout, secs(2));
}

#[test]
fn certificates_are_verified_against_a_file_or_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    let rcgen::CertifiedKey { cert, .. } = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    std::fs::write(&file, cert.pem()).unwrap();
    let with = |verify: &str| format!("{{ check = 'tls', sni = 'a.test', verify = '{verify}' }}");
    let found = good(&with(file.to_str().unwrap()));
    let Some(TlsCheck { verify: Verify::Roots(roots), .. }) = found.check.tls() else { panic!("{found:?}") };
    assert_eq!((roots.file.as_deref(), roots.certificates.len()), (Some(&*file), 1));
    let told = |text: &str| health(text).unwrap_err().to_string();
    std::fs::write(&file, "nothing").unwrap();
    assert!(told(&with(file.to_str().unwrap())).contains("the file holds no certificate"));
    let absent = told(&with(dir.path().join("absent").to_str().unwrap()));
    assert!(absent.contains("cannot read the certificates"), "{absent}");
    let unnamed = told("{ check = 'tls', verify = 'system' }");
    assert!(unnamed.contains("a certificate is verified for a name, and none is given"), "{unnamed}");
}

/// Each text has one error of this kind, which says so.
fn refused(cases: &[(&str, &str, &str)]) {
    for (text, kind, told) in cases {
        let errors = health(text).expect_err(text);
        let kinds: Vec<_> = errors.iter().map(|error| error.kind().as_str()).collect();
        assert_eq!(kinds, [*kind], "{text}: {errors}");
        assert!(errors.to_string().contains(told), "{text}: {errors}");
    }
}

#[test]
fn keys_and_times_that_do_not_fit_are_told_with_what_to_write() {
    refused(&[
        ("'htpp'", "bad-value", "did you mean `http`?"),
        ("true", "wrong-type", "expected the name of a check or a table"),
        ("{ interval = '1s' }", "missing-key", "`check` is missing"),
        ("{ check = 'tcp', path = '/up' }", "conflict", "a check of `tcp` has no `path`"),
        ("{ check = 'tcp', path = '/up' }", "conflict", "`path` is for `http` and `https`"),
        ("{ check = 'http', sni = 'a.test' }", "conflict", "a check of `http` has no `sni`"),
        ("{ check = 'smtp', verify = 'off' }", "conflict", "`verify` is for `tls` and `https`"),
        ("{ check = 'tls', status = 200 }", "conflict", "a check of `tls` has no `status`"),
        ("{ check = 'off', agent = 9000 }", "conflict", "an agent is asked beside a check"),
        (
            "{ check = 'tcp', timeout = '5s' }",
            "conflict",
            "a check may take 5s, and the next one begins after 5s",
        ),
        ("{ check = 'tcp', interval = '1s', timeout = '2s' }", "conflict", "`interval` is here"),
        (
            "{ check = 'tcp', interval = '10ms' }",
            "out-of-range",
            "`upstream[db].health.interval` is below 100ms",
        ),
        (
            "{ check = 'tcp', interval = '0s' }",
            "out-of-range",
            "`upstream[db].health.interval` cannot be zero",
        ),
        ("{ check = 'tcp', interval = 5 }", "missing-unit", "a duration needs a unit"),
        ("{ check = 'tcp', fall = 0 }", "out-of-range", "`0` is not between 1 and 100"),
        ("{ check = 'tcp', rise = 101 }", "out-of-range", "`101` is not between 1 and 100"),
        ("{ check = 'tcp', port = 0 }", "out-of-range", "`0` is not between 1 and 65535"),
        ("{ check = 'tcp', proxy_protocol = 'v3' }", "bad-value", "`v3` is not one of `v1` and `v2`"),
        ("{ check = 'tcp', agent = {} }", "missing-key", "`port` is missing"),
        ("{ check = 'tcp', pth = '/' }", "unknown-key", "did you mean `path`?"),
    ]);
}

#[test]
fn values_that_mean_nothing_are_told_with_what_to_write() {
    refused(&[
        ("{ check = 'http', path = 'up' }", "bad-value", "`up` is not a path of HTTP"),
        ("{ check = 'http', path = '/a b' }", "bad-value", "write it from the first slash on"),
        ("{ check = 'http', path = '/#x' }", "bad-value", "is not a path of HTTP"),
        ("{ check = 'http', host = 'a b' }", "bad-name", "`a b` is not a `Host` of HTTP"),
        ("{ check = 'http', body = '' }", "out-of-range", "this one has 0"),
        ("{ check = 'http', status = 99 }", "bad-value", "`99` is no status of HTTP"),
        ("{ check = 'http', status = ['299-200'] }", "bad-value", "`299-200` is no status of HTTP"),
        ("{ check = 'http', status = '+20' }", "bad-value", "`+20` is no status of HTTP"),
        ("{ check = 'http', status = [] }", "out-of-range", "the list is empty"),
        ("{ check = 'http', status = 2.5 }", "wrong-type", "a status such as 204"),
        ("{ check = 'tls', verify = 'on' }", "bad-value", "write `\"off\"`, `\"system\"`"),
        ("{ check = 'tls', sni = '10.0.0.1' }", "bad-name", "is not a server name"),
        ("{ check = 'tls', expiry_warning = '0s' }", "out-of-range", "cannot be zero"),
    ]);
}
