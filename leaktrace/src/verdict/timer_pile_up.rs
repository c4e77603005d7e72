//! `timer-pile-up`: more and more timers that are not due for long, or that nobody waits for.

use super::{Config, Evidence, Level, Opinion, Rule, Subject, duration};
use crate::census::TimerKind;

/// Timers end by themselves when due, so a rise alone says little: a cache that forgets its entries after five minutes has
/// as many timers as five minutes bring. Either nobody waits for them any more, or they are due too late to bound
/// themselves soon, or what they call arms them again each time, or the rise lasts longer than they do. Connections may
/// each have one for as long as they are there.
pub(super) struct TimerPileUp;

impl Rule for TimerPileUp {
    fn name(&self) -> &'static str {
        "timer-pile-up"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.timer_pile_up.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        let rule = &config.timer_pile_up;
        let Subject::Timers(kind @ (TimerKind::Timer | TimerKind::AfterFunc | TimerKind::Deadline)) =
            evidence.subject
        else {
            return Opinion::OK;
        };
        let abandoned = kind == TimerKind::Timer && evidence.timers_are_abandoned();
        if abandoned && evidence.tally.long_pending >= rule.crowd {
            return Opinion::of_abandoned_timers(
                evidence,
                config,
                "hardly any is still waited for",
            );
        }
        if kind != TimerKind::Timer && evidence.tally.forgotten >= rule.crowd {
            return Opinion::of_abandoned_timers(
                evidence,
                config,
                "nothing but the timers themselves refers to what could stop them; they are not due for long",
            );
        }
        let late = evidence.tally.due_late * 10 >= evidence.count * 8;
        let renewed =
            kind == TimerKind::AfterFunc && evidence.is_renewed_when_due(config.rise.least_strong);
        let (seconds, why) = if abandoned {
            (rule.abandoned_seconds, "hardly any is still waited for")
        } else if kind != TimerKind::Timer && evidence.may_be_of_connections() {
            (
                rule.connection_seconds,
                "more and more come, though as many connections may have them",
            )
        } else if renewed {
            (
                rule.seconds,
                "those that were due have been armed again each time",
            )
        } else if late {
            (rule.seconds, "they are not due for long")
        } else {
            let longest = evidence.tally.longest_due_ns / 1_000_000_000;
            (
                rule.seconds.max(longest.saturating_mul(2)),
                "more come than are due",
            )
        };
        let mut long_enough = (evidence.spans.iter())
            .filter(|span| span.seconds() >= seconds)
            .peekable();
        if long_enough.peek().is_none() {
            return Opinion::NOT_YET;
        }
        let Some(rise) = long_enough.find_map(|span| {
            if abandoned {
                span.rise_of_few(&config.rise)
            } else {
                span.rise(&config.rise)
            }
        }) else {
            return Opinion::OK;
        };
        Opinion::new(
            Level::Leak,
            format!(
                "{} are pending and {why}: the lowest count rose from {} to {} in {}, {:+.0} a minute",
                evidence.things(evidence.count),
                rise.from,
                rise.to,
                duration(rise.seconds),
                evidence.growth_per_minute,
            ),
        )
    }
}
