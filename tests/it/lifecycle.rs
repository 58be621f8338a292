//! From start to end: bound or refused, drained or stopped, and the quickstart as a newcomer meets it.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::client::{End, connect, free_port, held, probe, read_to_end, read_while, served, timed};
use crate::support::hello::to;
use crate::support::process::finish;
use crate::support::proxy::{Proxy, on_config, start_portcullis};
use crate::support::{Random, SOON, until, wait_for};

const MIB: usize = 1024 * 1024;

#[test]
fn an_address_in_use_is_a_temporary_failure() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = taken.local_addr().unwrap();
    for key in ["listen", "admin"] {
        let other = if key == "listen" { "admin" } else { "listen" };
        let config = format!(
            "{key} = '{addr}'\n{other} = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:1'\n"
        );
        let got = on_config("run", &config, &[]);
        assert_eq!(got.code, Some(75), "{key}: {got:?}");
        assert!(got.stderr.contains(&addr.to_string()), "{key}: {}", got.stderr);
    }
}

#[test]
fn an_address_that_another_proxy_has_is_in_use() {
    let config = |addr: &str| format!("listen = '{addr}'\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:1'\n");
    let first = Proxy::start(&config("127.0.0.1:0"));
    let got = on_config("run", &config(&first.addr().to_string()), &[]);
    assert_eq!(got.code, Some(75), "two instances would share the port's connections: {got:?}");
}

#[test]
fn an_address_that_is_not_ours_is_a_failure() {
    let got =
        on_config("run", "listen = '192.0.2.1:0'\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:1'\n", &[]);
    assert_eq!(got.code, Some(1), "{got:?}");
}

#[test]
fn a_log_that_cannot_be_opened_is_told_with_its_path() {
    let config = "listen = '127.0.0.1:0'\naccess_log = '/no/such/folder/access.log'\n\
                  [[route]]\nsni = 'a.test'\nto = '127.0.0.1:1'\n";
    let got = on_config("run", config, &[]);
    assert_eq!(got.code, Some(1), "{got:?}");
    assert!(got.stderr.contains("/no/such/folder/access.log: No such file or directory"), "{}", got.stderr);
}

/// A backend that answers 4 MiB in two halves, the second one when the client says so.
fn two_halves() -> Backend {
    Backend::new(|mut stream| {
        let bytes = Random::new(9).bytes(4 * MIB);
        let (first, second) = bytes.split_at(2 * MIB);
        stream.write_all(first).unwrap();
        // The hello, which may end in any byte, then words of the client's own.
        let mut go = stream.try_clone().unwrap();
        read_while(&mut go, SOON, |bytes| !bytes.ends_with(b"go on!"));
        // Fails where the connection was ended by force.
        let _ = stream.write_all(second);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

fn draining(backend: &Backend, drain: &str) -> (Proxy, TcpStream) {
    let proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ drain = '{drain}' }}\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let mut client = connect(proxy.addr());
    client.write_all(&to("a.test")).unwrap();
    let first = read_while(&mut client, SOON, |bytes| bytes.len() < 2 * MIB);
    assert_eq!(first.bytes.len(), 2 * MIB);
    (proxy, client)
}

#[test]
fn a_running_transfer_ends_well_while_draining() {
    let backend = two_halves();
    for signal in [Signal::TERM, Signal::INT] {
        let (mut proxy, mut client) = draining(&backend, "30s");
        proxy.process.signal(signal);
        wait_for("new connections to be refused", || TcpStream::connect(proxy.addr()).is_err());
        assert_eq!(proxy.process.exit(), None, "a connection is open");
        client.write_all(b"go on!").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let reply = read_to_end(&mut client, SOON);
        assert!(
            reply.end == End::Eof && reply.bytes == Random::new(9).bytes(4 * MIB)[2 * MIB..],
            "{:?}",
            reply.end
        );
        assert_eq!(proxy.process.wait(SOON).code(), Some(0));
        let line = proxy.access_line_of(client.local_addr().unwrap());
        assert_eq!((&line["cause"], &line["bytes_out"]), (&"done".into(), &(4 * MIB).into()));
        assert!(!proxy.process.stderr.contains("panicked"));
    }
}

#[test]
fn what_is_open_at_the_end_of_the_drain_is_closed() {
    let backend = two_halves();
    let (mut proxy, mut client) = draining(&backend, "1s");
    proxy.process.signal(Signal::TERM);
    let (took, status) = timed(|| proxy.process.wait(SOON));
    assert_eq!(status.code(), Some(0));
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(4), "{took:?}");
    assert_ne!(read_to_end(&mut client, SOON).end, End::Open);
    let line = proxy.access_line_of(client.local_addr().unwrap());
    assert_eq!(line["cause"], "drained");
}

#[test]
fn a_second_signal_ends_at_once() {
    let backend = two_halves();
    let (mut proxy, mut client) = draining(&backend, "1m");
    proxy.process.signal(Signal::TERM);
    wait_for("the drain to begin", || TcpStream::connect(proxy.addr()).is_err());
    proxy.process.signal(Signal::TERM);
    let (took, status) = timed(|| proxy.process.wait(SOON));
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_ne!(read_to_end(&mut client, SOON).end, End::Open);
    let line = proxy.access_line_of(client.local_addr().unwrap());
    assert_eq!(line["cause"], "forced");
}

#[test]
fn an_address_and_a_wildcard_over_it_can_both_be_listened_on() {
    let port = free_port();
    let backend = Backend::tagged("a");
    let proxy = Proxy::start(&format!(
        "listen = ['0.0.0.0:{port}', '127.0.0.1:{port}']\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
}

/// A typing error in the configuration must not cost anybody a file.
#[test]
fn the_admin_socket_replaces_nothing_but_a_dead_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.db");
    let config = format!(
        "listen = '127.0.0.1:0'\nadmin = 'unix:{}'\n[[route]]\nsni = 'a.test'\nto = '127.0.0.1:1'\n",
        path.display()
    );
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(on_config("run", &config, &[]).code, Some(75));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = Proxy::start(&config);
    assert_eq!(on_config("run", &config, &[]).code, Some(75), "the first one lives");
    drop(first);
}

/// Whoever read the log has gone: that costs the log.
#[test]
fn a_log_that_nobody_can_take_neither_ends_it_nor_keeps_it_from_draining() {
    let backend = Backend::tagged("a");
    let dir = tempfile::tempdir().unwrap();
    let (config, admin) = (dir.path().join("portcullis.toml"), dir.path().join("admin.sock"));
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let text = format!(
        "listen = '{port}'\nadmin = 'unix:{}'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n",
        admin.display()
    );
    std::fs::write(&config, text).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["run", "--workers", "1", "--config"]).arg(&config).stdout(Stdio::null()).stderr(writer);
    let mut child = command.spawn().unwrap();
    wait_for("an answer", || TcpStream::connect(port).is_ok());
    assert_eq!(probe(port, &to("a.test")), served("a"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let status = until("its end", SOON, || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn without_connections_it_ends_at_once() {
    let backend = Backend::tagged("a");
    let mut proxy =
        Proxy::start(&format!("listen = '127.0.0.1:0'\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"));
    assert_eq!(probe(proxy.addr(), &to("a.test")), served("a"));
    wait_for("its line", || !proxy.access_log().is_empty());
    proxy.process.signal(Signal::TERM);
    let (took, status) = timed(|| proxy.process.wait(SOON));
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn silent_clients_do_not_hold_up_the_drain() {
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ hello = '1s', drain = '30s' }}\n[[route]]\nsni = 'a.test'\nto = '{backend}'\n"
    ));
    let silent: Vec<TcpStream> = (0..10).map(|_| connect(proxy.addr())).collect();
    drop(held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test")));
    proxy.process.signal(Signal::TERM);
    let (took, status) = timed(|| proxy.process.wait(SOON));
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
    drop(silent);
}

#[test]
fn the_quickstart_runs_as_it_is_printed() {
    let mut process = start_portcullis(&["quickstart", "--listen", "127.0.0.1:0"]);
    let commands = until("two curl lines", SOON, || {
        assert_eq!(process.exit(), None, "{:?}", process.stderr.all());
        let lines = process.stdout.all();
        let commands: Vec<String> = lines.into_iter().filter(|line| line.contains("curl ")).collect();
        (commands.len() == 2).then_some(commands)
    });
    let mut answers = Vec::new();
    for line in &commands {
        let command = &line[line.find("curl ").unwrap()..];
        let got = finish(Command::new("sh").args(["-c", command]), "curl", "");
        assert_eq!(got.code, Some(0), "{command}: {}", got.stderr);
        let name = ["one.test", "two.test"].into_iter().find(|name| command.contains(name)).unwrap();
        assert!(got.stdout.contains(name), "{command}: {}", got.stdout);
        answers.push(got.stdout);
    }
    assert_ne!(answers[0], answers[1]);
    process.signal(Signal::INT);
    assert_eq!(process.wait(SOON).code(), Some(0));
}

/// With clients in the queue and no room for them, a drain waits for room without burning a core.
#[test]
fn a_drain_at_the_cap_waits_quietly() {
    let backend = Backend::tagged("a");
    let mut proxy = Proxy::start(&format!(
        "listen = '127.0.0.1:0'\ntimeouts = {{ drain = '8s' }}\n\
         connection_limit = {{ per_ip = 'off', before_hello = 'off', total = 2 }}\n\
         [[route]]\nsni = 'a.test'\nto = '{}'\n",
        backend.addr()
    ));
    let mut open = (0..2).map(|_| held(Ipv4Addr::LOCALHOST, proxy.addr(), &to("a.test"))).collect::<Vec<_>>();
    let queued = (0..12).map(|_| connect(proxy.addr())).collect::<Vec<_>>();
    proxy.process.signal(Signal::TERM);
    until("draining", SOON, || proxy.logged("draining").pop());
    // Room for one: whoever waits for it goes on, takes the next, and waits again.
    open.pop();
    wait_for("the next to be served", || proxy.access_log().len() == 1);
    let before = proxy.process.cpu();
    // The figure is one of time: how much of half a second is spent while waiting.
    std::thread::sleep(Duration::from_millis(500));
    let used = proxy.process.cpu() - before;
    assert!(used < Duration::from_millis(100), "{used:?} of 500 ms");
    drop((open, queued));
    assert!(proxy.process.wait(SOON).success());
}
