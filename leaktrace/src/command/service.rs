//! What the service manager hears of the daemon: that it is ready, that it still turns, what it is doing.
//!
//! Without `NOTIFY_SOCKET` nobody listens, and nothing is said (sd_notify(3)).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

use crate::watcher::board::Board;

/// How often the status line is drawn up anew.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// The service manager, if one started the daemon.
pub struct Service {
    /// Half of the time after which the manager takes a silent daemon for stuck.
    pulse: Option<Duration>,
    next_pulse: Instant,
    next_status: Instant,
    status: String,
}

impl Service {
    /// As the environment tells.
    #[must_use]
    pub fn find() -> Self {
        let now = Instant::now();
        Self {
            pulse: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            next_pulse: now,
            next_status: now,
            status: String::new(),
        }
    }

    /// From now on it serves.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// To be called in each turn of the daemon's loop: the watchdog is about that loop.
    pub fn turn(&mut self, board: &Board) {
        let now = Instant::now();
        if let Some(pulse) = self.pulse
            && now >= self.next_pulse
        {
            tell(&[NotifyState::Watchdog]);
            self.next_pulse = now + pulse;
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_EVERY;
            let status = summary(board);
            if status != self.status {
                tell(&[NotifyState::Status(&status)]);
                self.status = status;
            }
        }
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "the service manager is not told of a reload"),
        }
    }

    /// It ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // A manager that is gone is no reason to stop.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// The line that `systemctl status` shows.
fn summary(board: &Board) -> String {
    use crate::verdict::Level;
    let (mut traced, mut goroutines, mut leaks) = (0_u32, 0_u64, 0_usize);
    for row in board.rows.iter().filter(|row| row.status == "traced") {
        traced = traced.saturating_add(1);
        if let Some(report) = &row.report {
            goroutines = goroutines.saturating_add(report.goroutines.total);
            let judged = report.sites.iter().map(|site| site.verdict);
            leaks += judged.filter(|level| *level == Level::Leak).count();
        }
    }
    format!("watching {traced} programs with {goroutines} goroutines; {leaks} lines leak")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_nothing_is_a_sentence() {
        assert_eq!(
            summary(&Board::default()),
            "watching 0 programs with 0 goroutines; 0 lines leak"
        );
    }
}
