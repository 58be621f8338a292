//! The PROXY protocol to backends: what they are told of a client, in front of its bytes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};

use crate::support::backend::{Backend, Recorder, UnixBackend};
use crate::support::client::{
    End, Outcome, connect_from, free_port, outcome, probe_from, read_to_end, served,
};
use crate::support::headers::{SIGNATURE, TRUSTED, binary, crc32c, line, line_and, proxy_with};
use crate::support::hello::{Keys, real, to};
use crate::support::programs::{Haproxy, PlainNginx, curl};
use crate::support::proxy::Proxy;
use crate::support::{Random, SOON, wait_for};

/// What a backend received first from a client of `proxy` that says `hello`.
fn told(proxy: &Proxy, recorder: &Recorder, before: &[u8], hello: &[u8]) -> (SocketAddr, Vec<u8>) {
    let count = recorder.received().len();
    let mut stream = connect_from(TRUSTED, proxy.addr());
    let own = stream.local_addr().unwrap();
    let got = outcome(&mut stream, &[before, hello].concat(), SOON);
    assert!(matches!(got, Outcome::Served(_)), "{got:?}");
    stream.shutdown(Shutdown::Write).unwrap();
    read_to_end(&mut stream, SOON);
    wait_for("the backend to have it all", || recorder.received().len() > count);
    (own, recorder.received()[count].clone())
}

/// A header of version 2 and what follows it.
struct Told<'a> {
    ends: &'a [u8],
    /// Kinds and values.
    tlvs: Vec<(u8, Vec<u8>)>,
    rest: &'a [u8],
}

/// Reads them by nothing but the specification.
fn read_v2(bytes: &[u8]) -> Told<'_> {
    assert_eq!((&bytes[..12], bytes[12], bytes[13]), (SIGNATURE, 0x21, 0x11));
    let len = usize::from(bytes[14]) * 256 + usize::from(bytes[15]);
    let (header, rest) = bytes.split_at(16 + len);
    let (ends, mut left) = header[16..].split_at(12);
    let mut tlvs = Vec::new();
    while let [kind, high, low, more @ ..] = left {
        let (value, after) = more.split_at(usize::from(*high) * 256 + usize::from(*low));
        tlvs.push((*kind, value.to_vec()));
        if *kind == 3 {
            let at = header.len() - after.len() - 4;
            let zeroed = [&header[..at], &[0; 4], &header[at + 4..]].concat();
            assert_eq!(value, crc32c(&zeroed).to_be_bytes(), "the checksum");
        }
        left = after;
    }
    assert!(left.is_empty(), "{left:?}");
    Told { ends, tlvs, rest }
}

#[test]
fn a_backend_is_told_of_the_client_in_front_of_its_bytes() {
    let recorder = Recorder::new("a");
    for version in ["v1", "v2"] {
        let route = format!("proxy_protocol = '{version}'");
        let direct = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\n[[route]]\nsni = ['a.test', 'none']\nto = '{}'\n{route}\n",
            recorder.backend
        ));
        let behind = proxy_with("", &route, &recorder.backend);
        let hello = real(Some("a.test"), &["h2"], Keys::PostQuantum);
        for (proxy, before, expected) in [
            (&direct, vec![], None),
            (&behind, line("192.0.2.1"), Some("192.0.2.1 198.51.100.2 1025 443")),
            (&behind, b"PROXY UNKNOWN\r\n".to_vec(), None),
        ] {
            let (own, received) = told(proxy, &recorder, &before, &hello);
            let (addr, port) = (proxy.addr(), own.port());
            let expected = expected.map_or_else(
                || format!("{} {} {port} {}", own.ip(), addr.ip(), addr.port()),
                ToOwned::to_owned,
            );
            if version == "v1" {
                let whole = [format!("PROXY TCP4 {expected}\r\n").as_bytes(), &hello].concat();
                assert_eq!(received.escape_ascii().to_string(), whole.escape_ascii().to_string());
            } else {
                let Told { ends, tlvs, rest } = read_v2(&received);
                let port = |at: usize| u16::from_be_bytes([ends[at], ends[at + 1]]);
                let ip = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&ends[at..at + 4]).unwrap());
                assert_eq!(format!("{} {} {} {}", ip(0), ip(4), port(8), port(10)), expected);
                let find = |kind: u8| tlvs.iter().find(|tlv| tlv.0 == kind).map(|tlv| tlv.1.as_slice());
                assert_eq!(
                    (find(1), find(2)),
                    (Some(&b"h2"[..]), Some(&b"a.test"[..])),
                    "ALPN and authority"
                );
                assert!(find(3).is_some() && tlvs.len() == 5, "{tlvs:?}");
                // A trusted proxy that speaks for itself, and one of another kind, tell of no process before this one.
                let way = find(0xe7).unwrap();
                assert!(way.starts_with(b"portcullis") && way.len() == 18, "{}", way.escape_ascii());
                let id = String::from_utf8(find(5).unwrap().to_vec()).unwrap();
                proxy.access_line("the unique id", |line| line["id"] == *id);
                assert!(rest == hello);
            }
        }
        let line = direct.access_line("the direct one", |line| line["cause"] == "done");
        assert_eq!(line["bytes_in"], hello.len(), "the header is not the client's");
    }
}

#[test]
fn header_and_hello_reach_the_backend_in_one_piece() {
    let (pieces, received) = std::sync::mpsc::channel();
    let backend = Backend::new(move |mut stream| {
        let mut piece = vec![0; 65536];
        let len = stream.read(&mut piece).unwrap();
        pieces.send(piece[..len].to_vec()).unwrap();
        let _ = stream.write_all(b"tag:a\n");
    });
    let proxy = proxy_with("", "proxy_protocol = 'v1'", &backend);
    let hello = real(Some("a.test"), &[], Keys::PostQuantum);
    assert_eq!(probe_from(TRUSTED, proxy.addr(), &line_and(&hello)), served("a"));
    assert!(received.recv_timeout(SOON).unwrap() == line_and(&hello));
}

#[test]
fn of_several_offers_none_and_of_no_name_no_authority_is_told() {
    let recorder = Recorder::new("a");
    let proxy = proxy_with("", "proxy_protocol = 'v2'", &recorder.backend);
    for (hello, kinds) in [
        (real(Some("a.test"), &["h2", "http/1.1"], Keys::Classic), vec![2, 5, 0xe7, 3]),
        (real(None, &[], Keys::Classic), vec![5, 0xe7, 3]),
    ] {
        let (_, received) = told(&proxy, &recorder, &line("192.0.2.1"), &hello);
        let Told { tlvs, rest, .. } = read_v2(&received);
        assert_eq!(tlvs.iter().map(|tlv| tlv.0).collect::<Vec<_>>(), kinds);
        assert!(rest == hello);
    }
}

#[test]
fn ends_of_two_families_are_told_in_one_and_a_unix_socket_is_told_too() {
    let recorder = Recorder::new("a");
    let hello = to("a.test");
    let mapped = [&[0; 10][..], &[255, 255, 192, 0, 2, 3], &[0; 15], &[1], &[4, 1, 1, 187]].concat();
    let proxy = proxy_with("", "proxy_protocol = 'v1'", &recorder.backend);
    let (_, received) = told(&proxy, &recorder, &binary(0x21, 0x21, &mapped), &hello);
    assert!(
        received.starts_with(b"PROXY TCP6 ::ffff:c000:203 ::1 1025 443\r\n"),
        "{}",
        received.escape_ascii()
    );
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixBackend::tagged(&dir.path().join("socket"), "unix");
    let proxy = proxy_with("", "proxy_protocol = 'v1'", unix.to());
    let mut stream = connect_from(TRUSTED, proxy.addr());
    stream.write_all(&[line("192.0.2.1"), hello.clone()].concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let reply = read_to_end(&mut stream, SOON);
    assert_eq!(reply.bytes, [b"tag:unix\n", line("192.0.2.1").as_slice(), &hello].concat());
}

#[test]
fn a_header_to_a_backend_is_followed_by_a_stream_that_is_whole() {
    let recorder = Recorder::new("a");
    let proxy = proxy_with("", "proxy_protocol = 'v2'", &recorder.backend).streaming();
    let body = [to("a.test"), Random::new(7).bytes(3 * 1024 * 1024)].concat();
    let mut stream = connect_from(TRUSTED, proxy.addr());
    let mut writer = stream.try_clone().unwrap();
    let sent = [line("192.0.2.1"), body.clone()].concat();
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let reply = read_to_end(&mut stream, SOON);
    sending.join().unwrap();
    assert_eq!(reply.end, End::Eof);
    wait_for("the backend to have it all", || !recorder.received().is_empty());
    let received = recorder.received().remove(0);
    let rest = read_v2(&received).rest;
    assert!(rest == body, "{} bytes of {}", rest.len(), body.len());
    let line = proxy.access_line("ours", |line| line["client"] == "192.0.2.1:1025");
    assert_eq!(line["bytes_in"], body.len());
    assert_eq!(line["bytes_out"], reply.bytes.len());
}

#[test]
fn curl_names_a_client_and_nginx_learns_of_it_by_either_version() {
    for version in ["v1", "v2"] {
        let nginx = PlainNginx::start("http", |addr| {
            format!(
                "server {{ listen {addr} proxy_protocol; location / {{ return 200 'of $proxy_protocol_addr'; }} }}"
            )
        });
        let proxy = Proxy::start(&format!(
            "listen = '127.0.0.1:0'\nproxy_protocol = '127.0.0.1'\n\
             [[route]]\nprotocol = 'http'\nproxy_protocol = '{version}'\nto = '{}'\n",
            nginx.addr()
        ));
        let url = format!("http://{}/", proxy.addr());
        let mut command = std::process::Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "10", "--haproxy-protocol", &url]);
        let page = crate::support::process::finish(&mut command, "curl", "");
        assert_eq!((page.code, page.stdout.as_str()), (Some(0), "of 127.0.0.1"), "{}", page.stderr);
        // curl names itself; others name whom they like.
        let mut stream = connect_from(Ipv4Addr::LOCALHOST, proxy.addr());
        stream.write_all(&line_and(b"GET / HTTP/1.0\r\n\r\n")).unwrap();
        let page = String::from_utf8(read_to_end(&mut stream, SOON).bytes).unwrap();
        assert!(page.ends_with("of 192.0.2.1"), "{page}");
        let line = proxy.access_line("curl's", |line| line["via"] == line["client"]);
        assert_eq!(line["action"], "passthrough");
    }
}

/// HAProxy verifies the checksum of what it reads, and refuses what is wrong.
#[test]
fn between_two_haproxies_the_client_is_known_to_all() {
    let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\nproxy_protocol = '127.0.0.1'\n\
         [[route]]\nsni = 'a.test'\nto = '{behind}'\nproxy_protocol = 'v2'\n"
    ));
    let haproxy = Haproxy::start(proxy.addr(), behind);
    let page = curl("a.test", haproxy.before(), &haproxy.certificate(), &["--interface", "127.0.0.9"]);
    assert_eq!(page.code, Some(0), "{}", page.stderr);
    let line = proxy.access_line("curl's", |line| line["action"] == "passthrough");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.9:"), "{line}");
    let id = line["id"].as_str().unwrap();
    assert_eq!(page.stdout, format!("127.0.0.9 127.0.0.1 a.test {id}"));
}
