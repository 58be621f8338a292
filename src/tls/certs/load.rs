//! What the files were at the last look, and what has become of them since.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use super::certificate::{Certificate, Issuers, Outcome};
use super::error::CertificateError;
use super::folder::{Found, Id, Look, Source};
use super::pem::Stamp;

/// Up to so many keys are made to see whether they are whole: 80 ms when all are RSA of 2048 bits.
const THOROUGH: usize = 256;
/// Files worth a thread of their own.
const BATCH: usize = 64;
/// Threads that read: more would only wait for the disk.
const MAX_THREADS: usize = 8;

/// All files, as they were read.
#[derive(Debug, Default)]
pub(super) struct Files {
    entries: HashMap<Id, Arc<Entry>>,
    /// What could not be looked into, and why, which has been told.
    failed: HashMap<PathBuf, String>,
}

/// One file, or a pair of them, as it was read.
#[derive(Clone, Debug)]
struct Entry {
    /// The states of the certificate's file and of the key's.
    stamps: [Option<Stamp>; 2],
    /// Whether another state would show in the stamps.
    settled: bool,
    /// The last good certificate.
    good: Option<Arc<Certificate>>,
    /// What is wrong with the file now, which has been told.
    error: Option<String>,
    /// What has been warned of.
    warned: Vec<String>,
    /// Whether it was not there at the last look.
    missing: bool,
}

/// What a look came to.
pub(super) struct Loaded {
    pub(super) files: Files,
    /// Those that have not been told yet.
    pub(super) errors: Vec<CertificateError>,
    /// Certificates that are new, or others than before.
    pub(super) read: usize,
    /// Certificates that are gone.
    pub(super) gone: usize,
    /// Whether anything is other than it was.
    pub(super) changed: bool,
}

/// A file that was read.
struct Read<'a> {
    found: &'a Found,
    stamps: [Option<Stamp>; 2],
    settled: bool,
    result: Result<Outcome, CertificateError>,
}

impl Files {
    /// The certificates that are good.
    pub(super) fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.entries.values().filter_map(|entry| entry.good.as_ref())
    }

    /// Looks at all sources, and reads what has changed.
    pub(super) fn look(&self, sources: &[Source], now: SystemTime) -> Loaded {
        let look = Look::at(sources);
        let mut loaded =
            Loaded { files: Self::default(), errors: Vec::new(), read: 0, gone: 0, changed: false };
        loaded.files.entries.reserve(look.found.len());
        let mut changed = Vec::new();
        for found in &look.found {
            match self.entries.get(&found.id) {
                Some(entry) if entry.is_current(found) => {
                    loaded.changed |= entry.missing;
                    let entry = if entry.missing { Arc::new(entry.found_again()) } else { Arc::clone(entry) };
                    loaded.files.entries.insert(found.id.clone(), entry);
                }
                _ => changed.push(found),
            }
        }
        loaded.changed |= !changed.is_empty() || look.failed.len() != self.failed.len();
        let issuers = Issuers::of(self.certificates().filter(|_| !changed.is_empty()));
        for read in read_all(&changed, &issuers, now) {
            let before = self.entries.get(&read.found.id).map(|entry| &**entry);
            loaded.take(read, before);
        }
        self.fail(look.failed, &mut loaded);
        self.miss(sources, &mut loaded);
        loaded
    }

    /// Notes what could not be looked into.
    fn fail(&self, failed: Vec<(PathBuf, io::Error)>, loaded: &mut Loaded) {
        for (path, source) in failed {
            let error = CertificateError::Unreadable { path: path.clone(), source };
            let told = error.told();
            if self.failed.get(&path) != Some(&told) {
                loaded.errors.push(error);
                loaded.changed = true;
            }
            loaded.files.failed.insert(path, told);
        }
    }

    /// Notes what is not there any more. It stays where its folder could not be read, and for one look, since a link
    /// that leads to all of them may be swapped in two steps. What no source leads to any more goes at once.
    fn miss(&self, sources: &[Source], loaded: &mut Loaded) {
        let is_in = |id: &Id, folder: &Path| id.pair.is_none() && id.certificate.starts_with(folder);
        let Loaded { files, gone, changed, .. } = loaded;
        for (id, entry) in &self.entries {
            if files.entries.contains_key(id) {
                continue;
            }
            let wanted = sources.iter().any(|source| matches!(source, Source::Path(path) if is_in(id, path)));
            let unknown = files.failed.keys().any(|folder| is_in(id, folder));
            if wanted && unknown {
                files.entries.insert(id.clone(), Arc::clone(entry));
                continue;
            }
            *changed = true;
            if wanted && !entry.missing {
                files.entries.insert(id.clone(), Arc::new(Entry { missing: true, ..Entry::clone(entry) }));
            } else if entry.good.is_some() {
                *gone += 1;
            }
        }
    }
}

impl Entry {
    fn is_current(&self, found: &Found) -> bool {
        self.settled && self.stamps == stamps(found)
    }

    fn found_again(&self) -> Self {
        Self { missing: false, ..self.clone() }
    }
}

impl Loaded {
    /// Takes what a file came to, `before` being what it was. A bad one never takes the place of a good one.
    fn take(&mut self, read: Read<'_>, before: Option<&Entry>) {
        let Read { found, stamps, mut settled, result } = read;
        let last = before.and_then(|entry| entry.good.as_ref());
        let path = &found.id.certificate;
        let result = match result {
            // It went between the look and the reading.
            Err(error) if error.is_unread() && !found.named && is_gone(path) => {
                if let Some(entry) = before.filter(|entry| !entry.missing) {
                    let entry = Entry { missing: true, ..entry.clone() };
                    self.files.entries.insert(found.id.clone(), Arc::new(entry));
                }
                return;
            }
            Ok(Outcome::Nothing) if last.is_some() => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                Err(CertificateError::NoKey { path: path.clone(), stem })
            }
            result => result,
        };
        let (mut good, mut error, mut warned) = (last.cloned(), None, Vec::new());
        match result {
            Ok(Outcome::Good(certificate, warnings)) => {
                // What is the same keeps what signs.
                if last.is_none_or(|last| !last.is_same(&certificate)) {
                    good = Some(Arc::from(certificate));
                    self.read += 1;
                }
                for warning in warnings {
                    let told = warning.told();
                    if before.is_none_or(|entry| !entry.warned.contains(&told)) {
                        self.errors.push(warning);
                    }
                    warned.push(told);
                }
            }
            Ok(Outcome::Nothing) => {}
            Err(problem) => {
                settled &= !problem.is_unread();
                let told = problem.told();
                let known = before.is_some_and(|entry| {
                    entry.error.as_ref() == Some(&told) && (entry.stamps == stamps || problem.is_unread())
                });
                if !known {
                    self.errors.push(problem);
                }
                error = Some(told);
                warned = before.map(|entry| entry.warned.clone()).unwrap_or_default();
            }
        }
        let entry = Entry { stamps, settled, good, error, warned, missing: false };
        self.files.entries.insert(found.id.clone(), Arc::new(entry));
    }
}

fn stamps(found: &Found) -> [Option<Stamp>; 2] {
    [Some(&found.id.certificate), found.key.as_ref()].map(|path| path.and_then(|path| Stamp::of(path)))
}

/// Whether there is not even a link.
fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read<'a>(found: &'a Found, issuers: &Issuers, quick: bool, now: SystemTime) -> Read<'a> {
    // Before they are read: what is written meanwhile will look like a change.
    let stamps = stamps(found);
    let settled = stamps.iter().flatten().all(|stamp| stamp.is_settled(now));
    Read { found, stamps, settled, result: Certificate::read(found, issuers, quick) }
}

/// Reads these files, on several threads if they are many.
fn read_all<'a>(all: &[&'a Found], issuers: &Issuers, now: SystemTime) -> Vec<Read<'a>> {
    let quick = all.len() > THOROUGH;
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(MAX_THREADS).min(all.len().div_ceil(BATCH));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(all.len()));
    let work = || {
        let mut own = Vec::new();
        while let Some((index, found)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            all.get(index).map(|found| (index, found))
        } {
            own.push((index, read(found, issuers, quick, now)));
        }
        done.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where no thread is to be had, those that there are read more.
            let _ = thread::Builder::new().name("certificates".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, read)| read).collect()
}
