//! The census of a session: a look into the target's memory, what the books learn from it, and the program's own word on it.

use std::time::Duration;

use super::Session;
use crate::census::{self, Census, MemoryError, Places};
use crate::clock::{monotonic_ns, worked_ns};
use crate::ledger::SiteKind;
use crate::target::inquiry::Inquiry;
use crate::target::room::Room;
use crate::verdict::Moment;

/// Whether the program itself is asked about its leaks, and when next.
#[derive(Default)]
pub(super) struct Confirmation {
    allowed: bool,
    asked: Option<Inquiry>,
    not_before_ns: u64,
}

/// What one look into the target's memory found: to be booked once every event from before it has been.
pub struct Look {
    pub(super) census: Census,
    places: Option<Places>,
    room: Room,
    limit_read_ns: u64,
    /// What it took this thread to see who could still be woken, when that was wanted.
    reached: Option<Duration>,
    /// What the rest took it.
    worked: Duration,
}

/// How much memory a target may have is looked at this often.
const LIMIT_NS: u64 = 30_000_000_000;

/// How much a census looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What is alive, and in which state.
    Counts,
    /// Also on which line it is stuck, and on which channel: for a report that somebody reads.
    Places,
}

impl Session {
    /// Counts what is really alive. With `Depth::Places` also looks where goroutines are stuck and on what.
    ///
    /// # Errors
    /// When the target is gone or its memory makes no sense.
    pub fn look(&self, depth: Depth) -> anyhow::Result<Look> {
        let began_ns = worked_ns();
        let census = census::take(&self.memory, &self.layout, &monotonic_ns)?;
        let reach = self.standings.wants_reach();
        let counted_ns = worked_ns();
        let places = if depth == Depth::Places || self.standings.wants_places() || reach {
            Some(Places::of(
                &census,
                &self.memory,
                &self.layout,
                &self.wait_reasons,
                &self.symbols,
                reach,
                &monotonic_ns,
            )?)
        } else {
            None
        };
        let placed_ns = worked_ns();
        let pid = self.process.id.pid;
        let (room, limit_read_ns) = match self.limit_read_ns {
            Some(read_ns) if census.finished_ns.saturating_sub(read_ns) < LIMIT_NS => {
                (self.room.now(pid), read_ns)
            }
            _ => (Room::of(pid), census.finished_ns),
        };
        self.still_there()?;
        let reached = reach.then(|| Duration::from_nanos(placed_ns.saturating_sub(counted_ns)));
        let all = Duration::from_nanos(worked_ns().saturating_sub(began_ns));
        Ok(Look {
            census,
            places,
            room,
            limit_read_ns,
            reached,
            worked: all.saturating_sub(reached.unwrap_or_default()),
        })
    }

    /// Corrects the books with what a look found. Every event from before the look ended must have been applied.
    ///
    /// Answers what the census has taken this thread, but for following pointers, which rests by itself.
    pub fn book(&mut self, look: Look) -> Duration {
        let began_ns = worked_ns();
        let looked = look.places.is_some();
        (self.room, self.limit_read_ns) = (look.room, Some(look.limit_read_ns));
        if let Some(places) = look.places {
            self.places = places;
        }
        let (started_ns, finished_ns) = (look.census.started_ns, look.census.finished_ns);
        self.ledger.reconcile(look.census, &self.symbols);
        self.watched_since_ns.get_or_insert(started_ns);
        self.counted_ns = finished_ns;
        self.ledger.sample(finished_ns);
        self.standings.judge(&Moment {
            ledger: &self.ledger,
            symbols: &self.symbols,
            wait_reasons: &self.wait_reasons,
            places: looked.then_some(&self.places),
            reached: look.reached,
            has_pointers: self.layout.heap.is_some(),
            started_ns: self.started_ns,
            watched_since_ns: self.watched_since_ns.unwrap_or(finished_ns),
            now_ns: finished_ns,
        });
        self.inquire(finished_ns);
        self.census_took = look.worked + Duration::from_nanos(worked_ns().saturating_sub(began_ns));
        self.census_took
    }

    /// Allows to ask the program itself about its leaks, where it offers to tell.
    pub fn confirm(&mut self, allowed: bool) {
        self.confirmation.allowed = allowed;
    }

    /// Asks the program itself about a leak that it has not confirmed, now and then. It is the next census that sees what
    /// comes of it.
    fn inquire(&mut self, now_ns: u64) {
        /// Least time between two questions: each makes the program collect its garbage.
        const PAUSE_NS: u64 = 600_000_000_000;
        /// The same when there was no answer.
        const LONG_PAUSE_NS: u64 = 3_600_000_000_000;
        let pid = self.process.id.pid.0;
        let own = &mut self.confirmation;
        if let Some(answer) = own.asked.as_ref().and_then(Inquiry::answer) {
            own.asked = None;
            match answer {
                Ok(address) => {
                    tracing::debug!(pid, %address, "the program was asked about its leaks");
                }
                Err(reason) => {
                    own.not_before_ns = now_ns.saturating_add(LONG_PAUSE_NS);
                    tracing::info!(pid, %reason, "the program cannot be asked about its leaks");
                }
            }
        }
        let go = &self.program.build.go;
        let in_doubt = || {
            (self.standings.guilty()).any(|site| {
                let site = &self.ledger.sites[site];
                site.kind == SiteKind::Goroutine && site.live > 0 && site.leaked == 0
            })
        };
        if own.allowed
            && own.asked.is_none()
            && now_ns >= own.not_before_ns
            && (go.major, go.minor) >= (1, 26)
            && in_doubt()
        {
            own.not_before_ns = now_ns.saturating_add(PAUSE_NS);
            own.asked = Some(Inquiry::begin(self.process.id.pid));
        }
    }

    /// Looks and books, for a target without probes.
    ///
    /// # Errors
    /// As [`Session::look`].
    pub fn census(&mut self, depth: Depth) -> anyhow::Result<()> {
        let look = self.look(depth)?;
        self.book(look);
        Ok(())
    }

    /// The kernel is asked by pid: what it answered is about our process only if that still runs, for another may have got
    /// its number.
    pub(super) fn still_there(&self) -> Result<(), MemoryError> {
        if self.process.is_alive() {
            Ok(())
        } else {
            Err(MemoryError::Exited(self.process.id.pid))
        }
    }
}
