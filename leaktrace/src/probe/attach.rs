//! Probes for one process: the planned instructions, verified once more.

use std::{
    cell::RefCell, fs, fs::File, num::NonZeroU32, os::unix::fs::FileExt as _, rc::Rc,
    thread::JoinHandle,
};

use leaktrace_common::{binary::BinaryConfig, event::Kind};

use crate::{event::Slot, target::Inode};

use super::{
    ProbeError, Probes, Processes,
    family::{Family, Scope},
    plan::Point,
    slots::map_error,
};

/// What to attach to whom.
#[derive(Clone, Copy, Debug)]
pub struct AttachRequest<'a> {
    /// The executable that was resolved, opened through `/proc/PID/exe`: the same file is probed, whatever
    /// its path means by now.
    pub executable: &'a File,
    /// The process, in our own pid namespace.
    pub pid: NonZeroU32,
    /// Where this binary keeps its fields; `filled` and `registers` are set here.
    pub binary: BinaryConfig,
    /// The instructions to probe.
    pub points: &'a [Point],
    /// Whether the probes may be in other processes of the file too.
    pub scope: Scope,
}

/// The probes of one process. Dropping it takes them off, or leaves them to those who share them.
pub struct AttachedSet {
    slot: u16,
    family: Rc<RefCell<Family>>,
    processes: Processes,
    _lease: Rc<()>,
}

impl AttachedSet {
    /// The slot that this process's events carry.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot(self.slot)
    }

    /// How many probes are on.
    #[must_use]
    pub fn len(&self) -> usize {
        self.family.borrow().probes_of(self.slot).0
    }

    /// Whether no probe is on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether links of uprobe_multi hold the probes; else they are perf events.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.family.borrow().is_linked(self.slot)
    }

    /// Whether the probes are shared with other processes of the file.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.family.borrow().probes_of(self.slot).1
    }

    /// Takes the probes off, or leaves them to those who share them. Events that they left are still in the
    /// ring, and the counters can still be read.
    pub fn detach(&mut self) {
        let mut family = self.family.borrow_mut();
        family.leave(self.slot, &self.processes);
    }

    /// The same without waiting for it; answers what to wait for in the end. Not to be followed by other probes on the same
    /// process before Linux 5.15, where both would count.
    pub fn detach_at_once(&mut self) -> Vec<JoinHandle<()>> {
        let mut family = self.family.borrow_mut();
        family.leave_at_once(self.slot, &self.processes)
    }
}

impl Drop for AttachedSet {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Probes {
    /// Puts all probes of the request on, or none. They begin to count together, once all are on.
    pub fn attach(&mut self, request: &AttachRequest<'_>) -> Result<AttachedSet, ProbeError> {
        for point in request.points {
            verify(request.executable, point)?;
        }
        same_pid_namespace(request.pid)?;
        let inode =
            Inode::of(request.executable).map_err(|error| map_error("executable", &error))?;
        let family = self.family(inode);
        let (slot, lease) = self.lease_slot()?;
        let mut binary = request.binary;
        binary.registers = registers(request.points);
        self.prepare(slot, binary)?;
        self.join(&mut family.borrow_mut(), slot, request)?;
        Ok(AttachedSet {
            slot,
            family,
            processes: Rc::clone(&self.processes),
            _lease: lease,
        })
    }

    /// Gives a process other probes, or none for a while: its slot and its counters stay. Where it shared a set,
    /// the others get sets of their own, for it would go on paying for a shared one.
    ///
    /// What is taken off goes in the background, the kinds in `hottest` first; its hits are counted as
    /// long as it is hit.
    ///
    /// # Errors
    /// When the new ones cannot be put on; the old ones are on then (before Linux 5.15 perhaps none).
    pub fn replan(
        &mut self,
        set: &AttachedSet,
        points: &[Point],
        hottest: &[Kind],
    ) -> Result<(), ProbeError> {
        let mut family = set.family.borrow_mut();
        let scope = family.wish_of(set.slot);
        if let Some(executable) = family.executable_of(set.slot) {
            for point in points {
                verify(executable, point)?;
            }
        }
        self.change(&mut family, set.slot, scope, Some(points), hottest)
    }

    /// Lets a process share its probes with others of its file, or not: because one that is not traced runs the
    /// file too, and would pay for a shared set.
    ///
    /// # Errors
    /// As [`Probes::replan`].
    pub fn rescope(&mut self, set: &AttachedSet, scope: Scope) -> Result<(), ProbeError> {
        let mut family = set.family.borrow_mut();
        self.change(&mut family, set.slot, scope, None, &[])
    }
}

/// By kind, the register of the first point: all of a kind use the same where there are no cookies
/// (`Plan::without_cookies`).
fn registers(points: &[Point]) -> [u8; Kind::COUNT as usize] {
    Kind::ALL.map(|kind| {
        let mut points = points.iter();
        points
            .find(|point| point.kind == kind)
            .map_or(0, |point| point.register)
    })
}

/// The programs are told of a process by its pid: they must know it by the same.
fn same_pid_namespace(pid: NonZeroU32) -> Result<(), ProbeError> {
    let (own, its) = (
        fs::read_link("/proc/self/ns/pid").ok(),
        fs::read_link(format!("/proc/{pid}/ns/pid")).ok(),
    );
    // In the machine's first pid namespace every process has a number.
    let everywhere = own.as_deref() == Some(std::path::Path::new(super::load::FIRST_PID_NAMESPACE));
    match (own, its) {
        (Some(own), Some(its)) if !everywhere && own != its => {
            Err(ProbeError::OtherPidNamespace(pid.get()))
        }
        _ => Ok(()),
    }
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
