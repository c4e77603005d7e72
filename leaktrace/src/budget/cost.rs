//! How much time did the probes take from the program? Hits, times what one costs on this machine.

use leaktrace_common::event::Kind;
use serde::Serialize;

use super::as_f64;
use crate::resolve::Execution;

const KINDS: usize = Kind::COUNT as usize;

/// What one hit costs the thread that is probed, in a program that does other work too; made of what is measured on leaktrace's
/// own process. Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// On an instruction that the kernel emulates, with a record but no stack.
    pub emulated_ns: f64,
    /// On an instruction that it must single-step; the same as `emulated_ns` when it could not be measured.
    pub stepped_ns: f64,
    /// What walking a creation stack adds.
    pub stack_ns: f64,
}

impl Calibration {
    /// For a machine on which nothing could be measured: what a 2-core VM takes, on the dear side.
    pub const ASSUMED: Self = Self {
        emulated_ns: 3_000.0,
        stepped_ns: 30_000.0,
        stack_ns: 2_000.0,
    };

    /// What one hit of a kind costs at such an instruction.
    #[must_use]
    pub fn of(&self, kind: Kind, execution: Execution) -> f64 {
        let trap = match execution {
            Execution::Emulated => self.emulated_ns,
            Execution::SingleStepped => self.stepped_ns,
        };
        match kind {
            Kind::Born | Kind::Armed => trap + self.stack_ns,
            _ => trap,
        }
    }
}

/// What one hit of each kind costs in one binary: it depends on the instructions that are probed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitCosts([f64; KINDS]);

impl HitCosts {
    /// The costs of these probes. A kind that has several is priced at the dearest.
    #[must_use]
    pub fn new(
        calibration: &Calibration,
        probes: impl IntoIterator<Item = (Kind, Execution)>,
    ) -> Self {
        let mut costs = Self([0.0; KINDS]);
        for (kind, execution) in probes {
            if let Some(cost) = costs.0.get_mut(kind as usize) {
                *cost = cost.max(calibration.of(kind, execution));
            }
        }
        costs
    }

    /// How many hits of the cheapest kind take so long.
    #[must_use]
    pub fn hits_in(&self, ns: f64) -> u64 {
        let cheapest = (self.0.iter().copied())
            .filter(|cost| *cost > 0.0)
            .fold(f64::INFINITY, f64::min);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "neither is negative, and the cast saturates"
        )]
        let hits = (ns.max(0.0) / cheapest) as u64;
        hits.max(1)
    }

    fn of(&self, kind: Kind) -> f64 {
        self.0.get(kind as usize).copied().unwrap_or(0.0)
    }
}

/// Time taken from the program between two readings. Nanoseconds of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// By births, ends and timers.
    pub lifecycle_ns: f64,
    /// By parks and wake-ups, which only the richest level hears.
    pub scheduling_ns: f64,
}

impl Spent {
    /// By all probes.
    #[must_use]
    pub fn total_ns(&self) -> f64 {
        self.lifecycle_ns + self.scheduling_ns
    }
}

/// The account of one target.
#[derive(Clone, Debug)]
pub struct Meter {
    costs: HitCosts,
    /// What the counters stood at.
    read: [u64; KINDS],
    spent_ns: [f64; KINDS],
    hits: [u64; KINDS],
    last_ns: [f64; KINDS],
    recent: Recent,
}

/// What was lost lately, as a part of the time.
#[derive(Clone, Copy, Debug)]
struct Recent {
    share: f64,
    at_ns: u64,
}

/// How long the overhead that is shown looks back: a mean in which older readings count less and less.
const LOOKS_BACK_NS: f64 = 30e9;

impl Meter {
    /// An account that begins now, with counters at zero.
    #[must_use]
    pub fn new(costs: HitCosts, now_ns: u64) -> Self {
        Self {
            costs,
            read: [0; KINDS],
            spent_ns: [0.0; KINDS],
            hits: [0; KINDS],
            last_ns: [0.0; KINDS],
            recent: Recent {
                share: 0.0,
                at_ns: now_ns,
            },
        }
    }

    /// Other costs from now on: the machine was measured again, or other instructions are probed.
    pub fn reprice(&mut self, costs: HitCosts) {
        self.costs = costs;
    }

    /// The kernel's counters begin again at zero.
    pub fn restart(&mut self) {
        self.read = [0; KINDS];
    }

    /// Books what the kernel's counters say now; answers what was spent since the last time.
    pub fn read(&mut self, counters: &[u64; KINDS], now_ns: u64) -> Spent {
        let mut spent = Spent::default();
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            let (Some(&counter), Some(read)) = (counters.get(index), self.read.get_mut(index))
            else {
                continue;
            };
            let hits = counter.saturating_sub(*read);
            *read = counter;
            let cost = self.costs.of(kind) * as_f64(hits);
            if let Some(last) = self.last_ns.get_mut(index) {
                *last = cost;
            }
            if let (Some(total), Some(time)) =
                (self.hits.get_mut(index), self.spent_ns.get_mut(index))
            {
                *total = total.saturating_add(hits);
                *time += cost;
            }
            match kind {
                Kind::Parked | Kind::Readied => spent.scheduling_ns += cost,
                _ => spent.lifecycle_ns += cost,
            }
        }
        self.recent.add(spent.total_ns(), now_ns);
        spent
    }

    /// Hits and the time that they took, by kind; only kinds that were hit.
    pub fn by_kind(&self) -> impl Iterator<Item = (Kind, u64, f64)> {
        Kind::ALL
            .into_iter()
            .zip(self.hits.into_iter().zip(self.spent_ns))
            .filter(|(_, (hits, _))| *hits > 0)
            .map(|(kind, (hits, ns))| (kind, hits, ns))
    }

    /// All kinds, those first that took most by the last reading.
    #[must_use]
    pub fn hottest(&self) -> Vec<Kind> {
        let mut kinds: Vec<_> = Kind::ALL.into_iter().zip(self.last_ns).collect();
        kinds.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        kinds.into_iter().map(|(kind, _)| kind).collect()
    }

    /// All hits.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    /// All the time that was taken, in nanoseconds of a core.
    #[must_use]
    pub fn spent_ns(&self) -> f64 {
        self.spent_ns.iter().sum()
    }

    /// What is taken lately, as a part of one core.
    #[must_use]
    pub fn overhead(&self) -> f64 {
        self.recent.share
    }
}

impl Recent {
    fn add(&mut self, spent_ns: f64, now_ns: u64) {
        let elapsed = as_f64(now_ns.saturating_sub(self.at_ns));
        if elapsed <= 0.0 {
            // Whole with the next reading: an instant has no rate.
            self.share += spent_ns / LOOKS_BACK_NS;
            return;
        }
        self.at_ns = now_ns;
        let fades = (-elapsed / LOOKS_BACK_NS).exp();
        self.share = self.share * fades + spent_ns / elapsed * (1.0 - fades);
    }
}

/// The median; 0 of nothing. Of an even number of readings the lower of the middle two: on a busy machine
/// readings err upwards.
#[must_use]
pub fn median(readings: &mut [f64]) -> f64 {
    readings.sort_by(f64::total_cmp);
    readings
        .len()
        .checked_sub(1)
        .and_then(|last| readings.get(last / 2))
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALIBRATION: Calibration = Calibration {
        emulated_ns: 800.0,
        stepped_ns: 16_000.0,
        stack_ns: 200.0,
    };

    #[test]
    fn a_kind_costs_what_its_dearest_probe_does() {
        let costs = HitCosts::new(
            &CALIBRATION,
            [
                (Kind::Born, Execution::Emulated),
                (Kind::Ended, Execution::Emulated),
                (Kind::Ended, Execution::SingleStepped),
            ],
        );
        assert_eq!(costs.of(Kind::Born), 1000.0);
        assert_eq!(costs.of(Kind::Ended), 16_000.0);
        assert_eq!(costs.of(Kind::Parked), 0.0);
    }

    #[test]
    fn hits_are_booked_once_and_split_by_level() {
        let costs = HitCosts::new(
            &CALIBRATION,
            Kind::ALL.map(|kind| (kind, Execution::Emulated)),
        );
        let mut meter = Meter::new(costs, 0);
        let spent = meter.read(&[10, 5, 100, 100, 0, 0, 0, 1], 1_000_000_000);
        assert_eq!(
            spent,
            Spent {
                lifecycle_ns: 10.0 * 1000.0 + 6.0 * 800.0,
                scheduling_ns: 200.0 * 800.0
            }
        );
        let again = meter.read(&[10, 5, 100, 100, 0, 0, 0, 1], 2_000_000_000);
        assert_eq!(again, Spent::default());
        // The kernel's counters are cleared when a slot is used again; the account goes on.
        meter.restart();
        meter.read(&[1, 0, 0, 0, 0, 0, 0, 0], 3_000_000_000);
        let kinds: Vec<_> = meter.by_kind().collect();
        assert_eq!(kinds[0], (Kind::Born, 11, 11_000.0));
        assert_eq!(kinds.len(), 5);
        assert_eq!(meter.spent_ns(), 11_000.0 + 206.0 * 800.0);
    }

    #[test]
    fn overhead_is_a_mean_over_the_last_half_minute() {
        let costs = HitCosts::new(&CALIBRATION, [(Kind::Ended, Execution::Emulated)]);
        let mut meter = Meter::new(costs, 0);
        // 125,000 hits of 0.8 µs a second: a tenth of a core.
        for second in 1..=300 {
            meter.read(
                &[0, 125_000 * second, 0, 0, 0, 0, 0, 0],
                second * 1_000_000_000,
            );
        }
        assert!(
            (meter.overhead() - 0.1).abs() < 0.001,
            "{}",
            meter.overhead()
        );
        for second in 301..=390 {
            meter.read(
                &[0, 125_000 * 300, 0, 0, 0, 0, 0, 0],
                second * 1_000_000_000,
            );
        }
        assert!(meter.overhead() < 0.006, "{}", meter.overhead());
    }

    #[test]
    fn one_reading_in_three_may_be_anything() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [7.0, 1.0]), 1.0);
        assert_eq!(median(&mut [800.0, 9e9, 810.0]), 810.0);
    }
}
