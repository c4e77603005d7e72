//! `leaktrace snapshot`: one census of one process, no probes.

use std::process::ExitCode;

use super::output;
use crate::cli::Snapshot;
use crate::session::{Depth, Session};
use crate::target::Pid;

/// Takes the census and writes it.
///
/// # Errors
/// When the process cannot be read, or the answer not written.
pub fn run(arguments: &Snapshot) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(Pid(arguments.pid))?;
    session.census(Depth::Places)?;
    output::write_report(&session.report(), &arguments.output)?;
    Ok(ExitCode::SUCCESS)
}
