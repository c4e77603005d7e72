//! The books under events, censuses, losses and every mixture of them.

mod alive;
mod timers;

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::census::{Census, Goroutine, Status, Timer};
use crate::event::Slot;
use crate::resolve::pclntab::Frame;

/// Every pc is a function of its own, on the line of its number.
struct Numbers;

const SEND_TIME: RuntimeAddr = RuntimeAddr(900);
const GO_FUNC: RuntimeAddr = RuntimeAddr(901);

impl Symbols for Numbers {
    fn frames_of_return(&self, pc: RuntimeAddr) -> Vec<Frame> {
        let function = match pc.0 {
            500 => "time.NewTimer".to_owned(),
            600 => "time.goFunc".to_owned(),
            number => format!("main.f{number}"),
        };
        vec![Frame {
            function,
            file: "main.go".to_owned(),
            line: u32::try_from(pc.0).unwrap_or(0),
            inlined: false,
        }]
    }

    fn frames(&self, pc: RuntimeAddr) -> Vec<Frame> {
        self.frames_of_return(pc)
    }

    fn stack(&self, stack: StackId) -> Vec<RuntimeAddr> {
        vec![RuntimeAddr(500), RuntimeAddr(stack.0.get())]
    }

    fn timer_kind(&self, function: RuntimeAddr, period_ns: i64) -> Option<TimerKind> {
        match function {
            SEND_TIME if period_ns > 0 => Some(TimerKind::Ticker),
            SEND_TIME => Some(TimerKind::Timer),
            GO_FUNC => Some(TimerKind::AfterFunc),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Life {
    Born,
    Ended,
}

fn goroutine_event(life: Life, at_ns: u64, goid: u64, gopc: u64) -> Event {
    let goroutine = event::Goroutine {
        goid: Goid(goid),
        g: RuntimeAddr(0x1000 + goid),
        gopc: RuntimeAddr(gopc),
        startpc: RuntimeAddr(700),
    };
    let change = match life {
        Life::Born => Change::Born {
            goroutine,
            parent: None,
            stack: None,
            timer: None,
        },
        Life::Ended => Change::Ended(goroutine),
    };
    at(at_ns, change)
}

fn at(at_ns: u64, change: Change) -> Event {
    Event {
        at: Ktime(at_ns),
        pid: 1,
        slot: Slot(0),
        change,
    }
}

fn alive(goid: u64, gopc: u64) -> Goroutine {
    Goroutine {
        goid: Goid(goid),
        g: RuntimeAddr(0x1000 + goid),
        status: Status::Waiting,
        wait_reason: 14,
        gopc: RuntimeAddr(gopc),
        startpc: RuntimeAddr(700),
        stack_bytes: 2048,
        depth: 128,
        waiting_since_ns: 0,
        waiting: 0,
        stops: 0,
        leaked: false,
    }
}

fn census(started_ns: u64, goroutines: Vec<Goroutine>) -> Census {
    Census {
        started_ns,
        finished_ns: started_ns + 10,
        goroutines,
        timers: Some(Vec::new()),
        unreadable: 0,
    }
}

fn live_by_line(ledger: &Ledger) -> HashMap<u32, u64> {
    let sites = ledger.sites.iter().filter(|site| site.live > 0);
    sites.map(|site| (site.at.line, site.live)).collect()
}

#[test]
fn what_lived_before_is_seeded_and_is_no_drift() {
    let mut ledger = Ledger::default();
    ledger.listen(100);
    let drift = ledger.reconcile(census(200, vec![alive(1, 10), alive(2, 10)]), &Numbers);
    assert_eq!(drift, Drift::default());
    assert_eq!(live_by_line(&ledger), HashMap::from([(10, 2)]));
    ledger.apply(&goroutine_event(Life::Ended, 300, 1, 10), &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::from([(10, 1)]));
}

#[test]
fn births_and_ends_around_a_census_are_in_flight() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    ledger.reconcile(census(50, vec![alive(1, 10)]), &Numbers);
    // 1 ends while the census runs and was still seen; 2 is born too late to be seen.
    ledger.apply(&goroutine_event(Life::Ended, 205, 1, 10), &Numbers);
    ledger.apply(&goroutine_event(Life::Born, 206, 2, 20), &Numbers);
    let drift = ledger.reconcile(census(200, vec![alive(1, 10)]), &Numbers);
    assert_eq!(drift, Drift::default());
    assert_eq!(live_by_line(&ledger), HashMap::from([(20, 1)]));
}

#[test]
fn lost_events_are_drift_once_and_then_right() {
    let mut ledger = Ledger::default();
    ledger.listen(0);
    ledger.reconcile(census(50, Vec::new()), &Numbers);
    ledger.apply(&goroutine_event(Life::Born, 60, 1, 10), &Numbers);
    // The end of 1 and the birth of 2 were lost.
    let second = census(100, vec![alive(2, 20)]);
    let drift = ledger.reconcile(second, &Numbers);
    assert_eq!(
        drift,
        Drift {
            missed_births: 1,
            missed_ends: 1
        }
    );
    assert_eq!(live_by_line(&ledger), HashMap::from([(20, 1)]));
    let drift = ledger.reconcile(census(200, vec![alive(2, 20)]), &Numbers);
    assert_eq!(drift, Drift::default());
}

/// A program that makes up where its goroutines come from gets so many sites and no more, and all are counted.
#[test]
fn made_up_sites_are_bounded() {
    let mut ledger = Ledger::default();
    let world: Vec<Goroutine> = (1..=40_000).map(|goid| alive(goid, 1000 + goid)).collect();
    let count = world.len();
    ledger.reconcile(census(100, world), &Numbers);
    assert!(ledger.sites.iter().count() <= (1 << 14) + 8);
    let live: u64 = ledger.sites.iter().map(|site| site.live).sum();
    assert_eq!(live, count as u64);
    ledger.reconcile(census(200, Vec::new()), &Numbers);
    assert!(ledger.sites.iter().all(|site| site.live == 0));
}

/// Torn or forged memory can list one thing twice, differently: it counts once, and the books stay balanced.
#[test]
fn what_a_census_lists_twice_counts_once() {
    let mut ledger = Ledger::default();
    let mut twice = census(100, vec![alive(1, 10), alive(1, 20)]);
    twice.timers = Some(vec![pending(2, GO_FUNC, 77), pending(2, GO_FUNC, 78)]);
    ledger.reconcile(twice, &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::from([(20, 1), (78, 1)]));
    ledger.reconcile(census(200, Vec::new()), &Numbers);
    assert_eq!(live_by_line(&ledger), HashMap::new());
}

fn pending(timer: u64, function: RuntimeAddr, callback: u64) -> Timer {
    Timer {
        timer: RuntimeAddr(timer),
        kind: Numbers.timer_kind(function, 0),
        when_ns: 1000,
        period_ns: 0,
        function,
        callback: RuntimeAddr(callback),
    }
}

proptest! {
    /// Whatever is lost, delivered twice or out of place, after a census the books equal it, nothing is negative,
    /// and a second census of the same world finds no drift.
    #[test]
    fn a_census_makes_the_books_right(
        events in prop::collection::vec((0..2_u8, 1..40_u64, 1..5_u64), 0..200),
        survivors in prop::collection::btree_map(1..60_u64, 1..5_u64, 0..40),
    ) {
        let mut ledger = Ledger::default();
        ledger.listen(0);
        ledger.reconcile(census(1, Vec::new()), &Numbers);
        for (at, (kind, goid, site)) in events.into_iter().enumerate() {
            let kind = if kind == 0 { Life::Born } else { Life::Ended };
            ledger.apply(&goroutine_event(kind, 10 + at as u64, goid, site), &Numbers);
        }
        let world: Vec<Goroutine> = survivors.iter().map(|(goid, site)| alive(*goid, *site)).collect();
        ledger.reconcile(census(1000, world.clone()), &Numbers);
        let booked: u64 = ledger.sites.iter().map(|site| site.live).sum();
        prop_assert_eq!(booked, world.len() as u64);
        prop_assert_eq!(ledger.goroutines().count(), world.len());
        let drift = ledger.reconcile(census(2000, world), &Numbers);
        prop_assert_eq!(drift, Drift::default());
    }

    /// With every event delivered in order, the events alone keep the books that a census would.
    #[test]
    fn complete_events_never_drift(lives in prop::collection::vec((1..6_u64, any::<bool>()), 0..300)) {
        let mut ledger = Ledger::default();
        ledger.listen(0);
        ledger.reconcile(census(1, Vec::new()), &Numbers);
        let mut world = Vec::new();
        for (goid, (site, ends)) in (1..).zip(lives) {
            ledger.apply(&goroutine_event(Life::Born, 10, goid, site), &Numbers);
            if ends {
                ledger.apply(&goroutine_event(Life::Ended, 20, goid, site), &Numbers);
            } else {
                world.push(alive(goid, site));
            }
        }
        prop_assert_eq!(ledger.reconcile(census(1000, world), &Numbers), Drift::default());
    }
}

#[test]
fn what_came_and_went_in_a_pause_is_no_drift() {
    let mut ledger = Ledger::default();
    ledger.listen(100);
    ledger.reconcile(census(200, vec![alive(1, 10)]), &Numbers);
    ledger.apply(&goroutine_event(Life::Born, 300, 2, 10), &Numbers);
    ledger.deafen(310);
    // Goroutine 1 ended unheard, 3 and 4 were born.
    let found = census(400, vec![alive(2, 10), alive(3, 10), alive(4, 10)]);
    assert_eq!(ledger.reconcile(found, &Numbers), Drift::default());
    assert_eq!(live_by_line(&ledger), HashMap::from([(10, 3)]));
    ledger.listen(500);
    let found = census(600, vec![alive(2, 10), alive(5, 10)]);
    assert_eq!(ledger.reconcile(found, &Numbers), Drift::default());
    // Seeded again: from now on what was not heard of is drift.
    let found = census(700, vec![alive(2, 10), alive(5, 10), alive(6, 10)]);
    assert_eq!(ledger.reconcile(found, &Numbers).missed_births, 1);
    assert_eq!(live_by_line(&ledger), HashMap::from([(10, 3)]));
}

#[test]
fn short_samples_tell_no_lifetimes() {
    const SECOND: u64 = 1_000_000_000;
    let mut ledger = Ledger::default();
    ledger.listen(0);
    let live_and_end = |ledger: &mut Ledger, at_ns: u64, goid: u64| {
        ledger.apply(&goroutine_event(Life::Born, at_ns, goid, 10), &Numbers);
        ledger.apply(&goroutine_event(Life::Ended, at_ns + 5, goid, 10), &Numbers);
    };
    let told = |ledger: &Ledger| -> u64 {
        (ledger.sites.iter())
            .map(|site| site.lifetimes.count())
            .sum()
    };
    live_and_end(&mut ledger, SECOND, 1);
    assert_eq!(told(&ledger), 1);
    ledger.deafen(2 * SECOND);
    ledger.listen(20 * SECOND);
    live_and_end(&mut ledger, 21 * SECOND, 2);
    assert_eq!(told(&ledger), 1);
    // It goes on longer than any sample.
    live_and_end(&mut ledger, 31 * SECOND, 3);
    assert_eq!(told(&ledger), 2);
}
