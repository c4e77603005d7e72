//! All that the daemon watches: finds processes, takes in those that are wanted, counts them in turn, lets them go.
//!
//! A [`Watcher`] is driven by [`Watcher::step`], many times a second; each step does a little of everything, so that
//! one target with much to count, or a hundred new ones, keep nobody waiting for long.

pub mod board;

mod labels;
mod log;
mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{monotonic_ns, worked_ns};
use crate::event::Lives;
use crate::export::Report;
use crate::fleet::{Budget, Fleet};
use crate::probe::{Level, Scope};
use crate::resolve::Refusal;
use crate::session::{Depth, PATIENCE};
use crate::target::pod_source::PodSource;
use crate::target::roster::{Entry, Roster, State};
use crate::target::selection::{Patterns, Selection, Subject};
use crate::target::whereabouts::{Pods, Whereabouts};
use crate::target::{Inode, Pid, Process, TargetError, TargetId, scan};
use crate::verdict;

use board::{Board, Row};
use labels::Labels;
use log::Quota;
use pace::Effort;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom to watch.
    pub selection: Selection,
    /// What the probes hear, and the time between two counts.
    pub manner: Manner,
    /// Those that are watched in another way: the first that matches counts.
    pub special: Vec<(Patterns, Manner)>,
    /// What the targets may lose.
    pub budget: Budget,
    /// Where the kubelet keeps logs.
    pub pod_logs: PathBuf,
    /// Who is asked for the pods of this node.
    pub pod_list: PodSource,
    /// Whether to ask the programs themselves about their leaks.
    pub confirm: bool,
    /// What the rules are tuned by.
    pub rules: verdict::Config,
}

/// How a target is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// What the probes hear.
    pub level: Level,
    /// Time between two counts.
    pub interval: Duration,
}

impl Settings {
    fn richest_level(&self) -> Level {
        let special = self.special.iter().map(|(_, manner)| manner.level);
        special.fold(self.manner.level, Level::max)
    }

    fn manner(&self, subject: Subject<'_>) -> Manner {
        let mut special = self.special.iter();
        let found = special.find(|(whom, _)| whom.matches(subject));
        found.map_or(self.manner, |(_, manner)| *manner)
    }
}

/// The processes of this machine, and the sessions of those that are watched.
pub struct Watcher {
    settings: Settings,
    fleet: Fleet,
    lives: Option<Lives>,
    roster: Roster,
    pods: Pods,
    /// Processes whose pods were not in the list when it was decided about them.
    unlisted: BTreeSet<Pid>,
    node: String,
    traced: BTreeMap<Pid, Traced>,
    /// Targets that were asked for by number and have ended: they stay to be seen.
    ended: Vec<Row>,
    labels: Labels,
    /// Processes that the kernel said something about: when to look at them again, and how often they were.
    news: BTreeMap<Pid, (u64, u32)>,
    next_scan_ns: u64,
    changed: bool,
    /// Whether the last step had no time for all that was due.
    behind: bool,
    quota: Quota,
}

/// A watched process.
struct Traced {
    id: TargetId,
    label: String,
    manner: Manner,
    next_census_ns: u64,
    /// What its last count took.
    worked: Duration,
    report: Option<Arc<Report>>,
    /// Whether the last census succeeded.
    up: bool,
    /// When it was last counted with places, because somebody asked.
    placed_ns: u64,
}

impl Traced {
    fn effort(&self) -> Effort {
        Effort {
            worked: self.worked,
            interval: self.manner.interval,
        }
    }
}

/// How often /proc is read: when the kernel does not tell who comes and goes, and when it does.
const SCAN_NS: (u64, u64) = (1_000_000_000, 5_000_000_000);

/// When a process that the kernel said something about is looked at: it takes a moment to end.
const NEWS_NS: [u64; 4] = [0, 20_000_000, 200_000_000, 1_000_000_000];

/// Notes that are kept; with more, all of /proc is read.
const MOST_NEWS: usize = 4096;

/// How long a step goes on with new processes, and then with counts, before it lets others have their turn.
const SLICE_NS: u64 = 10_000_000;

/// How soon a step goes on with what the one before has left.
const BEHIND: Duration = Duration::from_millis(20);

/// How long a report with places answers further questions for it.
const FRESH_NS: u64 = 1_000_000_000;

/// How often a Go program that is not ready is tried; each time twice as late as before.
const TRIES: u32 = 6;
const FIRST_PAUSE_NS: u64 = 100_000_000;

impl Watcher {
    /// Nobody is watched yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            fleet: {
                let mut fleet = Fleet::new(settings.richest_level(), settings.budget);
                fleet.judge_by(settings.rules.clone());
                fleet.confirm(settings.confirm);
                fleet
            },
            lives: None,
            roster: Roster::default(),
            pods: Pods::at(&settings.pod_logs).asking(&settings.pod_list),
            unlisted: BTreeSet::new(),
            node: node(),
            traced: BTreeMap::new(),
            ended: Vec::new(),
            labels: Labels::default(),
            news: BTreeMap::new(),
            next_scan_ns: 0,
            changed: true,
            behind: false,
            quota: Quota::default(),
            settings,
        }
    }

    /// Asks the kernel to tell who comes and goes.
    pub fn listen(&mut self) {
        if self.settings.manner.level == Level::None || self.settings.selection.only_pids() {
            return;
        }
        match self.fleet.watch_processes() {
            Ok(lives) => self.lives = Some(lives),
            Err(error) => {
                tracing::warn!("/proc is read every second to find processes: {error:#}");
            }
        }
    }

    /// Takes in a process that was asked for by its number, or says why not.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub fn require(&mut self, pid: Pid) -> anyhow::Result<()> {
        let mut process = Process::open(pid)?;
        process.locate(&mut self.pods);
        if process.whereabouts.unlisted {
            self.unlisted.insert(pid);
        }
        self.roster.see(pid, scan::sight(pid), monotonic_ns());
        let file = process.inode();
        if let Some(entry) = self.roster.entry_mut(pid) {
            entry.exe = process.exe.to_string_lossy().into_owned();
            entry.inode = file;
        }
        let manner = self.settings.manner(subject(&process));
        let id = self.fleet.take_in(process, PATIENCE)?;
        let scope = self.scope(file);
        let started = self
            .fleet
            .attach(id, manner.level, scope)
            .and_then(|()| self.fleet.census(id, Depth::Counts).map(drop));
        if let Err(error) = started {
            self.fleet.let_go(id);
            return Err(error);
        }
        self.began(id, manner, String::new());
        Ok(())
    }

    /// How long nobody needs to call [`Watcher::step`].
    #[must_use]
    pub fn pause(&self) -> Duration {
        let pause = self.fleet.pause();
        if self.behind {
            pause.min(BEHIND)
        } else {
            pause
        }
    }

    /// A little of everything. Answers whether what [`Watcher::board`] shows has changed.
    pub fn step(&mut self) -> bool {
        self.fleet.drain();
        let now = monotonic_ns();
        self.behind = false;
        self.hear(now);
        if !self.unlisted.is_empty() {
            self.pods.ask(true);
        }
        if self.pods.hear() {
            self.place_again(now);
        }
        if now >= self.next_scan_ns {
            let seen = scan::pids().into_iter().filter_map(scan::sight).collect();
            for entry in self.roster.see_all(seen, now) {
                self.gone(&entry);
            }
            // Of those that were asked for by number alone, the counts tell when they end.
            let pause = if self.lives.is_some() || self.settings.selection.only_pids() {
                SCAN_NS.1
            } else {
                SCAN_NS.0
            };
            self.next_scan_ns = now.saturating_add(pause);
            self.changed = true;
        }
        while let Some(pid) = self.roster.due(now) {
            self.look_at(pid);
            if monotonic_ns().saturating_sub(now) > SLICE_NS {
                self.behind = true;
                break;
            }
        }
        self.count_who_is_due(now);
        std::mem::take(&mut self.changed)
    }

    /// Counts the targets whose time has come, those that wait longest first, for as long as a step may take.
    fn count_who_is_due(&mut self, now: u64) {
        loop {
            let due = (self.traced.values()).filter(|traced| traced.next_census_ns <= now);
            let longest = due.min_by_key(|traced| traced.next_census_ns);
            let Some(id) = longest.map(|traced| traced.id) else {
                return;
            };
            self.count(id, Depth::Counts);
            if monotonic_ns().saturating_sub(now) > SLICE_NS {
                self.behind = true;
                return;
            }
        }
    }

    /// Notes who came and went, and looks at those whose time has come.
    fn hear(&mut self, now: u64) {
        let (news, mut too_many) = (&mut self.news, false);
        if let Some(lives) = &mut self.lives {
            lives.drain(MOST_NEWS, |pid| {
                if news.len() < MOST_NEWS {
                    news.insert(pid, (now, 0));
                } else {
                    too_many = true;
                }
            });
        }
        if too_many {
            self.next_scan_ns = now;
        }
        let due: Vec<(Pid, u32)> = (self.news.iter())
            .filter(|(_, (at_ns, _))| *at_ns <= now)
            .map(|(pid, (_, looks))| (*pid, *looks))
            .collect();
        for (pid, looks) in due {
            let seen = scan::sight(pid);
            let is_there = seen.is_some();
            self.changed |= is_there && self.roster.entry(pid).is_none();
            if let Some(entry) = self.roster.see(pid, seen, now) {
                self.gone(&entry);
            }
            match NEWS_NS.get(looks as usize + 1) {
                Some(pause) if is_there => {
                    self.news
                        .insert(pid, (now.saturating_add(*pause), looks + 1));
                }
                _ => {
                    self.news.remove(&pid);
                }
            }
        }
    }

    /// Decides about a new process.
    fn look_at(&mut self, pid: Pid) {
        let state = self.decide(pid);
        let Some(entry) = self.roster.entry_mut(pid) else {
            return;
        };
        if let State::Refused(reason) = &state
            && self.quota.allows(monotonic_ns())
        {
            tracing::warn!(
                pid = pid.0,
                name = entry.sighting.name,
                "not traced: {reason}"
            );
        }
        entry.state = state;
        let outsider = !matches!(entry.state, State::Traced(_) | State::New { .. });
        if let Some(file) = entry.inode.filter(|_| outsider) {
            self.rescope(file);
        }
        self.changed = true;
    }

    fn decide(&mut self, pid: Pid) -> State {
        let mut process = match Process::open(pid) {
            Ok(process) => process,
            Err(TargetError::NoExecutable(_)) => return State::NotGo("it has no executable"),
            Err(error @ TargetError::Denied(_)) => {
                // Nobody asked for it, as far as its name tells.
                let name = self
                    .roster
                    .entry(pid)
                    .map(|entry| entry.sighting.name.clone());
                let subject = Subject {
                    pid,
                    name: &name.unwrap_or_default(),
                    exe: "",
                    place: &Whereabouts::default(),
                };
                return match self.settings.selection.judge(subject) {
                    Err(reason) => State::Excluded(reason),
                    Ok(()) => State::Refused(error.to_string()),
                };
            }
            Err(error) => return self.later(pid, &error.to_string()),
        };
        process.locate(&mut self.pods);
        self.unlisted.remove(&pid);
        if process.whereabouts.unlisted {
            self.pods.ask(false);
            if let Some(state) = self.until_listed(pid) {
                return state;
            }
            self.unlisted.insert(pid);
        }
        let file = process.inode();
        let exe = process.exe.to_string_lossy().into_owned();
        if let Some(entry) = self.roster.entry_mut(pid) {
            (entry.inode, entry.exe) = (file, exe);
        }
        if let Err(reason) = self.settings.selection.judge(subject(&process)) {
            return State::Excluded(reason);
        }
        if !self.fleet.is_go(process.executable()) {
            return State::NotGo("its executable is no Go program");
        }
        let manner = self.settings.manner(subject(&process));
        let id = match self.fleet.take_in(process, 1) {
            Ok(id) => id,
            Err(error) if is_final(&error) => return State::Refused(format!("{error:#}")),
            Err(error) => return self.later(pid, &format!("{error:#}")),
        };
        let scope = self.scope(file);
        let reason = match self.fleet.attach(id, manner.level, scope) {
            Ok(()) => String::new(),
            Err(error) => format!("counted without probes: {error:#}"),
        };
        self.began(id, manner, reason.clone());
        State::Traced(reason)
    }

    /// A process that was not ready is looked at again, a bounded number of times.
    fn later(&self, pid: Pid, reason: &str) -> State {
        let tries = match self.roster.entry(pid).map(|entry| &entry.state) {
            Some(State::New { tries, .. }) => *tries + 1,
            _ => TRIES,
        };
        if tries >= TRIES {
            return State::Refused(reason.to_owned());
        }
        State::New {
            at_ns: monotonic_ns().saturating_add(FIRST_PAUSE_NS << tries),
            tries,
            reason: reason.to_owned(),
        }
    }

    /// A process whose pod will be in the list in a moment waits for that, but not for long.
    fn until_listed(&self, pid: Pid) -> Option<State> {
        const TRIES: u32 = 4;
        let Some(State::New { tries, .. }) = self.roster.entry(pid).map(|entry| &entry.state)
        else {
            return None;
        };
        let waits = *tries < TRIES && self.pods.is_hopeful();
        waits.then(|| State::New {
            at_ns: monotonic_ns().saturating_add(FIRST_PAUSE_NS << tries),
            tries: tries + 1,
            reason: "its pod is not known yet".to_owned(),
        })
    }

    /// Decides again about those whose pods were not in the list and are now.
    fn place_again(&mut self, now: u64) {
        let pods = &mut self.pods;
        let (unlisted, again): (BTreeSet<_>, BTreeSet<_>) = (std::mem::take(&mut self.unlisted)
            .into_iter())
        .partition(|pid| Whereabouts::of(*pid, pods).unlisted);
        self.unlisted = unlisted;
        for pid in &again {
            if let Some(traced) = self.traced.remove(pid) {
                // Taken in anew, by its right name.
                self.fleet.let_go(traced.id);
                self.labels.give_back(&traced.label);
            }
        }
        self.roster
            .forget(now, |entry| again.contains(&entry.sighting.pid));
    }

    fn began(&mut self, id: TargetId, manner: Manner, reason: String) {
        let Ok(session) = self.fleet.session(id) else {
            return;
        };
        let label = self.labels.take(&session.name());
        if self.quota.allows(monotonic_ns()) {
            let exe = session.process.exe.display();
            tracing::info!(pid = id.pid.0, %exe, "watching as {label}{}{reason}", separator(&reason));
        }
        let traced = Traced {
            id,
            label,
            manner,
            next_census_ns: 0,
            worked: Duration::ZERO,
            report: None,
            up: true,
            placed_ns: 0,
        };
        self.traced.insert(id.pid, traced);
        if let Some(entry) = self.roster.entry_mut(id.pid) {
            entry.state = State::Traced(reason);
        }
        self.count(id, Depth::Counts);
        self.changed = true;
    }

    /// A process is no more, or runs another program.
    fn gone(&mut self, entry: &Entry) {
        self.changed = true;
        let pid = entry.sighting.pid;
        self.unlisted.remove(&pid);
        if let Some(traced) = self.traced.remove(&pid) {
            if scan::sight(pid).is_some() {
                // Another program in the same process, which may get probes in a moment.
                self.fleet.let_go(traced.id);
            } else {
                self.fleet.forget(traced.id);
            }
            self.labels.give_back(&traced.label);
            if self.quota.allows(monotonic_ns()) {
                tracing::info!(pid = pid.0, "{} has exited", traced.label);
            }
            if self.settings.selection.pids.contains(&pid) {
                self.ended.push(Row::ended(entry, &traced.label));
            }
        }
        if let Some(file) = entry.inode {
            self.rescope(file);
        }
    }

    /// Processes of one file share their probes, unless somebody who runs it is not traced: it would pay for them.
    fn scope(&self, file: Option<Inode>) -> Scope {
        match file {
            // Who else runs the file is not known, because nobody looks.
            Some(file) if !self.settings.selection.only_pids() && !self.roster.outsiders(file) => {
                Scope::File
            }
            _ => Scope::Process,
        }
    }

    fn rescope(&mut self, file: Inode) {
        let scope = self.scope(Some(file));
        if let Err(error) = self.fleet.change_scope(file, scope) {
            tracing::warn!("probes stay as they are: {error:#}");
        }
    }

    /// Counts what is alive in a target, and sets the time of its next count so that the budget is kept.
    fn count(&mut self, id: TargetId, depth: Depth) {
        let (begin, worked) = (monotonic_ns(), worked_ns());
        let counted = self.fleet.census(id, depth).and_then(|census| {
            let reporting = worked_ns();
            let report = Arc::new(self.fleet.session(id)?.report());
            let reported = Duration::from_nanos(worked_ns().saturating_sub(reporting));
            Ok((report, census + reported))
        });
        // One that fails may have taken as much as all the work in between.
        let worked = (counted.as_ref()).map_or_else(
            |_| Duration::from_nanos(worked_ns().saturating_sub(worked)),
            |(_, worked)| *worked,
        );
        let Some(traced) = self.traced.get_mut(&id.pid) else {
            return;
        };
        traced.worked = worked;
        let effort = traced.effort();
        let pause = effort.pause(self.traced.values().map(Traced::effort));
        let Some(traced) = self.traced.get_mut(&id.pid) else {
            return;
        };
        traced.next_census_ns =
            begin.saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
        self.changed = true;
        match counted {
            Ok((report, _)) => (traced.report, traced.up) = (Some(report), true),
            Err(error) => {
                let alive =
                    (self.fleet.session(id)).is_ok_and(|session| session.process.is_alive());
                if alive && traced.up {
                    // The last report stays; the next census may succeed.
                    tracing::warn!("no census of process {}: {error:#}", id.pid);
                }
                traced.up = false;
                self.news.insert(id.pid, (begin, 0));
            }
        }
    }

    /// A report of what is alive now, also of where it is stuck; `None` when the target is not watched.
    pub fn fresh(&mut self, pid: Pid) -> Option<Arc<Report>> {
        let traced = self.traced.get(&pid)?;
        let (id, now) = (traced.id, monotonic_ns());
        if now.saturating_sub(traced.placed_ns) > FRESH_NS {
            self.count(id, Depth::Places);
            self.traced.get_mut(&pid)?.placed_ns = now;
        }
        self.traced.get(&pid)?.report.clone()
    }

    /// What is known of everybody.
    #[must_use]
    pub fn board(&self) -> Board {
        let rows = self.roster.entries().map(|entry| {
            let traced = self.traced.get(&entry.sighting.pid);
            Row::new(
                entry,
                traced.map(|traced| (traced.label.as_str(), traced.up)),
            )
            .with_report(traced.and_then(|traced| traced.report.clone()))
        });
        Board {
            rows: rows.chain(self.ended.iter().cloned()).collect(),
            node: self.node.clone(),
            stranger_hits: self.fleet.strangers(),
            late_events: self.fleet.late_events(),
            unlisted: self.roster.turned_away,
        }
    }

    /// From now on this is wanted. Who is not wanted any more is let go; who is, is taken in.
    pub fn change(&mut self, settings: Settings) {
        if settings.pod_logs != self.settings.pod_logs
            || settings.pod_list != self.settings.pod_list
        {
            self.pods = Pods::at(&settings.pod_logs).asking(&settings.pod_list);
        }
        if settings.budget != self.settings.budget {
            self.fleet.change_budget(settings.budget);
        }
        self.fleet.judge_by(settings.rules.clone());
        self.fleet.confirm(settings.confirm);
        self.settings = settings;
        let now = monotonic_ns();
        let mut unwanted = BTreeSet::new();
        for (pid, traced) in &mut self.traced {
            let Ok(session) = self.fleet.session(traced.id) else {
                continue;
            };
            let subject = subject(&session.process);
            if self.settings.selection.judge(subject).is_err() {
                unwanted.insert(*pid);
                continue;
            }
            let manner = self.settings.manner(subject);
            if manner.level != traced.manner.level {
                // Taken in anew: its history begins again, as its events do.
                unwanted.insert(*pid);
                continue;
            }
            traced.manner = manner;
            traced.next_census_ns = now;
        }
        for pid in &unwanted {
            if let Some(traced) = self.traced.remove(pid) {
                self.fleet.let_go(traced.id);
                self.labels.give_back(&traced.label);
            }
        }
        self.roster.forget(now, |entry| {
            unwanted.contains(&entry.sighting.pid) || matches!(entry.state, State::Excluded(_))
        });
        self.changed = true;
    }

    /// Lets everybody go.
    pub fn stop(&mut self) {
        for traced in std::mem::take(&mut self.traced).into_values() {
            self.fleet.forget(traced.id);
        }
        self.fleet.wait_for_probes();
    }
}

/// What a process is chosen by.
fn subject(process: &Process) -> Subject<'_> {
    Subject {
        pid: process.id.pid,
        name: &process.name,
        exe: process.exe.to_str().unwrap_or_default(),
        place: &process.whereabouts,
    }
}

/// What this machine is called.
fn node() -> String {
    let hostname = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = std::env::var("NODE_NAME").unwrap_or_else(|_| hostname());
    name.trim().to_owned()
}

fn separator(reason: &str) -> &'static str {
    if reason.is_empty() { "" } else { ", " }
}

/// Whether trying again cannot help: the file is what it is.
fn is_final(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Refusal>())
}
