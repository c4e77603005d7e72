//! One target from end to end: its probes, its ring, its ledger, its census.
//!
//! A [`Session`] is driven from outside: [`Session::drain`] often, [`Session::census`] now and then,
//! [`Session::report`] when somebody asks. It owns the ledger; nobody else touches it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use leaktrace_common::event::{Kind, Loss};

use crate::census::{self, Distrust, Layout, LiveMemory, MemoryError, SelfCheck, stacks, waits};
use crate::clock::monotonic_ns;
use crate::event::{Change, Ring};
use crate::export::Report;
use crate::export::report::{Events, Facts, Places, Target};
use crate::ledger::{Drift, Ledger, Symbolizer};
use crate::probe::{self, AttachRequest, AttachedSet, Level, LoadOptions, Probes};
use crate::resolve::elf::Elf;
use crate::resolve::{self, Program, Refusal};
use crate::target::{Pid, Process};
use crate::verdict::{Moment, Standings};

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
    /// When the first census began, and the last ended.
    watched_since_ns: Option<u64>,
    counted_ns: u64,
}

/// The probes on the target, while there are any.
struct Watch {
    /// Dropped before the programs that it attaches.
    attached: AttachedSet,
    ring: Ring,
    probes: Probes,
    level: Level,
    not_probed: Vec<(Kind, String)>,
    undecodable: usize,
}

/// How much a census looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What is alive, and in which state.
    Counts,
    /// Also on which line it is stuck, and on which channel: for a report that somebody reads.
    Places,
}

/// Records taken from the ring in one go, so that a storm cannot keep the caller from its other work.
const DRAIN_RECORDS: usize = 1 << 20;

impl Session {
    /// Looks at the process and its executable. Nothing is attached; of its memory a sample is read, to see that
    /// it is what the executable says.
    ///
    /// # Errors
    /// When there is no such process, it is out of bounds, it is nothing that leaktrace can read, or its memory
    /// contradicts its executable.
    pub fn open(pid: Pid) -> anyhow::Result<Self> {
        let process = Process::open(pid)?;
        let refused = || format!("cannot trace process {pid} ({})", process.exe.display());
        let program = match resolve::resolve_running(process.executable()) {
            Err(Refusal::NotGo) => return Err(not_go(&process)).with_context(refused),
            other => Rc::new(other.with_context(refused)?),
        };
        without_plugins(&process, &program).with_context(refused)?;
        let bias = process.load_bias(program.program_headers);
        let layout = Layout::new(&program, bias);
        let memory = LiveMemory::new(pid);
        let believed = believe(&memory, &layout).with_context(refused)?;
        let symbols = Symbolizer::new(Rc::clone(&program), bias, layout.timer_functions.clone());
        let started_ns = monotonic_ns().saturating_sub(age_ns(process.started_unix));
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
            watched_since_ns: None,
            counted_ns: 0,
        })
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
    pub fn attach(&mut self, level: Level) -> anyhow::Result<()> {
        if level == Level::None {
            return Ok(());
        }
        let pid = self.process.id.pid;
        let mut plan = probe::plan(&self.program.sites, level);
        let options = LoadOptions::default();
        if !options.cookies {
            plan = plan.without_cookies();
        }
        if plan.points.is_empty() {
            let reasons: Vec<String> = plan
                .refused
                .iter()
                .map(|(_, reason)| reason.clone())
                .collect();
            bail!(
                "nothing in process {pid} can be probed: {}; `leaktrace snapshot` works without probes",
                reasons.join("; ")
            );
        }
        let (mut probes, ring) = Probes::load(&options)?;
        let attached = probes
            .attach(&AttachRequest {
                executable: self.process.executable(),
                pid: NonZeroU32::try_from(u32::try_from(pid.0)?)?,
                binary: probe::binary_config(&self.program),
                points: &plan.points,
            })
            .with_context(|| format!("cannot put probes on process {pid}"))?;
        self.still_there()?;
        self.ledger.listen(monotonic_ns());
        tracing::info!(pid = pid.0, probes = attached.len(), "the probes are on");
        self.watch = Some(Watch {
            attached,
            ring,
            probes,
            level,
            not_probed: plan.refused,
            undecodable: 0,
        });
        Ok(())
    }

    /// Books what the probes have said since the last call; answers how many events that were.
    pub fn drain(&mut self) -> usize {
        let Some(watch) = &mut self.watch else {
            return 0;
        };
        let (probes, symbols, ledger) = (&watch.probes, &mut self.symbols, &mut self.ledger);
        let drained = watch.ring.drain(DRAIN_RECORDS, |event| {
            let stack = match &event.change {
                Change::Born { stack, .. } | Change::Armed { stack, .. } => *stack,
                _ => None,
            };
            if let Some(stack) = stack.filter(|stack| !symbols.knows(*stack)) {
                // A stack that the kernel's map no longer has is learnt as empty, so that it is asked for once.
                symbols.learn(stack, probes.stack(stack).unwrap_or_default());
            }
            ledger.apply(&event, symbols);
        });
        watch.undecodable += drained.undecodable;
        watch.probes.flush_log();
        drained.records
    }

    /// Counts what is really alive and corrects the books with it. With `Depth::Places` also looks where
    /// goroutines are stuck and on what.
    ///
    /// # Errors
    /// When the target is gone or its memory makes no sense.
    pub fn census(&mut self, depth: Depth) -> anyhow::Result<Drift> {
        let census = census::take(&self.memory, &self.layout, &monotonic_ns)?;
        let look = depth == Depth::Places || self.standings.wants_places();
        if look {
            let (memory, layout, goroutines) = (&self.memory, &self.layout, &census.goroutines);
            self.places = Places {
                stacks: stacks::walk(memory, layout, &self.symbols, goroutines)?,
                waits: waits::walk(memory, layout, &self.wait_reasons, goroutines)?
                    .by_site(goroutines),
            };
        }
        self.still_there()?;
        // Every event from before the census ended must be booked first. A probe stamps its record some
        // microseconds before it is in the ring, on another processor; so look again a moment later.
        self.drain();
        std::thread::sleep(Duration::from_millis(1));
        self.drain();
        let drift = self.ledger.reconcile(&census, &self.symbols);
        self.watched_since_ns.get_or_insert(census.started_ns);
        self.counted_ns = census.finished_ns;
        self.ledger.sample(census.finished_ns);
        self.standings.judge(&Moment {
            ledger: &self.ledger,
            symbols: &self.symbols,
            wait_reasons: &self.wait_reasons,
            places: look.then_some((&self.places.stacks, &self.places.waits)),
            started_ns: self.started_ns,
            watched_since_ns: self.watched_since_ns.unwrap_or(census.finished_ns),
            now_ns: census.finished_ns,
        });
        Ok(drift)
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
                ),
                program: &self.program,
                wait_reasons: &self.wait_reasons,
                places: &self.places,
                standings: &self.standings,
                watched_since_ns: self.watched_since_ns.unwrap_or(self.counted_ns),
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
            let hits = watch.probes.hits(&watch.attached);
            for (kind, count) in Kind::ALL.into_iter().zip(hits) {
                if count > 0 {
                    events.hits.insert(kind_name(kind), count);
                }
            }
            let losses = watch.probes.lost(&watch.attached);
            for (cause, count) in Loss::ALL.into_iter().zip(losses) {
                lost.insert(loss_name(cause), count);
            }
            lost.insert("undecodable", watch.undecodable as u64);
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

/// How long ago that was, by the wall clock; 0 for a time to come.
fn age_ns(unix: f64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = now.map_or(0.0, |now| now.as_secs_f64()) - unix;
    let age = Duration::try_from_secs_f64(age).unwrap_or_default();
    u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
}

/// Asks the memory whether it is what we take it for, again and again while a program starts or moves.
fn believe(memory: &LiveMemory, layout: &Layout) -> anyhow::Result<SelfCheck> {
    const TRIES: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(30);
    let mut tries = 1;
    loop {
        match census::self_check(memory, layout) {
            Ok(believed) => return Ok(believed),
            Err(Distrust::Memory(error @ (MemoryError::Exited(_) | MemoryError::Denied(_)))) => {
                return Err(error.into());
            }
            Err(reason @ Distrust::NotStarted) if tries == TRIES => {
                return Err(reason).context("try again when it runs");
            }
            Err(reason) if tries == TRIES => {
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
