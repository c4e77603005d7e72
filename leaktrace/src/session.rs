//! One target from end to end: its program, its ledger, its census, and what its probes say.
//!
//! A [`Session`] is driven from outside, by the [`Fleet`](crate::fleet::Fleet) that has the probes of all targets:
//! [`Session::apply`] for each event, [`Session::look`] and [`Session::book`] now and then, [`Session::report`]
//! when somebody asks. It owns the ledger; nobody else touches it.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use leaktrace_common::event::{Kind, Loss};

use crate::census::{
    self, Census, Distrust, Layout, LiveMemory, MemoryError, SelfCheck, stacks, waits,
};
use crate::clock::monotonic_ns;
use crate::event::{Change, Event, Slot};
use crate::export::Report;
use crate::export::report::{Events, Facts, Places, Target};
use crate::ledger::{Drift, Ledger, Symbolizer};
use crate::probe::{self, AttachRequest, AttachedSet, Level, Plan, Probes, Scope};
use crate::resolve::elf::Elf;
use crate::resolve::{self, Program, Refusal};
use crate::target::whereabouts::Pods;
use crate::target::{Pid, Process};

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
    watch: Option<Watch>,
    /// When the first census began, and the last ended.
    watched_since_ns: Option<u64>,
    counted_ns: u64,
}

/// The probes of the target, and what they said by the last census.
struct Watch {
    attached: AttachedSet,
    level: Level,
    not_probed: Vec<(Kind, String)>,
    hits: [u64; Kind::COUNT as usize],
    lost: [u64; Loss::COUNT as usize],
    undecodable: u64,
}

/// What one look into the target's memory found: to be booked once every event from before it has been.
pub struct Look {
    census: Census,
    places: Option<Places>,
}

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
        Ok(Self {
            process,
            program,
            layout,
            memory,
            wait_reasons: believed.wait_reasons,
            symbols,
            ledger: Ledger::default(),
            places: Places::default(),
            watch: None,
            watched_since_ns: None,
            counted_ns: 0,
        })
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
        self.ledger.listen(monotonic_ns());
        tracing::debug!(pid = pid.0, probes = attached.len(), "the probes are on");
        self.watch = Some(Watch {
            attached,
            level,
            not_probed: plan.refused,
            hits: Default::default(),
            lost: Default::default(),
            undecodable: 0,
        });
        Ok(())
    }

    /// Puts the probes of another level on in place of those that are on. The counters go on, and so does the slot.
    ///
    /// # Errors
    /// When they cannot be put on; the old ones are on then.
    pub fn change_level(&mut self, probes: &mut Probes, level: Level) -> anyhow::Result<()> {
        let plan = match level {
            Level::None => Plan::default(),
            level => self.plan(probes, level)?,
        };
        let Some(watch) = &mut self.watch else {
            return self.attach(probes, level, Scope::Process);
        };
        probes.replan(&watch.attached, &plan.points)?;
        (watch.level, watch.not_probed) = (level, plan.refused);
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
    }

    /// Counts what is really alive. With `Depth::Places` also looks where goroutines are stuck and on what.
    ///
    /// # Errors
    /// When the target is gone or its memory makes no sense.
    pub fn look(&self, depth: Depth) -> anyhow::Result<Look> {
        let census = census::take(&self.memory, &self.layout, &monotonic_ns)?;
        let (memory, layout, goroutines) = (&self.memory, &self.layout, &census.goroutines);
        let places = match depth {
            Depth::Counts => None,
            Depth::Places => Some(Places {
                stacks: stacks::walk(memory, layout, &self.symbols, goroutines)?,
                waits: waits::walk(memory, layout, &self.wait_reasons, goroutines)?
                    .by_site(goroutines),
            }),
        };
        self.still_there()?;
        Ok(Look { census, places })
    }

    /// Corrects the books with what a look found. Every event from before the look ended must have been applied.
    pub fn book(&mut self, look: Look) -> Drift {
        if let Some(places) = look.places {
            self.places = places;
        }
        let drift = self.ledger.reconcile(&look.census, &self.symbols);
        self.watched_since_ns.get_or_insert(look.census.started_ns);
        self.counted_ns = look.census.finished_ns;
        self.ledger.sample(look.census.finished_ns);
        drift
    }

    /// Looks and books, for a target without probes.
    ///
    /// # Errors
    /// As [`Session::look`].
    pub fn census(&mut self, depth: Depth) -> anyhow::Result<Drift> {
        let look = self.look(depth)?;
        Ok(self.book(look))
    }

    /// Notes what the probes have counted, for the next report. `undecodable` is of the ring that all targets share.
    pub fn note_counters(&mut self, probes: &Probes, undecodable: u64) {
        if let Some(watch) = &mut self.watch {
            watch.hits = probes.hits(&watch.attached);
            watch.lost = probes.lost(&watch.attached);
            watch.undecodable = undecodable;
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

    /// What was known when the last census ended.
    #[must_use]
    pub fn report(&self) -> Report {
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
                .at(&self.process.whereabouts),
                program: &self.program,
                wait_reasons: &self.wait_reasons,
                places: &self.places,
                events: self.events(),
                now_ns: self.counted_ns,
            },
        )
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
            events.level = watch.level.name();
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

fn loss_name(cause: Loss) -> &'static str {
    match cause {
        Loss::RingFull => "ring full",
        Loss::StacksFull => "stacks full",
        Loss::ReadFault => "read fault",
        Loss::UnknownSlot => "unknown slot",
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a duration in nanoseconds loses less than a microsecond in a year"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
