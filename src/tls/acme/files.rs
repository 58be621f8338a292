//! What is kept on disk: the account, and a certificate with its key for each name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use instant_acme::CertificateIdentifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, Der, PrivateKeyDer};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::error::AcmeError;
use super::schedule::Validity;
use crate::config::AcmeConfig;

/// What stands before the URL of the authority's directory, in a file with a certificate.
const FROM: &str = "# Ordered by Portcullis from ";

/// The files of an authority.
#[derive(Clone, Debug)]
pub(super) struct Files {
    account: PathBuf,
    certificates: PathBuf,
    directory: String,
}

/// A certificate as it is kept.
#[derive(Debug)]
pub(super) struct Stored {
    /// When it is good.
    pub(super) validity: Validity,
    /// How the authority calls it (RFC 9773 §4.1); `None` when it cannot be called so.
    pub(super) id: Option<CertificateIdentifier<'static>>,
    /// Whether another authority issued it.
    pub(super) elsewhere: bool,
}

impl Files {
    pub(super) fn new(config: &AcmeConfig) -> Self {
        let folder = config.state.join("acme").join(folder_name(&config.directory));
        Self {
            account: folder.join("account.json"),
            certificates: config.certificates(),
            directory: config.directory.as_ref().to_owned(),
        }
    }

    /// The account, if there is one.
    pub(super) fn account(&self) -> Result<Option<Vec<u8>>, AcmeError> {
        match fs::read(&self.account) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(AcmeError::Storage(self.account.clone(), error)),
        }
    }

    /// Keeps the account.
    pub(super) fn keep_account(&self, bytes: &[u8]) -> Result<(), AcmeError> {
        write(&self.account, bytes)
    }

    /// Puts an account aside that the authority does not know.
    pub(super) fn forget_account(&self) {
        // If it stays, it is put aside the next time.
        let _ = fs::rename(&self.account, self.account.with_extension("json.unknown"));
    }

    /// The certificate for `name`; `None` when there is none that could be served.
    pub(super) fn certificate(&self, name: &str) -> Option<Stored> {
        let bytes = fs::read(self.certificate_file(name)).ok()?;
        PrivateKeyDer::from_pem_slice(&bytes).ok()?;
        let leaf = CertificateDer::from_pem_slice(&bytes).ok()?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let from = line.strip_prefix(FROM.as_bytes());
        let (validity, id) = read(&leaf)?;
        Some(Stored { validity, id, elsewhere: from != Some(self.directory.as_bytes()) })
    }

    /// Keeps a certificate with its key, in place of the one before.
    pub(super) fn keep_certificate(&self, name: &str, chain: &str, key: &str) -> Result<(), AcmeError> {
        let text = format!("{FROM}{}\n{}\n{}", self.directory, chain.trim_end(), key);
        write(&self.certificate_file(name), text.as_bytes())
    }

    /// Makes sure that files can be written, before anything is asked for that would have to be.
    pub(super) fn prepare(&self) -> Result<(), AcmeError> {
        folder(&self.certificates).map_err(|error| AcmeError::Storage(self.certificates.clone(), error))
    }

    fn certificate_file(&self, name: &str) -> PathBuf {
        // No name begins so.
        let name = name.strip_prefix('*').map_or_else(|| name.to_owned(), |suffix| format!("_{suffix}"));
        self.certificates.join(format!("{name}.pem"))
    }
}

/// When the certificate is good, and how its authority calls it; `None` when it cannot be read.
pub(super) fn read(leaf: &[u8]) -> Option<(Validity, Option<CertificateIdentifier<'static>>)> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let at = |seconds: i64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
    let validity = Validity {
        not_before: at(parsed.validity().not_before.timestamp())?,
        not_after: at(parsed.validity().not_after.timestamp())?,
    };
    let key = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
        _ => None,
    });
    let serial = Der::from_slice(parsed.raw_serial());
    let id = key.map(|key| CertificateIdentifier::new(Der::from_slice(key.0), serial).into_owned());
    Some((validity, id))
}

/// The directory as the name of a folder: its host and path.
fn folder_name(directory: &str) -> String {
    let url = directory.strip_prefix("https://").unwrap_or(directory);
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
    url.trim_end_matches('/').chars().map(plain).collect()
}

/// Makes the folder, for nobody else to look into.
fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file that nobody else may read. Whoever reads it meanwhile sees the old one or the new one, whole; so does who reads it
/// after a crash.
fn write(path: &Path, bytes: &[u8]) -> Result<(), AcmeError> {
    let write = || -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new("."));
        folder(parent)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hidden, so that no folder of certificates shows it.
        let new = parent.join(format!(".{name}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(parent)?.sync_all()
    };
    write().map_err(|error| AcmeError::Storage(path.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn files(folder: &Path, directory: &str) -> Files {
        Files {
            account: folder.join("acme").join(folder_name(directory)).join("account.json"),
            certificates: folder.join("acme").join("certificates"),
            directory: directory.to_owned(),
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let own = files(folder.path(), "https://ca.test/dir");
        assert!(own.account().unwrap().is_none() && own.certificate("a.test").is_none());
        own.keep_account(b"{}").unwrap();
        own.keep_account(b"{1}").unwrap();
        assert_eq!(own.account().unwrap().as_deref(), Some(&b"{1}"[..]));
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["*.a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        own.keep_certificate("*.a.test", &certificate.pem(), &key.serialize_pem()).unwrap();
        assert!(!own.certificate("*.a.test").unwrap().elsewhere);
        assert!(files(folder.path(), "https://other.test/dir").certificate("*.a.test").unwrap().elsewhere);
        let file = folder.path().join("acme/certificates/_.a.test.pem");
        for (path, mode) in [(&*file, 0o600), (&*own.account, 0o600), (&*own.certificates, 0o700)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
        let names = fs::read_dir(&own.certificates).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["_.a.test.pem"]);
        // One that is cut off, or has lost its key, is none.
        let whole = fs::read_to_string(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 40]).unwrap();
        assert!(own.certificate("*.a.test").is_none());
        fs::write(&file, &whole[..whole.find("-----BEGIN PRIVATE").unwrap()]).unwrap();
        assert!(own.certificate("*.a.test").is_none());
        own.forget_account();
        assert!(own.account().unwrap().is_none());
    }

    #[test]
    fn authorities_have_folders_of_their_own() {
        let table = [
            ("https://acme-v02.api.letsencrypt.org/directory", "acme-v02.api.letsencrypt.org_directory"),
            ("https://ca.test:9000/acme/one/directory", "ca.test_9000_acme_one_directory"),
            ("https://ca.test/", "ca.test"),
        ];
        for (directory, expected) in table {
            assert_eq!(folder_name(directory), expected);
        }
    }
}
