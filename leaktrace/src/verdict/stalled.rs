//! `stalled`: a crowd of one line that has not moved at all, where healthy programs do not rest.

use super::{Config, Evidence, Level, Opinion, Rule, Wait, duration};

/// Needs no growth: a lock that is never given back, or results that nobody takes, after a burst. A pool at rest looks the
/// same but for what it waits for, so receives from channels are no sign; nor are WaitGroups, on which whoever started others
/// waits for as long as they serve.
pub(super) struct Stalled;

impl Rule for Stalled {
    fn name(&self) -> &'static str {
        "stalled"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.stalled.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        let rule = &config.stalled;
        if !evidence.is_goroutines() {
            return Opinion::OK;
        }
        let Some((wait, still)) = evidence.still_wait() else {
            return Opinion::OK;
        };
        let place = evidence.place.as_ref();
        let on_own = place.is_some_and(|place| {
            place.channels.saturating_sub(place.with_receivers) >= rule.channels
        });
        let level = match wait {
            // Two may be a slow holder, seen at a bad moment; a crowd waits for a lock that nobody gives back.
            Wait::Mutex if still >= rule.crowd => Level::Leak,
            Wait::Mutex if still > 1 => Level::Suspect,
            Wait::Send if still >= rule.crowd && on_own => Level::Leak,
            // An iterator may rest; so many of one line are odd.
            Wait::Coroutine if still >= 2 * rule.crowd => Level::Suspect,
            // While a connection is idle this goroutine waits for the network; in a select it waits for a body to be closed:
            // somebody may be reading it for long.
            Wait::Select
                if still >= rule.crowd
                    && !evidence.pointers_tell
                    && place.is_some_and(|place| {
                        (place.functions.iter())
                            .any(|function| function == "net/http.(*persistConn).readLoop")
                    }) =>
            {
                Level::Suspect
            }
            _ => return Opinion::OK,
        };
        Opinion::new(
            level,
            format!(
                "{still} of {} have been {} for at least {}, and not one has moved",
                evidence.things(evidence.count),
                wait.words(),
                duration(rule.seconds),
            ),
        )
    }
}
