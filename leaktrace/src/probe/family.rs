//! The traced processes of one file, and who of them shares its probes.
//!
//! A probe lies on a file's inode. Where each process has probes of its own, every hit in any of them asks every
//! one's probe whether it is meant; so processes of one file share one set, and the map of processes tells the
//! hits apart. A shared probe is in every process that runs the file: hence a process that is to have fewer
//! probes than the others, or none, makes the others give up the shared set for sets of their own.
//!
//! Either way round the new set is put on first; then the processes are told, one word in a map each, which set
//! counts; then the old set is taken off. No hit is missed and none is counted twice, but for those that the very
//! change of the word falls into.

use std::{
    cell::RefCell,
    fs::File,
    io::ErrorKind,
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    rc::{Rc, Weak},
    thread::{self, JoinHandle},
};

use aya::{
    maps::MapError,
    programs::{
        ProgramError,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
    sys::SyscallError,
};
use leaktrace_common::{binary::Cookie, event::Kind, process::Enrolment};
use nix::libc;

use crate::target::Inode;

use super::{
    AttachRequest, ProbeError, Probes, Processes,
    load::{is_permission, program_name, with_causes},
    multi,
    plan::Point,
    slots::map_error,
};

/// Whose threads may hit the probes of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Its own only.
    #[default]
    Process,
    /// Those of every process that runs the same file, so that several traced ones can share one set.
    File,
}

impl LinkSet {
    /// How many probes it is.
    fn probes(&self) -> usize {
        self.links.iter().map(Link::probes).sum()
    }

    /// Takes the probes off, the hottest first, without waiting for it.
    ///
    /// The kernel takes a breakpoint out at once, and then waits about 100 ms until no processor can still be in the
    /// program; closing all in a row would leave the last in the target for the better part of a second. Links of many
    /// probes are closed all at the same time; perf events would then keep the target waiting (see [`multi`]).
    fn take_off(mut self, hottest: &[Kind]) -> Option<JoinHandle<()>> {
        let heat = |link: &Link| {
            let place = hottest.iter().position(|kind| *kind == link.kind());
            place.unwrap_or(hottest.len())
        };
        let mut links: Vec<_> = self.links.drain(..).collect();
        links.sort_by_key(heat);
        let closing = thread::Builder::new().name("take probes off".to_owned());
        // A thread that cannot be started drops what it was given, here and now.
        let closing = closing.spawn(move || close(links));
        if let Err(error) = &closing {
            tracing::debug!(%error, "probes are taken off without a thread");
        }
        closing.ok()
    }
}

fn close(links: Vec<Link>) {
    thread::scope(|scope| {
        for link in links {
            match link {
                Link::One(_, link) => drop(link),
                Link::Many(link) => {
                    let closing = thread::Builder::new().name("take probes off".to_owned());
                    // As above.
                    let _ = closing.spawn_scoped(scope, move || drop(link));
                }
            }
        }
    });
}

/// The traced processes of one file.
#[derive(Default)]
pub(super) struct Family {
    members: Vec<Member>,
    shared: Option<LinkSet>,
}

/// One traced process.
struct Member {
    pid: NonZeroU32,
    slot: u16,
    scope: Scope,
    executable: File,
    points: Rc<[Point]>,
    own: Option<LinkSet>,
}

/// Probes that are on.
struct LinkSet {
    number: u32,
    points: Rc<[Point]>,
    links: Vec<Link>,
}

/// What holds probes.
enum Link {
    /// All of one kind.
    Many(multi::Link),
    /// One.
    One(Kind, UProbeLink),
}

impl Link {
    fn kind(&self) -> Kind {
        match self {
            Self::Many(link) => link.kind,
            Self::One(kind, _) => *kind,
        }
    }

    fn probes(&self) -> usize {
        match self {
            Self::Many(link) => link.probes,
            Self::One(..) => 1,
        }
    }
}

impl Family {
    /// How many probes this process hits, and whether they are shared.
    pub(super) fn probes_of(&self, slot: u16) -> (usize, Scope) {
        let member = self.members.iter().find(|member| member.slot == slot);
        match (member, &self.shared) {
            (Some(Member { own: Some(own), .. }), _) => (own.probes(), Scope::Process),
            (Some(member), Some(shared)) if !member.points.is_empty() => {
                (shared.probes(), Scope::File)
            }
            _ => (0, Scope::Process),
        }
    }

    /// Whether the process has probes, and links hold them all.
    pub(super) fn is_linked(&self, slot: u16) -> bool {
        let member = self.members.iter().find(|member| member.slot == slot);
        let own = member.and_then(|member| member.own.as_ref());
        let links = own.or(self.shared.as_ref()).map(|set| &*set.links);
        let links = links.unwrap_or_default();
        !links.is_empty() && links.iter().all(|link| matches!(link, Link::Many(_)))
    }

    /// Whether the process may share.
    pub(super) fn wish_of(&self, slot: u16) -> Scope {
        let member = self.members.iter().find(|member| member.slot == slot);
        member.map_or(Scope::Process, |member| member.scope)
    }

    /// The file that the process runs.
    pub(super) fn executable_of(&self, slot: u16) -> Option<&File> {
        let member = self.members.iter().find(|member| member.slot == slot);
        member.map(|member| &member.executable)
    }

    /// Takes a process out. Those that stay keep what they have.
    pub(super) fn leave(&mut self, slot: u16, processes: &Processes) {
        if let Some(index) = self.members.iter().position(|member| member.slot == slot) {
            strike(processes, self.members.swap_remove(index).pid);
        }
        if self.members.is_empty() {
            self.shared = None;
        }
    }

    /// The same without waiting for it.
    pub(super) fn leave_at_once(
        &mut self,
        slot: u16,
        processes: &Processes,
    ) -> Vec<JoinHandle<()>> {
        let mut sets = Vec::new();
        if let Some(index) = self.members.iter().position(|member| member.slot == slot) {
            let member = self.members.swap_remove(index);
            strike(processes, member.pid);
            sets.extend(member.own);
        }
        if self.members.is_empty() {
            sets.extend(self.shared.take());
        }
        let closing = sets.into_iter().map(|set| set.take_off(&[]));
        closing.flatten().collect()
    }

    fn member(&mut self, slot: u16) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.slot == slot)
    }

    /// Whether one set can serve all: there are several, all may share, and all want the same.
    fn can_share(&self) -> bool {
        let mut members = self.members.iter();
        let Some(first) = members.next() else {
            return false;
        };
        let like_first =
            |member: &Member| member.scope == Scope::File && member.points == first.points;
        self.members.len() > 1 && !first.points.is_empty() && self.members.iter().all(like_first)
    }
}

impl Probes {
    /// The family of a file, empty when nobody of it is traced.
    pub(super) fn family(&mut self, inode: Inode) -> Rc<RefCell<Family>> {
        if let Some(family) = self.families.get(&inode).and_then(Weak::upgrade) {
            return family;
        }
        self.families.retain(|_, family| family.strong_count() > 0);
        let family = Rc::new(RefCell::new(Family::default()));
        self.families.insert(inode, Rc::downgrade(&family));
        family
    }

    /// Takes a process in and puts its probes on.
    pub(super) fn join(
        &mut self,
        family: &mut Family,
        slot: u16,
        request: &AttachRequest<'_>,
    ) -> Result<(), ProbeError> {
        let executable = request.executable.try_clone();
        family.members.push(Member {
            pid: request.pid,
            slot,
            scope: request.scope,
            executable: executable.map_err(|error| map_error("open files", &error))?,
            points: in_order(request.points),
            own: None,
        });
        let joined = self.settle(family, slot, &[]);
        if joined.is_err() {
            family.leave(slot, &self.processes);
        }
        joined
    }

    /// Gives a process other probes, or lets it share or not. After an error it has those that it had.
    pub(super) fn change(
        &mut self,
        family: &mut Family,
        slot: u16,
        scope: Scope,
        points: Option<&[Point]>,
        hottest: &[Kind],
    ) -> Result<(), ProbeError> {
        let Some(member) = family.member(slot) else {
            return Ok(());
        };
        let before = (member.scope, Rc::clone(&member.points));
        member.scope = scope;
        if let Some(points) = points {
            member.points = in_order(points);
        }
        let changed = self.settle(family, slot, hottest);
        if changed.is_err()
            && let Some(member) = family.member(slot)
        {
            (member.scope, member.points) = before;
        }
        changed
    }

    /// Makes what is on be what the members want. Nothing has changed after an error, which is about the process
    /// at `slot`, or says that the kernel takes no more probes.
    fn settle(
        &mut self,
        family: &mut Family,
        slot: u16,
        hottest: &[Kind],
    ) -> Result<(), ProbeError> {
        if self.cookies && family.can_share() {
            self.share(family)
        } else {
            self.separate(family, slot, hottest)
        }
    }

    fn share(&mut self, family: &mut Family) -> Result<(), ProbeError> {
        let Some(first) = family.members.first() else {
            return Ok(());
        };
        let (number, before) = match &family.shared {
            Some(shared) if shared.points == first.points => (shared.number, None),
            _ => {
                let set = self.put_on(&first.executable, None, &first.points)?;
                (set.number, family.shared.replace(set))
            }
        };
        for member in &family.members {
            self.enrol(member, number)?;
        }
        let own = family.members.iter_mut().map(|member| member.own.take());
        for set in own.chain([before]).flatten() {
            set.take_off(&[]);
        }
        Ok(())
    }

    fn separate(
        &mut self,
        family: &mut Family,
        slot: u16,
        hottest: &[Kind],
    ) -> Result<(), ProbeError> {
        let mut fresh = Vec::new();
        for (index, member) in family.members.iter_mut().enumerate() {
            let wanted = &member.points;
            if (member.own.as_ref()).map_or(wanted.is_empty(), |own| own.points == *wanted) {
                continue;
            }
            if !self.cookies {
                // Both sets would count: better a gap.
                strike(&self.processes, member.pid);
                member.own = None;
            }
            let set = match self.put_on(&member.executable, Some(member.pid), wanted) {
                Ok(set) => Some(set),
                // Whoever watches it will notice.
                Err(ProbeError::TargetGone(_)) if member.slot != slot => None,
                Err(error) => return Err(error),
            };
            fresh.push((index, set));
        }
        let mut before = Vec::new();
        for (index, set) in fresh {
            if let Some(member) = family.members.get_mut(index) {
                match &set {
                    Some(set) if !set.points.is_empty() => self.enrol(member, set.number)?,
                    // It pays for the old ones until they are off, so their hits go on being counted.
                    Some(_) if self.cookies => {}
                    _ => strike(&self.processes, member.pid),
                }
                before.push(std::mem::replace(&mut member.own, set));
            }
        }
        before.push(family.shared.take());
        // Without cookies the next set would count together with one that is still going.
        if self.cookies {
            for set in before.into_iter().flatten() {
                set.take_off(hottest);
            }
        }
        Ok(())
    }

    /// Puts probes on for one process, or for all of the file. They count for nobody yet.
    fn put_on(
        &mut self,
        executable: &File,
        pid: Option<NonZeroU32>,
        points: &Rc<[Point]>,
    ) -> Result<LinkSet, ProbeError> {
        // 0 is the number of a probe without a cookie.
        self.last_set = self.last_set.wrapping_add(1).max(1);
        let number = self.last_set;
        // The kernel opens the path again; through our descriptor it cannot be another file.
        let path = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let links = match self.put_on_many(&path, pid, number, points)? {
            Some(links) => links,
            None => self.put_on_each(&path, pid, number, points)?,
        };
        Ok(LinkSet {
            number,
            points: Rc::clone(points),
            links,
        })
    }

    /// A link for each kind; `None` where this kernel has no such links.
    fn put_on_many(
        &mut self,
        path: &str,
        pid: Option<NonZeroU32>,
        number: u32,
        points: &[Point],
    ) -> Result<Option<Vec<Link>>, ProbeError> {
        let Some(programs) = &mut self.multi else {
            return Ok(None);
        };
        let mut links = Vec::new();
        for points in points.chunk_by(|one, next| one.kind == next.kind) {
            let Some(first) = points.first() else {
                continue;
            };
            let cookie = |point: &Point| Cookie {
                set: number,
                register: point.register,
            };
            let places: Vec<_> = (points.iter())
                .map(|point| (point.offset.0, cookie(point).to_bits()))
                .collect();
            let name = program_name(first.kind);
            match programs.attach(name, first.kind, path, pid, &places) {
                Ok(link) => links.push(Link::Many(link)),
                Err(error) => match (error.raw_os_error(), pid) {
                    (Some(libc::ESRCH), Some(pid)) => {
                        return Err(ProbeError::TargetGone(pid.get()));
                    }
                    (Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM), _) => {
                        return Err(ProbeError::Refused {
                            kind: first.kind,
                            offset: first.offset,
                            error: error.to_string(),
                        });
                    }
                    // Perf events may still be had; if not, they say why.
                    _ => {
                        tracing::debug!("these probes are perf events: {error}");
                        return Ok(None);
                    }
                },
            }
        }
        Ok(Some(links))
    }

    /// A perf event for each.
    fn put_on_each(
        &mut self,
        path: &str,
        pid: Option<NonZeroU32>,
        number: u32,
        points: &[Point],
    ) -> Result<Vec<Link>, ProbeError> {
        let scope = pid.map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        let mut links = Vec::with_capacity(points.len());
        for point in points {
            let cookie = Cookie {
                set: number,
                register: point.register,
            };
            let place = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(point.offset.0),
                cookie: self.cookies.then(|| cookie.to_bits()),
            };
            let program = self.program(point.kind)?;
            let link = program
                .attach(place, path, scope)
                .and_then(|id| program.take_link(id))
                .map_err(|error| attach_error(pid, point, &error))?;
            links.push(Link::One(point.kind, link));
        }
        Ok(links)
    }

    /// From now on the probes of this set count for the process, and no others.
    fn enrol(&self, member: &Member, set: u32) -> Result<(), ProbeError> {
        let enrolment = Enrolment {
            set,
            slot: member.slot,
            padding: 0,
        };
        let mut processes = self.processes.borrow_mut();
        processes
            .insert(member.pid.get(), enrolment, 0)
            .map_err(|error| map_error("processes", &error))
    }
}

/// From now on no probe counts for the process.
fn strike(processes: &Processes, pid: NonZeroU32) {
    match processes.borrow_mut().remove(&pid.get()) {
        Ok(()) => {}
        // It was in no map: its probes were being put on.
        Err(MapError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(pid, %error, "a process stays in the map of the traced"),
    }
}

/// Ends are put on before births, so that without cookies no goroutine is seen to be born whose end is not.
fn in_order(points: &[Point]) -> Rc<[Point]> {
    let mut points = points.to_vec();
    points.sort_by_key(|point| std::cmp::Reverse(point.kind));
    points.into()
}

fn attach_error(pid: Option<NonZeroU32>, point: &Point, error: &ProgramError) -> ProbeError {
    match (error, pid) {
        (ProgramError::SyscallError(SyscallError { io_error, .. }), _)
            if is_permission(io_error) =>
        {
            ProbeError::NotPermitted {
                doing: "attach uprobes",
            }
        }
        // ESRCH is 3 on every Linux.
        (ProgramError::SyscallError(SyscallError { io_error, .. }), Some(pid))
            if io_error.raw_os_error() == Some(3) =>
        {
            ProbeError::TargetGone(pid.get())
        }
        _ => ProbeError::Refused {
            kind: point.kind,
            offset: point.offset,
            error: with_causes(error),
        },
    }
}
