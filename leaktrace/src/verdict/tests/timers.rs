//! Timers that leak, and timers that end when they are due.

use super::*;

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
