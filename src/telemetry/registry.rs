//! The registry of metrics: handles are made once, by the module that records them, and passed down.

use std::fmt;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use metrics_process::Collector;

/// Bounds in seconds of what takes from a scheduler tick to a patient client's limit.
const STAGE_SECONDS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds in seconds of how long connections last.
const CONNECTION_SECONDS: [f64; 12] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

/// Bounds in bytes of ClientHellos: classic ones have some 250 to 600, those with a post-quantum key share 1,500 to 2,000.
const HELLO_BYTES: [f64; 9] = [256.0, 512.0, 768.0, 1024.0, 1536.0, 2048.0, 4096.0, 8192.0, 16_384.0];

/// A family of metrics: its name, what it says, and the names of its labels. Declared beside the module that
/// records it; label values come from the configuration or a fixed enumeration, never from a peer.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The name, with its unit and `_total` where it counts.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// The label names, in the order in which values are given.
    pub labels: &'static [&'static str],
}

/// All metrics of one process.
pub struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: Collector,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// An empty registry with the bounds of all histograms.
    ///
    /// # Errors
    /// Never in practice: when the bounds of a histogram are empty.
    pub fn new() -> Result<Self, BuildError> {
        let longest = Matcher::Full("portcullis_connection_duration_seconds".to_owned());
        let hellos = Matcher::Full("portcullis_clienthello_size_bytes".to_owned());
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(longest, &CONNECTION_SECONDS)?
            .set_buckets_for_metric(hellos, &HELLO_BYTES)?
            .set_buckets(&STAGE_SECONDS)?
            .build_recorder();
        let handle = recorder.handle();
        let registry = Self { recorder, handle, process: Collector::default() };
        metrics::with_local_recorder(&registry.recorder, || registry.process.describe());
        Ok(registry)
    }

    /// The counter of `family` with these label values.
    pub fn counter(&self, family: &Family, values: &[&str]) -> Counter {
        let name = KeyName::from_const_str(family.name);
        self.recorder.describe_counter(name, None, SharedString::const_str(family.help));
        self.recorder.register_counter(&key(family, values), &METADATA)
    }

    /// The gauge of `family` with these label values.
    pub fn gauge(&self, family: &Family, values: &[&str]) -> Gauge {
        let name = KeyName::from_const_str(family.name);
        self.recorder.describe_gauge(name, None, SharedString::const_str(family.help));
        self.recorder.register_gauge(&key(family, values), &METADATA)
    }

    /// The histogram of `family` with these label values.
    pub fn histogram(&self, family: &Family, values: &[&str]) -> Histogram {
        let name = KeyName::from_const_str(family.name);
        self.recorder.describe_histogram(name, None, SharedString::const_str(family.help));
        self.recorder.register_histogram(&key(family, values), &METADATA)
    }

    /// Folds what histograms recorded since the last time; without it their memory grows until a scrape.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// All metrics in the Prometheus text format, those of the process read anew.
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }
}

static METADATA: Metadata<'static> = Metadata::new("portcullis", Level::INFO, None);

fn key(family: &Family, values: &[&str]) -> Key {
    debug_assert_eq!(family.labels.len(), values.len(), "labels of {}", family.name);
    let labels = family.labels.iter().zip(values);
    let labels = labels.map(|(name, value)| Label::new(*name, (*value).to_owned())).collect::<Vec<_>>();
    Key::from_parts(family.name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_histograms_are_rendered_with_their_labels() {
        const DONE: Family = Family { name: "test_done_total", help: "Things done.", labels: &["route"] };
        const TOOK: Family = Family { name: "test_duration_seconds", help: "Time.", labels: &[] };
        let registry = Registry::new().unwrap();
        registry.counter(&DONE, &["a"]).increment(2);
        registry.histogram(&TOOK, &[]).record(0.003);
        registry.upkeep();
        let text = registry.render();
        assert!(text.contains("# HELP test_done_total Things done."), "{text}");
        assert!(text.contains("test_done_total{route=\"a\"} 2"), "{text}");
        assert!(text.contains("test_duration_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("process_open_fds"), "{text}");
    }
}
