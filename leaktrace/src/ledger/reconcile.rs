//! What the runtime itself has corrects the books.

use foldhash::HashSet;

use super::alive::Alive;
use super::{Drift, Ledger, LiveGoroutine, LiveTimer, State, Stillness, Symbols};
use crate::address::RuntimeAddr;
use crate::census::{self, Census, Goroutine, Status};
use crate::event::Goid;

impl Ledger {
    /// Corrects the books with what the runtime itself has.
    ///
    /// Every event that happened before the census ended must have been applied. What was born after the
    /// census began may be missing from it, and what ended after it began may still be in it: both are in
    /// flight, not drift.
    pub fn reconcile(&mut self, census: Census, symbols: &dyn Symbols) -> Drift {
        let began_ns = census.started_ns;
        let drift = self.reconcile_goroutines(&census.goroutines, began_ns, symbols);
        // There may be a million, and as many timers.
        drop(census.goroutines);
        self.timers_unknown = census.timers.is_none();
        self.reconcile_timers(census.timers.unwrap_or_default(), began_ns, symbols);
        self.last_census_ns = Some(began_ns);
        self.drift = drift;
        self.drift_total += drift.total();
        drift
    }

    fn reconcile_goroutines(
        &mut self,
        found: &[Goroutine],
        census_ns: u64,
        symbols: &dyn Symbols,
    ) -> Drift {
        let ended_meanwhile: HashSet<Goid> = (self.recent_ends.drain(..))
            .filter(|(_, at_ns)| *at_ns >= census_ns)
            .map(|(goid, _)| goid)
            .collect();
        let mut by_goid: Vec<(Goid, u32)> = (found.iter().map(|goroutine| goroutine.goid))
            .zip(0..)
            .filter(|(goid, _)| !ended_meanwhile.contains(goid))
            .collect();
        by_goid.sort_unstable();
        by_goid.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                // Two gs with one number: read in the middle of a change, or forged. The later reading counts.
                *earlier = *later;
            }
            same
        });

        for site in self.sites.iter_mut() {
            site.leaked = 0;
        }
        let (known, mut born) = std::mem::take(&mut self.goroutines).split();
        let mut known = known.peekable();
        let mut drift = Drift::default();
        let mut counted = Vec::with_capacity(by_goid.len());
        for (goid, place) in by_goid {
            let Some(goroutine) = found.get(place as usize) else {
                continue;
            };
            while let Some((_, gone)) = known.next_if(|(known, _)| *known < goid) {
                self.sites[gone.site].live -= 1;
                drift.missed_ends += 1;
            }
            let before = match known.next_if(|(known, _)| *known == goid) {
                Some((_, live)) => Some(live),
                None => born.remove(&goid),
            };
            drift.missed_births += u64::from(before.is_none());
            let live = self.seen(goroutine, before, census_ns, symbols);
            self.sites[live.site].leaked += u64::from(goroutine.leaked);
            counted.push((goid, Some(live)));
        }
        for (_, gone) in known {
            self.sites[gone.site].live -= 1;
            drift.missed_ends += 1;
        }
        born.retain(|_, live| {
            // Born after the walk began: the census may have passed its slot before it was there.
            let in_flight = live.exact && live.since_ns >= census_ns;
            if !in_flight {
                self.sites[live.site].live -= 1;
                drift.missed_ends += 1;
            }
            in_flight
        });
        // A storm leaves no room behind.
        born.shrink_to_fit();
        self.goroutines = Alive::new(counted, born);
        // The first census after the probes went on seeds the books; later ones find only what was missed.
        let seeded = match (self.last_census_ns, self.listening_since_ns) {
            (Some(census), Some(listening)) => census >= listening,
            _ => false,
        };
        if seeded { drift } else { Drift::default() }
    }

    /// What the books say from now on of a goroutine that the census found; `before` is what they said.
    fn seen(
        &mut self,
        goroutine: &Goroutine,
        before: Option<LiveGoroutine>,
        census_ns: u64,
        symbols: &dyn Symbols,
    ) -> LiveGoroutine {
        let state = match goroutine.status {
            Status::Runnable => State::Runnable,
            Status::Running => State::Running,
            Status::Syscall => State::Syscall,
            Status::Preempted => State::Preempted,
            Status::Waiting => State::Waiting(goroutine.wait_reason),
        };
        let stack_bytes = goroutine.stack_bytes;
        if let Some(live) = before {
            return LiveGoroutine {
                state,
                stack_bytes,
                waits_since_ns: goroutine.waiting_since_ns,
                waits_exact: false,
                still: live.still.seen_again(goroutine, census_ns),
                ..live
            };
        }
        let site = (self.sites).of_goroutine(goroutine.gopc, goroutine.startpc, symbols);
        self.sites[site].live += 1;
        LiveGoroutine {
            site,
            since_ns: first_seen(goroutine.waiting_since_ns, census_ns),
            exact: false,
            state,
            stack_bytes,
            waits_since_ns: goroutine.waiting_since_ns,
            waits_exact: false,
            still: Stillness::first_seen(goroutine, census_ns),
        }
    }

    fn reconcile_timers(
        &mut self,
        found: Vec<census::Timer>,
        census_ns: u64,
        symbols: &dyn Symbols,
    ) {
        let known = std::mem::take(&mut self.timers);
        for timer in &known {
            self.sites[timer.site].live -= 1;
        }
        // There may be a million. Both kinds are of one size, so this is done in the memory that the census took.
        const { assert!(size_of::<census::Timer>() == size_of::<LiveTimer>()) };
        let pending = found.into_iter().filter_map(|timer| {
            let known = at_address(&known, timer.timer);
            self.pending(&timer, known, census_ns, symbols)
        });
        let mut pending: Vec<LiveTimer> = pending.collect();
        drop(known);
        if !pending.is_sorted_by_key(|timer| timer.timer) {
            pending.sort_by_key(|timer| timer.timer);
        }
        pending.dedup_by(|later, earlier| {
            let same = later.timer == earlier.timer;
            if same {
                // Listed twice, and perhaps changed in between: the later reading counts.
                *earlier = *later;
            }
            same
        });
        for timer in &pending {
            self.sites[timer.site].live += 1;
        }
        self.timers = pending;
        let is_pending = |timer| at_address(&self.timers, timer).is_some();
        self.armed.sweep(&is_pending, census_ns);
    }

    /// What the books say of a timer that the census found; `None` for the runtime's own. `known` is what they said of
    /// its address before.
    fn pending(
        &mut self,
        timer: &census::Timer,
        known: Option<&LiveTimer>,
        census_ns: u64,
        symbols: &dyn Symbols,
    ) -> Option<LiveTimer> {
        // The same address may be another timer by now.
        let (site, armed_ns) = match self.armed.pending(timer) {
            Some(armed) => (armed.site, Some((armed.at_ns, armed.made_ns))),
            None => {
                let (function, callback) = (timer.function, timer.callback);
                let site =
                    (self.sites).of_timer(function, callback, timer.period_ns, None, symbols)?;
                (site, None)
            }
        };
        let known = known.filter(|known| known.site == site);
        let first_seen_ns = armed_ns.map_or(census_ns, |(at_ns, _)| at_ns);
        Some(LiveTimer {
            timer: timer.timer,
            site,
            since_ns: match (armed_ns, known) {
                (None, Some(known)) => known.since_ns,
                _ => first_seen_ns,
            },
            exact: armed_ns.is_some(),
            there_since_ns: match (armed_ns, known) {
                (_, None) => first_seen_ns,
                (None, Some(known)) => known.there_since_ns,
                // What the last count found here may have been an older timer of the same line.
                (Some((at_ns, made_ns)), Some(known)) => {
                    known.there_since_ns.min(at_ns).max(made_ns)
                }
            },
            when_ns: timer.when_ns,
            period_ns: timer.period_ns,
        })
    }
}

/// Since when a goroutine is there at the latest: what waits since a moment was born before it.
fn first_seen(waiting_since_ns: u64, now_ns: u64) -> u64 {
    match waiting_since_ns {
        0 => now_ns,
        since => since.min(now_ns),
    }
}

/// What is known of the timer at an address.
fn at_address(timers: &[LiveTimer], timer: RuntimeAddr) -> Option<&LiveTimer> {
    let at = timers.binary_search_by_key(&timer, |known| known.timer);
    at.ok().and_then(|at| timers.get(at))
}
