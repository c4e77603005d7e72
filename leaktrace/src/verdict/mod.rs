//! Is it a leak? Rules look at the evidence about one call site and say ok, suspect or leak, with a sentence.

mod certain_block;
mod growing;

use serde::Serialize;

use crate::ledger::Sample;

/// How sure we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is wrong as far as can be seen.
    Ok,
    /// It looks like a leak, and could still be something else.
    Suspect,
    /// It is a leak.
    Leak,
}

/// What is known of one call site.
#[derive(Clone, Debug)]
pub struct Evidence<'e> {
    /// "goroutines" or "timers".
    pub things: &'static str,
    /// Alive now.
    pub count: u64,
    /// How many are in each state (goroutines).
    pub states: &'e [(String, u64)],
    /// How many were alive over time, oldest first.
    pub samples: &'e [Sample],
    /// From the first to the last reading.
    pub growth_per_minute: f64,
}

/// What the rules found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How sure.
    pub level: Level,
    /// Name of the rule that decided; "" when ok.
    pub rule: &'static str,
    /// The evidence as a sentence; "" when ok.
    pub sentence: String,
}

/// One way to recognise a leak.
trait Rule {
    /// Its name, in kebab case.
    fn name(&self) -> &'static str;
    /// What it makes of the evidence.
    fn check(&self, evidence: &Evidence<'_>) -> Level;
    /// The evidence as a sentence, for a level above ok.
    fn explain(&self, evidence: &Evidence<'_>) -> String;
}

/// The verdict of the most severe rule; of equals, the first.
#[must_use]
pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let rules: [&dyn Rule; 2] = [&certain_block::CertainBlock, &growing::Growing];
    let mut verdict = Verdict {
        level: Level::Ok,
        rule: "",
        sentence: String::new(),
    };
    for rule in rules {
        let level = rule.check(evidence);
        if level > verdict.level {
            verdict = Verdict {
                level,
                rule: rule.name(),
                sentence: rule.explain(evidence),
            };
        }
    }
    verdict
}
