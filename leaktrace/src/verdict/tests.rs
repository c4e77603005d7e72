//! Made-up programs, counted at a pace and judged: which of them leak is known.

mod properties;
mod timers;
mod world;

use world::{Life, SECOND, World, on_one_channel, steadily};

use super::*;
use crate::census::TimerKind;
use crate::ledger::History;

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
        (Wait::NilChannel, Level::Suspect),
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
    // Some hundred may be there from the start on purpose.
    evidence.tally.certain_and_new = 0;
    for (count, level) in [(48, Level::Suspect), (1000, Level::Leak)] {
        evidence.tally.waits[Wait::NilChannel as usize] = count;
        assert_eq!(judge(&evidence, &config).1.level, level);
    }
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
fn what_nobody_can_wake_is_a_leak_at_once() {
    let config = Config::default();
    let world = World::of(
        Wait::Receive,
        (0..20).map(|_| Life::stuck(SECOND)).collect(),
    );
    let mut evidence = world.look(&mut History::default(), 0, 40 * SECOND, &config);
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
    for (stranded, level) in [(1, Level::Suspect), (9, Level::Suspect), (10, Level::Leak)] {
        evidence.tally.alone.nobody = stranded;
        let (rule, opinion) = judge(&evidence, &config);
        assert_eq!(
            (rule, opinion.level, opinion.certain),
            ("certain-block", level, true)
        );
    }
}

/// A crowd of one line that has been there for a while, all from one moment on.
fn crowd(subject: Subject, wait: Wait) -> Evidence {
    let lives = (0..100).map(|_| Life::stuck(SECOND)).collect();
    let world = World {
        subject,
        ..World::of(wait, lives)
    };
    let config = Config::default();
    let mut evidence = world.look(&mut History::default(), 0, 40 * SECOND, &config);
    evidence.attributed = true;
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
    evidence
}

#[test]
fn a_crowd_that_nobody_can_cancel_is_a_leak_unless_it_was_there_from_the_start() {
    let config = Config::default();
    let mut evidence = crowd(Subject::Goroutines, Wait::Receive);
    for (all, late, level) in [
        (9, 9, Level::Ok),
        (49, 9, Level::Ok),
        (50, 9, Level::Suspect),
        (10, 10, Level::Leak),
    ] {
        evidence.tally.alone.parent = all;
        evidence.tally.alone_late.parent = late;
        let (rule, opinion) = judge(&evidence, &config);
        assert_eq!(opinion.level.max(Level::Ok), level, "{all} {late}");
        assert!(level == Level::Ok || rule == "lost-cancel");
    }
}

#[test]
fn a_crowd_that_nobody_can_tell_to_end_needs_no_growth() {
    let config = Config::default();
    let mut evidence = crowd(Subject::Goroutines, Wait::Select);
    for (all, late, level) in [
        (49, 49, Level::Ok),
        (50, 49, Level::Suspect),
        (50, 50, Level::Leak),
    ] {
        evidence.tally.alone.timer_in_vain = all;
        evidence.tally.alone_late.timer_in_vain = late;
        let (rule, opinion) = judge(&evidence, &config);
        assert_eq!(opinion.level.max(Level::Ok), level, "{all} {late}");
        assert!(level == Level::Ok || rule == "looping");
    }
    // One that waits for time alone looks like the jobs of a scheduler.
    let mut evidence = crowd(Subject::Goroutines, Wait::Receive);
    evidence.tally.alone.timer = 100;
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
    evidence.tally.alone_late.timer = 100;
    let (rule, opinion) = judge(&evidence, &config);
    assert_eq!((rule, opinion.level), ("looping", Level::Suspect));
    // Some of them do end.
    evidence.ended = 1;
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
}

#[test]
fn a_crowd_of_connections_whose_peers_may_have_vanished_is_suspect() {
    let config = Config::default();
    let reads = |by: &[&str]| Place {
        functions: (["internal/poll.(*FD).Read", "net.(*conn).Read"].iter())
            .chain(by)
            .map(|function| (*function).to_owned())
            .collect(),
        ..Place::default()
    };
    let mut evidence = crowd(Subject::Goroutines, Wait::Network);
    evidence.tally.late = 50;
    evidence.place = Some(reads(&["main.serve"]));
    let level = |evidence: &Evidence| judge(evidence, &config).1.level.max(Level::Ok);
    assert_eq!(judge(&evidence, &config).0, "stalled");
    assert_eq!(level(&evidence), Level::Suspect);
    // Some came with the program, some have ended, they have deadlines, or are kept open on purpose.
    let mut early = evidence.clone();
    early.tally.late = 49;
    let mut ends = evidence.clone();
    ends.ended = 1;
    let mut deadlines = evidence.clone();
    deadlines.program.network_deadlines = 500;
    let mut kept = evidence.clone();
    kept.place = Some(reads(&[
        "net/http.(*connReader).Read",
        "net/http.(*conn).serve",
    ]));
    let mut no_connection = evidence.clone();
    no_connection.place = Some(Place::default());
    for other in [early, ends, deadlines, kept, no_connection] {
        assert_eq!(level(&other), Level::Ok, "{other:#?}");
    }
}

#[test]
fn timers_that_nobody_can_stop_need_no_growth() {
    let config = Config::default();
    for (kind, rule) in [
        (TimerKind::Ticker, "unstopped-ticker"),
        (TimerKind::AfterFunc, "timer-pile-up"),
        (TimerKind::Deadline, "timer-pile-up"),
    ] {
        let mut evidence = crowd(Subject::Timers(kind), Wait::Other);
        evidence.tally.forgotten = 49;
        assert!(judge(&evidence, &config).1.level <= Level::Ok, "{kind:?}");
        evidence.tally.forgotten = 50;
        let (found, opinion) = judge(&evidence, &config);
        assert_eq!((found, opinion.level), (rule, Level::Leak), "{kind:?}");
    }
    // Who only waits for the time leaves its timer behind for a while.
    let mut evidence = crowd(Subject::Timers(TimerKind::Timer), Wait::Other);
    evidence.tally.forgotten = 100;
    assert!(judge(&evidence, &config).1.level <= Level::Ok);
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
