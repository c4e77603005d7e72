//! How many were alive in the last minute, hour or day, and how old they are that still are.
//!
//! A count that rises may be a crowd that comes and goes. So two things are asked together: did the lowest count of each
//! window rise, and are those that came in each window still there? Neither noise nor waves of load pass both.

use super::config::RiseConfig;
use crate::ledger::Sample;

/// Windows into which a span is cut.
pub const WINDOWS: usize = 5;

/// Spans that are looked at, in nanoseconds: short ones find what is fast, long ones what is slow.
pub const SPANS: [u64; 6] = [
    12_000_000_000,
    45_000_000_000,
    300_000_000_000,
    1_800_000_000_000,
    10_800_000_000_000,
    86_400_000_000_000,
];

/// How many of the things alive now began something in each window of each span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Of each span: before it began, and in each of its windows, oldest first.
    counts: [[u64; WINDOWS + 1]; SPANS.len()],
}

impl Profile {
    /// Counts one thing that began `age_ns` ago, in the first `spans` spans: longer ones were not watched.
    pub fn add(&mut self, age_ns: u64, spans: usize) {
        for (counts, span_ns) in self.counts.iter_mut().zip(SPANS).take(spans) {
            let window = age_ns / (span_ns / WINDOWS as u64);
            let back = usize::try_from(window).unwrap_or(WINDOWS).min(WINDOWS);
            if let Some(count) = counts.get_mut(WINDOWS - back) {
                *count += 1;
            }
        }
    }

    fn of(&self, span: usize) -> [u64; WINDOWS + 1] {
        self.counts.get(span).copied().unwrap_or_default()
    }
}

/// What is known of one site over one span of time that ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its length.
    pub ns: u64,
    /// The lowest count of each window, oldest first.
    pub floors: [u64; WINDOWS],
    /// How many were alive when it began.
    pub then: u64,
    /// Of those alive now: born before it, and in each window.
    pub born: [u64; WINDOWS + 1],
    /// Of those alive now and not moving: since before it, and since each window.
    pub stuck: [u64; WINDOWS + 1],
}

/// What is the matter with a site whose count rises and whose things stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rise {
    /// The lowest count of the first window.
    pub from: u64,
    /// The lowest count of the last window.
    pub to: u64,
    /// How long it took.
    pub seconds: u64,
}

/// The spans that lie in the time of observation, shortest first. `samples(from)` gives the readings from then on, with one
/// from before where there is one.
pub fn spans<'s>(
    samples: impl Fn(u64) -> &'s [Sample],
    (watched_since_ns, now_ns): (u64, u64),
    born: &Profile,
    stuck: &Profile,
) -> Vec<Span> {
    let mut spans = Vec::new();
    for (number, ns) in SPANS.into_iter().enumerate() {
        let Some(from_ns) = now_ns
            .checked_sub(ns)
            .filter(|from| *from >= watched_since_ns)
        else {
            break;
        };
        if let Some((floors, then)) = floors(samples(from_ns), from_ns, ns) {
            spans.push(Span {
                ns,
                floors,
                then,
                born: born.of(number),
                stuck: stuck.of(number),
            });
        }
    }
    spans
}

/// The lowest count in each window, and the count when the span began; `None` when a window has no reading.
fn floors(samples: &[Sample], from_ns: u64, ns: u64) -> Option<([u64; WINDOWS], u64)> {
    let mut floors = [None; WINDOWS];
    let mut then = 0;
    let mut begins_ns = u64::MAX;
    for sample in samples {
        begins_ns = begins_ns.min(sample.at_ns);
        let Some(into_ns) = sample.at_ns.checked_sub(from_ns).filter(|into| *into > 0) else {
            then = sample.count;
            continue;
        };
        let window = usize::try_from(into_ns.saturating_sub(1) / (ns / WINDOWS as u64)).ok()?;
        let floor = floors.get_mut(window.min(WINDOWS - 1))?;
        *floor = Some(floor.map_or(sample.count, |floor: u64| floor.min(sample.count)));
    }
    // A line that had not been met then had none.
    let mut before = begins_ns > from_ns;
    let mut known = [0; WINDOWS];
    for (known, floor) in known.iter_mut().zip(floors) {
        match floor {
            Some(floor) => {
                *known = floor;
                before = false;
            }
            None if before => {}
            None => return None,
        }
    }
    Some((known, then))
}

impl Span {
    /// Its length in seconds.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.ns / 1_000_000_000
    }

    /// Whether more and more came and never left: by when they were born.
    #[must_use]
    pub fn rise(&self, config: &RiseConfig) -> Option<Rise> {
        self.rise_of(&self.born, config.least, config)
    }

    /// The same where fewer are enough, because there is another sign.
    #[must_use]
    pub fn rise_of_few(&self, config: &RiseConfig) -> Option<Rise> {
        self.rise_of(&self.born, config.least_strong, config)
    }

    /// Whether more and more came, stopped moving, and never left.
    #[must_use]
    pub fn stuck_rise(&self, config: &RiseConfig) -> Option<Rise> {
        self.rise_of(&self.stuck, config.least, config)
    }

    /// The same where fewer are enough, because healthy programs do not rest there.
    #[must_use]
    pub fn strong_rise(&self, config: &RiseConfig) -> Option<Rise> {
        self.rise_of(&self.stuck, config.least_strong, config)
    }

    fn rise_of(
        &self,
        stayed: &[u64; WINDOWS + 1],
        least: u64,
        config: &RiseConfig,
    ) -> Option<Rise> {
        let [first, .., before_last, last] = self.floors;
        let grown = last.saturating_sub(first);
        let dip = part(grown, config.dip);
        let rises = self
            .floors
            .windows(2)
            .filter(|pair| pair[0] < pair[1])
            .count();
        let dips = self
            .floors
            .windows(2)
            .any(|pair| pair[1].saturating_add(dip) < pair[0]);
        if grown < least.max(part(first, config.least_part))
            || rises < 3
            || dips
            || last <= before_last
        {
            return None;
        }
        // Some of each window stayed, and those of all but the last, which holds what only passes, make up the growth.
        let [_, windows @ .., newest] = stayed;
        let staying: u64 = windows.iter().sum();
        if windows.iter().filter(|count| **count > 0).count() < WINDOWS - 2
            || staying < part(grown, 0.6)
        {
            return None;
        }
        // Of those that were there when it began, hardly any has left. What comes and goes all the time is not counted: as
        // many as now are newer than the others and chance explain will have been passing then, or up to twice as many.
        let passing = newest
            .saturating_sub(staying / (WINDOWS as u64 - 1))
            .saturating_sub(newest.isqrt().saturating_mul(3));
        let left = self.then.saturating_sub(self.born[0]);
        if left > part(grown, config.lost).saturating_add(passing.saturating_mul(2)) {
            return None;
        }
        Some(Rise {
            from: first,
            to: last,
            seconds: self.seconds(),
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of live things fit a double's 53 bits, and a negative part is none"
)]
fn part(count: u64, part: f64) -> u64 {
    (count as f64 * part).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn span(floors: [u64; WINDOWS], then: u64, stayed: [u64; WINDOWS + 1]) -> Span {
        Span {
            ns: 45 * SECOND,
            floors,
            then,
            born: stayed,
            stuck: stayed,
        }
    }

    #[test]
    fn what_comes_and_stays_rises() {
        let rise = span([0, 9, 18, 27, 36], 0, [0, 9, 9, 9, 9, 9]).rise(&RiseConfig::default());
        assert_eq!(rise.map(|rise| (rise.from, rise.to)), Some((0, 36)));
    }

    #[test]
    fn what_comes_and_goes_does_not() {
        // The count rises by chance, but hardly anybody of then is still there.
        let crowd = span([100, 102, 104, 106, 108], 100, [10, 5, 8, 15, 30, 40]);
        assert_eq!(crowd.rise(&RiseConfig::default()), None);
        // The count rises, and all are young.
        let young = span([100, 120, 140, 160, 180], 100, [0, 0, 0, 0, 0, 180]);
        assert_eq!(young.rise(&RiseConfig::default()), None);
    }

    #[test]
    fn a_leak_under_churn_rises() {
        // 200 come and go all the time; one a second stays.
        let churn = span([200, 209, 218, 227, 236], 205, [0, 9, 9, 9, 9, 209]);
        assert!(churn.rise(&RiseConfig::default()).is_some());
    }

    #[test]
    fn a_plateau_does_not() {
        let warm = span([0, 50, 100, 150, 150], 0, [0, 50, 50, 50, 0, 0]);
        assert_eq!(warm.rise(&RiseConfig::default()), None);
    }

    #[test]
    fn a_line_that_was_not_met_before_had_none() {
        let samples: Vec<Sample> = (30..=100)
            .map(|second| Sample {
                at_ns: second * SECOND,
                count: second - 30,
            })
            .collect();
        let since = |from: u64| {
            let later = samples.partition_point(|sample| sample.at_ns <= from);
            &samples[later.saturating_sub(1)..]
        };
        let spans = spans(
            since,
            (0, 100 * SECOND),
            &Profile::default(),
            &Profile::default(),
        );
        assert_eq!(spans.len(), 2);
        assert_eq!((spans[1].then, spans[1].floors[0]), (25, 26));
    }

    #[test]
    fn ages_fall_into_windows() {
        let mut profile = Profile::default();
        for age in [0, 1, 2, 3, 11, 13] {
            profile.add(age * SECOND, 1);
        }
        assert_eq!(profile.of(0), [1, 1, 0, 0, 1, 3]);
    }
}
