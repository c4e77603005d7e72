//! How many events a second one core decodes and books: the criterion benchmark of the library.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::{repository, target_dir};
use serde_json::Value;

use super::{Section, Setup};

/// Events of one round: `EVENTS` of leaktrace/benches/ledger.rs.
const EVENTS: f64 = 100_000.0;

/// Measures.
pub fn run(_: &Setup) -> Result<Section> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args([
            "bench",
            "--quiet",
            "--package",
            "leaktrace",
            "--bench",
            "ledger",
        ])
        .current_dir(repository())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the benchmark failed");
    let mut text = String::from(
        "Records decoded and booked by one core, all call sites known, 10,000 goroutines alive (`cargo bench -p leaktrace`);\n\
         that the ring hands them over is not in it. The bar is 5 million.\n\n\
         | events | a second |\n|---|--:|\n",
    );
    for (name, label) in [
        ("goroutines", "goroutines born and ended"),
        ("timers", "timers armed, fired, stopped"),
    ] {
        let path = target_dir().join(format!(
            "criterion/decode and book/{name}/new/estimates.json"
        ));
        let estimates = fs::read_to_string(&path)
            .with_context(|| format!("reading what criterion wrote to {}", path.display()))?;
        let estimates: Value = serde_json::from_str(&estimates)?;
        let ns = estimates["median"]["point_estimate"].as_f64();
        let ns = ns.context("criterion writes a median")?;
        let _ = writeln!(text, "| {label} | {:.1} million |", EVENTS / ns * 1e3);
    }
    Ok(Section {
        markdown: text,
        plots: Vec::new(),
    })
}
