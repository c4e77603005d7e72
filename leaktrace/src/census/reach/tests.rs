//! Small programs written word by word: who can still be woken in them, and what becomes of nonsense.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::heap::{IN_USE, PAGE};
use super::*;
use crate::census::tests::Regions;
use crate::census::{Anchors, ConnectionLoops, HeapLayout, Status, TimerFunctions, TimerKind};
use crate::resolve::heap::HeapOffsets;
use crate::resolve::offsets;

const VARIABLES: u64 = 0x1000;
const MHEAP: u64 = 0x2000;
const SPAN_LIST: u64 = 0x3000;
const SPAN: u64 = 0x4000;
const GS: u64 = 0x1_0000;
const G_BYTES: u64 = 0x400;
const STACKS: u64 = 0x4_0000;
const STACK_BYTES: u64 = 0x100;
/// `runtime.itabTable`, the table, and the one pair of an interface and a type in it, whose second method is `CANCEL`.
const ITABS: u64 = 0x5000;
const ITAB: u64 = ITABS + 0x40;
const CANCEL: u64 = 0x77;
/// `runtime.allp`: no P.
const ALLP: u64 = 0x6000;
/// Code: what starts the goroutines of a connection, and what they run.
const DIAL: u64 = 0x50;
const READ_LOOP: u64 = 0x9000;
const WRITE_LOOP: u64 = 0x9100;
/// The heap: objects of 64 bytes.
const HEAP: u64 = 0xc000_0000;
const OBJECT_BYTES: u64 = 64;

const OFFSETS: HeapOffsets = HeapOffsets {
    allspans: 16,
    start: 0,
    pages: 8,
    element_bytes: 16,
    state: 24,
    class: 25,
    specials: 32,
};

struct Program {
    memory: Regions,
    layout: Layout,
    goroutines: Vec<Goroutine>,
    timers: Vec<Timer>,
    channels: Waits<Channel>,
}

impl Program {
    /// One span of the heap, no goroutine.
    fn new() -> Self {
        let mut releases = offsets::table().expect("the table");
        let release = releases.pop().expect("a release");
        let nowhere = RuntimeAddr(0);
        let part = |start: u64| RuntimeAddr(start)..RuntimeAddr(start + 0x100);
        let regions = [
            (VARIABLES, 0x200),
            (MHEAP, 0x100),
            (SPAN_LIST, 0x100),
            (SPAN, 0x100),
            (ITABS, 0x100),
            (ALLP, 0x100),
            (GS, 0x4000),
            (STACKS, 0x1000),
            (HEAP, PAGE),
        ];
        let zeroes =
            |(start, bytes): (u64, u64)| (start, vec![0; usize::try_from(bytes).expect("small")]);
        let mut program = Self {
            memory: Regions(BTreeMap::from(regions.map(zeroes))),
            layout: Layout {
                allglen: nowhere,
                allgptr: nowhere,
                allp: RuntimeAddr(ALLP),
                wait_reasons: nowhere,
                wait_reason_count: 0,
                semaphores: None,
                heap: Some(HeapLayout {
                    mheap: RuntimeAddr(MHEAP),
                    offsets: OFFSETS,
                    variables: [part(VARIABLES), part(VARIABLES + 0x100)],
                    itab_table: Some(RuntimeAddr(ITABS)),
                    cancels: vec![RuntimeAddr(CANCEL)],
                    connection_loops: Some(ConnectionLoops {
                        starts: part(DIAL - 0x10),
                        reads: part(READ_LOOP),
                        writes: part(WRITE_LOOP),
                    }),
                }),
                offsets: release.offsets,
                timer_functions: TimerFunctions::default(),
                anchors: Anchors::default(),
            },
            goroutines: Vec::new(),
            timers: Vec::new(),
            channels: Waits::default(),
        };
        program.write(MHEAP + 16, SPAN_LIST);
        program.write(MHEAP + 24, 1);
        program.write(SPAN_LIST, SPAN);
        program.write(SPAN, HEAP);
        program.write(SPAN + 8, 1);
        program.write(SPAN + 16, OBJECT_BYTES);
        program.write(SPAN + 24, u64::from(IN_USE));
        program.write(ITABS, ITABS + 8);
        program.write(ITABS + 8, 2);
        program.write(ITABS + 8 + 16 + 8, ITAB);
        program.write(ITAB + 32, CANCEL);
        program
    }

    fn write(&mut self, address: u64, word: u64) {
        let (start, region) = (self.memory.0.range_mut(..=address).next_back()).expect("a region");
        let at = usize::try_from(address - start).expect("regions are small");
        region[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    /// One more goroutine; answers with the lowest address of its stack.
    fn goroutine(&mut self, status: Status) -> u64 {
        let number = self.goroutines.len() as u64;
        let (g, stack) = (GS + number * G_BYTES, STACKS + number * STACK_BYTES);
        let bounds = u64::from(self.layout.offsets.g_stack);
        self.write(g + bounds, stack);
        self.write(g + bounds + 8, stack + STACK_BYTES);
        self.goroutines.push(Goroutine {
            goid: Goid(number + 1),
            g: RuntimeAddr(g),
            status,
            wait_reason: 0,
            gopc: RuntimeAddr(DIAL),
            startpc: RuntimeAddr(0x60),
            stack_bytes: u32::try_from(STACK_BYTES).expect("small"),
            depth: u32::try_from(STACK_BYTES).expect("small"),
            waiting_since_ns: 0,
            waiting: 0,
            stops: 0,
            leaked: false,
        });
        stack
    }

    /// One more goroutine that waits for a channel.
    fn waits_for(&mut self, channel: u64) -> u64 {
        let stack = self.goroutine(Status::Waiting);
        self.and_for(channel);
        self.write(stack + 8, channel);
        stack
    }

    /// The last goroutine also waits for this channel.
    fn and_for(&mut self, channel: u64) {
        let known = |other: &Channel| other.address.0 == channel;
        if let Some(thing) = self.channels.things.iter().position(known) {
            self.channels.edges.push((self.goroutines.len() - 1, thing));
            return;
        }
        let thing = self.channels.things.len();
        self.channels.things.push(Channel {
            address: RuntimeAddr(channel),
            capacity: 0,
            length: 0,
            closed: false,
            receivers: 1,
            senders: 0,
            selecting: 0,
        });
        self.channels.edges.push((self.goroutines.len() - 1, thing));
    }

    /// One more pending timer.
    fn timer(&mut self, timer: u64, kind: TimerKind) {
        self.timers.push(Timer {
            timer: RuntimeAddr(timer),
            kind: Some(kind),
            when_ns: 0,
            period_ns: 0,
            function: RuntimeAddr(0),
            callback: RuntimeAddr(0),
        });
    }

    fn look(&self) -> Result<Reached, ReachError> {
        self.look_by(&|| 0)
    }

    fn look_by(&self, clock: &dyn Fn() -> u64) -> Result<Reached, ReachError> {
        let scene = Scene {
            memory: &self.memory,
            layout: &self.layout,
            wait_reasons: &[],
            goroutines: &self.goroutines,
            timers: &self.timers,
            channels: &self.channels,
            semaphores: &Waits::default(),
        };
        look(&scene, clock)
    }

    /// The numbers of those whom only this one could wake.
    fn woken_by(&self, waker: Waker) -> Vec<u64> {
        let reached = self.look().expect("all of it can be read");
        (reached.alone.iter())
            .filter(|(_, own)| *own == waker)
            .map(|(goid, _)| goid.0)
            .collect()
    }

    fn stranded(&self) -> Vec<u64> {
        self.woken_by(Waker::Nobody)
    }

    fn forgotten(&self) -> Vec<u64> {
        let reached = self.look().expect("all of it can be read");
        reached.forgotten.iter().map(|timer| timer.0).collect()
    }
}

/// The object with this number.
fn object(number: u64) -> u64 {
    HEAP + number * OBJECT_BYTES
}

#[test]
fn who_alone_refers_to_what_it_waits_for_is_stranded() {
    let mut program = Program::new();
    program.waits_for(object(1));
    program.goroutine(Status::Runnable);
    assert_eq!(program.stranded(), [1]);
}

#[test]
fn a_variable_keeps_it_alive_also_over_other_objects_and_by_a_pointer_into_the_middle() {
    let mut program = Program::new();
    program.waits_for(object(1));
    program.write(VARIABLES + 0x108, object(5) + 24);
    assert_eq!(program.stranded(), [1]);
    program.write(object(5) + 16, object(7));
    program.write(object(7), object(1) + 8);
    assert_eq!(program.stranded(), [] as [u64; 0]);
}

#[test]
fn the_end_of_a_stack_refers_to_nothing() {
    let mut program = Program::new();
    // One more span before that of the test, and a stack between.
    program.waits_for(object(0));
    program.write(MHEAP + 24, 2);
    program.write(SPAN_LIST + 8, SPAN + 0x40);
    program.write(SPAN + 0x40, HEAP - 2 * PAGE);
    program.write(SPAN + 0x48, 1);
    program.write(SPAN + 0x50, OBJECT_BYTES);
    program.write(SPAN + 0x58, u64::from(IN_USE));
    program.write(VARIABLES, HEAP - PAGE);
    program.write(VARIABLES + 8, HEAP);
    assert_eq!(program.stranded(), [1]);
    program.write(VARIABLES, 0);
    assert_eq!(program.stranded(), [] as [u64; 0]);
}

#[test]
fn what_has_no_pointers_refers_to_nothing() {
    let mut program = Program::new();
    program.waits_for(object(1));
    program.write(VARIABLES, object(5));
    program.write(object(5), object(1));
    // The lowest bit of the class.
    program.write(SPAN + 24, u64::from(IN_USE) | 1 << 8);
    assert_eq!(program.stranded(), [1]);
}

#[test]
fn who_runs_or_sleeps_may_wake_others() {
    for status in [Status::Runnable, Status::Waiting] {
        let mut program = Program::new();
        program.waits_for(object(1));
        // A sleep: it waits for no channel.
        let stack = program.goroutine(status);
        program.write(stack + 40, object(1));
        assert_eq!(program.stranded(), [] as [u64; 0], "{status:?}");
    }
}

#[test]
fn two_that_wait_for_each_other_are_stranded_until_somebody_has_one_of_them() {
    let mut program = Program::new();
    let first = program.waits_for(object(1));
    let second = program.waits_for(object(2));
    program.write(first + 16, object(2));
    program.write(second + 16, object(1));
    assert_eq!(program.stranded(), [1, 2]);
    program.write(VARIABLES, object(2));
    assert_eq!(program.stranded(), [] as [u64; 0]);
}

#[test]
fn who_only_the_list_of_a_context_refers_to_waits_for_the_end_of_that_context() {
    let mut program = Program::new();
    program.waits_for(object(1));
    // A context of the program's own lists, as a key of a map, one that has the channel.
    program.write(VARIABLES, object(3));
    program.write(object(3) + 16, ITAB);
    program.write(object(3) + 24, object(4));
    program.write(object(4) + 32, object(1));
    assert_eq!(program.woken_by(Waker::Parent), [1]);
    // The same of one that was made of that one.
    program.waits_for(object(2));
    program.write(object(4) + 40, object(5));
    program.write(object(5), ITAB);
    program.write(object(5) + 8, object(6));
    program.write(object(6), object(2));
    assert_eq!(program.woken_by(Waker::Parent), [1, 2]);
    // Somebody has it, or what cancels it.
    program.write(VARIABLES + 8, object(7));
    program.write(object(7), object(4));
    assert_eq!(program.woken_by(Waker::Parent), [2]);
    assert_eq!(program.stranded(), [] as [u64; 0]);
}

#[test]
fn a_list_counts_as_any_other_use_where_the_tables_of_methods_are_not_known() {
    let mut program = Program::new();
    program.waits_for(object(1));
    program.write(VARIABLES, ITAB);
    program.write(VARIABLES + 8, object(4));
    program.write(object(4), object(1));
    assert_eq!(program.woken_by(Waker::Parent), [1]);
    if let Some(heap) = &mut program.layout.heap {
        heap.itab_table = None;
    }
    assert_eq!(program.look().expect("it can be read").alone, []);
}

#[test]
fn who_only_a_timer_wakes_goes_round_and_is_never_told_to_end() {
    let mut program = Program::new();
    program.waits_for(object(1));
    program.timer(object(6), TimerKind::Ticker);
    program.write(object(6) + 8, object(1));
    assert_eq!(program.woken_by(Waker::Timer), [1]);
    assert_eq!(program.forgotten(), [] as [u64; 0]);
    // It also waits to be told to end, and nobody else has that channel.
    program.and_for(object(2));
    assert_eq!(program.woken_by(Waker::TimerInVain), [1]);
    assert_eq!(program.forgotten(), [object(6)]);
    // Whoever waits for what only such a one has is none himself.
    let stack = STACKS + 24;
    program.write(stack, object(3));
    program.waits_for(object(3));
    assert_eq!(program.woken_by(Waker::TimerInVain), [1]);
    assert_eq!(program.look().expect("it can be read").alone.len(), 1);
    program.write(VARIABLES, object(2));
    assert_eq!(program.look().expect("it can be read").alone, []);
    assert_eq!(program.forgotten(), [] as [u64; 0]);
}

#[test]
fn a_timer_that_only_what_it_calls_has_is_forgotten() {
    let mut program = Program::new();
    program.timer(object(6), TimerKind::AfterFunc);
    // The timer has a function value, that has what it belongs to, and that has the timer.
    program.write(object(6) + 24, object(7));
    program.write(object(7) + 8, object(8));
    // One that fires and is done refers to no timer.
    assert_eq!(program.forgotten(), [] as [u64; 0]);
    program.write(object(8), object(6));
    assert_eq!(program.forgotten(), [object(6)]);
    program.write(VARIABLES, object(8));
    assert_eq!(program.forgotten(), [] as [u64; 0]);
    program.write(VARIABLES, 0);
    // Somebody waits for what it does.
    program.waits_for(object(1));
    program.write(object(8) + 8, object(1));
    assert_eq!(program.look().expect("it can be read").alone, []);
    assert_eq!(program.forgotten(), [] as [u64; 0]);
}

#[test]
fn a_connection_whose_body_nobody_has_is_left_alone() {
    let lost = |program: &Program| program.woken_by(Waker::NobodyHasTheBody);
    let mut program = Program::new();
    // Both wait for the end of the connection, which the Transport knows; one for the body, one for requests.
    let reads = program.waits_for(object(1));
    program.and_for(object(2));
    program.write(reads + 32, READ_LOOP + 4);
    let writes = program.waits_for(object(3));
    program.and_for(object(2));
    program.write(writes + 32, WRITE_LOOP + 4);
    program.write(VARIABLES, object(5));
    program.write(object(5), object(2));
    program.write(object(5) + 8, object(3));
    // None of the channels has room: it waits for something else.
    assert_eq!(lost(&program), [] as [u64; 0]);
    program.channels.things[0].capacity = 1;
    assert_eq!(lost(&program), [1, 2]);
    // Somebody reads it.
    program.write(VARIABLES + 8, object(1));
    assert_eq!(program.look().expect("it can be read").alone, []);
    // Not a connection.
    program.write(VARIABLES + 8, 0);
    program.write(reads + 32, 0);
    assert_eq!(program.look().expect("it can be read").alone, []);
}

#[test]
fn a_channel_that_is_not_in_the_heap_is_nobody_s_proof() {
    let mut program = Program::new();
    program.waits_for(VARIABLES + 0x40);
    assert_eq!(program.stranded(), [] as [u64; 0]);
}

#[test]
fn what_cannot_be_read_or_is_too_much_is_said() {
    let mut program = Program::new();
    program.waits_for(object(1));
    let mut blind = Program::new();
    blind.layout.heap = None;
    assert!(matches!(blind.look(), Err(ReachError::Unknown)));
    program.write(MHEAP + 24, u64::MAX);
    assert!(matches!(program.look(), Err(ReachError::TooMuch("spans"))));
    program.write(MHEAP + 24, 1);
    // A heap that is not there, and one object as large as all memory.
    program.write(SPAN, 0x7000_0000);
    program.write(VARIABLES, 0x7000_0000);
    assert!(matches!(program.look(), Err(ReachError::Unreadable)));
    program.write(SPAN + 8, u64::MAX / PAGE / 2);
    program.write(SPAN + 16, u64::MAX / 4);
    assert!(matches!(program.look(), Err(ReachError::TooMuch("memory"))));
    // Objects so small that their bits alone would fill the machine.
    program.write(SPAN + 16, 8);
    assert!(matches!(
        program.look(),
        Err(ReachError::TooMuch("objects"))
    ));
}

#[test]
fn a_walk_that_takes_too_long_is_given_up() {
    let mut program = Program::new();
    program.waits_for(object(1));
    let now_ns = Cell::new(0_u64);
    let after = |pause_ns: u64| {
        now_ns.set(now_ns.get() + pause_ns);
        now_ns.get()
    };
    let reached = program
        .look_by(&|| after(1_000_000))
        .expect("it is in time");
    assert_eq!(reached.alone, [(Goid(1), Waker::Nobody)]);
    assert!(reached.bytes > 0 && reached.took_ns > 0, "{reached:?}");
    let late = program.look_by(&|| after(3_000_000_000));
    assert!(matches!(late, Err(ReachError::TooLong)));
}

proptest! {
    /// Whatever stands there: an answer or a reason, and never one that no goroutine has.
    #[test]
    fn nonsense_is_survived(writes in prop::collection::vec((0_u8..9, 0_u64..0x20, any::<u64>(), 0_u8..5), 0..60)) {
        let mut program = Program::new();
        for channel in 1..6 {
            program.waits_for(object(channel));
        }
        program.goroutine(Status::Running);
        program.timer(object(6), TimerKind::Ticker);
        program.timer(object(7), TimerKind::AfterFunc);
        for (region, at, word, kind) in writes {
            let start = [VARIABLES, MHEAP, SPAN_LIST, SPAN, GS, STACKS, HEAP, ITABS, ALLP][usize::from(region)];
            let word = match kind {
                0 => word,
                1 => HEAP + word % PAGE,
                2 => SPAN + word % 64,
                3 => ITAB,
                _ => word % 1024,
            };
            program.write(start + at * 8, word);
        }
        if let Ok(found) = program.look() {
            prop_assert!(found.alone.iter().all(|(goid, _)| (1..=5).contains(&goid.0)));
            prop_assert!(found.forgotten.iter().all(|timer| [object(6), object(7)].contains(&timer.0)));
        }
    }
}
