//! The certificates of a running server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::info;

use super::certificate::unix_seconds;
use super::error::CertificateError;
use super::folder::Source;
use super::load::Loaded;
use super::report::Report;
use super::store::{Chosen, Store};
use crate::peek::ServerName;
use crate::telemetry::Registry;

/// Looks take at most this share of a core, however many files there are and however slow their disk is.
const SHARE: u32 = 50;

/// The certificates of a running server: those that handshakes take, and what puts others in their place.
#[derive(Debug)]
pub struct Certificates {
    store: ArcSwap<Store>,
    /// Held while files are read, so that of two looks the later one is the last to be published.
    sources: Mutex<Vec<Source>>,
    report: Mutex<Report>,
}

/// What a look at the files came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Certificates that are new, or others than before.
    pub read: usize,
    /// Certificates that are gone with their files.
    pub gone: usize,
    /// Files that are newly bad; where there was a certificate before, it stays.
    pub errors: usize,
}

impl Certificates {
    /// With what was [loaded](Store::load) from the sources. There is one of these a process: it says by metrics how
    /// many certificates there are and when they end.
    pub fn new(sources: Vec<Source>, store: Store, registry: &Arc<Registry>) -> Self {
        let certificates = Self {
            store: ArcSwap::from_pointee(store),
            sources: Mutex::new(sources),
            report: Mutex::new(Report::new(registry)),
        };
        certificates.show(SystemTime::now(), true);
        certificates
    }

    /// The certificates as they are now.
    pub fn store(&self) -> Guard<Arc<Store>> {
        self.store.load()
    }

    /// What a handshake for `name` is to be made with, for a client that can verify `schemes`; `None` when there is no
    /// certificate for the name, or none for the client.
    pub fn choose(&self, name: &ServerName, schemes: &[SignatureScheme]) -> Option<Chosen> {
        self.store.load().find(name)?.choose(schemes)
    }

    /// Reads other sources, sharing what they have in common with those of now, and changes nothing; blocks.
    pub fn prepare(&self, sources: &[Source]) -> (Store, Vec<CertificateError>) {
        Store::load(sources, Some(&self.store.load()))
    }

    /// Puts other sources in the place of those of now, with what was [prepared](Self::prepare) from them.
    pub fn take(&self, sources: Vec<Source>, store: Store) {
        {
            let mut own = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            *own = sources;
            self.store.store(Arc::new(store));
        }
        self.show(SystemTime::now(), true);
    }

    /// Tells the log of errors and counts them.
    pub fn tell(&self, errors: &[CertificateError]) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).tell(errors);
    }

    /// Looks at the files and reads those that have changed; blocks. A file that is bad leaves the certificate that it
    /// had before, which is told once. A file that is gone from its folder takes its certificate with it when it is gone
    /// at two looks in a row; one that the configuration names does not, since nobody wants its name to have none.
    pub fn refresh(&self) -> Refreshed {
        self.refresh_at(SystemTime::now())
    }

    pub(super) fn refresh_at(&self, now: SystemTime) -> Refreshed {
        let (refreshed, changed) = {
            let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            let before = self.store.load_full();
            let Loaded { files, errors, read, gone, changed } = before.files.look(&sources, now);
            self.tell(&errors);
            let errors = errors.iter().filter(|error| !error.is_warning()).count();
            let changed = changed || before.is_outdated(unix_seconds(now));
            if changed {
                self.store.store(Arc::new(Store::new(files, unix_seconds(now))));
            }
            (Refreshed { read, gone, errors }, changed)
        };
        if refreshed.read > 0 || refreshed.gone > 0 {
            let Refreshed { read, gone, .. } = refreshed;
            info!(read, gone, all = self.store.load().len(), "certificates have changed");
        }
        self.show(now, changed);
        refreshed
    }

    /// Looks at the files from time to time, until it is dropped.
    pub async fn watch(self: Arc<Self>, every: Duration) {
        let mut pause = every;
        loop {
            tokio::time::sleep(pause).await;
            let certificates = Arc::clone(&self);
            let began = Instant::now();
            // A disk may be slow, and this runtime has one thread.
            let _ = tokio::task::spawn_blocking(move || certificates.refresh()).await;
            pause = every.max(began.elapsed() * SHARE);
        }
    }

    fn show(&self, now: SystemTime, changed: bool) {
        let store = self.store.load();
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        if changed {
            report.show(&store);
        }
        report.warn(&store, unix_seconds(now));
    }
}

impl ResolvesServerCert for Certificates {
    /// Nothing for clients that name no server, or one that there is no certificate for: a wrong one tells them more
    /// than an alert, and less.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = ServerName::parse(hello.server_name()?.as_bytes()).ok()?;
        self.choose(&name, hello.signature_schemes()).map(|chosen| chosen.key)
    }
}
