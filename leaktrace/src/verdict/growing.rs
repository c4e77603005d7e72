//! `growing`: the number alive rises from window to window and never falls back.

use super::{Evidence, Level, Rule};
use crate::ledger::Sample;

/// Looks at the *lowest* count of each window: what a load brings in waves goes away between them, what leaks stays.
pub(super) struct Growing;

/// Windows into which the time of observation is cut.
const WINDOWS: usize = 5;

/// Readings wanted in each window.
const READINGS: usize = 2;

/// Shortest time of observation, in nanoseconds: what rises for less may be a program that warms up.
const SHORTEST_NS: u64 = 10_000_000_000;

/// Least growth over the whole time, in things.
const LEAST: u64 = 5;

/// Least growth over the whole time, as a part of the first window's lowest count.
const LEAST_PART: f64 = 0.02;

/// The lowest count of each window, and the span of time; `None` when there is too little to judge.
fn floors(samples: &[Sample]) -> Option<([u64; WINDOWS], u64)> {
    let span = samples.last()?.at_ns.checked_sub(samples.first()?.at_ns)?;
    let per_window = samples.len() / WINDOWS;
    if span < SHORTEST_NS || per_window < READINGS {
        return None;
    }
    // The oldest readings that do not fill a window are left out.
    let recent = samples.get(samples.len() - per_window * WINDOWS..)?;
    let mut floors = [0; WINDOWS];
    for (floor, window) in floors.iter_mut().zip(recent.chunks_exact(per_window)) {
        *floor = window.iter().map(|sample| sample.count).min()?;
    }
    Some((floors, span))
}

fn grown(floors: &[u64; WINDOWS]) -> u64 {
    let [first, .., last] = floors;
    last.saturating_sub(*first)
}

impl Rule for Growing {
    fn name(&self) -> &'static str {
        "growing"
    }

    fn check(&self, evidence: &Evidence<'_>) -> Level {
        let Some((floors, _)) = floors(evidence.samples) else {
            return Level::Ok;
        };
        let rises = floors.windows(2).filter(|pair| pair[0] < pair[1]).count();
        let falls = floors.windows(2).filter(|pair| pair[0] > pair[1]).count();
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of live things fit a double's 53 bits"
        )]
        let enough =
            grown(&floors) >= LEAST && grown(&floors) as f64 >= floors[0] as f64 * LEAST_PART;
        match (enough, rises, falls) {
            (true, 4, 0) => Level::Leak,
            (true, 3, 0) => Level::Suspect,
            _ => Level::Ok,
        }
    }

    fn explain(&self, evidence: &Evidence<'_>) -> String {
        let Some((floors, span_ns)) = floors(evidence.samples) else {
            return String::new();
        };
        let [first, .., last] = floors;
        let seconds = span_ns / 1_000_000_000;
        let rate = evidence.growth_per_minute;
        let where_stuck = match evidence.states.iter().max_by_key(|(_, count)| *count) {
            Some((state, count)) if *count * 10 >= evidence.count * 9 => format!(", in {state}"),
            _ => String::new(),
        };
        format!(
            "{} {} are alive{where_stuck}: the lowest count rose from {first} to {last} in {seconds} s and never \
             fell back, {rate:+.0} a minute",
            evidence.count, evidence.things
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::*;

    fn level(counts: impl Iterator<Item = u64>) -> Level {
        let samples: Vec<Sample> = (0..)
            .zip(counts)
            .map(|(second, count)| Sample {
                at_ns: second * 1_000_000_000,
                count,
            })
            .collect();
        judge(&Evidence {
            things: "goroutines",
            count: samples.last().map_or(0, |last| last.count),
            states: &[],
            samples: &samples,
            growth_per_minute: 0.0,
        })
        .level
    }

    #[test]
    fn a_steady_rise_is_a_leak() {
        assert_eq!(level((0..30).map(|second| 3 + second)), Level::Leak);
    }

    #[test]
    fn a_rise_under_waves_of_load_is_a_leak() {
        let wave = |second: u64| if second.is_multiple_of(3) { 200 } else { 0 };
        assert_eq!(
            level((0..30).map(|second| wave(second) + 5 * second)),
            Level::Leak
        );
    }

    #[test]
    fn waves_a_warm_up_and_a_plateau_are_not() {
        assert_eq!(
            level((0..30_u64).map(|second| if second.is_multiple_of(4) { 900 } else { 20 })),
            Level::Ok
        );
        assert_eq!(
            level((0..30).map(|second| (second * 50).min(400))),
            Level::Ok
        );
        assert_eq!(level((0..30).map(|_| 1000)), Level::Ok);
    }

    #[test]
    fn too_short_a_time_says_nothing() {
        assert_eq!(level(0..8), Level::Ok);
    }

    #[test]
    fn a_big_crowd_that_trembles_is_not_growing() {
        assert_eq!(level((0..30).map(|second| 100_000 + second)), Level::Ok);
    }
}
