//! `certain-block`: goroutines that nothing can ever wake.

use super::{Config, Evidence, Level, Opinion, Rule, Wait};

/// A send to or a receive from a nil channel, and a select without cases, block for ever (The Go Programming Language
/// Specification, "Channel types" and "Select statements"). So does whoever waits for something that nothing else in the
/// program refers to (`census::reach`).
pub(super) struct CertainBlock;

impl CertainBlock {
    fn nobody_else(evidence: &Evidence, config: &Config, stranded: u64) -> String {
        let (has, what, them) = match stranded {
            1 => ("has", "waits", "it"),
            _ => ("have", "wait", "them"),
        };
        let waiting = evidence
            .still_wait()
            .map_or("waiting", |(wait, _)| wait.words());
        format!(
            "{stranded} of {} {has} been {waiting} for at least {}, and nothing else in the program refers to what {} {what} for: \
             nobody can wake {them}",
            evidence.things(evidence.count),
            super::duration(config.stalled.seconds),
            if stranded == 1 { "it" } else { "they" },
        )
    }
}

impl Rule for CertainBlock {
    fn name(&self) -> &'static str {
        "certain-block"
    }

    fn enabled(&self, config: &Config) -> bool {
        config.certain_block.enabled
    }

    fn check(&self, evidence: &Evidence, config: &Config) -> Opinion {
        if !evidence.is_goroutines() {
            return Opinion::OK;
        }
        let new = evidence.tally.certain_and_new;
        let (nil, no_cases) = (
            evidence.waiting(Wait::NilChannel),
            evidence.waiting(Wait::NoCases),
        );
        // Some are meant to wait for ever from the start on: dockerd 28 has one on a nil channel, kube-controller-manager 1.20
        // has 48 of one line, which wait for a context that nobody can cancel. Nobody means one that begins later.
        let on_nil = match nil {
            0 => Level::Ok,
            many if new > 0 || many >= config.certain_block.nil_channel => Level::Leak,
            _ => Level::Suspect,
        };
        // An empty select is written on purpose; what is wrong is how many get there.
        let in_select = match no_cases {
            0 | 1 => Level::Ok,
            many if many >= config.certain_block.no_cases => Level::Leak,
            _ if new > 1 => Level::Suspect,
            _ => Level::Ok,
        };
        if evidence.tally.confirmed > 0 {
            return Opinion {
                level: Level::Leak,
                sentence: format!(
                    "the Go runtime itself found that nobody can wake {} of {}",
                    evidence.tally.confirmed,
                    evidence.things(evidence.count),
                ),
                certain: true,
            };
        }
        // A program may leave one behind on purpose; a crowd is no purpose.
        let stranded = evidence.tally.alone.nobody;
        let on_nothing = match stranded {
            0 => Level::Ok,
            many if many >= config.certain_block.stranded => Level::Leak,
            _ => Level::Suspect,
        };
        let bodies = evidence.tally.alone.body;
        if bodies >= config.certain_block.stranded {
            return Opinion {
                level: Level::Leak,
                sentence: format!(
                    "{bodies} of {} have been waiting for at least {} for the bodies of responses to be read or closed, and \
                     nothing else in the program refers to those: nobody can any more",
                    evidence.things(evidence.count),
                    super::duration(config.stalled.seconds),
                ),
                certain: true,
            };
        }
        if on_nothing > on_nil.max(in_select) {
            return Opinion {
                level: on_nothing,
                sentence: Self::nobody_else(evidence, config, stranded),
                certain: true,
            };
        }
        let (level, wait, stuck) = if on_nil >= in_select {
            (on_nil, Wait::NilChannel, nil)
        } else {
            (in_select, Wait::NoCases, no_cases)
        };
        if level <= Level::Ok {
            return Opinion::OK;
        }
        let verb = if stuck == 1 { "is" } else { "are" };
        Opinion {
            level,
            sentence: format!(
                "{stuck} of {} {verb} {}: nothing can ever wake {}",
                evidence.things(evidence.count),
                wait.words(),
                if stuck == 1 { "it" } else { "them" },
            ),
            certain: true,
        }
    }
}
