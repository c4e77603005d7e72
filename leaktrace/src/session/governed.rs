//! The probes of a session under its budget: what they cost is booked, and they go on and off as the governor says.

use leaktrace_common::event::Kind;

use super::{Session, Watch};
use crate::budget::{
    self, Calibration, Change, Estimates, Governor, HitCosts, Meter, Moment, Share, Terms, Totals,
};
use crate::clock::monotonic_ns;
use crate::ledger::Ledger;
use crate::probe::{self, Level, Plan, Point, Probes};
use crate::resolve::Execution;
use crate::target::Process;

/// What a watch knows of its cost.
pub(super) struct Cost {
    pub meter: Meter,
    pub governor: Governor,
    pub estimates: Estimates,
    /// When the last census ended.
    pub counted: Moment,
    /// Changes of level, the latest last; older ones are only counted.
    pub changes: Vec<Change>,
    /// What a hit costs here.
    pub calibration: Calibration,
    /// Which probes are on, the richest that were, and since when those of parks and wake-ups are.
    on: Level,
    most: Level,
    full_since_ns: u64,
    /// What the probes lie on, for when a hit costs something else.
    placed: Vec<(Kind, Execution)>,
    costs: HitCosts,
    /// Events since the counters were last read, and when that was.
    unread: u64,
    read_ns: u64,
    /// Hits that the kernel was told to allow on each CPU, and those since then.
    allowed: u64,
    used: u64,
}

/// Changes of level that a report tells.
const MOST_CHANGES: usize = 16;

/// Counters are read this often, however little happens; and this often when anything does.
const IDLE_NS: u64 = 1_000_000_000;
const BUSY_NS: u64 = 100_000_000;

/// So many events are a reason to read them now.
const MANY: u64 = 1000;

impl Cost {
    pub(super) fn new(
        terms: &Terms,
        level: Level,
        points: &[Point],
        process: &Process,
        now_ns: u64,
    ) -> Self {
        let placed: Vec<_> = points
            .iter()
            .map(|point| (point.kind, point.execution))
            .collect();
        let costs = HitCosts::new(&terms.calibration, placed.iter().copied());
        let now = Moment {
            wall_ns: now_ns,
            own_ns: process.cpu_time_ns().unwrap_or(now_ns),
        };
        let mut estimates = Estimates::new(now);
        estimates.open(now, std::iter::empty());
        Self {
            meter: Meter::new(costs, now_ns),
            counted: now,
            governor: Governor::new(terms.share, budget_level(level), now_ns),
            estimates,
            changes: Vec::new(),
            calibration: terms.calibration,
            on: level,
            most: level,
            full_since_ns: now_ns,
            placed,
            costs,
            unread: 0,
            read_ns: now_ns,
            allowed: u64::MAX,
            used: 0,
        }
    }

    /// This moment on the program's own clock too. Where its clock cannot be read, all time is its own.
    pub(super) fn moment(&self, process: &Process, wall_ns: u64) -> Moment {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "never negative, and the cast saturates"
        )]
        let spent_ns = self.meter.spent_ns() as u64;
        let own_ns = process
            .cpu_time_ns()
            .map_or(wall_ns, |ran| ran.saturating_sub(spent_ns));
        Moment { wall_ns, own_ns }
    }

    /// Another price of a hit.
    pub(super) fn reprice(&mut self, terms: &Terms) {
        self.calibration = terms.calibration;
        self.costs = HitCosts::new(&terms.calibration, self.placed.iter().copied());
        self.meter.reprice(self.costs);
    }

    /// What it would lose were it heard all the time.
    pub(super) fn demand(&self) -> Share {
        if self.governor.level() == budget::Level::Sampled
            || self.governor.level() == budget::Level::None
        {
            self.governor.demand()
        } else {
            Share(self.meter.overhead())
        }
    }

    /// Whether parks and wake-ups were ever heard.
    pub(super) fn was_full(&self) -> bool {
        self.most == Level::Full
    }

    /// Since when parks and wake-ups are heard, if they are.
    pub(super) fn full_since_ns(&self) -> Option<u64> {
        (self.on == Level::Full).then_some(self.full_since_ns)
    }

    /// One more event.
    pub(super) fn hear(&mut self) {
        self.unread += 1;
    }

    fn is_due(&self, now_ns: u64) -> bool {
        let since = now_ns.saturating_sub(self.read_ns);
        !self.governor.is_steady()
            || self.unread >= MANY
            || since >= IDLE_NS
            || self.unread > 0 && since >= BUSY_NS
    }

    /// How many hits the kernel may let through on each CPU until it hears from us again.
    fn hits_to_allow(&self) -> u64 {
        self.governor
            .allowance_ns()
            .map_or(u64::MAX, |ns| self.costs.hits_in(ns))
    }
}

impl Session {
    /// Books what the probes took from the target since the last call, and gives it those that its budget allows.
    /// Does nothing where nothing can have changed.
    pub fn govern(&mut self, probes: &mut Probes, now_ns: u64) {
        let pid = self.process.id.pid;
        let Some(watch) = &mut self.watch else {
            return;
        };
        let Watch { attached, cost, .. } = watch;
        if !cost.is_due(now_ns) {
            return;
        }
        (cost.unread, cost.read_ns) = (0, now_ns);
        let before = cost.meter.hits();
        let spent = cost.meter.read(&probes.hits(attached), now_ns);
        cost.used = cost
            .used
            .saturating_add(cost.meter.hits().saturating_sub(before));
        if let Some(change) = cost.governor.observe(now_ns, spent) {
            tracing::info!(
                pid = pid.0,
                from = change.from.name(),
                to = change.to.name(),
                "events: {}",
                change.reason
            );
            if cost.changes.len() >= MOST_CHANGES {
                cost.changes.remove(0);
            }
            cost.changes.push(change);
        }
        let wanted = cost.governor.probes();
        if wanted != cost.on {
            if let Err(error) = self.switch(probes, wanted) {
                tracing::warn!(pid = pid.0, "the probes cannot be changed: {error:#}");
                if let Some(watch) = &mut self.watch {
                    watch.cost.governor.failed(now_ns);
                }
            }
            return;
        }
        if wanted != Level::None {
            cost.estimates
                .refresh(cost.moment(&self.process, now_ns), heard(&self.ledger));
            let allow = cost.hits_to_allow();
            // A quarter of it on all CPUs together: then none has used up its own.
            if allow != cost.allowed || cost.used > allow / 4 {
                self.allow(probes, allow);
            }
        }
    }

    /// Divides the host's budget anew: from now on this target may lose so much.
    pub fn set_share(&mut self, share: Share) {
        if let Some(watch) = &mut self.watch {
            watch.cost.governor.set_share(share);
        }
    }

    /// What this target would lose were it heard all the time; `None` without probes.
    #[must_use]
    pub fn demand(&self) -> Option<Share> {
        self.watch.as_ref().map(|watch| watch.cost.demand())
    }

    /// Whether [`Session::govern`] is to be called again as soon as may be: what is spent is not limited, or a sample is on.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        (self.watch.as_ref()).is_some_and(|watch| {
            let governor = &watch.cost.governor;
            governor.share().is_none() || governor.is_hurried()
        })
    }

    /// A hit costs something else from now on.
    pub fn reprice(&mut self, terms: &Terms) {
        if let Some(watch) = &mut self.watch {
            watch.cost.reprice(terms);
        }
    }

    /// Tells the kernel how many hits it may let through.
    pub(super) fn allow(&mut self, probes: &mut Probes, hits: u64) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        match probes.allow(&watch.attached, hits) {
            Ok(()) => (watch.cost.allowed, watch.cost.used) = (hits, 0),
            // The next call tries again; until then it runs out.
            Err(error) => tracing::debug!(%error, "hits cannot be allowed"),
        }
    }

    fn switch(&mut self, probes: &mut Probes, wanted: Level) -> anyhow::Result<()> {
        let plan = match wanted {
            Level::None => Plan::default(),
            level => self.plan(probes, level)?,
        };
        let hits = match (wanted, &self.watch) {
            (Level::None, _) | (_, None) => 0,
            (_, Some(watch)) => watch.cost.hits_to_allow(),
        };
        // To none: from now on the programs return at once, and what is heard ends here.
        self.allow(probes, hits);
        let allowed_ns = monotonic_ns();
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        let cost = &mut watch.cost;
        let replanned = probes.replan(&watch.attached, &plan.points, &cost.meter.hottest());
        match replanned {
            // Whoever takes the next census will notice.
            Ok(()) | Err(probe::ProbeError::TargetGone(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let now_ns = monotonic_ns();
        let now = cost.moment(&self.process, now_ns);
        let was = std::mem::replace(&mut cost.on, wanted);
        if wanted == Level::Full {
            cost.full_since_ns = now_ns;
        }
        if wanted == Level::None {
            self.ledger.deafen(allowed_ns);
            let rates = cost.governor.level() == budget::Level::Sampled;
            cost.estimates.close(now, rates, heard(&self.ledger));
        } else {
            cost.governor.attached(now_ns);
            if was == Level::None {
                self.ledger.listen(now_ns);
                cost.estimates.open(now, heard(&self.ledger));
            }
        }
        Ok(())
    }
}

fn budget_level(level: Level) -> budget::Level {
    match level {
        Level::None => budget::Level::None,
        Level::Lifecycle => budget::Level::Lifecycle,
        Level::Full => budget::Level::Full,
    }
}

fn heard(ledger: &Ledger) -> impl Iterator<Item = Totals> {
    ledger.sites.iter().map(|site| {
        [
            site.created,
            site.ended,
            site.stopped,
            site.fired,
            site.rearmed,
        ]
    })
}
