//! Names of backends: resolved in the background, so that no connection ever waits for DNS.
//!
//! Each name has one task that asks, keeps the answer for its TTL (within the configured bounds) and asks
//! again. When DNS fails, the last answer stays in use and the task asks again, more and more seldom.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use metrics::Counter;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::config::DnsConfig;
use crate::telemetry::{Family, Registry};

/// Pauses after failed queries: the first, doubled each time up to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Queries under way at once: a configuration of a thousand names does not flood its nameserver.
const CONCURRENT: usize = 32;

const LOOKUPS: Family = Family {
    name: "portcullis_dns_lookups_total",
    help: "Names of backends looked up.",
    labels: &["result"],
};

/// The names of a configuration. Dropping it ends their tasks.
#[derive(Debug)]
pub struct Resolver {
    config: DnsConfig,
    names: HashMap<Box<str>, Arc<ResolvedName>>,
    counters: Counters,
    tasks: JoinSet<()>,
}

/// Addresses of names at some time.
#[derive(Debug)]
pub struct Answers(HashMap<Box<str>, Arc<Vec<IpAddr>>>);

/// The current addresses of a name.
#[derive(Debug)]
pub struct ResolvedName {
    host: Box<str>,
    addresses: ArcSwap<Vec<IpAddr>>,
    /// Gets its one permit with the first answer or failure.
    asked: Semaphore,
}

/// Why names cannot be resolved at all.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No nameserver is known, or the system's configuration cannot be read.
    #[error(
        "the DNS configuration of the system cannot be used; set `dns = {{ servers = [\"192.0.2.53\"] }}`"
    )]
    System(#[source] NetError),
}

#[derive(Clone, Debug)]
struct Counters {
    ok: Counter,
    failed: Counter,
}

impl Resolver {
    /// A resolver without names.
    pub fn new(config: &DnsConfig, registry: &Registry) -> Self {
        let counters = Counters {
            ok: registry.counter(&LOOKUPS, &["ok"]),
            failed: registry.counter(&LOOKUPS, &["failed"]),
        };
        Self { config: config.clone(), names: HashMap::new(), counters, tasks: JoinSet::new() }
    }

    /// The shared entry of `host`; it has no addresses before [`Resolver::start`].
    pub fn name(&mut self, host: &str) -> Arc<ResolvedName> {
        let entry = self.names.entry(host.into()).or_insert_with(|| {
            Arc::new(ResolvedName {
                host: host.into(),
                addresses: ArcSwap::default(),
                asked: Semaphore::new(0),
            })
        });
        Arc::clone(entry)
    }

    /// Starts to resolve all names on `runtime`, and goes on until dropped.
    ///
    /// # Errors
    /// When there are names and no nameservers are known.
    pub fn start(&mut self, runtime: &Handle) -> Result<(), ResolveError> {
        if self.names.is_empty() {
            return Ok(());
        }
        let resolver = |strategy| self.build(strategy).map(Arc::new).map_err(ResolveError::System);
        let (v4, v6) = (resolver(LookupIpStrategy::Ipv4Only)?, resolver(LookupIpStrategy::Ipv6Only)?);
        let slots = Arc::new(Semaphore::new(CONCURRENT));
        for name in self.names.values() {
            let refresh = Refresh {
                name: Arc::clone(name),
                v4: Arc::clone(&v4),
                v6: Arc::clone(&v6),
                slots: Arc::clone(&slots),
                config: self.config.clone(),
                counters: self.counters.clone(),
            };
            self.tasks.spawn_on(refresh.run(), runtime);
        }
        Ok(())
    }

    /// The addresses of all names as they are now.
    pub fn answers(&self) -> Answers {
        Answers(self.names.iter().map(|(host, name)| (host.clone(), name.addresses())).collect())
    }

    /// Begins with the `answers` of another resolver, so that names which both have are never without.
    pub fn begin_with(&mut self, answers: &Answers) {
        for (host, name) in &self.names {
            if let Some(addresses) = answers.0.get(host).filter(|addresses| !addresses.is_empty()) {
                name.addresses.store(Arc::clone(addresses));
                name.asked.add_permits(1);
            }
        }
    }

    /// Waits until each name has been asked for once, with or without success.
    pub async fn first_answers(&self) {
        for name in self.names.values() {
            // Never closed; and the permit stays for others who wait.
            let _ = name.asked.acquire().await;
        }
    }

    fn build(&self, strategy: LookupIpStrategy) -> Result<TokioResolver, NetError> {
        let mut builder = if self.config.servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = self.config.servers.iter().map(|server| {
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
        options.timeout = self.config.timeout;
        options.ip_strategy = strategy;
        // Answers are kept here, with their own bounds and past their time when need be.
        options.cache_size = 0;
        builder.build()
    }
}

impl ResolvedName {
    /// The addresses of the last answer; empty before the first.
    pub fn addresses(&self) -> Arc<Vec<IpAddr>> {
        self.addresses.load_full()
    }

    #[cfg(test)]
    fn host(&self) -> &str {
        &self.host
    }
}

/// The task of one name.
struct Refresh {
    name: Arc<ResolvedName>,
    v4: Arc<TokioResolver>,
    v6: Arc<TokioResolver>,
    slots: Arc<Semaphore>,
    config: DnsConfig,
    counters: Counters,
}

impl Refresh {
    async fn run(self) {
        let mut retry = RETRY.0;
        loop {
            let pause = match Box::pin(self.ask()).await {
                Some(ttl) => {
                    retry = RETRY.0;
                    ttl
                }
                None => {
                    let pause = retry;
                    retry = (retry * 2).min(RETRY.1);
                    pause
                }
            };
            if self.name.asked.available_permits() == 0 {
                self.name.asked.add_permits(1);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once; gives the time until the next question when there is an answer. The families are asked
    /// apart: when one fails, its last addresses stay, and those of the other are still brought up to date.
    async fn ask(&self) -> Option<Duration> {
        let _slot = self.slots.acquire().await.ok()?;
        // A trailing dot makes the name absolute: no search list is tried.
        let absolute = format!("{}.", self.name.host.trim_end_matches('.'));
        let (v4, v6) = tokio::join!(family(&self.v4, &absolute), family(&self.v6, &absolute));
        let before = self.name.addresses();
        let stale = |v6: bool| before.iter().copied().filter(move |ip| ip.is_ipv6() == v6);
        let mut addresses = Vec::new();
        let mut shortest: Option<Duration> = None;
        for (answer, is_v6) in [(v4, false), (v6, true)] {
            match answer {
                Ok((found, ttl)) => {
                    addresses.extend(found);
                    shortest = Some(shortest.map_or(ttl, |shortest| shortest.min(ttl)));
                }
                // Most names have addresses of one family only.
                Err(error) if error.is_no_records_found() => {}
                Err(error) => {
                    warn!(host = %self.name.host, %error, stale = stale(is_v6).count(), "cannot resolve a backend");
                    addresses.extend(stale(is_v6));
                }
            }
        }
        let Some(ttl) = shortest else {
            // The last addresses stay: a name that is gone for the moment is no reason to stop serving.
            warn!(host = %self.name.host, stale = before.len(), "no answer for a backend's name");
            self.counters.failed.increment(1);
            return None;
        };
        self.counters.ok.increment(1);
        // Servers rotate their answers; turns are taken here.
        addresses.sort_unstable();
        self.store(addresses);
        Some(ttl.clamp(self.config.min_ttl, self.config.max_ttl))
    }

    fn store(&self, addresses: Vec<IpAddr>) {
        if **self.name.addresses.load() == addresses {
            debug!(host = %self.name.host, "addresses of a backend unchanged");
        } else {
            info!(host = %self.name.host, ?addresses, "addresses of a backend");
            self.name.addresses.store(Arc::new(addresses));
        }
    }
}

/// The addresses of one family, and how long they hold.
async fn family(resolver: &TokioResolver, host: &str) -> Result<(Vec<IpAddr>, Duration), NetError> {
    let answer = resolver.lookup_ip(host).await?;
    let ttl = answer.valid_until().saturating_duration_since(Instant::now());
    Ok((answer.iter().collect(), ttl))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_resolved_once_however_many_routes_use_it() {
        let config = DnsConfig {
            servers: vec![],
            timeout: Duration::from_secs(1),
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(300),
        };
        let mut resolver = Resolver::new(&config, &Registry::new().unwrap());
        let (one, two) = (resolver.name("app.internal"), resolver.name("app.internal"));
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(one.host(), "app.internal");
        assert!(one.addresses().is_empty());
    }
}
