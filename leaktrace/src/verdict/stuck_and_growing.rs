//! `stuck-and-growing`: more and more that stop moving and never leave.

use super::{Config, Evidence, Level, Opinion, Rule, Wait, duration};

/// Looks at who has not run at all since each part of a span: what a load brings in waves has moved on.
pub(super) struct StuckAndGrowing;

impl StuckAndGrowing {
    /// How long the rise must last; `None` when this wait is no sign of a leak.
    fn needed(evidence: &Evidence, config: &Config) -> Option<(Wait, u64)> {
        let rule = &config.stuck_and_growing;
        // Without a wait that nearly all share: as where healthy programs rest, too.
        let wait = evidence.wait().unwrap_or(Wait::Other);
        let seconds = match wait {
            Wait::Send | Wait::Mutex | Wait::NilChannel | Wait::NoCases => rule.strong_seconds,
            // As long as nobody looked, they may share one.
            Wait::Receive if evidence.place.is_none() || evidence.share_a_channel() => {
                rule.pool_seconds
            }
            // Such connections end when their deadline passes.
            Wait::Network if evidence.network_has_deadlines() => return None,
            // Who sleeps wakes.
            Wait::Sleep => rule.sleep_seconds,
            _ => rule.seconds,
        };
        Some((wait, seconds))
    }
}

impl Rule for StuckAndGrowing {
    fn name(&self) -> &'static str {
        "stuck-and-growing"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.stuck_and_growing.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        if !evidence.is_goroutines() {
            return Opinion::OK;
        }
        let Some((wait, seconds)) = Self::needed(evidence, config) else {
            return Opinion::OK;
        };
        let mut long_enough = (evidence.spans.iter())
            .filter(|span| span.seconds() >= seconds)
            .peekable();
        if long_enough.peek().is_none() {
            return Opinion::NOT_YET;
        }
        let strong = matches!(
            wait,
            Wait::Send | Wait::Mutex | Wait::NilChannel | Wait::NoCases
        );
        let Some(rise) = long_enough.find_map(|span| {
            if strong {
                span.strong_rise(&config.rise)
            } else {
                span.stuck_rise(&config.rise)
            }
        }) else {
            return Opinion::OK;
        };
        let place = match evidence.wait() {
            Some(_) => format!(", nearly all {}", wait.words()),
            None => String::new(),
        };
        Opinion::new(
            Level::Leak,
            format!(
                "{} are alive{place}: the lowest count rose from {} to {} in {}, and those that came \
                 have neither moved since nor ended; {:+.0} a minute",
                evidence.things(evidence.count),
                rise.from,
                rise.to,
                duration(rise.seconds),
                evidence.growth_per_minute,
            ),
        )
    }
}
