//! A probe on leaktrace itself: does this kernel do what probes need?
//!
//! Version numbers tell little, because distributions carry features backwards and security modules take
//! them away. So every program is handed to the verifier, one is attached to a function of this very
//! process, and the hits are counted.

use std::{
    fs::File, hint::black_box, num::NonZeroU32, os::unix::fs::FileExt as _, process, time::Instant,
};

use aya::{maps::MapType, sys::is_map_supported};
use leaktrace_common::event::Kind;
use procfs::process::MMapPath;

use super::{
    AttachRequest, LoadOptions, Point, ProbeError, Probes, Scope,
    calibrate::{FIRST_ARGUMENT, FRAME_WORDS, binary, goroutine},
    has_cookies,
};
use crate::{
    address::{FileOffset, VirtAddr},
    resolve::{
        Arch, Execution,
        code::Function,
        decode::{Flow, Instruction, Listing},
    },
};

/// How often the probed function is called.
const CALLS: u64 = 1000;

/// Bytes of the probed function that are looked at.
const WINDOW: usize = 64;

/// What the trial found.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Calls of the probed function.
    pub calls: u64,
    /// Calls that the probe counted.
    pub hits: u64,
    /// Records that came through the ring buffer.
    pub records: u64,
    /// What a hit costs the thread that is probed, in nanoseconds.
    pub nanoseconds: u64,
    /// The probed instruction.
    pub instruction: String,
    /// Whether a link of uprobe_multi held the probe; else it was a perf event.
    pub linked: bool,
}

/// Loads every program, counts calls of a function of this process by a probe, and takes it off again.
///
/// # Errors
/// When any of it is not possible here.
pub fn try_probe() -> Result<Trial, ProbeError> {
    let (mut probes, mut ring) = Probes::load(&LoadOptions::default())?;
    for kind in Kind::ALL {
        probes.program(kind)?;
    }
    let Own {
        executable,
        offset,
        instruction,
    } = own_instruction(probed as *const () as u64)?;
    let text = instruction.text();
    let goroutine = goroutine(FRAME_WORDS);
    let object = goroutine.as_ptr() as u64;
    let untraced = time_calls(object);
    let mut set = probes.attach(&AttachRequest {
        executable: &executable,
        pid: NonZeroU32::new(process::id()).ok_or(ProbeError::TargetGone(0))?,
        binary: binary(),
        points: &[Point {
            kind: Kind::Ended,
            offset,
            bytes: instruction.bytes,
            register: FIRST_ARGUMENT,
            execution: Execution::Emulated,
        }],
        scope: Scope::Process,
    })?;
    let (traced, linked) = (time_calls(object), set.is_linked());
    set.detach();
    let [_, hits, ..] = probes.hits(&set);
    let records = ring.drain(usize::MAX, |_| {}).records as u64;
    Ok(Trial {
        calls: CALLS,
        hits,
        records,
        nanoseconds: traced.saturating_sub(untraced) / CALLS,
        instruction: text,
        linked,
    })
}

/// What the kernel answers when it is asked for one of its features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It has it.
    There,
    /// It has not.
    Missing,
    /// It did not say, for this reason.
    Unknown(String),
}

/// What the kernel has, each found out by trying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// The bpf system call makes maps.
    pub maps: Offer,
    /// Ring buffers (Linux 5.8).
    pub ring_buffer: Offer,
    /// Attach cookies (Linux 5.15). Not to be had without the permission to load programs.
    pub cookies: bool,
}

/// Asks the kernel for what probes need.
#[must_use]
pub fn features() -> Features {
    let map = |kind| match is_map_supported(kind) {
        Ok(true) => Offer::There,
        Ok(false) => Offer::Missing,
        Err(error) => Offer::Unknown(error.io_error.to_string()),
    };
    Features {
        maps: map(MapType::Array),
        ring_buffer: map(MapType::RingBuf),
        cookies: has_cookies(),
    }
}

/// The function that is probed. However it is compiled, it comes to a branch before long, and the kernel
/// emulates branches.
#[inline(never)]
extern "C" fn probed(object: u64) -> u64 {
    if object == CALLS {
        return never_called(object);
    }
    object.wrapping_add(1)
}

#[inline(never)]
extern "C" fn never_called(object: u64) -> u64 {
    black_box(object)
}

/// Nanoseconds of all calls.
fn time_calls(object: u64) -> u64 {
    let begin = Instant::now();
    for _ in 0..CALLS {
        black_box(probed(black_box(object)));
    }
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// An instruction of this very process.
pub(super) struct Own {
    /// This executable.
    pub executable: File,
    /// Where the instruction lies in it.
    pub offset: FileOffset,
    /// The instruction.
    pub instruction: Instruction,
}

/// The first instruction that the kernel emulates of the function of this process at `entry`, if every call passes
/// it once.
pub(super) fn own_instruction(entry: u64) -> Result<Own, ProbeError> {
    let none = || ProbeError::NoTrial("leaktrace's own code has no instruction to try a probe on");
    let maps = procfs::process::Process::myself()
        .and_then(|own| own.maps())
        .map_err(|_| ProbeError::NoTrial("/proc/self/maps cannot be read"))?;
    let mapping = maps
        .into_iter()
        .find(|map| (map.address.0..map.address.1).contains(&entry))
        .filter(|map| matches!(map.pathname, MMapPath::Path(_)))
        .ok_or_else(none)?;
    let start = FileOffset(entry - mapping.address.0 + mapping.offset);
    let executable = File::open("/proc/self/exe")
        .map_err(|_| ProbeError::NoTrial("/proc/self/exe cannot be opened"))?;
    let mut code = [0; WINDOW];
    executable
        .read_exact_at(&mut code, start.0)
        .map_err(|error| ProbeError::Unreadable {
            offset: start,
            error,
        })?;
    let instruction = first_emulated(own_arch(), VirtAddr(entry), &code).ok_or_else(none)?;
    let offset = FileOffset(start.0 + (instruction.address.0 - entry));
    Ok(Own {
        executable,
        offset,
        instruction,
    })
}

/// The first instruction that the kernel emulates, if control always comes to it.
fn first_emulated(arch: Arch, entry: VirtAddr, code: &[u8]) -> Option<Instruction> {
    // The window may end within an instruction, so it grows until the wanted one is whole.
    for end in 1..=code.len() {
        let function = Function {
            name: "probed".to_owned(),
            entry,
            code: code.get(..end)?.to_vec(),
        };
        let Ok(listing) = Listing::decode(arch, &function) else {
            continue;
        };
        let (last, before) = listing.instructions.split_last()?;
        if before.iter().any(|earlier| earlier.flow != Flow::Next) {
            return None;
        }
        if last.execution == Some(Execution::Emulated) {
            return Some(last.clone());
        }
    }
    None
}

fn own_arch() -> Arch {
    if cfg!(target_arch = "aarch64") {
        Arch::Arm64
    } else {
        Arch::Amd64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_has_an_instruction_to_try() {
        let own = own_instruction(probed as *const () as u64).expect("push, call or bl");
        assert_eq!(own.instruction.execution, Some(Execution::Emulated));
    }

    #[test]
    fn the_first_emulated_instruction_must_be_passed_by_every_call() {
        // sub rsp, 24; call +0
        let code = [0x48, 0x83, 0xec, 0x18, 0xe8, 0, 0, 0, 0, 0xc3];
        let found = first_emulated(Arch::Amd64, VirtAddr(8), &code).expect("the call");
        assert_eq!(found.address, VirtAddr(12));
        assert_eq!(found.bytes, code[4..9]);
        // mov eax, edi; ret; push rbp
        assert!(first_emulated(Arch::Amd64, VirtAddr(8), &[0x89, 0xf8, 0xc3, 0x55]).is_none());
        // str x30, [sp, #-16]!; bl +0
        let code = [0xfe, 0x0f, 0x1f, 0xf8, 0, 0, 0, 0x94];
        let found = first_emulated(Arch::Arm64, VirtAddr(8), &code).expect("the bl");
        assert_eq!(found.address, VirtAddr(12));
    }

    #[test]
    fn a_trial_counts_every_call() {
        match try_probe() {
            Ok(trial) => assert_eq!((trial.hits, trial.records), (CALLS, CALLS), "{trial:?}"),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
