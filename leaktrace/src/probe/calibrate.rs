//! What does one hit cost on this machine? Measured on functions of this very process.
//!
//! The probes on them stay: nobody else calls the functions, so they cost nothing, and measuring again takes a
//! few milliseconds. The programs do there what they do in a Go program: they read the fields of a goroutine,
//! which is made up here, walk its stack, and leave a record. Unlike there, nothing else runs in between, and the
//! processor's caches are warm.

use std::{hint::black_box, num::NonZeroU32, process};

use leaktrace_common::{binary::BinaryConfig, event::Kind};

use super::{
    AttachRequest, AttachedSet, Point, ProbeError, Probes, Scope,
    trial::{Own, own_instruction},
};
use crate::{
    budget::{Calibration, median},
    clock::worked_ns,
    event::Slot,
    resolve::Execution,
};

/// Calls that are timed in one go, so that reading the clock does not count.
const CALLS: u64 = 50;

/// Readings, of which the median counts: some fall into what else the machine does.
const READINGS: usize = 15;

/// Frames of the stack that is walked: as deep as stacks of servers are where they start goroutines.
const FRAMES: usize = 8;

/// Words of each of them.
pub(super) const FRAME_WORDS: usize = 24;

/// The probes on this process.
pub struct Calibrator {
    attached: AttachedSet,
    goroutine: Box<[u64]>,
}

impl Calibrator {
    /// Puts the probes on.
    ///
    /// # Errors
    /// When probes cannot be put on this process.
    pub fn attach(probes: &mut Probes) -> Result<Self, ProbeError> {
        Self::attach_with(probes, goroutine(FRAME_WORDS))
    }

    fn attach_with(probes: &mut Probes, goroutine: Box<[u64]>) -> Result<Self, ProbeError> {
        let points = [
            (Kind::Ended, own_instruction(plain as *const () as u64)?),
            (Kind::Born, own_instruction(with_stack as *const () as u64)?),
        ];
        let [(_, Own { executable, .. }), _] = &points;
        let attached = probes.attach(&AttachRequest {
            executable,
            pid: NonZeroU32::new(process::id()).ok_or(ProbeError::TargetGone(0))?,
            binary: binary(),
            points: &points.each_ref().map(|(kind, own)| Point {
                kind: *kind,
                offset: own.offset,
                bytes: own.instruction.bytes.clone(),
                register: FIRST_ARGUMENT,
                execution: Execution::Emulated,
            }),
            scope: Scope::Process,
        })?;
        Ok(Self {
            attached,
            goroutine,
        })
    }

    /// The slot of what it leaves in the ring, which means nothing.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.attached.slot()
    }

    /// Measures. Takes some milliseconds.
    #[must_use]
    pub fn measure(&self) -> Calibration {
        let object = self.goroutine.as_ptr() as u64;
        let untraced = time(|| never_probed(object));
        let emulated_ns = (time(|| plain(object)) - untraced).max(1.0);
        let stack = time(|| with_stack(object)) - untraced;
        Calibration {
            emulated_ns: emulated_ns * AMONG_OTHER_WORK,
            // The kernel traps once more, and the processor loses what it had prepared. Such sites are the last
            // resort, so their cost is not measured but put high.
            stepped_ns: emulated_ns * STEPPED,
            stack_ns: (stack - emulated_ns).max(0.0) * AMONG_OTHER_WORK,
        }
    }
}

/// How much dearer a hit is in a program that does other work: it finds the kernel's code, the maps and the ring in no cache near
/// by, and leaves the program's own so. `cargo xtask bench http` measures it on a server of net/http.
const AMONG_OTHER_WORK: f64 = 2.0;

/// How much dearer a single-stepped instruction is, at the most: doc/cost.md has what it is on one machine.
const STEPPED: f64 = 25.0;

/// Nanoseconds of this thread's own time for one call.
fn time(call: impl Fn() -> u64) -> f64 {
    let mut readings = [0.0; READINGS];
    for reading in &mut readings {
        let begin = worked_ns();
        for _ in 0..CALLS {
            black_box(call());
        }
        *reading = worked_ns().saturating_sub(begin) as f64 / CALLS as f64;
    }
    median(&mut readings)
}

// Three functions that a compiler cannot take for one.

#[inline(never)]
extern "C" fn plain(object: u64) -> u64 {
    if object < 11 {
        return never_called(object);
    }
    object.wrapping_add(11)
}

#[inline(never)]
extern "C" fn with_stack(object: u64) -> u64 {
    if object < 22 {
        return never_called(object);
    }
    object.wrapping_add(22)
}

#[inline(never)]
extern "C" fn never_probed(object: u64) -> u64 {
    if object < 33 {
        return never_called(object);
    }
    object.wrapping_add(33)
}

#[inline(never)]
extern "C" fn never_called(object: u64) -> u64 {
    black_box(object)
}

/// The register of a C function's first argument (hardware number).
pub(super) const FIRST_ARGUMENT: u8 = if cfg!(target_arch = "aarch64") { 0 } else { 7 };

/// Where the made-up goroutine has its fields: as in Go 1.27, but the m that it runs on is in the same place, and so is that
/// m's goroutine.
pub(super) fn binary() -> BinaryConfig {
    let absent = BinaryConfig::ABSENT;
    BinaryConfig {
        g_stack: 0,
        g_m: 48,
        m_curg: 48,
        g_sched_bp: 96,
        g_goid: 152,
        g_parent_goid: 280,
        g_gopc: 288,
        g_startpc: 304,
        g_waitreason: absent,
        timer_when: absent,
        timer_period: absent,
        timer_f: absent,
        timer_arg: absent,
        frame_pointers: 1,
        object_is_current_g: 1,
        ..BinaryConfig::default()
    }
}

/// Words before the frames: as many as the programs read from `goid` on, at least.
const FIELDS: usize = 40;

/// A goroutine with its stack, whose frames have so many words each. A word that has no meaning holds its number.
pub(super) fn goroutine(frame_words: usize) -> Box<[u64]> {
    let words = FIELDS + frame_words * FRAMES;
    let mut memory: Box<[u64]> = (0..words as u64).collect();
    let base = memory.as_ptr() as u64;
    let index = |frame: usize| FIELDS + frame_words * frame;
    let address = |frame: usize| base + 8 * index(frame) as u64;
    let fields = binary();
    let pointers = [
        (fields.g_stack, base),
        (fields.g_stack + 8, address(FRAMES)),
        (fields.g_m, base),
        (fields.g_sched_bp, address(0)),
    ];
    for (offset, pointer) in pointers {
        memory[offset as usize / 8] = pointer;
    }
    for frame in 0..FRAMES {
        let first = index(frame);
        memory[first..first + 2].copy_from_slice(&[address(frame + 1), return_address(frame)]);
    }
    memory
}

/// Where the function of a frame is to return to.
fn return_address(frame: usize) -> u64 {
    0x40_0001 + frame as u64
}

#[cfg(test)]
mod tests {
    use aya::{
        maps::{PerCpuArray, PerCpuValues},
        util::nr_cpus,
    };
    use leaktrace_common::event::Loss;

    use super::*;
    use crate::{
        address::RuntimeAddr,
        event::{Change, Goid},
        probe::LoadOptions,
    };

    #[test]
    fn the_programs_do_their_whole_work_on_what_is_made_up() {
        let loaded = Probes::load(&LoadOptions::default());
        let (mut probes, mut ring) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return println!("skipped: {error}"),
        };
        let calibrator =
            Calibrator::attach(&mut probes).expect("what can be loaded can be attached");
        let calibration = calibrator.measure();
        let (mut born, mut ended) = (Vec::new(), 0);
        ring.drain(usize::MAX, |event| match event.change {
            Change::Born {
                goroutine, stack, ..
            } => born.push((goroutine, stack)),
            Change::Ended(goroutine) => {
                assert_eq!(goroutine.goid, Goid(19));
                ended += 1;
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(born.len() as u64 + ended, 2 * CALLS * READINGS as u64);
        assert_eq!(probes.lost(&calibrator.attached), [0; Loss::COUNT as usize]);
        for (goroutine, stack) in born {
            assert_eq!(
                (goroutine.goid, goroutine.gopc, goroutine.startpc),
                (Goid(19), RuntimeAddr(36), RuntimeAddr(38))
            );
            let frames = probes.stack(stack.expect("its stack was walked"));
            assert_eq!(frames, Some(whole_stack()));
        }
        println!("{calibration:?}");
        assert!(calibration.emulated_ns > 50.0, "{calibration:?}");
        assert!(calibration.stack_ns >= 0.0, "{calibration:?}");
    }

    fn whole_stack() -> Vec<RuntimeAddr> {
        (0..FRAMES)
            .map(|frame| RuntimeAddr(return_address(frame)))
            .collect()
    }

    #[test]
    fn a_stack_is_whole_wherever_its_frames_lie_and_whoever_has_the_room_for_it() {
        /// How many programs of this CPU are at work on a stack, and their room: the value of the map.
        type Scratch = [u64; 130];
        let (mut probes, mut ring) = match Probes::load(&LoadOptions::default()) {
            Ok(loaded) => loaded,
            Err(error) => return println!("skipped: {error}"),
        };
        for users in [0, 1] {
            let map = (probes.ebpf.map_mut("SCRATCH")).expect("the object has the map");
            let mut scratch: PerCpuArray<_, Scratch> = map.try_into().expect("it is an array");
            let cpus = nr_cpus().expect("the kernel tells how many CPUs there can be");
            let values = PerCpuValues::try_from(vec![[users; 130]; cpus]).expect("one for each");
            scratch.set(0, values, 0).expect("it takes them");
            // All of it read at once, some of it, and from the first frame to the second more than is read at once.
            for frame_words in [2, 24, 63, 64, 126, 127, 128, 200] {
                let calibrator = Calibrator::attach_with(&mut probes, goroutine(frame_words))
                    .expect("what can be loaded can be attached");
                black_box(with_stack(calibrator.goroutine.as_ptr() as u64));
                let mut found = Vec::new();
                ring.drain(usize::MAX, |event| {
                    if let Change::Born { stack, .. } = event.change {
                        found.push(stack);
                    }
                });
                let stack = found[0].expect("its stack was walked");
                assert_eq!(probes.stack(stack), Some(whole_stack()), "{frame_words}");
                assert_eq!(probes.lost(&calibrator.attached), [0; Loss::COUNT as usize]);
            }
            let map = (probes.ebpf.map("SCRATCH")).expect("the object has the map");
            let scratch: PerCpuArray<_, Scratch> = map.try_into().expect("it is an array");
            let after = scratch.get(&0, 0).expect("it can be read");
            assert!(after.iter().all(|[at_work, ..]| *at_work == users));
        }
    }
}
