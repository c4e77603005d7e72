//! `leaktrace explain`: watch for a while, then show one verdict with all its evidence.

use std::process::ExitCode;

use anyhow::ensure;

use super::output;
use super::record::{exit_code, watched};
use crate::cli::Explain;
use crate::export::explain::{self, Explanation};
use crate::export::report::SiteReport;
use crate::target::Pid;
use crate::verdict;
use crate::verdict::Level;

/// Watches, answers, and says by the exit code whether what was asked for is a leak.
///
/// # Errors
/// When the process cannot be watched, no call site has such a name, or the answer cannot be written.
pub fn run(arguments: &Explain) -> anyhow::Result<ExitCode> {
    let session = watched(
        Pid(arguments.pid),
        arguments.duration,
        arguments.hearing,
        verdict::Config::default(),
        false,
    )?;
    let report = session.report();
    let chosen: Vec<&SiteReport> = match &arguments.site {
        Some(name) => (report.sites.iter())
            .filter(|site| is_called(site, name))
            .collect(),
        None => (report.sites.iter())
            .filter(|site| site.verdict > Level::Ok)
            .collect(),
    };
    if let Some(name) = &arguments.site {
        ensure!(
            !chosen.is_empty(),
            "no goroutine or timer was made at {name:?}; `leaktrace snapshot --pid {}` lists the call sites",
            arguments.pid
        );
    }
    let sites = chosen
        .into_iter()
        .map(|site| session.explain(site))
        .collect();
    let explanation = Explanation::new(report.target.clone(), report.events.clone(), sites);
    output::write(&explanation, &arguments.output, || {
        explain::render(&explanation)
    })?;
    Ok(exit_code(explanation.worst()))
}

/// Whether a part of the site's label or of its full place is what was typed: `main.go:4` does not mean line 42.
fn is_called(site: &SiteReport, name: &str) -> bool {
    let ends_well = |text: &str| {
        text.match_indices(name).any(|(at, found)| {
            let next = text
                .get(at + found.len()..)
                .and_then(|rest| rest.chars().next());
            let in_number = name.ends_with(|last: char| last.is_ascii_digit())
                && next.is_some_and(|next| next.is_ascii_digit());
            !in_number
        })
    };
    !name.is_empty()
        && (ends_well(&site.site)
            || ends_well(&format!("{}:{}", site.file, site.line))
            || ends_well(&site.function))
}
