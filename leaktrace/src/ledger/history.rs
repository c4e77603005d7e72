//! How many were alive at a site over time, in bounded memory.

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// How many were alive.
    pub count: u64,
}

/// Readings at several paces: the last ones all, older ones ever fewer, and a few over the whole time.
#[derive(Clone, Debug, Default)]
pub struct History {
    recent: [Vec<Sample>; PACES.len()],
    /// How many of each were forgotten.
    forgotten: [bool; PACES.len()],
    whole: Vec<Sample>,
    /// Least time between two readings in `whole`, nanoseconds.
    whole_pace_ns: u64,
}

/// Least time between two readings, in nanoseconds: at one in five seconds these hold 5 minutes, 20 minutes and 3 hours.
const PACES: [u64; 3] = [0, 20_000_000_000, 180_000_000_000];

/// Readings kept at each pace, and of the whole time.
const MOST: usize = 64;

/// How far back growth looks, in nanoseconds: what a site did yesterday says little of how fast it grows now.
const GROWTH_NS: u64 = 900_000_000_000;

impl History {
    /// Adds a reading; readings come in the order of time.
    pub fn push(&mut self, sample: Sample) {
        let due = |last: Option<&Sample>, pace: u64| {
            last.is_none_or(|last| sample.at_ns.saturating_sub(last.at_ns) >= pace)
        };
        for ((readings, forgotten), pace) in
            (self.recent.iter_mut().zip(&mut self.forgotten)).zip(PACES)
        {
            if due(readings.last(), pace) {
                if readings.len() == MOST {
                    readings.remove(0);
                    *forgotten = true;
                }
                readings.push(sample);
            }
        }
        if due(self.whole.last(), self.whole_pace_ns) {
            if self.whole.len() == MOST {
                let mut keep = false;
                self.whole.retain(|_| {
                    keep = !keep;
                    keep
                });
                let first = self.whole.first().map_or(0, |first| first.at_ns);
                self.whole_pace_ns = sample.at_ns.saturating_sub(first) / (MOST as u64 / 2);
            }
            self.whole.push(sample);
        }
    }

    /// The readings from `from_ns` on at the finest pace that reaches back so far, oldest first, with one from before.
    #[must_use]
    pub fn since(&self, from_ns: u64) -> &[Sample] {
        let reaches = |(readings, forgotten): &(&Vec<Sample>, &bool)| {
            !**forgotten || readings.first().is_some_and(|first| first.at_ns <= from_ns)
        };
        let mut paces = self.recent.iter().zip(&self.forgotten);
        let readings = paces
            .find(reaches)
            .map_or(&self.whole, |(readings, _)| readings);
        let later = readings.partition_point(|sample| sample.at_ns <= from_ns);
        readings.get(later.saturating_sub(1)..).unwrap_or_default()
    }

    /// The readings over the whole time, oldest first.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        self.since(0)
    }

    /// How much a minute the count grew, in the last quarter of an hour: the median of the slopes between all pairs of
    /// readings (Theil and Sen), so that odd readings do not matter. 0 when there are too few readings to say.
    #[must_use]
    pub fn growth_per_minute(&self) -> f64 {
        let now_ns = match self.recent.first().and_then(|readings| readings.last()) {
            Some(last) => last.at_ns,
            None => return 0.0,
        };
        slope_per_minute(self.since(now_ns.saturating_sub(GROWTH_NS)))
    }
}

/// The median of the slopes between all pairs of readings, a minute.
fn slope_per_minute(samples: &[Sample]) -> f64 {
    if samples.len() < 3 {
        return 0.0;
    }
    let mut slopes = Vec::with_capacity(samples.len() * (samples.len() - 1) / 2);
    for (number, earlier) in samples.iter().enumerate() {
        for later in samples.iter().skip(number + 1) {
            #[expect(
                clippy::cast_precision_loss,
                reason = "counts and nanoseconds of one run fit a double's 53 bits"
            )]
            let (grown, elapsed_ns) = (
                later.count as f64 - earlier.count as f64,
                later.at_ns.saturating_sub(earlier.at_ns) as f64,
            );
            if elapsed_ns > 0.0 {
                slopes.push(grown / elapsed_ns * 60e9);
            }
        }
    }
    let middle = slopes.len() / 2;
    if middle >= slopes.len() {
        return 0.0;
    }
    *slopes.select_nth_unstable_by(middle, f64::total_cmp).1
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
        assert!(last > 82_000, "{last}");
        let growth = history.growth_per_minute();
        assert!((growth - 60.0).abs() < 1.0, "{growth}");
    }

    #[test]
    fn what_is_recent_is_known_more_finely() {
        let history = history(0..86_400);
        let end = 86_399 * SECOND;
        for (back, fewest) in [(60, 60), (600, 29), (7200, 39)] {
            let since = history.since(end - back * SECOND);
            assert!(since.len() >= fewest, "{back} s: {}", since.len());
            let first = since.first().map_or(u64::MAX, |first| first.at_ns);
            assert!(first <= end - back * SECOND, "{back} s");
        }
    }
}
