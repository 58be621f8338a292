//! All certificates at one time, by their names.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::sign::CertifiedKey;

use super::CertificateError;
use super::certificate::{Certificate, Name, unix_seconds};
use super::folder::Source;
use super::load::{Files, Loaded};
use crate::peek::ServerName;

/// All certificates at one time. It never changes; another one takes its place.
#[derive(Debug, Default)]
pub struct Store {
    pub(super) files: Files,
    exact: Names,
    /// By what follows `*.`.
    wildcards: Names,
    /// Those that some name has, the first to end first.
    served: Box<[Arc<Certificate>]>,
    /// When the first of those becomes valid that are not yet, in seconds of Unix time.
    next: Option<i64>,
}

/// The certificates of each name: of each kind of key the one that is valid and ends last, and those that will be.
type Names = HashMap<Arc<str>, Box<[Arc<Certificate>]>>;

/// The certificates of one name.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    exact: &'a [Arc<Certificate>],
    wildcard: &'a [Arc<Certificate>],
}

/// What a handshake is to be made with.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The certificate with its chain, and what signs.
    pub key: Arc<CertifiedKey>,
    /// Whether signing takes so long (RSA of 3072 bits and more) that other connections should not wait for it.
    pub slow: bool,
}

impl Store {
    /// Reads all sources, but for the files that have not changed since `before` was read, whose certificates are
    /// shared with it; blocks, and uses threads where there is much to read. What was good `before` and is bad now
    /// stays. The errors are those that have not been told of `before`; some [are
    /// warnings](CertificateError::is_warning).
    pub fn load(sources: &[Source], before: Option<&Self>) -> (Self, Vec<CertificateError>) {
        let none = Files::default();
        let files = before.map_or(&none, |before| &before.files);
        let now = SystemTime::now();
        let Loaded { files, errors, .. } = files.look(sources, now);
        (Self::new(files, unix_seconds(now)), errors)
    }

    pub(super) fn new(files: Files, now: i64) -> Self {
        let (mut exact, mut wildcards) = (HashMap::new(), HashMap::new());
        for certificate in files.certificates() {
            for name in certificate.index() {
                let (names, name) = match name {
                    Name::Exact(name) => (&mut exact, name),
                    Name::Wildcard(name) => (&mut wildcards, name),
                };
                names
                    .entry(Arc::clone(name))
                    .or_insert_with(|| Vec::with_capacity(1))
                    .push(Arc::clone(certificate));
            }
        }
        let prune = |names: HashMap<Arc<str>, Vec<Arc<Certificate>>>| -> Names {
            names.into_iter().map(|(name, all)| (name, prune(all, now))).collect()
        };
        let (exact, wildcards) = (prune(exact), prune(wildcards));
        let mut seen = HashSet::new();
        let all = exact.values().chain(wildcards.values()).flatten();
        let mut served = all.filter(|one| seen.insert(Arc::as_ptr(one))).map(Arc::clone).collect::<Vec<_>>();
        served.sort_by(|a, b| (a.not_after(), a.file()).cmp(&(b.not_after(), b.file())));
        let next = served.iter().map(|one| one.not_before()).filter(|from| *from > now).min();
        Self { files, exact, wildcards, served: served.into(), next }
    }

    /// Whether one has become valid since it was made, which may leave others without use.
    pub(super) fn is_outdated(&self, now: i64) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// The certificates of a name, those of a wildcard that covers it included.
    pub fn find(&self, name: &ServerName) -> Option<Candidates<'_>> {
        let name = name.as_str();
        let exact = self.exact.get(name);
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let wildcard = parent.and_then(|parent| self.wildcards.get(parent));
        let found = exact.is_some() || wildcard.is_some();
        let [exact, wildcard] = [exact, wildcard].map(|found| found.map_or(&[][..], |all| all));
        found.then_some(Candidates { exact, wildcard })
    }

    /// The certificates that can be chosen, the first to end first. One that another is preferred to for each of its
    /// names is not among them.
    pub fn served(&self) -> &[Arc<Certificate>] {
        &self.served
    }

    /// The certificate, where there is a single one.
    pub fn only(&self) -> Option<&Arc<Certificate>> {
        match &*self.served {
            [only] => Some(only),
            _ => None,
        }
    }

    /// How many certificates there are.
    pub fn len(&self) -> usize {
        self.files.certificates().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.certificates().next().is_none()
    }
}

impl<'a> Candidates<'a> {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'a Arc<Certificate>> + use<'a> {
        self.exact.iter().chain(self.wildcard)
    }

    /// The one for a client that can verify `schemes`: one that is valid now before others, of the name itself before
    /// that of a wildcard, of ECDSA or Ed25519 before RSA. One that is not valid is better than none: a browser's
    /// warning can be passed by.
    pub fn choose(&self, schemes: &[SignatureScheme]) -> Option<Chosen> {
        self.choose_at(schemes, SystemTime::now())
    }

    /// The same at another time.
    pub fn choose_at(&self, schemes: &[SignatureScheme], now: SystemTime) -> Option<Chosen> {
        let now = unix_seconds(now);
        loop {
            let exact = self.exact.iter().map(|one| (true, one));
            let all = exact.chain(self.wildcard.iter().map(|one| (false, one)));
            let usable = all.filter(|(_, one)| one.kind().is_verified_by(schemes) && !one.is_broken());
            let rank = |(exact, one): &(bool, &Arc<Certificate>)| {
                (one.is_valid(now), *exact, !one.kind().is_rsa(), one.not_after())
            };
            let (_, best) = usable.max_by_key(rank)?;
            // Or else it is broken from now on, and another one is the best.
            if let Some(key) = best.signing() {
                return Some(Chosen { key, slow: best.kind().is_slow() });
            }
        }
    }
}

/// Of the certificates of one name those that may have to be chosen at some time from `now` on: of each kind of key the
/// one that ends last, and while that is not valid yet, the next one. Of two that end together the one with more
/// intermediates, which more clients can verify.
fn prune(mut all: Vec<Arc<Certificate>>, now: i64) -> Box<[Arc<Certificate>]> {
    if all.len() > 1 {
        all.sort_by_key(|one| Reverse((one.not_after(), one.chain().len())));
        let mut kept: Vec<Arc<Certificate>> = Vec::new();
        for one in all {
            let mut alike = kept.iter().filter(|other| other.kind().is_like(one.kind()));
            if !alike.any(|other| other.not_before() <= now || other.not_before() <= one.not_before()) {
                kept.push(one);
            }
        }
        all = kept;
    }
    all.into()
}
