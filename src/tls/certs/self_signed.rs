//! Certificates for development: of an authority of our own, made when a name is asked for.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;
use x509_parser::pem::parse_x509_pem;

use super::certificate::unix_seconds;
use crate::peek::ServerName;

/// The authority's certificate, for clients to trust.
pub const CA_FILE: &str = "ca.pem";
/// The authority's key.
pub const CA_KEY_FILE: &str = "ca-key.pem";
const CA_NAME: &str = "Portcullis development authority";
const LEAF_NAME: &str = "Portcullis development certificate";
/// Whoever trusts it need not do so again for as long as a development lasts.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// As certificates of public authorities, so that what depends on their length shows.
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// What remains of a certificate's life when another one is made.
const RENEWED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Clocks that are behind take it all the same.
const EARLY: Duration = Duration::from_secs(60 * 60);
/// Names whose certificates are kept, 2 KB each.
const MAX_NAMES: usize = 1000;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum SelfSignedError {
    /// A file of it could not be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A file of it could not be written.
    #[error("cannot write `{}`", path.display())]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The files are damaged, do not belong together, or are those of another authority.
    #[error(
        "`{}` is not the development authority that was made here, or has expired: remove `{CA_FILE}` and `{CA_KEY_FILE}` \
         there for another one, which clients have to trust anew",
        path.display()
    )]
    Foreign {
        /// The file that does not fit.
        path: PathBuf,
    },
    /// A certificate or a key could not be made.
    #[error("no certificate could be made")]
    Made(#[source] rcgen::Error),
    /// What was made cannot be used.
    #[error("a certificate that was made cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// An authority that makes certificates for the names that are asked for.
pub struct SelfSigned {
    authority: Issuer<'static, KeyPair>,
    ca_pem: String,
    leaves: Mutex<Leaves>,
}

/// The certificates that have been made.
#[derive(Default)]
struct Leaves {
    by_name: HashMap<ServerName, Leaf>,
    /// Counts what is asked for, to know what was not for longest.
    asked: u64,
}

struct Leaf {
    key: Arc<CertifiedKey>,
    made: SystemTime,
    asked: u64,
}

impl fmt::Debug for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SelfSigned").finish_non_exhaustive()
    }
}

impl SelfSigned {
    /// The authority that is kept in `folder`, which is made if there is none there yet: `ca.pem`, which clients are to
    /// trust, and `ca-key.pem`, which only this user can read. Without a folder one that ends with the process.
    ///
    /// # Errors
    /// When the files cannot be read or written, or are not what was written: nobody's trust is replaced unasked.
    pub fn open(folder: Option<&Path>) -> Result<Self, SelfSignedError> {
        let made = KeyPair::generate().map_err(SelfSignedError::Made)?;
        let (key, ca_pem) = match folder {
            None => {
                let pem = authority(&made)?;
                (made, pem)
            }
            Some(folder) => kept(folder, &made)?,
        };
        let authority = Issuer::new(authority_params(), key);
        Ok(Self { authority, ca_pem, leaves: Mutex::default() })
    }

    /// The authority's certificate, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The certificate for `name`, made now if there is none or the one there is has less than a third of its life left.
    /// Making one takes 0.1 ms.
    ///
    /// # Errors
    /// Never in practice: when there is no randomness.
    pub fn certificate(
        &self,
        name: &ServerName,
        now: SystemTime,
    ) -> Result<Arc<CertifiedKey>, SelfSignedError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.asked += 1;
        let asked = leaves.asked;
        if let Some(leaf) = leaves.by_name.get_mut(name).filter(|leaf| leaf.is_fresh(now)) {
            leaf.asked = asked;
            return Ok(Arc::clone(&leaf.key));
        }
        let key = Arc::new(self.make(name, now)?);
        leaves.make_room(name);
        leaves.by_name.insert(name.clone(), Leaf { key: Arc::clone(&key), made: now, asked });
        Ok(key)
    }

    fn make(&self, name: &ServerName, now: SystemTime) -> Result<CertifiedKey, SelfSignedError> {
        let key = KeyPair::generate().map_err(SelfSignedError::Made)?;
        let mut params = CertificateParams::new([name.as_str().to_owned()]).map_err(SelfSignedError::Made)?;
        params.distinguished_name = distinguished(LEAF_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, now, LEAF_LIFE);
        let certificate = params.signed_by(&key, &self.authority).map_err(SelfSignedError::Made)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = any_ecdsa_type(&der).map_err(SelfSignedError::Unusable)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], signing))
    }
}

impl ResolvesServerCert for SelfSigned {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = ServerName::parse(hello.server_name()?.as_bytes()).ok()?;
        self.certificate(&name, SystemTime::now()).ok()
    }
}

impl Leaves {
    /// Forgets who was not asked for for longest when there is no room for `name`.
    fn make_room(&mut self, name: &ServerName) {
        if self.by_name.len() < MAX_NAMES || self.by_name.contains_key(name) {
            return;
        }
        // A look at all takes less than the certificate that is made then.
        let oldest = self.by_name.iter().min_by_key(|(_, leaf)| leaf.asked).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            self.by_name.remove(&oldest);
        }
    }
}

impl Leaf {
    fn is_fresh(&self, now: SystemTime) -> bool {
        // A clock that was set back before it was made wants another one, too.
        now.duration_since(self.made).is_ok_and(|age| age < LEAF_LIFE - RENEWED)
    }
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Begins a little before `now` and ends a life after it.
fn lasts(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(unix_seconds(now).unsigned_abs());
    params.not_before = epoch + now.saturating_sub(EARLY);
    params.not_after = epoch + (now + life);
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The certificate of an authority with this key, in PEM.
fn authority(key: &KeyPair) -> Result<String, SelfSignedError> {
    let mut params = authority_params();
    lasts(&mut params, SystemTime::now(), CA_LIFE);
    Ok(params.self_signed(key).map_err(SelfSignedError::Made)?.pem())
}

/// The authority in `folder`: what is there, and what is `made` for what is not. Two processes may do so at the same
/// time; what was written first counts for both, and any certificate fits the key.
fn kept(folder: &Path, made: &KeyPair) -> Result<(KeyPair, String), SelfSignedError> {
    let (ca_file, key_file) = (folder.join(CA_FILE), folder.join(CA_KEY_FILE));
    let foreign = |path: &Path| SelfSignedError::Foreign { path: path.to_owned() };
    fs::create_dir_all(folder)
        .map_err(|source| SelfSignedError::Unwritable { path: folder.to_owned(), source })?;
    if ca_file.exists() && !key_file.exists() {
        return Err(foreign(&ca_file));
    }
    let key = keep(&key_file, 0o600, || Ok(made.serialize_pem()))?;
    let key = KeyPair::from_pem(&key).map_err(|_| foreign(&key_file))?;
    let pem = keep(&ca_file, 0o644, || authority(&key))?;
    if is_ours(&pem, &key, SystemTime::now()) { Ok((key, pem)) } else { Err(foreign(&ca_file)) }
}

/// Whether it is the certificate of an authority with this key, as they are made here, and has a month left.
fn is_ours(pem: &str, key: &KeyPair, now: SystemTime) -> bool {
    let Ok((_, pem)) = parse_x509_pem(pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = parse_x509_certificate(&pem.contents) else { return false };
    let mut names = certificate.subject().iter_common_name().map(|name| name.as_str());
    names.next() == Some(Ok(CA_NAME))
        && *certificate.public_key().subject_public_key.data == *key.public_key_raw()
        && certificate.validity().not_after.timestamp() > unix_seconds(now + RENEWED)
}

/// What is in the file, written there first if there is none.
fn keep(
    path: &Path,
    mode: u32,
    make: impl FnOnce() -> Result<String, SelfSignedError>,
) -> Result<String, SelfSignedError> {
    let unreadable = |source| SelfSignedError::Unreadable { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = make()?;
            write_new(path, mode, &text)
                .map_err(|source| SelfSignedError::Unwritable { path: path.to_owned(), source })?;
            // Another process may have been faster.
            fs::read_to_string(path).map_err(unreadable)
        }
        read => read.map_err(unreadable),
    }
}

/// Writes a file as a whole, unless there is one.
fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_extension(format!("{}-{count}.tmp", std::process::id()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&unfinished, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // A file system without links.
            Err(_) => fs::rename(&unfinished, path),
            Ok(()) => Ok(()),
        }
    };
    let written = write();
    let removed = fs::remove_file(&unfinished);
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
        _ => written,
    }
}
