//! The report as folded stacks: one line for each stack, outermost frame first, with how many goroutines are there.
//!
//! The input of flame graph tools.

use std::fmt::Write as _;

use super::Report;
use crate::ledger::CallSite;

/// Renders the goroutines of `report`. Timers have no stack of their own and are left out.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    for site in report.sites.iter().filter(|site| site.timer_kind.is_none()) {
        for stack in &site.blocked_stacks {
            let mut frames: Vec<String> = stack.frames.iter().rev().map(frame).collect();
            if frames.is_empty() {
                // It runs: all that is known is what it was started with.
                frames.push(site.start_function.clone());
            }
            frames.push(format!("[{}]", stack.state));
            // Writing to a String does not fail.
            let _ = writeln!(out, "{} {}", frames.join(";"), stack.count);
        }
    }
    out
}

/// Semicolons and line ends part frames and stacks; a hostile name may hold them.
fn frame(frame: &CallSite) -> String {
    frame.function.replace([';', '\n', '\r'], "_")
}
