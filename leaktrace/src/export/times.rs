//! How long things live, wait and stay armed: the parts of a report that hold times.

use std::collections::{BTreeMap, HashMap};

use leaktrace_common::histogram::{Histogram, upper_edge_ns};
use serde::Serialize;

use super::label;
use super::report::{seconds, state_name};
use crate::census::TimerKind;
use crate::ledger::{Ledger, LiveTimer, SiteId, SiteKind, State};
use crate::probe::BlockedTime;
use crate::resolve::buildinfo::BuildInfo;

/// A histogram of lengths of time.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Lengths {
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub total_seconds: f64,
    /// The buckets that are not empty, shortest first.
    pub buckets: Vec<Bucket>,
}

/// One bucket of a histogram.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct Bucket {
    /// What they are shorter than, and not shorter than half of it (the first bucket also holds all that is shorter).
    /// `None` for the last, which has no end.
    pub below_seconds: Option<f64>,
    /// How many.
    pub count: u64,
}

impl Lengths {
    /// `None` when nothing was seen.
    #[must_use]
    pub fn of(histogram: &Histogram) -> Option<Self> {
        let count = histogram.count();
        (count > 0).then(|| Self {
            count,
            total_seconds: nanoseconds(histogram.sum_ns),
            buckets: (histogram.counts.iter().enumerate())
                .filter(|(_, count)| **count > 0)
                .map(|(index, count)| Bucket {
                    below_seconds: upper_edge_ns(index).map(nanoseconds),
                    count: *count,
                })
                .collect(),
        })
    }

    /// What half of them are shorter than, and what nine of ten are.
    #[must_use]
    pub fn half_and_most_below(&self) -> [Option<f64>; 2] {
        [0.5, 0.9].map(|part| {
            let mut seen = 0;
            let bucket = self.buckets.iter().find(|bucket| {
                seen += bucket.count;
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "counts of one run fit a double's 53 bits"
                )]
                let enough = seen as f64 >= self.count as f64 * part;
                enough
            });
            bucket.and_then(|bucket| bucket.below_seconds)
        })
    }
}

/// How long goroutines of one site were blocked for one reason (level full).
#[derive(Clone, Debug, Serialize)]
pub struct Blocked {
    /// The wait reason.
    pub state: String,
    /// Waits that have ended.
    #[serde(flatten)]
    pub lengths: Lengths,
    /// Waits whose end was not heard, and whose length is not known: the network poller wakes goroutines in ways of its own.
    #[serde(skip_serializing_if = "is_zero")]
    pub unheard: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Adds up the waits of one site by reason, the longest in all first.
pub(super) fn blocked(waits: &[&BlockedTime], wait_reasons: &[String]) -> Vec<Blocked> {
    let mut by_reason: BTreeMap<u8, (Histogram, u64)> = BTreeMap::new();
    for wait in waits {
        let (lengths, unheard) = by_reason.entry(wait.wait_reason).or_default();
        lengths.merge(&wait.totals.lengths);
        *unheard = unheard.saturating_add(wait.totals.unheard);
    }
    let mut blocked: Vec<Blocked> = by_reason
        .into_iter()
        .map(|(reason, (lengths, unheard))| Blocked {
            state: state_name(State::Waiting(reason), wait_reasons),
            lengths: Lengths::of(&lengths).unwrap_or_default(),
            unheard,
        })
        .collect();
    blocked.sort_by(|a, b| {
        let (a, b) = (&a.lengths, &b.lengths);
        b.total_seconds.total_cmp(&a.total_seconds)
    });
    blocked
}

/// A pending timer that has been armed for long.
#[derive(Clone, Debug, Serialize)]
pub struct OldTimer {
    /// The label of its call site.
    pub site: String,
    /// Its kind.
    pub kind: &'static str,
    /// How long ago it was armed.
    pub age_seconds: f64,
    /// Whether it is at least that old: it was there before tracing began.
    pub age_is_lower_bound: bool,
    /// When it is due from now on; negative when it is overdue. A core file does not say when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_in_seconds: Option<f64>,
    /// The period of a ticker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<f64>,
}

/// A goroutine that has been blocked for long.
#[derive(Clone, Debug, Serialize)]
pub struct LongWait {
    /// Its number.
    pub goid: u64,
    /// The label of its call site.
    pub site: String,
    /// Its wait reason.
    pub state: String,
    /// How long ago it blocked.
    pub blocked_seconds: f64,
    /// Whether it has waited at least that long: only level full sees a goroutine block.
    pub is_lower_bound: bool,
}

/// How many timers of one call site have been armed for long.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct ArmedLonger {
    /// The label of the call site; `other` for the sum of those that are not listed.
    pub site: String,
    /// Their kind; "" for `other`.
    pub kind: &'static str,
    /// How many have been armed for longer than each of [`LONGER_THAN`].
    pub longer_than: Vec<LongerThan>,
}

/// How many have been armed for longer than that.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct LongerThan {
    /// In seconds.
    pub seconds: u64,
    /// How many timers.
    pub count: u64,
}

/// A minute, ten, an hour, a day.
pub const LONGER_THAN: [u64; 4] = [60, 600, 3600, 86_400];

/// Timers and goroutines listed one by one.
pub const MOST_LISTED: usize = 20;

/// The timers that somebody armed. Sleeps and network deadlines are nobody's: what sleeps or waits is there as a goroutine.
fn of_users(ledger: &Ledger) -> impl Iterator<Item = &LiveTimer> {
    ledger.timers().filter(|timer| {
        let site = &ledger.sites[timer.site];
        match site.kind {
            SiteKind::Timer(TimerKind::Sleep) => false,
            SiteKind::Timer(TimerKind::Deadline) => !site.start_function.is_empty(),
            _ => true,
        }
    })
}

/// Call sites with timers that have been armed for long, most of them first; the rest in one sum.
pub(super) fn armed_longer(ledger: &Ledger, build: &BuildInfo, now_ns: u64) -> Vec<ArmedLonger> {
    let mut by_site: HashMap<SiteId, [u64; LONGER_THAN.len()]> = HashMap::new();
    for timer in of_users(ledger) {
        let age = now_ns.saturating_sub(timer.since_ns) / 1_000_000_000;
        if age < LONGER_THAN[0] {
            continue;
        }
        let counts = by_site.entry(timer.site).or_default();
        for (count, least) in counts.iter_mut().zip(LONGER_THAN) {
            *count += u64::from(age >= least);
        }
    }
    let listed = |site: String, kind: &'static str, counts: [u64; LONGER_THAN.len()]| ArmedLonger {
        site,
        kind,
        longer_than: (LONGER_THAN.into_iter().zip(counts))
            .map(|(seconds, count)| LongerThan { seconds, count })
            .collect(),
    };
    let mut sorted: Vec<_> = by_site.into_iter().collect();
    sorted.sort_by_key(|(id, counts)| (std::cmp::Reverse(*counts), *id));
    let rest = sorted.split_off(sorted.len().min(MOST_LISTED));
    let mut all: Vec<ArmedLonger> = (sorted.into_iter())
        .filter_map(|(id, counts)| {
            let site = &ledger.sites[id];
            match site.kind {
                SiteKind::Timer(kind) => {
                    Some(listed(label::of(&site.at, build), kind.name(), counts))
                }
                SiteKind::Goroutine | SiteKind::SystemGoroutine => None,
            }
        })
        .collect();
    if !rest.is_empty() {
        let mut sums = [0; LONGER_THAN.len()];
        for (_, counts) in rest {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        all.push(listed("other".to_owned(), "", sums));
    }
    all
}

/// The timers that have been armed for longest.
pub(super) fn oldest_timers(ledger: &Ledger, build: &BuildInfo, now_ns: u64) -> Vec<OldTimer> {
    let oldest = least(of_users(ledger), |timer| (timer.since_ns, timer.when_ns));
    (oldest.into_iter())
        .filter_map(|timer| {
            let site = &ledger.sites[timer.site];
            let SiteKind::Timer(kind) = site.kind else {
                return None;
            };
            let due_ns = i128::from(timer.when_ns) - i128::from(now_ns);
            let due = seconds(u64::try_from(due_ns.unsigned_abs()).unwrap_or(u64::MAX))
                * if due_ns < 0 { -1.0 } else { 1.0 };
            Some(OldTimer {
                site: label::of(&site.at, build),
                kind: kind.name(),
                age_seconds: seconds(now_ns.saturating_sub(timer.since_ns)),
                age_is_lower_bound: !timer.exact,
                due_in_seconds: (now_ns > 0).then_some(due),
                period_seconds: (timer.period_ns > 0)
                    .then(|| seconds(timer.period_ns.unsigned_abs())),
            })
        })
        .collect()
}

/// The user's goroutines that have been blocked for longest, as far as that is known.
pub(super) fn longest_waits(
    ledger: &Ledger,
    wait_reasons: &[String],
    build: &BuildInfo,
    now_ns: u64,
) -> Vec<LongWait> {
    let waiting = (ledger.goroutines()).filter(|(_, live)| {
        live.waits_since_ns != 0 && ledger.sites[live.site].kind == SiteKind::Goroutine
    });
    let longest = least(waiting, |(goid, live)| (live.waits_since_ns, *goid));
    (longest.into_iter())
        .map(|(goid, live)| LongWait {
            goid: goid.0,
            site: label::of(&ledger.sites[live.site].at, build),
            state: state_name(live.state, wait_reasons),
            blocked_seconds: seconds(now_ns.saturating_sub(live.waits_since_ns)),
            is_lower_bound: !live.waits_exact,
        })
        .collect()
}

/// The [`MOST_LISTED`] things with the lowest keys, in order, without sorting all of them.
fn least<T, K: Ord>(things: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for thing in things {
        kept.push(thing);
        if kept.len() >= 8 * MOST_LISTED {
            kept.sort_by_key(&key);
            kept.truncate(MOST_LISTED);
        }
    }
    kept.sort_by_key(&key);
    kept.truncate(MOST_LISTED);
    kept
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a sum of nanoseconds loses less than a microsecond in a year"
)]
fn nanoseconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_shows_only_what_it_has() {
        let mut histogram = Histogram::default();
        assert_eq!(Lengths::of(&histogram), None);
        for ns in [1_500_000, 1_600_000, 6_000_000, u64::MAX / 2] {
            histogram.record(ns);
        }
        let lengths = Lengths::of(&histogram).expect("four were seen");
        assert_eq!(lengths.count, 4);
        let edges: Vec<_> = (lengths.buckets.iter())
            .map(|bucket| (bucket.below_seconds, bucket.count))
            .collect();
        assert_eq!(
            edges,
            [
                (Some(0.002_097_152), 2),
                (Some(0.008_388_608), 1),
                (None, 1)
            ]
        );
        assert_eq!(lengths.half_and_most_below(), [Some(0.002_097_152), None]);
    }

    #[test]
    fn the_least_of_many_are_kept_in_order() {
        let found = least((0..10_000_u64).map(|n| n * 7919 % 10_007), |n| *n);
        assert_eq!(found.len(), MOST_LISTED);
        assert!(found.is_sorted());
        let mut all: Vec<u64> = (0..10_000).map(|n| n * 7919 % 10_007).collect();
        all.sort_unstable();
        assert_eq!(found, all[..MOST_LISTED]);
    }
}
