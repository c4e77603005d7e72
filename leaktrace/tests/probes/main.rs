//! Do the probes say what really happened in a Go program, and leave no trace?
//!
//! Needs root, and Go toolchains under `$LEAKTRACE_GO_DIR` or `target/go` (`go<VERSION>/go/bin/go`); says
//! so and passes when one is missing. amd64 only.
#![cfg(target_arch = "x86_64")]

mod binary;
mod events;
mod killed;
mod old_kernel;
mod program;
mod sharing;
mod timers;

use std::{collections::HashSet, thread};

use leaktrace::{
    event::{Goid, Ring},
    probe::{LoadOptions, ProbeError, Probes},
};
use leaktrace_common::event::{Kind, Loss};

use binary::Binary;
use events::{births, collect, count, goroutine_events, settle};
use program::{Program, on_each_release};

#[test]
fn births_and_ends_are_exact_and_carry_their_stack() {
    on_each_release(&["1.22", "1.25", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let mut set = probes
            .attach(&binary.request(program.pid(), &binary.points(&Kind::ALL)))
            .expect("attaching");

        program.tell("spawn 5000");
        program.tell("leak 100");
        // The leaked ones block some time after the program's answer.
        let events = collect(&mut ring, |events| {
            let mut hits = probes.hits(&set);
            // Parks and wake-ups leave no events.
            let parked = std::mem::take(&mut hits[Kind::Parked as usize]);
            hits[Kind::Readied as usize] = 0;
            parked >= 100 && count(events) == hits
        });
        let goroutines: Vec<_> = goroutine_events(&events).collect();
        let born = |function| births(&goroutines, &binary, function);
        let spawned = born("main.spawn");
        let leaked = born("main.leak");
        assert_eq!(spawned.len(), 5000);
        assert_eq!(leaked.len(), 100);

        let ended: HashSet<_> = goroutines
            .iter()
            .filter(|event| event.kind == Kind::Ended)
            .map(|event| event.goid)
            .collect();
        assert!(spawned.iter().all(|birth| ended.contains(&birth.goid)));
        assert!(!leaked.iter().any(|birth| ended.contains(&birth.goid)));
        let goids: HashSet<_> = spawned.iter().map(|birth| birth.goid).collect();
        assert_eq!(goids.len(), 5000, "no goid twice");

        for birth in spawned.iter().chain(&leaked) {
            assert_eq!(birth.pid, program.pid().get());
            assert_eq!(birth.slot, set.slot());
            assert_eq!(birth.parent, Some(Goid(1)), "main's goroutine is number 1");
            let frames = probes
                .stack(birth.stack.expect("a stack"))
                .expect("kept in the map");
            assert!(
                frames.contains(&birth.gopc),
                "{frames:?} has {}",
                birth.gopc
            );
            let callers: Vec<_> = frames.iter().map(|&pc| binary.function_at(pc)).collect();
            assert!(callers.contains(&"main.main"), "{callers:?}");
            assert_eq!(callers.last(), Some(&"runtime.goexit"), "{callers:?}");
        }
        for birth in &leaked {
            let since = probes.blocked_since(&set, birth.g, birth.goid);
            assert!(since.is_some(), "goroutine {} is blocked", birth.goid);
        }
        let waits = probes.blocked_times(&set);
        assert!(waits.iter().any(|wait| wait.totals.lengths.count() > 0));

        assert_eq!(probes.lost(&set), [0; Loss::COUNT as usize]);
        println!("hits {:?}", probes.hits(&set));

        set.detach();
        // A probe is off when its last descriptor is closed, and a test beside this one that starts a
        // process has copies of ours until that process executes its program.
        let quiet = (0..100).any(|_| {
            settle(&mut ring);
            program.tell("spawn 1000");
            settle(&mut ring).is_empty()
        });
        assert!(quiet, "no events once the probes are off");
    });
}

#[test]
fn no_more_hits_come_through_than_are_allowed() {
    on_each_release(&["1.22", "1.27"], |binary, minor| {
        const ALLOWED: u64 = 100;
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let set = probes
            .attach(&binary.request(program.pid(), &binary.points(&[Kind::Born])))
            .expect("attaching");
        probes.allow(&set, ALLOWED).expect("the map is there");
        program.tell("spawn 5000");
        let arrived = settle(&mut ring).len() as u64;
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        assert!(
            (ALLOWED..=ALLOWED * processors).contains(&arrived),
            "{arrived}"
        );
        // Each hit is counted, whether it came through or not.
        let turned_away = probes.lost(&set)[Loss::OverBudget as usize];
        assert_eq!(
            arrived + turned_away,
            probes.hits(&set)[Kind::Born as usize]
        );
        // And so it stays until more are allowed.
        program.tell("spawn 100");
        probes.allow(&set, u64::MAX).expect("the map is there");
        program.tell("spawn 1000");
        assert!(settle(&mut ring).len() >= 1000);
    });
}

#[test]
fn what_does_not_fit_is_counted() {
    on_each_release(&["1.25"], |binary, minor| {
        let mut program = Program::start(binary);
        let small = LoadOptions {
            cookies: leaktrace::probe::has_cookies(),
            links: false,
            ring_bytes: 4096,
            stacks: 1,
            waits: 0,
        };
        let (mut probes, mut ring) = Probes::load(&small).expect("loading");
        let binary = Binary::open(binary, minor);
        let set = probes
            .attach(&binary.request(program.pid(), &binary.points(&[Kind::Born])))
            .expect("attaching");
        program.tell("spawn 1000");
        program.tell("leak 1000");
        let arrived = settle(&mut ring).len() as u64;
        let [ring_full, _, read_fault, unknown_slot, _, over_budget] = probes.lost(&set);
        let hits = probes.hits(&set)[Kind::Born as usize];
        assert!(ring_full > 0);
        assert_eq!(arrived + ring_full, hits);
        assert_eq!((read_fault, unknown_slot, over_budget), (0, 0, 0));
        program.tell("leak 10");
        assert!(settle(&mut ring).len() >= 10);
        let [_, stacks_full, ..] = probes.lost(&set);
        assert!(stacks_full >= 10, "the map holds one stack, of spawn");
    });
}

#[test]
fn a_changed_instruction_and_a_gone_process_are_refused() {
    on_each_release(&["1.25"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, _ring) = load();
        let binary = Binary::open(binary, minor);
        let mut points = binary.points(&[Kind::Born]);
        points[0].bytes[1] ^= 1;
        let refusal = probes.attach(&binary.request(program.pid(), &points));
        assert!(matches!(refusal, Err(ProbeError::Changed { .. })));

        let pid = program.pid();
        program.child.kill().expect("our own child");
        program.child.wait().expect("our own child");
        let points = binary.points(&[Kind::Born]);
        let refusal = probes.attach(&binary.request(pid, &points));
        let Err(ProbeError::TargetGone(gone)) = refusal else {
            panic!("attached to a process that is gone");
        };
        assert_eq!(gone, pid.get());
    });
}

fn load() -> (Probes, Ring) {
    Probes::load(&LoadOptions::default()).expect("loading")
}
