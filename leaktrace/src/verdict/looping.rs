//! `looping`: they wake up now and then or never rest, never end, and there are always more, or nobody can tell them to end.

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
        let (crowd, rise) = (Self::crowd(evidence, config), Self::rise(evidence, config));
        if crowd.level > rise.level {
            crowd
        } else {
            rise
        }
    }
}

impl Looping {
    /// A crowd that nobody can tell to end, whether or not there are always more.
    fn crowd(evidence: &Evidence, config: &Config) -> Opinion {
        let crowd = config.looping.crowd;
        let (all, late) = (evidence.tally.alone, evidence.tally.alone_late);
        let things = evidence.things(evidence.count);
        if all.timer_in_vain >= crowd {
            // Some are meant to go round from the start on.
            let level = if late.timer_in_vain >= crowd {
                Level::Leak
            } else {
                Level::Suspect
            };
            let many = all.timer_in_vain;
            return Opinion::new(
                level,
                format!(
                    "{many} of {things} are woken by timers alone: they wait for more, but nothing else in the program refers \
                     to that, so nobody can tell them to end"
                ),
            );
        }
        if late.timer >= crowd && evidence.ended == 0 {
            let many = late.timer;
            return Opinion::new(
                Level::Suspect,
                format!(
                    "{many} of {things} came while the program was watched and are woken by timers alone: they wait for \
                     nothing else that could tell them to end, and none has ended"
                ),
            );
        }
        Opinion::OK
    }

    fn rise(evidence: &Evidence, config: &Config) -> Opinion {
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
