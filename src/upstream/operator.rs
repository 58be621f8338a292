//! What an operator asked of the backends of a pool, laid over what the configuration says of them. Pure.
//!
//! It holds until the configuration says something else of the same backend than it did when the operator acted.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::resolve::ResolveError;
use crate::config::{BackendConfig, UpstreamConfig, similar};
use crate::net::UpstreamAddr;

/// Backends of a pool of which an operator may ask something at a time.
const MOST: usize = 1024;
/// Names told when one is not known.
const TOLD: usize = 12;

/// What is asked of a backend.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is to get connections, too; what is not said is as in a configuration that does not say it.
    Add(UpstreamAddr, Said),
    /// It is to get none any more, and to be forgotten.
    Remove(UpstreamAddr),
    /// Its share beside the others; with 0 it gets no new connections.
    Weigh(UpstreamAddr, u32),
    /// It is to get no new connections. This and the next are for one address of a name, too.
    Drain(UpstreamAddr),
    /// It is to get them again.
    Undrain(UpstreamAddr),
}

/// What is said of a backend that is added.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Its share beside the others.
    pub weight: Option<u32>,
    /// Its tier.
    pub tier: Option<u32>,
    /// The zone that it stands in.
    pub zone: Option<Arc<str>>,
    /// The most connections that it has at once.
    pub max_connections: Option<u32>,
}

/// Why that is not done.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No upstream has this name.
    #[error("there is no upstream `{name}`; {}", hint(.name, .there))]
    UnknownUpstream {
        /// What was asked for.
        name: String,
        /// Those that there are.
        there: Vec<String>,
    },
    /// The upstream has no such backend.
    #[error("the upstream has no backend `{backend}`; {}", hint(&.backend.to_string(), .there))]
    UnknownBackend {
        /// What was asked for.
        backend: UpstreamAddr,
        /// Those that there are.
        there: Vec<String>,
    },
    /// It is one address of several.
    #[error("`{backend}` is an address of `{name}`: it can be drained; all else is done with the name")]
    OneOfSeveral {
        /// The address.
        backend: UpstreamAddr,
        /// The backend that has it.
        name: Arc<str>,
    },
    /// It is there already.
    #[error(
        "the upstream has the backend `{0}` already; `weight`, `drain` and `undrain` change what it gets"
    )]
    Exists(UpstreamAddr),
    /// It would be the proxy itself.
    #[error("`{backend}` would connect to itself: the listener `{listener}`; add another address or port")]
    Own {
        /// The address.
        backend: SocketAddr,
        /// Whose it is.
        listener: Arc<str>,
    },
    /// As much is asked as may be.
    #[error(
        "of {} backends something is asked that the configuration does not say; write some of it there",
        MOST
    )]
    Full,
    /// Its name cannot be looked up.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

/// Whether a backend is to get connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is.
    #[default]
    Serves,
    /// It gets no new ones.
    Drained,
    /// The same, and it is only known until the configuration changes.
    Removed,
}

/// A backend with what is to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) config: BackendConfig,
    pub(super) standing: Standing,
    /// Whether an operator added it.
    pub(super) added: bool,
    /// Whether an operator asked anything of it.
    pub(super) by_operator: bool,
}

/// What an operator asked, beside what the configuration says.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    file: Arc<UpstreamConfig>,
    orders: HashMap<UpstreamAddr, Order>,
    /// How many there have been: those that are added keep their order.
    count: u64,
}

#[derive(Clone, Debug)]
struct Order {
    number: u64,
    /// What the configuration said of the backend then.
    file: Option<BackendConfig>,
    asked: Asked,
}

#[derive(Clone, Debug)]
enum Asked {
    /// It is to be so.
    Be { config: BackendConfig, drained: bool },
    /// It is not to be.
    Gone,
    /// It is one address of a name, and drained.
    AddressDrained,
}

impl Change {
    /// Of which backend.
    pub fn backend(&self) -> &UpstreamAddr {
        match self {
            Self::Add(backend, _)
            | Self::Remove(backend)
            | Self::Weigh(backend, _)
            | Self::Drain(backend)
            | Self::Undrain(backend) => backend,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(..) => f.write_str("add"),
            Self::Remove(_) => f.write_str("remove"),
            Self::Weigh(_, weight) => write!(f, "weight {weight}"),
            Self::Drain(_) => f.write_str("drain"),
            Self::Undrain(_) => f.write_str("undrain"),
        }
    }
}

impl Said {
    /// `config` with this in place of what it says.
    fn over(&self, config: BackendConfig) -> BackendConfig {
        BackendConfig {
            weight: self.weight.unwrap_or(config.weight),
            tier: self.tier.unwrap_or(config.tier),
            zone: self.zone.clone().or(config.zone),
            max_connections: self.max_connections.or(config.max_connections),
            ..config
        }
    }
}

impl Operator {
    /// Nothing is asked beside what `file` says.
    pub(super) fn new(file: &Arc<UpstreamConfig>) -> Self {
        Self { file: Arc::clone(file), orders: HashMap::new(), count: 0 }
    }

    /// Whether it goes by this configuration.
    pub(super) fn follows(&self, file: &Arc<UpstreamConfig>) -> bool {
        Arc::ptr_eq(&self.file, file)
    }

    /// The backends of the configuration, then those that were added.
    pub(super) fn backends(&self) -> Vec<Stated> {
        let mut all: Vec<_> = self.file.backends.iter().map(|config| self.stated(config)).collect();
        let mut added: Vec<_> = self.orders.values().filter(|order| order.file.is_none()).collect();
        added.sort_by_key(|order| order.number);
        all.extend(added.into_iter().filter_map(|order| match &order.asked {
            Asked::Be { config, drained } => Some(Stated::new(config, *drained, true)),
            Asked::Gone | Asked::AddressDrained => None,
        }));
        all
    }

    fn stated(&self, file: &BackendConfig) -> Stated {
        match self.orders.get(&file.address).map(|order| &order.asked) {
            Some(Asked::Be { config, drained }) => {
                Stated { by_operator: true, ..Stated::new(config, *drained, false) }
            }
            Some(Asked::Gone) => {
                Stated { standing: Standing::Removed, by_operator: true, ..Stated::new(file, false, false) }
            }
            Some(Asked::AddressDrained) | None => Stated::new(file, false, false),
        }
    }

    /// Whether this one address is drained, whatever backend has it.
    pub(super) fn drains(&self, address: &UpstreamAddr) -> bool {
        match self.orders.get(address).map(|order| &order.asked) {
            Some(Asked::Be { drained, .. }) => *drained,
            Some(Asked::AddressDrained) => true,
            Some(Asked::Gone) | None => false,
        }
    }

    /// Single addresses of names that are drained, in the order in which that was asked.
    pub(super) fn drained_addresses(&self) -> Vec<String> {
        let drained = |(_, order): &(&UpstreamAddr, &Order)| matches!(order.asked, Asked::AddressDrained);
        let mut found: Vec<_> = self.orders.iter().filter(drained).collect();
        found.sort_by_key(|(_, order)| order.number);
        found.into_iter().map(|(address, _)| address.to_string()).collect()
    }

    /// Takes an order; `name` is the backend that has its address now, where that is one of a name.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub(super) fn take(&mut self, change: &Change, name: Option<Arc<str>>) -> Result<(), OperatorError> {
        let backend = change.backend();
        let file = self.file.backends.iter().find(|config| config.address == *backend).cloned();
        let now = self.current(backend, file.as_ref());
        let asked = match (change, now) {
            (Change::Add(..), Some(_)) => return Err(OperatorError::Exists(backend.clone())),
            (Change::Add(_, said), None) => {
                let base = file.clone().unwrap_or_else(|| BackendConfig {
                    max_connections: self.file.max_connections,
                    ..BackendConfig::at(backend.clone())
                });
                Some(Asked::Be { config: said.over(base), drained: false })
            }
            (Change::Remove(_), Some(_)) => Some(Asked::Gone),
            (Change::Weigh(_, weight), Some((config, drained))) => {
                Some(Asked::Be { config: BackendConfig { weight: *weight, ..config }, drained })
            }
            (Change::Drain(_), Some((config, _))) => Some(Asked::Be { config, drained: true }),
            (Change::Undrain(_), Some((config, _))) => Some(Asked::Be { config, drained: false }),
            (Change::Drain(_), None) if name.is_some() => Some(Asked::AddressDrained),
            // One that has left its name meanwhile may be let go, too.
            (Change::Undrain(_), None) if name.is_some() || self.drains(backend) => None,
            (Change::Remove(_) | Change::Weigh(..) | Change::Drain(_) | Change::Undrain(_), None) => {
                return Err(self.unknown(backend, name));
            }
        };
        self.set(backend, file, asked)
    }

    /// What a backend is now, and whether it is drained.
    fn current(&self, backend: &UpstreamAddr, file: Option<&BackendConfig>) -> Option<(BackendConfig, bool)> {
        match self.orders.get(backend).map(|order| &order.asked) {
            Some(Asked::Be { config, drained }) => Some((config.clone(), *drained)),
            Some(Asked::Gone) => None,
            Some(Asked::AddressDrained) | None => file.map(|config| (config.clone(), false)),
        }
    }

    fn unknown(&self, backend: &UpstreamAddr, name: Option<Arc<str>>) -> OperatorError {
        match name {
            Some(name) => OperatorError::OneOfSeveral { backend: backend.clone(), name },
            None => {
                let there = self.backends().into_iter();
                let there = there.filter(|stated| stated.standing != Standing::Removed);
                let there = there.map(|stated| stated.config.address.to_string()).collect();
                OperatorError::UnknownBackend { backend: backend.clone(), there }
            }
        }
    }

    fn set(
        &mut self,
        backend: &UpstreamAddr,
        file: Option<BackendConfig>,
        asked: Option<Asked>,
    ) -> Result<(), OperatorError> {
        let asked = asked.filter(|asked| match (asked, &file) {
            (Asked::Be { config, drained }, Some(file)) => *drained || config != file,
            (Asked::Gone, file) => file.is_some(),
            (Asked::Be { .. }, None) | (Asked::AddressDrained, _) => true,
        });
        let Some(asked) = asked else {
            self.orders.remove(backend);
            return Ok(());
        };
        if let Some(order) = self.orders.get_mut(backend) {
            (order.file, order.asked) = (file, asked);
            return Ok(());
        }
        if self.orders.len() >= MOST {
            return Err(OperatorError::Full);
        }
        self.count += 1;
        self.orders.insert(backend.clone(), Order { number: self.count, file, asked });
        Ok(())
    }

    /// Goes by another configuration. Gives the backends of which this says something else than it did when an
    /// operator asked something of them: that is forgotten.
    pub(super) fn follow(&mut self, file: &Arc<UpstreamConfig>) -> Vec<UpstreamAddr> {
        let entries: HashMap<_, _> = file.backends.iter().map(|config| (&config.address, config)).collect();
        let mut dropped = Vec::new();
        self.orders.retain(|backend, order| {
            let stays = entries.get(backend).copied() == order.file.as_ref();
            if !stays {
                dropped.push((order.number, backend.clone()));
            }
            stays
        });
        self.file = Arc::clone(file);
        dropped.sort_by_key(|(number, _)| *number);
        dropped.into_iter().map(|(_, backend)| backend).collect()
    }
}

impl Stated {
    fn new(config: &BackendConfig, drained: bool, added: bool) -> Self {
        let none = drained || config.weight == 0;
        let standing = if none { Standing::Drained } else { Standing::Serves };
        Self { config: config.clone(), standing, added, by_operator: added }
    }
}

/// What there is in place of `name`.
fn hint(name: &str, there: &[String]) -> String {
    if let Some(near) = similar(name, there.iter().map(String::as_str)) {
        return format!("did you mean `{near}`?");
    }
    let told: Vec<_> = there.iter().take(TOLD).map(|name| format!("`{name}`")).collect();
    match there.len() {
        0 => "there is none".to_owned(),
        all if all > TOLD => format!("there are {}, and {} more", told.join(", "), all - TOLD),
        _ => format!("there are {}", told.join(", ")),
    }
}

#[cfg(test)]
mod tests;
