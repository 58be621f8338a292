//! What the clients of a listener can do, from their ClientHellos: versions, key exchanges, protocols, and how large hellos are.

use metrics::{Counter, Histogram};

use crate::peek::{ClientHello, Group, TlsVersion};
use crate::telemetry::{Family, Registry};

const HELLOS: Family = Family {
    name: "portcullis_tls_hellos_total",
    help: "ClientHellos by the highest version that they offer.",
    labels: &["listener", "version"],
};
const KEY_EXCHANGES: Family = Family {
    name: "portcullis_tls_offered_key_exchanges_total",
    help: "ClientHellos by the best key exchange that they offer.",
    labels: &["listener", "offer"],
};
const GROUPS: Family = Family {
    name: "portcullis_tls_offered_groups_total",
    help: "ClientHellos that offer a group.",
    labels: &["listener", "group"],
};
const ALPN: Family = Family {
    name: "portcullis_tls_offered_alpn_total",
    help: "ClientHellos that offer a protocol by ALPN; none: without an offer.",
    labels: &["listener", "alpn"],
};
const FEATURES: Family = Family {
    name: "portcullis_tls_offered_features_total",
    help: "ClientHellos with what not all have.",
    labels: &["listener", "feature"],
};
const SIZE: Family = Family {
    name: "portcullis_clienthello_size_bytes",
    help: "Size of ClientHellos, without the headers of their records.",
    labels: &["listener"],
};
const FRAGMENTS: Family = Family {
    name: "portcullis_clienthello_fragments_total",
    help: "ClientHellos by the number of records that they came in.",
    labels: &["listener", "records"],
};

/// The protocols with a word of their own.
const PROTOCOLS: [&str; 5] = ["h2", "http/1.1", "acme-tls/1", "postgresql", "dot"];
/// The places of the two other words for protocols.
const OTHER: usize = PROTOCOLS.len();
const NONE: usize = OTHER + 1;

/// The counters of a listener's hellos, each at the place of what it counts.
#[derive(Debug)]
pub(super) struct Census {
    versions: [Counter; TlsVersion::ALL.len()],
    key_exchanges: [Counter; Offer::ALL.len()],
    groups: [Counter; Group::ALL.len()],
    alpn: [Counter; NONE + 1],
    features: [Counter; Feature::ALL.len()],
    fragments: [Counter; 3],
    size: Histogram,
}

/// The best key exchange that a hello offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    /// One that quantum computers are not known to break, with a key for it.
    PostQuantum,
    /// The same without a key: a server that wants it asks for another hello.
    PostQuantumWithoutShare,
    /// Other groups.
    Classic,
    /// No group at all.
    None,
}

/// What only some hellos have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    Resumption,
    EarlyData,
    Ech,
    StartTls,
}

impl Census {
    pub(super) fn new(listener: &str, registry: &Registry) -> Self {
        let counter = |family: &Family, value: &str| registry.counter(family, &[listener, value]);
        let alpn = |at: usize| match PROTOCOLS.get(at) {
            Some(name) => counter(&ALPN, name),
            None => counter(&ALPN, if at == OTHER { "other" } else { "none" }),
        };
        Self {
            versions: TlsVersion::ALL.map(|version| counter(&HELLOS, version.as_str())),
            key_exchanges: Offer::ALL.map(|offer| counter(&KEY_EXCHANGES, offer.as_str())),
            groups: Group::ALL.map(|group| counter(&GROUPS, group.as_str())),
            alpn: std::array::from_fn(alpn),
            features: Feature::ALL.map(|feature| counter(&FEATURES, feature.as_str())),
            fragments: ["1", "2", "3+"].map(|records| counter(&FRAGMENTS, records)),
            size: registry.histogram(&SIZE, &[listener]),
        }
    }

    /// Counts a hello.
    pub(super) fn count(&self, hello: &ClientHello) {
        let versions = hello.versions.iter().map(|version| TlsVersion::of(*version));
        add(&self.versions, versions.max().unwrap_or(TlsVersion::Other) as usize);
        add(&self.key_exchanges, Offer::of(hello) as usize);
        add_all(&self.groups, Group::offered(&hello.groups).fold(0, |set, group| set | 1 << group as u32));
        add_all(&self.alpn, protocols(hello));
        for feature in Feature::ALL {
            if feature.is_in(hello) {
                add(&self.features, feature as usize);
            }
        }
        add(&self.fragments, usize::from(hello.records.clamp(1, 3)) - 1);
        // No hello is so large that a float could not tell its size.
        self.size.record(u32::try_from(hello.size).unwrap_or(u32::MAX));
    }
}

fn add(counters: &[Counter], at: usize) {
    if let Some(counter) = counters.get(at) {
        counter.increment(1);
    }
}

/// Counts once at each place whose bit is set.
fn add_all(counters: &[Counter], places: u32) {
    let set = counters.iter().enumerate().filter(|(at, _)| places >> at & 1 == 1);
    set.for_each(|(_, counter)| counter.increment(1));
}

/// The protocols that are offered, a bit each.
fn protocols(hello: &ClientHello) -> u32 {
    if hello.alpn.is_empty() {
        return 1 << NONE;
    }
    let place = |offer: &[u8]| PROTOCOLS.iter().position(|name| name.as_bytes() == offer).unwrap_or(OTHER);
    hello.alpn.iter().fold(0, |set, offer| set | 1 << place(offer))
}

impl Offer {
    const ALL: [Self; 4] = [Self::PostQuantum, Self::PostQuantumWithoutShare, Self::Classic, Self::None];

    fn of(hello: &ClientHello) -> Self {
        let post_quantum = |groups: &[u16]| Group::offered(groups).any(Group::is_post_quantum);
        if post_quantum(&hello.key_shares) {
            Self::PostQuantum
        } else if post_quantum(&hello.groups) {
            Self::PostQuantumWithoutShare
        } else if Group::offered(&hello.groups).next().is_some() {
            Self::Classic
        } else {
            Self::None
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::PostQuantum => "post_quantum",
            Self::PostQuantumWithoutShare => "post_quantum_without_share",
            Self::Classic => "classic",
            Self::None => "none",
        }
    }
}

impl Feature {
    const ALL: [Self; 4] = [Self::Resumption, Self::EarlyData, Self::Ech, Self::StartTls];

    fn is_in(self, hello: &ClientHello) -> bool {
        match self {
            Self::Resumption => hello.resumption,
            Self::EarlyData => hello.early_data,
            Self::Ech => hello.ech,
            Self::StartTls => hello.within.is_some(),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Resumption => "resumption",
            Self::EarlyData => "early_data",
            Self::Ech => "ech",
            Self::StartTls => "starttls",
        }
    }
}
