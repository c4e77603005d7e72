//! What is known of one target at one moment: the JSON of `snapshot` and `record`, and what all other renderers take.

mod draw;

use std::collections::BTreeMap;

pub use draw::Facts;
pub(super) use draw::{seconds, state_name};
use serde::Serialize;

use super::times::{ArmedLonger, Blocked, Lengths, LongWait, OldTimer};
use crate::budget::Calibration;
use crate::ledger::CallSite;
use crate::resolve::Program;
use crate::target::room::Room;
use crate::target::whereabouts::Whereabouts;
use crate::verdict::Level;

/// Version of the JSON shape. Fields are only ever added within one version.
pub const SCHEMA: &str = "leaktrace/v1";

/// What is known of one target.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Which process.
    pub target: Target,
    /// Its goroutines.
    pub goroutines: Goroutines,
    /// Its pending timers.
    pub timers: Timers,
    /// Every call site with something alive or counted; worst verdict first, then fastest growth, then largest count.
    pub sites: Vec<SiteReport>,
    /// How it was watched, and what was lost.
    pub events: Events,
}

/// Which process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Target {
    /// Process id.
    pub pid: i32,
    /// When it started, seconds since the epoch.
    pub start_time: f64,
    /// Path of its executable.
    pub exe: String,
    /// Go release, as in `go1.27.3`.
    pub go_version: String,
    /// Build id.
    pub build_id: String,
    /// Main module.
    pub module: String,
    /// Version of the main module.
    pub version: String,
    /// Revision in version control.
    pub vcs_revision: String,
    /// `amd64` or `arm64`.
    pub arch: &'static str,
    /// Id of its container; "" when it is in none.
    pub container_id: String,
    /// Name of its container in the pod.
    pub container: String,
    /// Its pod.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// What made the pod, such as a Deployment.
    pub owner: String,
    /// The pod's labels, `key=value`, where somebody tells them.
    pub pod_labels: Vec<String>,
    /// Its systemd unit.
    pub unit: String,
    /// Memory that it holds; 0 when not known, as in a core file.
    pub memory_bytes: u64,
    /// Memory that its cgroups, or the machine, let it have; 0 when not known.
    pub memory_limit_bytes: u64,
}

impl Target {
    /// What is known of a process and its executable.
    #[must_use]
    pub fn new(pid: i32, start_time: f64, exe: String, program: &Program) -> Self {
        let build = &program.build;
        Self {
            pid,
            start_time,
            exe,
            go_version: build.go.text.clone(),
            build_id: program.build_id.clone(),
            module: build.module.clone(),
            version: build.module_version.clone(),
            vcs_revision: build.vcs_revision.clone(),
            arch: program.arch.name(),
            ..Self::default()
        }
    }

    /// The same with the memory that it holds and may.
    #[must_use]
    pub fn with(self, room: Room) -> Self {
        Self {
            memory_bytes: room.resident,
            memory_limit_bytes: room.limit,
            ..self
        }
    }

    /// The same with where the process lives.
    #[must_use]
    pub fn at(self, place: &Whereabouts) -> Self {
        let place = place.clone();
        Self {
            container_id: place.container_id,
            container: place.container,
            pod: place.pod,
            namespace: place.namespace,
            owner: place.owner,
            pod_labels: place.labels,
            unit: place.unit,
            ..self
        }
    }
}

/// Totals over all goroutines.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Goroutines {
    /// What `runtime.NumGoroutine` would say.
    pub total: u64,
    /// The runtime's own, not in `total`.
    pub system: u64,
    /// `total` by state.
    pub by_state: BTreeMap<String, u64>,
    /// On how many events and census disagreed when they last met.
    pub drift: u64,
    /// Why they disagreed: "" when they did not, "events lost", or "unexplained", which is a defect of leaktrace.
    pub drift_cause: &'static str,
    /// Those that have been blocked for longest, as far as that is known; at most [`MOST_LISTED`](crate::export::times::MOST_LISTED).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub longest_blocked: Vec<LongWait>,
}

/// Totals over all pending timers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timers {
    /// How many are in the runtime's heaps.
    pub total: u64,
    /// The same by kind.
    pub by_kind: BTreeMap<&'static str, u64>,
    /// Whether the counts are missing: this binary does not tell where its heaps are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
    /// Those that have been armed for longest; at most [`MOST_LISTED`](crate::export::times::MOST_LISTED).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oldest: Vec<OldTimer>,
    /// Call sites with timers that have been armed for longer than a minute, most first; at most
    /// [`MOST_LISTED`](crate::export::times::MOST_LISTED) and the sum of the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub armed_longer: Vec<ArmedLonger>,
    /// How many were forgotten because the program had too many: if it resets one, its line is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub forgotten: u64,
    /// How many were forgotten because nothing was heard for a while, or events were lost, and their address may hold
    /// another timer since.
    #[serde(skip_serializing_if = "is_zero")]
    pub unproven: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One call site.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SiteReport {
    /// `goroutine` or `timer`.
    pub kind: &'static str,
    /// Full name of the function.
    pub function: String,
    /// Path as the compiler wrote it; "" when not known.
    pub file: String,
    /// Line; 0 when not known.
    pub line: u32,
    /// `pkg.Func dir/file.go:42`: the label of metrics, stable across rebuilds that do not move the line.
    pub site: String,
    /// Alive now.
    pub count: u64,
    /// `count` by state (goroutines).
    pub states: BTreeMap<String, u64>,
    /// What its goroutines run, or its timers call.
    pub start_function: String,
    /// Age of the oldest.
    pub oldest_seconds: f64,
    /// Whether the oldest is at least that old: it was there before tracing began.
    pub oldest_is_lower_bound: bool,
    /// Births heard of while tracing.
    pub created_total: u64,
    /// Ends heard of while tracing: goroutines that ended, timers that were stopped or fired and not armed again then.
    pub ended_total: u64,
    /// Whether the totals are in part estimates: only samples were heard for a while, to keep the budget.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// The timer that started its goroutines is of this kind, and the line is the one that armed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_by_timer: Option<&'static str>,
    /// Timers armed again while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rearmed_total: Option<u64>,
    /// The same of those alone that had fired before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewed_total: Option<u64>,
    /// Pending timers stopped while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_total: Option<u64>,
    /// Timers fired while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fired_total: Option<u64>,
    /// How fast `count` grows.
    pub growth_per_minute: f64,
    /// How many were alive over time, oldest first: seconds since the epoch, count. Only of the first [`MOST_HISTORIES`]
    /// sites, and not in the JSON of `record`: `/api/v1` adds it.
    #[serde(skip)]
    pub history: Vec<(f64, u64)>,
    /// Bytes of stack that its goroutines hold.
    pub stack_bytes: u64,
    /// Kind of the timers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timer_kind: Option<&'static str>,
    /// Their period: only for tickers that all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<f64>,
    /// How long before they are due its timers are armed, the shortest and the longest; of those armed while tracing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub armed_for_seconds: Option<(f64, f64)>,
    /// How long those lived whose birth and end were both heard: goroutines until they ended, timers until they fired,
    /// were stopped or armed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetimes: Option<Lengths>,
    /// How long its goroutines were blocked, by wait reason (level full).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_time: Vec<Blocked>,
    /// Whether the line is where it was made; false for a timer armed before tracing, known by what it will call.
    pub attributed: bool,
    /// ok, suspect or leak.
    pub verdict: Level,
    /// Name of the rule that decided; "" when ok.
    pub rule: &'static str,
    /// The evidence as a sentence; "" when ok.
    pub evidence: String,
    /// How many of its goroutines the Go runtime itself found to have leaked, when it was asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub confirmed: u64,
    /// Whether enough was seen to judge.
    pub judged: bool,
    /// How long after the first count it was judged so, in seconds; only of suspects and leaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict_after_seconds: Option<f64>,
    /// How leaks of this shape are usually mended, where what is seen proves the shape; only of suspects and leaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
    /// A stack that made one of them, innermost first.
    pub creation_stack: Vec<CallSite>,
    /// Where its goroutines are, most first.
    pub blocked_stacks: Vec<BlockedStack>,
    /// The channels that its goroutines wait on, most waited on first; at most [`MOST_CHANNELS`].
    pub waits_on: Vec<WaitsOn>,
    /// On how many channels its goroutines wait in all.
    pub channels: u64,
    /// The semaphores (of mutexes, wait groups) that its goroutines wait for, most waited for first; at most
    /// [`MOST_CHANNELS`].
    pub waits_for: Vec<WaitsFor>,
    /// For how many semaphores its goroutines wait in all.
    pub semaphores: u64,
}

/// Goroutines of one site that are at one place.
#[derive(Clone, Debug, Serialize)]
pub struct BlockedStack {
    /// How many.
    pub count: u64,
    /// Their wait reason, or running, runnable, syscall.
    pub state: String,
    /// The lowest and the highest of their numbers.
    pub goids: (u64, u64),
    /// Where, innermost first; empty when they run.
    pub frames: Vec<CallSite>,
}

/// A channel that goroutines of one site wait on.
#[derive(Clone, Debug, Serialize)]
pub struct WaitsOn {
    /// Its address, in hexadecimal.
    pub channel: String,
    /// How many goroutines of this site.
    pub count: u64,
    /// Elements that it can hold.
    pub capacity: u64,
    /// Elements that it holds.
    pub length: u64,
    /// Whether it was closed.
    pub closed: bool,
    /// Goroutines of all sites that wait to receive from it alone.
    pub receivers: u64,
    /// Goroutines of all sites that wait to send to it alone.
    pub senders: u64,
    /// Goroutines of all sites that wait for it among others.
    pub selecting: u64,
}

/// A semaphore that goroutines of one site wait for.
#[derive(Clone, Debug, Serialize)]
pub struct WaitsFor {
    /// Its address, in hexadecimal: that of the field `sema` of a `sync.Mutex`, for one.
    pub semaphore: String,
    /// How many goroutines of this site.
    pub count: u64,
    /// Goroutines of all sites that wait for it.
    pub waiters: u64,
}

/// Sites, from the worst on, whose history is in a report.
pub const MOST_HISTORIES: usize = 200;

/// Channels, and semaphores, listed for each site.
pub const MOST_CHANNELS: usize = 5;

/// How it was watched, and what was lost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Events {
    /// `none`, `sampled`, `lifecycle` or `full`: how much is heard now.
    pub level: &'static str,
    /// What the program may lose, as a part of one core; null: anything.
    pub budget: Option<f64>,
    /// What it lost over the whole watch, as a part of one core: hits, times what one costs on this machine.
    pub overhead_measured: f64,
    /// The same over the last half minute.
    pub overhead_now: f64,
    /// What it lost, in seconds of a core, by kind of event.
    pub cost_seconds: BTreeMap<&'static str, f64>,
    /// What one hit costs on this machine; null without probes.
    pub hit_cost: Option<Calibration>,
    /// How often the level changed to keep the budget, and why.
    pub changes: LevelChanges,
    /// For so long nothing was heard and nothing is estimated, in seconds.
    pub unheard_seconds: f64,
    /// Events lost, all causes.
    pub lost: u64,
    /// The same by cause; only causes that occurred.
    pub lost_by_cause: BTreeMap<&'static str, u64>,
    /// Probe hits by kind of event.
    pub hits: BTreeMap<&'static str, u64>,
    /// Kinds of event that are not probed, and why.
    pub not_probed: BTreeMap<&'static str, String>,
    /// How long was watched, in seconds.
    pub seconds: f64,
    /// What the last census took of leaktrace's own time: seconds of a core. 0 for a core file, where there is no clock.
    pub census_seconds: f64,
}

/// How often the level changed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LevelChanges {
    /// To a poorer level.
    pub falls: u64,
    /// To a richer level.
    pub returns: u64,
    /// Samples taken.
    pub samples: u64,
    /// The latest changes, the last one last.
    pub latest: Vec<LevelChange>,
}

/// One change of level.
#[derive(Clone, Debug, Serialize)]
pub struct LevelChange {
    /// When, in seconds since the watch began.
    pub seconds: f64,
    /// The level before.
    pub from: &'static str,
    /// The level after.
    pub to: &'static str,
    /// Why, as a sentence.
    pub reason: String,
}
