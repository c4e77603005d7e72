//! Probes onto one process: the planned instructions, verified once more, each with its cookie.

use std::{
    fs::File,
    num::NonZeroU32,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    sync::{Arc, Weak},
};

use aya::{
    maps::{Array, MapData, MapError, PerCpuValues},
    programs::{
        ProgramError,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
    sys::SyscallError,
    util::nr_cpus,
};
use leaktrace_common::{
    binary::{BinaryConfig, Cookie},
    event::{Kind, Loss},
    limits::SLOTS,
    stack::StackKey,
};

use crate::event::Slot;

use super::{
    ProbeError, Probes,
    load::{is_permission, with_causes},
    plan::Point,
};

/// What to attach to whom.
#[derive(Clone, Copy, Debug)]
pub struct AttachRequest<'a> {
    /// The executable that was resolved, opened through `/proc/PID/exe`: the same file is probed, whatever
    /// its path means by now.
    pub executable: &'a File,
    /// The process, in our own pid namespace.
    pub pid: NonZeroU32,
    /// Where this binary keeps its fields; `filled` is set here.
    pub binary: BinaryConfig,
    /// The instructions to probe.
    pub points: &'a [Point],
}

/// The probes on one process. Dropping it takes them off.
pub struct AttachedSet {
    slot: u16,
    links: Vec<UProbeLink>,
    _lease: Arc<()>,
}

impl AttachedSet {
    /// The slot that this set's events carry.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot(self.slot)
    }

    /// How many probes are on.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether no probe is on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Takes the probes off. Events that they left are still in the ring, and the counters can still be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }
}

impl Probes {
    /// Puts all probes of the request on, or none.
    pub fn attach(&mut self, request: &AttachRequest<'_>) -> Result<AttachedSet, ProbeError> {
        for probe in request.points {
            verify(request.executable, probe)?;
        }
        if self.shared_cookies.is_some() && self.slots.iter().any(|user| user.strong_count() > 0) {
            return Err(ProbeError::NoCookies(
                "one set of programs serves one process at a time",
            ));
        }
        let (slot, lease) = self.lease_slot()?;
        self.prepare(slot, request.binary)?;
        if let Some(cookies) = &mut self.shared_cookies {
            share_cookies(cookies, slot, request.points)?;
        }
        let mut set = AttachedSet {
            slot,
            links: Vec::with_capacity(request.points.len()),
            _lease: lease,
        };
        // Ends go on before births, so that no goroutine is seen to be born whose end is not.
        let mut probes: Vec<_> = request.points.iter().collect();
        probes.sort_by_key(|probe| std::cmp::Reverse(probe.kind));
        for probe in probes {
            set.links.push(self.attach_one(request, slot, probe)?);
        }
        Ok(set)
    }

    fn attach_one(
        &mut self,
        request: &AttachRequest<'_>,
        slot: u16,
        probe: &Point,
    ) -> Result<UProbeLink, ProbeError> {
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(probe.offset.0),
            cookie: self
                .shared_cookies
                .is_none()
                .then(|| cookie(slot, probe).to_bits()),
        };
        // The kernel opens the path again; through our descriptor it cannot be another file.
        let path = format!("/proc/self/fd/{}", request.executable.as_raw_fd());
        let program = self.program(probe.kind)?;
        let link = program
            .attach(point, path, UProbeScope::OneProcess(request.pid))
            .and_then(|id| program.take_link(id));
        link.map_err(|error| attach_error(request.pid, probe, &error))
    }

    /// A slot that nobody uses, the longest unused first, so that late events of its last user are gone.
    fn lease_slot(&mut self) -> Result<(u16, Arc<()>), ProbeError> {
        let count = SLOTS as usize;
        self.slots.resize_with(count, Weak::new);
        let free = (0..count)
            .map(|step| (self.next_slot + step) % count)
            .find(|&index| {
                self.slots
                    .get(index)
                    .is_some_and(|user| user.strong_count() == 0)
            });
        let (Some(index), lease) = (free, Arc::new(())) else {
            return Err(ProbeError::NoSlot(SLOTS));
        };
        if let Some(user) = self.slots.get_mut(index) {
            *user = Arc::downgrade(&lease);
        }
        self.next_slot = (index + 1) % count;
        let number = u16::try_from(index).map_err(|_| ProbeError::NoSlot(SLOTS))?;
        Ok((number, lease))
    }

    /// Clears what the last user of the slot left, and tells the programs about the binary.
    fn prepare(&mut self, slot: u16, binary: BinaryConfig) -> Result<(), ProbeError> {
        let stale: Vec<u64> = self
            .stacks
            .keys()
            .filter_map(Result::ok)
            .filter(|&key| StackKey::from_bits(key).is_some_and(|key| key.slot() == slot))
            .collect();
        for key in stale {
            match self.stacks.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error("stacks", &error)),
            }
        }
        self.forget_waits(slot);
        let cpus = nr_cpus().map_err(|(_, error)| map_error("counters", &error))?;
        for (table, stride) in [(&mut self.lost, Loss::COUNT), (&mut self.hits, Kind::COUNT)] {
            let row = u32::from(slot) * stride;
            for index in row..row + stride {
                let zeros = PerCpuValues::try_from(vec![0; cpus])
                    .map_err(|error| map_error("counters", &error))?;
                table
                    .set(index, zeros, 0)
                    .map_err(|error| map_error("counters", &error))?;
            }
        }
        let filled = BinaryConfig {
            filled: 1,
            ..binary
        };
        self.binaries
            .set(u32::from(slot), filled, 0)
            .map_err(|error| map_error("binaries", &error))
    }
}

/// What the programs must know of one probe.
fn cookie(slot: u16, probe: &Point) -> Cookie {
    Cookie {
        slot,
        register: probe.register,
    }
}

/// Tells the programs the one cookie of each kind, before any probe is on.
fn share_cookies(
    cookies: &mut Array<MapData, u64>,
    slot: u16,
    points: &[Point],
) -> Result<(), ProbeError> {
    for (index, probe) in points.iter().enumerate() {
        let earlier = points.get(..index).unwrap_or_default();
        if (earlier.iter())
            .any(|other| other.kind == probe.kind && other.register != probe.register)
        {
            return Err(ProbeError::NoCookies(
                "two probes of one kind cannot find their object in two registers",
            ));
        }
        cookies
            .set(probe.kind as u32, cookie(slot, probe).to_bits(), 0)
            .map_err(|error| map_error("cookies", &error))?;
    }
    Ok(())
}

/// Refuses to probe an instruction that is not the one that was found.
fn verify(executable: &File, probe: &Point) -> Result<(), ProbeError> {
    let mut found = vec![0; probe.bytes.len()];
    executable
        .read_exact_at(&mut found, probe.offset.0)
        .map_err(|error| ProbeError::Unreadable {
            offset: probe.offset,
            error,
        })?;
    if found.is_empty() || found != probe.bytes {
        return Err(ProbeError::Changed {
            offset: probe.offset,
            found: hexadecimal(&found),
            expected: hexadecimal(&probe.bytes),
        });
    }
    Ok(())
}

fn attach_error(pid: NonZeroU32, probe: &Point, error: &ProgramError) -> ProbeError {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) if is_permission(io_error) => {
            ProbeError::NotPermitted {
                doing: "attach uprobes",
            }
        }
        // ESRCH is 3 on every Linux.
        ProgramError::SyscallError(SyscallError { io_error, .. })
            if io_error.raw_os_error() == Some(3) =>
        {
            ProbeError::TargetGone(pid.get())
        }
        _ => ProbeError::Refused {
            kind: probe.kind,
            offset: probe.offset,
            error: with_causes(error),
        },
    }
}

fn map_error(map: &'static str, error: &(dyn std::error::Error + 'static)) -> ProbeError {
    ProbeError::Map {
        map,
        error: with_causes(error),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::{address::FileOffset, resolve::Execution};

    fn probe(offset: u64, bytes: &[u8]) -> Point {
        Point {
            kind: Kind::Born,
            offset: FileOffset(offset),
            bytes: bytes.to_vec(),
            register: 0,
            execution: Execution::Emulated,
        }
    }

    #[test]
    fn an_instruction_that_changed_is_not_probed() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&[0x90, 0x75, 0x0a]).expect("writing it");
        assert!(verify(&file, &probe(1, &[0x75, 0x0a])).is_ok());
        let error = verify(&file, &probe(1, &[0x75, 0x0b])).expect_err("other bytes");
        assert_eq!(
            error.to_string(),
            "the executable changed: at offset 0x1 it holds 750a, not 750b; resolve it again"
        );
        assert!(matches!(
            verify(&file, &probe(2, &[0x0a, 0x0a])),
            Err(ProbeError::Unreadable { .. })
        ));
        assert!(matches!(
            verify(&file, &probe(1, &[])),
            Err(ProbeError::Changed { .. })
        ));
    }
}
