//! `unstopped-ticker`: more and more tickers, which never end by themselves.

use super::{Config, Evidence, Level, Opinion, Rule, Subject, duration};
use crate::census::TimerKind;

/// Any number of tickers is well if it stays the same and somebody waits for them.
pub(super) struct UnstoppedTicker;

impl Rule for UnstoppedTicker {
    fn name(&self) -> &'static str {
        "unstopped-ticker"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.unstopped_ticker.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        if evidence.subject != Subject::Timers(TimerKind::Ticker) {
            return Opinion::OK;
        }
        if evidence.timers_are_abandoned()
            && evidence.tally.long_pending >= config.unstopped_ticker.crowd
        {
            return Opinion::of_abandoned_timers(evidence, config, "hardly any is waited for");
        }
        if evidence.tally.forgotten >= config.unstopped_ticker.crowd {
            return Opinion::of_abandoned_timers(
                evidence,
                config,
                "who is left that refers to them only waits: nobody can stop them",
            );
        }
        let mut long_enough = (evidence.spans.iter())
            .filter(|span| span.seconds() >= config.unstopped_ticker.seconds)
            .peekable();
        if long_enough.peek().is_none() {
            return Opinion::NOT_YET;
        }
        let Some(rise) = long_enough.find_map(|span| span.rise(&config.rise)) else {
            return Opinion::OK;
        };
        Opinion::new(
            Level::Leak,
            format!(
                "{} are pending: the lowest count rose from {} to {} in {}, and those that came were not stopped; \
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
