//! `certain-block`: goroutines that nothing can ever wake.

use super::{Evidence, Level, Rule};

/// A send to or a receive from a nil channel blocks for ever (The Go Programming Language Specification, "Channel types").
pub(super) struct CertainBlock;

fn blocked<'e>(evidence: &Evidence<'e>) -> impl Iterator<Item = (&'e str, u64)> {
    evidence
        .states
        .iter()
        .filter(|(state, count)| state.ends_with("(nil chan)") && *count > 0)
        .map(|(state, count)| (state.as_str(), *count))
}

impl Rule for CertainBlock {
    fn name(&self) -> &'static str {
        "certain-block"
    }

    fn check(&self, evidence: &Evidence<'_>) -> Level {
        // One alone may be meant to wait for ever: dockerd 28 has one from its start. Nobody means a second.
        match blocked(evidence).map(|(_, count)| count).sum() {
            0 => Level::Ok,
            1 => Level::Suspect,
            _ => Level::Leak,
        }
    }

    fn explain(&self, evidence: &Evidence<'_>) -> String {
        let count: u64 = blocked(evidence).map(|(_, count)| count).sum();
        let state = blocked(evidence).next().map_or("", |(state, _)| state);
        format!(
            "{count} of {} {} in {state}: nothing can ever wake them",
            evidence.count,
            if evidence.count == 1 {
                "goroutine is"
            } else {
                "goroutines are"
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::*;

    fn level(states: &[(String, u64)]) -> Level {
        judge(&Evidence {
            things: "goroutines",
            count: 3,
            states,
            samples: &[],
            growth_per_minute: 0.0,
        })
        .level
    }

    #[test]
    fn a_nil_channel_is_certain_at_once() {
        assert_eq!(
            level(&[("chan send (nil chan)".to_owned(), 2)]),
            Level::Leak
        );
        assert_eq!(
            level(&[("chan send (nil chan)".to_owned(), 1)]),
            Level::Suspect
        );
        assert_eq!(level(&[("chan send".to_owned(), 3)]), Level::Ok);
    }
}
