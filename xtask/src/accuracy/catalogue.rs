//! The programs: what each leaks, from which release on, and how it is told to.

/// One program.
pub struct Program {
    /// Its folder below fixtures/.
    pub name: &'static str,
    /// Row of the catalogue; "" for what must stay silent.
    pub row: &'static str,
    /// What is to be named.
    pub leak: Leak,
    /// Minor releases of Go 1 in which it leaks, or compiles.
    pub minors: (u32, u32),
    /// It runs on one processor, and is not tried with a burst: it never rests.
    pub spins: bool,
}

/// What is to be named.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    /// Nothing.
    None,
    /// The lines that are marked `// LEAK: …`.
    Marked,
    /// The lines of net/http that start the goroutines of a connection; the user's line is not in any stack.
    Connection,
    /// The line is in the creation stack, below iter.Pull.
    Coroutine,
}

/// How fast a program leaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Its own default.
    Usual,
    /// One leak a second.
    OneASecond,
    /// A hundred at once, and then one a second.
    BurstAndMore,
    /// A hundred at once while the program is watched, and then none.
    Burst,
}

impl Load {
    /// What the program is told.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Usual => &[],
            Self::OneASecond => &["-rate", "1"],
            Self::BurstAndMore => &["-rate", "1", "-burst", "100"],
            Self::Burst => &["-hold", "-rate", "0", "-burst", "100"],
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Usual => "as usual",
            Self::OneASecond => "one a second",
            Self::BurstAndMore => "a burst and more",
            Self::Burst => "a burst",
        }
    }
}

impl Program {
    /// Whether nothing is to be found.
    pub fn healthy(&self) -> bool {
        self.leak == Leak::None
    }

    /// Whether it is for this release, such as 1.27.3.
    pub fn builds_with(&self, go: &str) -> bool {
        let minor = go.split('.').nth(1).and_then(|minor| minor.parse().ok());
        minor.is_some_and(|minor: u32| (self.minors.0..=self.minors.1).contains(&minor))
    }
}

const ANY: (u32, u32) = (18, u32::MAX);

/// Timers with a channel that nobody refers to are collected since Go 1.23: before, they leak.
const OLD_TIMERS: (u32, u32) = (18, 22);
const NEW_TIMERS: (u32, u32) = (23, u32::MAX);

/// Package iter.
const ITERATORS: (u32, u32) = (23, u32::MAX);

const fn leak(row: &'static str, name: &'static str) -> Program {
    Program {
        name,
        row,
        leak: Leak::Marked,
        minors: ANY,
        spins: false,
    }
}

const fn healthy(name: &'static str) -> Program {
    Program {
        leak: Leak::None,
        ..leak("", name)
    }
}

/// All of them.
pub const PROGRAMS: &[Program] = &[
    Program {
        minors: OLD_TIMERS,
        ..leak("1", "time-after-loop")
    },
    Program {
        minors: NEW_TIMERS,
        ..healthy("time-after-loop")
    },
    healthy("time-after-loop-healthy"),
    healthy("publisher-after"),
    healthy("publisher-after-healthy"),
    leak("3", "ticker-goroutines"),
    healthy("ticker-goroutines-healthy"),
    leak("4", "ticker-range"),
    healthy("ticker-range-healthy"),
    Program {
        minors: OLD_TIMERS,
        ..leak("5", "ticker-dropped")
    },
    Program {
        minors: NEW_TIMERS,
        ..healthy("ticker-dropped")
    },
    healthy("ticker-dropped-healthy"),
    leak("6", "mutex-held"),
    healthy("mutex-held-healthy"),
    leak("7", "lock-order"),
    healthy("lock-order-healthy"),
    leak("8", "nil-channel"),
    healthy("nil-channel-healthy"),
    leak("9", "senders-receivers"),
    healthy("senders-receivers-healthy"),
    leak("10", "handler-timeout"),
    healthy("handler-timeout-healthy"),
    leak("11", "range-no-close"),
    healthy("range-no-close-healthy"),
    Program {
        leak: Leak::Connection,
        ..leak("12", "body-not-closed")
    },
    healthy("body-not-closed-healthy"),
    healthy("body-read"),
    leak("14", "context-cancel"),
    healthy("context-cancel-healthy"),
    leak("14", "context-timeout"),
    healthy("context-timeout-healthy"),
    leak("15", "wait-group"),
    healthy("wait-group-healthy"),
    leak("16", "afterfunc-session"),
    healthy("afterfunc-session-healthy"),
    Program {
        minors: OLD_TIMERS,
        ..leak("17", "tick-per-request")
    },
    Program {
        minors: NEW_TIMERS,
        ..healthy("tick-per-request")
    },
    healthy("tick-per-request-healthy"),
    leak("18", "select-forever"),
    healthy("select-forever-healthy"),
    Program {
        spins: true,
        ..leak("18", "spin-forever")
    },
    Program {
        spins: true,
        ..healthy("spin-forever-healthy")
    },
    leak("19", "accept-no-deadline"),
    healthy("accept-no-deadline-healthy"),
    leak("20", "fan-out"),
    healthy("fan-out-healthy"),
    Program {
        leak: Leak::Coroutine,
        minors: ITERATORS,
        ..leak("21", "iter-pull")
    },
    Program {
        minors: ITERATORS,
        ..healthy("iter-pull-healthy")
    },
    leak("22", "poll-forever"),
    healthy("poll-forever-healthy"),
    healthy("pool-warm-up"),
    healthy("connections-ramp"),
    healthy("keep-alive"),
    healthy("thousand-tickers"),
    healthy("burst-that-ends"),
    healthy("start-up"),
    healthy("kept-crowd"),
];

#[cfg(test)]
mod tests {
    use leaktrace_fixtures::build::marked_lines;

    use super::*;

    #[test]
    fn leaks_mark_their_lines_and_twins_do_not() {
        for program in PROGRAMS {
            let marked = ["goroutine", "timer"]
                .iter()
                .any(|thing| marked_lines(program.name, &format!("LEAK: {thing}")).is_ok());
            match program.leak {
                Leak::Marked => assert!(marked, "{}", program.name),
                // What leaks in other releases only is marked all the same.
                Leak::None if program.minors != NEW_TIMERS => assert!(!marked, "{}", program.name),
                _ => {}
            }
        }
    }

    #[test]
    fn programs_are_for_their_releases() {
        let of = |name: &str, go: &str| {
            PROGRAMS
                .iter()
                .filter(|program| program.name == name && program.builds_with(go))
                .map(Program::healthy)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("ticker-dropped", "1.22.10"), [false]);
        assert_eq!(of("ticker-dropped", "1.27.3"), [true]);
        assert!(of("iter-pull", "1.22.10").is_empty());
    }
}
