//! `looping`: they wake up now and then or never rest, never end, and there are always more.

use super::{Config, Evidence, Level, Opinion, Rule, Wait, duration};

/// Looks at goroutines that only time wakes, or that run all the time: nobody else keeps them busy, so they do not serve a
/// load that will recede.
pub(super) struct Looping;

impl Rule for Looping {
    fn name(&self) -> &'static str {
        "looping"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.looping.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        if !evidence.is_goroutines() {
            return Opinion::OK;
        }
        let how = match evidence.wait() {
            Some(Wait::Runs) => "running all the time",
            Some(Wait::Sleep) => "woken by time alone",
            // Session actors receive too, but have no timer each.
            Some(Wait::Receive) if evidence.timers_wake_them() => "woken by timers alone",
            _ => return Opinion::OK,
        };
        let mut long_enough = (evidence.spans.iter())
            .filter(|span| span.seconds() >= config.looping.seconds)
            .peekable();
        if long_enough.peek().is_none() {
            return Opinion::NOT_YET;
        }
        // Who has not woken up even once may do so only to end: that is no loop.
        let Some(rise) = long_enough.find_map(|span| {
            (span.rise(&config.rise)).filter(|_| span.stuck_rise(&config.rise).is_none())
        }) else {
            return Opinion::OK;
        };
        Opinion::new(
            Level::Leak,
            format!(
                "{} are alive, {how}: the lowest count rose from {} to {} in {}, and none of those that came has ended; \
                 {:+.0} a minute",
                evidence.things(evidence.count),
                rise.from,
                rise.to,
                duration(rise.seconds),
                evidence.growth_per_minute,
            ),
        )
    }
}
