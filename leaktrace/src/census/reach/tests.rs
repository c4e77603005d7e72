//! Small programs written word by word: who can still be woken in them, and what becomes of nonsense.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::census::tests::Regions;
use crate::census::{Anchors, TimerFunctions};
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
                allp: nowhere,
                wait_reasons: nowhere,
                wait_reason_count: 0,
                semaphores: None,
                heap: Some(HeapLayout {
                    mheap: RuntimeAddr(MHEAP),
                    offsets: OFFSETS,
                    variables: [part(VARIABLES), part(VARIABLES + 0x100)],
                }),
                offsets: release.offsets,
                timer_functions: TimerFunctions::default(),
                anchors: Anchors::default(),
            },
            goroutines: Vec::new(),
            channels: Waits::default(),
        };
        program.write(MHEAP + 16, SPAN_LIST);
        program.write(MHEAP + 24, 1);
        program.write(SPAN_LIST, SPAN);
        program.write(SPAN, HEAP);
        program.write(SPAN + 8, 1);
        program.write(SPAN + 16, OBJECT_BYTES);
        program.write(SPAN + 24, u64::from(IN_USE));
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
            gopc: RuntimeAddr(0x50),
            startpc: RuntimeAddr(0x60),
            stack_bytes: STACK_BYTES,
            depth: STACK_BYTES,
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
        self.write(stack + 8, channel);
        stack
    }

    fn look(&self) -> Result<Vec<Goid>, ReachError> {
        self.look_by(&|| 0).map(|reached| reached.stranded)
    }

    fn look_by(&self, clock: &dyn Fn() -> u64) -> Result<Reached, ReachError> {
        stranded(
            &self.memory,
            &self.layout,
            &[],
            &self.goroutines,
            &self.channels,
            &Waits::default(),
            clock,
        )
    }

    fn stranded(&self) -> Vec<u64> {
        let found = self.look().expect("all of it can be read");
        found.into_iter().map(|goid| goid.0).collect()
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
    assert_eq!(reached.stranded, [Goid(1)]);
    assert!(reached.bytes > 0 && reached.took_ns > 0, "{reached:?}");
    let late = program.look_by(&|| after(3_000_000_000));
    assert!(matches!(late, Err(ReachError::TooLong)));
}

proptest! {
    /// Whatever stands there: an answer or a reason, and never one that no goroutine has.
    #[test]
    fn nonsense_is_survived(writes in prop::collection::vec((0_u8..7, 0_u64..0x20, any::<u64>(), 0_u8..4), 0..60)) {
        let mut program = Program::new();
        for channel in 1..6 {
            program.waits_for(object(channel));
        }
        program.goroutine(Status::Running);
        for (region, at, word, kind) in writes {
            let start = [VARIABLES, MHEAP, SPAN_LIST, SPAN, GS, STACKS, HEAP][usize::from(region)];
            let word = match kind {
                0 => word,
                1 => HEAP + word % PAGE,
                2 => SPAN + word % 64,
                _ => word % 1024,
            };
            program.write(start + at * 8, word);
        }
        if let Ok(found) = program.look() {
            prop_assert!(found.iter().all(|goid| (1..=5).contains(&goid.0)));
        }
    }
}
