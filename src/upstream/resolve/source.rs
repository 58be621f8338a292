//! Whom to ask: the nameservers of the configuration or of the system, and `/etc/hosts`.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tracing::{info, warn};

use super::ResolveError;
use crate::config::{DnsConfig, ListStamp};

/// What the resolver reads once, when it is made.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// The files are looked at before a query, at most this often.
const LOOK: Duration = Duration::from_secs(5);

/// The resolver, which is made anew when the system's files change.
pub(super) struct Source {
    config: DnsConfig,
    current: ArcSwap<TokioResolver>,
    looks: Mutex<Looks>,
}

/// The states of [`FILES`]; nothing where there is no file.
type Stamps = [Option<ListStamp>; 2];

struct Looks {
    last: Instant,
    /// What the resolver was made from.
    used: Stamps,
    /// From what none could be made, which is told once.
    failed: Option<Stamps>,
}

impl Source {
    /// Makes the resolver.
    ///
    /// # Errors
    /// When the configuration names no nameservers, and neither does the system.
    pub(super) fn new(config: &DnsConfig) -> Result<Self, ResolveError> {
        // Before they are read: what is written meanwhile will look like a change.
        let used = stamps();
        let resolver = build(config).map_err(ResolveError::System)?;
        Ok(Self {
            config: config.clone(),
            current: ArcSwap::from_pointee(resolver),
            looks: Mutex::new(Looks { last: Instant::now(), used, failed: None }),
        })
    }

    /// The resolver to ask now.
    pub(super) async fn resolver(self: &Arc<Self>) -> Arc<TokioResolver> {
        if self.is_due() {
            let source = Arc::clone(self);
            // Files may be slow. Where this thread is not to be had the resolver stays as it is.
            let _ = tokio::task::spawn_blocking(move || source.look()).await;
        }
        self.current.load_full()
    }

    fn is_due(&self) -> bool {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looks.last.elapsed() >= LOOK;
        if due {
            looks.last = Instant::now();
        }
        due
    }

    fn look(&self) {
        let now = stamps();
        let (used, failed) = {
            let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
            (looks.used, looks.failed)
        };
        if now == used {
            return;
        }
        // Tried at each look: that it could not be read may say nothing about the file.
        let built = build(&self.config);
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        match built {
            Ok(resolver) => {
                info!("the system's DNS configuration has changed");
                self.current.store(Arc::new(resolver));
                (looks.used, looks.failed) = (now, None);
            }
            Err(error) => {
                if failed != Some(now) {
                    warn!(%error, "the system's DNS configuration cannot be used; the one before stays");
                }
                looks.failed = Some(now);
            }
        }
    }
}

fn stamps() -> Stamps {
    FILES.map(|file| ListStamp::of(Path::new(file)).ok())
}

fn build(config: &DnsConfig) -> Result<TokioResolver, NetError> {
    let mut builder = if config.servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = config.servers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            let connections = connections.map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.into())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = config.timeout;
    // Answers are kept here, with their own bounds and past their time when need be.
    options.cache_size = 0;
    builder.build()
}
