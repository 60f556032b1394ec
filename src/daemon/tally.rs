//! Counters by labels that are all known from the start, and times by classes: what counts takes no lock, and no label is made while the daemon runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

/// A label and all values that it may have. The last one stands for whatever is none of them.
pub(super) type Axis = (&'static str, Vec<&'static str>);

/// One counter for each combination of values.
#[derive(Debug, Clone)]
pub(super) struct Table<const N: usize> {
    axes: Arc<[Axis; N]>,
    /// In the order of an odometer: the last axis runs fastest.
    counters: Arc<[Counter]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(axes: [Axis; N]) -> Table<N> {
        let count = axes.iter().map(|(_, values)| values.len()).product();
        Table { axes: Arc::new(axes), counters: (0..count).map(|_| Counter::default()).collect() }
    }

    /// Counts one more.
    pub(super) fn inc(&self, values: [&str; N]) {
        let place = self.axes.iter().zip(values).fold(0, |place, ((_, known), value)| {
            let found = known.iter().position(|known| *known == value);
            place * known.len() + found.unwrap_or(known.len().saturating_sub(1))
        });
        if let Some(counter) = self.counters.get(place) {
            counter.inc();
        }
    }
}

impl<const N: usize> EncodeMetric for Table<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (place, counter) in self.counters.iter().enumerate() {
            let mut left = place;
            let mut labels = [("", ""); N];
            for ((name, values), label) in self.axes.iter().zip(&mut labels).rev() {
                *label = (*name, values[left % values.len()]);
                left /= values.len();
            }
            counter.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// The upper bounds of the classes that times are counted in, in microseconds. Each belongs to its class; what is longer
/// than the last is counted in a class without one.
const BOUNDS: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// How long something took, each time.
#[derive(Debug, Clone, Default)]
pub(super) struct Times(Arc<Classes>);

#[derive(Debug, Default)]
struct Classes {
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Times {
    /// Notes one.
    pub(super) fn note(&self, took: Duration) {
        let Classes { counts, nanos } = &*self.0;
        let class = BOUNDS.iter().position(|bound| took <= Duration::from_micros(*bound));
        counts[class.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        // Five hundred years until it is too much.
        nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Classes { counts, nanos } = &*self.0;
        let bounds = BOUNDS.iter().map(|bound| Duration::from_micros(*bound).as_secs_f64());
        let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
        let classes: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        let count = classes.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(nanos.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &classes, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::{Metric, Registry};

    fn text(metric: impl Metric) -> String {
        let mut registry = Registry::default();
        registry.register("it", "It", metric);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn each_combination_is_there_at_once_and_what_is_not_known_is_counted_with_the_last() {
        let table = Table::new([("a", vec!["x", "y", "-"]), ("b", vec!["1", "other"])]);
        let all = |counts: [u64; 6]| {
            let [x1, xo, y1, yo, o1, oo] = counts;
            format!(
                "# HELP it It.\n# TYPE it counter\n\
                 it_total{{a=\"x\",b=\"1\"}} {x1}\nit_total{{a=\"x\",b=\"other\"}} {xo}\n\
                 it_total{{a=\"y\",b=\"1\"}} {y1}\nit_total{{a=\"y\",b=\"other\"}} {yo}\n\
                 it_total{{a=\"-\",b=\"1\"}} {o1}\nit_total{{a=\"-\",b=\"other\"}} {oo}\n# EOF\n"
            )
        };
        assert_eq!(text(table.clone()), all([0; 6]));
        for values in [["y", "1"], ["y", "1"], ["y", "2"], ["a\"} 7\n", "1"], ["", ""], ["x", "1"]] {
            table.inc(values);
        }
        assert_eq!(text(table), all([1, 0, 2, 1, 1, 1]));
    }

    #[test]
    fn a_time_belongs_to_the_class_that_it_bounds_and_one_beyond_all_bounds_is_counted_too() {
        let times = Times::default();
        let last = Duration::from_micros(BOUNDS[BOUNDS.len() - 1]);
        let nano = Duration::from_nanos(1);
        for took in
            [Duration::ZERO, Duration::from_micros(10), Duration::from_micros(10) + nano, last, last + nano]
        {
            times.note(took);
        }
        let text = text(times);
        for line in [
            "it_bucket{le=\"0.00001\"} 2",
            "it_bucket{le=\"0.000025\"} 3",
            "it_bucket{le=\"5.0\"} 3",
            "it_bucket{le=\"10.0\"} 4",
            "it_bucket{le=\"+Inf\"} 5",
            "it_count 5",
            "it_sum 20.000020002",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in {text}");
        }
        assert!(BOUNDS.is_sorted());
    }
}
