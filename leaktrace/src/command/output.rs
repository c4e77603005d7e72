//! Writing an answer to standard output or a file.

use std::fs;
use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

use crate::cli::{Format, Output};
use crate::export::{Report, text};

/// Sites that a table shows; JSON has all.
const ROWS: usize = 40;

/// Writes a report as asked.
pub fn write_report(report: &Report, output: &Output) -> anyhow::Result<()> {
    write(report, output, || text::render(report, ROWS))
}

/// Writes `answer` as JSON, or what `table` makes of it.
pub fn write(
    answer: &impl Serialize,
    output: &Output,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = match output.format {
        Format::Table => table(),
        Format::Json => {
            let mut json = serde_json::to_string_pretty(answer).context("cannot write JSON")?;
            json.push('\n');
            json
        }
    };
    match &output.output {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("cannot write to {}", path.display()))
        }
        None => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()?;
            Ok(())
        }
    }
}
