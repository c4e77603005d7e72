//! The embedded eBPF object into the kernel: maps at once, each program when it is first asked for.

use std::{
    cell::RefCell, collections::HashMap, fs, io, os::unix::fs::MetadataExt as _, path::Path, rc::Rc,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError},
    programs::{ProgramError, RawTracePoint, UProbe},
};
use aya_log::EbpfLogger;
use leaktrace_common::{event::Kind, limits};

use super::{ProbeError, Probes, multi};
use crate::event::{Lives, Ring};

/// The object for this machine, which build.rs chose and checked.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LEAKTRACE_BPF_OBJECT"));

/// Sizes of what is kept in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Bytes of the ring buffer; rounded up to a power of two.
    pub ring_bytes: u32,
    /// Distinct creation stacks.
    pub stacks: u32,
    /// Goroutines whose waits can be watched; 0 where no process is traced on level `full`.
    pub waits: u32,
    /// Whether attach cookies are used; without them each process has probes of its own, and all probes of
    /// one kind must find their object in the same register.
    pub cookies: bool,
    /// Whether links are used that hold many probes (Linux 6.10), if there are cookies; else each probe is a perf event.
    pub links: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            ring_bytes: limits::RING_BYTES,
            stacks: limits::STACKS,
            waits: limits::WAITS,
            cookies: has_cookies(),
            links: multi::is_usable(),
        }
    }
}

/// Whether this kernel has attach cookies (Linux 5.15): found out by loading a program that asks for one.
#[must_use]
pub fn has_cookies() -> bool {
    aya::features().bpf_cookie() && aya::features().bpf_perf_link()
}

impl Probes {
    /// Loads the maps and makes the programs ready; answers with the ring buffer's reading end too.
    ///
    /// The memlock limit matters only before Linux 5.11, which charges maps to the memory cgroup; there aya raises it.
    pub fn load(options: &LoadOptions) -> Result<(Self, Ring), ProbeError> {
        let (device, inode) = own_pid_namespace();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", options.ring_bytes.next_power_of_two())
            .map_max_entries("STACKS", options.stacks)
            // The kernel takes the memory of both at once, used or not; it has no maps without entries.
            .map_max_entries("WAITS", options.waits.max(1))
            .map_max_entries(
                "WAIT_TOTALS",
                if options.waits == 0 {
                    1
                } else {
                    limits::WAIT_KINDS
                },
            )
            .override_global("HAS_COOKIES", &u32::from(options.cookies), true)
            .override_global("PID_NAMESPACE_DEVICE", &device, true)
            .override_global("PID_NAMESPACE_INODE", &inode, true)
            .load(OBJECT)
            .map_err(object_error)?;
        let flush_log: Option<Box<dyn FnMut() + Send>> = match EbpfLogger::init(&mut ebpf) {
            Ok(mut logger) => Some(Box::new(move || logger.flush())),
            Err(error) => {
                tracing::debug!(%error, "the eBPF programs do not log");
                None
            }
        };
        let multi = (options.links && options.cookies)
            .then(|| multi::Programs::new(OBJECT, &ebpf))
            .transpose()
            .unwrap_or_else(|reason| {
                tracing::debug!("probes are perf events: {reason}");
                None
            });
        let ring = Ring::new(take(&mut ebpf, "EVENTS")?);
        let probes = Self {
            binaries: take(&mut ebpf, "BINARIES")?,
            stacks: take(&mut ebpf, "STACKS")?,
            lost: take(&mut ebpf, "LOST")?,
            hits: take(&mut ebpf, "HITS")?,
            waits: take(&mut ebpf, "WAITS")?,
            wait_totals: take(&mut ebpf, "WAIT_TOTALS")?,
            strangers: take(&mut ebpf, "STRANGERS")?,
            allowance: take(&mut ebpf, "ALLOWANCE")?,
            processes: Rc::new(RefCell::new(take(&mut ebpf, "PROCESSES")?)),
            cookies: options.cookies,
            multi,
            families: HashMap::new(),
            ebpf,
            slots: Vec::new(),
            next_slot: 0,
            last_set: 0,
            flush_log,
        };
        Ok((probes, ring))
    }

    /// Has the kernel note which processes come and go; answers with the reading end of the notes, once.
    pub fn watch_processes(&mut self) -> Result<Lives, ProbeError> {
        for (name, tracepoint) in [
            ("process_began", "sched_process_exec"),
            ("process_ended", "sched_process_exit"),
        ] {
            let program: &mut RawTracePoint = self
                .ebpf
                .program_mut(name)
                .ok_or_else(|| ProbeError::Object(format!("it has no program {name}")))?
                .try_into()
                .map_err(|error: ProgramError| ProbeError::Object(format!("{name}: {error}")))?;
            program.load().map_err(|error| program_error(name, error))?;
            program
                .attach(tracepoint)
                .map_err(|error| program_error(name, error))?;
        }
        Ok(Lives::new(take(&mut self.ebpf, "LIVES")?))
    }

    /// The program for a kind of event, loaded now if it was not before.
    pub(super) fn program(&mut self, kind: Kind) -> Result<&mut UProbe, ProbeError> {
        let name = program_name(kind);
        let program: &mut UProbe = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| ProbeError::Object(format!("it has no program {name}")))?
            .try_into()
            .map_err(|error: ProgramError| ProbeError::Object(format!("{name}: {error}")))?;
        if program.fd().is_err() {
            program.load().map_err(|error| program_error(name, error))?;
        }
        Ok(program)
    }
}

/// The name of the machine's first pid namespace: its inode is fixed (include/linux/proc_ns.h:
/// PROC_PID_INIT_INO).
pub const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Device, as the kernel writes it, and inode of leaktrace's own pid namespace; zeros for the machine's first,
/// and where /proc does not tell.
fn own_pid_namespace() -> (u64, u64) {
    const OWN: &str = "/proc/self/ns/pid";
    let first = fs::read_link(OWN).is_ok_and(|name| name == Path::new(FIRST_PID_NAMESPACE));
    match fs::metadata(OWN) {
        Ok(own) if !first => {
            let device = own.dev();
            // MKDEV of include/linux/kdev_t.h.
            let kernels = nix::sys::stat::major(device) << 20 | nix::sys::stat::minor(device);
            (kernels, own.ino())
        }
        _ => (0, 0),
    }
}

pub(super) fn program_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Born => "goroutine_born",
        Kind::Ended => "goroutine_ended",
        Kind::Parked => "goroutine_parked",
        Kind::Readied => "goroutine_readied",
        Kind::Armed => "timer_armed",
        Kind::Stopped => "timer_stopped",
        Kind::Rearmed => "timer_rearmed",
        Kind::Fired => "timer_fired",
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, ProbeError>
where
    T: TryFrom<Map, Error = MapError>,
{
    ebpf.take_map(name)
        .ok_or_else(|| ProbeError::Object(format!("it has no map {name}")))?
        .try_into()
        .map_err(|error: MapError| ProbeError::Map {
            map: name,
            error: error.to_string(),
        })
}

fn object_error(error: EbpfError) -> ProbeError {
    if let EbpfError::MapError(MapError::CreateError { name, io_error }) = &error {
        if is_permission(io_error) {
            return ProbeError::NotPermitted {
                doing: "load eBPF programs",
            };
        }
        if name == "EVENTS" && io_error.kind() == io::ErrorKind::InvalidInput {
            return ProbeError::KernelTooOld {
                missing: "ring buffer for eBPF, or none of this size",
            };
        }
    }
    ProbeError::Object(with_causes(&error))
}

fn program_error(program: &'static str, error: ProgramError) -> ProbeError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
    else {
        return ProbeError::Object(with_causes(&error));
    };
    let log = verifier_log.to_string();
    if is_permission(io_error) && log.trim().is_empty() {
        return ProbeError::NotPermitted {
            doing: "load eBPF programs",
        };
    }
    ProbeError::Verifier {
        program,
        verdict: format!("{io_error}: {}", verdict(&log)),
    }
}

/// The lines of a verifier's log that tell something: its last ones, without the statistics that follow.
fn verdict(log: &str) -> String {
    let lines: Vec<_> = log
        .lines()
        .map(str::trim)
        .filter(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification time ")
                && !line.starts_with("stack depth ")
        })
        .collect();
    let last = lines.iter().rev().take(3).rev();
    last.copied().collect::<Vec<_>>().join(" / ")
}

/// `EPERM` or `EACCES`.
pub(super) fn is_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// An error and all that lies under it, on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_passes_the_verifier() {
        load_all(&LoadOptions::default());
    }

    #[test]
    fn every_program_passes_the_verifier_without_cookies() {
        load_all(&LoadOptions {
            cookies: false,
            ..LoadOptions::default()
        });
    }

    #[test]
    fn every_program_passes_the_verifier_for_perf_events() {
        load_all(&LoadOptions {
            links: false,
            ..LoadOptions::default()
        });
    }

    /// Needs root, or passes and says so; then an old kernel must be told from a refusing verifier.
    fn load_all(options: &LoadOptions) {
        match Probes::load(options) {
            Ok((mut probes, _ring)) => {
                for kind in Kind::ALL {
                    match probes.program(kind) {
                        Ok(_) => println!("{kind:?} is loaded"),
                        Err(error @ ProbeError::KernelTooOld { .. }) => println!("{error}"),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            Err(error @ (ProbeError::NotPermitted { .. } | ProbeError::KernelTooOld { .. })) => {
                println!("skipped: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_verdict_is_the_end_of_the_log_without_statistics() {
        let log = "0: R1=ctx()\n1: (79) r1 = *(u64 *)(r1 +400)\ninvalid bpf_context access off=400 size=8\n\
                   processed 2 insns (limit 1000000)\nverification time 20 usec\nstack depth 0\n";
        assert_eq!(
            verdict(log),
            "0: R1=ctx() / 1: (79) r1 = *(u64 *)(r1 +400) / invalid bpf_context access off=400 size=8"
        );
    }
}
