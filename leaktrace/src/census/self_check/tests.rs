//! A small program's memory, and what is found when single words of it are wrong.

use std::collections::BTreeMap;

use super::super::tests::Regions;
use super::super::{Anchors, TimerFunctions};
use super::*;
use crate::resolve::buildinfo::GoVersion;
use crate::resolve::offsets;

const GLOBALS: u64 = 0x10_0000;
const ALLGS: u64 = 0x20_0000;
const GS: u64 = 0x30_0000;
const STACKS: u64 = 0x400_0000;
const M: u64 = 0x50_0000;
const PS: u64 = 0x60_0000;
const TIMER: u64 = 0x70_0000;
const NAMES: u64 = 0x80_0000;
const CODE: Range<u64> = 0x1_0000..0x2_0000;
const MAIN: u64 = 0x1_0040;
const FORCE_GC_ENTRY: u64 = 0x1_0080;
/// Bytes between two gs, and between two Ps.
const G_BYTES: u64 = 1024;
const P_BYTES: u64 = 1 << 16;
const GOROUTINES: u64 = 6;

/// A program with six goroutines, one of them running, two Ps, and a timer.
struct Program {
    memory: Regions,
    layout: Layout,
}

impl Program {
    fn new(go: &str) -> Self {
        let version = GoVersion::parse(go).expect("a release");
        let release = offsets::release(&version).expect("a known release");
        let at = |address: u64| RuntimeAddr(address);
        let layout = Layout {
            heap: None,
            allglen: at(GLOBALS),
            allgptr: at(GLOBALS + 8),
            allp: at(GLOBALS + 16),
            wait_reasons: at(NAMES),
            wait_reason_count: release.wait_reasons.len() as u64,
            semaphores: None,
            offsets: release.offsets.clone(),
            timer_functions: TimerFunctions::default(),
            anchors: Anchors {
                code: at(CODE.start)..at(CODE.end),
                main: Some(at(MAIN)),
                force_gc: Some(at(FORCE_GC_ENTRY)),
            },
        };
        let regions = [
            (GLOBALS, 64),
            (ALLGS, 1 << 16),
            (GS, GOROUTINES * G_BYTES),
            (M, 4096),
            (PS, 2 * P_BYTES),
            (TIMER, 4096),
            (NAMES, 1 << 16),
        ];
        let memory = regions
            .into_iter()
            .map(|(start, bytes): (u64, u64)| {
                (start, vec![0; usize::try_from(bytes).expect("small")])
            })
            .collect::<BTreeMap<_, _>>();
        let mut program = Self {
            memory: Regions(memory),
            layout,
        };
        program.fill(&release.wait_reasons);
        program
    }

    fn fill(&mut self, names: &[String]) {
        let force_gc = names.iter().position(|name| name == FORCE_GC);
        let offsets = self.layout.offsets.clone();
        for (number, name) in (0..).zip(names) {
            let text = NAMES + 0x2000 + number * 64;
            self.put(NAMES + number * 16, text);
            self.put(NAMES + number * 16 + 8, name.len() as u64);
            for (at, byte) in (0..).zip(name.bytes()) {
                self.put_byte(text + at, byte);
            }
        }
        self.put(GLOBALS, GOROUTINES);
        self.put(GLOBALS + 8, ALLGS);
        for number in 0..GOROUTINES {
            let g = GS + number * G_BYTES;
            let low = STACKS + number * 0x1_0000;
            self.put(ALLGS + number * 8, g);
            self.put(g + u64::from(offsets.g_stack), low);
            self.put(g + u64::from(offsets.g_stack) + 8, low + 8192);
            self.put(g + u64::from(offsets.g_sched_sp), low + 4096);
            self.put(g + u64::from(offsets.g_sched_pc), CODE.start + 0x200);
            self.put(g + u64::from(offsets.g_goid), number + 1);
            self.put(g + u64::from(offsets.g_gopc), CODE.start + 0x300);
            let start = match number {
                0 => MAIN,
                1 => FORCE_GC_ENTRY,
                _ => CODE.start + 0x400,
            };
            self.put(g + u64::from(offsets.g_startpc), start);
            let status = if number == 0 { 2 } else { 4 };
            self.put_byte(g + u64::from(offsets.g_atomicstatus), status);
            let reason = u8::try_from(force_gc.expect("a known name")).expect("a byte");
            self.put_byte(g + u64::from(offsets.g_waitreason), reason);
        }
        self.put(GS + u64::from(offsets.g_m), M);
        self.put(M + u64::from(offsets.m_curg), GS);

        self.put(GLOBALS + 16, TIMER + 2048);
        self.put(GLOBALS + 24, 2);
        for number in 0..2 {
            let p = PS + number * P_BYTES;
            self.put(TIMER + 2048 + number * 8, p);
            self.put_byte(
                p + u64::from(offsets.p_id),
                u8::try_from(number).expect("a byte"),
            );
        }
        // The first P's heap has one timer, which names it.
        let timers = PS + u64::from(offsets.p_timers.expect("a release without experiments"));
        let heap = timers + u64::from(offsets.timers_heap.unwrap_or(0));
        for (at, value) in [(0, TIMER + 1024), (8, 1), (16, 4)] {
            self.put(heap + at, value);
        }
        self.put(TIMER + 1024, TIMER);
        let (owner_at, owner) = match offsets.timer_ts {
            Some(at) => (at, timers),
            None => (offsets.timer_pp.expect("one of the two"), PS),
        };
        self.put(TIMER + u64::from(owner_at), owner);
    }

    fn put(&mut self, address: u64, value: u64) {
        for (at, byte) in (0..).zip(value.to_le_bytes()) {
            self.put_byte(address + at, byte);
        }
    }

    fn put_byte(&mut self, address: u64, byte: u8) {
        let (start, bytes) = self
            .memory
            .0
            .range_mut(..=address)
            .next_back()
            .expect("mapped");
        bytes[usize::try_from(address - start).expect("small")] = byte;
    }

    fn g(number: u64, offset: u32) -> u64 {
        GS + number * G_BYTES + u64::from(offset)
    }

    fn check(&self) -> Result<SelfCheck, Distrust> {
        self_check(&self.memory, &self.layout)
    }
}

#[test]
fn a_sound_program_of_each_release_is_believed() {
    for minor in 18..=27 {
        let program = Program::new(&format!("go1.{minor}.3"));
        let seen = program
            .check()
            .unwrap_or_else(|error| panic!("1.{minor}: {error}"));
        assert_eq!(
            (seen.goroutines, seen.on_threads, seen.timers),
            (6, 1, 1),
            "1.{minor}"
        );
    }
}

/// Where the fields of another release lie elsewhere, something contradicts.
#[test]
fn a_program_of_another_release_is_not_believed() {
    for (is, claims) in [
        (22, 25),
        (25, 22),
        (24, 25),
        (25, 26),
        (26, 25),
        (20, 21),
        (23, 22),
        (18, 27),
    ] {
        let mut program = Program::new(&format!("go1.{is}.3"));
        let other = Program::new(&format!("go1.{claims}.3"));
        program.layout.offsets = other.layout.offsets;
        assert!(program.check().is_err(), "1.{is} as 1.{claims}");
    }
}

#[test]
fn single_wrong_words_are_found() {
    let offsets = Program::new("go1.27.3").layout.offsets;
    let ghost = |what| {
        Err(Distrust::Goroutine {
            g: RuntimeAddr(GS + 2 * G_BYTES),
            what,
        })
    };
    for (address, value, expected) in [
        (GLOBALS, 0, Err(Distrust::NotStarted)),
        (
            GLOBALS,
            u64::MAX,
            Err(Distrust::Count {
                what: "goroutines",
                count: u64::MAX,
            }),
        ),
        (Program::g(2, offsets.g_atomicstatus), 77, ghost("a status")),
        (Program::g(2, offsets.g_goid), 0, ghost("a number")),
        (Program::g(2, offsets.g_goid), 1 << 50, ghost("a number")),
        (Program::g(2, offsets.g_stack), 8, ghost("a stack")),
        (
            Program::g(2, offsets.g_sched_sp),
            8,
            ghost("a stack pointer"),
        ),
        (
            Program::g(2, offsets.g_sched_pc),
            8,
            ghost("a program counter"),
        ),
        (
            Program::g(2, offsets.g_waitreason),
            0xff,
            ghost("a wait reason"),
        ),
        (
            Program::g(0, offsets.g_startpc),
            FORCE_GC_ENTRY,
            Err(Distrust::NoAnchor("runtime.main")),
        ),
        (
            Program::g(1, offsets.g_startpc),
            0,
            Err(Distrust::NoAnchor("runtime.forcegchelper")),
        ),
        (M + u64::from(offsets.m_curg), 0, Err(Distrust::Threads)),
        (
            GLOBALS + 24,
            1 << 40,
            Err(Distrust::Count {
                what: "Ps",
                count: 1 << 40,
            }),
        ),
        (
            PS + P_BYTES + u64::from(offsets.p_id),
            7,
            Err(Distrust::Processor(1)),
        ),
        (
            TIMER + u64::from(offsets.timer_ts.expect("since 1.23")),
            0,
            Err(Distrust::Timers(0)),
        ),
        (NAMES + 8, 3, Err(Distrust::WaitReasons)),
    ] {
        let mut program = Program::new("go1.27.3");
        program.put(address, value);
        assert_eq!(program.check(), expected, "{value:#x} at {address:#x}");
    }
}

/// A program that has just begun is not called a liar.
#[test]
fn an_empty_list_means_not_yet() {
    let mut program = Program::new("go1.22.10");
    program.put(GLOBALS, 1);
    assert_eq!(program.check(), Err(Distrust::NotStarted));
}

/// goid 1 may end (runtime.Goexit in main) and its place be used again.
#[test]
fn a_program_whose_main_goroutine_has_ended_is_believed() {
    let mut program = Program::new("go1.24.1");
    let goid = Program::g(0, program.layout.offsets.g_goid);
    program.put(goid, 9000);
    assert!(program.check().is_ok());
}
