use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn headers(hosts: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for host in hosts {
        headers.append(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
    }
    headers
}

fn http1(uri: &str, hosts: &[&str]) -> Result<Target, TargetError> {
    Target::read(&Method::GET, uri, &headers(hosts), Spoken::Http11)
}

fn http2(uri: &str, authority: Option<&str>, hosts: &[&str]) -> Result<Target, TargetError> {
    let spoken = Spoken::Http2 { authority, scheme: Some("https") };
    Target::read(&Method::GET, uri, &headers(hosts), spoken)
}

/// `host port path query` of a target.
fn shape(target: &Target) -> String {
    format!("{} {}", target.authority(), target.uri())
}

#[test]
fn forms_of_targets() {
    for (uri, host, expected) in [
        ("/", "a.test", "a.test /"),
        ("/x?y=1", "A.Test", "a.test /x?y=1"),
        ("/x?", "a.test.", "a.test /x?"),
        ("/", "a.test:8080", "a.test:8080 /"),
        ("/", "192.0.2.1:80", "192.0.2.1:80 /"),
        ("/", "[2001:DB8:0::1]:8443", "[2001:db8::1]:8443 /"),
        ("/", "[::1]", "[::1] /"),
        ("/", "under_score", "under_score /"),
        ("//b.test/x", "a.test", "a.test /b.test/x"),
        ("http://a.test/x?y", "a.test", "a.test /x?y"),
        ("http://a.test", "a.test", "a.test /"),
        ("HTTP://A.TEST:80/x", "a.test", "a.test:80 /x"),
        ("http://a.test/x", "a.test:80", "a.test /x"),
        ("https://a.test:443/x", "a.test", "a.test:443 /x"),
        ("/a?b=http://c/../%2f\\", "a.test", "a.test /a?b=http://c/../%2f\\"),
        ("/a?b c\tä\"<>", "a.test", "a.test /a?b%20c%09%C3%A4%22%3C%3E"),
        ("/a??b", "a.test", "a.test /a??b"),
    ] {
        assert_eq!(http1(uri, &[host]).as_ref().map(shape).as_deref(), Ok(expected), "{uri} {host}");
    }
}

const BAD_HOSTS: &[&str] = &[
    "",
    " ",
    ".",
    "a b",
    "a.test,b.test",
    "a.test, b.test",
    "user@a.test",
    "user:pw@a.test",
    "a.test/",
    "a.test/x",
    "a.test?x",
    "a.test#x",
    "a.test:",
    "a.test:x",
    "a.test:0",
    "a.test:080",
    "a.test:65536",
    "a.test:-1",
    "a.test:+80",
    "a.test:80:80",
    "a.test:80 ",
    "a..test",
    ".a.test",
    "a.test..",
    "*",
    "*.test",
    "ä.test",
    "a%2etest",
    "a\\b",
    "[::1",
    "::1",
    "[::1]x",
    "[::1]:",
    "[a.test]",
    "[::1%25eth0]",
    "[127.0.0.1]",
    "127.1",
    "127.0.0.1.",
    "2130706433",
    "0x7f000001",
    "127.0.0.0x1",
    "0177.0.0.01",
    "http://a.test",
    "a.test\tb",
];

#[test]
fn hosts_that_are_not_clear_are_refused() {
    for host in BAD_HOSTS {
        let error = http1("/", &[host]).unwrap_err();
        assert_eq!((error, error.status()), (TargetError::Host, StatusCode::BAD_REQUEST), "{host}");
        assert_eq!(http2("/", Some(host), &[]), Err(TargetError::Host), "{host}");
        // There a slash is where the path begins.
        let url = http1(&format!("http://{host}/"), &["a.test"]);
        assert!(url.is_err() || host.starts_with("a.test/"), "{host}");
    }
    let long = format!("{}.test", "a".repeat(64));
    assert_eq!(http1("/", &[&long]), Err(TargetError::Host));
}

#[test]
fn targets_that_are_not_clear_are_refused() {
    for (uri, hosts, error) in [
        ("/", &[][..], TargetError::NoHost),
        ("http://a.test/", &[], TargetError::NoHost),
        ("/", &["a.test", "a.test"], TargetError::ManyHosts),
        ("/", &["a.test", "b.test"], TargetError::ManyHosts),
        ("http://a.test/", &["b.test"], TargetError::Differ),
        ("http://a.test/", &["a.test:8080"], TargetError::Differ),
        ("http://a.test:8080/", &["a.test"], TargetError::Differ),
        ("https://a.test/", &["a.test:80"], TargetError::Differ),
        ("http://user@a.test/", &["a.test"], TargetError::Host),
        ("http:///x", &["a.test"], TargetError::Host),
        ("http://a.test?x", &["a.test"], TargetError::Form),
        ("http://a.test#x", &["a.test"], TargetError::Form),
        ("http:/a.test/", &["a.test"], TargetError::Form),
        ("http:a.test", &["a.test"], TargetError::Form),
        ("ftp://a.test/", &["a.test"], TargetError::Scheme),
        ("x", &["a.test"], TargetError::Form),
        ("", &["a.test"], TargetError::Form),
        ("*", &["a.test"], TargetError::Form),
        ("?x", &["a.test"], TargetError::Form),
        ("a.test:443", &["a.test"], TargetError::Form),
        ("/a#b", &["a.test"], TargetError::Path(PathError::Fragment)),
        ("/a?b#c", &["a.test"], TargetError::Path(PathError::Fragment)),
        ("/a%2fb", &["a.test"], TargetError::Path(PathError::Slash)),
        ("http://a.test/../x", &["a.test"], TargetError::Path(PathError::Climb)),
    ] {
        assert_eq!(http1(uri, hosts), Err(error), "{uri} {hosts:?}");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        assert!(
            TargetError::REASONS.contains(&error.reason()) || PathError::REASONS.contains(&error.reason())
        );
    }
}

#[test]
fn the_whole_server_is_asked_by_options_alone() {
    let options = |uri| Target::read(&Method::OPTIONS, uri, &headers(&["a.test"]), Spoken::Http11);
    assert_eq!(options("*").as_ref().map(shape).as_deref(), Ok("a.test *"));
    assert_eq!(options("http://a.test").as_ref().map(shape).as_deref(), Ok("a.test *"));
    assert_eq!(options("*?").unwrap_err(), TargetError::Form);
    assert_eq!(options("/*").unwrap().match_path(), "/*");
    for uri in ["a.test:443", "/", "*"] {
        let error = Target::read(&Method::CONNECT, uri, &headers(&["a.test"]), Spoken::Http11).unwrap_err();
        assert_eq!((error, error.status()), (TargetError::Connect, StatusCode::METHOD_NOT_ALLOWED));
    }
}

#[test]
fn old_clients_need_not_say_which_host() {
    let old = |uri, hosts: &[&str]| Target::read(&Method::GET, uri, &headers(hosts), Spoken::Http10);
    assert_eq!(&*old("/x", &[]).unwrap().host, "");
    assert_eq!(&*old("/x", &["a.test"]).unwrap().host, "a.test");
    assert_eq!(&*old("http://a.test/x", &[]).unwrap().host, "a.test");
    assert_eq!(old("/x", &[""]), Err(TargetError::Host));
    assert_eq!(old("/x", &["a.test", "a.test"]), Err(TargetError::ManyHosts));
    assert_eq!(old("http://a.test/x", &["b.test"]), Err(TargetError::Differ));
}

#[test]
fn authority_and_host_of_http2_agree() {
    for (authority, hosts, expected) in [
        (Some("A.test"), &[][..], Ok("a.test /x")),
        (Some("a.test:443"), &["a.test"], Ok("a.test:443 /x")),
        (None, &["a.test"], Ok("a.test /x")),
        (Some("a.test"), &["b.test"], Err(TargetError::Differ)),
        (Some("a.test"), &["a.test:80"], Err(TargetError::Differ)),
        (Some("a.test"), &["a.test", "a.test"], Err(TargetError::ManyHosts)),
        (None, &[], Err(TargetError::NoHost)),
        (Some(""), &["a.test"], Err(TargetError::Host)),
    ] {
        let read = http2("/x", authority, hosts).map(|target| shape(&target));
        assert_eq!(read, expected.map(|text: &str| text.to_owned()), "{authority:?} {hosts:?}");
    }
    assert_eq!(http2("http://a.test/", Some("a.test"), &[]), Err(TargetError::Form));
    assert_eq!(http2("", Some("a.test"), &[]), Err(TargetError::Form));
    let spoken = Spoken::Http2 { authority: Some("a.test"), scheme: Some("ftp") };
    assert_eq!(Target::read(&Method::GET, "/", &HeaderMap::new(), spoken), Err(TargetError::Scheme));
}

#[test]
fn connections_are_for_the_host_that_is_asked_for() {
    let target = http1("https://a.test/", &["a.test"]).unwrap();
    let name = |name: &str| ServerName::parse(name.as_bytes()).unwrap();
    assert_eq!(target.check_server_name(&name("A.test.")), Ok(()));
    assert_eq!(target.check_server_name(&name("b.test")), Err(TargetError::Misdirected));
    assert_eq!(target.check_scheme(Scheme::Https), Ok(()));
    assert_eq!(target.check_scheme(Scheme::Http), Err(TargetError::Misdirected));
    assert_eq!(TargetError::Misdirected.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(http1("/", &["a.test"]).unwrap().check_scheme(Scheme::Http), Ok(()));
}

#[test]
fn rules_look_at_paths_without_parameters() {
    let target = http1("/a;v=1/b?x;y", &["a.test"]).unwrap();
    assert_eq!(
        (&*target.path, target.match_path(), target.query.as_deref()),
        ("/a;v=1/b", "/a/b", Some("x;y"))
    );
    assert_eq!(http1("/a/b", &["a.test"]).unwrap().match_path(), "/a/b");
}

proptest! {
    /// Whatever is accepted can be sent, and reads the same again.
    #[test]
    fn what_is_read_reads_the_same(path in "/\\PC{0,20}", host in "[a-zA-Z0-9.:\\[\\]@, -]{0,12}") {
        let Ok(target) = http1(&path, &[&host]) else { return Ok(()) };
        let again = http1(&target.uri(), &[&target.authority()]).unwrap();
        prop_assert_eq!(&again, &target);
        let uri: http::Uri = target.uri().parse().unwrap();
        prop_assert_eq!(uri.path_and_query().unwrap().as_str(), &*target.uri());
    }

    #[test]
    fn nothing_panics(uri in "\\PC*", host in "\\PC*", authority in "\\PC*") {
        let hosts: HeaderMap = HeaderValue::from_bytes(host.as_bytes()).map(|host| (HOST, host)).into_iter().collect();
        for spoken in [Spoken::Http11, Spoken::Http2 { authority: Some(&authority), scheme: None }] {
            let _ = Target::read(&Method::OPTIONS, &uri, &hosts, spoken);
        }
    }
}
