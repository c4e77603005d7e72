//! What a session tells of its target: the report, the evidence of one line, and how well it was heard.

use std::collections::BTreeMap;

use leaktrace_common::event::{Kind, Loss};

use super::Session;
use crate::clock::unix_of;
use crate::export::Report;
use crate::export::explain::Explained;
use crate::export::report::{Events, Facts, LevelChange, LevelChanges, SiteReport, Target};

impl Session {
    /// What was known when the last census ended.
    #[must_use]
    pub fn report(&self) -> Report {
        let blocked = (self.watch.as_ref()).map_or(&[][..], |watch| &watch.blocked);
        Report::new(
            &self.ledger,
            &self.symbols,
            Facts {
                target: Target::new(
                    self.process.id.pid.0,
                    self.process.started_unix,
                    self.process.exe.to_string_lossy().into_owned(),
                    &self.program,
                )
                .at(&self.process.whereabouts)
                .with(self.room),
                program: &self.program,
                wait_reasons: &self.wait_reasons,
                places: &self.places,
                hidden: (self.watch.as_ref())
                    .map(|watch| (&watch.cost.estimates, watch.cost.counted)),
                standings: &self.standings,
                watched_since_ns: self.watched_since_ns.unwrap_or(self.counted_ns),
                blocked,
                events: self.events(),
                now_ns: self.counted_ns,
                now_unix: unix_of(self.counted_ns),
            },
        )
    }

    /// A site of the report with its counts over time and the ages of those alive.
    #[must_use]
    pub fn explain(&self, site: &SiteReport) -> Explained {
        Explained::new(site, &self.ledger, self.counted_ns)
    }

    fn events(&self) -> Events {
        let since_ns = self.watched_since_ns.unwrap_or(self.counted_ns);
        let mut events = Events {
            level: "none",
            seconds: seconds(self.counted_ns.saturating_sub(since_ns)),
            census_seconds: self.census_took.as_secs_f64(),
            ..Events::default()
        };
        let mut lost: BTreeMap<&'static str, u64> = BTreeMap::new();
        if let Some(watch) = &self.watch {
            let cost = &watch.cost;
            events.level = cost.governor.level().name();
            events.budget = cost.governor.share().map(|share| share.0);
            events.overhead_measured = overhead(cost.meter.spent_ns(), self.counted_ns, since_ns);
            events.hit_cost = Some(cost.calibration);
            events.overhead_now = cost.meter.overhead();
            events.cost_seconds = (cost.meter.by_kind())
                .map(|(kind, _, ns)| (kind_name(kind), ns / 1e9))
                .collect();
            let tally = cost.governor.tally();
            events.changes = LevelChanges {
                falls: tally.falls,
                returns: tally.returns,
                samples: tally.samples,
                latest: (cost.changes.iter())
                    .map(|change| LevelChange {
                        seconds: seconds(change.at_ns.saturating_sub(since_ns)),
                        from: change.from.name(),
                        to: change.to.name(),
                        reason: change.reason.clone(),
                    })
                    .collect(),
            };
            events.unheard_seconds = seconds(cost.estimates.unknown_ns(cost.counted));
            for (kind, count) in Kind::ALL.into_iter().zip(watch.hits) {
                if count > 0 {
                    events.hits.insert(kind_name(kind), count);
                }
            }
            for (cause, count) in Loss::ALL.into_iter().zip(watch.lost) {
                lost.insert(loss_name(cause), count);
            }
            lost.insert("undecodable", watch.undecodable);
            events.not_probed = watch
                .not_probed
                .iter()
                .map(|(kind, reason)| (kind_name(*kind), reason.clone()))
                .collect();
        }
        lost.insert("ledger full", self.ledger.turned_away);
        lost.retain(|_, count| *count > 0);
        events.lost = lost.values().sum();
        events.lost_by_cause = lost;
        events
    }
}

/// A kind of event as users see it.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Born => "born",
        Kind::Ended => "ended",
        Kind::Parked => "parked",
        Kind::Readied => "readied",
        Kind::Armed => "armed",
        Kind::Stopped => "stopped",
        Kind::Rearmed => "rearmed",
        Kind::Fired => "fired",
    }
}

fn loss_name(cause: Loss) -> &'static str {
    match cause {
        Loss::RingFull => "ring full",
        Loss::StacksFull => "stacks full",
        Loss::ReadFault => "read fault",
        Loss::UnknownSlot => "unknown slot",
        Loss::WaitsFull => "waits full",
        Loss::OverBudget => "over budget",
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a duration in nanoseconds loses less than a microsecond in a year"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What was lost as a part of one core, over all the time that was watched.
fn overhead(spent_ns: f64, now_ns: u64, since_ns: u64) -> f64 {
    let watched = seconds(now_ns.saturating_sub(since_ns)) * 1e9;
    if watched > 0.0 {
        spent_ns / watched
    } else {
        0.0
    }
}
