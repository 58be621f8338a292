//! Questions to nameservers, and their answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::source::Source;
use super::watched::{Found, Targets};
use crate::config::DnsFamily;

/// A question is given up on after so many timeouts of a query: three tries, and what of it leads elsewhere.
const TIMEOUTS: u32 = 4;
/// Records of a service that are looked at: each may be a question of its own.
const MAX_RECORDS: usize = 256;

/// Why there are no addresses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupError {
    /// The nameserver says that the name does not exist.
    #[error("there is no such name")]
    NoName {
        /// How long that holds, where it says.
        ttl: Option<Duration>,
    },
    /// The nameserver says that the name has no such records.
    #[error("the name has no address")]
    NoRecord {
        /// How long that holds, where it says.
        ttl: Option<Duration>,
    },
    /// There was no answer in time.
    #[error("no nameserver answered in time")]
    Timeout,
    /// The nameserver could not be asked, could not find out, or said what makes no sense.
    #[error("no nameserver could tell")]
    Failed(#[source] NetError),
    /// Too many names are asked for at once.
    #[error("too many names are looked up at once")]
    Busy,
    /// Nobody asks: the process is ending.
    #[error("names are not looked up any more")]
    Ended,
}

/// What is asked, and within which bounds.
#[derive(Clone)]
pub(super) struct Questions {
    pub(super) source: Arc<Source>,
    /// Queries under way at once.
    pub(super) slots: Arc<Semaphore>,
    /// How long one query may take.
    pub(super) timeout: Duration,
    pub(super) family: DnsFamily,
}

/// Records, and how long they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer<T> {
    pub(super) records: Vec<T>,
    pub(super) ttl: Duration,
}

/// The answer for a host whose families were asked for apart.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) answer: Answer<IpAddr>,
    /// Why a part of it is the last answer's.
    pub(super) partly: Option<LookupError>,
}

/// The answer for a service.
#[derive(Clone, Debug)]
pub(super) struct Instances {
    pub(super) answer: Answer<Found>,
    pub(super) targets: Targets,
    /// Why a part of it is the last answer's, or is missing.
    pub(super) partly: Option<LookupError>,
}

/// What was said of a host; nothing of a family that was not asked for.
struct Said {
    v4: Option<Result<Answer<IpAddr>, LookupError>>,
    v6: Option<Result<Answer<IpAddr>, LookupError>>,
}

/// A record of a service (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Instance {
    priority: u16,
    target: Name,
    port: u16,
    weight: u16,
}

/// A host that records of a service lead to.
struct Target {
    name: Box<str>,
    result: Result<Addresses, LookupError>,
}

impl LookupError {
    /// Whether a nameserver has said that there is nothing.
    pub fn is_negative(&self) -> bool {
        match self {
            Self::NoName { .. } | Self::NoRecord { .. } => true,
            Self::Timeout | Self::Failed(_) | Self::Busy | Self::Ended => false,
        }
    }

    /// How long it holds, if it does at all.
    pub(super) fn ttl(&self) -> Option<Duration> {
        match self {
            Self::NoName { ttl } | Self::NoRecord { ttl } => *ttl,
            Self::Timeout | Self::Failed(_) | Self::Busy | Self::Ended => None,
        }
    }

    fn from_net(error: NetError) -> Self {
        let NetError::Dns(DnsError::NoRecordsFound(nothing)) = &error else {
            return if matches!(error, NetError::Timeout) { Self::Timeout } else { Self::Failed(error) };
        };
        let ttl = nothing.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
        match nothing.response_code {
            ResponseCode::NXDomain => Self::NoName { ttl },
            // Nameservers of others and no SOA: it is not for this one to say (a referral, RFC 2308 §2.2).
            ResponseCode::NoError if nothing.soa.is_some() || nothing.ns.is_none() => Self::NoRecord { ttl },
            _ => Self::Failed(error),
        }
    }
}

impl Questions {
    /// The addresses of `host`. The families are asked for apart: when one fails, its addresses `before` stay, and
    /// those of the other are still brought up to date.
    ///
    /// # Errors
    /// When no family has an answer: a failure if there is one, else that there is nothing.
    pub(super) async fn host(&self, host: &str, before: &[IpAddr]) -> Result<Addresses, LookupError> {
        self.target(host, [None, None], before).await
    }

    /// The instances of `service`. A target that cannot be looked up keeps the addresses that it has in `before`; one
    /// that does not exist is left out.
    ///
    /// # Errors
    /// When the service cannot be looked up, or none of its targets.
    pub(super) async fn service(&self, service: &str, before: &Targets) -> Result<Instances, LookupError> {
        let owner = absolute(service)?;
        let lookup = self.query(owner, RecordType::SRV).await?;
        let records = instances(lookup.answers());
        let targets = self.targets(&records, lookup.additionals(), before).await;
        settled(&records, lookup_ttl(lookup.valid_until()), targets, before)
    }

    /// Looks up the hosts that `records` lead to, at once, as far as there are slots.
    async fn targets(&self, records: &[Instance], additional: &[Record], before: &Targets) -> Vec<Target> {
        let mut names: Vec<&Name> = records.iter().map(|record| &record.target).collect();
        names.sort_unstable();
        names.dedup();
        let mut tasks = JoinSet::new();
        for name in names {
            let text: Box<str> = name.to_ascii().into();
            let known = before.get(&text).cloned().unwrap_or_default();
            let given = [RecordType::A, RecordType::AAAA].map(|kind| given(additional, name, kind));
            let questions = self.clone();
            tasks.spawn(async move {
                let result = questions.target(&text, given, &known).await;
                Target { name: text, result }
            });
        }
        let mut targets = Vec::with_capacity(tasks.len());
        while let Some(target) = tasks.join_next().await {
            // A task that panicked has said so; its target is looked up again next time.
            targets.extend(target.ok());
        }
        targets
    }

    /// The addresses of a host of which the answer for a service may have told some: nameservers add them as they see
    /// fit (RFC 2782), so the family that is missing is asked for.
    async fn target(
        &self,
        host: &str,
        given: [Option<Answer<IpAddr>>; 2],
        before: &[IpAddr],
    ) -> Result<Addresses, LookupError> {
        let [v4, v6] = given;
        let one = async |given, kind, other_only| match given {
            _ if self.family == other_only => None,
            Some(answer) => Some(Ok(answer)),
            None => Some(self.family(host, kind).await),
        };
        let v4 = one(v4, RecordType::A, DnsFamily::V6);
        let (v4, v6) = tokio::join!(v4, one(v6, RecordType::AAAA, DnsFamily::V4));
        merged(Said { v4, v6 }, before)
    }

    /// The addresses of one family.
    async fn family(&self, host: &str, kind: RecordType) -> Result<Answer<IpAddr>, LookupError> {
        let lookup = self.query(absolute(host)?, kind).await?;
        let records: Vec<IpAddr> =
            lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
        if records.is_empty() {
            return Err(LookupError::NoRecord { ttl: None });
        }
        Ok(Answer { records, ttl: lookup_ttl(lookup.valid_until()) })
    }

    async fn query(&self, name: Name, kind: RecordType) -> Result<Lookup, LookupError> {
        // Never closed.
        let _slot = self.slots.acquire().await;
        let resolver = self.source.resolver().await;
        match timeout(self.timeout * TIMEOUTS, Box::pin(resolver.lookup(name, kind))).await {
            Ok(result) => result.map_err(LookupError::from_net),
            Err(_) => Err(LookupError::Timeout),
        }
    }
}

/// A name that is absolute, so that no search list is tried.
fn absolute(name: &str) -> Result<Name, LookupError> {
    let mut name = Name::from_ascii(name).map_err(|error| LookupError::Failed(error.into()))?;
    name.set_fqdn(true);
    Ok(name)
}

fn lookup_ttl(valid_until: Instant) -> Duration {
    valid_until.saturating_duration_since(Instant::now())
}

/// Joins what was said of the families that were asked for.
fn merged(said: Said, before: &[IpAddr]) -> Result<Addresses, LookupError> {
    let (mut records, mut ttl) = (Vec::new(), None::<Duration>);
    let (mut failed, mut nothing) = (None, None::<LookupError>);
    let families = [(said.v4, false), (said.v6, true)];
    for (answer, is_v6) in families.into_iter().filter_map(|(answer, is_v6)| Some((answer?, is_v6))) {
        match answer {
            Ok(answer) => {
                records.extend(answer.records);
                ttl = Some(ttl.map_or(answer.ttl, |ttl| ttl.min(answer.ttl)));
            }
            // Most names have addresses of one family only.
            Err(error) if error.is_negative() => {
                let shorter = nothing.as_ref().is_none_or(|other| error.ttl() < other.ttl());
                nothing = if shorter { Some(error) } else { nothing };
            }
            Err(error) => {
                records.extend(before.iter().copied().filter(|ip| ip.is_ipv6() == is_v6));
                failed = Some(error);
            }
        }
    }
    match (ttl, failed, nothing) {
        (Some(ttl), partly, _) => Ok(Addresses { answer: Answer { records, ttl }, partly }),
        (None, Some(error), _) | (None, None, Some(error)) => Err(error),
        (None, None, None) => Err(LookupError::NoRecord { ttl: None }),
    }
}

/// Joins the records of a service, which hold for `ttl`, with what was said of their `targets`.
fn settled(
    records: &[Instance],
    ttl: Duration,
    targets: Vec<Target>,
    before: &Targets,
) -> Result<Instances, LookupError> {
    let (mut known, mut ttl) = (Targets::new(), ttl);
    let (mut partly, mut nothing) = (None, None);
    for Target { name, result } in targets {
        match result {
            Ok(found) => {
                ttl = ttl.min(found.answer.ttl);
                partly = partly.or(found.partly);
                known.insert(name, found.answer.records);
            }
            Err(error) if error.is_negative() => nothing = Some(error),
            Err(error) => {
                if let Some(addresses) = before.get(&name) {
                    known.insert(name, addresses.clone());
                }
                partly = Some(error);
            }
        }
    }
    // A service without instances is one thing (a target of "."), one whose targets are not found another.
    match partly.clone().or(nothing) {
        Some(error) if known.is_empty() => Err(error),
        _ => {
            Ok(Instances { answer: Answer { records: joined(records, &known), ttl }, targets: known, partly })
        }
    }
}

/// The records of a service that lead somewhere, what is used sooner first. A target of "." says that there is no such
/// service (RFC 2782), and nobody can be connected to at port 0.
fn instances(answers: &[Record]) -> Vec<Instance> {
    let mut records: Vec<Instance> = answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => Some(Instance {
                priority: srv.priority,
                target: srv.target.to_lowercase(),
                port: srv.port,
                weight: srv.weight,
            }),
            _ => None,
        })
        .collect();
    records.sort_unstable();
    records.truncate(MAX_RECORDS);
    records
}

/// The addresses of one family that came beside the answer.
fn given(additional: &[Record], host: &Name, kind: RecordType) -> Option<Answer<IpAddr>> {
    let of_host = additional.iter().filter(|record| record.record_type() == kind && record.name == *host);
    let (mut records, mut ttl) = (Vec::new(), u32::MAX);
    for record in of_host {
        records.extend(record.data.ip_addr());
        ttl = ttl.min(record.ttl);
    }
    (!records.is_empty()).then(|| Answer { records, ttl: Duration::from_secs(ttl.into()) })
}

/// The addresses of all records. A weight of 0 counts as 1: of a sum of `n` that is the one chance in `n + 1` which the
/// algorithm of RFC 2782 gives such a record.
fn joined(records: &[Instance], targets: &Targets) -> Vec<Found> {
    let of_record = |record: &Instance| {
        let addresses = targets.get(record.target.to_ascii().as_str()).cloned().unwrap_or_default();
        let (port, priority, weight) = (Some(record.port), record.priority, record.weight.max(1));
        addresses.into_iter().map(move |ip| Found { ip, port, priority, weight })
    };
    records.iter().flat_map(of_record).collect()
}

#[cfg(test)]
mod tests;
