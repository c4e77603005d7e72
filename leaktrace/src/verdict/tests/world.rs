//! A made-up program: what lives at one of its sites, and how a census sees it.

use crate::census::TimerKind;
use crate::ledger::{History, Sample};
use crate::verdict::standing::Standing;
use crate::verdict::*;

pub(super) const SECOND: u64 = 1_000_000_000;

/// One goroutine or timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) born_ns: u64,
    /// `u64::MAX` for ever.
    pub(super) ends_ns: u64,
    /// How often it moves; 0 for never.
    pub(super) moves_every_ns: u64,
}

impl Life {
    pub(super) fn stuck(born_ns: u64) -> Self {
        Self {
            born_ns,
            ends_ns: u64::MAX,
            moves_every_ns: 0,
        }
    }
}

/// A site, and how it is seen.
pub(super) struct World {
    pub(super) subject: Subject,
    pub(super) wait: Wait,
    pub(super) lives: Vec<Life>,
    pub(super) place: Option<Place>,
    pub(super) program: Around,
    pub(super) pace_ns: u64,
    pub(super) due_late: bool,
    /// Timers run so long, and what they call arms them again, or they end.
    pub(super) runs_ns: Option<u64>,
}

impl World {
    pub(super) fn of(wait: Wait, lives: Vec<Life>) -> Self {
        Self {
            subject: Subject::Goroutines,
            wait,
            lives,
            place: Some(on_own_channels()),
            program: Around {
                channel_waiters: 1000,
                network_waiters: 1000,
                ..Around::default()
            },
            pace_ns: 5 * SECOND,
            due_late: false,
            runs_ns: None,
        }
    }

    pub(super) fn of_timers(kind: TimerKind, lives: Vec<Life>) -> Self {
        Self {
            subject: Subject::Timers(kind),
            program: Around::default(),
            ..Self::of(Wait::Other, lives)
        }
    }

    /// Timers of one line that call a function, armed for so long.
    pub(super) fn of_callbacks(lives: Vec<Life>, runs_ns: u64) -> Self {
        Self {
            runs_ns: Some(runs_ns),
            ..Self::of_timers(TimerKind::AfterFunc, lives)
        }
    }

    /// What became of those that were due between two moments. Those that end when due have fired, others were stopped.
    pub(super) fn due(&self, from_ns: u64, now_ns: u64) -> Due {
        let mut due = Due::default();
        for (life, runs_ns) in self.lives.iter().zip(self.runs_ns.into_iter().cycle()) {
            let times = |until_ns: u64| until_ns.saturating_sub(life.born_ns) / runs_ns;
            let heard = |until_ns: u64| times(until_ns).saturating_sub(times(from_ns));
            due.fired += heard(now_ns.min(life.ends_ns));
            due.renewed += heard(now_ns.min(life.ends_ns - 1));
        }
        due
    }

    /// What a daemon says that begins to watch at `from_ns`, count for count.
    pub(super) fn watch(&self, from_ns: u64, to_ns: u64) -> Vec<(u64, Standing)> {
        let config = Config::default();
        let mut standing = Standing::default();
        let mut history = History::default();
        let mut seen = Vec::new();
        let mut now_ns = from_ns;
        while now_ns <= to_ns {
            let evidence = self.look(&mut history, from_ns, now_ns, &config);
            standing.hear(&evidence, &config, now_ns);
            seen.push((now_ns, standing.clone()));
            now_ns += self.pace_ns;
        }
        seen
    }

    pub(super) fn look(
        &self,
        history: &mut History,
        from_ns: u64,
        now_ns: u64,
        config: &Config,
    ) -> Evidence {
        let mut tally = Tally::default();
        let mut count = 0;
        let alive =
            (self.lives.iter()).filter(|life| life.born_ns <= now_ns && life.ends_ns > now_ns);
        for life in alive {
            count += 1;
            // What was there before is as old as the watch, for all that is known.
            let age_ns = now_ns - life.born_ns.max(from_ns);
            let still_ns = match life.moves_every_ns {
                0 => age_ns,
                every => age_ns.min((now_ns - life.born_ns) % every),
            };
            tally.born.add(age_ns, SPANS.len());
            tally.stuck.add(still_ns, SPANS.len());
            tally.waits[self.wait as usize] += 1;
            if still_ns >= config.stalled.seconds * SECOND {
                tally.still[self.wait as usize] += 1;
            }
            let heard = life.born_ns > from_ns.max(config.certain_block.start_up_seconds * SECOND);
            if heard && matches!(self.wait, Wait::NilChannel | Wait::NoCases) {
                tally.certain_and_new += 1;
            }
            let longest = &mut tally.longest_still_ns[self.wait as usize];
            *longest = still_ns.max(*longest);
            if self.due_late {
                tally.due_late += 1;
            } else if let Some(runs_ns) = self.runs_ns {
                tally.longest_due_ns = runs_ns;
            } else if life.ends_ns < u64::MAX {
                let runs_ns = life.ends_ns - life.born_ns;
                tally.longest_due_ns = tally.longest_due_ns.max(runs_ns);
            }
        }
        history.push(Sample {
            at_ns: now_ns,
            count,
        });
        Evidence {
            subject: self.subject,
            attributed: true,
            count,
            created: 0,
            ended: 0,
            growth_per_minute: history.growth_per_minute(),
            spans: span::spans(
                |from_ns| history.since(from_ns),
                (from_ns, now_ns),
                &tally.born,
                &tally.stuck,
            ),
            tally,
            place: self.place.clone(),
            usual: None,
            due: self.due(from_ns, now_ns),
            program: self.program,
            pointers_tell: false,
        }
    }

    pub(super) fn worst(&self, from_ns: u64, to_ns: u64) -> Level {
        let seen = self.watch(from_ns, to_ns);
        seen.iter()
            .map(|(_, one)| one.level)
            .max()
            .unwrap_or_default()
    }

    /// After how many seconds it is called a leak, and by which rule.
    pub(super) fn leak(&self, from_ns: u64, to_ns: u64) -> Option<(u64, &'static str)> {
        let seen = self.watch(from_ns, to_ns);
        let leak = seen.into_iter().find(|(_, one)| one.level == Level::Leak);
        leak.map(|(at_ns, standing)| ((at_ns - from_ns) / SECOND, standing.rule))
    }
}

pub(super) fn on_own_channels() -> Place {
    Place {
        functions: Vec::new(),
        channels: 100,
        waiting: 100,
        most_on_one: 1,
        with_receivers: 0,
    }
}

pub(super) fn on_one_channel() -> Place {
    Place {
        most_on_one: 100,
        channels: 1,
        with_receivers: 1,
        ..on_own_channels()
    }
}

/// One every so often, for ever.
pub(super) fn steadily(every_ns: u64, until_ns: u64) -> Vec<Life> {
    (1..=until_ns / every_ns)
        .map(|number| Life::stuck(number * every_ns))
        .collect()
}
