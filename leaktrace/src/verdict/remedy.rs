//! How a leak of this shape is usually mended: said only when what is seen proves the shape.

use super::wait::Wait;
use crate::census::TimerKind;

/// What is seen of a finding.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'s> {
    /// What nearly all of its goroutines wait for; `None` for timers, or when they differ.
    pub wait: Option<Wait>,
    /// The kind of its timers; `None` for goroutines.
    pub timer: Option<TimerKind>,
    /// The functions of the stack where most are stuck, innermost first.
    pub blocked_in: &'s [String],
    /// The functions of the stack that made one of them, innermost first.
    pub made_by: &'s [String],
    /// Name of the rule that found it.
    pub rule: &'s str,
    /// On how many channels they wait; 0 when not known.
    pub channels: u64,
    /// How many elements those can hold, as far as it is the same; `None` when it is not known.
    pub capacity: Option<u64>,
}

/// What to do about it, as a sentence.
#[must_use]
pub fn remedy(shape: &Shape<'_>) -> Option<&'static str> {
    let stuck = |name: &str| shape.blocked_in.iter().any(|function| function == name);
    let made = |name: &str| shape.made_by.iter().any(|function| function == name);
    if stuck("net/http.(*persistConn).readLoop") && shape.wait == Some(Wait::Select) {
        return Some(
            "the bodies of HTTP responses are neither closed nor read to their end: `defer response.Body.Close()` after \
             each request, and read what you want to reuse the connection for",
        );
    }
    if stuck("net/http.(*persistConn).writeLoop") && shape.wait == Some(Wait::Select) {
        return Some(
            "these belong to connections of an HTTP client that stay open: close the body of each response, and use one \
             client for all requests",
        );
    }
    if shape.rule == "looping" && shape.timer.is_none() {
        return Some(
            "the loop has no end, or is never told to: give it a context that is cancelled when it is no longer wanted, and \
             return when `<-ctx.Done()` is ready",
        );
    }
    if shape.rule == "lost-cancel" {
        return Some(
            "the cancel function of each context is lost: `ctx, cancel := context.WithCancel(…)`, then `defer cancel()` where \
             the work ends; what is to last as long as the parent needs no context of its own",
        );
    }
    match (shape.timer, shape.wait) {
        (Some(TimerKind::Ticker), _) if made("time.Tick") => Some(
            "a ticker made by time.Tick cannot be stopped: use time.NewTicker and `defer ticker.Stop()`",
        ),
        (Some(TimerKind::Ticker), _) => Some("stop each ticker: `defer ticker.Stop()`"),
        (Some(TimerKind::Timer), _) if made("time.After") => Some(
            "time.After in a loop leaves a timer behind in each turn: make one with time.NewTimer before the loop, Reset it \
             in each turn, and Stop it at the end; or build with Go 1.23 or newer, which collects them",
        ),
        (Some(TimerKind::Timer), _) => Some("stop each timer that is no longer waited for"),
        (Some(TimerKind::Deadline), _) => Some(
            "the context's cancel function is not called: `ctx, cancel := context.WithTimeout(…)`, then `defer cancel()`",
        ),
        (Some(TimerKind::AfterFunc), _) => {
            Some("keep what time.AfterFunc returns, and Stop it when it is no longer wanted")
        }
        (Some(TimerKind::Sleep), _) => None,
        (None, Some(Wait::NilChannel)) => Some("the channel is nil: make it before it is used"),
        (None, Some(Wait::Send)) if shape.capacity == Some(0) && shape.channels > 1 => Some(
            "nobody is left to take the result: give the channel room for it (`make(chan T, 1)`), or select on the send \
             and on the context's Done",
        ),
        (None, Some(Wait::Send)) => Some(
            "nobody receives any more: receive until all senders are done, or let them select on the context's Done",
        ),
        (None, Some(Wait::Receive)) if shape.capacity.is_some() && shape.channels > 1 => Some(
            "nobody sends to these channels or closes them any more: close each where the sending ends, or let the receiver \
             select on the context's Done",
        ),
        (None, Some(Wait::NoCases)) => {
            Some("an empty select never returns: let the goroutine end when its work is done")
        }
        (None, Some(Wait::Mutex)) => Some(
            "a lock is never given back: `defer mutex.Unlock()` beside each Lock, one order for several locks, and no write \
             lock while holding the read lock",
        ),
        (None, Some(Wait::WaitGroup)) => Some(
            "Done is called less often than Add said: `defer group.Done()` first in each goroutine",
        ),
        (None, Some(Wait::Cond)) => Some(
            "nobody signals the Cond: Signal or Broadcast after each change of what is waited for",
        ),
        (None, Some(Wait::Coroutine)) if made("iter.Pull") || made_generic(shape, "iter.Pull") => {
            Some("the iterator is not stopped: `next, stop := iter.Pull(…)`, then `defer stop()`")
        }
        (None, Some(Wait::Network)) if stuck("net.(*conn).Read") => Some(
            "reads have no deadline, so a client that vanishes is waited for for ever: SetReadDeadline before each Read, or \
             the server's ReadTimeout and IdleTimeout",
        ),
        _ => None,
    }
}

/// Whether a function of this name with type arguments made them.
fn made_generic(shape: &Shape<'_>, name: &str) -> bool {
    shape.made_by.iter().any(|function| {
        (function.strip_prefix(name)).is_some_and(|rest| rest.starts_with(['[', '2']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn said(wait: Option<Wait>, timer: Option<TimerKind>, stuck: &[&str], made: &[&str]) -> String {
        remedy(&Shape {
            wait,
            timer,
            blocked_in: &names(stuck),
            made_by: &names(made),
            rule: match stuck {
                ["looping" | "lost-cancel"] => stuck[0],
                _ => "",
            },
            channels: 7,
            capacity: Some(0),
        })
        .unwrap_or_default()
        .to_owned()
    }

    #[test]
    fn each_shape_has_its_sentence() {
        for (wait, timer, stuck, made, words) in [
            (
                Some(Wait::Select),
                None,
                vec!["net/http.(*persistConn).readLoop"],
                vec![],
                "Body.Close()",
            ),
            (
                Some(Wait::Select),
                None,
                vec!["net/http.(*persistConn).writeLoop"],
                vec![],
                "close the body",
            ),
            (
                Some(Wait::Send),
                None,
                vec!["main.f"],
                vec![],
                "make(chan T, 1)",
            ),
            (
                Some(Wait::Mutex),
                None,
                vec!["sync.(*Mutex).Lock"],
                vec![],
                "Unlock()",
            ),
            (
                Some(Wait::Receive),
                None,
                vec!["looping"],
                vec![],
                "ctx.Done()",
            ),
            (
                Some(Wait::Receive),
                None,
                vec!["lost-cancel"],
                vec![],
                "defer cancel()",
            ),
            (
                Some(Wait::Receive),
                None,
                vec!["main.f"],
                vec![],
                "close each",
            ),
            (
                Some(Wait::NoCases),
                None,
                vec!["main.f"],
                vec![],
                "end when",
            ),
            (Some(Wait::WaitGroup), None, vec![], vec![], "group.Done()"),
            (Some(Wait::Cond), None, vec![], vec![], "Broadcast"),
            (Some(Wait::NilChannel), None, vec![], vec![], "make it"),
            (
                Some(Wait::Coroutine),
                None,
                vec![],
                vec!["iter.Pull[...]"],
                "defer stop()",
            ),
            (
                Some(Wait::Network),
                None,
                vec!["net.(*conn).Read"],
                vec![],
                "SetReadDeadline",
            ),
            (
                None,
                Some(TimerKind::Ticker),
                vec![],
                vec!["time.NewTicker"],
                "ticker.Stop()",
            ),
            (
                None,
                Some(TimerKind::Ticker),
                vec![],
                vec!["time.Tick"],
                "cannot be stopped",
            ),
            (
                None,
                Some(TimerKind::Timer),
                vec![],
                vec!["time.After"],
                "Reset it",
            ),
            (
                None,
                Some(TimerKind::Deadline),
                vec![],
                vec![],
                "defer cancel()",
            ),
            (None, Some(TimerKind::AfterFunc), vec![], vec![], "Stop it"),
        ] {
            let said = said(wait, timer, &stuck, &made);
            assert!(said.contains(words), "{wait:?} {timer:?} {stuck:?}: {said}");
        }
    }

    #[test]
    fn what_is_not_proved_is_not_said() {
        assert_eq!(said(Some(Wait::Select), None, &["main.f"], &[]), "");
        assert_eq!(said(Some(Wait::Other), None, &["main.f"], &[]), "");
        assert_eq!(
            said(Some(Wait::Network), None, &["os.(*File).Read"], &[]),
            ""
        );
        assert_eq!(said(None, None, &["main.f"], &[]), "");
    }
}
