//! Many protocols on one port at the same time, each by its own client to its own server.
//!
//! Clients of MySQL, SMTP, IMAP, POP3 and the like say nothing until their server has spoken, and that it is which of them nobody can
//! tell. One of these protocols can share the port with all others; each further one has an address of its own with the same port.

use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::mysql_by_name::{WHO, ask};
use crate::support::client::{connect, free_port, timed};
use crate::support::process::{Finished, Process, finish};
use crate::support::programs::{Nginx, curl};
use crate::support::proxy::Proxy;
use crate::support::secured::{
    CERTIFICATE, KEY, certificate, dovecot, mariadb, mosquitto, openvpn, postfix, postgres, redis, slapd,
    sshd,
};
use crate::support::servers::Server;
use crate::support::{SOON, wait_for};

/// All the servers, and the proxy before them.
struct Scene {
    web: Nginx,
    ssh: Server,
    databases: [Server; 2],
    mysql: [Server; 2],
    cache: Server,
    broker: Server,
    vpn: Server,
    mail: Server,
    boxes: Server,
    directory: Server,
    proxy: Proxy,
    port: u16,
}

/// The addresses beside 127.0.0.1 that have the same port, for servers that speak first.
const SMTP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const IMAP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

impl Scene {
    fn new() -> Self {
        let web = Nginx::start(&["www.test", "app.test"]);
        let databases = ["one.db.test", "two.db.test"].map(postgres);
        let mysql = ["one.sql.test", "two.sql.test"].map(mariadb);
        let (ssh, cache, broker) = (sshd(), redis("cache.test"), mosquitto("broker.test"));
        let (vpn, mail) = (openvpn("vpn.test"), postfix("mail.test"));
        let (boxes, directory) = (dovecot("mail.test", "imap"), slapd("ldap.test"));
        let port = common_port();
        let route = |what: &str, to: SocketAddr| format!("[[route]]\n{what}\nto = '{to}'\n");
        let config = [
            format!(
                "[[listener]]\nname = 'all'\nbind = '127.0.0.1:{port}'\n\
                 server_first = {{ protocol = 'mysql', after = '500ms' }}\n\
                 [[listener]]\nname = 'smtp'\nbind = '{SMTP}:{port}'\nserver_first = 'smtp'\n\
                 [[listener]]\nname = 'imap'\nbind = '{IMAP}:{port}'\nserver_first = 'imap'\n\
                 [[route]]\nprotocol = 'http'\nredirect = 'https'\n"
            ),
            route("sni = ['www.test', 'app.test']\nprotocol = 'http'", web.addr()),
            route("protocol = 'ssh'", ssh.addr()),
            route("sni = 'one.sql.test'\nprotocol = 'mysql'", mysql[0].addr()),
            route("sni = ['two.sql.test', 'none']\nprotocol = 'mysql'", mysql[1].addr()),
            route("sni = 'one.db.test'\nprotocol = 'postgres'", databases[0].addr()),
            route("sni = 'two.db.test'\nprotocol = 'postgres'", databases[1].addr()),
            route("sni = 'cache.test'\nprotocol = 'redis'", cache.addr()),
            route("sni = 'broker.test'\nprotocol = 'mqtt'", broker.addr()),
            route("protocol = 'openvpn'", vpn.addr()),
            route("sni = 'mail.test'\nprotocol = 'smtp'\nlistener = 'smtp'", mail.addr()),
            route("sni = 'mail.test'\nprotocol = 'imap'\nlistener = 'imap'", boxes.addr()),
            route("sni = 'ldap.test'\nprotocol = 'ldap'", directory.addr()),
        ];
        let proxy = Proxy::start(&config.concat());
        Self { web, ssh, databases, mysql, cache, broker, vpn, mail, boxes, directory, proxy, port }
    }

    fn all(&self) -> SocketAddr {
        self.proxy.listener("all")
    }
}

/// A port that is free at all three addresses.
fn common_port() -> u16 {
    crate::support::until("a port that is free at three addresses", SOON, || {
        let port = free_port();
        let all = [Ipv4Addr::LOCALHOST, SMTP, IMAP].map(|ip| TcpListener::bind((ip, port)));
        all.iter().all(Result::is_ok).then_some(port)
    })
}

fn run(package: &str, input: &str, words: &[&str]) -> Finished {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("HOME", "/nonexistent").env("LC_ALL", "C");
    finish(&mut command, package, input)
}

/// What all clients see must be what they would see without a proxy.
fn assert_says(done: &Finished, expected: &str) {
    assert!(done.stdout.contains(expected), "no {expected:?} in {:?}\n{}", done.stdout, done.stderr);
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn eleven_protocols_share_a_port() {
    let scene = Scene::new();
    let clients: [fn(&Scene); 11] =
        [https, http, ssh, databases, mysql, cache, broker, vpn, mail, boxes, directory];
    // All at the same time, twice over; one that fails ends the test.
    let scene = &scene;
    std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(move || {
                client(scene);
                client(scene);
            });
        }
    });
}

fn https(scene: &Scene) {
    for name in ["www.test", "app.test"] {
        let done = curl(name, scene.all(), &scene.web.certificate(name), &[]);
        assert_says(&done, &format!("page of {name}"));
    }
}

fn http(scene: &Scene) {
    let (addr, port) = (scene.all(), scene.port);
    let ask = |host: &str| {
        let resolve = format!("{host}:{port}:{}", addr.ip());
        let url = format!("http://{host}:{port}/some/path?and=query");
        run("curl", "", &["curl", "-sS", "-m", "10", "--resolve", &resolve, "-i", &url]).stdout
    };
    let sent = ask("www.test");
    assert!(
        sent.starts_with("HTTP/1.1 308 ")
            && sent.contains("\r\nLocation: https://www.test/some/path?and=query\r\n"),
        "{sent}"
    );
    assert!(ask("elsewhere.test").starts_with("HTTP/1.1 421 "));
}

fn ssh(scene: &Scene) {
    let port = scene.port.to_string();
    let id = scene.ssh.folder().join("id");
    let user = run("coreutils", "", &["id", "-un"]).stdout;
    let login = format!("{}@127.0.0.1", user.trim());
    let options =
        ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=10"];
    let mut words = vec!["ssh", "-p", &port, "-i", path(&id), "-F", "none"];
    words.extend(options.iter().flat_map(|option| ["-o", option]));
    words.extend([&*login, "echo $((6 * 7)) by $SSH_CONNECTION"]);
    let done = run("openssh-client", "", &words);
    assert_says(&done, "42 by 127.0.0.1");
}

fn databases(scene: &Scene) {
    for (name, server) in ["one.db.test", "two.db.test"].iter().zip(&scene.databases) {
        let ca = certificate(server);
        let info = format!(
            "host={name} hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
            scene.port,
            path(&ca)
        );
        assert_says(&run("postgresql-client", "", &["psql", &info, "-XAtqc", "show cluster_name"]), name);
        // As clients from 17 on begin with `sslnegotiation=direct`; the server here is older, and ends it without a word.
        let direct = s_client(scene.all(), name, &ca, &["-alpn", "postgresql"], "");
        assert!(!direct.stdout.contains("alert"), "{}", direct.stdout);
        let line = |line: &serde_json::Value| line["sni"] == *name && line["alpn"][0] == "postgresql";
        assert_eq!(scene.proxy.access_line("direct TLS", line)["action"], "passthrough");
        // A browser's offer never gets there.
        let browser = s_client(scene.all(), name, &ca, &["-alpn", "h2,http/1.1"], "");
        assert!(browser.stderr.contains("alert number 120"), "{}", browser.stderr);
    }
}

fn mysql(scene: &Scene) {
    for (name, server) in ["one.sql.test", "two.sql.test"].iter().zip(&scene.mysql) {
        let done = ask(scene.all(), name, ("native", "secret"), &certificate(server), WHO);
        assert_says(&done, name);
    }
    // Debian's own client names no server.
    let port = scene.port.to_string();
    let words =
        ["mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", &port, "-u", "open", "--ssl", "-Ne", WHO];
    assert_says(&run("mariadb-client", "", &words), "two.sql.test");
}

fn s_client(addr: SocketAddr, name: &str, ca: &Path, options: &[&str], input: &str) -> Finished {
    let addr = addr.to_string();
    let mut words = vec!["timeout", "20", "openssl", "s_client", "-connect", &addr, "-servername", name];
    words.extend(["-verify_hostname", name, "-verify_return_error", "-CAfile", path(ca)]);
    words.extend(options);
    run("openssl", input, &words)
}

fn cache(scene: &Scene) {
    let (port, ca) = (scene.port.to_string(), certificate(&scene.cache));
    let words = [
        "redis-cli",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "--tls",
        "--sni",
        "cache.test",
        "--cacert",
        path(&ca),
        "ping",
    ];
    assert_says(&run("redis-tools", "", &words), "PONG");
}

fn broker(scene: &Scene) {
    let (port, ca) = (scene.port.to_string(), certificate(&scene.broker));
    // The client names the host that it connects to, and looks it up: where it leads is its resolver's to say.
    let hosts = Hosts::new("127.0.0.1 broker.test\n");
    let words = [
        "mosquitto_pub",
        "-h",
        "broker.test",
        "-p",
        &port,
        "--cafile",
        path(&ca),
        "-t",
        "a",
        "-m",
        "b",
        "-d",
    ];
    assert_says(&hosts.run("mosquitto-clients util-linux", &words), "received CONNACK (0)");
}

fn vpn(scene: &Scene) {
    let at = |file: &str| scene.vpn.folder().join(file).display().to_string();
    let port = scene.port.to_string();
    let (certificate, key) = (at(CERTIFICATE), at(KEY));
    let mut command = Command::new("openvpn");
    command.args(["--dev", "null", "--proto", "tcp-client", "--remote", "127.0.0.1", &port, "--tls-client"]);
    command.args(["--nobind", "--ca", &certificate, "--cert", &certificate, "--key", &key]);
    let mut client = Process::start(&mut command, "openvpn");
    wait_for("the tunnel", || client.stdout.contains("Initialization Sequence Completed"));
    client.signal(rustix::process::Signal::TERM);
    client.wait(SOON);
}

/// The certificate that a client sees after STARTTLS is the server's own, and the session goes on.
fn starttls(addr: SocketAddr, protocol: &str, name: &str, server: &Server, input: &str) -> Finished {
    s_client(addr, name, &certificate(server), &["-starttls", protocol, "-crlf", "-quiet"], input)
}

fn mail(scene: &Scene) {
    let addr = SocketAddr::from((SMTP, scene.port));
    let done = starttls(addr, "smtp", "mail.test", &scene.mail, "EHLO me\nQUIT\n");
    assert_says(&done, "postfix.test");
    assert_says(&done, "221 ");
}

fn boxes(scene: &Scene) {
    let addr = SocketAddr::from((IMAP, scene.port));
    let done =
        starttls(addr, "imap", "mail.test", &scene.boxes, "a login ann secret\na select inbox\na logout\n");
    assert_says(&done, "a OK [READ-WRITE] Select completed");
}

fn directory(scene: &Scene) {
    let (url, ca) = (format!("ldap://ldap.test:{}", scene.port), certificate(&scene.directory));
    let hosts = Hosts::new("127.0.0.1 ldap.test\n");
    let trust = format!("LDAPTLS_CACERT={}", path(&ca));
    let mut words =
        vec!["env", &trust, "ldapsearch", "-LLL", "-ZZ", "-x", "-D", "cn=admin,dc=test", "-w", "secret"];
    words.extend(["-H", &url, "-b", "", "-s", "base", "namingContexts"]);
    assert_says(&hosts.run("ldap-utils util-linux", &words), "namingContexts: dc=test");
}

/// Names of hosts for one command alone.
struct Hosts(tempfile::NamedTempFile);

impl Hosts {
    fn new(lines: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        Self(file)
    }

    /// Runs a command for which hosts have these names.
    fn run(&self, package: &str, words: &[&str]) -> Finished {
        let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", path(self.0.path()));
        let wrap = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
        run(package, "", &[&wrap[..], words].concat())
    }
}

#[test]
fn silent_clients_of_the_shared_port_are_greeted_after_a_while() {
    let scene = Scene::new();
    let mut stream = connect(scene.all());
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (took, said) = timed(|| {
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        said
    });
    // The number of the packet and the version of the handshake, and no sooner than others would have spoken.
    assert_eq!(said[3..], [0, 10]);
    assert!(took >= Duration::from_millis(450), "{took:?}");
}
