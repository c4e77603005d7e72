//! Call sites: the lines that make goroutines and timers, with what is counted for each.

use std::ops::{Index, IndexMut};

use foldhash::HashMap;
use serde::Serialize;

use super::History;
use crate::address::RuntimeAddr;
use crate::census::TimerKind;
use crate::event::StackId;
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
    /// Births heard of.
    pub created: u64,
    /// Ends heard of (goroutines).
    pub ended: u64,
    /// Times stopped (timers).
    pub stopped: u64,
    /// Times fired (timers; a ticker fires once each period).
    pub fired: u64,
    /// A stack that made one of them: the first heard of.
    pub creation_stack: Option<StackId>,
    /// How many were alive over time.
    pub history: History,
}

/// All sites met, found again by what the events and the census carry.
#[derive(Default)]
pub struct Sites {
    sites: Vec<Site>,
    by_line: HashMap<(SiteKind, CallSite, bool), SiteId>,
    by_goroutine: HashMap<(RuntimeAddr, RuntimeAddr), SiteId>,
    by_timer: HashMap<TimerKey, Option<SiteId>>,
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
        let at = if gopc.0 == 0 {
            named("(C thread)")
        } else if start_function == "runtime.main" {
            // No go statement made the main goroutine, but the assembly that starts the program.
            call_site(start, startpc)
        } else {
            call_site(symbols.frames_of_return(gopc).into_iter().next(), gopc)
        };
        let site = self.intern(kind, at, start_function, true);
        self.by_goroutine.insert((gopc, startpc), site);
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
        // context.WithTimeout and WithDeadline arm an AfterFunc of their own (src/context/context.go).
        if callback
            .as_ref()
            .is_some_and(|frame| frame.function.starts_with("context.WithDeadline"))
        {
            kind = Some(TimerKind::Deadline);
        }
        let site = kind.map(|kind| {
            let start_function = callback
                .as_ref()
                .map_or_else(String::new, |frame| frame.function.clone());
            let made_at = stack.and_then(|stack| first_user_frame(&symbols.stack(stack), symbols));
            let attributed = made_at.is_some();
            let at = made_at.unwrap_or_else(|| unattributed(kind, callback));
            self.intern(SiteKind::Timer(kind), at, start_function, attributed)
        });
        self.by_timer.insert(key, site);
        site
    }

    /// The site that [`Sites::of_goroutine`] gave for these, if it was asked before.
    #[must_use]
    pub fn known_goroutine(&self, gopc: RuntimeAddr, startpc: RuntimeAddr) -> Option<SiteId> {
        self.by_goroutine.get(&(gopc, startpc)).copied()
    }

    fn overflow(&mut self, kind: SiteKind) -> SiteId {
        self.intern(kind, too_many(), String::new(), false)
    }

    fn intern(
        &mut self,
        kind: SiteKind,
        at: CallSite,
        start_function: String,
        attributed: bool,
    ) -> SiteId {
        let next = SiteId(u32::try_from(self.sites.len()).unwrap_or(u32::MAX));
        let key = (kind, at.clone(), attributed);
        let (at, attributed, start_function) =
            if self.sites.len() >= MOST_SITES && !self.by_line.contains_key(&key) {
                (too_many(), false, String::new())
            } else {
                (at, attributed, start_function)
            };
        let id = *self
            .by_line
            .entry((kind, at.clone(), attributed))
            .or_insert(next);
        if id == next {
            self.sites.push(Site {
                kind,
                at,
                start_function,
                attributed,
                live: 0,
                created: 0,
                ended: 0,
                stopped: 0,
                fired: 0,
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
fn too_many() -> CallSite {
    named("(too many call sites)")
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
