//! What was judged of each site so far. One odd count neither makes a verdict nor takes one back.

use foldhash::{HashMap, HashMapExt};

use super::evidence::{Evidence, Place};
use super::gather::Moment;
use super::reach::{self, Reach};
use super::wait::Wait;
use super::{Config, Level, StandingConfig, judge, stalled};
use crate::ledger::SiteId;

/// What was judged of one site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// How sure.
    pub level: Level,
    /// Name of the rule that decided; "" when ok.
    pub rule: &'static str,
    /// The evidence as a sentence; "" when ok.
    pub sentence: String,
    /// Since when it is judged so: CLOCK_MONOTONIC, nanoseconds; 0 when ok.
    pub since_ns: u64,
    /// Counts in a row that asked for a worse verdict.
    agreed: u32,
    /// Since when the evidence for it is gone.
    calm_since_ns: Option<u64>,
    /// Most that were alive under this verdict.
    peak: u64,
}

/// What was judged of all sites of one target, and what the next count should look at.
#[derive(Clone, Debug, Default)]
pub struct Standings {
    config: Config,
    by_site: HashMap<SiteId, Standing>,
    places: HashMap<SiteId, Place>,
    looked_ns: Option<u64>,
    wants_places: bool,
    reach: Reach,
    wants_reach: bool,
}

/// Least time between two looks at the stacks and channels of a program that may leak, in nanoseconds.
const LOOK_AGAIN_NS: u64 = 60_000_000_000;

/// The same while a site is in question that nobody has looked at.
const LOOK_FIRST_NS: u64 = 10_000_000_000;

impl Standings {
    /// Nothing is judged yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            by_site: HashMap::new(),
            ..Self::default()
        }
    }

    /// Tunes the rules from now on; what was judged stands until it is judged again.
    pub fn judge_by(&mut self, config: Config) {
        self.config = config;
    }

    /// Judges every site at one moment, just after a census.
    pub fn judge(&mut self, moment: &Moment<'_>) {
        if let Some(places) = moment.look() {
            self.places = places;
            self.looked_ns = Some(moment.now_ns);
        }
        if let Some(took) = moment.reached {
            let reached = moment.places.and_then(|places| places.reached.as_ref());
            self.reach.hear(reached, took, moment.now_ns);
        }
        let by_site = &self.by_site;
        let all = moment.evidence(&self.config, &self.places, &self.reach, |site| {
            by_site.get(&site).is_some_and(|one| one.level > Level::Ok)
        });
        let (mut in_question, mut unseen) = (false, false);
        let mut in_doubt = 0_u64;
        for (site, evidence) in all {
            if is_in_question(&evidence, &self.config) {
                in_question = true;
                unseen |= evidence.place.is_none();
            }
            let standing = self.by_site.entry(site).or_default();
            standing.hear(&evidence, &self.config, moment.now_ns);
            in_doubt =
                in_doubt.saturating_add(reach::in_doubt(&evidence, standing.level, &self.config));
        }
        let pause_ns = if unseen { LOOK_FIRST_NS } else { LOOK_AGAIN_NS };
        let rested =
            (self.looked_ns).is_none_or(|looked| moment.now_ns.saturating_sub(looked) >= pause_ns);
        self.wants_places = in_question && rested;
        self.wants_reach = self.reach.wants(in_doubt, &self.config, moment.now_ns);
    }

    /// What was judged of a site; `None` when it was never judged.
    #[must_use]
    pub fn of(&self, site: SiteId) -> Option<&Standing> {
        self.by_site.get(&site)
    }

    /// The sites that leak or may.
    pub fn guilty(&self) -> impl Iterator<Item = SiteId> {
        (self.by_site.iter())
            .filter(|(_, standing)| standing.level > Level::Ok)
            .map(|(site, _)| *site)
    }

    /// Where the goroutines of a site are, when somebody last looked.
    #[must_use]
    pub fn place(&self, site: SiteId) -> Option<&Place> {
        self.places.get(&site)
    }

    /// Whether the next census should look at stacks and channels, because they would decide.
    #[must_use]
    pub fn wants_places(&self) -> bool {
        self.wants_places
    }

    /// Whether the next census should follow pointers, to see who could still be woken.
    #[must_use]
    pub fn wants_reach(&self) -> bool {
        self.wants_reach
    }
}

/// Whether stacks and channels could decide about this site.
fn is_in_question(evidence: &Evidence, config: &Config) -> bool {
    let tells = matches!(
        evidence.wait(),
        None | Some(Wait::Send | Wait::Receive | Wait::Select | Wait::Semaphore)
    ) || stalled::may_have_vanished(evidence, config);
    let still: u64 = evidence.tally.still.iter().sum();
    evidence.is_goroutines()
        && tells
        && (still >= config.stalled.crowd
            || (evidence.spans.iter()).any(|span| span.stuck_rise(&config.rise).is_some()))
}

impl Standing {
    /// Takes the evidence of one moment into account.
    pub(super) fn hear(&mut self, evidence: &Evidence, config: &Config, now_ns: u64) {
        let (rule, opinion) = judge(evidence, config);
        let settings = &config.standing;
        if opinion.level > self.level.max(Level::Ok) {
            self.agreed = self.agreed.saturating_add(1);
            if self.agreed < settings.agree && !opinion.certain {
                return;
            }
            self.since_ns = now_ns;
            self.level = opinion.level;
            (self.rule, self.sentence) = (rule, opinion.sentence);
            self.peak = evidence.count;
            self.calm_since_ns = None;
            self.agreed = 0;
        } else if opinion.level == self.level && self.level > Level::Ok {
            (self.rule, self.sentence) = (rule, opinion.sentence);
            self.peak = self.peak.max(evidence.count);
            self.calm_since_ns = None;
            self.agreed = 0;
        } else if self.level > Level::Ok {
            self.agreed = 0;
            self.calm_down(evidence, opinion.level, settings, now_ns);
        } else {
            self.agreed = 0;
            self.level = opinion.level;
        }
    }

    fn calm_down(
        &mut self,
        evidence: &Evidence,
        to: Level,
        settings: &StandingConfig,
        now_ns: u64,
    ) {
        let calm_since_ns = *self.calm_since_ns.get_or_insert(now_ns);
        let calm_ns = settings.calm_seconds.saturating_mul(1_000_000_000);
        if now_ns.saturating_sub(calm_since_ns) < calm_ns {
            return;
        }
        // Between two loads nothing grows; what leaked is still there.
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of live things fit a double's 53 bits"
        )]
        let (count, peak) = (evidence.count as f64, self.peak as f64);
        if self.level == Level::Leak && count > peak * (1.0 - settings.gone) {
            return;
        }
        *self = Self {
            level: to.min(Level::Ok),
            ..Self::default()
        };
    }
}
