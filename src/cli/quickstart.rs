//! `portcullis quickstart`: something to see within a minute. Two TLS servers on loopback, each with a
//! certificate of its own, and a proxy in front of them that has none.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::run::serve_with;
use super::{Exit, complain, report};
use crate::config::{Config, Identity};
use crate::drain::Hangup;
use crate::server::Server;

/// The servers' names, under `.test` so that they exist nowhere else (RFC 2606 §2).
const NAMES: [&str; 2] = ["one.test", "two.test"];

/// Arguments of `quickstart`.
#[derive(Debug, clap::Args)]
pub(super) struct Quickstart {
    /// Where the proxy listens.
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8443)))]
    listen: SocketAddr,
}

/// A folder for the certificate authority's file, removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Quickstart {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let folder =
            Folder(std::env::temp_dir().join(format!("portcullis-quickstart-{}", std::process::id())));
        fs::create_dir_all(&folder.0).with_context(|| format!("cannot make {}", folder.0.display()))?;
        let (ca, ca_pem) = authority()?;
        let ca_file = folder.0.join("ca.pem");
        fs::write(&ca_file, ca_pem).with_context(|| format!("cannot write {}", ca_file.display()))?;

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut toml = format!(
            "listen = \"{}\"\naccess_log = {{ to = \"stdout\", format = \"logfmt\" }}\n",
            self.listen
        );
        for name in NAMES {
            let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = socket.local_addr()?;
            let acceptor = TlsAcceptor::from(Arc::new(server_config(name, &ca)?));
            runtime.spawn(backend(name, socket, acceptor));
            toml.push_str(&format!("\n[[route]]\nsni = \"{name}\"\nto  = \"{address}\"\n"));
        }
        let mut config = match Config::parse(Path::new("quickstart.toml"), &toml) {
            Ok(config) => config,
            Err(errors) => return Ok(report(&errors)),
        };
        // Nobody's work depends on it.
        config.timeouts.drain = Duration::from_secs(1);
        // Whoever tries it out need not be told about users.
        config.identity = Identity::Kept;
        config.admin = None;
        let exit = serve_with(Server::bind(config, None, None), Hangup::Ends, |bound| {
            if let Some((_, address)) = bound.addresses().next() {
                // Nobody to read it is no reason to stop.
                let _ = introduce(address, &ca_file, &toml);
            }
        });
        if exit == Exit::Temporary {
            complain("help: perhaps another one runs; `--listen 127.0.0.1:0` takes any free port");
        }
        Ok(exit)
    }
}

/// Tells what runs and what to try.
fn introduce(address: SocketAddr, ca: &Path, toml: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "Portcullis listens on {address} and passes TLS on by server name. Its configuration:\n")?;
    toml.lines().try_for_each(|line| writeln!(out, "    {line}"))?;
    writeln!(out, "\nTry, in another terminal:\n")?;
    for name in NAMES {
        writeln!(
            out,
            "    curl --cacert {} --connect-to {name}:443:{address} https://{name}/",
            ca.display()
        )?;
    }
    writeln!(out, "\nEach answer comes from its own server, with that server's own certificate; the proxy")?;
    writeln!(
        out,
        "has neither key. A line for each connection follows when it has ended; Ctrl-C ends all.\n"
    )?;
    out.flush()
}

/// A certificate authority and its certificate in PEM.
fn authority() -> anyhow::Result<(Issuer<'static, KeyPair>, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "Portcullis quickstart");
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}

fn server_config(name: &str, ca: &Issuer<'static, KeyPair>) -> anyhow::Result<ServerConfig> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, ca)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?)
}

/// A small TLS server that says its name.
async fn backend(name: &'static str, socket: TcpListener, acceptor: TlsAcceptor) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |_| async move {
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(format!(
                    "Hello from {name}\n"
                )))))
            });
            let server = hyper::server::conn::http1::Builder::new();
            // A client that goes away is its own business.
            let _ = { server }.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
