use proptest::prelude::*;

use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// `name: value` of all fields, sorted.
fn lines(headers: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
    let mut lines: Vec<_> = headers.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn what_is_for_one_connection_goes() {
    let mut headers = map(&[
        ("connection", "close, X-Mine ,, x-other"),
        ("connection", "keep-alive, x-last"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("te", "gzip;q=0.5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("x-mine", "1"),
        ("x-mine", "2"),
        ("x-other", "1"),
        ("x-last", "1"),
        ("x-stays", "1"),
        ("trailer", "x-sum"),
        ("proxy-authorization", "Basic eDp5"),
    ]);
    let found = forwardable(&mut headers, Message::Request).unwrap();
    assert_eq!(found, HopByHop { close: true, keep_alive: true, ..HopByHop::default() });
    assert_eq!(lines(&headers), ["proxy-authorization: Basic eDp5", "trailer: x-sum", "x-stays: 1"]);
}

#[test]
fn nobody_takes_out_what_a_message_needs() {
    let needed = "x-forwarded-for x-forwarded-proto x-forwarded-host x-real-ip forwarded via authorization \
        cookie set-cookie host content-length content-type content-encoding content-range \
        cache-control pragma expires vary etag date location range if-match if-none-match \
        if-modified-since expect accept accept-encoding origin referer user-agent sec-websocket-key \
        sec-fetch-site www-authenticate strict-transport-security access-control-allow-origin \
        traceparent x-request-id max-forwards trailer age";
    for name in needed.split(' ') {
        for written in [name.to_owned(), name.to_ascii_uppercase(), format!("close ,\t{name} , x")] {
            let mut headers = map(&[("connection", &written), (name, "1"), ("x", "1")]);
            for message in [Message::Request, Message::Response] {
                forwardable(&mut headers, message).unwrap();
                assert!(headers.contains_key(name), "{written}");
            }
            assert!(!headers.contains_key("connection"), "{written}");
        }
    }
}

#[test]
fn upgrades_are_told_and_not_passed_on() {
    for (connection, upgrade, expected) in [
        ("Upgrade", "websocket", &["websocket"][..]),
        ("keep-alive, upgrade", "WebSocket, foo/2", &["websocket", "foo/2"]),
        ("Upgrade, HTTP2-Settings", "h2c", &[]),
        ("Upgrade", "H2C, websocket", &["websocket"]),
        ("close", "websocket", &[]),
        ("", "websocket", &[]),
    ] {
        let mut headers = map(&[("connection", connection), ("upgrade", upgrade), ("http2-settings", "x")]);
        let found = forwardable(&mut headers, Message::Request).unwrap();
        let protocols: Vec<_> = found.upgrade.iter().map(|protocol| &**protocol).collect();
        assert_eq!(protocols, expected, "{connection} {upgrade}");
        assert!(headers.is_empty(), "{connection} {upgrade}");
    }
}

#[test]
fn lists_that_are_none_are_refused() {
    for (name, value) in [
        ("connection", "a b"),
        ("connection", "\"close\""),
        ("connection", "close;x"),
        ("connection", "ä"),
        ("connection", "x:y"),
        ("upgrade", "web socket"),
        ("upgrade", "a/b/c"),
        ("upgrade", "/1"),
        ("upgrade", "ä"),
    ] {
        let mut headers = map(&[("connection", "upgrade"), (name, value)]);
        let error = forwardable(&mut headers, Message::Request).unwrap_err();
        assert_eq!(
            (error, error.status()),
            (FieldError::Connection, StatusCode::BAD_REQUEST),
            "{name}: {value}"
        );
        assert!(FieldError::REASONS.contains(&error.reason()));
    }
}

#[test]
fn trailers_may_be_welcome() {
    for (te, expected) in [
        ("trailers", true),
        ("gzip;q=0.5, Trailers", true),
        ("gzip", false),
        ("trailers;q=1", false),
        ("", false),
    ] {
        let mut headers = map(&[("te", te), ("connection", "te")]);
        assert_eq!(forwardable(&mut headers, Message::Request).unwrap().trailers, expected, "{te}");
        assert_eq!(
            headers.get("te").map(HeaderValue::as_bytes),
            expected.then_some(&b"trailers"[..]),
            "{te}"
        );
        let mut headers = map(&[("te", te)]);
        assert!(!forwardable(&mut headers, Message::Response).unwrap().trailers);
        assert!(headers.is_empty());
    }
}

#[test]
fn fields_with_underscores_are_dropped_from_requests() {
    let fields = [("x_real_ip", "1"), ("x-forwarded_for", "1"), ("x_forwarded_for", "1"), ("x-a", "1")];
    let mut headers = map(&fields);
    assert_eq!(forwardable(&mut headers, Message::Request).unwrap().dropped, 3);
    assert_eq!(lines(&headers), ["x-a: 1"]);
    let mut headers = map(&fields);
    assert_eq!(forwardable(&mut headers, Message::Response).unwrap().dropped, 0);
    assert_eq!(headers.len(), 4);
}

const PEER: Peer<'_> = Peer {
    ip: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    client: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    trusted: false,
    scheme: Scheme::Https,
    authority: "a.test",
    port: 443,
    version: Version::HTTP_11,
    pseudonym: "portcullis-0a1b",
};

const SPOOFED: [(&str, &str); 9] = [
    ("x-forwarded-for", "10.0.0.1"),
    ("x-forwarded-for", "10.0.0.2, 10.0.0.3"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-host", "evil.test"),
    ("x-forwarded-port", "1"),
    ("x-real-ip", "10.0.0.1"),
    ("forwarded", "for=10.0.0.1"),
    ("forwarded", "for=10.0.0.2;proto=http"),
    ("via", "1.0 evil"),
];

#[test]
fn nobody_is_believed_who_is_not_trusted() {
    let mut headers = map(&SPOOFED);
    announce(&mut headers, &PEER);
    let expected = [
        "forwarded: for=192.0.2.1;host=a.test;proto=https",
        "via: 1.0 evil, 1.1 portcullis-0a1b",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: a.test",
        "x-forwarded-port: 443",
        "x-forwarded-proto: https",
        "x-real-ip: 192.0.2.1",
    ];
    assert_eq!(lines(&headers), expected);
}

#[test]
fn trusted_proxies_are_added_to() {
    let mut headers = map(&SPOOFED);
    announce(&mut headers, &Peer { trusted: true, client: "10.0.0.1".parse().unwrap(), ..PEER });
    let expected = [
        "forwarded: for=10.0.0.1, for=10.0.0.2;proto=http, for=192.0.2.1;host=a.test;proto=https",
        "via: 1.0 evil, 1.1 portcullis-0a1b",
        "x-forwarded-for: 10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.1",
        "x-forwarded-host: evil.test",
        "x-forwarded-port: 1",
        "x-forwarded-proto: http",
        "x-real-ip: 10.0.0.1",
    ];
    assert_eq!(lines(&headers), expected);
    // What can be none of these is not kept.
    let mut headers = map(&[
        ("x-forwarded-proto", "https"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a b"),
        ("x-forwarded-port", "x"),
    ]);
    announce(&mut headers, &Peer { trusted: true, authority: "a.test:8443", ..PEER });
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers.get_all("x-forwarded-proto").iter().count(), 1);
    assert_eq!(headers["x-forwarded-host"], "a.test:8443");
    assert_eq!(headers["x-forwarded-port"], "8443");
}

#[test]
fn addresses_of_ipv6_are_quoted() {
    let mut headers = HeaderMap::new();
    let ip = "2001:db8::1".parse().unwrap();
    announce(&mut headers, &Peer { ip, client: ip, authority: "[::1]:81", version: Version::HTTP_2, ..PEER });
    assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";host=\"[::1]:81\";proto=https");
    assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
    assert_eq!(headers["via"], "2.0 portcullis-0a1b");
    assert_eq!(headers["x-forwarded-port"], "81");
    let mut headers = HeaderMap::new();
    let ip = "::ffff:192.0.2.7".parse().unwrap();
    announce(&mut headers, &Peer { ip, client: ip, authority: "", ..PEER });
    assert_eq!(headers["forwarded"], "for=192.0.2.7;proto=https");
    assert_eq!(headers["x-real-ip"], "192.0.2.7");
    assert!(!headers.contains_key("x-forwarded-host"));
    let mut headers = HeaderMap::new();
    announce(&mut headers, &Peer { authority: "[::1]", ..PEER });
    assert_eq!(headers["x-forwarded-port"], "443");
}

#[test]
fn the_client_is_the_last_that_is_not_trusted() {
    let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
    for (peer, field, value, expected) in [
        ("192.0.2.1", "x-forwarded-for", "1.1.1.1", "192.0.2.1"),
        ("10.0.0.1", "x-forwarded-for", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "x-forwarded-for", "1.1.1.1, 2.2.2.2", "2.2.2.2"),
        ("10.0.0.1", "x-forwarded-for", "1.1.1.1, 2.2.2.2 ,10.0.0.2,\t10.9.9.9", "2.2.2.2"),
        ("10.0.0.1", "x-forwarded-for", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "x-forwarded-for", "1.1.1.1, evil, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "x-forwarded-for", "1.1.1.1, ", "10.0.0.1"),
        ("10.0.0.1", "x-forwarded-for", "", "10.0.0.1"),
        ("10.0.0.1", "x-forwarded-for", "1.1.1.1:443", "1.1.1.1"),
        ("10.0.0.1", "x-forwarded-for", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", "x-forwarded-for", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "x-forwarded-for", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "x-forwarded-for", "1.1.1.1, ::ffff:10.0.0.2", "1.1.1.1"),
        ("fd00::1", "x-forwarded-for", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "x-real-ip", "1.1.1.1", "10.0.0.1"),
        ("10.0.0.1", "forwarded", "for=1.1.1.1", "1.1.1.1"),
        (
            "10.0.0.1",
            "forwarded",
            "for=3.3.3.3, For=1.1.1.1;proto=https;by=10.0.0.1, for=\"10.0.0.2:80\"",
            "1.1.1.1",
        ),
        ("10.0.0.1", "forwarded", "by=\"a,b;for=3.3.3.3\";for=\"[2001:db8::1]:80\"", "2001:db8::1"),
        ("10.0.0.1", "forwarded", "for=1.1.1.1, by=\"\\\",for=3.3.3.3\"", "10.0.0.1"),
        ("10.0.0.1", "forwarded", "for=1.1.1.1, for=unknown", "10.0.0.1"),
        ("10.0.0.1", "forwarded", "for=1.1.1.1;for=2.2.2.2", "10.0.0.1"),
        ("10.0.0.1", "forwarded", "for=\"1.1.1.1", "10.0.0.1"),
        ("192.0.2.1", "forwarded", "for=1.1.1.1", "192.0.2.1"),
    ] {
        let client = client_of(&map(&[(field, value)]), peer.parse().unwrap(), &trusted);
        assert_eq!(client, expected.parse::<IpAddr>().unwrap(), "{peer} {field}: {value}");
    }
    let several =
        map(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("forwarded", "for=3.3.3.3")]);
    assert_eq!(
        client_of(&several, "10.0.0.1".parse().unwrap(), &trusted),
        "2.2.2.2".parse::<IpAddr>().unwrap()
    );
    assert_eq!(client_of(&several, "10.0.0.1".parse().unwrap(), &[]), "10.0.0.1".parse::<IpAddr>().unwrap());
}

#[test]
fn circles_are_found() {
    for (via, circle) in [
        (&[][..], false),
        (&["1.1 portcullis-0a1b"], false),
        (&["1.1 portcullis-0a1b, 1.1 other"], false),
        (&["1.1 portcullis-0a1b, 1.1 portcullis-ffff, 1.0 portcullis-0a1bc"], false),
        (&["1.1 portcullis-0a1b, 2.0 PORTCULLIS-0a1b (x)"], true),
        (&["1.1 portcullis-0a1b", "HTTP/1.1  portcullis-0a1b"], true),
    ] {
        let fields: Vec<_> = via.iter().map(|value| ("via", *value)).collect();
        let expected = if circle { Err(FieldError::Loop) } else { Ok(()) };
        assert_eq!(check_loop(&map(&fields), "portcullis-0a1b"), expected, "{via:?}");
    }
    let mut headers = HeaderMap::new();
    for _ in 0..2 {
        assert_eq!(check_loop(&headers, PEER.pseudonym), Ok(()));
        announce(&mut headers, &PEER);
    }
    assert_eq!(check_loop(&headers, PEER.pseudonym), Err(FieldError::Loop));
    assert_eq!(FieldError::Loop.status().as_u16(), 508);
}

#[test]
fn methods_that_answer_with_the_request_are_refused() {
    for (method, allowed) in [
        ("GET", true),
        ("HEAD", true),
        ("PROPFIND", true),
        ("QUERY", true),
        ("TRACE", false),
        ("TRACK", false),
        ("track", false),
        ("CONNECT", false),
    ] {
        assert_eq!(is_allowed(&Method::from_bytes(method.as_bytes()).unwrap()), allowed, "{method}");
    }
}

proptest! {
    /// Whatever a client says, a proxy that puts its address behind it is believed, and only that.
    #[test]
    fn clients_cannot_be_others(said in "[ -~]{0,40}", field in "x-forwarded-for|forwarded|x-real-ip") {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let client: IpAddr = "192.0.2.9".parse().unwrap();
        let mut headers = map(&[(&field, &said)]);
        prop_assert_eq!(client_of(&headers, client, &trusted), client);
        // The first proxy does not trust the client, those behind it trust each other.
        announce(&mut headers, &Peer { ip: client, client, ..PEER });
        for proxy in ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3"] {
            let ip = proxy.parse().unwrap();
            let found = client_of(&headers, ip, &trusted);
            prop_assert_eq!(found, client);
            announce(&mut headers, &Peer { ip, client: found, trusted: true, ..PEER });
        }
        prop_assert_eq!(&headers["x-forwarded-for"], "192.0.2.9, 10.0.0.1, 10.0.0.2, 10.0.0.3");
        prop_assert_eq!(&headers["x-real-ip"], "192.0.2.9");
        headers.remove(X_FORWARDED_FOR);
        prop_assert_eq!(client_of(&headers, "10.0.0.4".parse().unwrap(), &trusted), client);
    }

    /// Where a proxy only adds to what clients say, its own word is still the last.
    #[test]
    fn what_clients_say_before_is_not_read(said in "[ -~]{0,40}") {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let list = format!("{said}, 192.0.2.9");
        let found = client_of(&map(&[("x-forwarded-for", &list)]), "10.0.0.1".parse().unwrap(), &trusted);
        prop_assert_eq!(found, "192.0.2.9".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn nothing_panics(values in prop::collection::vec((0usize..6, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
        let names = ["connection", "upgrade", "te", "via", "x-forwarded-for", "forwarded"];
        let mut headers = HeaderMap::new();
        for (name, value) in &values {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(HeaderName::from_static(names[*name]), value);
            }
        }
        let trusted: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap()];
        let client = client_of(&headers, PEER.ip, &trusted);
        let _ = check_loop(&headers, "x");
        announce(&mut headers, &Peer { trusted: true, client, ..PEER });
        let _ = forwardable(&mut headers, Message::Request);
    }
}
