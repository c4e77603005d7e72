//! What is known of one call site: all that the rules look at.

use super::span::{Profile, Span};
use super::wait::{WAITS, Wait};
use crate::census::TimerKind;
use crate::census::reach::Waker;

/// What a site makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Goroutines of the program's own.
    Goroutines,
    /// The main goroutine, which is to stay.
    Main,
    /// Timers.
    Timers(TimerKind),
    /// Deadlines of the network poller: each connection has them, and nobody leaks one.
    NetworkDeadlines,
}

/// What is known of one call site.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What it makes.
    pub subject: Subject,
    /// Whether its line is known: not that of timers that were armed before anybody listened.
    pub attributed: bool,
    /// Alive now.
    pub count: u64,
    /// Births and ends heard of.
    pub created: u64,
    /// Ends heard of: for timers, those that fired or were stopped.
    pub ended: u64,
    /// How fast the count grows.
    pub growth_per_minute: f64,
    /// Over the spans that were watched, shortest first.
    pub spans: Vec<Span>,
    /// What the live ones add up to.
    pub tally: Tally,
    /// Where they are stuck, when somebody looked.
    pub place: Option<Place>,
    /// What is usual at this site.
    pub usual: Option<Usual>,
    /// What became of timers that call the same function, of any line, when they were due.
    pub due: Due,
    /// What goes on in the program besides.
    pub program: Around,
    /// Whether following the program's pointers tells who could still wake a goroutine that rests: then nothing else has to.
    pub pointers_tell: bool,
}

/// What the live things of one site add up to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// When they were born.
    pub born: Profile,
    /// Since when they have not moved.
    pub stuck: Profile,
    /// What goroutines wait for.
    pub waits: [u64; WAITS],
    /// The same of those alone that have not moved for long (`stalled.seconds`).
    pub still: [u64; WAITS],
    /// Longest time for which one has not moved, by what it waits for, in nanoseconds.
    pub longest_still_ns: [u64; WAITS],
    /// The same of those alone whose birth was heard, later than the start of the program.
    pub longest_still_late_ns: [u64; WAITS],
    /// How many that nothing can ever wake were born while we listened, later than the start of the program.
    pub certain_and_new: u64,
    /// Those that hardly anybody could wake, as far as somebody looked: goroutines that have not moved for long
    /// (`stalled.seconds`), and those that only time wakes once they are that old.
    pub alone: Alone,
    /// The same of those alone whose birth was heard, later than the start of the program (`looping.start-up-seconds`).
    pub alone_late: Alone,
    /// How many were born so late and are that old.
    pub late: u64,
    /// Timers of those that nobody is left to stop: tickers, and others that are due late.
    pub forgotten: u64,
    /// How many the runtime itself found to have leaked.
    pub confirmed: u64,
    /// Timers that have been pending for long (`stalled.seconds`).
    pub long_pending: u64,
    /// Age of the oldest, in nanoseconds.
    pub oldest_ns: u64,
    /// Timers that are due late (`timer-pile-up.far-seconds`).
    pub due_late: u64,
    /// The longest time until a timer that is not due late is due, in nanoseconds.
    pub longest_due_ns: u64,
}

/// How many of one site hardly anybody could wake (`census::reach::Waker`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alone {
    /// Nobody could.
    pub nobody: u64,
    /// Nobody who matters: a body that is to be read or closed is lost.
    pub body: u64,
    /// The end of the context that theirs was made of.
    pub parent: u64,
    /// Their timer, and they wait for nothing else.
    pub timer: u64,
    /// Their timer; they wait for more, and nothing else refers to that.
    pub timer_in_vain: u64,
}

impl Alone {
    pub(super) fn add(&mut self, waker: Waker) {
        let count = match waker {
            Waker::Nobody => &mut self.nobody,
            Waker::NobodyHasTheBody => &mut self.body,
            Waker::Parent => &mut self.parent,
            Waker::Timer => &mut self.timer,
            Waker::TimerInVain => &mut self.timer_in_vain,
        };
        *count += 1;
    }
}

/// Where goroutines of one site are stuck, and on what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The functions of the stack that most of them share, innermost first.
    pub functions: Vec<String>,
    /// Channels that they wait on.
    pub channels: u64,
    /// How many wait on those; one in a select counts for each.
    pub waiting: u64,
    /// How many wait on the one that most wait on.
    pub most_on_one: u64,
    /// Channels on which somebody waits to receive, alone or in a select.
    pub with_receivers: u64,
}

/// How long things of one site usually live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    /// How many ends this is known from.
    pub ended: u64,
    /// 99 of 100 live no longer than this, in nanoseconds.
    pub lifetime_ns: u64,
}

/// What became of timers when they were due, as far as that was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// How often one fired.
    pub fired: u64,
    /// How often it was armed again afterwards.
    pub renewed: u64,
}

/// What goes on in the program as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Pending timers and tickers that send on a channel.
    pub channel_timers: u64,
    /// Goroutines that wait on channels.
    pub channel_waiters: u64,
    /// Pending deadlines of the network poller.
    pub network_deadlines: u64,
    /// Goroutines that wait for the network.
    pub network_waiters: u64,
}

impl Evidence {
    /// What most of the live ones wait for, if nearly all wait for the same.
    #[must_use]
    pub fn wait(&self) -> Option<Wait> {
        self.most(&self.tally.waits)
    }

    /// The same of those that have not moved for long.
    #[must_use]
    pub fn still_wait(&self) -> Option<(Wait, u64)> {
        let wait = self.most(&self.tally.still)?;
        Some((wait, self.tally.still.iter().sum()))
    }

    fn most(&self, waits: &[u64; WAITS]) -> Option<Wait> {
        let all: u64 = waits.iter().sum();
        let (wait, count) = Wait::ALL
            .into_iter()
            .zip(waits)
            .max_by_key(|(_, count)| **count)?;
        if all == 0 || count.saturating_mul(10) < all.saturating_mul(8) {
            return None;
        }
        let functions = self.place.as_ref().map(|place| place.functions.as_slice());
        Some(wait.seen_on(functions.unwrap_or_default()))
    }

    /// How many are in a wait.
    #[must_use]
    pub fn waiting(&self, wait: Wait) -> u64 {
        self.tally.waits.get(wait as usize).copied().unwrap_or(0)
    }

    /// Whether nearly all of them wait on one channel, as the workers of a pool do.
    #[must_use]
    pub fn share_a_channel(&self) -> bool {
        (self.place.as_ref())
            .is_some_and(|place| place.waiting > 1 && place.most_on_one * 10 >= place.waiting * 8)
    }

    /// Whether connections have deadlines, so that those whose peer vanished end by themselves.
    #[must_use]
    pub fn network_has_deadlines(&self) -> bool {
        self.program.network_deadlines.saturating_mul(2) >= self.program.network_waiters
    }

    /// Whether there are so many connections that each of them may be of one.
    #[must_use]
    pub fn may_be_of_connections(&self) -> bool {
        self.program.network_waiters.saturating_mul(10) >= self.count.saturating_mul(8)
    }

    /// Whether nearly all that came due were armed again, `least` at least.
    #[must_use]
    pub fn is_renewed_when_due(&self, least: u64) -> bool {
        let Due { fired, renewed } = self.due;
        fired >= least && renewed.saturating_mul(10) >= fired.saturating_mul(9)
    }

    /// Whether there are enough timers pending to wake each of them.
    #[must_use]
    pub fn timers_wake_them(&self) -> bool {
        self.program.channel_timers.saturating_mul(10) >= self.count.saturating_mul(8)
    }

    /// Whether most timers with a channel were left behind: each has somebody who waits for it otherwise. From Go 1.23 on
    /// only those that are waited for are in a heap.
    #[must_use]
    pub fn timers_are_abandoned(&self) -> bool {
        let waited_for = self.program.channel_waiters.saturating_mul(2);
        self.program.channel_timers > waited_for.saturating_add(10)
    }

    /// "12 goroutines", "1 timer".
    #[must_use]
    pub fn things(&self, count: u64) -> String {
        let thing = match self.subject {
            Subject::Goroutines | Subject::Main => "goroutine",
            Subject::Timers(TimerKind::Ticker) => "ticker",
            Subject::Timers(_) | Subject::NetworkDeadlines => "timer",
        };
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {thing}{plural}")
    }

    /// Whether it makes the program's own goroutines.
    #[must_use]
    pub fn is_goroutines(&self) -> bool {
        self.subject == Subject::Goroutines
    }
}
