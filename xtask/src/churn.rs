//! `cargo xtask churn`: ten million timers armed and stopped under `leaktrace record`. Its memory must not grow, and what is
//! counted afterwards must be right. Takes about a minute.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::target_dir;
use serde_json::Value;

use crate::{demo, go};

/// Arguments of `cargo xtask churn`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Millions of timers
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    millions: u32,
    /// Go release of the program
    #[arg(long, default_value = "1.27.3")]
    go: String,
}

/// Bytes by which leaktrace may grow after the first million.
const MOST_GROWTH: u64 = 8 << 20;

/// Runs it, and prints a line for each million.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here: run it as root");
    let leaktrace = demo::build_leaktrace()?;
    let toolchain = go::install(&arguments.go)?;
    let mut program = Program::start(
        &build::build("timer-million", &toolchain, Variant::DEFAULT)?,
        &[],
    )?;
    let output = target_dir().join("churn.json");
    let _ = fs::remove_file(&output);
    let mut record = Command::new(leaktrace)
        .args(["record", "--pid", &program.pid().to_string()])
        .args(["--budget", "off", "--duration", "1h"])
        .args(["--format", "json", "-o"])
        .arg(&output)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting leaktrace")?;
    // The probes are on, and the first census has been taken.
    std::thread::sleep(Duration::from_secs(2));
    println!("Go {}", arguments.go);
    println!("millions  seconds  memory of leaktrace");
    let mut first = 0;
    let mut last = 0;
    for million in 1..=arguments.millions {
        let begin = Instant::now();
        program.ask("go")?;
        last = resident(record.id())?;
        if million == 1 {
            first = last;
        }
        println!(
            "{million:>8}  {:>7.1}  {:>6.1} MB",
            begin.elapsed().as_secs_f64(),
            megabytes(last)
        );
    }
    let interrupted = Command::new("kill")
        .args(["-INT", &record.id().to_string()])
        .status()
        .context("starting kill")?;
    ensure!(interrupted.success(), "leaktrace has ended before its time");
    record.wait()?;
    let text = fs::read(&output).with_context(|| format!("reading {}", output.display()))?;
    let report: Value = serde_json::from_slice(&text)?;
    judge(&report, arguments.millions)?;
    ensure!(
        last.saturating_sub(first) < MOST_GROWTH,
        "leaktrace grew by {:.1} MB",
        megabytes(last.saturating_sub(first))
    );
    println!("nothing was left behind");
    Ok(())
}

/// One in a thousand stays, all at one line; nothing else does.
fn judge(report: &Value, millions: u32) -> Result<()> {
    let count = |mark: &str| -> Result<(u64, u64)> {
        let line = build::marked_line("timer-million", mark)?;
        let sites = report["sites"].as_array().context("a report has sites")?;
        let site = sites
            .iter()
            .find(|site| site["kind"] == "timer" && site["line"] == line)
            .with_context(|| format!("nothing is known of line {line}"))?;
        let number = |name: &str| site[name].as_u64().unwrap_or(u64::MAX);
        Ok((number("count"), number("created_total")))
    };
    let (kept, churn) = (count("kept")?, count("churn")?);
    println!(
        "{} armed and stopped, {} left; {} kept of {}; drift {}, lost {}, forgotten {}",
        churn.1,
        churn.0,
        kept.0,
        kept.1,
        report["goroutines"]["drift"],
        report["events"]["lost_by_cause"],
        report["timers"]["forgotten"].as_u64().unwrap_or(0),
    );
    ensure!(
        kept.0 == 1000 * u64::from(millions),
        "not as many are pending as were kept"
    );
    ensure!(churn.0 == 0, "stopped timers are still in the books");
    ensure!(report["goroutines"]["drift"] == 0, "the books drift");
    Ok(())
}

fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).context("leaktrace has ended")?;
    let pages: u64 = (text.split(' ').nth(1))
        .context("statm has two numbers")?
        .parse()?;
    Ok(pages * 4096)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
