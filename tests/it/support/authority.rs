//! An authority of the test's own: certificates of servers and of clients, of any key and any dates; and clients that trust it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RevokedCertParams,
    RsaKeySize, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use super::client::connect;
use super::process::{Finished, finish};
use super::{SOON, until};

/// A day.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Ecdsa,
    Rsa,
    /// Of 4,096 bits.
    LongRsa,
}

/// An authority with a folder for certificates of servers.
#[derive(Debug)]
pub(crate) struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: AtomicUsize,
}

/// A certificate with its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The certificate of a client, in files.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    serial: SerialNumber,
}

/// A stream of TLS, by another implementation than OpenSSL's.
pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Key {
    pub(crate) fn generate(self) -> KeyPair {
        match self {
            Self::Ecdsa => KeyPair::generate().unwrap(),
            Self::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
            Self::LongRsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096).unwrap(),
        }
    }
}

/// What a certificate is to say: of mailboxes, URIs and servers, from yesterday on, for 90 days.
pub(crate) fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - DAY).into(), (now + 90 * DAY).into());
    params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("nobody"));
    let name = |name: &&str| match *name {
        mailbox if mailbox.contains('@') => SanType::Rfc822Name(mailbox.try_into().unwrap()),
        uri if uri.contains("://") => SanType::URI(uri.try_into().unwrap()),
        server => SanType::DnsName(server.try_into().unwrap()),
    };
    params.subject_alt_names = names.iter().map(name).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority of {}", dir.path().display()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        for folder in ["certs", "clients"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        Self { dir, issuer, serial: AtomicUsize::new(1) }
    }

    /// With one certificate for these names.
    pub(crate) fn of(names: &[&str]) -> Self {
        let authority = Self::new();
        authority.server("one", names, Key::Ecdsa);
        authority
    }

    /// Its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The folder of certificates of servers.
    pub(crate) fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    /// The top of a configuration that takes them.
    pub(crate) fn top(&self) -> String {
        format!(
            "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\ncertificates = '{}'\n",
            self.certs().display()
        )
    }

    pub(crate) fn issue(&self, mut params: CertificateParams, key: &KeyPair) -> Pair {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) as u64;
        params.serial_number.get_or_insert_with(|| serial.into());
        let certificate = params.signed_by(key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// A certificate for a server.
    pub(crate) fn pair(&self, names: &[&str], key: Key) -> Pair {
        let mut params = params(names);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, &key.generate())
    }

    /// Puts a certificate for a server into the folder.
    pub(crate) fn server(&self, file: &str, names: &[&str], key: Key) {
        self.put(file, &self.pair(names, key));
    }

    /// Puts that into `file.pem` of the folder, with its key, as tools do that know what they do: at once.
    pub(crate) fn put(&self, file: &str, pair: &Pair) {
        put(&self.certs().join(format!("{file}.pem")), &format!("{}{}", pair.certificate, pair.key));
    }

    /// A certificate for a client, of the authority's folder of those.
    pub(crate) fn client(&self, names: &[&str]) -> Identity {
        self.client_with(params(names))
    }

    pub(crate) fn client_with(&self, mut params: CertificateParams) -> Identity {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        let serial = SerialNumber::from(number as u64);
        params.serial_number = Some(serial.clone());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let pair = self.issue(params, &KeyPair::generate().unwrap());
        let file = |end: &str| self.dir.path().join(format!("clients/{number}.{end}"));
        let (certificate, key) = (file("pem"), file("key"));
        std::fs::write(&certificate, pair.certificate).unwrap();
        std::fs::write(&key, pair.key).unwrap();
        Identity { certificate, key, serial }
    }

    /// A list of certificates that were taken back.
    pub(crate) fn revoke(&self, identities: &[&Identity]) -> PathBuf {
        let now = SystemTime::now();
        let revoked = |identity: &&Identity| RevokedCertParams {
            serial_number: identity.serial.clone(),
            revocation_time: (now - DAY).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (now - DAY).into(),
            next_update: (now + DAY).into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: identities.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = self.dir.path().join("revoked.crl");
        std::fs::write(&file, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        file
    }

    /// A client that trusts it, and keeps no sessions.
    pub(crate) fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        config
    }

    /// The same with a certificate of its own.
    pub(crate) fn config_of(&self, identity: &Identity) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let chain = vec![CertificateDer::from_pem_file(&identity.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = builder.with_client_auth_cert(chain, key).unwrap();
        config.resumption = rustls::client::Resumption::disabled();
        config
    }
}

/// Writes a file so that nobody sees half of it.
pub(crate) fn put(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    // There are keys in it.
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Shakes hands for `name`; what went wrong, otherwise.
pub(crate) fn shake(addr: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Stream> {
    let socket = connect(addr);
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.set_write_timeout(Some(SOON)).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Says a line, and gives all that is answered; an error where the end is not announced.
pub(crate) fn converse(stream: &mut Stream, line: &str) -> std::io::Result<String> {
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The certificate that is served for `name`.
pub(crate) fn served_certificate(
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> CertificateDer<'static> {
    let stream = shake(addr, config, name).unwrap();
    stream.conn.peer_certificates().unwrap()[0].clone()
}

/// The certificate of a pair, as it is sent.
pub(crate) fn der(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
}

/// The alert of a handshake that was refused.
pub(crate) fn alert(error: &std::io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

fn s_client(addr: SocketAddr, name: Option<&str>, ca: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-connect", &addr.to_string(), "-CAfile"]).arg(ca);
    match name {
        Some(name) => command.args(["-servername", name, "-verify_hostname", name]),
        None => command.arg("-noservername"),
    };
    command.args(options);
    command
}

/// What OpenSSL's client sees that says a line to one who ends after an answer.
pub(crate) fn openssl(addr: SocketAddr, name: Option<&str>, ca: &Path, options: &[&str]) -> Finished {
    let mut command = s_client(addr, name, ca, options);
    finish(command.args(["-verify_return_error", "-ign_eof"]), "openssl", "hello\n")
}

/// The same that types these lines, each when it has heard something since the one before, and stays until it
/// is left; what it says on both streams is in `stdout`. The server has to greet.
pub(crate) fn openssl_typing(
    addr: SocketAddr,
    name: &str,
    ca: &Path,
    options: &[&str],
    lines: &[&str],
) -> Finished {
    let mut command = s_client(addr, Some(name), ca, options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl; install it: apt-get install openssl");
    let mut stdin = child.stdin.take().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let follow = |mut reader: Box<dyn Read + Send>| {
        let said = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut part) {
                said.lock().unwrap().extend_from_slice(&part[..n]);
            }
        })
    };
    let out = follow(Box::new(child.stdout.take().unwrap()));
    let err = follow(Box::new(child.stderr.take().unwrap()));
    let text = || String::from_utf8_lossy(&said.lock().unwrap()).into_owned();
    until("the greeting", SOON, || text().contains("tag:").then_some(()));
    for line in lines {
        let before = text().len();
        // It may have been left already.
        let _ = stdin.write_all(format!("{line}\n").as_bytes());
        until("an effect", SOON, || {
            (text().len() > before || child.try_wait().unwrap().is_some()).then_some(())
        });
    }
    let exited = until("openssl to end", SOON * 3, || child.try_wait().unwrap());
    drop(stdin);
    out.join().unwrap();
    err.join().unwrap();
    Finished { code: exited.code(), stdout: text(), stderr: String::new() }
}

/// Whether a stream ended in disorder: without the alert that announces an end, or by a reset.
pub(crate) fn is_cut_off(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}
