//! Made-up programs, counted at a pace and judged: which of them leak is known.

use proptest::prelude::*;

use super::standing::Standing;
use super::*;
use crate::census::TimerKind;
use crate::ledger::{History, Sample};

const SECOND: u64 = 1_000_000_000;

/// One goroutine or timer.
#[derive(Clone, Copy, Debug)]
struct Life {
    born_ns: u64,
    /// `u64::MAX` for ever.
    ends_ns: u64,
    /// How often it moves; 0 for never.
    moves_every_ns: u64,
}

impl Life {
    fn stuck(born_ns: u64) -> Self {
        Self {
            born_ns,
            ends_ns: u64::MAX,
            moves_every_ns: 0,
        }
    }
}

/// A site, and how it is seen.
struct World {
    subject: Subject,
    wait: Wait,
    lives: Vec<Life>,
    place: Option<Place>,
    program: Around,
    pace_ns: u64,
    due_late: bool,
    /// Timers run so long, and what they call arms them again, or they end.
    runs_ns: Option<u64>,
}

impl World {
    fn of(wait: Wait, lives: Vec<Life>) -> Self {
        Self {
            subject: Subject::Goroutines,
            wait,
            lives,
            place: Some(on_own_channels()),
            program: Around {
                channel_waiters: 1000,
                network_waiters: 1000,
                ..Around::default()
            },
            pace_ns: 5 * SECOND,
            due_late: false,
            runs_ns: None,
        }
    }

    fn of_timers(kind: TimerKind, lives: Vec<Life>) -> Self {
        Self {
            subject: Subject::Timers(kind),
            program: Around::default(),
            ..Self::of(Wait::Other, lives)
        }
    }

    /// Timers of one line that call a function, armed for so long.
    fn of_callbacks(lives: Vec<Life>, runs_ns: u64) -> Self {
        Self {
            runs_ns: Some(runs_ns),
            ..Self::of_timers(TimerKind::AfterFunc, lives)
        }
    }

    /// What became of those that were due between two moments. Those that end when due have fired, others were stopped.
    fn due(&self, from_ns: u64, now_ns: u64) -> Due {
        let mut due = Due::default();
        for (life, runs_ns) in self.lives.iter().zip(self.runs_ns.into_iter().cycle()) {
            let times = |until_ns: u64| until_ns.saturating_sub(life.born_ns) / runs_ns;
            let heard = |until_ns: u64| times(until_ns).saturating_sub(times(from_ns));
            due.fired += heard(now_ns.min(life.ends_ns));
            due.renewed += heard(now_ns.min(life.ends_ns - 1));
        }
        due
    }

    /// What a daemon says that begins to watch at `from_ns`, count for count.
    fn watch(&self, from_ns: u64, to_ns: u64) -> Vec<(u64, Standing)> {
        let config = Config::default();
        let mut standing = Standing::default();
        let mut history = History::default();
        let mut seen = Vec::new();
        let mut now_ns = from_ns;
        while now_ns <= to_ns {
            let evidence = self.look(&mut history, from_ns, now_ns, &config);
            standing.hear(&evidence, &config, now_ns);
            seen.push((now_ns, standing.clone()));
            now_ns += self.pace_ns;
        }
        seen
    }

    fn look(&self, history: &mut History, from_ns: u64, now_ns: u64, config: &Config) -> Evidence {
        let mut tally = Tally::default();
        let mut count = 0;
        let alive =
            (self.lives.iter()).filter(|life| life.born_ns <= now_ns && life.ends_ns > now_ns);
        for life in alive {
            count += 1;
            // What was there before is as old as the watch, for all that is known.
            let age_ns = now_ns - life.born_ns.max(from_ns);
            let still_ns = match life.moves_every_ns {
                0 => age_ns,
                every => age_ns.min((now_ns - life.born_ns) % every),
            };
            tally.born.add(age_ns, SPANS.len());
            tally.stuck.add(still_ns, SPANS.len());
            tally.waits[self.wait as usize] += 1;
            if still_ns >= config.stalled.seconds * SECOND {
                tally.still[self.wait as usize] += 1;
            }
            let longest = &mut tally.longest_still_ns[self.wait as usize];
            *longest = still_ns.max(*longest);
            if self.due_late {
                tally.due_late += 1;
            } else if let Some(runs_ns) = self.runs_ns {
                tally.longest_due_ns = runs_ns;
            } else if life.ends_ns < u64::MAX {
                let runs_ns = life.ends_ns - life.born_ns;
                tally.longest_due_ns = tally.longest_due_ns.max(runs_ns);
            }
        }
        history.push(Sample {
            at_ns: now_ns,
            count,
        });
        Evidence {
            subject: self.subject,
            attributed: true,
            count,
            created: 0,
            ended: 0,
            growth_per_minute: history.growth_per_minute(),
            spans: span::spans(
                |from_ns| history.since(from_ns),
                (from_ns, now_ns),
                &tally.born,
                &tally.stuck,
            ),
            tally,
            place: self.place.clone(),
            usual: None,
            due: self.due(from_ns, now_ns),
            program: self.program,
        }
    }

    fn worst(&self, from_ns: u64, to_ns: u64) -> Level {
        let seen = self.watch(from_ns, to_ns);
        seen.iter()
            .map(|(_, one)| one.level)
            .max()
            .unwrap_or_default()
    }

    /// After how many seconds it is called a leak, and by which rule.
    fn leak(&self, from_ns: u64, to_ns: u64) -> Option<(u64, &'static str)> {
        let seen = self.watch(from_ns, to_ns);
        let leak = seen.into_iter().find(|(_, one)| one.level == Level::Leak);
        leak.map(|(at_ns, standing)| ((at_ns - from_ns) / SECOND, standing.rule))
    }
}

fn on_own_channels() -> Place {
    Place {
        functions: Vec::new(),
        channels: 100,
        waiting: 100,
        most_on_one: 1,
        with_receivers: 0,
    }
}

fn on_one_channel() -> Place {
    Place {
        most_on_one: 100,
        channels: 1,
        with_receivers: 1,
        ..on_own_channels()
    }
}

/// One every so often, for ever.
fn steadily(every_ns: u64, until_ns: u64) -> Vec<Life> {
    (1..=until_ns / every_ns)
        .map(|number| Life::stuck(number * every_ns))
        .collect()
}

#[test]
fn one_a_second_is_found_within_a_minute() {
    for (wait, limit) in [
        (Wait::Send, 55),
        (Wait::Mutex, 55),
        (Wait::Receive, 55),
        (Wait::Select, 55),
        (Wait::WaitGroup, 55),
        (Wait::Cond, 55),
        (Wait::Network, 55),
        (Wait::Coroutine, 55),
        (Wait::NilChannel, 10),
        (Wait::Runs, 55),
    ] {
        for pace in [1, 2, 5] {
            let mut world = World::of(wait, steadily(SECOND, 300 * SECOND));
            world.pace_ns = pace * SECOND;
            let found = world.leak(0, 60 * SECOND);
            assert!(
                found.is_some_and(|(after, _)| after <= limit),
                "{wait:?} every {pace} s: {found:?}"
            );
            // The same after a restart of who watches: what was there before has no age.
            let again = world.leak(100 * SECOND, 160 * SECOND);
            assert!(
                again.is_some_and(|(after, _)| after <= limit),
                "{wait:?} again: {again:?}"
            );
        }
    }
}

#[test]
fn a_leak_stays_one_while_nobody_asks_for_more() {
    let lives = steadily(SECOND, 100 * SECOND);
    let seen = World::of(Wait::Send, lives).watch(0, 3600 * SECOND);
    assert_eq!(seen.last().map(|(_, one)| one.level), Some(Level::Leak));
}

#[test]
fn a_leak_that_goes_away_is_taken_back() {
    let mut lives = steadily(SECOND, 100 * SECOND);
    for life in &mut lives {
        life.ends_ns = 600 * SECOND;
    }
    let seen = World::of(Wait::Send, lives).watch(0, 900 * SECOND);
    assert!(seen.iter().any(|(_, one)| one.level == Level::Leak));
    assert_eq!(seen.last().map(|(_, one)| one.level), Some(Level::Ok));
}

#[test]
fn a_loop_that_only_time_wakes_is_found() {
    let mut lives = steadily(SECOND, 300 * SECOND);
    for life in &mut lives {
        life.moves_every_ns = 10 * SECOND;
    }
    let mut world = World::of(Wait::Receive, lives.clone());
    world.program.channel_timers = 1000;
    assert_eq!(
        world.leak(0, 60 * SECOND).map(|found| found.1),
        Some("looping")
    );
    // Sessions that receive now and then have no timers.
    world.program.channel_timers = 3;
    assert_eq!(world.leak(0, 120 * SECOND), None);
    let world = World::of(Wait::Sleep, lives);
    assert_eq!(
        world.leak(0, 60 * SECOND).map(|found| found.1),
        Some("looping")
    );
}

#[test]
fn one_an_hour_is_found_in_a_day() {
    let mut world = World::of(Wait::Select, steadily(3600 * SECOND, 100 * 3600 * SECOND));
    world.pace_ns = 60 * SECOND;
    let found = world.leak(0, 50 * 3600 * SECOND);
    assert_eq!(found.map(|found| found.1), Some("stuck-and-growing"));
}

#[test]
fn a_leak_is_found_after_a_quiet_day() {
    let day = 86_400 * SECOND;
    let mut lives: Vec<Life> = (0..50).map(|_| Life::stuck(0)).collect();
    lives.extend(steadily(SECOND, 100 * SECOND).into_iter().map(|life| Life {
        born_ns: life.born_ns + day,
        ..life
    }));
    let found = World::of(Wait::Select, lives).leak(0, day + 70 * SECOND);
    assert!(found.is_some_and(|(after, _)| after > 86_400), "{found:?}");
}

#[test]
fn a_pool_that_warms_up_is_well() {
    let mut world = World::of(Wait::Receive, steadily(SECOND / 4, 60 * SECOND));
    world.place = Some(on_one_channel());
    assert_eq!(world.worst(0, 600 * SECOND), Level::Ok);
    // As long as nobody has looked on what they wait, too.
    world.place = None;
    assert_eq!(world.worst(0, 600 * SECOND), Level::Ok);
}

#[test]
fn connections_that_talk_or_have_deadlines_are_well() {
    // They come for two minutes and leave for two minutes.
    let ramp: Vec<Life> = (0..240)
        .map(|number| Life {
            born_ns: number * SECOND / 2,
            ends_ns: 120 * SECOND + number * SECOND / 2,
            moves_every_ns: 3 * SECOND,
        })
        .collect();
    let mut world = World::of(Wait::Network, ramp);
    assert_eq!(world.worst(0, 300 * SECOND), Level::Ok);
    for life in &mut world.lives {
        life.moves_every_ns = 0;
    }
    world.program.network_deadlines = 900;
    assert_eq!(world.worst(0, 300 * SECOND), Level::Ok);
}

#[test]
fn a_burst_is_found_where_healthy_programs_do_not_rest() {
    let burst: Vec<Life> = (0..100).map(|_| Life::stuck(SECOND)).collect();
    for (wait, level) in [
        (Wait::Mutex, Level::Leak),
        (Wait::Send, Level::Leak),
        (Wait::NilChannel, Level::Leak),
        (Wait::NoCases, Level::Leak),
        (Wait::WaitGroup, Level::Ok),
        (Wait::Coroutine, Level::Suspect),
        (Wait::Receive, Level::Ok),
        (Wait::Select, Level::Ok),
        (Wait::Network, Level::Ok),
    ] {
        let world = World::of(wait, burst.clone());
        assert_eq!(world.worst(0, 60 * SECOND), level, "{wait:?}");
    }
    // Where all wait to send on one channel, it may be a semaphore.
    let mut world = World::of(Wait::Send, burst);
    world.place = Some(on_one_channel());
    assert_eq!(world.worst(0, 300 * SECOND), Level::Ok);
}

#[test]
fn one_on_a_nil_channel_is_suspect_and_certain_if_it_is_new() {
    let config = Config::default();
    let world = World::of(Wait::NilChannel, vec![Life::stuck(SECOND)]);
    let mut evidence = world.look(&mut History::default(), 0, 2 * SECOND, &config);
    assert_eq!(judge(&evidence, &config).1.level, Level::Suspect);
    evidence.tally.certain_and_new = 1;
    let (rule, opinion) = judge(&evidence, &config);
    assert_eq!((rule, opinion.level), ("certain-block", Level::Leak));
    // Memory proves it: no second look is needed.
    assert!(opinion.certain);
}

#[test]
fn a_single_one_is_suspect_by_age() {
    let world = World::of(Wait::Send, vec![Life::stuck(SECOND)]);
    let seen = world.watch(0, 1200 * SECOND);
    let found = seen.iter().find(|(_, one)| one.level == Level::Suspect);
    let found = found.map(|(at_ns, one)| (at_ns / SECOND, one.rule));
    assert!(
        found.is_some_and(|(after, rule)| (600..=620).contains(&after) && rule == "old-outlier"),
        "{found:?}"
    );
    assert!(seen.iter().all(|(_, one)| one.level < Level::Leak));
}

#[test]
fn what_outlives_all_others_of_its_line_is_suspect() {
    let config = Config::default();
    let world = World::of(Wait::Select, vec![Life::stuck(SECOND)]);
    let mut evidence = world.look(&mut History::default(), 0, 500 * SECOND, &config);
    evidence.usual = Some(Usual {
        ended: 1000,
        lifetime_ns: SECOND / 50,
    });
    let (rule, opinion) = judge(&evidence, &config);
    assert_eq!((rule, opinion.level), ("old-outlier", Level::Suspect));
    evidence.usual = Some(Usual {
        ended: 1000,
        lifetime_ns: 60 * SECOND,
    });
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
    evidence.usual = Some(Usual {
        ended: 3,
        lifetime_ns: SECOND / 50,
    });
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
}

#[test]
fn timers() {
    let pile = steadily(SECOND, 300 * SECOND);
    let world = World::of_timers(TimerKind::Ticker, pile.clone());
    assert_eq!(
        world.leak(0, 60 * SECOND).map(|found| found.1),
        Some("unstopped-ticker")
    );

    let mut world = World::of_timers(TimerKind::Deadline, pile.clone());
    world.due_late = true;
    assert_eq!(
        world.leak(0, 60 * SECOND).map(|found| found.1),
        Some("timer-pile-up")
    );

    let mut world = World::of_timers(TimerKind::Timer, pile);
    world.program.channel_timers = 100;
    world.program.channel_waiters = 3;
    world.pace_ns = SECOND;
    let found = world.leak(0, 60 * SECOND);
    assert!(found.is_some_and(|(after, _)| after < 20), "{found:?}");

    // A cache that forgets after two minutes: as many as two minutes bring.
    let cache: Vec<Life> = (0..900)
        .map(|second| Life {
            born_ns: second * SECOND,
            ends_ns: (second + 120) * SECOND,
            moves_every_ns: 0,
        })
        .collect();
    let world = World::of_timers(TimerKind::AfterFunc, cache);
    assert_eq!(world.worst(0, 900 * SECOND), Level::Ok);

    let thousand: Vec<Life> = (0..1000).map(|_| Life::stuck(0)).collect();
    let world = World::of_timers(TimerKind::Ticker, thousand);
    assert_eq!(world.worst(SECOND, 300 * SECOND), Level::Ok);
}

/// Row 16: each session has a timer that looks after it once a minute, also when it is over.
#[test]
fn timers_that_are_armed_again_each_time_are_found() {
    let minute = 60 * SECOND;
    let world = World::of_callbacks(steadily(SECOND, 600 * SECOND), minute);
    // In the first minute they are what a cache has that forgets after a minute.
    let (after, rule) = world.leak(0, 300 * SECOND).expect("it is found");
    assert!(
        rule == "timer-pile-up" && (60..=85).contains(&after),
        "{after} s"
    );
    // Whoever comes later hears at once what becomes of those that were there.
    let found = world.leak(120 * SECOND, 180 * SECOND);
    assert!(found.is_some_and(|(after, _)| after <= 60), "{found:?}");
    // Even of timers of five minutes.
    let world = World::of_callbacks(steadily(SECOND, 900 * SECOND), 5 * minute);
    let found = world.leak(400 * SECOND, 460 * SECOND);
    assert!(found.is_some_and(|(after, _)| after <= 60), "{found:?}");
}

#[test]
fn timers_of_connections_are_well_while_more_come() {
    let mut world = World::of_callbacks(steadily(SECOND, 600 * SECOND), 10 * SECOND);
    world.program.network_waiters = 600;
    assert_eq!(world.worst(0, 600 * SECOND), Level::Ok);
    world.due_late = true;
    assert_eq!(world.worst(0, 600 * SECOND), Level::Ok);
    world.program.network_waiters = 20;
    assert!(world.leak(0, 600 * SECOND).is_some());
}

#[test]
fn timers_that_nobody_waits_for_need_no_growth() {
    let config = Config::default();
    for (kind, rule) in [
        (TimerKind::Ticker, "unstopped-ticker"),
        (TimerKind::Timer, "timer-pile-up"),
    ] {
        let mut world = World::of_timers(kind, (0..100).map(|_| Life::stuck(SECOND)).collect());
        world.program.channel_timers = 100;
        world.program.channel_waiters = 3;
        let judged = |world: &World, after: u64, attributed: bool| {
            let now_ns = (1 + after) * SECOND;
            let mut evidence = world.look(&mut History::default(), 0, now_ns, &config);
            evidence.tally.long_pending = if after >= 30 { evidence.count } else { 0 };
            evidence.attributed = attributed;
            let (rule, opinion) = judge(&evidence, &config);
            (rule, opinion.level)
        };
        assert!(judged(&world, 20, true).1 <= Level::Ok);
        assert_eq!(judged(&world, 40, true), (rule, Level::Leak));
        // Nobody can be told which line to mend.
        assert_eq!(judged(&world, 40, false), (rule, Level::Suspect));
        // A scheduler waits for each of them.
        world.program.channel_waiters = 100;
        assert!(judged(&world, 40, true).1 <= Level::Ok);
    }
}

#[test]
fn what_nobody_can_wake_is_a_leak_at_once() {
    let config = Config::default();
    let world = World::of(
        Wait::Receive,
        (0..20).map(|_| Life::stuck(SECOND)).collect(),
    );
    let mut evidence = world.look(&mut History::default(), 0, 40 * SECOND, &config);
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
    for (stranded, level) in [(1, Level::Suspect), (9, Level::Suspect), (10, Level::Leak)] {
        evidence.tally.stranded = stranded;
        let (rule, opinion) = judge(&evidence, &config);
        assert_eq!(
            (rule, opinion.level, opinion.certain),
            ("certain-block", level, true)
        );
    }
}

#[test]
fn a_rule_that_is_turned_off_is_silent() {
    let mut config = Config::default();
    config.certain_block.enabled = false;
    let lives = vec![Life::stuck(0), Life::stuck(0)];
    let world = World::of(Wait::NilChannel, lives);
    let evidence = world.look(&mut History::default(), 0, SECOND, &config);
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
}

#[test]
fn rules_have_names_in_kebab_case() {
    for name in rules() {
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c == '-'),
            "{name}"
        );
    }
}

/// Waits in which healthy goroutines rest, too.
fn resting() -> impl Strategy<Value = Wait> {
    prop::sample::select(vec![
        Wait::Receive,
        Wait::Select,
        Wait::Network,
        Wait::Cond,
        Wait::Sleep,
    ])
}

fn any_wait() -> impl Strategy<Value = Wait> {
    prop::sample::select(vec![
        Wait::Send,
        Wait::Receive,
        Wait::Select,
        Wait::Mutex,
        Wait::WaitGroup,
        Wait::Cond,
        Wait::Network,
        Wait::Sleep,
        Wait::Runs,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// As many at the end as at the beginning.
    #[test]
    fn constant_is_never_a_leak(wait in resting(), count in 0..2000_u64, pace in 1..6_u64) {
        let lives = (0..count).map(|_| Life::stuck(0)).collect();
        let mut world = World::of(wait, lives);
        world.pace_ns = pace * SECOND;
        prop_assert!(world.worst(SECOND, 200 * SECOND) < Level::Leak);
    }

    /// Waves of load: each brings a crowd that ends within some seconds.
    #[test]
    fn bursts_are_never_a_leak(
        wait in any_wait(),
        bursts in prop::collection::vec((0..300_u64, 1..200_u64, 1..9_u64), 1..30),
        pace in 1..6_u64,
    ) {
        let lives = bursts
            .iter()
            .flat_map(|&(at, count, lasts)| (0..count).map(move |number| Life {
                born_ns: at * SECOND + number,
                ends_ns: (at + lasts) * SECOND,
                moves_every_ns: 0,
            }))
            .collect();
        let mut world = World::of(wait, lives);
        world.pace_ns = pace * SECOND;
        prop_assert!(world.worst(0, 320 * SECOND) < Level::Leak);
    }

    /// As many leave as come, by chance; some live for long.
    #[test]
    fn noise_is_never_a_leak(
        wait in any_wait(),
        lives in prop::collection::vec((0..6000_u64, 1..1200_u64), 100..1500),
        pace in 1..6_u64,
    ) {
        // Nobody sends or waits for a lock for more than a few seconds in good health.
        let longest = if matches!(wait, Wait::Send | Wait::Mutex) { 60 } else { 1200 };
        // In tenths of a second, and from two minutes before the watch on, so that as many leave as come.
        let lives = lives
            .into_iter()
            .map(|(born, lasts)| Life {
                born_ns: born * SECOND / 10,
                ends_ns: (born + lasts.min(longest)) * SECOND / 10,
                moves_every_ns: 0,
            })
            .collect();
        let mut world = World::of(wait, lives);
        world.pace_ns = pace * SECOND;
        prop_assert!(world.worst(130 * SECOND, 600 * SECOND) < Level::Leak);
    }

    /// A cache that forgets: as many timers as its time brings, from an empty one on.
    #[test]
    fn timers_that_end_when_due_are_never_a_leak(
        runs in 5..400_u64,
        pauses in prop::collection::vec(100..3000_u64, 100..800),
        begin in 0..400_u64,
        pace in 1..6_u64,
    ) {
        let mut at_ns = 0;
        let mut lives = Vec::new();
        for pause in pauses {
            at_ns += pause * SECOND / 1000;
            lives.push(Life {
                born_ns: at_ns,
                ends_ns: at_ns + runs * SECOND,
                moves_every_ns: 0,
            });
        }
        let mut world = World::of_callbacks(lives, runs * SECOND);
        world.pace_ns = pace * SECOND;
        let begin_ns = begin * SECOND;
        prop_assert!(world.worst(begin_ns, begin_ns.max(at_ns) + 100 * SECOND) < Level::Leak);
    }

    /// Sessions that come and go, by chance, each with a timer that is armed again until it is stopped.
    #[test]
    fn timers_that_are_armed_again_until_they_are_stopped_are_never_a_leak(
        runs in 1..100_u64,
        lives in prop::collection::vec((0..6000_u64, 1..1200_u64), 100..1500),
        pace in 1..6_u64,
    ) {
        let lives = lives
            .into_iter()
            .map(|(born, lasts)| Life {
                born_ns: born * SECOND / 10,
                ends_ns: (born + lasts) * SECOND / 10,
                moves_every_ns: 0,
            })
            .collect();
        let mut world = World::of_callbacks(lives, runs * SECOND);
        world.pace_ns = pace * SECOND;
        prop_assert!(world.worst(130 * SECOND, 600 * SECOND) < Level::Leak);
    }

    /// More and more that talk now and then, and later fewer.
    #[test]
    fn a_ramp_that_recedes_is_never_a_leak(
        wait in prop::sample::select(vec![Wait::Network, Wait::Receive, Wait::Select]),
        every in 1..30_u64,
        count in 1..600_u64,
        moves in 1..9_u64,
        pace in 1..6_u64,
    ) {
        let lives = (0..count)
            .map(|number| Life {
                born_ns: number * every * SECOND / 10,
                ends_ns: (count + number) * every * SECOND / 10,
                moves_every_ns: moves * SECOND,
            })
            .collect();
        let mut world = World::of(wait, lives);
        world.pace_ns = pace * SECOND;
        prop_assert!(world.worst(0, count * every / 5 * SECOND) < Level::Leak);
    }

    /// What gets stuck and stays is found, however unevenly it comes and whatever comes and goes beside it.
    #[test]
    fn growth_that_is_stuck_is_always_a_leak(
        wait in prop::sample::select(vec![Wait::Send, Wait::Mutex, Wait::Receive, Wait::Select, Wait::WaitGroup]),
        pauses in prop::collection::vec(200..2000_u64, 400),
        before in 0..100_u64,
        passing in 0..50_u64,
        pace in 1..6_u64,
    ) {
        let mut at_ns = 0;
        let mut lives: Vec<Life> = (0..before).map(|_| Life::stuck(0)).collect();
        for pause in pauses {
            at_ns += pause * SECOND / 1000;
            lives.push(Life::stuck(at_ns));
        }
        for second in 0..70 {
            lives.extend((0..passing).map(|number| Life {
                born_ns: second * SECOND + number,
                ends_ns: second * SECOND + SECOND * 3 / 4,
                moves_every_ns: 0,
            }));
        }
        let mut world = World::of(wait, lives);
        world.pace_ns = pace * SECOND;
        let found = world.leak(0, 60 * SECOND);
        prop_assert!(found.is_some_and(|(after, _)| after <= 60), "{found:?}");
    }
}
