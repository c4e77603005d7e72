//! Put the probes on: the only part of leaktrace that gives programs to the kernel.
//!
//! [`plan()`] chooses, [`Probes::load`] loads, [`Probes::attach`] attaches to one process, or lets it share the
//! probes of the others that run the same file. Dropping an [`AttachedSet`] takes its probes off, and so does
//! the end of this process in whatever way: the kernel ties them to file descriptors.

mod attach;
mod calibrate;
mod family;
mod load;
mod multi;
mod plan;
mod slots;
mod trial;
mod waits;

use std::{
    cell::RefCell,
    io,
    rc::{Rc, Weak},
};

pub use attach::{AttachRequest, AttachedSet};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray},
};
pub use calibrate::Calibrator;
use family::Family;
pub use family::Scope;
use leaktrace_common::{
    binary::BinaryConfig,
    event::{Kind, Loss},
    limits::STACK_DEPTH,
    process::Enrolment,
    wait::{TotalsKey, Wait, WaitKey, WaitTotals},
};
pub use load::{FIRST_PID_NAMESPACE, LoadOptions, has_cookies};
pub use plan::{Level, Plan, Point, binary_config, plan};
use thiserror::Error;
pub use trial::{Features, Offer, Trial, features, try_probe};
pub use waits::BlockedTime;

use crate::{
    address::{FileOffset, RuntimeAddr},
    event::{Slot, StackId},
    target::Inode,
};

/// The map of processes, which each [`AttachedSet`] leaves by itself.
type Processes = Rc<RefCell<HashMap<MapData, u32, Enrolment>>>;

/// The loaded object: its programs and maps, who uses which slot, and which processes run the same file.
pub struct Probes {
    ebpf: Ebpf,
    binaries: Array<MapData, BinaryConfig>,
    stacks: HashMap<MapData, u64, [u64; STACK_DEPTH]>,
    lost: PerCpuArray<MapData, u64>,
    hits: PerCpuArray<MapData, u64>,
    waits: HashMap<MapData, WaitKey, Wait>,
    wait_totals: HashMap<MapData, TotalsKey, WaitTotals>,
    strangers: PerCpuArray<MapData, u64>,
    allowance: PerCpuArray<MapData, u64>,
    processes: Processes,
    /// For kernels whose links hold many probes; else each is a perf event.
    multi: Option<multi::Programs>,
    /// Whether the programs are told by a cookie which set they belong to; without, no set is shared.
    cookies: bool,
    families: std::collections::HashMap<Inode, Weak<RefCell<Family>>>,
    /// A slot is in use while its set lives.
    slots: Vec<Weak<()>>,
    next_slot: usize,
    last_set: u32,
    /// Passes on what the programs logged; there only when they were built to log.
    flush_log: Option<Box<dyn FnMut() + Send>>,
}

impl Probes {
    /// What the ring buffer did not carry for this set, by [`Loss`].
    #[must_use]
    pub fn lost(&self, set: &AttachedSet) -> [u64; Loss::COUNT as usize] {
        counters(&self.lost, set.slot())
    }

    /// How often the probes of this set were hit, by [`Kind`].
    #[must_use]
    pub fn hits(&self, set: &AttachedSet) -> [u64; Kind::COUNT as usize] {
        counters(&self.hits, set.slot())
    }

    /// Lets the probes of this set have so many more hits on each CPU; with 0 they return at once from now on.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn allow(&mut self, set: &AttachedSet, hits: u64) -> Result<(), ProbeError> {
        slots::set_on_all_cpus(&mut self.allowance, u32::from(set.slot().0), hits)
    }

    /// Whether probes are told by a cookie what they are for.
    #[must_use]
    pub fn has_cookies(&self) -> bool {
        self.cookies
    }

    /// How often a probe was hit by a process that is not traced: one that runs the same file as traced
    /// ones do, or one whose probes are being put on or taken off.
    #[must_use]
    pub fn strangers(&self) -> u64 {
        let [count] = counters(&self.strangers, Slot(0));
        count
    }

    /// Return addresses of a creation stack, innermost first; `None` when it is no longer kept, which
    /// happens once its slot is used again.
    #[must_use]
    pub fn stack(&self, id: StackId) -> Option<Vec<RuntimeAddr>> {
        let frames = self.stacks.get(&id.0.get(), 0).ok()?;
        Some(
            frames
                .into_iter()
                .take_while(|&frame| frame != 0)
                .map(RuntimeAddr)
                .collect(),
        )
    }

    /// Passes on to `tracing` what the programs logged; they log only when built with
    /// `cargo xtask build-ebpf --log`.
    pub fn flush_log(&mut self) {
        if let Some(flush) = &mut self.flush_log {
            flush();
        }
    }
}

/// Sums one slot's row of a per-CPU table of counters.
fn counters<const N: usize>(table: &PerCpuArray<MapData, u64>, slot: Slot) -> [u64; N] {
    let mut row = [0; N];
    let first = usize::from(slot.0) * N;
    for (index, total) in (first..).zip(&mut row) {
        let values = u32::try_from(index)
            .map_err(|_| aya::maps::MapError::ElementNotFound)
            .and_then(|index| table.get(&index, 0));
        match values {
            Ok(values) => *total = values.iter().sum(),
            // The index is inside the map, whose descriptor is ours: only a kernel out of memory says no.
            Err(error) => tracing::warn!(%error, "a counter of the probes cannot be read"),
        }
    }
    row
}

/// Why there are no probes, as one sentence that says what to do.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The kernel wants more capabilities.
    #[error(
        "no permission to {doing}: run as root, or with the capabilities CAP_BPF, CAP_PERFMON and, on kernels from July 2025 that are older than 6.10, CAP_SYS_ADMIN; `leaktrace snapshot` works without"
    )]
    NotPermitted {
        /// What was tried.
        doing: &'static str,
    },
    /// The kernel is older than 5.8.
    #[error(
        "this kernel has no {missing}: probes need Linux 5.8 or later; `leaktrace snapshot` works without"
    )]
    KernelTooOld {
        /// What it lacks.
        missing: &'static str,
    },
    /// The object could not be loaded for another reason.
    #[error("the kernel did not take leaktrace's eBPF object: {0}")]
    Object(String),
    /// The verifier refused a program.
    #[error(
        "the kernel's verifier refused the program {program}, please report this line with the kernel's version: {verdict}"
    )]
    Verifier {
        /// The program.
        program: &'static str,
        /// The end of the verifier's log.
        verdict: String,
    },
    /// A map could not be read or written.
    #[error("the eBPF map of {map} cannot be used: {error}")]
    Map {
        /// Which map.
        map: &'static str,
        /// The kernel's answer.
        error: String,
    },
    /// Every slot is taken.
    #[error("{0} processes have probes already: stop tracing one of them first")]
    NoSlot(u32),
    /// The process lives in another pid namespace than leaktrace, which the programs cannot look into.
    #[error(
        "process {0} is in a pid namespace below leaktrace's own: run leaktrace in the machine's pid namespace (Docker: --pid=host, Kubernetes: hostPID: true)"
    )]
    OtherPidNamespace(u32),
    /// The probe on leaktrace itself could not be tried.
    #[error("no probe could be tried: {0}")]
    NoTrial(&'static str),
    /// The executable could not be read.
    #[error("the executable cannot be read at offset {offset}: {error}")]
    Unreadable {
        /// Where.
        offset: FileOffset,
        /// Why.
        error: io::Error,
    },
    /// The executable does not hold the instruction that was found in it.
    #[error(
        "the executable changed: at offset {offset} it holds {found}, not {expected}; resolve it again"
    )]
    Changed {
        /// Where.
        offset: FileOffset,
        /// Bytes there now, in hexadecimal.
        found: String,
        /// Bytes that were there, in hexadecimal.
        expected: String,
    },
    /// The process is gone.
    #[error("process {0} has ended")]
    TargetGone(u32),
    /// The kernel refused a probe.
    #[error("the kernel refused the {kind:?} probe at offset {offset}: {error}")]
    Refused {
        /// What it would have watched.
        kind: Kind,
        /// Where.
        offset: FileOffset,
        /// The kernel's answer.
        error: String,
    },
}
