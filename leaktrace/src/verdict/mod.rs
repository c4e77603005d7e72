//! Is it a leak? Rules look at the evidence about one call site and say ok, suspect or leak, with a sentence.
//!
//! Each rule is a small value with a name in kebab case, under which [`Config`] holds its thresholds and its switch. A rule
//! judges one moment and remembers nothing; [`Standings`] remembers what was judged of each site, and lets a verdict come
//! and go only when several counts agree.

mod certain_block;
mod config;
mod evidence;
mod gather;
mod growing;
mod looping;
mod lost_cancel;
mod old_outlier;
mod reach;
mod remedy;
mod span;
mod stalled;
mod standing;
mod stuck_and_growing;
mod timer_pile_up;
mod unstopped_ticker;
mod wait;

#[cfg(test)]
mod tests;

use serde::Serialize;

pub use config::*;
pub use evidence::{Alone, Around, Due, Evidence, Place, Subject, Tally, Usual};
pub use gather::Moment;
pub use remedy::{Shape, remedy};
pub use span::{Profile, Rise, SPANS, Span, WINDOWS};
pub use standing::{Standing, Standings};
pub use wait::{WAITS, Wait};

/// How sure we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Too little was seen to say.
    #[default]
    #[serde(rename = "ok")]
    NotYet,
    /// Nothing is wrong as far as can be seen.
    Ok,
    /// It looks like a leak, and could still be something else.
    Suspect,
    /// It is a leak.
    Leak,
}

/// What one rule makes of the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// How sure.
    pub level: Level,
    /// The evidence as a sentence; "" up to ok.
    pub sentence: String,
    /// Memory proves it: no second look is needed.
    pub certain: bool,
}

impl Opinion {
    /// Too little was seen.
    pub(crate) const NOT_YET: Self = Self {
        level: Level::NotYet,
        sentence: String::new(),
        certain: false,
    };
    /// Nothing is wrong.
    pub(crate) const OK: Self = Self {
        level: Level::Ok,
        sentence: String::new(),
        certain: false,
    };

    fn new(level: Level, sentence: String) -> Self {
        Self {
            level,
            sentence,
            certain: false,
        }
    }

    /// Timers that were left behind: a leak where their line is known, for nobody can mend another.
    fn of_abandoned_timers(evidence: &Evidence, config: &Config, why: &str) -> Self {
        let level = if evidence.attributed {
            Level::Leak
        } else {
            Level::Suspect
        };
        let sentence = format!(
            "{} are pending, {} of them for at least {}, and {why}",
            evidence.things(evidence.count),
            evidence.tally.long_pending,
            duration(config.stalled.seconds),
        );
        Self::new(level, sentence)
    }
}

/// One way to recognise a leak.
trait Rule {
    /// Its name, in kebab case.
    fn name(&self) -> &'static str;
    /// Whether it is to be asked.
    fn enabled(&self, config: &Config) -> bool;
    /// What it makes of the evidence.
    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion;
}

/// All rules; of those that are equally sure, the first decides.
const RULES: [&dyn Rule; 9] = [
    &certain_block::CertainBlock,
    &lost_cancel::LostCancel,
    &stuck_and_growing::StuckAndGrowing,
    &looping::Looping,
    &stalled::Stalled,
    &growing::Growing,
    &unstopped_ticker::UnstoppedTicker,
    &timer_pile_up::TimerPileUp,
    &old_outlier::OldOutlier,
];

/// The names of all rules.
pub fn rules() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|rule| rule.name())
}

/// The opinion of the most severe rule at this moment, and its name; of equals, the first.
#[must_use]
pub fn judge(evidence: &Evidence, config: &Config) -> (&'static str, Opinion) {
    let mut worst = ("", Opinion::NOT_YET);
    for rule in RULES.iter().filter(|rule| rule.enabled(config)) {
        let opinion = rule.check(evidence, config);
        if opinion.level > worst.1.level {
            worst = (rule.name(), opinion);
        }
    }
    worst
}

/// " in 45 s", " in 12 minutes", " in 3 hours".
fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} minutes", seconds / 60),
        _ => format!("{} hours", seconds / 3600),
    }
}
