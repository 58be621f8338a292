//! The task that orders: does what is due, and tells what came of it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::{CertificateIdentifier, Error};
use jiff::Timestamp;
use metrics::{Counter, Gauge};
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::challenges::Challenges;
use super::client::Client;
use super::error::AcmeError;
use super::files::{Files, Stored};
use super::order::{self, Issued};
use super::schedule::{Rules, Schedule, Work};
use crate::config::{AcmeChallenge, AcmeConfig};
use crate::telemetry::{Family, Registry};

const ORDERS: Family = Family {
    name: "portcullis_acme_orders_total",
    help: "Certificates ordered from the authority, and what came of it.",
    labels: &["result"],
};
const ERRORS: Family = Family {
    name: "portcullis_acme_errors_total",
    help: "What failed on the way to certificates: orders, and all else that is asked of the authority.",
    labels: &[],
};
const NEXT: Family = Family {
    name: "portcullis_acme_next_renewal_timestamp_seconds",
    help: "When a certificate for the name is ordered next; of the first 1000 names.",
    labels: &["name"],
};
/// As many names have a gauge.
const TOLD: usize = 1000;
/// Orders under way at once: a few, so that names do not wait for one that is slow, and no authority takes it for a flood.
const AT_MOST: usize = 2;
/// The same where a command publishes records: two that write the same zone would have to know of each other.
const AT_MOST_BY_COMMAND: usize = 1;
/// Deadline of an order with all that belongs to it.
const ORDER: Duration = Duration::from_secs(15 * 60);
/// How often the clock is looked at: it may be set, or the machine may have slept.
const LOOK: Duration = Duration::from_secs(60);

/// Orders certificates.
pub(super) struct Engine {
    challenges: Arc<Challenges>,
    registry: Arc<Registry>,
    issued: Arc<Notify>,
    metrics: Metrics,
    serving: Option<Serving>,
    jobs: JoinSet<Done>,
    /// What each of them is about.
    begun: HashMap<Id, Work>,
}

struct Metrics {
    issued: Counter,
    refused: Counter,
    failed: Counter,
    errors: Counter,
    next: HashMap<Arc<str>, Gauge>,
}

/// What is worked by.
struct Serving {
    config: Arc<AcmeConfig>,
    files: Files,
    schedule: Schedule,
    /// The account, once it is known to be there.
    account: Option<Arc<[u8]>>,
    /// How the authority calls the certificates that it issued.
    ids: HashMap<Arc<str>, CertificateIdentifier<'static>>,
}

/// What came of something.
enum Done {
    Ordered(Result<Issued, Failure>),
    Advised(Result<Advice, AcmeError>),
}

/// When to renew, and when to ask again.
struct Advice {
    window: Option<(SystemTime, SystemTime)>,
    again: Option<Duration>,
    why: Option<String>,
}

struct Failure {
    error: AcmeError,
    come_back: Option<SystemTime>,
}

impl Engine {
    pub(super) fn new(challenges: Arc<Challenges>, registry: Arc<Registry>, issued: Arc<Notify>) -> Self {
        let orders = |result| registry.counter(&ORDERS, &[result]);
        let metrics = Metrics {
            issued: orders("issued"),
            refused: orders("refused"),
            failed: orders("failed"),
            errors: registry.counter(&ERRORS, &[]),
            next: HashMap::new(),
        };
        let (jobs, begun) = (JoinSet::new(), HashMap::new());
        Self { challenges, registry, issued, metrics, serving: None, jobs, begun }
    }

    /// Works by each configuration that it is told, until nobody is left to tell one.
    pub(super) async fn run(mut self, mut told: watch::Receiver<Option<Arc<AcmeConfig>>>) {
        loop {
            let pause = self.begin_what_is_due().await;
            self.show();
            tokio::select! {
                changed = told.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let config = told.borrow_and_update().clone();
                    self.take(config).await;
                }
                Some(joined) = self.jobs.join_next_with_id() => self.ended(joined).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Another configuration, or none.
    async fn take(&mut self, config: Option<Arc<AcmeConfig>>) {
        let Some(config) = config else {
            self.give_up();
            self.serving = None;
            return;
        };
        let rules = Rules {
            at_most: match config.challenge {
                AcmeChallenge::TlsAlpn01 | AcmeChallenge::Http01 => AT_MOST,
                AcmeChallenge::Dns01(_) => AT_MOST_BY_COMMAND,
            },
            renew_before: config.renew_before,
        };
        let same =
            |before: &AcmeConfig| AcmeConfig { names: Vec::new(), renew_before: None, ..before.clone() };
        let goes_on = self.serving.as_ref().is_some_and(|serving| same(&serving.config) == same(&config));
        let mut serving = match self.serving.take() {
            Some(mut serving) if goes_on => {
                serving.schedule.set_rules(rules);
                serving.config = config;
                serving
            }
            _ => {
                self.give_up();
                let seed = RandomState::new().hash_one(0);
                let (files, schedule) = (Files::new(&config), Schedule::new(rules, seed));
                Serving { config, files, schedule, account: None, ids: HashMap::new() }
            }
        };
        serving.schedule.hasten(SystemTime::now());
        serving.take_names().await;
        info!(names = serving.config.names.len(), directory = %serving.config.directory, "certificates are ordered by ACME");
        self.serving = Some(serving);
    }

    /// Ends what is under way.
    fn give_up(&mut self) {
        // What they offer goes with them.
        self.jobs = JoinSet::new();
        self.begun.clear();
    }

    /// Begins what is due, and says for how long there is nothing else to do.
    async fn begin_what_is_due(&mut self) -> Duration {
        loop {
            let Some(serving) = &mut self.serving else { return LOOK };
            let now = SystemTime::now();
            let work = match serving.schedule.next(now) {
                Ok(work) => work,
                Err(next) => {
                    let pause = next.map_or(LOOK, |next| next.duration_since(now).unwrap_or_default());
                    return pause.min(LOOK);
                }
            };
            let Some(account) = self.account(&work).await else { continue };
            let Some(serving) = &self.serving else { return LOOK };
            let client = Client::new(&serving.config.roots);
            let job = match &work {
                Work::Order(name) => {
                    let replaces = serving.ids.get(name).cloned();
                    let (config, files) = (Arc::clone(&serving.config), serving.files.clone());
                    let (name, challenges) = (Arc::clone(name), Arc::clone(&self.challenges));
                    self.jobs.spawn(async move {
                        let ordering = order_and_keep(
                            &account,
                            &client,
                            &name,
                            replaces,
                            (&config, &files),
                            &challenges,
                        );
                        let ordered =
                            timeout(ORDER, Box::pin(ordering)).await.unwrap_or(Err(AcmeError::Slow));
                        Done::Ordered(
                            ordered.map_err(|error| Failure { error, come_back: client.come_back() }),
                        )
                    })
                }
                Work::Ask(name) => {
                    let id = serving.ids.get(name).cloned();
                    self.jobs
                        .spawn(async move { Done::Advised(Box::pin(advice(&account, &client, id)).await) })
                }
            };
            self.begun.insert(job.id(), work);
        }
    }

    /// The account, which is made when there is none. Before everything else, so that no two are.
    async fn account(&mut self, work: &Work) -> Option<Arc<[u8]>> {
        let serving = self.serving.as_mut()?;
        if let Some(account) = &serving.account {
            return Some(Arc::clone(account));
        }
        let client = Client::new(&serving.config.roots);
        match Box::pin(order::account(&serving.config, &serving.files, &client)).await {
            Ok(account) => {
                info!(directory = %serving.config.directory, "there is an account with the authority");
                Some(Arc::clone(serving.account.insert(account.into())))
            }
            Err(error) => {
                let again = serving.schedule.outage(Some(work.name()), client.come_back(), SystemTime::now());
                self.metrics.errors.increment(1);
                tell(&error, None, again, "there is no account with the authority yet");
                None
            }
        }
    }

    /// Takes in what has ended.
    async fn ended(&mut self, joined: Result<(Id, Done), tokio::task::JoinError>) {
        let id = joined.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
        let (Some(work), Some(serving)) = (self.begun.remove(&id), &mut self.serving) else { return };
        let (name, now) = (work.name(), SystemTime::now());
        match joined {
            Ok((_, Done::Ordered(Ok(issued)))) => {
                let again = serving.schedule.issued(name, issued.validity, now);
                serving.ids.remove(name);
                serving.ids.extend(issued.id.map(|id| (Arc::clone(name), id)));
                self.metrics.issued.increment(1);
                info!(
                    %name,
                    until = %told(issued.validity.not_after),
                    next = %told(again),
                    "the authority has issued a certificate"
                );
                self.issued.notify_one();
            }
            Ok((_, Done::Ordered(Err(failure)))) => self.failed(name, failure, now).await,
            Ok((_, Done::Advised(Ok(advice)))) => {
                let Advice { window, again, why } = advice;
                if let Some(next) = serving.schedule.advised(name, window, again, now) {
                    let why = why.unwrap_or_default();
                    info!(%name, next = %told(next), why, "the authority says when to renew");
                }
            }
            Ok((_, Done::Advised(Err(error)))) => {
                serving.schedule.advised(name, None, None, now);
                self.metrics.errors.increment(1);
                warn!(%name, error = %chain(&error), "the authority does not say when to renew");
            }
            Err(_) => {
                let again = serving.schedule.failed(name, None, now);
                self.metrics.errors.increment(1);
                error!(%name, next = %told(again), "an order ended by a defect of this program");
            }
        }
        serving_retain(self.serving.as_mut());
    }

    async fn failed(&mut self, name: &Arc<str>, failure: Failure, now: SystemTime) {
        let Some(serving) = &mut self.serving else { return };
        let Failure { error, come_back } = failure;
        self.metrics.errors.increment(1);
        match error.result() {
            "refused" => self.metrics.refused.increment(1),
            _ => self.metrics.failed.increment(1),
        }
        if error.account_is_gone() {
            let files = serving.files.clone();
            serving.account = None;
            // Whether it ran does not matter: it is asked for again.
            let _ = tokio::task::spawn_blocking(move || files.forget_account()).await;
        }
        let again = if error.is_outage() {
            serving.schedule.outage(Some(name), come_back, now)
        } else {
            serving.schedule.failed(name, come_back, now)
        };
        tell(&error, Some(name), again, "there is no new certificate");
    }

    /// Shows when names are due.
    fn show(&mut self) {
        let due: HashMap<&Arc<str>, SystemTime> = match &self.serving {
            Some(serving) => serving.schedule.due().take(TOLD).collect(),
            None => HashMap::new(),
        };
        // A family has no way to take one back; nothing compares with this.
        self.metrics
            .next
            .iter()
            .filter(|(name, _)| !due.contains_key(name))
            .for_each(|(_, gauge)| gauge.set(f64::NAN));
        for (name, due) in due {
            let known = self.metrics.next.get(name);
            // Names that were there once keep their place among those that are told.
            if known.is_none() && self.metrics.next.len() >= TOLD {
                continue;
            }
            let seconds = due.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let gauge = self.metrics.next.entry(Arc::clone(name));
            gauge.or_insert_with(|| self.registry.gauge(&NEXT, &[name])).set(seconds.floor());
        }
    }
}

/// Names that are gone and were under way go when that has ended.
fn serving_retain(serving: Option<&mut Serving>) {
    let Some(serving) = serving else { return };
    let names = &serving.config.names;
    serving.schedule.retain(|name| names.iter().any(|wanted| **wanted == *name));
}

impl Serving {
    /// Adds the names that are new with the certificates that there are for them, and drops those that are gone.
    async fn take_names(&mut self) {
        let new: Vec<_> = self.config.names.iter().filter(|name| !self.schedule.has(name)).cloned().collect();
        let files = self.files.clone();
        let read = move || new.into_iter().map(|name| (files.certificate(&name), name)).collect::<Vec<_>>();
        let found = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        let now = SystemTime::now();
        for (stored, name) in found {
            let (validity, elsewhere) = match stored {
                None => (None, false),
                Some(Stored { validity, id, elsewhere }) => {
                    self.ids.extend(id.filter(|_| !elsewhere).map(|id| (Arc::clone(&name), id)));
                    (Some(validity), elsewhere)
                }
            };
            self.schedule.add(name, validity, elsewhere, now);
        }
        serving_retain(Some(self));
    }
}

impl Work {
    fn name(&self) -> &Arc<str> {
        match self {
            Self::Order(name) | Self::Ask(name) => name,
        }
    }
}

async fn order_and_keep(
    account: &[u8],
    client: &Client,
    name: &Arc<str>,
    replaces: Option<CertificateIdentifier<'static>>,
    (config, files): (&AcmeConfig, &Files),
    challenges: &Arc<Challenges>,
) -> Result<Issued, AcmeError> {
    let account = order::open(account, client).await?;
    let issued = Box::pin(order::order(&account, name, replaces, &config.challenge, challenges)).await?;
    let (files, name) = (files.clone(), Arc::clone(name));
    order::blocking(move || files.keep_certificate(&name, &issued.chain, &issued.key).map(|()| issued)).await
}

/// Asks when to renew the certificate.
async fn advice(
    account: &[u8],
    client: &Client,
    id: Option<CertificateIdentifier<'static>>,
) -> Result<Advice, AcmeError> {
    let Some(id) = id else { return Ok(Advice { window: None, again: Some(Duration::MAX), why: None }) };
    let account = order::open(account, client).await?;
    match account.renewal_info(&id).await {
        Ok((info, again)) => {
            let at =
                |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
            let window = info.suggested_window;
            let window = (at(window.start.unix_timestamp()), at(window.end.unix_timestamp()));
            Ok(Advice { window: Some(window), again: Some(again), why: info.explanation_url })
        }
        Err(Error::Unsupported(_)) => Ok(Advice { window: None, again: Some(Duration::MAX), why: None }),
        Err(error) => Err(error.into()),
    }
}

/// Tells what failed, with what the authority said.
fn tell(error: &AcmeError, name: Option<&Arc<str>>, again: SystemTime, what: &str) {
    let problem = error.problem();
    let kind = problem.and_then(|problem| problem.r#type.as_deref());
    let detail = problem.and_then(|problem| problem.detail.as_deref());
    let subproblems =
        problem.map(|problem| problem.subproblems.iter().map(ToString::to_string).collect::<Vec<_>>());
    let subproblems = subproblems.filter(|all| !all.is_empty()).map(|all| all.join("; "));
    warn!(
        name = name.map(tracing::field::display),
        error = %chain(error),
        problem = kind,
        detail,
        subproblems,
        next = %told(again),
        "{what}"
    );
}

/// A moment as it is told, to the second.
fn told(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).ok();
    let second = at.and_then(|at| Timestamp::from_second(at.as_second()).ok());
    second.map_or_else(String::new, |at| at.to_string())
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors say what their cause says.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
