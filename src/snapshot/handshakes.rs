//! The handshakes of a route, counted by what was agreed on.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use metrics::Counter;

use crate::peek::{Answer, Handshake};
use crate::telemetry::{Family, Registry};

const HANDSHAKES: Family = Family {
    name: "portcullis_tls_handshakes_total",
    help: "TLS handshakes by what was agreed on; unknown: the server's first bytes did not tell.",
    labels: &["route", "version", "group", "resumed"],
};
const RETRIES: Family = Family {
    name: "portcullis_tls_hello_retries_total",
    help: "ClientHellos that a server asked to be sent again with a key for another group.",
    labels: &["route"],
};
const FAILURES: Family = Family {
    name: "portcullis_tls_hello_refusals_total",
    help: "ClientHellos that a server answered with an alert.",
    labels: &["route", "reason"],
};
/// The alerts that have a word of their own (RFC 8446 §6), each with it.
const ALERTS: [(u8, &str); 9] = [
    (40, "handshake_failure"),
    (47, "illegal_parameter"),
    (50, "decode_error"),
    (70, "protocol_version"),
    (71, "insufficient_security"),
    (80, "internal_error"),
    (109, "missing_extension"),
    (112, "unrecognized_name"),
    (120, "no_application_protocol"),
];

/// The counters of a route's handshakes. A few of the hundreds that there could be are ever used, so each is made when it is
/// first wanted, and found again in a list.
pub struct Handshakes {
    route: Arc<str>,
    registry: Arc<Registry>,
    known: ArcSwapOption<Vec<(Answer, Counter)>>,
}

impl Handshakes {
    pub(super) fn new(route: &Arc<str>, registry: &Arc<Registry>) -> Self {
        Self { route: Arc::clone(route), registry: Arc::clone(registry), known: ArcSwapOption::empty() }
    }

    /// A handshake that ended here, or the one that a server's answer tells of.
    pub fn done(&self, handshake: Handshake) {
        self.answered(Answer::Chosen(handshake));
    }

    /// A server has answered a ClientHello.
    pub fn answered(&self, answer: Answer) {
        // Alerts without a word of their own are one.
        let answer = match answer {
            Answer::Refused(alert) if word(alert).is_none() => Answer::Refused(0),
            answer => answer,
        };
        let known = self.known.load();
        let mut counters = known.iter().flat_map(|known| known.iter());
        if let Some((_, counter)) = counters.find(|(of, _)| *of == answer) {
            return counter.increment(1);
        }
        let counter = self.counter(answer);
        counter.increment(1);
        // Two threads may have made it: it is the same one twice.
        self.known.rcu(|known| {
            let known = known.iter().flat_map(|known| known.iter().cloned());
            Some(Arc::new(known.chain([(answer, counter.clone())]).collect()))
        });
    }

    fn counter(&self, answer: Answer) -> Counter {
        let route = &*self.route;
        match answer {
            Answer::Chosen(handshake) => {
                let [version, group, resumed] = handshake.words();
                self.registry.counter(&HANDSHAKES, &[route, version, group, resumed])
            }
            Answer::Retry => self.registry.counter(&RETRIES, &[route]),
            Answer::Refused(alert) => {
                self.registry.counter(&FAILURES, &[route, word(alert).unwrap_or("other")])
            }
        }
    }
}

impl std::fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshakes").field("route", &self.route).finish_non_exhaustive()
    }
}

fn word(alert: u8) -> Option<&'static str> {
    ALERTS.iter().find(|(number, _)| *number == alert).map(|(_, word)| *word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peek::{Group, KeyExchange, TlsVersion};

    #[test]
    fn what_is_counted_again_finds_its_counter() {
        let registry = Arc::new(Registry::new().unwrap());
        let handshakes = Handshakes::new(&"app".into(), &registry);
        let modern = Handshake {
            version: Some(TlsVersion::Tls13),
            key_exchange: Some(KeyExchange::Group(Group::X25519Mlkem768)),
            resumed: Some(false),
        };
        let of = |answer| (0..3).for_each(|_| handshakes.answered(answer));
        of(Answer::Chosen(modern));
        of(Answer::Chosen(Handshake::default()));
        of(Answer::Retry);
        of(Answer::Refused(40));
        of(Answer::Refused(1));
        of(Answer::Refused(2));
        assert_eq!(handshakes.known.load().as_ref().unwrap().len(), 5);
        let text = registry.render();
        for line in [
            "handshakes_total{route=\"app\",version=\"1.3\",group=\"x25519mlkem768\",resumed=\"no\"} 3",
            "handshakes_total{route=\"app\",version=\"unknown\",group=\"unknown\",resumed=\"unknown\"} 3",
            "hello_retries_total{route=\"app\"} 3",
            "hello_refusals_total{route=\"app\",reason=\"handshake_failure\"} 3",
            "hello_refusals_total{route=\"app\",reason=\"other\"} 6",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
