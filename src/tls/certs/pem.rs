//! Reading one file: what is in it, and in which state it was.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{PemObject, SectionKind};

use super::error::{CertificateError, PemError};

/// Bytes of the largest file that is read: a chain of post-quantum signatures takes 50 KiB.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// A file that changed less than this before it was read may change again without a trace: the kernel's timestamps
/// move in steps of 10 ms at most, those of file systems in steps of two seconds at most (FAT).
const SETTLES: Duration = Duration::from_secs(2);

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// When its contents or its permissions changed last, in seconds and nanoseconds. Unlike the time of
    /// modification nobody can set it back.
    changed: (i64, i64),
}

/// What is in a file.
pub(super) struct Contents {
    /// In the order of the file.
    pub(super) certificates: Vec<Vec<u8>>,
    pub(super) key: Option<PrivateKeyDer<'static>>,
    /// The file's permissions.
    pub(super) mode: u32,
}

impl Stamp {
    /// The state of what `path` leads to; `None` when that cannot be told.
    pub(super) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().as_ref().map(Self::from)
    }

    /// Whether a change after `now` would show.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        let changed = UNIX_EPOCH + Duration::from_secs(changed);
        // What changed far in the future is the mistake of another clock.
        let near = changed.checked_sub(SETTLES).is_none_or(|early| now >= early);
        !(near && now.duration_since(changed).unwrap_or_default() < SETTLES)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Contents, CertificateError> {
    let unreadable = |source| CertificateError::Unreadable { path: path.to_owned(), source };
    let wrong = |reason| Err(CertificateError::pem(path, reason));
    // Before it is opened: to open a pipe is to wait for its other end.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return wrong(PemError::NoFile);
    }
    let bytes = bytes(path, metadata.len()).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return wrong(PemError::TooLarge);
    }
    match blocks(&bytes) {
        Ok((certificates, key)) => Ok(Contents { certificates, key, mode: metadata.mode() & 0o777 }),
        Err(reason) => wrong(reason),
    }
}

fn bytes(path: &Path, expected: u64) -> io::Result<Vec<u8>> {
    // With room for a byte more, the end is found without another allocation.
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(MAX_FILE)).unwrap_or_default() + 1);
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The certificates and the first private key; what else there may be (parameters, requests, text) is passed over.
fn blocks(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, Option<PrivateKeyDer<'static>>), PemError> {
    // A byte order mark would hide the first block.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // A SEQUENCE with a length of two bytes, as certificates and keys of RSA are.
    if bytes.starts_with(&[0x30, 0x82]) {
        return Err(PemError::Der);
    }
    let has = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
    let (mut certificates, mut key) = (Vec::new(), None);
    for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        let (kind, mut der) = match block {
            Ok(block) => block,
            Err(_) if has(b"Proc-Type: 4,ENCRYPTED") => return Err(PemError::Passphrase),
            Err(error) => return Err(PemError::Damaged(error)),
        };
        der.shrink_to_fit();
        if kind == SectionKind::Certificate {
            certificates.push(der);
        } else if key.is_none() {
            key = PrivateKeyDer::from_pem(kind, der);
        }
    }
    if key.is_none() && has(b"BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(PemError::Passphrase);
    }
    Ok((certificates, key))
}
