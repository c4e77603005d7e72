//! What may tracing cost the traced program? Decides how much is heard so that a budget is kept.
//!
//! [`Meter`] turns hits of probes into the time that they took from the program; a [`Governor`] takes that time and
//! answers which probes shall be on; [`Estimates`] bridge the pauses; [`even_share`] divides what the whole host may
//! lose. All of it is pure: time and costs are arguments. Counts of live things never depend on it, because they come from the census.

mod bucket;
mod cost;
mod estimate;
mod governor;
mod host;

pub use cost::{Calibration, HitCosts, Meter, Spent, median};
pub use estimate::{Estimates, Moment, Totals};
pub use governor::{Change, Governor, Tally};
pub use host::even_share;

/// How much is heard, from nothing to everything. The numbers are those of the metric `leaktrace_events_level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing, or so seldom that no rate can be told: what is alive comes from the census alone.
    #[default]
    None = 0,
    /// Births, ends and timers, but only a part of the time: rates are estimates.
    Sampled = 1,
    /// Births, ends and timers.
    Lifecycle = 2,
    /// Also each park and wake-up.
    Full = 3,
}

impl Level {
    /// What users call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sampled => "sampled",
            Self::Lifecycle => "lifecycle",
            Self::Full => "full",
        }
    }
}

/// What a target is traced under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// What it may lose; `None`: anything.
    pub share: Option<Share>,
    /// What a hit costs here.
    pub calibration: Calibration,
}

/// A part of one core: 0.01 is one per cent.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(pub f64);

impl Share {
    /// What a traced program may lose unless the user says otherwise.
    pub const DEFAULT: Self = Self(0.01);

    /// Nanoseconds of a core that are granted in so many nanoseconds.
    fn of(self, elapsed_ns: u64) -> f64 {
        self.0 * as_f64(elapsed_ns)
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = self.0 * 100.0;
        // Two digits that mean something, and no zeros behind them.
        let digits = if percent >= 10.0 {
            0
        } else if percent >= 1.0 {
            1
        } else {
            3
        };
        let text = format!("{percent:.digits$}");
        let text = if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.')
        } else {
            &text
        };
        write!(f, "{text} % of a core")
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds and hits lose their last bits only beyond 2^53"
)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_shown_as_people_say_them() {
        for (share, text) in [
            (0.01, "1 % of a core"),
            (0.005, "0.5 % of a core"),
            (0.0123, "1.2 % of a core"),
            (0.9312, "93 % of a core"),
            (2.0, "200 % of a core"),
            (0.0, "0 % of a core"),
        ] {
            assert_eq!(Share(share).to_string(), text);
        }
    }
}
