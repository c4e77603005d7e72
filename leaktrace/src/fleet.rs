//! All targets of one leaktrace: one set of programs and one ring buffer serve them all.
//!
//! The ring is drained centrally, and each event goes to the session whose slot it carries. What two processes run
//! is resolved once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::rc::{Rc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use leaktrace_common::limits::WAITS;

use crate::budget::{Calibration, Share, Terms, even_share};
use crate::clock::monotonic_ns;
use crate::event::{Lives, Ring, Slot};
use crate::probe::{Calibrator, Level, LoadOptions, ProbeError, Probes, Scope};
use crate::resolve::{self, Program, Refusal};
use crate::session::{Depth, PATIENCE, Session};
use crate::target::whereabouts::Pods;
use crate::target::{Inode, Pid, Process, TargetId};
use crate::verdict;

/// Targets and what they share.
#[derive(Default)]
pub struct Fleet {
    budget: Budget,
    rules: verdict::Config,
    confirm: bool,
    /// Dropped before the programs that their probes run.
    sessions: BTreeMap<TargetId, Session>,
    by_slot: HashMap<Slot, TargetId>,
    tracer: Option<Tracer>,
    /// Goroutines whose waits can be watched: the kernel takes their memory when the programs are loaded.
    waits: u32,
    programs: Programs,
    /// Records that made no sense, and events of targets that are no longer there.
    undecodable: u64,
    late: u64,
    /// Threads that take probes off.
    closing: Vec<JoinHandle<()>>,
    /// When probes were last put on a target: CLOCK_MONOTONIC, nanoseconds.
    attached_ns: u64,
    /// Records that the last call of [`Fleet::drain`] found.
    found: usize,
}

/// The loaded programs and the reading end of their ring.
struct Tracer {
    /// Dropped before the programs that its probes run.
    calibrator: Option<Calibrator>,
    probes: Probes,
    ring: Ring,
    calibration: Calibration,
    calibrated_ns: u64,
    divided_ns: u64,
}

/// What targets may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// Each of them; `None`: anything.
    pub target: Option<Share>,
    /// All together; `None`: as much as each may.
    pub host: Option<Share>,
}

/// Threads that take probes off at one time; with more, the caller waits.
const MOST_CLOSING: usize = 64;

/// How often the ring is to be emptied: while much is said, or may be, and else. A budget keeps what is said within the ring's
/// room for longer than that; and each time costs the machine, which may have better things to do.
const DRAIN_EVERY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));

/// So many records at once are much.
const MUCH: usize = 1000;

/// How long after probes were put on they may turn out to be dear.
const NEW_NS: u64 = 2_000_000_000;

/// Records taken from the ring in one go, so that a storm cannot keep the caller from its other work.
const DRAIN_RECORDS: usize = 1 << 20;

/// What a hit costs is measured again after so long: machines move, and clocks change.
const CALIBRATE_AGAIN_NS: u64 = 600_000_000_000;

/// The host's budget is divided anew this often.
const DIVIDE_NS: u64 = 1_000_000_000;

impl Fleet {
    /// An empty fleet, of which no target will be watched on a richer level than `most`, and none lose more than
    /// `budget` allows.
    #[must_use]
    pub fn new(most: Level, budget: Budget) -> Self {
        Self {
            budget,
            waits: if most == Level::Full { WAITS } else { 0 },
            ..Self::default()
        }
    }

    /// Looks at a process and its executable, and takes it in. Nothing is attached.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open(&mut self, pid: Pid) -> anyhow::Result<TargetId> {
        let mut process = Process::open(pid)?;
        process.locate(&mut Pods::default());
        self.take_in(process, PATIENCE)
    }

    /// Allows to ask the programs themselves about their leaks.
    pub fn confirm(&mut self, allowed: bool) {
        for session in self.sessions.values_mut() {
            session.confirm(allowed);
        }
        self.confirm = allowed;
    }

    /// Tunes the rules by which all targets are judged from now on.
    pub fn judge_by(&mut self, rules: verdict::Config) {
        for session in self.sessions.values_mut() {
            session.judge_by(rules.clone());
        }
        self.rules = rules;
    }

    /// The same for a process that was found already; its memory is looked at `tries` times until it is believed.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn take_in(&mut self, process: Process, tries: u32) -> anyhow::Result<TargetId> {
        let id = process.id;
        let programs = &mut self.programs;
        let mut session = Session::of(process, tries, |executable| programs.resolve(executable))?;
        session.judge_by(self.rules.clone());
        session.confirm(self.confirm);
        self.sessions.insert(id, session);
        Ok(id)
    }

    /// Puts the probes of `level` on a target; with [`Scope::File`] it shares them with others that run its file.
    ///
    /// # Errors
    /// When the programs cannot be loaded, or as [`Session::attach`].
    pub fn attach(&mut self, id: TargetId, level: Level, scope: Scope) -> anyhow::Result<()> {
        if level == Level::None {
            return Ok(());
        }
        let tracer = loaded(&mut self.tracer, self.waits)?;
        let session = self.sessions.get_mut(&id).ok_or_else(|| unknown(id))?;
        let terms = Terms {
            share: self.budget.target,
            calibration: tracer.calibration,
        };
        session.attach(&mut tracer.probes, level, scope, &terms)?;
        self.attached_ns = monotonic_ns();
        if let Some(slot) = session.slot() {
            self.by_slot.insert(slot, id);
        }
        Ok(())
    }

    /// Has the kernel note which processes come and go.
    ///
    /// # Errors
    /// When the programs cannot be loaded: then /proc must be read often.
    pub fn watch_processes(&mut self) -> anyhow::Result<Lives> {
        Ok(loaded(&mut self.tracer, self.waits)?
            .probes
            .watch_processes()?)
    }

    /// Whether this is the executable of a Go program, which is found out once for each file.
    pub fn is_go(&mut self, executable: &File) -> bool {
        !matches!(
            self.programs.resolve(executable),
            Err(Refusal::NotGo | Refusal::NotElf)
        )
    }

    /// Lets the targets that run this file share their probes, or not.
    ///
    /// # Errors
    /// When the new probes cannot be put on; the old ones are on then.
    pub fn change_scope(&mut self, file: Inode, scope: Scope) -> anyhow::Result<()> {
        let Some(tracer) = &mut self.tracer else {
            return Ok(());
        };
        for session in self.sessions.values_mut() {
            if session.process.inode() == Some(file) {
                session.change_scope(&mut tracer.probes, scope)?;
            }
        }
        Ok(())
    }

    /// From now on targets may lose so much. Where there was no budget or is none any more, that is so for those that are taken
    /// in later.
    pub fn change_budget(&mut self, budget: Budget) {
        self.budget = budget;
        if let Some(tracer) = &mut self.tracer {
            // What all may lose is divided in the next step.
            tracer.divided_ns = 0;
        }
        if let Some(share) = budget.target {
            for session in self.sessions.values_mut() {
                session.set_share(share);
            }
        }
    }

    /// Books what the probes cost, and puts them on and takes them off as the budget wants it.
    fn govern(&mut self, now_ns: u64) {
        let Some(tracer) = &mut self.tracer else {
            return;
        };
        for session in self.sessions.values_mut() {
            session.govern(&mut tracer.probes, now_ns);
        }
        if let (Some(host), Some(most)) = (self.budget.host, self.budget.target)
            && now_ns.saturating_sub(tracer.divided_ns) >= DIVIDE_NS
        {
            tracer.divided_ns = now_ns;
            let demands: Vec<Share> = (self.sessions.values())
                .filter_map(Session::demand)
                .collect();
            let share = even_share(host, most, &demands);
            for session in self.sessions.values_mut() {
                session.set_share(share);
            }
        }
        if now_ns.saturating_sub(tracer.calibrated_ns) >= CALIBRATE_AGAIN_NS {
            tracer.calibrate(now_ns);
            let terms = Terms {
                share: self.budget.target,
                calibration: tracer.calibration,
            };
            for session in self.sessions.values_mut() {
                session.reprice(&terms);
            }
        }
    }

    /// What one hit of a probe costs on this machine, once probes were loaded.
    #[must_use]
    pub fn calibration(&self) -> Option<Calibration> {
        self.tracer.as_ref().map(|tracer| tracer.calibration)
    }

    /// Books what the probes have said since the last call, and keeps the budget. Wants to be called again after
    /// [`Fleet::pause`].
    pub fn drain(&mut self) {
        let Some(tracer) = &mut self.tracer else {
            return;
        };
        let own = tracer.calibrator.as_ref().map(Calibrator::slot);
        let (sessions, by_slot, late) = (&mut self.sessions, &self.by_slot, &mut self.late);
        let probes = &tracer.probes;
        let drained = tracer.ring.drain(DRAIN_RECORDS, |event| {
            match by_slot.get(&event.slot).and_then(|id| sessions.get_mut(id)) {
                Some(session) => session.apply(&event, probes),
                None if own == Some(event.slot) => {}
                None => *late += 1,
            }
        });
        self.undecodable += drained.undecodable as u64;
        tracer.probes.flush_log();
        self.found = drained.records;
        self.govern(monotonic_ns());
    }

    /// How long nobody needs to call [`Fleet::drain`].
    #[must_use]
    pub fn pause(&self) -> Duration {
        let is_new = monotonic_ns().saturating_sub(self.attached_ns) < NEW_NS;
        if is_new || self.found >= MUCH || self.sessions.values().any(Session::is_hurried) {
            DRAIN_EVERY.0
        } else {
            DRAIN_EVERY.1
        }
    }

    /// Counts what is really alive in a target and corrects its books with it. Answers what that has taken this thread, without
    /// the events that came meanwhile and without following pointers.
    ///
    /// # Errors
    /// When the target is gone or its memory makes no sense.
    pub fn census(&mut self, id: TargetId, depth: Depth) -> anyhow::Result<Duration> {
        let session = self.sessions.get(&id).ok_or_else(|| unknown(id))?;
        let look = session.look(depth)?;
        // Every event from before the census ended must be booked first. A probe stamps its record some
        // microseconds before it is in the ring, on another processor; so look again a moment later.
        self.drain();
        if self.tracer.is_some() {
            std::thread::sleep(Duration::from_millis(1));
            self.drain();
        }
        let session = self.sessions.get_mut(&id).ok_or_else(|| unknown(id))?;
        let waits = (self.tracer.as_ref())
            .map(|tracer| session.waits(&look, &tracer.probes))
            .unwrap_or_default();
        if let Some(tracer) = &self.tracer {
            session.note_losses(&tracer.probes, self.undecodable);
        }
        let worked = session.book(look);
        session.note_waits(waits);
        if let Some(tracer) = &self.tracer {
            session.note_counters(&tracer.probes);
        }
        Ok(worked)
    }

    /// One target.
    ///
    /// # Errors
    /// When it was never taken in, or was let go.
    pub fn session(&self, id: TargetId) -> anyhow::Result<&Session> {
        self.sessions.get(&id).ok_or_else(|| unknown(id))
    }

    /// All targets.
    pub fn sessions(&self) -> impl Iterator<Item = (TargetId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Takes the probes off a target and forgets it; its last report is the caller's to keep.
    pub fn let_go(&mut self, id: TargetId) -> Option<Session> {
        let mut session = self.sessions.remove(&id)?;
        if let Some(slot) = session.slot() {
            self.by_slot.remove(&slot);
        }
        session.detach();
        Some(session)
    }

    /// The same for a process that has ended, or when all end: its probes are taken off meanwhile, because the kernel takes a
    /// tenth of a second for each, and others have to be counted.
    pub fn forget(&mut self, id: TargetId) {
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        if let Some(slot) = session.slot() {
            self.by_slot.remove(&slot);
        }
        self.closing.retain(|thread| !thread.is_finished());
        if self.closing.len() < MOST_CLOSING {
            self.closing.extend(session.detach_at_once());
        } else {
            session.detach();
        }
    }

    /// Waits until all probes are off that were to be.
    pub fn wait_for_probes(&mut self) {
        for thread in std::mem::take(&mut self.closing) {
            // It only closes what it was given.
            let _ = thread.join();
        }
    }

    /// Hits of probes in processes that are not traced, since the programs were loaded.
    #[must_use]
    pub fn strangers(&self) -> u64 {
        (self.tracer.as_ref()).map_or(0, |tracer| tracer.probes.strangers())
    }

    /// Events that came after their target had been let go.
    #[must_use]
    pub fn late_events(&self) -> u64 {
        self.late
    }
}

/// The programs, loaded when they are first needed.
fn loaded(tracer: &mut Option<Tracer>, waits: u32) -> Result<&mut Tracer, ProbeError> {
    match tracer {
        Some(tracer) => Ok(tracer),
        none => Ok(none.insert(Tracer::load(waits)?)),
    }
}

impl Tracer {
    /// Loads the programs, and measures what a hit costs.
    fn load(waits: u32) -> Result<Self, ProbeError> {
        let (mut probes, ring) = Probes::load(&LoadOptions {
            waits,
            ..LoadOptions::default()
        })?;
        let calibrator = match Calibrator::attach(&mut probes) {
            Ok(calibrator) => Some(calibrator),
            Err(error) => {
                tracing::warn!("what a hit costs is not measured but assumed: {error}");
                None
            }
        };
        let mut tracer = Self {
            calibrator,
            probes,
            ring,
            calibration: Calibration::ASSUMED,
            calibrated_ns: 0,
            divided_ns: 0,
        };
        tracer.calibrate(monotonic_ns());
        Ok(tracer)
    }

    fn calibrate(&mut self, now_ns: u64) {
        self.calibrated_ns = now_ns;
        if let Some(calibrator) = &self.calibrator {
            self.calibration = calibrator.measure();
            let Calibration {
                emulated_ns,
                stack_ns,
                ..
            } = self.calibration;
            tracing::debug!(
                "a hit costs {emulated_ns:.0} ns, a creation stack {stack_ns:.0} ns more"
            );
        }
    }
}

fn unknown(id: TargetId) -> anyhow::Error {
    anyhow!("process {} is not watched", id.pid)
}

/// What executables hold, while anybody needs it: processes that run the same file share it.
#[derive(Default)]
struct Programs {
    known: HashMap<Version, Weak<Program>>,
    /// Files that are no Go programs: shells and their like start all the time.
    not_go: HashSet<Version>,
}

/// Files that are remembered as no Go programs; then they are forgotten together.
const MOST_NOT_GO: usize = 4096;

/// A file in one state. A build id is not asked, because it is what the file says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Version {
    inode: Inode,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Programs {
    fn resolve(&mut self, executable: &File) -> Result<Rc<Program>, Refusal> {
        let version = version(executable);
        let known = version.and_then(|version| self.known.get(&version)?.upgrade());
        if let Some(program) = known {
            return Ok(program);
        }
        if version.is_some_and(|version| self.not_go.contains(&version)) {
            return Err(Refusal::NotGo);
        }
        let program = match resolve::resolve_running(executable) {
            Ok(program) => Rc::new(program),
            Err(refusal) => {
                if matches!(refusal, Refusal::NotGo | Refusal::NotElf) {
                    if self.not_go.len() >= MOST_NOT_GO {
                        self.not_go.clear();
                    }
                    self.not_go.extend(version);
                }
                return Err(refusal);
            }
        };
        self.known.retain(|_, program| program.strong_count() > 0);
        if let Some(version) = version {
            self.known.insert(version, Rc::downgrade(&program));
        }
        Ok(program)
    }
}

fn version(file: &File) -> Option<Version> {
    let found = file.metadata().ok()?;
    Some(Version {
        inode: Inode::of(file).ok()?,
        bytes: found.len(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}
