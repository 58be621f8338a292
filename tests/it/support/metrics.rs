//! The Prometheus text format, as far as the tests read it.

/// All samples of one scrape.
#[derive(Debug)]
pub(crate) struct Metrics(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let value = value.parse().unwrap_or_else(|_| panic!("no value: {line}"));
            Sample { name: name.to_owned(), labels: format!(",{}", labels.trim_end_matches('}')), value }
        });
        Self(samples.collect())
    }

    /// The sum of the samples called `name` that have all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.contains(&format!(",{key}=\"{value}\"")))
        };
        self.0.iter().filter(|sample| has(sample)).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// Whether there is a metric of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }
}
