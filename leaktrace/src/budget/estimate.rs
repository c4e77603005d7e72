//! How many were there while nobody listened? Rates of what was heard, carried over the pauses between samples.
//!
//! Rates are per time that the program had for itself: what it ran, without what the probes took. A program that the
//! probes slow down tenfold while a sample lasts would else seem to do a tenth of what it does.
//!
//! An estimate only ever grows, so that the totals that it is part of stay counters. Over a pause that is not one
//! between samples nothing is estimated: then the totals lack what happened in it, and say so.

use super::as_f64;

/// What is counted at each site: made, ended, stopped, fired, armed again.
pub const COUNTERS: usize = 5;

/// So much of what was heard last tells the rates, or up to twice as much.
const LATELY_NS: u64 = 1_000_000_000;

/// Totals of one site.
pub type Totals = [u64; COUNTERS];

/// What the pauses hid, of all sites of a target, in the order of its ledger's sites.
#[derive(Clone, Debug)]
pub struct Estimates {
    sites: Vec<Estimate>,
    ear: Ear,
    /// How long nothing was heard and nothing is estimated.
    unknown_ns: u64,
}

/// A moment on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub wall_ns: u64,
    /// What the program's threads have run in all, without what the probes took; nanoseconds of a core.
    pub own_ns: u64,
}

#[derive(Clone, Copy, Debug)]
enum Ear {
    /// Listening since then.
    Open { since: Moment },
    /// Not listening since then; `rates` tells whether the time is bridged by the rates heard last.
    Closed { since: Moment, rates: bool },
}

#[derive(Clone, Copy, Debug, Default)]
struct Estimate {
    /// What had been heard when listening began.
    mark: Totals,
    /// What was heard per nanosecond of the program's own when last listened to.
    rates: [f64; COUNTERS],
    /// What earlier pauses hid.
    hidden: [f64; COUNTERS],
}

impl Estimates {
    /// Begins before listening does.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            sites: Vec::new(),
            ear: Ear::Closed {
                since: now,
                rates: false,
            },
            unknown_ns: 0,
        }
    }

    /// From now on everything is heard. `heard` are the totals of all sites so far.
    pub fn open(&mut self, now: Moment, heard: impl Iterator<Item = Totals>) {
        if let Ear::Closed { since, rates } = self.ear {
            if rates {
                let paused = now.own_ns.saturating_sub(since.own_ns);
                for site in &mut self.sites {
                    site.hidden = site.hidden_after(paused);
                }
            } else if !self.sites.is_empty() {
                let paused = now.wall_ns.saturating_sub(since.wall_ns);
                self.unknown_ns = self.unknown_ns.saturating_add(paused);
            }
        }
        self.mark(heard);
        self.ear = Ear::Open { since: now };
    }

    /// From now on nothing is heard; `rates`: what was heard since the last time is typical for the pause.
    pub fn close(&mut self, now: Moment, rates: bool, heard: impl Iterator<Item = Totals>) {
        let Ear::Open { since } = self.ear else {
            return;
        };
        // Clocks and costs are not exact: less than a hundredth of the time is not believed to be what was left.
        let least = now.wall_ns.saturating_sub(since.wall_ns) / 100;
        let listened = as_f64(now.own_ns.saturating_sub(since.own_ns).max(least).max(1));
        let heard: Vec<Totals> = heard.collect();
        self.sites.resize(heard.len(), Estimate::default());
        for (site, heard) in self.sites.iter_mut().zip(&heard) {
            for ((rate, now), mark) in site.rates.iter_mut().zip(heard).zip(site.mark) {
                *rate = as_f64(now.saturating_sub(mark)) / listened;
            }
        }
        self.mark(heard.into_iter());
        self.ear = Ear::Closed { since: now, rates };
    }

    /// Forgets what was heard so far when rates are told: lately counts.
    pub fn refresh(&mut self, now: Moment, heard: impl Iterator<Item = Totals>) {
        if let Ear::Open { since } = self.ear
            && now.wall_ns.saturating_sub(since.wall_ns) >= LATELY_NS
        {
            self.mark(heard);
            self.ear = Ear::Open { since: now };
        }
    }

    /// What the pauses until now have hidden at the site with this index, about.
    #[must_use]
    pub fn hidden(&self, site: usize, now: Moment) -> Totals {
        let Some(site) = self.sites.get(site) else {
            return Totals::default();
        };
        let hidden = match self.ear {
            Ear::Closed { since, rates: true } => {
                site.hidden_after(now.own_ns.saturating_sub(since.own_ns))
            }
            _ => site.hidden,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rates and times are not negative, and the cast saturates"
        )]
        hidden.map(|count| count.round() as u64)
    }

    /// How long until now nothing was heard of and nothing is estimated, in nanoseconds.
    #[must_use]
    pub fn unknown_ns(&self, now: Moment) -> u64 {
        match self.ear {
            Ear::Closed {
                since,
                rates: false,
            } if !self.sites.is_empty() => self
                .unknown_ns
                .saturating_add(now.wall_ns.saturating_sub(since.wall_ns)),
            _ => self.unknown_ns,
        }
    }

    fn mark(&mut self, heard: impl Iterator<Item = Totals>) {
        for (index, heard) in heard.enumerate() {
            match self.sites.get_mut(index) {
                Some(site) => site.mark = heard,
                None => self.sites.push(Estimate {
                    mark: heard,
                    ..Estimate::default()
                }),
            }
        }
    }
}

impl Estimate {
    fn hidden_after(&self, paused_ns: u64) -> [f64; COUNTERS] {
        let mut hidden = self.hidden;
        for (hidden, rate) in hidden.iter_mut().zip(self.rates) {
            *hidden += rate * as_f64(paused_ns);
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A program that runs all the time.
    fn at(ns: u64) -> Moment {
        Moment {
            wall_ns: ns,
            own_ns: ns,
        }
    }

    fn one(created: u64) -> impl Iterator<Item = Totals> {
        std::iter::once([created, 0, 0, 0, 0])
    }

    #[test]
    fn a_pause_is_bridged_by_the_rate_before_it() {
        let mut estimates = Estimates::new(at(0));
        estimates.open(at(0), std::iter::empty());
        // A thousand in a second, then nine seconds unheard, and so again.
        estimates.close(at(SECOND), true, one(1000));
        assert_eq!(estimates.hidden(0, at(4 * SECOND))[0], 3000);
        estimates.open(at(10 * SECOND), one(1000));
        assert_eq!(estimates.hidden(0, at(11 * SECOND))[0], 9000);
        estimates.close(at(11 * SECOND), true, one(2000));
        assert_eq!(estimates.hidden(0, at(20 * SECOND))[0], 18_000);
        assert_eq!(estimates.hidden(7, at(20 * SECOND)), [0; COUNTERS]);
        assert_eq!(estimates.unknown_ns(at(20 * SECOND)), 0);
    }

    #[test]
    fn what_the_probes_took_was_not_the_programs_own() {
        let mut estimates = Estimates::new(at(0));
        let moment = |wall_ns, own_ns| Moment { wall_ns, own_ns };
        estimates.open(at(0), std::iter::empty());
        // A thousand while the probes took nine tenths of a second; then it has a second for itself.
        estimates.close(moment(SECOND, SECOND / 10), true, one(1000));
        assert_eq!(
            estimates.hidden(0, moment(2 * SECOND, SECOND / 10 + SECOND))[0],
            10_000
        );
        // It sleeps: nothing happens.
        assert_eq!(estimates.hidden(0, moment(2 * SECOND, SECOND / 10))[0], 0);
    }

    #[test]
    fn a_pause_that_nothing_is_known_of_is_said_to_be_one() {
        let mut estimates = Estimates::new(at(0));
        estimates.open(at(0), std::iter::empty());
        estimates.close(at(SECOND), false, one(1000));
        assert_eq!(estimates.hidden(0, at(100 * SECOND)), [0; COUNTERS]);
        assert_eq!(estimates.unknown_ns(at(100 * SECOND)), 99 * SECOND);
        estimates.open(at(100 * SECOND), one(1000));
        assert_eq!(estimates.unknown_ns(at(200 * SECOND)), 99 * SECOND);
    }

    proptest! {
        #[test]
        fn it_only_ever_grows(steps in prop::collection::vec((1..10 * SECOND, 0..100_000u64, any::<bool>()), 1..50)) {
            let mut estimates = Estimates::new(at(0));
            let (mut now, mut heard, mut shown) = (0, 0, 0);
            for (index, (time, count, rates)) in steps.into_iter().enumerate() {
                now += time;
                if index % 2 == 0 {
                    estimates.open(at(now), one(heard));
                } else {
                    heard += count;
                    estimates.close(at(now), rates, one(heard));
                }
                let hidden = estimates.hidden(0, at(now))[0];
                prop_assert!(hidden >= shown, "{hidden} after {shown}");
                shown = hidden;
            }
        }
    }
}
