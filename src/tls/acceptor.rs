//! Routes that end TLS: the rules and certificates of each, as handshakes are made with.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::certs::self_signed::{SelfSigned, SelfSignedError};
use super::certs::{CertificateError, Certificates, Store};
use super::client_auth::ClientAuthError;
use super::metrics::HandshakeMetrics;
use super::policy;
use crate::config::{CertificateSource, CertificateStore, Config, NamePattern, RouteKey, TlsPolicy};
use crate::peek::ServerName;
use crate::telemetry::Registry;

/// How often it is looked whether files of certificates have changed.
const WATCH: Duration = Duration::from_secs(5);

/// How a route ends TLS.
#[derive(Debug)]
pub struct Acceptor {
    policy: Arc<TlsPolicy>,
    config: Arc<ServerConfig>,
    certificates: Arc<OfRoute>,
    tickets: Arc<dyn ProducesTickets>,
    metrics: HandshakeMetrics,
}

/// How all routes of one generation of the configuration end TLS.
#[derive(Debug, Default)]
pub struct Acceptors {
    by_route: HashMap<Arc<str>, Arc<Acceptor>>,
    files: HashMap<Arc<[CertificateSource]>, Arc<Certificates>>,
    self_signed: HashMap<Option<PathBuf>, Arc<SelfSigned>>,
}

/// Where the certificates of a route are from.
#[derive(Clone, Debug)]
enum Source {
    Files(Arc<Certificates>),
    SelfSigned(Arc<SelfSigned>),
}

/// The certificates of a route.
#[derive(Debug)]
struct OfRoute {
    source: Source,
    /// Whose certificate clients get that name no server, where the route is for such: that of its first name. A route without
    /// one has to have a single certificate.
    unnamed: Option<ServerName>,
}

/// Why TLS cannot be ended as the configuration says.
#[derive(Debug, thiserror::Error)]
pub enum AcceptorError {
    /// Files of certificates that the configuration names are bad.
    #[error("certificates cannot be used")]
    Certificates(Vec<CertificateError>),
    /// There is no authority for certificates that are made here.
    #[error("certificates cannot be made")]
    SelfSigned(#[from] SelfSignedError),
    /// What clients must show cannot be checked.
    #[error("route `{route}`")]
    ClientAuth {
        /// The route that wants it.
        route: Arc<str>,
        /// Why.
        #[source]
        source: ClientAuthError,
    },
    /// There are no keys for tickets.
    #[error("no keys for tickets")]
    Tickets(#[source] rustls::Error),
}

impl AcceptorError {
    /// What is wrong, a line each.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Certificates(errors) => {
                errors.iter().map(|error| format!("{}: {}", error.path().display(), error.told())).collect()
            }
            other => {
                let source = std::error::Error::source(other).map(|source| format!(": {source}"));
                vec![format!("{other}{}", source.unwrap_or_default())]
            }
        }
    }
}

/// Looks after the certificates of a generation, until dropped.
#[derive(Debug)]
pub struct Watching(
    #[expect(dead_code, reason = "they run as long as it is there")] Vec<AbortOnDropHandle<()>>,
);

impl Acceptors {
    /// Those of `config`. What `before` has of them is shared: certificates, with what was good of files that are bad
    /// now; and the keys of tickets, where the rules have stayed the same. Reads files, and so blocks.
    ///
    /// # Errors
    /// When a route could not serve: files that the configuration names itself must be good. Those that are found in
    /// folders are told of and passed over, since they are the business of one name.
    pub fn new(
        config: &Config,
        before: Option<&Self>,
        registry: &Arc<Registry>,
    ) -> Result<Self, AcceptorError> {
        let mut acceptors = Self::default();
        for route in &config.routes {
            let Some(policy) = route.action.tls() else { continue };
            let certificates = match &policy.certificates {
                CertificateStore::Files(sources) => {
                    Source::Files(acceptors.files((sources, false), before, registry)?)
                }
                CertificateStore::Acme(folder) => {
                    let sources = [CertificateSource::Path(folder.clone())].into();
                    Source::Files(acceptors.files((&sources, true), before, registry)?)
                }
                CertificateStore::SelfSigned(folder) => {
                    Source::SelfSigned(acceptors.self_signed(folder, before)?)
                }
            };
            let same = before.and_then(|before| before.by_route.get(&route.name));
            let same = same.filter(|acceptor| acceptor.policy == *policy);
            let tickets = match same {
                Some(acceptor) => Arc::clone(&acceptor.tickets),
                None => policy::tickets().map_err(AcceptorError::Tickets)?,
            };
            let certificates = Arc::new(OfRoute { source: certificates, unnamed: first_name(&route.keys) });
            let resolver = Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>;
            let server = policy::server_config(policy, resolver, &tickets);
            let config = server
                .map_err(|source| AcceptorError::ClientAuth { route: Arc::clone(&route.name), source })?;
            let policy = Arc::clone(policy);
            let metrics = HandshakeMetrics::new(&route.name, registry);
            let acceptor = Acceptor { policy, config: Arc::new(config), certificates, tickets, metrics };
            acceptors.by_route.insert(Arc::clone(&route.name), Arc::new(acceptor));
        }
        Ok(acceptors)
    }

    fn files(
        &mut self,
        (sources, ordered): (&Arc<[CertificateSource]>, bool),
        before: Option<&Self>,
        registry: &Arc<Registry>,
    ) -> Result<Arc<Certificates>, AcceptorError> {
        if let Some(known) = self.files.get(sources) {
            return Ok(Arc::clone(known));
        }
        let certificates = match before.and_then(|before| before.files.get(sources)) {
            Some(before) => {
                // As at a look of its own: what is bad now leaves what was good.
                before.refresh();
                Arc::clone(before)
            }
            None => {
                let (store, errors) = Store::load(sources, None);
                let errors = errors.into_iter().filter(|error| !is_to_come(ordered, error));
                let (fatal, told): (Vec<_>, Vec<_>) =
                    errors.partition(|error| !ordered && !error.is_warning() && is_named(sources, error));
                if !fatal.is_empty() {
                    return Err(AcceptorError::Certificates(fatal));
                }
                let certificates = Certificates::new(sources.to_vec(), store, registry);
                certificates.tell(&told);
                Arc::new(certificates)
            }
        };
        self.files.insert(Arc::clone(sources), Arc::clone(&certificates));
        Ok(certificates)
    }

    fn self_signed(
        &mut self,
        folder: &Option<PathBuf>,
        before: Option<&Self>,
    ) -> Result<Arc<SelfSigned>, AcceptorError> {
        if let Some(known) = self.self_signed.get(folder) {
            return Ok(Arc::clone(known));
        }
        let own = match before.and_then(|before| before.self_signed.get(folder)) {
            Some(before) => Arc::clone(before),
            None => Arc::new(SelfSigned::open(folder.as_deref())?),
        };
        self.self_signed.insert(folder.clone(), Arc::clone(&own));
        Ok(own)
    }

    /// That of a route.
    pub fn find(&self, route: &str) -> Option<&Arc<Acceptor>> {
        self.by_route.get(route)
    }

    /// Looks at the files of certificates from time to time, on `runtime`, and when it is told that one has been issued.
    pub fn watch(&self, runtime: &Handle, issued: &Arc<Notify>) -> Watching {
        let all: Vec<_> = self.files.values().cloned().collect();
        let told = runtime.spawn(look_when_told(all, Arc::clone(issued)));
        let watch = |certificates: &Arc<Certificates>| {
            AbortOnDropHandle::new(runtime.spawn(Arc::clone(certificates).watch(WATCH)))
        };
        Watching(self.files.values().map(watch).chain([AbortOnDropHandle::new(told)]).collect())
    }
}

/// Whether it is a folder for certificates that are ordered, of which there has been none yet.
fn is_to_come(ordered: bool, error: &CertificateError) -> bool {
    let gone = |source: &io::Error| source.kind() == io::ErrorKind::NotFound;
    ordered && matches!(error, CertificateError::Unreadable { source, .. } if gone(source))
}

async fn look_when_told(all: Vec<Arc<Certificates>>, issued: Arc<Notify>) {
    loop {
        issued.notified().await;
        let all = all.clone();
        // A disk may be slow, and this runtime has one thread.
        let look = move || all.iter().map(|certificates| certificates.refresh()).collect::<Vec<_>>();
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

/// Whether the configuration names the file that is bad, and not the folder that it is in.
fn is_named(sources: &[CertificateSource], error: &CertificateError) -> bool {
    sources.iter().any(|source| match source {
        CertificateSource::Path(path) => path == error.path(),
        CertificateSource::Pair { certificate, key } => {
            [certificate, key].iter().any(|path| *path == error.path())
        }
    })
}

impl Acceptor {
    /// What handshakes are made with.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// What is counted of them.
    pub fn metrics(&self) -> &HandshakeMetrics {
        &self.metrics
    }

    /// Whether the signature for clients that ask for this name takes so long that other connections should not wait for it.
    pub fn is_slow(&self, name: Option<&ServerName>) -> bool {
        let OfRoute { source: Source::Files(certificates), unnamed } = &*self.certificates else {
            return false;
        };
        let store = certificates.store();
        match name.or(unnamed.as_ref()) {
            Some(name) => store.find(name).is_some_and(|found| found.iter().any(|one| one.kind().is_slow())),
            None => store.only().is_some_and(|only| only.kind().is_slow()),
        }
    }

    /// Whether there is a certificate for clients that ask for this name.
    pub fn has_certificate(&self, name: Option<&ServerName>) -> bool {
        let OfRoute { source, unnamed } = &*self.certificates;
        match (source, name.or(unnamed.as_ref())) {
            (Source::Files(certificates), Some(name)) => certificates.store().find(name).is_some(),
            (Source::Files(certificates), None) => certificates.store().only().is_some(),
            (Source::SelfSigned(_), name) => name.is_some(),
        }
    }
}

/// The first name that is written out.
fn first_name(keys: &[RouteKey]) -> Option<ServerName> {
    keys.iter().find_map(|key| match key {
        RouteKey::Sni(NamePattern::Exact(name)) => Some(name.clone()),
        _ => None,
    })
}

impl ResolvesServerCert for OfRoute {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = match hello.server_name() {
            Some(name) => Some(ServerName::parse(name.as_bytes()).ok()?),
            None => self.unnamed.clone(),
        };
        match (&self.source, name) {
            (Source::Files(certificates), Some(name)) => {
                let store = certificates.store();
                let found = store.find(&name)?;
                match found.choose(hello.signature_schemes()) {
                    Some(chosen) => Some(chosen.key),
                    // Without a certificate the library takes the client for one that is not let in. With one it finds what they do
                    // not have in common, which may be suites: schemes that go with none of those are not listed.
                    None => found.iter().find_map(|one| one.signing()),
                }
            }
            (Source::Files(certificates), None) => certificates.store().only()?.signing(),
            (Source::SelfSigned(own), name) => own.certificate(&name?, SystemTime::now()).ok(),
        }
    }
}
