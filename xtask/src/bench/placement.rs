//! What one hit costs by where the probe sits: at a function's entry, at an instruction that the kernel emulates, at a
//! `ret`; and what leaktrace's own program costs there.
//!
//! bpftrace puts a counting probe on each place in turn, in the function that every goroutine runs once when it ends.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use leaktrace_fixtures::build::{self, Variant};
use serde_json::Value;

use super::slow_down::{Tracer, has_bpftrace, measure};
use super::{Section, Setup, plot};
use crate::go;

/// What every goroutine runs at its end, since Go 1.22.
const FUNCTION: &str = "runtime.gdestroy";

/// Seconds of a stretch.
const SECONDS: u32 = 2;

/// Measures.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let symbols = build::build("spawn-storm", &toolchain, Variant::DEFAULT)?;
    let executable = build::build("spawn-storm", &toolchain, Variant::STRIPPED)?;
    let mut text = format!(
        "Added to the end of a goroutine (`{FUNCTION}`, once each), Go {}, medians of {} pairs:\n\n\
         | probe | added by a hit |\n|---|--:|\n",
        setup.go, setup.pairs
    );
    let mut rows = Vec::new();
    if has_bpftrace() {
        for (place, offset) in places(setup, &executable, &symbols)? {
            let Some(offset) = offset else {
                let _ = writeln!(text, "| bpftrace, {place} | not found |");
                continue;
            };
            eprintln!("bpftrace at {place}");
            let script = format!(
                "uprobe:{}:{offset:#x} {{ @ = count(); }}",
                executable.display()
            );
            let costs = measure(&executable, setup.pairs, SECONDS, |_| {
                let mut command = Command::new("bpftrace");
                Tracer::start(
                    command.args(["--unsafe", "-e", &script]),
                    "bpftrace",
                    Some("Attaching"),
                )
            })?;
            let _ = writeln!(
                text,
                "| bpftrace counting, {place} | {:.2} µs |",
                costs.added() / 1e3
            );
            rows.push((
                format!("bpftrace, {place}"),
                costs.added(),
                format!("{:.2} µs", costs.added() / 1e3),
            ));
        }
    } else {
        text += "| bpftrace | not installed |\n";
    }
    eprintln!("leaktrace");
    let costs = measure(&executable, setup.pairs, SECONDS, |pid| {
        let mut command = Command::new(&setup.leaktrace);
        command.args([
            "record",
            "--duration",
            "1h",
            "-o",
            "/dev/null",
            "--events",
            "lifecycle",
            "--budget",
            "off",
        ]);
        let tracer = Tracer::start(command.args(["--pid", &pid.to_string()]), "leaktrace", None)?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        Ok(tracer)
    })?;
    let hit = costs.added() / 2.0;
    let _ = writeln!(
        text,
        "| leaktrace, birth with its stack and end, each | **{:.2} µs** |",
        hit / 1e3
    );
    rows.push((
        "leaktrace, record and stack".to_owned(),
        hit,
        format!("{:.2} µs", hit / 1e3),
    ));
    if let Some(calibrated) = calibrated(setup, &executable)? {
        let _ = writeln!(
            text,
            "\nleaktrace reckons with {:.2} µs a hit (half with a stack, half without): twice what it measures on itself. In\n\
             a program that does other work too it takes so long (below: what the clients of a server notice).",
            calibrated / 1e3
        );
    }
    text += "\n![one hit](cost-placement.svg)\n";
    Ok(Section {
        markdown: text,
        plots: vec![(
            "cost-placement.svg",
            plot::bars("Added by one hit (logarithmic)", &rows),
        )],
    })
}

/// The entry, the instruction that leaktrace probes, and the last `ret`: offsets in the file. bpftrace takes those only
/// of a program without symbols.
fn places(
    setup: &Setup,
    stripped: &Path,
    symbols: &Path,
) -> Result<Vec<(&'static str, Option<u64>)>> {
    let output = Command::new(&setup.leaktrace)
        .args(["inspect", "--format", "json"])
        .arg(stripped)
        .output()
        .context("running leaktrace inspect")?;
    let found: Value = serde_json::from_slice(&output.stdout).context("inspect prints JSON")?;
    let site = find(&found, &|value| value["function"] == FUNCTION)
        .with_context(|| format!("no probe lies in {FUNCTION}"))?;
    let within = site["offset_in_function"].as_u64();
    let offset = (site["file_offset"].as_str())
        .and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let (within, emulated) = within
        .zip(offset)
        .context("inspect tells where a probe lies")?;
    let entry = emulated.saturating_sub(within);
    Ok(vec![
        ("entry (single-stepped)", Some(entry)),
        ("emulated instruction", Some(emulated)),
        (
            "ret (single-stepped)",
            last_return(symbols).map(|offset| entry + offset),
        ),
    ])
}

/// The first object anywhere in a value that fits.
fn find<'v>(value: &'v Value, fits: &dyn Fn(&Value) -> bool) -> Option<&'v Value> {
    if value.is_object() && fits(value) {
        return Some(value);
    }
    match value {
        Value::Array(values) => values.iter().find_map(|value| find(value, fits)),
        Value::Object(fields) => fields.values().find_map(|value| find(value, fits)),
        _ => None,
    }
}

/// By binutils' objdump.
fn last_return(executable: &Path) -> Option<u64> {
    let output = Command::new("objdump")
        .args([
            "-d",
            "--no-show-raw-insn",
            &format!("--disassemble={FUNCTION}"),
        ])
        .arg(executable)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut code = text.lines().filter_map(|line| {
        let (address, instruction) = line.trim().split_once(':')?;
        Some((
            u64::from_str_radix(address, 16).ok()?,
            instruction.trim().to_owned(),
        ))
    });
    let (entry, _) = code.next()?;
    let (last, _) = code.rfind(|(_, instruction)| instruction.starts_with("ret"))?;
    Some(last - entry)
}

/// What leaktrace itself takes a hit to cost, in nanoseconds.
fn calibrated(setup: &Setup, executable: &Path) -> Result<Option<f64>> {
    let program = leaktrace_fixtures::program::Program::start(executable, &[])?;
    let output = Command::new(&setup.leaktrace)
        .args([
            "record",
            "--duration",
            "1s",
            "--format",
            "json",
            "--pid",
            &program.pid().to_string(),
        ])
        .output()
        .context("running leaktrace record")?;
    let found: Value = serde_json::from_slice(&output.stdout).context("record prints JSON")?;
    let cost = &found["events"]["hit_cost"];
    let (hit, stack) = (cost["emulated_ns"].as_f64(), cost["stack_ns"].as_f64());
    Ok(hit.zip(stack).map(|(hit, stack)| hit + stack / 2.0))
}
