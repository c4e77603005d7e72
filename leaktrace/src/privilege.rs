//! What leaktrace itself may do: the capabilities that it needs, each with its reason, and giving up all others.

use caps::{CapSet, Capability, CapsHashSet};

use crate::probe;

/// What is needed, and why.
pub const NEEDED: [(Capability, &str); 5] = [
    (
        Capability::CAP_SYS_PTRACE,
        "to read the memory of other users' processes, and to look at their executables",
    ),
    (
        Capability::CAP_DAC_READ_SEARCH,
        "to read /proc/PID/auxv, which only its owner may, and executables that only their owner may read",
    ),
    (Capability::CAP_BPF, "to load eBPF programs"),
    (
        Capability::CAP_PERFMON,
        "to load programs that trace, and to put them on",
    ),
    (
        Capability::CAP_SYS_ADMIN,
        "to put on uprobes, which kernels from July 2025 that are older than 6.10 ask it for (CVE-2025-38466)",
    ),
];

/// Keeps what is needed of what there is, and gives up the rest for good: in this thread, and in those that it starts.
/// CAP_SYS_ADMIN goes too where the kernel puts a probe on without it.
pub fn keep_what_is_needed() {
    let Ok(held) = caps::read(None, CapSet::Permitted) else {
        tracing::warn!("the capabilities stay as they are: they cannot be read");
        return;
    };
    let needed: CapsHashSet = NEEDED.into_iter().map(|(one, _)| one).collect();
    let mut keep: CapsHashSet = held.intersection(&needed).copied().collect();
    let admin = Capability::CAP_SYS_ADMIN;
    let outcome = (|| {
        if keep.contains(&admin) {
            caps::drop(None, CapSet::Effective, admin)?;
            if probe::try_probe().is_ok_and(|trial| trial.hits == trial.calls) {
                keep.remove(&admin);
            } else {
                caps::raise(None, CapSet::Effective, admin)?;
            }
        }
        forbid(&keep);
        restrict(&keep)
    })();
    match outcome {
        Ok(()) => tracing::debug!("capabilities: {}", names(&keep)),
        Err(error) => tracing::warn!("the capabilities stay as they are: {error}"),
    }
    let lacking: CapsHashSet = needed.difference(&held).copied().collect();
    if !lacking.is_empty() {
        tracing::info!(
            "without {}: `leaktrace check` tells whether they matter here",
            names(&lacking)
        );
    }
}

/// Gives up all: this thread needs none.
pub fn give_up_all() {
    if let Err(error) = restrict(&CapsHashSet::new()) {
        tracing::warn!("the capabilities stay as they are: {error}");
    }
}

/// Nothing that this process could start would get others. That takes CAP_SETPCAP, which a plain user has not; it then has
/// no way to others either.
fn forbid(keep: &CapsHashSet) {
    for one in caps::all() {
        if !keep.contains(&one) && caps::drop(None, CapSet::Bounding, one).is_err() {
            return;
        }
    }
}

fn restrict(keep: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, keep)?;
    caps::set(None, CapSet::Permitted, keep)?;
    caps::clear(None, CapSet::Inheritable)
}

fn names(set: &CapsHashSet) -> String {
    let mut names: Vec<_> = set.iter().map(ToString::to_string).collect();
    names.sort();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
