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
            // The peers of healthy ones may have nothing to say, but some of many go.
            Wait::Network if may_have_vanished(evidence, config) && reads_connections(evidence) => {
                Level::Suspect
            }
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
        let peers = match wait {
            Wait::Network => {
                "; none of this line has ended since leaktrace listens, and few connections here have a \
                 deadline: a peer that vanished is waited for for ever"
            }
            _ => "",
        };
        Opinion::new(
            level,
            format!(
                "{still} of {} have been {} for at least {}, and not one has moved{peers}",
                evidence.things(evidence.count),
                wait.words(),
                duration(rule.seconds),
            ),
        )
    }
}

/// Whether so many connections without a deadline came later than the program's start and said nothing for long that their
/// peers may have vanished: not one of the line has ever ended. Their stacks tell more.
pub(super) fn may_have_vanished(evidence: &Evidence, config: &Config) -> bool {
    let rests = matches!(
        evidence.still_wait(),
        Some((Wait::Network, still)) if still.min(evidence.tally.late) >= config.stalled.connections
    );
    rests && evidence.ended == 0 && !evidence.network_has_deadlines()
}

/// Whether they read connections of the program's own: those of net/http, on either side, are kept open on purpose.
fn reads_connections(evidence: &Evidence) -> bool {
    evidence.place.as_ref().is_some_and(|place| {
        let any = |is: fn(&str) -> bool| place.functions.iter().any(|function| is(function));
        any(|function| function == "net.(*conn).Read")
            && !any(|function| function.starts_with("net/http."))
    })
}
