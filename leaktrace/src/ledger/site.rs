//! Call sites: the lines that make goroutines and timers, with what is counted for each.

use std::ops::{Index, IndexMut};

use foldhash::HashMap;
use leaktrace_common::histogram::Histogram;
use serde::Serialize;

use super::History;
use crate::address::RuntimeAddr;
use crate::census::TimerKind;
use crate::event::{self, Ktime, StackId};
use crate::resolve::pclntab::Frame;

/// Turns addresses of one process into functions and lines. Inlined calls are expanded.
pub trait Symbols {
    /// The frames behind a return address, innermost first; empty when no Go function is there.
    fn frames_of_return(&self, pc: RuntimeAddr) -> Vec<Frame>;
    /// The frames at an instruction, innermost first.
    fn frames(&self, pc: RuntimeAddr) -> Vec<Frame>;
    /// The return addresses of a creation stack, innermost first; empty when it was not kept.
    fn stack(&self, stack: StackId) -> Vec<RuntimeAddr>;
    /// The kind of a timer that runs the code at `function`; `None` for the runtime's own.
    fn timer_kind(&self, function: RuntimeAddr, period_ns: i64) -> Option<TimerKind>;
}

/// A line of the program.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallSite {
    /// Full name, `example.com/app/worker.(*Pool).run`.
    pub function: String,
    /// Path as the compiler wrote it; "" when no line is known.
    pub file: String,
    /// Line; 0 when not known.
    pub line: u32,
}

/// What a site makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SiteKind {
    /// The user's goroutines.
    Goroutine,
    /// The runtime's own goroutines, which `runtime.NumGoroutine` leaves out.
    SystemGoroutine,
    /// Timers of one kind.
    Timer(TimerKind),
}

/// Number of a site in one ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(u32);

/// One call site and its totals.
#[derive(Clone, Debug)]
pub struct Site {
    /// What it makes.
    pub kind: SiteKind,
    /// Where: the line of the `go` statement, or for a timer the first frame outside time, context and runtime.
    pub at: CallSite,
    /// The function that its goroutines run, or that its timers call; "" when there is none.
    pub start_function: String,
    /// Whether `at` is where it was made. A timer armed before the probes went on is known only by what it will do.
    pub attributed: bool,
    /// Alive now.
    pub live: u64,
    /// Of those, goroutines that the runtime itself found to have leaked, when somebody asked it.
    pub leaked: u64,
    /// Births heard of.
    pub created: u64,
    /// Ends heard of (goroutines).
    pub ended: u64,
    /// For goroutines that a timer started: its kind. `at` is then the line that armed it.
    pub started_by: Option<TimerKind>,
    /// Times armed again (timers).
    pub rearmed: u64,
    /// The same of those alone that had fired before.
    pub renewed: u64,
    /// Times stopped while pending (timers).
    pub stopped: u64,
    /// Times fired (timers; a ticker fires once each period).
    pub fired: u64,
    /// How long those lived whose birth and end were both heard: goroutines from birth to end, timers from being armed
    /// until they fired, were stopped or armed again. A ticker lives until it is stopped.
    pub lifetimes: Histogram,
    /// Shortest and longest time for which its timers were armed, in nanoseconds: until due, or the period of a ticker.
    pub armed_for_ns: Option<(u64, u64)>,
    /// A stack that made one of them: the first heard of.
    pub creation_stack: Option<StackId>,
    /// How many were alive over time.
    pub history: History,
}

impl Site {
    /// Notes for how long a timer was armed.
    pub(super) fn note_length(&mut self, at: Ktime, timer: &event::Timer) {
        let length = if timer.period_ns > 0 {
            timer.period_ns.unsigned_abs()
        } else {
            // Due in the past, or never: nothing to tell.
            match u64::try_from(timer.when_ns) {
                Ok(when_ns) if when_ns > at.0 => when_ns - at.0,
                _ => return,
            }
        };
        let (shortest, longest) = self.armed_for_ns.unwrap_or((length, length));
        self.armed_for_ns = Some((shortest.min(length), longest.max(length)));
    }
}

/// All sites met, found again by what the events and the census carry.
#[derive(Default)]
pub struct Sites {
    sites: Vec<Site>,
    by_line: HashMap<SiteKey, SiteId>,
    by_goroutine: HashMap<(RuntimeAddr, RuntimeAddr), SiteId>,
    /// Goroutines that timers started: by the site of the timer, and where they start.
    by_starter: HashMap<(SiteId, RuntimeAddr), SiteId>,
    /// The same by where they start alone; `None` when several lines start the same.
    started: HashMap<RuntimeAddr, Option<SiteId>>,
    by_timer: HashMap<TimerKey, Option<SiteId>>,
}

/// What tells one site from another.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SiteKey {
    kind: SiteKind,
    at: CallSite,
    attributed: bool,
    started_by: Option<TimerKind>,
}

/// What tells timers of one site apart from others without asking for symbols.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct TimerKey {
    function: RuntimeAddr,
    callback: RuntimeAddr,
    periodic: bool,
    stack: Option<StackId>,
}

/// Distinct addresses remembered of each kind: more come only from a program that makes them up. Beyond, things are
/// booked under one site that says so.
const MOST_KEYS: usize = 1 << 15;

/// Sites told apart, each with its history over time. A large server has some hundred.
const MOST_SITES: usize = 1 << 14;

impl Sites {
    /// The site of a goroutine made by the `go` statement that returns to `gopc`.
    pub fn of_goroutine(
        &mut self,
        gopc: RuntimeAddr,
        startpc: RuntimeAddr,
        symbols: &dyn Symbols,
    ) -> SiteId {
        if let Some(site) = self.by_goroutine.get(&(gopc, startpc)) {
            return *site;
        }
        if self.by_goroutine.len() >= MOST_KEYS {
            return self.overflow(SiteKind::Goroutine);
        }
        let start = starting_function(symbols, startpc);
        let start_function = start
            .as_ref()
            .map_or_else(String::new, |frame| frame.function.clone());
        let kind = if is_system_goroutine(&start_function) {
            SiteKind::SystemGoroutine
        } else {
            SiteKind::Goroutine
        };
        if gopc.0 != 0
            && (symbols.frames_of_return(gopc).first())
                .is_some_and(|frame| frame.function == "time.goFunc")
        {
            // AfterFunc's own go statement: until the timer is known, the function that it called stands for it.
            let started_by = Some(timer_goroutine_kind(&start_function));
            let key = SiteKey {
                kind,
                at: call_site(start, startpc),
                attributed: false,
                started_by,
            };
            let site = self.intern(key, start_function);
            self.by_goroutine.insert((gopc, startpc), site);
            return site;
        }
        let at = if gopc.0 == 0 {
            named("(C thread)")
        } else if start_function == "runtime.main" {
            // No go statement made the main goroutine, but the assembly that starts the program.
            call_site(start, startpc)
        } else {
            call_site(symbols.frames_of_return(gopc).into_iter().next(), gopc)
        };
        let key = SiteKey {
            kind,
            at,
            attributed: true,
            started_by: None,
        };
        let site = self.intern(key, start_function);
        self.by_goroutine.insert((gopc, startpc), site);
        site
    }

    /// The site of a goroutine that a timer of the site `timer` started: the line that armed the timer.
    pub fn of_timer_goroutine(
        &mut self,
        timer: SiteId,
        startpc: RuntimeAddr,
        symbols: &dyn Symbols,
    ) -> SiteId {
        if let Some(site) = self.by_starter.get(&(timer, startpc)) {
            return *site;
        }
        if self.by_starter.len() >= MOST_KEYS {
            return self.overflow(SiteKind::Goroutine);
        }
        let start_function =
            starting_function(symbols, startpc).map_or_else(String::new, |frame| frame.function);
        let armed = &self[timer];
        let key = SiteKey {
            kind: SiteKind::Goroutine,
            at: armed.at.clone(),
            attributed: armed.attributed,
            started_by: match armed.kind {
                SiteKind::Timer(kind) => Some(kind),
                SiteKind::Goroutine | SiteKind::SystemGoroutine => None,
            },
        };
        let creation_stack = armed.creation_stack;
        let site = self.intern(key, start_function);
        if let Some(stack) = creation_stack {
            self[site].creation_stack.get_or_insert(stack);
        }
        self.by_starter.insert((timer, startpc), site);
        self.started
            .entry(startpc)
            .and_modify(|only| *only = only.filter(|only| *only == site))
            .or_insert(Some(site));
        site
    }

    /// The site of a timer; `None` when it is one of the runtime's own.
    ///
    /// Without a creation stack the place is not known: the site then stands for what the timer will do.
    pub fn of_timer(
        &mut self,
        function: RuntimeAddr,
        callback: RuntimeAddr,
        period_ns: i64,
        stack: Option<StackId>,
        symbols: &dyn Symbols,
    ) -> Option<SiteId> {
        let key = TimerKey {
            function,
            callback,
            periodic: period_ns > 0,
            stack,
        };
        if let Some(site) = self.by_timer.get(&key) {
            return *site;
        }
        let mut kind = symbols.timer_kind(function, period_ns);
        if self.by_timer.len() >= MOST_KEYS {
            return kind.map(|kind| self.overflow(SiteKind::Timer(kind)));
        }
        let callback = (callback.0 != 0)
            .then(|| starting_function(symbols, callback))
            .flatten();
        if let Some(frame) = &callback {
            kind = kind.map(|_| timer_goroutine_kind(&frame.function));
        }
        let site = kind.map(|kind| {
            let start_function = callback
                .as_ref()
                .map_or_else(String::new, |frame| frame.function.clone());
            let made_at = stack.and_then(|stack| first_user_frame(&symbols.stack(stack), symbols));
            let attributed = made_at.is_some();
            let at = made_at.unwrap_or_else(|| unattributed(kind, callback));
            let key = SiteKey {
                kind: SiteKind::Timer(kind),
                at,
                attributed,
                started_by: None,
            };
            self.intern(key, start_function)
        });
        self.by_timer.insert(key, site);
        site
    }

    /// The site that [`Sites::of_goroutine`] gave for these, if it was asked before; for goroutines that timers of one
    /// line alone started, that of the line.
    #[must_use]
    pub fn known_goroutine(&self, gopc: RuntimeAddr, startpc: RuntimeAddr) -> Option<SiteId> {
        let site = *self.by_goroutine.get(&(gopc, startpc))?;
        if self[site].started_by.is_none() {
            return Some(site);
        }
        let line = self.started.get(&startpc).copied().flatten();
        line.or(Some(site))
    }

    fn overflow(&mut self, kind: SiteKind) -> SiteId {
        self.intern(too_many(kind), String::new())
    }

    fn intern(&mut self, key: SiteKey, start_function: String) -> SiteId {
        let next = SiteId(u32::try_from(self.sites.len()).unwrap_or(u32::MAX));
        let (key, start_function) =
            if self.sites.len() >= MOST_SITES && !self.by_line.contains_key(&key) {
                (too_many(key.kind), String::new())
            } else {
                (key, start_function)
            };
        let id = *self.by_line.entry(key.clone()).or_insert(next);
        if id == next {
            self.sites.push(Site {
                kind: key.kind,
                at: key.at,
                start_function,
                attributed: key.attributed,
                started_by: key.started_by,
                live: 0,
                leaked: 0,
                created: 0,
                ended: 0,
                rearmed: 0,
                renewed: 0,
                stopped: 0,
                fired: 0,
                lifetimes: Histogram::default(),
                armed_for_ns: None,
                creation_stack: None,
                history: History::default(),
            });
        }
        id
    }

    /// All sites, in the order in which they were met.
    pub fn iter(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter()
    }

    /// All sites with their numbers.
    pub fn enumerate(&self) -> impl Iterator<Item = (SiteId, &Site)> {
        (0..).map(SiteId).zip(&self.sites)
    }

    /// All sites, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Site> {
        self.sites.iter_mut()
    }
}

impl Index<SiteId> for Sites {
    type Output = Site;

    fn index(&self, id: SiteId) -> &Site {
        &self.sites[id.0 as usize]
    }
}

impl IndexMut<SiteId> for Sites {
    fn index_mut(&mut self, id: SiteId) -> &mut Site {
        &mut self.sites[id.0 as usize]
    }
}

/// Whether `runtime.NumGoroutine` leaves out goroutines that start in this function
/// (src/runtime/traceback.go: isSystemGoroutine, Go 1.18 to 1.27). The finalizer and cleanup goroutines count as
/// system ones always: `sched.ngsys` is settled when they are born, before they run user code.
#[must_use]
pub fn is_system_goroutine(start_function: &str) -> bool {
    start_function.starts_with("runtime.")
        && !matches!(
            start_function,
            "runtime.main" | "runtime.handleAsyncEvent" | "runtime.corostart"
        )
}

/// The kind of an AfterFunc timer that calls this function: context.WithTimeout and WithDeadline arm one of their own
/// (src/context/context.go).
fn timer_goroutine_kind(callback: &str) -> TimerKind {
    if callback.starts_with("context.WithDeadline") {
        TimerKind::Deadline
    } else {
        TimerKind::AfterFunc
    }
}

/// The function that starts at `pc`: the outermost frame there, since calls inlined at its start are not meant.
fn starting_function(symbols: &dyn Symbols, pc: RuntimeAddr) -> Option<Frame> {
    symbols.frames(pc).pop()
}

/// The first frame outside the packages that make timers on a user's behalf.
fn first_user_frame(stack: &[RuntimeAddr], symbols: &dyn Symbols) -> Option<CallSite> {
    stack
        .iter()
        .flat_map(|pc| symbols.frames_of_return(*pc))
        .find(|frame| {
            !["time.", "context.", "runtime."]
                .iter()
                .any(|package| frame.function.starts_with(package))
        })
        .map(|frame| CallSite {
            function: frame.function,
            file: frame.file,
            line: frame.line,
        })
}

/// What to call a timer whose making was not seen: what it calls, or else what kind it is.
fn unattributed(kind: TimerKind, callback: Option<Frame>) -> CallSite {
    match (kind, callback) {
        (_, Some(frame)) => CallSite {
            function: frame.function,
            file: frame.file,
            line: frame.line,
        },
        (TimerKind::Sleep, None) => named("time.Sleep"),
        (TimerKind::Deadline, None) => named("(network deadline)"),
        (_, None) => named("(armed before tracing)"),
    }
}

/// What is booked where there are more sites than are told apart.
fn too_many(kind: SiteKind) -> SiteKey {
    SiteKey {
        kind,
        at: named("(too many call sites)"),
        attributed: false,
        started_by: None,
    }
}

fn named(function: &str) -> CallSite {
    CallSite {
        function: function.to_owned(),
        ..CallSite::default()
    }
}

fn call_site(frame: Option<Frame>, pc: RuntimeAddr) -> CallSite {
    match frame {
        Some(frame) => CallSite {
            function: frame.function,
            file: frame.file,
            line: frame.line,
        },
        // Code that no table of this binary covers: a plugin, or a wrong pointer.
        None => CallSite {
            function: format!("(unknown code at {pc})"),
            ..CallSite::default()
        },
    }
}
