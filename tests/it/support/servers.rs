//! Real servers of other protocols than TLS, each in a folder of its own, which can be stopped and started again.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use super::client::free_port;
use super::process::{Process, finish};
use super::until;

/// How long a server may take to start: some write a database first.
const START: Duration = Duration::from_secs(20);
/// A log of 96 MB is written for each server otherwise.
const SMALL_LOG: &str = "--innodb-log-file-size=4M";
/// The user `nobody` of Debian, for servers that refuse to be root.
pub(crate) const NOBODY: u32 = 65534;
/// What begins the command of a server for which hosts have other names than for the rest of the machine.
const UNSHARE: &str = "unshare";
/// The same of one that is started as whoever runs the tests.
pub(super) const AS_IT_IS: &str = "env";
/// The first process of Postfix, whose others have users of their own.
const POSTFIX: &str = "/usr/lib/postfix/sbin/master";

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    /// What it is started with.
    words: Vec<String>,
    package: &'static str,
    /// What it logs when it serves; without that its port tells.
    ready: Option<&'static str>,
    addr: SocketAddr,
    dir: TempDir,
}

/// A PostgreSQL server with an empty database, which trusts everybody; its superuser is `postgres`.
pub(crate) struct Postgres;

/// A MariaDB server with an empty database, which lets everybody in.
pub(crate) struct Mariadb;

/// A Redis server that keeps nothing.
pub(crate) struct Redis;

/// A Mosquitto broker for everybody.
pub(crate) struct Mosquitto;

/// An OpenSSH server, to which nobody can log in.
pub(crate) struct Sshd;

/// The SMTP server of Postfix for tests, which throws away what it gets.
pub(crate) struct Smtp;

/// The SMTP server of Postfix as it is installed, alone: it takes no mail.
pub(crate) struct Postfix;

/// An nginx that says which port it has, and is found at `/up` as long as it is.
pub(crate) struct Web;

impl Postgres {
    pub(crate) fn start() -> Server {
        Self::with(|_| Vec::new())
    }

    /// The same with further settings, for which files may be put into its folder.
    pub(crate) fn with(settings: impl FnOnce(&Path) -> Vec<String>) -> Server {
        let bin = postgres_programs();
        let dir = own_folder();
        let data = dir.path().join("data");
        let mut words = words(&[&bin.join("initdb"), Path::new("-D"), &data]);
        words.extend(["-A", "trust", "-U", "postgres", "--no-sync"].map(str::to_owned));
        run(&words, "postgresql");
        let addr = address();
        let mut words = self::words(&[&bin.join("postgres"), Path::new("-D"), &data]);
        words.extend(["-p".to_owned(), addr.port().to_string()]);
        let usual =
            ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=20"];
        let all = usual.into_iter().map(str::to_owned).chain(settings(dir.path()));
        words.extend(all.flat_map(|setting| ["-c".to_owned(), setting]));
        Server::start(dir, words, "postgresql", Some("ready to accept connections"), addr)
    }
}

impl Mariadb {
    pub(crate) fn start() -> Server {
        let (dir, addr) = (own_folder(), address());
        // Clients that hear the greeting and go are counted, and their host is refused after a hundred.
        let words = Self::prepare(&dir, addr, &["--max-connect-errors=1000000", "--skip-grant-tables"]);
        Server::start(dir, words, "mariadb-server", Some("ready for connections"), addr)
    }

    /// One with these options instead of letting everybody in, for which files may be put into its folder.
    pub(crate) fn with(options: impl FnOnce(&Path) -> Vec<String>) -> Server {
        let (dir, addr) = (own_folder(), address());
        let mut words = Self::prepare(&dir, addr, &["--max-connect-errors=1000000"]);
        words.extend(options(dir.path()));
        Server::start(dir, words, "mariadb-server", Some("ready for connections"), addr)
    }

    /// One at `ip` that knows that address by a name, as it must to count its errors, and refuses it after so many.
    pub(crate) fn counting(ip: Ipv4Addr, name: &str, errors: u32) -> Server {
        let (dir, addr) = (own_folder(), SocketAddr::from((ip, free_port())));
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, format!("{ip} {name}\n")).unwrap();
        let hosts = hosts.display().to_string();
        let nobody = NOBODY.to_string();
        let named = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let mut words: Vec<_> =
            [UNSHARE, "--mount", "sh", "-c", named, &hosts, "setpriv", "--reuid", &nobody]
                .into_iter()
                .chain(["--regid", &nobody, "--clear-groups"])
                .map(str::to_owned)
                .collect();
        let errors = format!("--max-connect-errors={errors}");
        words.extend(Self::prepare(&dir, addr, &[&errors, "--skip-grant-tables"]));
        Server::start(dir, words, "mariadb-server", Some("ready for connections"), addr)
    }

    /// Makes an empty database; gives the command that serves it at `addr`.
    fn prepare(dir: &TempDir, addr: SocketAddr, options: &[&str]) -> Vec<String> {
        let at = dir.path().display();
        // A server that starts removes what others have in a common one.
        let tmp = format!("--tmpdir={at}");
        let install =
            ["mariadb-install-db".to_owned(), "--no-defaults".to_owned(), format!("--datadir={at}/data")];
        run(
            &[&install[..], &["--skip-test-db".to_owned(), SMALL_LOG.to_owned(), tmp.clone()]].concat(),
            "mariadb-server",
        );
        let mut words = vec![
            "mariadbd".to_owned(),
            "--no-defaults".to_owned(),
            format!("--datadir={at}/data"),
            format!("--socket={at}/socket"),
            format!("--pid-file={at}/pid"),
            format!("--bind-address={}", addr.ip()),
            format!("--port={}", addr.port()),
            "--innodb-buffer-pool-size=8M".to_owned(),
            SMALL_LOG.to_owned(),
            tmp,
        ];
        words.extend(options.iter().map(|option| (*option).to_owned()));
        words
    }
}

impl Redis {
    pub(crate) fn start() -> Server {
        Self::with(&[])
    }

    /// The same with further options of the command line.
    pub(crate) fn with(options: &[&str]) -> Server {
        let (dir, addr) = (own_folder(), address());
        let dir_name = dir.path().display().to_string();
        let port = addr.port().to_string();
        let mut words = vec!["redis-server", "--bind", "127.0.0.1", "--port", &port, "--dir", &dir_name];
        words.extend(["--save", "", "--appendonly", "no"]);
        words.extend(options);
        let words = words.into_iter().map(str::to_owned).collect();
        Server::start(dir, words, "redis-server", None, addr)
    }
}

impl Mosquitto {
    pub(crate) fn start() -> Server {
        let (dir, addr) = (own_folder(), address());
        let file = dir.path().join("mosquitto.conf");
        std::fs::write(&file, format!("listener {} 127.0.0.1\nallow_anonymous true\n", addr.port())).unwrap();
        let words = words(&[Path::new("mosquitto"), Path::new("-c"), &file]);
        Server::start(dir, words, "mosquitto", None, addr)
    }
}

impl Sshd {
    pub(crate) fn start() -> Server {
        let (dir, addr) = (own_folder(), address());
        let key = dir.path().join("key");
        let mut generate = words(&[Path::new("ssh-keygen"), Path::new("-f"), &key]);
        generate.extend(["-q", "-t", "ed25519", "-N", ""].map(str::to_owned));
        run(&generate, "openssh-client");
        let config = dir.path().join("sshd_config");
        let text = format!(
            "ListenAddress {addr}\nHostKey {}\nPidFile none\nUsePAM no\nPasswordAuthentication no\n\
             MaxStartups 1000\n",
            key.display()
        );
        std::fs::write(&config, text).unwrap();
        // It starts itself again for each connection, by its whole name.
        let mut words = words(&[Path::new("/usr/sbin/sshd"), Path::new("-f"), &config]);
        words.extend(["-D", "-e"].map(str::to_owned));
        Server::start(dir, words, "openssh-server", None, addr)
    }
}

impl Smtp {
    pub(crate) fn start() -> Server {
        let (dir, addr) = (own_folder(), address());
        let host = format!("{}.sink.test", addr.port());
        let words = ["/usr/sbin/smtp-sink", "-4", "-h", &host, &addr.to_string(), "16"].map(str::to_owned);
        Server::start(dir, words.to_vec(), "postfix", None, addr)
    }
}

impl Postfix {
    pub(crate) fn start() -> Server {
        Self::with(|_| String::new())
    }

    /// The same with further lines of main.cf, for which files may be put into its folder.
    pub(crate) fn with(more: impl FnOnce(&Path) -> String) -> Server {
        assert!(geteuid().is_root(), "Postfix is started as root, whoever it becomes: run this test as root");
        let (dir, addr) = (tempfile::tempdir().unwrap(), address());
        let at = dir.path().display();
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), all).unwrap();
        for folder in ["etc", "spool/pid", "spool/private", "spool/public", "data"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let owned = ["spool/private", "spool/public", "data"].map(|folder| format!("{at}/{folder}"));
        run(&[&["chown".to_owned(), "postfix".to_owned()], &owned[..]].concat(), "postfix");
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {at}/spool\ndata_directory = {at}/data\n\
             myhostname = {}.postfix.test\ninet_protocols = ipv4\nmydestination =\nalias_maps =\n\
             local_recipient_maps =\nsmtpd_peername_lookup = no\nmaillog_file = /dev/stdout\n",
            addr.port()
        );
        std::fs::write(dir.path().join("etc/main.cf"), main + &more(dir.path())).unwrap();
        let services = format!(
            "{addr} inet n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\nanvil unix - - n - 1 anvil\n\
             tlsmgr unix - - n 1000? 1 tlsmgr\n"
        );
        std::fs::write(dir.path().join("etc/master.cf"), services).unwrap();
        let words = [POSTFIX.to_owned(), "-c".to_owned(), format!("{at}/etc"), "-d".to_owned()];
        Server::start(dir, words.to_vec(), "postfix", None, addr)
    }
}

impl Web {
    pub(crate) fn start() -> Server {
        Self::with("", |_| {})
    }

    /// With TLS, by a certificate for `a.test` that ends at this time.
    pub(crate) fn with_tls(not_after: SystemTime) -> Server {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_after = not_after.into();
        let certificate = params.self_signed(&key).unwrap();
        Self::with("ssl", |folder| {
            std::fs::write(folder.join("certificate.pem"), certificate.pem()).unwrap();
            std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        })
    }

    fn with(listen: &str, prepare: impl FnOnce(&Path)) -> Server {
        let (dir, addr) = (own_folder(), address());
        let at = dir.path().display();
        prepare(dir.path());
        let tls = match listen {
            "" => String::new(),
            _ => format!("ssl_certificate {at}/certificate.pem; ssl_certificate_key {at}/key.pem;"),
        };
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr warn; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen {addr} {listen}; {tls} root {at};\n\
             location / {{ return 200 'port {}'; }} location = /up {{ try_files /up =503; }} }} }}\n",
            addr.port()
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let mut words = words(&[Path::new("nginx"), Path::new("-p"), dir.path(), Path::new("-c"), &file]);
        words.extend(["-e", "stderr"].map(str::to_owned));
        let server = Server::start(dir, words, "nginx-light", None, addr);
        server.set_up(Some("all is well"));
        server
    }
}

impl Server {
    pub(super) fn start(
        dir: TempDir,
        words: Vec<String>,
        package: &'static str,
        ready: Option<&'static str>,
        addr: SocketAddr,
    ) -> Self {
        let process = launch(&words, package, ready, addr);
        Self { process, words, package, ready, addr, dir }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// What a [`Web`] has at `/up`; without that it says 503.
    pub(crate) fn set_up(&self, page: Option<&str>) {
        let file = self.dir.path().join("up");
        match page {
            Some(page) => std::fs::write(file, page).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
    }

    /// Sends it a signal: `STOP` lets the kernel go on accepting for it, `CONT` wakes it.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it at once, as a crash would; its port refuses from then on.
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(START);
        until("its port to be closed", START, || TcpStream::connect(self.addr).err());
    }

    /// Starts it again on the same port, after it was killed.
    pub(crate) fn restart(&mut self) {
        self.process = until("the server to start again", START, || {
            // What a crash left behind may be in the way for a moment.
            try_launch(&self.words, self.package, self.ready, self.addr)
        });
    }
}

/// An address of its own.
pub(super) fn address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A folder that belongs to whom the server runs as.
pub(super) fn own_folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    if geteuid().is_root() {
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    dir
}

/// The command of `words`, as somebody else when the tests run as root, unless it sees to that itself.
fn command(words: &[String]) -> Command {
    let itself = [UNSHARE, POSTFIX, "chown", AS_IT_IS].contains(&words[0].as_str());
    let root = geteuid().is_root() && !itself;
    let nobody = NOBODY.to_string();
    let mut all = Vec::new();
    if root {
        all.extend(["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
    }
    all.extend(words.iter().map(String::as_str));
    let mut command = Command::new(all[0]);
    command.args(&all[1..]).current_dir("/").env("HOME", "/nonexistent").env("LC_ALL", "C");
    command
}

fn words(words: &[&Path]) -> Vec<String> {
    words.iter().map(|word| word.display().to_string()).collect()
}

/// Runs a command to its end, which must be a good one.
pub(super) fn run(words: &[String], package: &str) {
    let done = finish(&mut command(words), package, "");
    assert_eq!(
        done.code,
        Some(0),
        "{words:?}; is it installed? apt-get install {package}\n{}{}",
        done.stdout,
        done.stderr
    );
}

fn launch(words: &[String], package: &str, ready: Option<&str>, addr: SocketAddr) -> Process {
    try_launch(words, package, ready, addr)
        .unwrap_or_else(|| panic!("{words:?} ended at once; is it installed? apt-get install {package}"))
}

/// Starts a server and waits until it serves; `None` when it ends instead.
fn try_launch(words: &[String], package: &str, ready: Option<&str>, addr: SocketAddr) -> Option<Process> {
    let mut process = Process::start(&mut command(words), package);
    let serves = until("the server to serve", START, || {
        if let Some(status) = process.exit() {
            println!("{words:?}: {status}\n{}", process.stderr.all().join("\n"));
            return Some(false);
        }
        let said = ready.is_none_or(|ready| process.stderr.contains(ready));
        (said && TcpStream::connect(addr).is_ok()).then_some(true)
    });
    serves.then_some(process)
}

/// Where Debian has the programs of the PostgreSQL server.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let folders = versions.map(|version| version.unwrap().path().join("bin"));
    let found = folders.filter(|folder| folder.join("initdb").exists()).max();
    found.expect("PostgreSQL; install it: apt-get install postgresql")
}
