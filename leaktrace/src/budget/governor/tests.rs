//! The governor against simulated programs, polls that come late, and probes that take their time to go off.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const SHARE: Share = Share(0.01);

/// A program, and what lies between the governor and it.
#[derive(Clone, Debug)]
struct Plant {
    /// What is lost while everything is heard, by births, ends and timers, as a part of a core; from each moment on.
    load: Vec<(u64, f64)>,
    /// The same by parks and wake-ups.
    scheduling: f64,
    /// Loads tremble by so much.
    noise: f64,
    poll_ns: u64,
    /// How long probes are still hit after the decision to take them off.
    tail_ns: u64,
}

impl Plant {
    fn steady(load: f64) -> Self {
        Self {
            load: vec![(0, load)],
            scheduling: 0.0,
            noise: 0.2,
            poll_ns: 20_000_000,
            tail_ns: 100_000_000,
        }
    }

    fn load_at(&self, now_ns: u64) -> f64 {
        (self.load.iter().rev())
            .find(|(from, _)| *from <= now_ns)
            .map_or(0.0, |(_, load)| *load)
    }
}

struct Run {
    governor: Governor,
    changes: Vec<Change>,
    /// Spent between each two polls: end, nanoseconds since the last, nanoseconds of a core.
    spent: Vec<(u64, u64, f64)>,
    /// When probes were wanted on or off.
    switched: Vec<(u64, probe::Level)>,
}

fn run(plant: &Plant, most: Level, seconds: u64) -> Run {
    let mut governor = Governor::new(Some(SHARE), most, 0);
    let mut run = Run {
        governor: governor.clone(),
        changes: Vec::new(),
        spent: Vec::new(),
        switched: vec![(0, governor.probes())],
    };
    let mut wanted = governor.probes();
    let (mut off_at, mut dying) = (0u64, probe::Level::None);
    let (mut now, mut step) = (0, 0u64);
    while now < seconds * SECOND {
        step += 1;
        let spread = (as_f64(step) * 0.618_033_988_75).fract();
        // Every 50th poll comes late.
        let elapsed = if step.is_multiple_of(50) {
            plant.poll_ns * 5
        } else {
            plant.poll_ns
        };
        let load = plant.load_at(now) * (1.0 + plant.noise * (2.0 * spread - 1.0));
        let scheduling = plant.scheduling;
        let on = |level: probe::Level| Spent {
            lifecycle_ns: if level >= probe::Level::Lifecycle {
                load
            } else {
                0.0
            },
            scheduling_ns: if level >= probe::Level::Full {
                scheduling
            } else {
                0.0
            },
        };
        let tail = as_f64(off_at.saturating_sub(now).min(elapsed));
        let (kept, going) = (on(wanted), on(dying));
        let time = as_f64(elapsed);
        let spent = Spent {
            lifecycle_ns: kept.lifecycle_ns * time + going.lifecycle_ns * tail,
            scheduling_ns: kept.scheduling_ns * time + going.scheduling_ns * tail,
        };
        now += elapsed;
        run.spent.push((now, elapsed, spent.total_ns()));
        run.changes.extend(governor.observe(now, spent));
        let next = governor.probes();
        if next != wanted {
            if next < wanted {
                (off_at, dying) = (now + plant.tail_ns, wanted);
            }
            run.switched.push((now, next));
            wanted = next;
        }
    }
    run.governor = governor;
    run
}

impl Run {
    /// By how much the budget was exceeded at most, over any stretch of time that begins and ends at a poll.
    fn excess_ns(&self) -> f64 {
        let (mut worst, mut current) = (0.0f64, 0.0f64);
        for (_, elapsed, spent) in &self.spent {
            current = (current + spent - SHARE.of(*elapsed)).max(0.0);
            worst = worst.max(current);
        }
        worst
    }

    /// Most changes within one hour.
    fn changes_an_hour(&self) -> usize {
        let within = |first: &Change| {
            (self.changes.iter())
                .filter(|change| (first.at_ns..first.at_ns + 3600 * SECOND).contains(&change.at_ns))
                .count()
        };
        self.changes.iter().map(within).max().unwrap_or(0)
    }

    fn spent_until(&self, at_ns: u64) -> f64 {
        (self.spent.iter())
            .take_while(|(end, _, _)| *end <= at_ns)
            .map(|(_, _, spent)| spent)
            .sum()
    }
}

#[test]
fn a_light_load_is_heard_all_the_time() {
    let run = run(&Plant::steady(0.007), Level::Lifecycle, 3600);
    assert_eq!(run.changes, []);
    assert_eq!(run.governor.level(), Level::Lifecycle);
}

#[test]
fn a_storm_that_is_there_at_the_start_is_left_at_once() {
    let run = run(&Plant::steady(0.9), Level::Lifecycle, 30);
    assert_eq!(run.switched[1].1, probe::Level::None);
    assert!(run.switched[1].0 <= SECOND / 10, "{:?}", run.switched[1]);
    assert_eq!(run.changes[0].to, Level::Sampled);
    assert_eq!(
        run.changes[0].reason,
        "within 40 ms the probes spent what the budget of 1 % of a core allows, lately 16 % of a core"
    );
    // The bars: 1.25 × in the first second, 1.02 × over 30 s.
    assert!(
        run.spent_until(SECOND) < 0.2e9,
        "{}",
        run.spent_until(SECOND)
    );
    let all = run.spent_until(u64::MAX);
    assert!(all < 0.02 * 30e9, "{all}");
    assert!(run.governor.tally().samples >= 1);
}

#[test]
fn a_storm_after_an_idle_hour_is_left_within_a_fifth_of_a_second() {
    let begin = 3600 * SECOND;
    for storm in [0.3, 0.9, 2.0, 64.0] {
        let plant = Plant {
            load: vec![(0, 0.0005), (begin, storm)],
            ..Plant::steady(0.0)
        };
        let run = run(&plant, Level::Lifecycle, 3610);
        let off = run.switched[1];
        assert!(
            off.1 == probe::Level::None && off.0 - begin <= SECOND / 5,
            "{storm}: {off:?}"
        );
    }
}

#[test]
fn after_the_storm_everything_is_heard_again_but_not_soon() {
    let plant = Plant {
        load: vec![(0, 0.001), (10 * SECOND, 0.9), (60 * SECOND, 0.001)],
        ..Plant::steady(0.0)
    };
    let run = run(&plant, Level::Lifecycle, 300);
    let levels: Vec<_> = run.changes.iter().map(|change| change.to).collect();
    assert_eq!(
        levels,
        [Level::Sampled, Level::Lifecycle],
        "{:?}",
        run.changes
    );
    let back = run.changes[1].at_ns / SECOND;
    assert!((65..120).contains(&back), "{back}");
    assert_eq!(
        run.changes[1].reason,
        "3 samples in a row cost less than half the budget of 1 % of a core"
    );
}

#[test]
fn a_storm_on_a_large_machine_is_only_looked_at_now_and_then() {
    let run = run(&Plant::steady(64.0), Level::Lifecycle, 24 * 3600);
    assert_eq!(run.governor.level(), Level::None);
    let levels: Vec<_> = run.changes.iter().map(|change| change.to).collect();
    assert_eq!(levels, [Level::Sampled, Level::None]);
    assert!(
        (2..200).contains(&run.governor.tally().samples),
        "{:?}",
        run.governor.tally()
    );
    // Each look costs what its tail does; the debt is paid before the next.
    assert!(run.spent_until(u64::MAX) <= SHARE.of(24 * 3600 * SECOND) + 20e9);
}

#[test]
fn parks_and_wakeups_are_given_up_first() {
    let plant = Plant {
        scheduling: 0.5,
        ..Plant::steady(0.002)
    };
    let run = run(&plant, Level::Full, 3600);
    assert_eq!(run.changes[0].from, Level::Full);
    assert!(
        run.changes
            .iter()
            .all(|change| change.to >= Level::Lifecycle)
    );
    assert_eq!(
        run.changes[0].reason,
        "parks and wake-ups cost more than the budget of 1 % of a core within 60 ms"
    );
    // Tried again after longer and longer times.
    assert!(
        (4..20).contains(&run.changes.len()),
        "{}",
        run.changes.len()
    );
}

#[test]
fn without_a_budget_nothing_changes() {
    let mut governor = Governor::new(None, Level::Full, 0);
    for step in 1..1000 {
        let spent = Spent {
            lifecycle_ns: 1e9,
            scheduling_ns: 1e9,
        };
        assert_eq!(governor.observe(step * SECOND, spent), None);
    }
    assert_eq!(governor.probes(), probe::Level::Full);
}

#[test]
fn without_events_nothing_is_ever_wanted() {
    let mut governor = Governor::new(Some(SHARE), Level::None, 0);
    assert_eq!(governor.observe(3600 * SECOND, Spent::default()), None);
    assert_eq!(governor.probes(), probe::Level::None);
}

/// Loads from nothing to many cores, more of them small.
fn load() -> impl Strategy<Value = f64> {
    (-4.0..1.8f64).prop_map(|exponent| 10f64.powf(exponent))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_more_is_spent_than_the_stated_bound(
        changes in prop::collection::vec((0..3600u64, load()), 1..40),
        scheduling in load(),
        full in any::<bool>(),
        poll_ns in 10_000_000..100_000_000u64,
        tail_ns in 0..400_000_000u64,
    ) {
        let mut load: Vec<_> = changes.iter().map(|(at, load)| (at * SECOND, *load)).collect();
        load.sort_by_key(|(at, _)| *at);
        let highest = load.iter().map(|(_, load)| *load).fold(0.0, f64::max);
        let plant = Plant { load, scheduling, noise: 0.2, poll_ns, tail_ns };
        let most = if full { Level::Full } else { Level::Lifecycle };
        let run = run(&plant, most, 3600);
        // What one poll that comes late, and a tail, can cost.
        let scheduling = if full { scheduling } else { 0.0 };
        let unseen = (highest * 1.2 + scheduling) * as_f64(poll_ns * 5 + tail_ns);
        let bound = 1.5 * Bucket::cap_ns(SHARE) + 2.0 * unseen;
        prop_assert!(run.excess_ns() <= bound, "{} of {bound}", run.excess_ns());
        prop_assert!(run.changes_an_hour() <= 40, "{} changes: {:?}", run.changes_an_hour(), run.changes);
    }

    #[test]
    fn a_steady_load_does_not_swing(load in load(), noise in 0.0..0.5f64) {
        let plant = Plant { noise, ..Plant::steady(load) };
        let run = run(&plant, Level::Lifecycle, 3 * 3600);
        prop_assert!(run.changes_an_hour() <= 4, "{:?}", run.changes);
        // What is too much stays given up; what is little is never given up.
        if load > 0.02 {
            prop_assert!(run.governor.level() < Level::Lifecycle);
        } else if load < 0.005 {
            prop_assert_eq!(run.governor.level(), Level::Lifecycle);
        }
    }
}
