//! What becomes of the requests of a route, ready to be looked up.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::files::Files;
use super::metrics::Metrics;
use super::rate::RateLimiter;
use super::rules::Rules;
use crate::config::{BackendHttp, HttpConfig, PassthroughConfig, RequestAction, RuleConfig, VariantConfig};
use crate::net::{IdleLimits, ProxyVersion};
use crate::telemetry::Registry;
use crate::upstream::{Pools, Resolver, Upstream};

/// What becomes of the requests of a route.
#[derive(Debug)]
pub struct Site {
    /// As it is configured.
    pub config: Arc<HttpConfig>,
    pub(super) rules: Rules,
    /// By rule, and by its variants.
    targets: Vec<Vec<Destination>>,
    files: Vec<Option<Files>>,
    limiters: Vec<Option<RateLimiter>>,
    pub(super) metrics: Metrics,
}

/// Where requests go.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) name: Arc<str>,
    pub(super) weight: u32,
    pub(super) upstream: Upstream,
    pub(super) version: BackendHttp,
    /// The PROXY header that it is sent first.
    pub(super) proxy_protocol: Option<ProxyVersion>,
    pub(super) connect_timeout: Duration,
    pub(super) idle: IdleLimits,
}

impl Destination {
    /// Whether a connection to it may serve requests of more than one client.
    pub(super) fn is_shared(&self) -> bool {
        self.proxy_protocol.is_none() && !self.upstream.is_transparent()
    }
}

impl Site {
    /// The requests of the route of this name, with backends of `pools`.
    pub fn new(
        route: &Arc<str>,
        config: &Arc<HttpConfig>,
        pools: &Pools,
        resolver: &mut Resolver,
        registry: &Registry,
    ) -> Self {
        let mut target = |variant: &VariantConfig| {
            let to: &PassthroughConfig = &variant.to;
            Some(Destination {
                name: Arc::clone(&variant.name),
                weight: variant.weight,
                upstream: Upstream::new(pools.find(&to.upstream.name)?, (route, to), resolver, registry),
                version: variant.version,
                proxy_protocol: to.proxy_protocol,
                connect_timeout: to.connect_timeout,
                idle: IdleLimits { open: to.idle_timeout, half_closed: to.half_closed_timeout },
            })
        };
        let mut of_rule = |rule: &RuleConfig| rule.action.variants().iter().filter_map(&mut target).collect();
        Self {
            rules: Rules::new(&config.rules),
            targets: config.rules.iter().map(&mut of_rule).collect(),
            files: config
                .rules
                .iter()
                .map(|rule| match &rule.action {
                    RequestAction::Files(files) => Some(Files::new(files)),
                    RequestAction::Proxy(_) | RequestAction::Redirect(_) | RequestAction::Answer(_) => None,
                })
                .collect(),
            limiters: config
                .rules
                .iter()
                .map(|rule| rule.policies.rate.as_ref().map(RateLimiter::new))
                .collect(),
            metrics: Metrics::new(route, registry),
            config: Arc::clone(config),
        }
    }

    /// The rule of this index.
    pub(super) fn rule(&self, index: usize) -> Option<&RuleConfig> {
        self.config.rules.get(index)
    }

    /// Where requests of that rule go.
    pub(super) fn targets(&self, index: usize) -> &[Destination] {
        self.targets.get(index).map_or(&[], Vec::as_slice)
    }

    /// Whether what this peer says of the client is believed.
    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        self.config.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    /// What limits the requests of that rule.
    pub(super) fn limiter(&self, index: usize) -> Option<&RateLimiter> {
        self.limiters.get(index)?.as_ref()
    }

    /// The files of that rule.
    pub(super) fn files(&self, index: usize) -> Option<&Files> {
        self.files.get(index)?.as_ref()
    }
}
