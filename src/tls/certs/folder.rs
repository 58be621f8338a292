//! Which files there are, by their names alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use crate::config::CertificateSource as Source;

/// What one certificate is known by from look to look.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) certificate: PathBuf,
    /// The key, where the configuration names it.
    pub(super) pair: Option<PathBuf>,
}

/// A file that may hold a certificate.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) id: Id,
    /// The file that holds the key, unless the certificate's does.
    pub(super) key: Option<PathBuf>,
    /// Whether the configuration names it, and not the folder that it is in.
    pub(super) named: bool,
}

/// All that there is.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) found: Vec<Found>,
    /// Sources that are not there, and folders that cannot be read: nothing is known of what is in them.
    pub(super) failed: Vec<(PathBuf, io::Error)>,
}

impl Look {
    /// Looks at all sources.
    pub(super) fn at(sources: &[Source]) -> Self {
        let mut look = Self::default();
        for source in sources {
            match source {
                Source::Pair { certificate, key } => look.found.push(Found {
                    id: Id { certificate: certificate.clone(), pair: Some(key.clone()) },
                    key: Some(key.clone()),
                    named: true,
                }),
                Source::Path(path) => match fs::metadata(path) {
                    Ok(found) if found.is_dir() => look.folder(path, true),
                    Ok(_) => look.file(path),
                    Err(error) => look.failed.push((path.clone(), error)),
                },
            }
        }
        look
    }

    fn file(&mut self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = |name: &str| fs::exists(path.with_file_name(name)).unwrap_or(false);
        let key = key_of(&name, beside).map(|key| path.with_file_name(key));
        let id = Id { certificate: path.to_owned(), pair: None };
        self.found.push(Found { id, key, named: true });
    }

    fn folder(&mut self, folder: &Path, top: bool) {
        let (names, below) = match list(folder, top) {
            Ok(listed) => listed,
            // It went while it was looked for.
            Err(error) if !top && error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.failed.push((folder.to_owned(), error)),
        };
        let mut keys = names.iter().filter(|name| is_key(name));
        let only_key = keys.next().filter(|_| keys.next().is_none());
        let whole = names.iter().find(|name| stem(name) == "fullchain");
        for name in names.iter().filter(|name| is_certificate(name)) {
            // They are parts of it.
            if whole.is_some() && matches!(stem(name), "cert" | "chain") {
                continue;
            }
            let key = key_of(name, |name| names.contains(name));
            let key = key.or_else(|| only_key.filter(|_| is_general(name)).cloned());
            self.found.push(Found {
                id: Id { certificate: folder.join(name), pair: None },
                key: key.map(|key| folder.join(key)),
                named: false,
            });
        }
        below.iter().for_each(|below| self.folder(below, false));
    }
}

/// The names of the files in a folder, and the folders in it if it is the `top`; both sorted, so that errors are told in
/// the same order each time. Names that are not UTF-8 are passed over.
fn list(folder: &Path, top: bool) -> io::Result<(BTreeSet<String>, BTreeSet<PathBuf>)> {
    let (mut names, mut below) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Mounted volumes keep what their links lead to in hidden folders, editors what is not finished in hidden files.
        if name.starts_with('.') {
            continue;
        }
        if is_certificate(&name) || is_key(&name) {
            names.insert(name);
        } else if top && is_folder(&entry) {
            below.insert(entry.path());
        }
    }
    Ok((names, below))
}

/// Follows links.
fn is_folder(entry: &fs::DirEntry) -> bool {
    match entry.file_type() {
        Ok(kind) if kind.is_symlink() => entry.path().is_dir(),
        Ok(kind) => kind.is_dir(),
        Err(_) => false,
    }
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

fn is_key(name: &str) -> bool {
    let ends = |end: &str| name.ends_with(end);
    ends(".key") || ends("-key.pem") || ends(".key.pem") || matches!(name, "privkey.pem" | "key.pem")
}

fn is_certificate(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    matches!(extension, Some("pem" | "crt" | "cer")) && !is_key(name)
}

/// Whether its name says what is in it and not whose it is.
fn is_general(name: &str) -> bool {
    matches!(stem(name), "fullchain" | "cert")
}

fn key_of(name: &str, exists: impl Fn(&str) -> bool) -> Option<String> {
    let stem = stem(name);
    let own =
        [format!("{stem}.key"), format!("{stem}-key.pem"), format!("{stem}.key.pem"), format!("{name}.key")];
    let general = ["privkey.pem", "key.pem"].iter().filter(|_| is_general(name)).map(|key| (*key).to_owned());
    own.into_iter().chain(general).find(|key| key != name && exists(key))
}
