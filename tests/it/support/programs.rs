//! Real servers and clients: nginx, HAProxy, and what curl, openssl and python say.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustix::process::Signal;
use tempfile::TempDir;

use super::SOON;
use super::client::free_port;
use super::process::{Finished, Process, finish};
use super::until;

/// An nginx that ends TLS for some names, each with a certificate and a page of its own.
#[derive(Debug)]
pub(crate) struct Nginx {
    _process: Process,
    dir: TempDir,
    addr: SocketAddr,
}

/// An nginx with one server of the `http` or the `stream` module, without TLS.
#[derive(Debug)]
pub(crate) struct PlainNginx {
    process: Process,
    _dir: TempDir,
    addr: SocketAddr,
}

/// A HAProxy, twice in one process: one before the proxy under test, which names its clients to it by version 2 with a
/// checksum, and one behind it, which ends TLS for `a.test` and answers with what it was told.
#[derive(Debug)]
pub(crate) struct Haproxy {
    _process: Process,
    dir: TempDir,
    before: SocketAddr,
}

/// Where Debian's packages have the stream module of nginx.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

impl Nginx {
    /// Starts one with a server block for each of `names`.
    pub(crate) fn start(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr warn; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n"
        );
        for name in names {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, *name);
            std::fs::write(dir.path().join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem())
                .unwrap();
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
            writeln!(
                config,
                "server {{ listen {addr} ssl; server_name {name}; ssl_certificate {at}/{name}.pem;\n\
                 ssl_certificate_key {at}/{name}.key; ssl_protocols TLSv1.2 TLSv1.3;\n\
                 location / {{ return 200 'page of {name}'; }} }}"
            )
            .unwrap();
        }
        config.push('}');
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        let mut process = Process::start(&mut command, "nginx-light");
        wait_port(&mut process, addr);
        Self { _process: process, dir, addr }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The certificate of `name`, which signs itself.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }
}

impl PlainNginx {
    /// Starts one with the server block that `server` makes for an address to listen on.
    pub(crate) fn start(module: &str, server: impl Fn(SocketAddr) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (load, own) = match module {
            "stream" => (format!("load_module {STREAM_MODULE};\n"), String::new()),
            _ => (
                String::new(),
                format!(
                    "access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
                     fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n"
                ),
            ),
        };
        let config = format!(
            "{load}daemon off; master_process off; pid {at}/pid; error_log stderr warn; events {{}}\n\
             {module} {{ {own}{} }}\n",
            server(addr)
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        let mut process = Process::start(&mut command, "nginx-light libnginx-mod-stream");
        wait_port(&mut process, addr);
        Self { process, _dir: dir, addr }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends it a signal; it is one process.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }
}

impl Haproxy {
    /// Starts both; the one before leads to `target`, the one behind is at `behind`.
    pub(crate) fn start(target: SocketAddr, behind: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let before = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).unwrap();
        let both = format!("{}{}", cert.pem(), signing_key.serialize_pem());
        std::fs::write(dir.path().join("server.pem"), both).unwrap();
        let config = format!(
            "global\n maxconn 100\ndefaults\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n\
             listen before\n mode tcp\n bind {before}\n\
             server target {target} send-proxy-v2 proxy-v2-options crc32c\n\
             frontend behind\n mode http\n bind {behind} accept-proxy ssl crt {}/server.pem\n\
             http-request return status 200 content-type text/plain lf-string \
             \"%[src] %[dst] %[fc_pp_authority] %[fc_pp_unique_id]\"\n",
            dir.path().display()
        );
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let mut process = Process::start(Command::new("haproxy").arg("-db").arg("-f").arg(file), "haproxy");
        wait_port(&mut process, behind);
        Self { _process: process, dir, before }
    }

    pub(crate) fn before(&self) -> SocketAddr {
        self.before
    }

    /// The certificate of the one behind, which signs itself.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

/// Waits until a server accepts connections.
pub(super) fn wait_port(process: &mut Process, addr: SocketAddr) {
    until("the server's port", SOON, || {
        if let Some(status) = process.exit() {
            panic!("the server ended with {status}: {:#?}", process.stderr.all());
        }
        TcpStream::connect(addr).ok()
    });
}

/// Runs curl for `https://name/` at `proxy`, trusting nothing but `ca`.
pub(crate) fn curl(name: &str, proxy: SocketAddr, ca: &std::path::Path, options: &[&str]) -> Finished {
    let resolve = format!("{name}:{}:{}", proxy.port(), proxy.ip());
    let url = format!("https://{name}:{}/", proxy.port());
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "10", "--resolve", &resolve]);
    finish(command.args(options).arg("--cacert").arg(ca).arg(url), "curl", "")
}

/// Runs `openssl s_client` for `name` at `proxy`, trusting nothing but `ca`.
pub(crate) fn s_client(name: &str, proxy: SocketAddr, ca: &std::path::Path, version: &str) -> Finished {
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-connect",
        &proxy.to_string(),
        "-servername",
        name,
        version,
        "-verify_return_error",
    ]);
    finish(command.arg("-CAfile").arg(ca), "openssl", "GET / HTTP/1.0\r\n\r\n")
}
