//! One target from end to end: its program, its ledger, its census, and what its probes say.
//!
//! A [`Session`] is driven from outside, by the [`Fleet`](crate::fleet::Fleet) that has the probes of all targets:
//! [`Session::apply`] for each event, [`Session::look`] and [`Session::book`] now and then, [`Session::report`]
//! when somebody asks. It owns the ledger; nobody else touches it.

mod counted;
mod governed;
mod told;
mod trust;

use std::fs::File;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use leaktrace_common::event::{Kind, Loss};
use leaktrace_common::limits::WAITS;

use crate::budget::Terms;
use crate::census::{Layout, LiveMemory, Places, Status};
use crate::clock::monotonic_ns;
use crate::event::{Change, Event, Goid, Ktime, Slot};
use crate::ledger::{Ledger, Symbolizer};
use crate::probe::{self, AttachRequest, AttachedSet, BlockedTime, Level, Plan, Probes, Scope};
use crate::resolve::{self, Program, Refusal};
use crate::target::room::Room;
use crate::target::whereabouts::Pods;
use crate::target::{Pid, Process};
use crate::verdict::{self, Standings};

use counted::Confirmation;
use trust::{believe, not_go, without_plugins};

pub use counted::{Depth, Look};
pub use told::kind_name;
pub use trust::PATIENCE;

/// Everything about one running target.
pub struct Session {
    /// The process.
    pub process: Process,
    program: Rc<Program>,
    layout: Layout,
    memory: LiveMemory,
    wait_reasons: Vec<String>,
    symbols: Symbolizer,
    ledger: Ledger,
    places: Places,
    standings: Standings,
    /// When the process started: CLOCK_MONOTONIC, nanoseconds.
    started_ns: u64,
    watch: Option<Watch>,
    /// Its memory at the last census, and when it was last looked how much it may have: CLOCK_MONOTONIC, nanoseconds.
    room: Room,
    limit_read_ns: Option<u64>,
    /// When the first census began, and the last ended.
    watched_since_ns: Option<u64>,
    counted_ns: u64,
    /// What that census took of this thread's time.
    census_took: Duration,
    confirmation: Confirmation,
}

/// The probes of the target, and what they said by the last census.
struct Watch {
    attached: AttachedSet,
    not_probed: Vec<(Kind, String)>,
    hits: [u64; Kind::COUNT as usize],
    lost: [u64; Loss::COUNT as usize],
    undecodable: u64,
    /// When it was last looked whether events were lost.
    lost_read_ns: u64,
    cost: governed::Cost,
    blocked: Vec<BlockedTime>,
}

impl Session {
    /// Looks at the process and its executable. Nothing is attached; of its memory a sample is read, to see that
    /// it is what the executable says.
    ///
    /// # Errors
    /// When there is no such process, it is out of bounds, it is nothing that leaktrace can read, or its memory
    /// contradicts its executable.
    pub fn open(pid: Pid) -> anyhow::Result<Self> {
        let mut process = Process::open(pid)?;
        process.locate(&mut Pods::default());
        Self::of(process, PATIENCE, |executable| {
            resolve::resolve_running(executable).map(Rc::new)
        })
    }

    /// The same for a process that was found already, with the caller's way to get at what its executable holds, and
    /// the number of times that its memory is looked at, with pauses, until it is believed.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn of(
        process: Process,
        tries: u32,
        resolve: impl FnOnce(&File) -> Result<Rc<Program>, Refusal>,
    ) -> anyhow::Result<Self> {
        let pid = process.id.pid;
        let refused = || format!("cannot trace process {pid} ({})", process.exe.display());
        let program = match resolve(process.executable()) {
            Err(Refusal::NotGo) => return Err(not_go(&process)).with_context(refused),
            other => other.with_context(refused)?,
        };
        without_plugins(&process, &program).with_context(refused)?;
        let bias = process.load_bias(program.program_headers);
        let layout = Layout::new(&program, bias);
        let memory = LiveMemory::new(pid);
        let believed = believe(&memory, &layout, tries).with_context(refused)?;
        let symbols = Symbolizer::new(Rc::clone(&program), bias, layout.timer_functions.clone());
        let started_ns = monotonic_ns().saturating_sub(process.age_ns());
        Ok(Self {
            process,
            program,
            layout,
            memory,
            wait_reasons: believed.wait_reasons,
            symbols,
            ledger: Ledger::default(),
            places: Places::default(),
            standings: Standings::default(),
            started_ns,
            watch: None,
            room: Room::default(),
            limit_read_ns: None,
            watched_since_ns: None,
            counted_ns: 0,
            census_took: Duration::ZERO,
            confirmation: Confirmation::default(),
        })
    }

    /// Tunes the rules by which it is judged from now on.
    pub fn judge_by(&mut self, rules: verdict::Config) {
        self.standings.judge_by(rules);
    }

    /// The name that stays the same across restarts.
    #[must_use]
    pub fn name(&self) -> String {
        if let Some(name) = self.process.whereabouts.name() {
            return name;
        }
        let exe = self.process.exe.to_string_lossy();
        let path = exe.strip_suffix(" (deleted)").unwrap_or(&exe);
        path.rsplit('/').next().unwrap_or(path).to_owned()
    }

    /// The executable.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Puts the probes of `level` on. What cannot be probed is in the report with its reason.
    ///
    /// # Errors
    /// When this user or this kernel may not, or nothing at all could be probed.
    pub fn attach(
        &mut self,
        probes: &mut Probes,
        level: Level,
        scope: Scope,
        terms: &Terms,
    ) -> anyhow::Result<()> {
        if level == Level::None {
            return Ok(());
        }
        let pid = self.process.id.pid;
        let plan = self.plan(probes, level)?;
        let attached = probes
            .attach(&AttachRequest {
                executable: self.process.executable(),
                pid: NonZeroU32::try_from(u32::try_from(pid.0)?)?,
                binary: probe::binary_config(&self.program),
                points: &plan.points,
                scope,
            })
            .with_context(|| format!("cannot put probes on process {pid}"))?;
        self.still_there()?;
        let now_ns = monotonic_ns();
        self.ledger.listen(now_ns);
        tracing::debug!(pid = pid.0, probes = attached.len(), "the probes are on");
        self.watch = Some(Watch {
            attached,
            not_probed: plan.refused,
            hits: Default::default(),
            lost: Default::default(),
            undecodable: 0,
            lost_read_ns: now_ns,
            cost: governed::Cost::new(terms, level, &plan.points, &self.process, now_ns),
            blocked: Vec::new(),
        });
        self.govern(probes, now_ns);
        Ok(())
    }

    /// Lets the probes be shared with other processes of the file, or not.
    ///
    /// # Errors
    /// When that takes new probes and they cannot be put on; the old ones are on then.
    pub fn change_scope(&mut self, probes: &mut Probes, scope: Scope) -> anyhow::Result<()> {
        match &self.watch {
            Some(watch) => Ok(probes.rescope(&watch.attached, scope)?),
            None => Ok(()),
        }
    }

    fn plan(&self, probes: &Probes, level: Level) -> anyhow::Result<Plan> {
        let mut plan = probe::plan(&self.program.sites, level);
        if !probes.has_cookies() {
            plan = plan.without_cookies();
        }
        if plan.points.is_empty() {
            let reasons: Vec<_> = plan.refused.into_iter().map(|(_, reason)| reason).collect();
            bail!(
                "nothing in process {} can be probed: {}; `leaktrace snapshot` works without probes",
                self.process.id.pid,
                reasons.join("; ")
            );
        }
        Ok(plan)
    }

    /// The slot that its events carry, while it has probes.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.watch.as_ref().map(|watch| watch.attached.slot())
    }

    /// The probes that are on it.
    #[must_use]
    pub fn probes(&self) -> Option<&AttachedSet> {
        self.watch.as_ref().map(|watch| &watch.attached)
    }

    /// Books one event of this target.
    pub fn apply(&mut self, event: &Event, probes: &Probes) {
        let stack = match &event.change {
            Change::Born { stack, .. } | Change::Armed { stack, .. } => *stack,
            _ => None,
        };
        if let Some(stack) = stack.filter(|stack| !self.symbols.knows(*stack)) {
            // A stack that the kernel's map no longer has is learnt as empty, so that it is asked for once.
            self.symbols
                .learn(stack, probes.stack(stack).unwrap_or_default());
        }
        self.ledger.apply(event, &self.symbols);
        if let Some(watch) = &mut self.watch {
            watch.cost.hear();
        }
    }

    /// Tells the books when events were lost since the last call; `undecodable` is of the ring that all targets share.
    /// Every event from before must have been applied.
    pub fn note_losses(&mut self, probes: &Probes, undecodable: u64) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        let now_ns = monotonic_ns();
        let lost = probes.lost(&watch.attached);
        let grown = (Loss::ALL.into_iter().zip(lost))
            .zip(watch.lost)
            .any(|((cause, now), before)| is_of_events(cause) && now > before);
        if grown || undecodable > watch.undecodable {
            self.ledger.missed(watch.lost_read_ns);
        }
        (watch.lost, watch.undecodable) = (lost, undecodable);
        watch.lost_read_ns = now_ns;
    }

    /// Notes what the probes have counted, for the next report.
    pub fn note_counters(&mut self, probes: &Probes) {
        if let Some(watch) = &mut self.watch {
            watch.hits = probes.hits(&watch.attached);
            watch.cost.counted = watch.cost.moment(&self.process, self.counted_ns);
            if watch.cost.was_full() {
                watch.blocked = probes.blocked_times(&watch.attached);
            }
        }
    }

    /// On level `full` the kernel knows since when each goroutine is blocked: those that a look saw waiting are asked for.
    #[must_use]
    pub fn waits(&self, look: &Look, probes: &Probes) -> Vec<(Goid, Ktime)> {
        let Some((watch, full_since_ns)) = (self.watch.as_ref())
            .and_then(|watch| watch.cost.full_since_ns().map(|since_ns| (watch, since_ns)))
        else {
            return Vec::new();
        };
        let census = &look.census;
        (census.goroutines.iter())
            .filter(|goroutine| goroutine.status == Status::Waiting)
            // The kernel knows of so many at most.
            .take(WAITS as usize)
            .filter_map(|goroutine| {
                let since = probes.blocked_since(&watch.attached, goroutine.g, goroutine.goid)?;
                // What blocked later was in another wait when it was seen; what blocked before wake-ups were heard
                // may have woken in between.
                (since.0 <= census.finished_ns && since.0 >= full_since_ns)
                    .then_some((goroutine.goid, since))
            })
            .collect()
    }

    /// Books since when goroutines wait.
    pub fn note_waits(&mut self, waits: Vec<(Goid, Ktime)>) {
        for (goid, since) in waits {
            self.ledger.waits_since(goid, since.0);
        }
    }

    /// Takes the probes off; what they said before the last census is kept.
    pub fn detach(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.attached.detach();
        }
    }

    /// The same without waiting for it; answers what to wait for in the end.
    pub fn detach_at_once(&mut self) -> Vec<JoinHandle<()>> {
        let watch = self.watch.as_mut();
        watch.map_or_else(Vec::new, |watch| watch.attached.detach_at_once())
    }
}

/// Whether something that happened is not heard of, or not what it was.
fn is_of_events(cause: Loss) -> bool {
    match cause {
        Loss::RingFull | Loss::ReadFault | Loss::UnknownSlot | Loss::OverBudget => true,
        Loss::StacksFull | Loss::WaitsFull => false,
    }
}
