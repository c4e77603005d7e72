//! One target from end to end: its program, its ledger, its census, and what its probes say.
//!
//! A [`Session`] is driven from outside, by the [`Fleet`](crate::fleet::Fleet) that has the probes of all targets:
//! [`Session::apply`] for each event, [`Session::look`] and [`Session::book`] now and then, [`Session::report`]
//! when somebody asks. It owns the ledger; nobody else touches it.

mod governed;

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use leaktrace_common::event::{Kind, Loss};
use leaktrace_common::limits::WAITS;

use crate::budget::Terms;
use crate::census::{
    self, Census, Distrust, Layout, LiveMemory, MemoryError, Places, SelfCheck, Status,
};
use crate::clock::{monotonic_ns, unix_of, worked_ns};
use crate::event::{Change, Event, Goid, Ktime, Slot};
use crate::export::Report;
use crate::export::explain::Explained;
use crate::export::report::{Events, Facts, LevelChange, LevelChanges, SiteReport, Target};
use crate::ledger::{Ledger, SiteKind, Symbolizer};
use crate::probe::{self, AttachRequest, AttachedSet, BlockedTime, Level, Plan, Probes, Scope};
use crate::resolve::elf::Elf;
use crate::resolve::{self, Program, Refusal};
use crate::target::inquiry::Inquiry;
use crate::target::room::Room;
use crate::target::whereabouts::Pods;
use crate::target::{Pid, Process};
use crate::verdict::{self, Moment, Standings};

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
    confirmation: Confirmation,
}

/// Whether the program itself is asked about its leaks, and when next.
#[derive(Default)]
struct Confirmation {
    allowed: bool,
    asked: Option<Inquiry>,
    not_before_ns: u64,
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

/// What one look into the target's memory found: to be booked once every event from before it has been.
pub struct Look {
    census: Census,
    places: Option<Places>,
    room: Room,
    limit_read_ns: u64,
    /// What it took this thread to see who could still be woken, when that was wanted.
    reached: Option<Duration>,
    /// What the rest took it.
    worked: Duration,
}

/// How much memory a target may have is looked at this often.
const LIMIT_NS: u64 = 30_000_000_000;

/// How much a census looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What is alive, and in which state.
    Counts,
    /// Also on which line it is stuck, and on which channel: for a report that somebody reads.
    Places,
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

    /// Counts what is really alive. With `Depth::Places` also looks where goroutines are stuck and on what.
    ///
    /// # Errors
    /// When the target is gone or its memory makes no sense.
    pub fn look(&self, depth: Depth) -> anyhow::Result<Look> {
        let began_ns = worked_ns();
        let census = census::take(&self.memory, &self.layout, &monotonic_ns)?;
        let reach = self.standings.wants_reach();
        let counted_ns = worked_ns();
        let places = if depth == Depth::Places || self.standings.wants_places() || reach {
            Some(Places::of(
                &census.goroutines,
                &self.memory,
                &self.layout,
                &self.wait_reasons,
                &self.symbols,
                reach,
                &monotonic_ns,
            )?)
        } else {
            None
        };
        let placed_ns = worked_ns();
        let pid = self.process.id.pid;
        let (room, limit_read_ns) = match self.limit_read_ns {
            Some(read_ns) if census.finished_ns.saturating_sub(read_ns) < LIMIT_NS => {
                (self.room.now(pid), read_ns)
            }
            _ => (Room::of(pid), census.finished_ns),
        };
        self.still_there()?;
        let reached = reach.then(|| Duration::from_nanos(placed_ns.saturating_sub(counted_ns)));
        let all = Duration::from_nanos(worked_ns().saturating_sub(began_ns));
        Ok(Look {
            census,
            places,
            room,
            limit_read_ns,
            reached,
            worked: all.saturating_sub(reached.unwrap_or_default()),
        })
    }

    /// Corrects the books with what a look found. Every event from before the look ended must have been applied.
    ///
    /// Answers what the census has taken this thread, but for following pointers, which rests by itself.
    pub fn book(&mut self, look: Look) -> Duration {
        let began_ns = worked_ns();
        let looked = look.places.is_some();
        (self.room, self.limit_read_ns) = (look.room, Some(look.limit_read_ns));
        if let Some(places) = look.places {
            self.places = places;
        }
        let (started_ns, finished_ns) = (look.census.started_ns, look.census.finished_ns);
        self.ledger.reconcile(look.census, &self.symbols);
        self.watched_since_ns.get_or_insert(started_ns);
        self.counted_ns = finished_ns;
        self.ledger.sample(finished_ns);
        self.standings.judge(&Moment {
            ledger: &self.ledger,
            symbols: &self.symbols,
            wait_reasons: &self.wait_reasons,
            places: looked.then_some(&self.places),
            reached: look.reached,
            started_ns: self.started_ns,
            watched_since_ns: self.watched_since_ns.unwrap_or(finished_ns),
            now_ns: finished_ns,
        });
        self.inquire(finished_ns);
        look.worked + Duration::from_nanos(worked_ns().saturating_sub(began_ns))
    }

    /// Allows to ask the program itself about its leaks, where it offers to tell.
    pub fn confirm(&mut self, allowed: bool) {
        self.confirmation.allowed = allowed;
    }

    /// Asks the program itself about a leak that it has not confirmed, now and then. It is the next census that sees what
    /// comes of it.
    fn inquire(&mut self, now_ns: u64) {
        /// Least time between two questions: each makes the program collect its garbage.
        const PAUSE_NS: u64 = 600_000_000_000;
        /// The same when there was no answer.
        const LONG_PAUSE_NS: u64 = 3_600_000_000_000;
        let pid = self.process.id.pid.0;
        let own = &mut self.confirmation;
        if let Some(answer) = own.asked.as_ref().and_then(Inquiry::answer) {
            own.asked = None;
            match answer {
                Ok(address) => {
                    tracing::debug!(pid, %address, "the program was asked about its leaks");
                }
                Err(reason) => {
                    own.not_before_ns = now_ns.saturating_add(LONG_PAUSE_NS);
                    tracing::info!(pid, %reason, "the program cannot be asked about its leaks");
                }
            }
        }
        let go = &self.program.build.go;
        let in_doubt = || {
            (self.standings.guilty()).any(|site| {
                let site = &self.ledger.sites[site];
                site.kind == SiteKind::Goroutine && site.live > 0 && site.leaked == 0
            })
        };
        if own.allowed
            && own.asked.is_none()
            && now_ns >= own.not_before_ns
            && (go.major, go.minor) >= (1, 26)
            && in_doubt()
        {
            own.not_before_ns = now_ns.saturating_add(PAUSE_NS);
            own.asked = Some(Inquiry::begin(self.process.id.pid));
        }
    }

    /// Looks and books, for a target without probes.
    ///
    /// # Errors
    /// As [`Session::look`].
    pub fn census(&mut self, depth: Depth) -> anyhow::Result<()> {
        let look = self.look(depth)?;
        self.book(look);
        Ok(())
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

    /// The kernel is asked by pid: what it answered is about our process only if that still runs, for another may have got
    /// its number.
    fn still_there(&self) -> Result<(), MemoryError> {
        if self.process.is_alive() {
            Ok(())
        } else {
            Err(MemoryError::Exited(self.process.id.pid))
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

    /// What was known when the last census ended.
    #[must_use]
    pub fn report(&self) -> Report {
        let blocked = (self.watch.as_ref()).map_or(&[][..], |watch| &watch.blocked);
        Report::new(
            &self.ledger,
            &self.symbols,
            Facts {
                target: Target::new(
                    self.process.id.pid.0,
                    self.process.started_unix,
                    self.process.exe.to_string_lossy().into_owned(),
                    &self.program,
                )
                .at(&self.process.whereabouts)
                .with(self.room),
                program: &self.program,
                wait_reasons: &self.wait_reasons,
                places: &self.places,
                hidden: (self.watch.as_ref())
                    .map(|watch| (&watch.cost.estimates, watch.cost.counted)),
                standings: &self.standings,
                watched_since_ns: self.watched_since_ns.unwrap_or(self.counted_ns),
                blocked,
                events: self.events(),
                now_ns: self.counted_ns,
                now_unix: unix_of(self.counted_ns),
            },
        )
    }

    /// A site of the report with its counts over time and the ages of those alive.
    #[must_use]
    pub fn explain(&self, site: &SiteReport) -> Explained {
        Explained::new(site, &self.ledger, self.counted_ns)
    }

    fn events(&self) -> Events {
        let since_ns = self.watched_since_ns.unwrap_or(self.counted_ns);
        let mut events = Events {
            level: "none",
            seconds: seconds(self.counted_ns.saturating_sub(since_ns)),
            ..Events::default()
        };
        let mut lost: BTreeMap<&'static str, u64> = BTreeMap::new();
        if let Some(watch) = &self.watch {
            let cost = &watch.cost;
            events.level = cost.governor.level().name();
            events.budget = cost.governor.share().map(|share| share.0);
            events.overhead_measured = overhead(cost.meter.spent_ns(), self.counted_ns, since_ns);
            events.hit_cost = Some(cost.calibration);
            events.overhead_now = cost.meter.overhead();
            events.cost_seconds = (cost.meter.by_kind())
                .map(|(kind, _, ns)| (kind_name(kind), ns / 1e9))
                .collect();
            let tally = cost.governor.tally();
            events.changes = LevelChanges {
                falls: tally.falls,
                returns: tally.returns,
                samples: tally.samples,
                latest: (cost.changes.iter())
                    .map(|change| LevelChange {
                        seconds: seconds(change.at_ns.saturating_sub(since_ns)),
                        from: change.from.name(),
                        to: change.to.name(),
                        reason: change.reason.clone(),
                    })
                    .collect(),
            };
            events.unheard_seconds = seconds(cost.estimates.unknown_ns(cost.counted));
            for (kind, count) in Kind::ALL.into_iter().zip(watch.hits) {
                if count > 0 {
                    events.hits.insert(kind_name(kind), count);
                }
            }
            for (cause, count) in Loss::ALL.into_iter().zip(watch.lost) {
                lost.insert(loss_name(cause), count);
            }
            lost.insert("undecodable", watch.undecodable);
            events.not_probed = watch
                .not_probed
                .iter()
                .map(|(kind, reason)| (kind_name(*kind), reason.clone()))
                .collect();
        }
        lost.insert("ledger full", self.ledger.turned_away);
        lost.retain(|_, count| *count > 0);
        events.lost = lost.values().sum();
        events.lost_by_cause = lost;
        events
    }
}

/// How often the memory of a process is looked at before its contradictions count.
pub const PATIENCE: u32 = 10;

/// Asks the memory whether it is what we take it for, again and again while a program starts or moves.
fn believe(memory: &LiveMemory, layout: &Layout, most: u32) -> anyhow::Result<SelfCheck> {
    const PAUSE: Duration = Duration::from_millis(30);
    let mut tries = 1;
    loop {
        match census::self_check(memory, layout) {
            Ok(believed) => return Ok(believed),
            Err(Distrust::Memory(error @ (MemoryError::Exited(_) | MemoryError::Denied(_)))) => {
                return Err(error.into());
            }
            Err(reason @ Distrust::NotStarted) if tries >= most => {
                return Err(reason).context("try again when it runs");
            }
            Err(reason) if tries >= most => {
                return Err(reason).context(
                    "its memory is not what its Go release has, so nothing in it is believed",
                );
            }
            Err(_) => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Why a process whose executable is no Go program cannot be traced: Go code may have been loaded into it.
fn not_go(process: &Process) -> anyhow::Error {
    match go_library(process) {
        Some((path, go)) => anyhow!(
            "this is not a Go program, but one that has loaded Go code: {} ({go}); leaktrace traces Go programs only",
            path.display()
        ),
        None => Refusal::NotGo.into(),
    }
}

/// Refuses a Go program that has loaded a plugin: a plugin brings functions of the runtime with it, so probes on
/// the program's own would miss what happens in the plugin's.
fn without_plugins(process: &Process, program: &Program) -> anyhow::Result<()> {
    // Only a program with this function in it can have loaded one (src/plugin/plugin_dlopen.go).
    if program.functions.function_named("plugin.open").is_none() {
        return Ok(());
    }
    match go_library(process) {
        Some((path, _)) => Err(anyhow!(
            "it has loaded the Go plugin {}; leaktrace traces programs without plugins only",
            path.display()
        )),
        None => Ok(()),
    }
}

/// A library in the process that Go compiled, and by which release.
fn go_library(process: &Process) -> Option<(PathBuf, String)> {
    process.mapped_files().find_map(|(path, file)| {
        if path == process.exe {
            return None;
        }
        let build = resolve::buildinfo::read(&Elf::open(&file).ok()?).ok()?;
        Some((path, build.go.text.escape_debug().to_string()))
    })
}

/// A kind of event as users see it.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Born => "born",
        Kind::Ended => "ended",
        Kind::Parked => "parked",
        Kind::Readied => "readied",
        Kind::Armed => "armed",
        Kind::Stopped => "stopped",
        Kind::Rearmed => "rearmed",
        Kind::Fired => "fired",
    }
}

/// Whether something that happened is not heard of, or not what it was.
fn is_of_events(cause: Loss) -> bool {
    match cause {
        Loss::RingFull | Loss::ReadFault | Loss::UnknownSlot | Loss::OverBudget => true,
        Loss::StacksFull | Loss::WaitsFull => false,
    }
}

fn loss_name(cause: Loss) -> &'static str {
    match cause {
        Loss::RingFull => "ring full",
        Loss::StacksFull => "stacks full",
        Loss::ReadFault => "read fault",
        Loss::UnknownSlot => "unknown slot",
        Loss::WaitsFull => "waits full",
        Loss::OverBudget => "over budget",
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a duration in nanoseconds loses less than a microsecond in a year"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What was lost as a part of one core, over all the time that was watched.
fn overhead(spent_ns: f64, now_ns: u64, since_ns: u64) -> f64 {
    let watched = seconds(now_ns.saturating_sub(since_ns)) * 1e9;
    if watched > 0.0 {
        spent_ns / watched
    } else {
        0.0
    }
}
