//! `growing`: over a long time there are always more, and those that came stay.

use super::{Config, Evidence, Level, Opinion, Rule, duration};

/// Knows nothing of what they do, so it takes its time: a ramp of connections rises for long, too.
pub(super) struct Growing;

impl Rule for Growing {
    fn name(&self) -> &'static str {
        "growing"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.growing.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        let rule = &config.growing;
        if !evidence.is_goroutines() {
            return Opinion::OK;
        }
        let mut long_enough = (evidence.spans.iter())
            .filter(|span| span.seconds() >= rule.suspect_seconds)
            .peekable();
        if long_enough.peek().is_none() {
            return Opinion::NOT_YET;
        }
        let mut rises = long_enough.filter_map(|span| span.rise(&config.rise));
        let Some(rise) = rises.next_back() else {
            return Opinion::OK;
        };
        let level = if rise.seconds >= rule.leak_seconds {
            Level::Leak
        } else {
            Level::Suspect
        };
        Opinion::new(
            level,
            format!(
                "{} are alive: the lowest count rose from {} to {} in {}, and those that came have not ended; \
                 {:+.1} a minute",
                evidence.things(evidence.count),
                rise.from,
                rise.to,
                duration(rise.seconds),
                evidence.growth_per_minute,
            ),
        )
    }
}
