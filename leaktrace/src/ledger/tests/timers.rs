//! Timers in the books: whose line they are, what becomes of them, and what a pause makes doubtful.

use std::num::NonZeroU64;

use super::*;

fn timer(timer: u64, function: RuntimeAddr) -> event::Timer {
    event::Timer {
        timer: RuntimeAddr(timer),
        when_ns: 1000,
        period_ns: 0,
        function,
        callback: RuntimeAddr(77),
    }
}

fn armed(number: u64, function: RuntimeAddr, stack: u64) -> Event {
    let change = Change::Armed {
        timer: timer(number, function),
        stack: NonZeroU64::new(stack).map(StackId),
    };
    at(60, change)
}

#[test]
fn a_pending_timer_is_booked_where_it_was_armed() {
    let mut ledger = Ledger::default();
    ledger.apply(&armed(1, SEND_TIME, 42), &Numbers);
    ledger.apply(&armed(2, GO_FUNC, 43), &Numbers);
    ledger.apply(&at(70, Change::Fired(timer(1, SEND_TIME))), &Numbers);
    let mut heap = census(100, Vec::new());
    heap.timers = Some(vec![
        pending(2, GO_FUNC, 77),
        // Armed before the probes went on: known by what it will call.
        pending(3, GO_FUNC, 78),
        // Its address was once another's: it must not take that one's line.
        pending(1, GO_FUNC, 79),
        // The runtime's own.
        pending(4, RuntimeAddr(5), 0),
    ]);
    ledger.reconcile(heap, &Numbers);
    assert_eq!(
        live_by_line(&ledger),
        HashMap::from([(43, 1), (78, 1), (79, 1)])
    );
    let site = ledger
        .sites
        .iter()
        .find(|site| site.at.line == 42)
        .expect("armed");
    assert_eq!((site.created, site.fired, site.live), (1, 1, 0));
    assert!(site.attributed);
}

/// A birth, with what the goroutine runs: at 600 lies the go statement of time.goFunc.
fn born_by_timer(at_ns: u64, goid: u64, startpc: u64, timer: Option<u64>) -> Event {
    let change = Change::Born {
        goroutine: event::Goroutine {
            goid: Goid(goid),
            g: RuntimeAddr(0x1000 + goid),
            gopc: RuntimeAddr(600),
            startpc: RuntimeAddr(startpc),
        },
        parent: None,
        stack: None,
        timer: timer.map(RuntimeAddr),
    };
    at(at_ns, change)
}

#[test]
fn a_goroutine_that_a_timer_started_belongs_to_the_line_that_armed_the_timer() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    ledger.apply(&armed(1, GO_FUNC, 42), &Numbers);
    ledger.apply(&armed(2, GO_FUNC, 43), &Numbers);
    // Two timers of two lines with one function: only the timer tells them apart.
    for (goid, number) in [(10, 1), (11, 2), (12, 2)] {
        ledger.apply(&at(70, Change::Fired(timer(number, GO_FUNC))), &Numbers);
        ledger.apply(&born_by_timer(71, goid, 77, Some(number)), &Numbers);
    }
    assert_eq!(live_by_line(&ledger), HashMap::from([(42, 1), (43, 2)]));
    // The timer is not known, or another's by now: the last that fired with this function did it.
    ledger.apply(&born_by_timer(72, 13, 77, Some(99)), &Numbers);
    ledger.apply(&born_by_timer(72, 14, 77, None), &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::from([(42, 1), (43, 4)]));
    // Nobody was heard to arm anything that calls 78: what it runs stands for it.
    ledger.apply(&born_by_timer(73, 15, 78, None), &Numbers);
    assert_eq!(live_by_line(&ledger)[&78], 1);
    for site in ledger.sites.iter().filter(|site| site.live > 0) {
        assert_eq!(site.kind, SiteKind::Goroutine);
        assert_eq!(site.started_by, Some(TimerKind::AfterFunc));
        assert_eq!(site.attributed, site.at.line != 78);
    }
    ledger.apply(&goroutine_event(Life::Ended, 80, 11, 600), &Numbers);
    assert_eq!(live_by_line(&ledger)[&43], 3);
}

#[test]
fn lives_are_measured_and_what_was_over_is_not_stopped_again() {
    let mut ledger = Ledger::default();
    let line = |ledger: &Ledger, line| {
        let mut sites = ledger.sites.iter();
        sites
            .find(|site| site.at.line == line)
            .cloned()
            .expect("armed")
    };
    ledger.apply(&armed(1, SEND_TIME, 42), &Numbers);
    ledger.apply(
        &at(60 + (1 << 20), Change::Fired(timer(1, SEND_TIME))),
        &Numbers,
    );
    let stop = at(
        1 << 30,
        Change::Stopped {
            timer: RuntimeAddr(1),
        },
    );
    ledger.apply(&stop, &Numbers);
    let site = line(&ledger, 42);
    assert_eq!((site.fired, site.stopped), (1, 0));
    assert_eq!(site.lifetimes.counts[10], 1);
    assert_eq!(site.lifetimes.sum_ns, 1 << 20);
    // Armed again and stopped: another life, of the same line.
    ledger.apply(&at(1 << 31, Change::Rearmed(timer(1, SEND_TIME))), &Numbers);
    ledger.apply(
        &at(
            (1 << 31) + 5000,
            Change::Stopped {
                timer: RuntimeAddr(1),
            },
        ),
        &Numbers,
    );
    ledger.apply(&stop, &Numbers);
    let site = line(&ledger, 42);
    assert_eq!((site.created, site.rearmed, site.stopped), (1, 1, 1));
    assert_eq!(site.lifetimes.count(), 2);
    assert_eq!(
        site.armed_for_ns,
        Some((940, 940)),
        "due at 1000, armed at 60"
    );

    ledger.apply(&goroutine_event(Life::Born, 100, 1, 10), &Numbers);
    ledger.apply(&goroutine_event(Life::Ended, 4100, 1, 10), &Numbers);
    // Nobody saw the birth of 2: how long it lived is not known.
    ledger.apply(&goroutine_event(Life::Ended, 4200, 2, 10), &Numbers);
    let site = line(&ledger, 10);
    assert_eq!(
        (site.ended, site.lifetimes.count(), site.lifetimes.sum_ns),
        (2, 1, 4000)
    );
}

/// A ticker lives until it is stopped, however often it fires.
#[test]
fn a_ticker_outlives_its_ticks() {
    let mut ledger = Ledger::default();
    let ticker = event::Timer {
        period_ns: 500,
        ..timer(1, SEND_TIME)
    };
    let stack = NonZeroU64::new(42).map(StackId);
    ledger.apply(
        &at(
            60,
            Change::Armed {
                timer: ticker,
                stack,
            },
        ),
        &Numbers,
    );
    for tick in 1..10 {
        ledger.apply(&at(60 + tick * 500, Change::Fired(ticker)), &Numbers);
    }
    ledger.apply(
        &at(
            9060,
            Change::Stopped {
                timer: ticker.timer,
            },
        ),
        &Numbers,
    );
    let site = ledger.sites.iter().next().expect("armed");
    assert_eq!((site.fired, site.stopped), (9, 1));
    assert_eq!((site.lifetimes.count(), site.lifetimes.sum_ns), (1, 9000));
    assert_eq!(site.armed_for_ns, Some((500, 500)));
}

/// Timers come and go, each at an address of its own: what is remembered stays bounded, and those that run are kept.
#[test]
fn timers_that_are_over_are_forgotten_when_there_are_many() {
    let mut ledger = Ledger::default();
    ledger.apply(&armed(1, SEND_TIME, 42), &Numbers);
    for number in 2..500_000 {
        ledger.apply(&armed(number, SEND_TIME, 43), &Numbers);
        ledger.apply(
            &at(
                60 + number,
                Change::Stopped {
                    timer: RuntimeAddr(number),
                },
            ),
            &Numbers,
        );
    }
    assert!(ledger.armed.len() < 100_000, "{}", ledger.armed.len());
    assert!(ledger.forgotten_timers() > 400_000);
    assert_eq!(ledger.turned_away, 0);
    let mut heap = census(1_000_000, Vec::new());
    heap.timers = Some(vec![pending(1, SEND_TIME, 0)]);
    ledger.reconcile(heap, &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::from([(42, 1)]));
}

/// A timer as it is armed at one moment, due at another.
fn due(number: u64, when_ns: i64, period_ns: i64) -> event::Timer {
    event::Timer {
        when_ns,
        period_ns,
        ..timer(number, GO_FUNC)
    }
}

fn arm(ledger: &mut Ledger, at_ns: u64, timer: event::Timer, line: u64) {
    let stack = NonZeroU64::new(line).map(StackId);
    ledger.apply(&at(at_ns, Change::Armed { timer, stack }), &Numbers);
}

/// What a census finds of a timer that was armed like this.
fn found(timer: event::Timer) -> Timer {
    Timer {
        when_ns: timer.when_ns,
        period_ns: timer.period_ns,
        ..pending(timer.timer.0, timer.function, timer.callback.0)
    }
}

fn heap(started_ns: u64, timers: &[event::Timer]) -> Census {
    Census {
        timers: Some(timers.iter().copied().map(found).collect()),
        ..census(started_ns, Vec::new())
    }
}

#[test]
fn after_a_pause_only_a_timer_that_is_due_as_it_was_armed_keeps_its_line() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    for number in 1..=4 {
        arm(&mut ledger, 100, due(number, 9000, 0), 40 + number);
    }
    arm(&mut ledger, 100, due(5, 5000, 1000), 45);
    ledger.deafen(200);
    // Told late, but armed again before the pause.
    ledger.apply(&at(190, Change::Rearmed(due(2, 9500, 0))), &Numbers);
    // In the pause 3 was stopped and freed, and another line made one that calls the same at its address.
    let world = [
        due(1, 9000, 0),
        due(2, 9500, 0),
        due(3, 9001, 0),
        due(5, 8000, 1000),
    ];
    ledger.listen(300);
    ledger.reconcile(heap(400, &world), &Numbers);
    let expected = HashMap::from([(41, 1), (42, 1), (45, 1), (77, 1)]);
    assert_eq!(live_by_line(&ledger), expected);
    assert_eq!(ledger.unproven_timers(), 1);
    // 4 was in no heap. It is stopped now, or whatever is at its address.
    let stop = Change::Stopped {
        timer: RuntimeAddr(4),
    };
    ledger.apply(&at(500, stop), &Numbers);
    assert!(ledger.sites.iter().all(|site| site.stopped == 0));
    assert_eq!(ledger.unproven_timers(), 2);
    // What was proven is heard of as before.
    ledger.apply(&at(600, Change::Rearmed(due(1, 12_000, 0))), &Numbers);
    ledger.reconcile(heap(700, &[due(1, 12_000, 0)]), &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::from([(41, 1)]));
}

#[test]
fn a_timer_that_is_armed_again_after_a_pause_is_not_taken_for_the_one_before() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    arm(&mut ledger, 100, due(1, 9000, 0), 41);
    ledger.deafen(200);
    ledger.listen(300);
    // Before any count. Which timer was it?
    ledger.apply(&at(310, Change::Rearmed(due(1, 9500, 0))), &Numbers);
    ledger.reconcile(heap(400, &[due(1, 9500, 0)]), &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::from([(77, 1)]));
    assert!(ledger.sites.iter().all(|site| site.rearmed == 0));
}

#[test]
fn a_timer_that_was_armed_again_while_events_were_lost_is_nobodys() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    arm(&mut ledger, 100, due(1, 9000, 0), 41);
    arm(&mut ledger, 100, due(2, 9000, 0), 42);
    ledger.reconcile(heap(150, &[due(1, 9000, 0), due(2, 9000, 0)]), &Numbers);
    // The event that said that 1 is another now may have been lost before this one.
    ledger.apply(&at(210, Change::Rearmed(due(1, 9500, 0))), &Numbers);
    arm(&mut ledger, 220, due(3, 9700, 0), 43);
    ledger.missed(200);
    let world = [due(1, 9500, 0), due(2, 9000, 0), due(3, 9700, 0)];
    ledger.reconcile(heap(400, &world), &Numbers);
    let expected = HashMap::from([(42, 1), (43, 1), (77, 1)]);
    assert_eq!(live_by_line(&ledger), expected);
}

#[test]
fn a_new_timer_at_an_old_address_has_not_been_there_since() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    arm(&mut ledger, 100, due(1, 300, 0), 41);
    ledger.reconcile(heap(200, &[due(1, 300, 0)]), &Numbers);
    // It fires and is freed; the same line makes another. And one that is only armed again.
    ledger.apply(&at(300, Change::Fired(due(1, 300, 0))), &Numbers);
    arm(&mut ledger, 350, due(1, 900, 0), 41);
    ledger.reconcile(heap(400, &[due(1, 900, 0)]), &Numbers);
    let there = |ledger: &Ledger| ledger.timers().map(|timer| timer.there_since_ns).collect();
    let since: Vec<u64> = there(&ledger);
    assert_eq!(since, [350]);
    ledger.apply(&at(900, Change::Fired(due(1, 900, 0))), &Numbers);
    ledger.apply(&at(901, Change::Rearmed(due(1, 2000, 0))), &Numbers);
    ledger.reconcile(heap(1000, &[due(1, 2000, 0)]), &Numbers);
    let since: Vec<u64> = there(&ledger);
    assert_eq!(since, [350]);
}

#[test]
fn what_a_timer_calls_may_arm_it_again() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    arm(&mut ledger, 100, due(1, 300, 0), 41);
    // One that is older than the probes, one that is moved before it is due, and one that is stopped first.
    ledger.apply(&at(200, Change::Fired(due(7, 200, 0))), &Numbers);
    ledger.apply(&at(201, Change::Rearmed(due(7, 900, 0))), &Numbers);
    ledger.apply(&at(210, Change::Rearmed(due(1, 400, 0))), &Numbers);
    let renewed = |ledger: &Ledger, line| {
        let mut sites = ledger.sites.iter().filter(|site| site.at.line == line);
        sites
            .next()
            .map(|site| (site.fired, site.rearmed, site.renewed))
    };
    assert_eq!(renewed(&ledger, 41), Some((0, 1, 0)));
    assert_eq!(renewed(&ledger, 77), Some((1, 1, 1)));
    ledger.apply(&at(400, Change::Fired(due(1, 400, 0))), &Numbers);
    ledger.apply(&at(401, Change::Rearmed(due(1, 700, 0))), &Numbers);
    assert_eq!(renewed(&ledger, 41), Some((1, 2, 1)));
    let stop = Change::Stopped {
        timer: RuntimeAddr(1),
    };
    ledger.apply(&at(500, stop), &Numbers);
    ledger.apply(&at(501, Change::Rearmed(due(1, 800, 0))), &Numbers);
    assert_eq!(renewed(&ledger, 41), Some((1, 3, 1)));
}

proptest! {
    /// Whatever timers do in a pause, none is shown at a line that did not make it.
    #[test]
    fn no_timer_is_shown_at_a_line_that_did_not_make_it(
        before in prop::collection::vec((1..8_u64, 1..6_u64, 0..4_u8), 0..40),
        pause in prop::collection::vec((1..8_u64, 1..6_u64, 0..4_u8), 0..40),
        after in prop::collection::vec((1..8_u64, 1..6_u64, 0..4_u8), 0..40),
        lossy in any::<bool>(),
        counted in any::<bool>(),
    ) {
        let mut ledger = Ledger::default();
        ledger.listen(0);
        let mut now: u64 = 100;
        // Who made what is at each address, and when it is due.
        let mut world: HashMap<u64, (u64, event::Timer, bool)> = HashMap::new();
        let mut play = |ledger: &mut Ledger, steps: &[(u64, u64, u8)], is_heard: &dyn Fn(u64) -> bool| {
            for (number, line, what) in steps {
                now += 10;
                let is_heard = is_heard(now);
                let when = i64::try_from(now + 100_000).unwrap_or(i64::MAX);
                let fresh = due(*number, when, 0);
                match (what, world.get_mut(number)) {
                    (0 | 1, _) => {
                        world.insert(*number, (*line, fresh, true));
                        if is_heard {
                            arm(ledger, now, fresh, 40 + line);
                        }
                    }
                    (2, Some(one)) => {
                        (one.1, one.2) = (fresh, true);
                        if is_heard {
                            ledger.apply(&at(now, Change::Rearmed(fresh)), &Numbers);
                        }
                    }
                    (3, Some(one)) => {
                        one.2 = false;
                        if is_heard {
                            ledger.apply(&at(now, Change::Stopped { timer: fresh.timer }), &Numbers);
                        }
                    }
                    _ => {}
                }
            }
            (now, world.clone())
        };
        let (begin, _) = play(&mut ledger, &before, &|_| true);
        if !lossy {
            ledger.deafen(begin);
        }
        // Of what happens while events are lost, some is heard.
        let (end, mut left) = play(&mut ledger, &pause, &|now| lossy && now % 20 == 0);
        if lossy {
            ledger.missed(begin);
        } else {
            ledger.listen(end);
        }
        if counted {
            let timers: Vec<_> = left.values().filter(|one| one.2).map(|one| one.1).collect();
            ledger.reconcile(heap(end + 1, &timers), &Numbers);
        }
        let (last, world) = play(&mut ledger, &after, &|_| true);
        left = world;
        let timers: Vec<_> = left.values().filter(|one| one.2).map(|one| one.1).collect();
        ledger.reconcile(heap(last + 1, &timers), &Numbers);
        let mut made: HashMap<u32, u64> = HashMap::new();
        for one in left.values().filter(|one| one.2) {
            *made.entry(u32::try_from(40 + one.0).unwrap_or(0)).or_default() += 1;
        }
        let shown = live_by_line(&ledger);
        prop_assert_eq!(shown.values().sum::<u64>(), timers.len() as u64);
        for (line, count) in shown.into_iter().filter(|(line, _)| *line != 77) {
            prop_assert!(count <= made.get(&line).copied().unwrap_or(0), "{line}");
        }
    }
}
