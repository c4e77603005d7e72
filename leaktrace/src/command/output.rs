//! Writing an answer to standard output or a file.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::cli::{Format, Output, ReportFormat, ReportOutput};
use crate::export::{Report, folded, pprof, text};

/// Sites that a table shows; JSON has all.
const ROWS: usize = 40;

/// Writes a report as asked.
pub fn write_report(report: &Report, output: &ReportOutput) -> anyhow::Result<()> {
    let bytes = match output.format {
        ReportFormat::Table => text::render(report, ROWS).into_bytes(),
        ReportFormat::Json => json(report)?,
        ReportFormat::Folded => folded::render(report).into_bytes(),
        ReportFormat::Pprof => {
            if output.output.is_none() && io::stdout().is_terminal() {
                bail!("a profile is no text: write it to a file with -o, or into a pipe");
            }
            pprof::render(report).context("cannot write a profile")?
        }
    };
    put(&bytes, output.output.as_deref())
}

/// Writes `answer` as JSON, or what `table` makes of it.
pub fn write(
    answer: &impl Serialize,
    output: &Output,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let bytes = match output.format {
        Format::Table => table().into_bytes(),
        Format::Json => json(answer)?,
    };
    put(&bytes, output.output.as_deref())
}

fn json(answer: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(answer).context("cannot write JSON")?;
    json.push(b'\n');
    Ok(json)
}

fn put(bytes: &[u8], file: Option<&Path>) -> anyhow::Result<()> {
    match file {
        Some(path) => {
            fs::write(path, bytes).with_context(|| format!("cannot write to {}", path.display()))
        }
        None => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()?;
            Ok(())
        }
    }
}
