//! The PROXY protocol from proxies before this one: whom it is believed from, and what becomes of a connection by it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::backend::{Backend, Recorder};
use crate::support::client::{
    End, Outcome, connect_from, held, loopback, outcome, probe, probe_from, read_to_end, served, timed,
};
use crate::support::headers::{
    OTHER, SIGNATURE, TRUSTED, binary, crc32c, line, line_and, proxy_with, tlv, v2,
};
use crate::support::hello::to;
use crate::support::programs::{Nginx, PlainNginx, curl};
use crate::support::proxy::Proxy;
use crate::support::{SOON, UNLIMITED, in_parallel, until, wait_for};

/// What a trusted proxy gets that sends `bytes`.
fn from_trusted(proxy: &Proxy, bytes: &[u8]) -> Outcome {
    probe_from(TRUSTED, proxy.addr(), bytes)
}

#[test]
fn the_client_that_a_trusted_proxy_names_is_the_client() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("", "from = '192.0.2.0/24'", &backend);
    let hello = to("a.test");
    let v6 = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 12], &[0; 15], &[1], &[4, 1, 1, 187]].concat();
    let mapped = [&[0; 10][..], &[255, 255, 192, 0, 2, 3], &[0; 15], &[1], &[4, 1, 1, 187]].concat();
    let sum = |mut header: Vec<u8>| {
        let (at, sum) = (header.len() - 4, crc32c(&header));
        header[at..].copy_from_slice(&sum.to_be_bytes());
        header
    };
    for (header, client, expected) in [
        (line("192.0.2.1"), "192.0.2.1:1025", served("a")),
        (line("203.0.113.1"), "203.0.113.1:1025", Outcome::Alert(112)),
        (v2([192, 0, 2, 2], &[]), "192.0.2.2:1025", served("a")),
        (v2([192, 0, 2, 4], &tlv(0xe1, b"vendor")), "192.0.2.4:1025", served("a")),
        (sum(v2([192, 0, 2, 5], &tlv(3, &[0; 4]))), "192.0.2.5:1025", served("a")),
        (binary(0x21, 0x21, &v6), "[2001:db8::]:1025", Outcome::Alert(112)),
        (binary(0x21, 0x21, &mapped), "192.0.2.3:1025", served("a")),
    ] {
        let mut stream = connect_from(TRUSTED, proxy.addr());
        let via = stream.local_addr().unwrap();
        let got = outcome(&mut stream, &[header.as_slice(), &hello].concat(), SOON);
        assert_eq!(got, expected, "{}", header.escape_ascii());
        drop(stream);
        let line = proxy.access_line(client, |line| line["client"] == client);
        assert_eq!((&line["via"], &line["sni"]), (&via.to_string().into(), &"a.test".into()), "{line}");
        assert_eq!(line["bytes_in"], hello.len(), "the header is not the client's: {line}");
    }
}

#[test]
fn a_proxy_that_names_nobody_keeps_its_own_address() {
    let backend = Backend::tagged("a");
    let proxy = proxy_with("", "from = '127.0.1.0/24'", &backend);
    let sources = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
        binary(0x20, 0, &[]),
        binary(0x20, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2]),
        binary(0x21, 0, b"whatever"),
        binary(0x21, 0x31, &[b'/'; 216]),
    ];
    for header in &sources {
        let mut stream = connect_from(TRUSTED, proxy.addr());
        let own = stream.local_addr().unwrap();
        let got = outcome(&mut stream, &[header, to("a.test").as_slice()].concat(), SOON);
        assert_eq!(got, served("a"), "{}", header.escape_ascii());
        drop(stream);
        let line = proxy.access_line_of(own);
        assert!(line["via"].is_null(), "{line}");
    }
    assert_eq!(backend.hits(), sources.len());
}

#[test]
fn a_header_may_be_cut_anywhere_and_come_with_the_hello() {
    let recorder = Recorder::new("a");
    let proxy = proxy_with("connection_limit = 'off'", "", &recorder.backend);
    let hello = to("a.test");
    let headers = [line("192.0.2.1"), v2([192, 0, 2, 1], &tlv(5, b"id"))];
    let whole: Vec<Vec<u8>> = headers.iter().map(|header| [header, hello.as_slice()].concat()).collect();
    // Every cut through the header and a few bytes of the hello, and every byte by itself.
    let cuts: Vec<(usize, usize)> =
        (0..2).flat_map(|which| (1..headers[which].len() + 8).map(move |cut| (which, cut))).collect();
    in_parallel(16, cuts.len() + 2, |number| {
        let mut stream = connect_from(TRUSTED, proxy.addr());
        match cuts.get(number) {
            Some((which, cut)) => {
                stream.write_all(&whole[*which][..*cut]).unwrap();
                // Nothing tells a client that its peer has read: the pause makes two segments of it.
                std::thread::sleep(Duration::from_millis(3));
                assert_eq!(
                    outcome(&mut stream, &whole[*which][*cut..], SOON),
                    served("a"),
                    "{which} at {cut}"
                );
            }
            None => {
                let bytes = &whole[number - cuts.len()];
                let (last, first) = bytes.split_last().unwrap();
                for byte in first {
                    stream.write_all(&[*byte]).unwrap();
                }
                assert_eq!(outcome(&mut stream, &[*last], SOON), served("a"));
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
        read_to_end(&mut stream, SOON);
    });
    wait_for("all to be over", || recorder.received().len() == cuts.len() + 2);
    assert!(
        recorder.received().iter().all(|bytes| *bytes == hello),
        "the backend gets the client's bytes alone"
    );
}

#[test]
fn bad_headers_of_trusted_proxies_are_closed_before_any_route() {
    let backend = Backend::tagged("a");
    let mut proxy = proxy_with("connection_limit = 'off'", "", &backend);
    let hello = to("a.test");
    let missing =
        [hello.clone(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"proxy TCP4 ".to_vec(), b"PROXX".to_vec()];
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100)).into_bytes();
    let bad = [
        b"PROXY TCP4 192.0.2.1\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\n".to_vec(),
        b"PROXY TCP4 192.0.2.01 198.51.100.2 1025 443\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +1025 443\r\n".to_vec(),
        b"PROXY tcp4 192.0.2.1 198.51.100.2 1025 443\r\n".to_vec(),
        long,
        binary(0x31, 0x11, &[1; 12]),
        binary(0x22, 0x11, &[1; 12]),
        binary(0x21, 0x12, &[1; 12]),
        binary(0x21, 0x11, &[1; 11]),
        v2([192, 0, 2, 1], &[4, 0, 9, 1]),
        v2([192, 0, 2, 1], b"!"),
        v2([224, 0, 0, 1], &[]),
        v2([192, 0, 2, 1], &tlv(3, &[1, 2, 3, 4])),
    ];
    for (headers, reason) in [(missing.as_slice(), "proxy_missing"), (bad.as_slice(), "proxy_header")] {
        for header in headers {
            let got = from_trusted(&proxy, &[header.as_slice(), &hello].concat());
            // Closing with bytes unread resets.
            assert!(matches!(got, Outcome::Closed | Outcome::Reset), "{got:?} {}", header.escape_ascii());
        }
        let count = headers.len() as f64;
        proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", reason)], count);
        let line = proxy.access_line(reason, |line| line["reason"] == reason);
        let expected = ["reject", "client", "proxy"].map(serde_json::Value::from);
        assert_eq!([&line["action"], &line["cause"], &line["stage"]], expected.each_ref(), "{line}");
    }
    let gone = connect_from(TRUSTED, proxy.addr());
    gone.shutdown(Shutdown::Write).unwrap();
    let line = proxy.access_line("closed", |line| line["reason"] == "closed");
    assert_eq!((&line["stage"], &line["cause"]), (&"proxy".into(), &"client".into()));
    assert_eq!(backend.hits(), 0);
    proxy.assert_sound();
}

#[test]
fn nobody_else_is_believed_nor_reaches_a_route_with_a_header() {
    let backend = Backend::tagged("a");
    let mut proxy = proxy_with("unknown_protocol = 'alert'", "", &backend);
    let plain =
        Proxy::start(&format!("listen = '127.0.0.1:0'\n[[route]]\nprotocol = 'any'\nto = '{backend}'\n"));
    let hello = to("a.test");
    let headers = [line("192.0.2.1"), v2([192, 0, 2, 1], &[]), b"PROXY ".to_vec(), SIGNATURE.to_vec()];
    for header in &headers {
        let bytes = [header.as_slice(), &hello].concat();
        for (source, proxy, sent) in [
            (OTHER, &proxy, bytes.clone()),
            // No listener takes them, whatever it trusts.
            (OTHER, &plain, bytes.clone()),
            // Nor is a second header any better than the first of somebody else.
            (TRUSTED, &proxy, [line("192.0.2.9"), bytes].concat()),
        ] {
            let got = probe_from(source, proxy.addr(), &sent);
            assert!(matches!(got, Outcome::Closed | Outcome::Reset), "{got:?} {}", header.escape_ascii());
        }
    }
    // Cut in pieces it is no less a header.
    let mut stream = connect_from(OTHER, proxy.addr());
    for byte in &SIGNATURE[..11] {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(outcome(&mut stream, b"\n", SOON), Outcome::Closed);
    assert_eq!(backend.hits(), 0, "none reached a backend");
    let line = proxy.access_line("refused", |line| line["reason"] == "proxy_untrusted");
    let expected = ["reject", "client", "peek", "unknown"].map(serde_json::Value::from);
    assert_eq!(
        [&line["action"], &line["cause"], &line["stage"], &line["protocol"]],
        expected.each_ref(),
        "{line}"
    );
    proxy.wait_metric("portcullis_clienthello_errors_total", &[("reason", "proxy_untrusted")], 9.0);
    // What only begins alike is what it was.
    for bytes in [&b"PROPFIND / HTTP/1.1\r\n\r\n"[..], b"PROXIMA\r\n", b"\r\n\r\nHELO"] {
        assert_eq!(probe_from(OTHER, plain.addr(), bytes), served("a"));
    }
    proxy.assert_sound();
}

#[test]
fn each_listener_trusts_its_own() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "[[listener]]\nname = 'behind'\nbind = '127.0.0.1:0'\nproxy_protocol = ['127.0.1.0/24', '10.0.0.0/8']\n\
         [[listener]]\nname = 'open'\nbind = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let (behind, open, hello) = (proxy.listener("behind"), proxy.listener("open"), to("a.test"));
    let with = line_and(&hello);
    for (source, addr, bytes, expected) in [
        (TRUSTED, behind, &with, true),
        (TRUSTED, behind, &hello, false),
        (TRUSTED, open, &hello, true),
        (TRUSTED, open, &with, false),
        (OTHER, behind, &hello, true),
        (OTHER, behind, &with, false),
    ] {
        let got = probe_from(source, addr, bytes);
        assert_eq!(got == served("a"), expected, "{source} at {addr}: {got:?}");
        assert!(expected || matches!(got, Outcome::Closed | Outcome::Reset), "{got:?}");
    }
}

#[test]
fn limits_and_lists_are_for_the_client_and_not_for_the_proxy() {
    let backend = Backend::tagged("a");
    let top = "connection_limit = { per_ip = 2, before_hello = 2 }\nallow = ['192.0.2.0/24', '198.51.100.7']\n\
               deny = '192.0.2.9'";
    let mut proxy = proxy_with(top, "", &backend);
    let hello = to("a.test");
    let of = |client: &str| {
        let mut stream = connect_from(TRUSTED, proxy.addr());
        let got = outcome(&mut stream, &[line(client), hello.clone()].concat(), SOON);
        (stream, got)
    };
    let held: Vec<_> = (0..2).map(|_| of("192.0.2.1")).collect();
    assert!(held.iter().all(|(_, got)| *got == served("a")), "{held:?}");
    assert_eq!(of("192.0.2.1").1, Outcome::Reset, "over its limit");
    let other: Vec<_> = (0..2).map(|_| of("192.0.2.2")).collect();
    assert!(other.iter().all(|(_, got)| *got == served("a")), "another client of the same proxy: {other:?}");
    assert_eq!(of("192.0.2.9").1, Outcome::Reset, "denied");
    assert_eq!(of("203.0.113.1").1, Outcome::Reset, "not allowed");
    for (reason, client) in
        [("connection_limit", "192.0.2.1:1025"), ("acl", "192.0.2.9:1025"), ("acl", "203.0.113.1:1025")]
    {
        let line = proxy.access_line(client, |line| line["client"] == client && line["reason"] == reason);
        assert_eq!((&line["stage"], &line["action"]), (&"proxy".into(), &"reject".into()), "{line}");
    }
    proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", "acl")], 2.0);
    // Before its header a proxy has as many as it likes; after it, the client's count.
    let silent: Vec<TcpStream> = (0..20).map(|_| connect_from(TRUSTED, proxy.addr())).collect();
    wait_for("them to be open", || proxy.metrics().sum("portcullis_connections_active", &[]) >= 24.0);
    assert_eq!(of("192.0.2.3").1, served("a"));
    drop((held, silent));
    until("its places to be free", SOON, || (of("192.0.2.1").1 == served("a")).then_some(()));
    // A proxy that speaks for itself is a client like others to the lists.
    assert_eq!(from_trusted(&proxy, &[b"PROXY UNKNOWN\r\n", hello.as_slice()].concat()), Outcome::Reset);
    proxy.assert_sound();
}

/// Health checks of a load balancer must not shut out all who come through it.
#[test]
fn what_a_proxy_does_for_itself_counts_against_nobody() {
    let backend = Backend::tagged("a");
    let limit = "[[limit]]\nname = 'one'\nconnections = 1\nroute = 'a'\n\
                 [[limit]]\nname = 'all'\nconnections = 4\nroute = 'a'\nper = 'all'\n";
    let top = format!("{UNLIMITED}ban = {{ after = 2, for = '1h' }}");
    let mut proxy = proxy_with(&top, limit, &backend);
    let hello = to("a.test");
    let malformed = [22, 3, 1, 0, 4, 2, 0, 0, 0];
    let own = [b"PROXY UNKNOWN\r\n".to_vec(), binary(0x20, 0, &[])];
    for header in own.iter().cycle().take(6) {
        let got = from_trusted(&proxy, &[header.as_slice(), &malformed].concat());
        assert_eq!(got, Outcome::Alert(10), "never banned: {}", header.escape_ascii());
    }
    let open: Vec<_> =
        own.iter().cycle().take(6).map(|header| [header.as_slice(), &hello].concat()).collect();
    let open: Vec<_> = open.iter().map(|bytes| held(TRUSTED, proxy.addr(), bytes)).collect();
    assert_eq!(backend.hits(), 6);
    // A client that is named has limits, and earns its ban: by a refusal and a malformed hello.
    let named = held(TRUSTED, proxy.addr(), &line_and(&hello));
    assert_eq!(from_trusted(&proxy, &line_and(&hello)), Outcome::Reset, "one at a time");
    assert_eq!(from_trusted(&proxy, &line_and(&malformed)), Outcome::Alert(10));
    assert_eq!(from_trusted(&proxy, &line_and(&hello)), Outcome::Reset, "banned");
    let line = proxy.access_line("refused for its ban", |line| line["reason"] == "banned");
    assert_eq!(line["client"], "192.0.2.1:1025", "{line}");
    proxy.wait_metric("portcullis_bans_total", &[("by", "rule")], 1.0);
    drop((open, named));
    proxy.assert_sound();
}

#[test]
fn of_a_flood_of_refused_clients_all_are_counted_and_some_told() {
    const FLOOD: usize = 1500;
    let backend = Backend::tagged("a");
    let mut proxy = proxy_with("deny = '192.0.2.0/24'", "", &backend);
    let (took, ()) = timed(|| {
        in_parallel(16, FLOOD, |_| {
            assert_eq!(from_trusted(&proxy, &line("192.0.2.1")), Outcome::Reset);
        });
    });
    proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", "acl")], FLOOD as f64);
    // The log is written in order: what is told of this one comes after all others.
    let stream = connect_from(OTHER, proxy.addr());
    let last = stream.local_addr().unwrap();
    drop(stream);
    proxy.access_line_of(last);
    let told = proxy.access_log().iter().filter(|line| line["reason"] == "acl").count();
    // A hundred a second for each of two workers, in the seconds that it touched.
    let most = 200 * (took.as_secs() as usize + 2);
    assert!(told > 0 && told <= most, "{told} of {FLOOD} in {took:?}");
    proxy.assert_sound();
}

#[test]
fn slow_headers_end_at_the_deadline_of_the_hello() {
    const SLOW: usize = 100;
    let backend = Backend::tagged("a");
    let mut proxy = proxy_with("timeouts = { hello = '1s' }\nconnection_limit = 'off'", "", &backend);
    let header = v2([192, 0, 2, 1], &tlv(5, &[7; 100]));
    in_parallel(SLOW, SLOW, |number| {
        let mut stream = connect_from(TRUSTED, proxy.addr());
        let (took, end) = timed(|| {
            // Silent ones, and ones that send a byte every tenth of a second: neither renews the deadline.
            let mut bytes = header.iter().take(if number % 2 == 0 { 0 } else { header.len() });
            loop {
                let quiet = Duration::from_millis(100);
                let reply = read_to_end(&mut stream, quiet);
                if reply.end != End::Open {
                    return reply;
                }
                if bytes.next().is_some_and(|byte| stream.write_all(&[*byte]).is_err()) {
                    return read_to_end(&mut stream, quiet);
                }
            }
        });
        assert!(end.bytes.is_empty(), "{end:?}");
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
    });
    proxy.wait_metric("portcullis_connections_rejected_total", &[("reason", "proxy_timeout")], SLOW as f64);
    let line = proxy.access_line("late", |line| line["reason"] == "proxy_timeout");
    assert_eq!((&line["stage"], &line["cause"]), (&"proxy".into(), &"client_timeout".into()));
    // The header in time and the hello not is a hello that is late: there is one deadline for both.
    let mut stream = connect_from(TRUSTED, proxy.addr());
    assert_eq!(outcome(&mut stream, &line_and(b"\x16\x03"), SOON), Outcome::Closed);
    let line = proxy.access_line("late hello", |line| line["reason"] == "hello_timeout");
    assert_eq!((&line["client"], &line["stage"]), (&"192.0.2.1:1025".into(), &"peek".into()));
    assert_eq!(backend.hits(), 0);
    proxy.assert_sound();
}

#[test]
fn silence_after_a_header_is_the_clients_silence() {
    let backend = Backend::tagged("silent");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nproxy_protocol = '127.0.1.0/24'\nsilent_after = '200ms'\n\
         [[route]]\nprotocol = 'silent'\nfrom = '192.0.2.0/24'\nproxy_protocol = 'v1'\nto = '{backend}'\n"
    ));
    let mut stream = connect_from(TRUSTED, proxy.addr());
    // Longer than a client may stay silent: until there is a header there is no client.
    assert_eq!(outcome(&mut stream, b"", Duration::from_millis(600)), Outcome::Open);
    stream.write_all(&line("192.0.2.1")).unwrap();
    let mut answer = vec![0; "tag:silent\n".len()];
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, b"tag:silent\n");
    // What the backend was told, it sends back.
    let mut told = vec![0; line("192.0.2.1").len()];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(told, line("192.0.2.1"));
}

#[test]
fn curl_reaches_a_server_behind_tls_with_a_header() {
    let nginx = Nginx::start(&["a.test"]);
    let config = "listen = '127.0.0.1:0'\nproxy_protocol = '127.0.0.1'\n[[route]]\nsni = 'a.test'\n";
    let proxy = Proxy::start(&format!("{config}to = '{}'\n", nginx.addr()));
    let certificate = nginx.certificate("a.test");
    let page = curl("a.test", proxy.addr(), &certificate, &["--haproxy-protocol"]);
    assert_eq!((page.code, page.stdout.as_str()), (Some(0), "page of a.test"), "{}", page.stderr);
    let without = curl("a.test", proxy.addr(), &certificate, &[]);
    assert_ne!(without.code, Some(0), "{}", without.stdout);
    proxy.access_line("without a header", |line| line["reason"] == "proxy_missing");
}

#[test]
fn nginx_before_us_names_its_clients() {
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nproxy_protocol = '127.0.0.1'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let target = proxy.addr();
    let nginx = PlainNginx::start("stream", |addr| {
        format!("server {{ listen {addr}; proxy_pass {target}; proxy_protocol on; }}")
    });
    assert_eq!(probe_from(loopback(9), nginx.addr(), &to("a.test")), served("a"));
    let line = proxy.access_line("ours", |line| line["action"] == "passthrough");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.9:"), "{line}");
    assert!(line["via"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert_eq!(probe(proxy.addr(), &to("a.test")), Outcome::Closed, "not without a header");
}
