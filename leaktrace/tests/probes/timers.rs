//! Timers, and the goroutines that they start.

use std::collections::BTreeMap;

use leaktrace::address::RuntimeAddr;
use leaktrace_common::event::{Kind, Loss};

use crate::{
    binary::Binary,
    events::{TimerEvent, births, goroutine_events, settle, timer_events},
    load,
    program::{Program, on_each_release},
};

#[test]
fn a_goroutine_that_a_timer_started_has_no_creation_stack() {
    on_each_release(&["1.22", "1.25", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let _set = probes
            .attach(&binary.request(program.pid(), &binary.points(&[Kind::Born])))
            .expect("attaching");
        for _ in 0..20 {
            program.tell("fromtimer");
        }
        let events = settle(&mut ring);
        let goroutines: Vec<_> = goroutine_events(&events).collect();
        let born = births(&goroutines, &binary, "time.goFunc");
        assert_eq!(born.len(), 20);
        for birth in born {
            assert_eq!(birth.stack, None);
            assert_eq!(birth.parent, None);
            let started = binary.function_at(RuntimeAddr(birth.startpc.0 + 1));
            assert_eq!(started, "main.spawnFromTimer.func1");
        }
    });
}

#[test]
fn timers_are_seen_with_what_they_run_and_where_they_were_armed() {
    on_each_release(&["1.22", "1.25", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let timer_kinds = [Kind::Armed, Kind::Stopped, Kind::Rearmed, Kind::Fired];
        let set = probes
            .attach(&binary.request(program.pid(), &binary.points(&timer_kinds)))
            .expect("attaching");
        program.tell("timers");
        program.tell("fromtimer");
        let events = settle(&mut ring);
        let timers: Vec<TimerEvent> = timer_events(&events).collect();
        let of = |kind| -> Vec<_> { timers.iter().filter(|t| t.kind == kind).collect() };
        let runs = |timer: &TimerEvent| binary.function_at(RuntimeAddr(timer.function.0 + 1));
        const HOUR: i64 = 3_600_000_000_000;

        let armed = of(Kind::Armed);
        assert_eq!(armed.len(), 12, "ten timers, a ticker, an AfterFunc");
        let hourly: Vec<_> = armed
            .iter()
            .filter(|timer| timer.when_ns - timer.at_ns as i64 > HOUR - 60_000_000_000)
            .collect();
        assert_eq!(hourly.len(), 10);
        assert!(
            hourly
                .iter()
                .all(|t| runs(t) == "time.sendTime" && t.period_ns == 0)
        );
        let ticker: Vec<_> = armed.iter().filter(|t| t.period_ns == 1_000_000).collect();
        assert_eq!(ticker.len(), 1);
        let after: Vec<_> = armed.iter().filter(|t| runs(t) == "time.goFunc").collect();
        assert_eq!(after.len(), 1);
        let callback = RuntimeAddr(after[0].callback.0 + 1);
        assert_eq!(binary.function_at(callback), "main.spawnFromTimer.func1");
        for timer in &armed {
            let frames = probes.stack(timer.stack.expect("a stack")).expect("kept");
            let callers: Vec<_> = frames.iter().map(|&pc| binary.function_at(pc)).collect();
            let maker = if runs(timer) == "time.goFunc" {
                "main.spawnFromTimer"
            } else {
                "main.timers"
            };
            assert!(callers.contains(&maker), "{callers:?}");
            assert_eq!(callers.last(), Some(&"runtime.goexit"), "{callers:?}");
        }

        let stopped = of(Kind::Stopped);
        assert_eq!(stopped.len(), 5, "four timers and the ticker");
        assert!(stopped.iter().any(|t| t.timer == ticker[0].timer));
        let rearmed = of(Kind::Rearmed);
        assert_eq!(rearmed.len(), 3);
        for timer in rearmed {
            assert!(hourly.iter().any(|t| t.timer == timer.timer));
            assert!(timer.when_ns - timer.at_ns as i64 > 2 * HOUR - 60_000_000_000);
            assert_eq!(runs(timer), "time.sendTime");
        }
        let fired = of(Kind::Fired);
        let ticks = fired.iter().filter(|t| t.timer == ticker[0].timer);
        assert!(ticks.count() >= 5);
        let user: BTreeMap<_, _> = fired.iter().map(|t| (t.timer, runs(t))).collect();
        assert_eq!(user.get(&after[0].timer), Some(&"time.goFunc"));
        assert_eq!(probes.lost(&set), [0; Loss::COUNT as usize]);
    });
}
