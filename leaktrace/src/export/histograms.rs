//! Histograms that were counted elsewhere, as Prometheus takes them. The `prometheus` crate's own ones count themselves.

use std::collections::{BTreeMap, HashMap};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::times::Lengths;

/// One family of histograms.
pub(super) struct Histograms {
    description: Desc,
    labels: &'static [&'static str],
    series: BTreeMap<Vec<String>, Sums>,
}

/// One histogram.
#[derive(Clone, Copy, Default)]
struct Sums {
    count: u64,
    seconds: f64,
    /// How many were shorter than each of [`EDGES_NS`].
    below: [u64; EDGES_NS.len()],
}

/// Edges of the buckets, in nanoseconds: of those that leaktrace counts in, from 16 µs to 73 minutes.
const EDGES_NS: [u64; 10] = [
    1 << 14,
    1 << 17,
    1 << 20,
    1 << 23,
    1 << 27,
    1 << 30,
    1 << 33,
    1 << 36,
    1 << 39,
    1 << 42,
];

impl Histograms {
    /// A family without series.
    ///
    /// # Errors
    /// When its name or a label is malformed.
    pub fn new(
        name: &str,
        help: &str,
        labels: &'static [&'static str],
    ) -> Result<Self, prometheus::Error> {
        let names = labels.iter().map(|label| (*label).to_owned()).collect();
        Ok(Self {
            description: Desc::new(name.to_owned(), help.to_owned(), names, HashMap::new())?,
            labels,
            series: BTreeMap::new(),
        })
    }

    /// Adds lengths of time to the series with these values of the labels.
    pub fn add(&mut self, values: &[&str], lengths: &Lengths) {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let sums = self.series.entry(values).or_default();
        sums.count = sums.count.saturating_add(lengths.count);
        sums.seconds += lengths.total_seconds;
        for bucket in &lengths.buckets {
            let Some(edge) = bucket.below_seconds else {
                continue;
            };
            for (below, edge_ns) in sums.below.iter_mut().zip(EDGES_NS) {
                if edge <= seconds(edge_ns) {
                    *below = below.saturating_add(bucket.count);
                }
            }
        }
    }
}

impl Collector for Histograms {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = self.series.iter().map(|(values, sums)| {
            let labels = self.labels.iter().zip(values).map(|(name, value)| {
                let mut label = LabelPair::default();
                label.set_name((*name).to_owned());
                label.set_value(value.clone());
                label
            });
            let buckets = EDGES_NS
                .into_iter()
                .zip(sums.below)
                .map(|(edge_ns, below)| {
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(seconds(edge_ns));
                    bucket.set_cumulative_count(below);
                    bucket
                });
            let mut histogram = Histogram::default();
            histogram.set_sample_count(sums.count);
            histogram.set_sample_sum(sums.seconds);
            histogram.set_bucket(buckets.collect());
            let mut metric = Metric::from_label(labels.collect());
            metric.set_histogram(histogram);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.description.fq_name.clone());
        family.set_help(self.description.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

#[expect(clippy::cast_precision_loss, reason = "powers of two are exact")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use leaktrace_common::histogram;
    use prometheus::{Encoder as _, Registry, TextEncoder};

    use super::*;

    #[test]
    fn lengths_are_counted_below_each_edge_and_added_up() {
        let mut waits = histogram::Histogram::default();
        for ns in [1000, 10_000, 1_000_000, 2_000_000_000, u64::MAX / 4] {
            waits.record(ns);
        }
        let lengths = Lengths::of(&waits).expect("some were seen");
        let mut all = Histograms::new("blocked_seconds", "How long.", &["site"])
            .expect("the name is well formed");
        all.add(&["a"], &lengths);
        all.add(&["a"], &lengths);
        let registry = Registry::new();
        registry
            .register(Box::new(all))
            .expect("it is the only one");
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut text)
            .expect("it is well formed");
        let text = String::from_utf8(text).expect("it is text");
        for line in [
            "# TYPE blocked_seconds histogram",
            "blocked_seconds_bucket{site=\"a\",le=\"0.000016384\"} 4",
            "blocked_seconds_bucket{site=\"a\",le=\"0.001048576\"} 6",
            "blocked_seconds_bucket{site=\"a\",le=\"1.073741824\"} 6",
            "blocked_seconds_bucket{site=\"a\",le=\"8.589934592\"} 8",
            "blocked_seconds_bucket{site=\"a\",le=\"4398.046511104\"} 8",
            "blocked_seconds_bucket{site=\"a\",le=\"+Inf\"} 10",
            "blocked_seconds_count{site=\"a\"} 10",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    /// An edge between two of leaktrace's buckets would count some on the wrong side.
    #[test]
    fn every_edge_is_one_of_the_buckets() {
        for edge in EDGES_NS {
            assert!(
                (0..histogram::BUCKETS)
                    .any(|bucket| histogram::upper_edge_ns(bucket) == Some(edge))
            );
        }
    }
}
