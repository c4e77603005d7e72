//! `old-outlier`: one that is far older than others of its line, or alone and stuck for long.

use super::{Config, Evidence, Level, Opinion, Rule, Wait, duration};

/// Never more than suspect: it may be the one that is meant to stay.
pub(super) struct OldOutlier;

const SECOND_NS: u64 = 1_000_000_000;

impl OldOutlier {
    /// Old by what is usual at its site.
    fn by_lifetime(evidence: &Evidence, config: &Config) -> Option<String> {
        let rule = &config.old_outlier;
        let usual = evidence.usual.filter(|usual| usual.ended >= rule.ended)?;
        let old_ns = (usual.lifetime_ns.saturating_mul(rule.times))
            .max(rule.youngest_seconds.saturating_mul(SECOND_NS));
        // A connection may be idle for hours beside a thousand short ones.
        let (wait, still_ns) = Wait::ALL
            .into_iter()
            .zip(evidence.tally.longest_still_ns)
            .filter(|(wait, _)| !matches!(wait, Wait::Network | Wait::Sleep | Wait::Syscall))
            .max_by_key(|(_, still_ns)| *still_ns)?;
        (still_ns >= old_ns).then(|| {
            format!(
                "the oldest of {} has been {} for {}, where 99 of 100 of the {} that ended lived no longer than {:.3} s",
                evidence.things(evidence.count),
                wait.words(),
                duration(still_ns / SECOND_NS),
                usual.ended,
                nanoseconds_to_seconds(usual.lifetime_ns),
            )
        })
    }

    /// Old by itself.
    fn alone(evidence: &Evidence, config: &Config) -> Option<String> {
        let rule = &config.old_outlier;
        let waits = [
            (Wait::Send, rule.alone_seconds, false),
            (Wait::Mutex, rule.alone_seconds, false),
            (Wait::Receive, rule.alone_receive_seconds, true),
            (Wait::WaitGroup, rule.alone_receive_seconds, true),
        ];
        waits.into_iter().find_map(|(wait, seconds, late)| {
            let longest = if late {
                &evidence.tally.longest_still_late_ns
            } else {
                &evidence.tally.longest_still_ns
            };
            let still_ns = longest.get(wait as usize).copied()?;
            (still_ns >= seconds.saturating_mul(SECOND_NS) && !evidence.share_a_channel()).then(
                || {
                    format!(
                        "one of {} has been {} for {} and has not moved",
                        evidence.things(evidence.count),
                        wait.words(),
                        duration(still_ns / SECOND_NS),
                    )
                },
            )
        })
    }
}

impl Rule for OldOutlier {
    fn name(&self) -> &'static str {
        "old-outlier"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.old_outlier.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        if !evidence.is_goroutines() {
            return Opinion::OK;
        }
        let sentence =
            Self::by_lifetime(evidence, config).or_else(|| Self::alone(evidence, config));
        match sentence {
            Some(sentence) => Opinion::new(Level::Suspect, sentence),
            None => Opinion::OK,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a lifetime in nanoseconds loses less than a microsecond in a year"
)]
fn nanoseconds_to_seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
