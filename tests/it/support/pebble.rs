//! An authority that issues by ACME, with a nameserver of its own: Pebble, and pebble-challtestsrv.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use tempfile::TempDir;

use super::client::free_port;
use super::process::{Process, finish};
use super::programs::wait_port;

/// What the authority is like.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// For how long its certificates are good, in seconds.
    pub(crate) validity: u32,
    /// Names that it does not issue for.
    pub(crate) blocked: Vec<&'static str>,
    /// The key of the account elsewhere that it asks for, in Base64.
    pub(crate) external_key: Option<&'static str>,
}

/// The authority; it can be stopped and started again, and knows nothing of before then.
#[derive(Debug)]
pub(crate) struct Pebble {
    process: Option<Process>,
    dir: TempDir,
    api: u16,
    management: u16,
    /// Where it looks whether names are served.
    tls: u16,
    http: u16,
    names: u16,
    nameserver_management: u16,
    _nameserver: Process,
}

impl Default for Manner {
    fn default() -> Self {
        Self { validity: 90 * 86_400, blocked: Vec::new(), external_key: None }
    }
}

impl Pebble {
    /// An authority that is down; all names are 127.0.0.1 to it.
    pub(crate) fn new(manner: &Manner) -> Self {
        let [api, management, tls, http, names, nameserver_management] = [(); 6].map(|()| free_port());
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("pebble-challtestsrv");
        command.args([
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
        ]);
        command.args(["-dns01", &format!("127.0.0.1:{names}")]);
        command.args(["-management", &format!("127.0.0.1:{nameserver_management}")]);
        let mut nameserver = Process::start(&mut command, "pebble");
        wait_port(&mut nameserver, local(nameserver_management));
        let pebble = Self {
            process: None,
            dir,
            api,
            management,
            tls,
            http,
            names,
            nameserver_management,
            _nameserver: nameserver,
        };
        pebble.configure(manner);
        pebble
    }

    /// One that is up.
    pub(crate) fn start(manner: &Manner) -> Self {
        let mut pebble = Self::new(manner);
        pebble.up();
        pebble
    }

    /// Starts it.
    pub(crate) fn up(&mut self) {
        let mut command = Command::new("pebble");
        command.args(["-dnsserver", &local(self.names).to_string(), "-config"]).arg(self.path("pebble.json"));
        // Validations begin at once, and each time anew; nonces that are refused for no reason would make orders wait.
        command.envs([
            ("PEBBLE_VA_NOSLEEP", "1"),
            ("PEBBLE_AUTHZREUSE", "0"),
            ("PEBBLE_WFE_NONCEREJECT", "0"),
        ]);
        let mut process = Process::start(&mut command, "pebble");
        wait_port(&mut process, local(self.api));
        wait_port(&mut process, local(self.management));
        self.process = Some(process);
    }

    /// Stops it.
    pub(crate) fn down(&mut self) {
        self.process = None;
    }

    /// How it is from its next start on.
    pub(crate) fn configure(&self, manner: &Manner) {
        self.certify();
        let key = manner.external_key;
        let config = json!({ "pebble": {
            "listenAddress": local(self.api),
            "managementListenAddress": local(self.management),
            "certificate": self.path("own.pem"),
            "privateKey": self.path("own.key"),
            "httpPort": self.http,
            "tlsPort": self.tls,
            "ocspResponderURL": "",
            "certificateValidityPeriod": manner.validity,
            "domainBlocklist": manner.blocked,
            "externalAccountBindingRequired": key.is_some(),
            "externalAccountMACKeys": key.map(|key| json!({ "kid-1": key })).unwrap_or_default(),
        }});
        std::fs::write(self.path("pebble.json"), config.to_string()).unwrap();
    }

    /// A certificate for its own server, and the authority of that.
    fn certify(&self) {
        if self.ca().exists() {
            return;
        }
        let mut params = CertificateParams::new([]).unwrap();
        // Otherwise it would have the name of what it vouches for, which then counts as self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(self.ca(), authority.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(self.path("own.pem"), own.pem()).unwrap();
        std::fs::write(self.path("own.key"), key.serialize_pem()).unwrap();
    }

    /// The authority that vouches for its server.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://{}/dir", local(self.api))
    }

    /// Where it looks whether names are served with TLS, and in clear.
    pub(crate) fn looks_at(&self) -> (SocketAddr, SocketAddr) {
        (local(self.tls), local(self.http))
    }

    /// A file with the root that it issues from since its last start.
    pub(crate) fn root(&self) -> PathBuf {
        let url = format!("https://{}/roots/0", local(self.management));
        let got = finish(
            Command::new("curl").args(["-sS", "--fail", "--cacert"]).arg(self.ca()).arg(url),
            "curl",
            "",
        );
        assert_eq!(got.code, Some(0), "{}", got.stderr);
        // Another one after each start.
        let mut files = (0..).map(|number| self.path(&format!("root-{number}.pem")));
        let same = |file: &PathBuf| {
            std::fs::read_to_string(file).is_ok_and(|text| text == got.stdout) || !file.exists()
        };
        let file = files.find(same).unwrap();
        std::fs::write(&file, got.stdout).unwrap();
        file
    }

    /// Certificates issued since its last start.
    pub(crate) fn issued(&self) -> usize {
        self.count("Issued certificate serial")
    }

    /// Accounts made since its last start.
    pub(crate) fn accounts(&self) -> usize {
        self.count("accounts in memory")
    }

    fn count(&self, part: &str) -> usize {
        let process = self.process.as_ref().expect("it is up");
        let lines = process.stdout.all().into_iter().chain(process.stderr.all());
        lines.filter(|line| line.contains(part)).count()
    }

    /// Tells its nameserver something, by a path of its management.
    pub(crate) fn tell_nameserver(&self, path: &str, body: &str) {
        let url = format!("{}{path}", self.nameserver());
        let told = finish(Command::new("curl").args(["-sS", "--fail", "-d", body, &url]), "curl", "");
        assert_eq!(told.code, Some(0), "{}", told.stderr);
    }

    /// Where its nameserver is told things.
    pub(crate) fn nameserver(&self) -> String {
        format!("http://{}", local(self.nameserver_management))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
