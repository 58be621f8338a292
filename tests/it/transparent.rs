//! Backends that see their clients' own addresses, in a network where the answers find the way back.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};

use crate::support::backend::Backend;
use crate::support::client::{End, Outcome, connect_from, outcome, read_to_end, served};
use crate::support::hello::to;
use crate::support::netns::{Host, with_hosts};
use crate::support::proxy::{Proxy, on_config, portcullis_under};
use crate::support::{Random, SOON};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const PROXY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 2, 2)];
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

/// A client, a proxy with the rules of docs/configuration.md, and a backend whose way back is by the proxy.
fn network() -> [Host; 3] {
    let [client, proxy, backend] = [Host::new(), Host::new(), Host::new()];
    Host::join((&client, CLIENT), (&proxy, PROXY[0]));
    Host::join((&backend, BACKEND), (&proxy, PROXY[1]));
    backend.route_by(PROXY[1]);
    proxy.forward();
    proxy.filter(
        "table inet transparent {\n\
         chain divert { type filter hook prerouting priority mangle;\n\
         meta l4proto tcp socket transparent 1 meta mark set 1\n}\n}\n",
    );
    proxy.execute("ip rule add fwmark 1 lookup 100", "");
    proxy.execute("ip route add local default dev lo table 100", "");
    [client, proxy, backend]
}

/// Answers with the address that it sees as its tag, then with all that it gets.
fn witness(host: &Host, addr: IpAddr) -> Backend {
    let serve = |mut stream: TcpStream| {
        let peer = stream.peer_addr().unwrap().ip();
        writeln!(stream, "tag:{peer}").unwrap();
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    };
    host.run(|| Backend::at(SocketAddr::from((addr, 443)), serve))
}

#[test]
fn the_backend_sees_the_client_and_its_answers_come_back() {
    with_hosts(|| {
        let [client, proxy_host, backend_host] = network();
        let _backend = witness(&backend_host, BACKEND.into());
        client.execute("ip address add 10.0.1.9/24 dev net1", "");
        let config = format!(
            "listen = '{}:443'\nproxy_protocol = '10.0.1.9'\n\
             [[route]]\nsni = 'a.test'\nto = '{BACKEND}:443'\ntransparent = true\n\
             [[route]]\nsni = 'plain.test'\nto = '{BACKEND}:443'\n",
            PROXY[0]
        );
        let proxy = proxy_host.run(|| Proxy::start(&config));
        let dial = |source, bytes: &[u8]| {
            let mut stream = client.run(|| connect_from(source, proxy.addr()));
            let got = outcome(&mut stream, bytes, SOON);
            (stream, got)
        };
        let (mut stream, got) = dial(CLIENT, &to("a.test"));
        assert_eq!(got, served("10.0.1.1"));
        assert_eq!(dial(CLIENT, &to("plain.test")).1, served("10.0.2.2"), "without it, the proxy is seen");
        // Behind a trusted proxy it is the address that this names, though no host has it.
        let named = [b"PROXY TCP4 10.0.77.7 10.0.1.2 1025 443\r\n", to("a.test").as_slice()].concat();
        assert_eq!(dial("10.0.1.9".parse().unwrap(), &named).1, served("10.0.77.7"));
        // Whole streams pass, and their ends.
        let bytes = Random::new(3).bytes(1024 * 1024);
        let mut writer = stream.try_clone().unwrap();
        let reply = std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            read_to_end(&mut stream, SOON)
        });
        assert_eq!(reply.end, End::Eof);
        assert!(reply.bytes.ends_with(&bytes), "{} bytes", reply.bytes.len());
        let line = proxy.access_line_of(stream.local_addr().unwrap());
        assert_eq!((&line["cause"], &line["backend"]), (&"done".into(), &format!("{BACKEND}:443").into()));
    });
}

#[test]
fn the_backend_sees_an_ipv6_client_too() {
    with_hosts(|| {
        let [client, proxy_host, backend_host] = network();
        for (host, addr, device) in [
            (&client, "fd00:1::1", "net1"),
            (&proxy_host, "fd00:1::2", "net1"),
            (&proxy_host, "fd00:2::2", "net2"),
            (&backend_host, "fd00:2::1", "net2"),
        ] {
            host.execute(&format!("ip address add {addr}/64 dev {device} nodad"), "");
        }
        backend_host.execute("ip route add default via fd00:2::2", "");
        proxy_host.execute("ip -6 rule add fwmark 1 lookup 100", "");
        proxy_host.execute("ip -6 route add local default dev lo table 100", "");
        let _backend = witness(&backend_host, "fd00:2::1".parse().unwrap());
        let config = "listen = '[fd00:1::2]:443'\n\
                      [[route]]\nsni = 'a.test'\nto = '[fd00:2::1]:443'\ntransparent = true\n";
        let proxy = proxy_host.run(|| Proxy::start(config));
        let mut stream = client.run(|| TcpStream::connect(proxy.addr()).unwrap());
        assert_eq!(outcome(&mut stream, &to("a.test"), SOON), served("fd00:1::1"));
    });
}

#[test]
fn a_client_of_another_family_is_refused_with_a_reason() {
    with_hosts(|| {
        let host = Host::new();
        let proxy = host.run(|| {
            Proxy::start("listen = ':0'\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:9'\ntransparent = true\n")
        });
        let addr = SocketAddr::from((Ipv6Addr::LOCALHOST, proxy.addr().port()));
        let mut stream = host.run(|| TcpStream::connect(addr).unwrap());
        assert_eq!(outcome(&mut stream, &to("a.test"), SOON), Outcome::Alert(80));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        let line = proxy.access_line("refused", |line| line["reason"] == "family");
        let expected = ["passthrough", "policy", "connect"].map(serde_json::Value::from);
        assert_eq!([&line["action"], &line["cause"], &line["stage"]], expected.each_ref(), "{line}");
    });
}

#[test]
fn without_the_capability_neither_check_nor_start_succeed() {
    let config =
        "listen = '127.0.0.1:0'\n\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:9'\ntransparent = true\n";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("portcullis.toml");
    std::fs::write(&file, config).unwrap();
    let without = ["setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw"];
    // Others than root have none to give up.
    let wrapper = if rustix::process::geteuid().is_root() { &without[..] } else { &[] };
    let file = file.to_str().unwrap();
    for verb in ["check", "run"] {
        let ended = portcullis_under(wrapper, &[verb, "--config", file]);
        assert_eq!(ended.code, Some(78), "{verb}: {}{}", ended.stdout, ended.stderr);
        let text = ended.stderr;
        assert!(
            text.contains("portcullis.toml:6:15: `transparent` needs CAP_NET_ADMIN or CAP_NET_RAW"),
            "{text}"
        );
        assert!(text.contains("not permitted"), "{text}");
    }
    let json = portcullis_under(wrapper, &["check", "--json", "--config", file]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(
        (json["errors"][0]["line"].as_u64(), json["errors"][0]["column"].as_u64()),
        (Some(6), Some(15))
    );
    // A route that does not ask for it needs nothing.
    std::fs::write(file, config.replace("true", "false")).unwrap();
    let ended = portcullis_under(wrapper, &["check", "--config", file]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn what_can_never_be_connected_to_so_is_an_error_at_the_backend() {
    for (listen, from, to, message) in [
        (":443", "", "unix:/run/app.sock", "a Unix socket cannot be connected to"),
        ("0.0.0.0:443", "", "[2001:db8::1]:443", "of another family than all clients"),
        ("[::]:443", "", "10.0.0.1:443", "of another family than all clients"),
        (":443", "from = '2001:db8::/32'", "10.0.0.1:443", "of another family than all clients"),
    ] {
        let config = format!(
            "listen = '{listen}'\n[[route]]\nsni = 'a.test'\ntransparent = true\n{from}\nto = '{to}'\n"
        );
        let checked = on_config("check", &config, &[]);
        assert_eq!(checked.code, Some(78), "{config}");
        let text = checked.stderr;
        assert!(text.contains(message) && text.contains(":6:6") && text.contains("proxy_protocol"), "{text}");
    }
}
