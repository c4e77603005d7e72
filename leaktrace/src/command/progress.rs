//! What leaktrace is doing, for somebody who waits: on standard error, only if that is a terminal, and only once it has
//! taken longer than a second.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes no longer is not worth a line that appears and vanishes.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the line is drawn anew, if nothing else does it.
const TICK: Duration = Duration::from_millis(200);

/// A line that says what is being done. It goes when this is dropped.
pub struct Progress {
    bar: ProgressBar,
    /// Who shows the line after a while, and what tells it by its end that it need not any more.
    shower: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Begins with a step.
    #[must_use]
    pub fn begin(step: impl Into<String>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style("{spinner} {msg} ({elapsed})"));
        bar.set_message(step.into());
        let (over, ended) = mpsc::channel();
        let later = bar.clone();
        let shower = thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // Draws nothing where standard error is no terminal.
                later.set_draw_target(ProgressDrawTarget::stderr());
                later.enable_steady_tick(TICK);
            }
        });
        Self {
            bar,
            shower: Some((over, shower)),
        }
    }

    /// Goes on with the next step.
    pub fn next(&self, step: impl Into<String>) {
        self.bar.set_message(step.into());
    }

    /// Goes on with a step that takes this long.
    pub fn next_for(&self, step: impl Into<String>, time: Duration) {
        self.bar
            .set_style(style("{msg} {wide_bar} {pos} of {len} s"));
        self.bar.set_length(time.as_secs().max(1));
        self.next(step);
    }

    /// So much of that time is over.
    pub fn reached(&self, time: Duration) {
        self.bar.set_position(time.as_secs());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((over, shower)) = self.shower.take() {
            drop(over);
            // It does not panic; if it did, there would only be no line.
            let _ = shower.join();
        }
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are right; if one were not, a line that looks otherwise is no reason to fail.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
