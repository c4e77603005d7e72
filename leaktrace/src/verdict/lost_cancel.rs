//! `lost-cancel`: a crowd that waits for contexts which nobody can cancel any more.

use super::{Config, Evidence, Level, Opinion, Rule, duration};

/// A context that was made of another and whose cancel function is gone ends only with that other one: often never. Whoever
/// means to last as long as the other needs no context of his own, so `go vet` calls this a mistake as well (lostcancel).
pub(super) struct LostCancel;

impl Rule for LostCancel {
    fn name(&self) -> &'static str {
        "lost-cancel"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.lost_cancel.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        let rule = &config.lost_cancel;
        let (all, late) = (
            evidence.tally.alone.parent,
            evidence.tally.alone_late.parent,
        );
        let level = if late >= rule.crowd {
            Level::Leak
        } else if all >= rule.crowd_before {
            Level::Suspect
        } else {
            return Opinion::OK;
        };
        Opinion {
            level,
            sentence: format!(
                "{all} of {} have been waiting for at least {} for contexts that nothing else in the program refers to, nor to \
                 the functions that cancel them: only the end of the contexts that they were made of could wake them",
                evidence.things(evidence.count),
                duration(config.stalled.seconds),
            ),
            certain: true,
        }
    }
}
