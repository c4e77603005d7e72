//! How many were alive at a site over time, in bounded memory.

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// How many were alive.
    pub count: u64,
}

/// Readings from the first to the last. When there are too many, every second one goes and new ones are taken
/// half as often, so that the whole time stays covered.
#[derive(Clone, Debug, Default)]
pub struct History {
    samples: Vec<Sample>,
    /// Take one reading of this many (a power of two).
    stride: u32,
    skipped: u32,
}

/// Readings kept: an hour at one a second is thinned to one in 32 seconds.
const MOST: usize = 128;

impl History {
    /// Adds a reading; readings come in the order of time.
    pub fn push(&mut self, sample: Sample) {
        if self.stride == 0 {
            self.stride = 1;
        }
        self.skipped += 1;
        if self.skipped < self.stride {
            return;
        }
        self.skipped = 0;
        if self.samples.len() == MOST {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = self.stride.saturating_mul(2);
        }
        self.samples.push(sample);
    }

    /// The readings, oldest first.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// How much a minute the count grew: from the median of the first third of the readings to the median of the
    /// last, so that one odd reading does not matter. 0 when there are too few readings to say.
    #[must_use]
    pub fn growth_per_minute(&self) -> f64 {
        let third = self.samples.len() / 3;
        let (Some(first), Some(last)) = (
            self.samples.get(..third),
            self.samples.get(self.samples.len() - third..),
        ) else {
            return 0.0;
        };
        let (Some(first), Some(last)) = (median(first), median(last)) else {
            return 0.0;
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts and nanoseconds of one run fit a double's 53 bits"
        )]
        let (grown, elapsed_ns) = (
            last.count as f64 - first.count as f64,
            last.at_ns.saturating_sub(first.at_ns) as f64,
        );
        if elapsed_ns > 0.0 {
            grown / elapsed_ns * 60e9
        } else {
            0.0
        }
    }
}

/// The median count, at the middle of the time.
fn median(samples: &[Sample]) -> Option<Sample> {
    let mut counts: Vec<u64> = samples.iter().map(|sample| sample.count).collect();
    counts.sort_unstable();
    let middle = samples.len() / 2;
    Some(Sample {
        at_ns: samples.get(middle)?.at_ns,
        count: *counts.get(middle)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn history(counts: impl IntoIterator<Item = u64>) -> History {
        let mut history = History::default();
        for (second, count) in (0..).zip(counts) {
            history.push(Sample {
                at_ns: second * SECOND,
                count,
            });
        }
        history
    }

    #[test]
    fn one_a_second_grows_by_sixty_a_minute() {
        let growth = history(0..60).growth_per_minute();
        assert!((growth - 60.0).abs() < 0.01, "{growth}");
    }

    #[test]
    fn a_spike_is_not_growth() {
        let growth = history((0..60).map(|n| if n == 59 { 1000 } else { 5 })).growth_per_minute();
        assert!(growth.abs() < f64::EPSILON, "{growth}");
    }

    #[test]
    fn nothing_grows_without_readings() {
        assert!(history([]).growth_per_minute().abs() < f64::EPSILON);
        assert!(history([1, 2]).growth_per_minute().abs() < f64::EPSILON);
    }

    #[test]
    fn a_day_of_readings_stays_small_and_covers_the_day() {
        let history = history(0..86_400);
        assert!(history.samples().len() <= MOST);
        assert_eq!(history.samples().first().map(|first| first.at_ns), Some(0));
        let last = history.samples().last().map_or(0, |last| last.count);
        assert!(last > 84_000, "{last}");
        let growth = history.growth_per_minute();
        assert!((growth - 60.0).abs() < 1.0, "{growth}");
    }
}
