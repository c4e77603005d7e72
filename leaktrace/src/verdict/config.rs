//! What the rules are tuned by. Every value has a default that was tried on known leaks and on healthy programs
//! (doc/accuracy.md); times are in seconds.

use serde::{Deserialize, Serialize};

/// All rules, each with its switch and its thresholds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What counts as a rise; all rules that look at growth share it.
    pub rise: RiseConfig,
    /// How a verdict comes and goes.
    pub standing: StandingConfig,
    /// Goroutines that nothing can ever wake.
    pub certain_block: CertainBlockConfig,
    /// A crowd that waits for contexts which nobody can cancel any more.
    pub lost_cancel: LostCancelConfig,
    /// More and more that do not move.
    pub stuck_and_growing: StuckAndGrowingConfig,
    /// More and more that loop and never end, or a crowd that nobody can tell to.
    pub looping: LoopingConfig,
    /// A crowd that has not moved at all.
    pub stalled: StalledConfig,
    /// More and more over a long time.
    pub growing: GrowingConfig,
    /// More and more tickers.
    pub unstopped_ticker: UnstoppedTickerConfig,
    /// More and more timers that are not due for long, or that nobody waits for.
    pub timer_pile_up: TimerPileUpConfig,
    /// Far older than others of its site, or alone and stuck for long.
    pub old_outlier: OldOutlierConfig,
}

/// Defines the settings of one rule, with `enabled` among them.
macro_rules! rule {
    ($(#[$doc:meta])+ $name:ident { $($(#[$field_doc:meta])+ $field:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$doc])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name {
            /// Whether the rule is asked at all.
            pub enabled: bool,
            $($(#[$field_doc])+ pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { enabled: true, $($field: $default,)* }
            }
        }
    };
}

/// What counts as a rise of what is alive, over a span of time cut into five windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RiseConfig {
    /// Least growth of the lowest count of a window, from the first to the last, in things: fewer may be chance.
    pub least: u64,
    /// The same where healthy programs do not rest.
    pub least_strong: u64,
    /// The same as a part of the first window's.
    pub least_part: f64,
    /// Part of the growth by which a window may lie below the one before.
    pub dip: f64,
    /// Part of the growth that may have left meanwhile, of what was there at the beginning.
    pub lost: f64,
}

impl Default for RiseConfig {
    fn default() -> Self {
        Self {
            least: 12,
            least_strong: 8,
            least_part: 0.02,
            dip: 0.1,
            lost: 0.1,
        }
    }
}

/// How a verdict comes and goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StandingConfig {
    /// Counts in a row that must agree before a verdict gets worse, save where memory proves it.
    pub agree: u32,
    /// How long the evidence must be gone before a verdict gets better.
    pub calm_seconds: u64,
    /// What leaked stays: a leak is only taken back when this part of it has gone.
    pub gone: f64,
}

impl Default for StandingConfig {
    fn default() -> Self {
        Self {
            agree: 2,
            calm_seconds: 60,
            gone: 0.5,
        }
    }
}

rule! {
    /// `certain-block`
    CertainBlockConfig {
        /// Goroutines of one line in an empty select from which on it is a leak: a program may park a few on purpose.
        no_cases: u64 = 10,
        /// Goroutines of one line on a nil channel from which on it is a leak even if none came while leaktrace listened: fewer
        /// may be there from the start on purpose, and are suspect.
        nil_channel: u64 = 1000,
        /// How long a program starts: what blocks for ever then may be meant to.
        start_up_seconds: u64 = 5,
        /// Whether all pointers of a program in which a crowd rests are followed, to see who could still wake it.
        follow_pointers: bool = true,
        /// Goroutines of one line that nobody can wake from which on it is a leak; fewer are suspect.
        stranded: u64 = 10,
    }
}

rule! {
    /// `lost-cancel`
    LostCancelConfig {
        /// Goroutines of one line that were born while leaktrace listened from which on it is a leak.
        crowd: u64 = 10,
        /// The same of those that may have been there before, which are suspect: a program may mean a few to stay.
        crowd_before: u64 = 50,
    }
}

rule! {
    /// `stuck-and-growing`
    StuckAndGrowingConfig {
        /// How long the rise must last where healthy programs do not rest: in a send, or waiting for a lock.
        strong_seconds: u64 = 10,
        /// The same for other waits.
        seconds: u64 = 40,
        /// The same for what the workers of a pool do: receive from one shared channel.
        pool_seconds: u64 = 280,
        /// The same for sleeps, which end by themselves.
        sleep_seconds: u64 = 1700,
    }
}

rule! {
    /// `looping`
    LoopingConfig {
        /// How long the rise must last.
        seconds: u64 = 40,
        /// How many that only their timers can wake must have come while leaktrace listened; then no rise is needed.
        crowd: u64 = 50,
        /// How long a program starts: loops, and waits for contexts that nobody has, may be meant to stay since then. The rules
        /// of timers that nobody can stop use it, too.
        start_up_seconds: u64 = 60,
    }
}

rule! {
    /// `stalled`
    StalledConfig {
        /// How long none may have moved.
        seconds: u64 = 30,
        /// How many there must be.
        crowd: u64 = 10,
        /// On how many channels of their own senders must wait for a leak.
        channels: u64 = 5,
        /// How many connections without a deadline must have come while leaktrace listened, later than the program's start
        /// (`looping.start-up-seconds`), and said nothing for that long: suspect if none of that line has ever ended.
        connections: u64 = 50,
    }
}

rule! {
    /// `growing`
    GrowingConfig {
        /// How long the rise must last to be suspect.
        suspect_seconds: u64 = 1700,
        /// How long the rise must last to be a leak.
        leak_seconds: u64 = 10_000,
    }
}

rule! {
    /// `unstopped-ticker`
    UnstoppedTickerConfig {
        /// How long the rise must last.
        seconds: u64 = 40,
        /// How many must have been pending for `stalled.seconds` with nobody who waits for them; then no rise is needed.
        crowd: u64 = 50,
    }
}

rule! {
    /// `timer-pile-up`
    TimerPileUpConfig {
        /// How long the rise must last of timers that nobody waits for.
        abandoned_seconds: u64 = 10,
        /// How long it must last of timers that somebody may wait for, or that call a function.
        seconds: u64 = 40,
        /// The same of timers that call a function while there are as many connections: each may have one.
        connection_seconds: u64 = 1700,
        /// How many that nobody waits for must have been pending for `stalled.seconds`; then no rise is needed.
        crowd: u64 = 50,
        /// Timers that are due later than this will not bound themselves soon. For others the rise must last longer than
        /// the longest of them.
        far_seconds: u64 = 600,
    }
}

rule! {
    /// `old-outlier`
    OldOutlierConfig {
        /// Ends of the same site that must have been heard of, to know what is usual.
        ended: u64 = 20,
        /// How many times the usual lifetime (that of 99 of 100) is an outlier.
        times: u64 = 100,
        /// No younger one is an outlier.
        youngest_seconds: u64 = 300,
        /// One that is stuck in a send or waits for a lock is suspect after this time, even if it is alone.
        alone_seconds: u64 = 600,
        /// One that is stuck in a receive or waits for a group is suspect after this time, if it is alone and was started
        /// while leaktrace watched, and not with the program.
        alone_receive_seconds: u64 = 3600,
        /// What was started in this time after the program itself is taken for a part of it that is to stay.
        start_up_seconds: u64 = 120,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default() {
        let config: Config =
            serde_json::from_str(r#"{"looping": {"enabled": false}, "rise": {"least": 50}}"#)
                .expect("it is well formed");
        assert!(!config.looping.enabled);
        assert_eq!(config.looping.seconds, LoopingConfig::default().seconds);
        assert_eq!(config.rise.least, 50);
        assert_eq!(config.stalled, StalledConfig::default());
    }

    #[test]
    fn what_no_rule_knows_is_refused() {
        assert!(serde_json::from_str::<Config>(r#"{"loping": {}}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"looping": {"second": 1}}"#).is_err());
    }

    #[test]
    fn it_survives_being_written_and_read() {
        let text = serde_json::to_string(&Config::default()).expect("it can be written");
        assert!(text.contains("stuck-and-growing"), "{text}");
        let read: Config = serde_json::from_str(&text).expect("it can be read");
        assert_eq!(read, Config::default());
    }
}
