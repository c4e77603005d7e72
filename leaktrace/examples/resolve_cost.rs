//! Prints what it costs to resolve each binary named: time, of that on a processor, and how much memory at most
//! beyond what the process had.
//!
//! A process of its own for each, because the peak is counted by the kernel and never falls.

use std::env;
use std::fs::{self, File};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use leaktrace::resolve;

/// Set for the process that resolves one binary.
const ONE: &str = "LEAKTRACE_RESOLVE_ONE";

fn main() -> anyhow::Result<()> {
    for path in env::args().skip(1) {
        if env::var_os(ONE).is_some() {
            measure(&path)?;
            continue;
        }
        let this = env::current_exe().context("the path of this program is not known")?;
        let status = Command::new(this).arg(&path).env(ONE, "1").status()?;
        ensure!(status.success(), "cannot measure {path}");
    }
    Ok(())
}

fn measure(path: &str) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("opening {path}"))?;
    let megabytes = file.metadata()?.len() >> 20;
    let (before, cpu_before, begin) = (peak_kilobytes()?, cpu_ms()?, Instant::now());
    let program = resolve::resolve_running(&file).with_context(|| format!("resolving {path}"))?;
    let (took, cpu) = (begin.elapsed().as_millis(), cpu_ms()? - cpu_before);
    let held = kilobytes("VmRSS:")?.saturating_sub(before) >> 10;
    let peak = peak_kilobytes()?.saturating_sub(before) >> 10;
    println!(
        "{took:>5} ms, {cpu:>4} ms of CPU  {peak:>4} MB at most, {held:>4} MB held  {megabytes:>4} MB, {} functions, {}, {path}",
        program.functions.len(),
        program.build.go
    );
    Ok(())
}

/// How long this process has run on a processor (Documentation/scheduler/sched-stats.rst).
fn cpu_ms() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().context("the kernel tells")?;
    Ok(nanoseconds.parse::<u64>()? / 1_000_000)
}

/// The most memory that this process had.
fn peak_kilobytes() -> anyhow::Result<u64> {
    kilobytes("VmHWM:")
}

fn kilobytes(field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.context("the kernel tells")?.parse()?)
}
