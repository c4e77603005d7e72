//! What the daemon itself takes: processor and memory against the number of idle Go programs that it watches.

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::{Section, Setup, median, plot};
use crate::daemon::{Asked, Daemon};
use crate::go;

/// So many programs.
const TARGETS: [u32; 4] = [1, 10, 50, 200];

/// A reading lasts so long.
const READING: Duration = Duration::from_secs(5);

/// Measures.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let mut text = format!(
        "`leaktrace daemon`, default settings, beside so many idle programs, Go {}; medians of {} readings of {} s. They are\n\
         processes of one file, as replicas of a service are, or of two files in turn.\n\n\
         | targets | files | one core | memory |\n|--:|--:|--:|--:|\n",
        setup.go,
        setup.pairs,
        READING.as_secs()
    );
    let one = build::build("handler-timeout", &toolchain, Variant::DEFAULT)?;
    let other = build::build("handler-timeout-healthy", &toolchain, Variant::DEFAULT)?;
    let mut rows = Vec::new();
    for (count, files) in TARGETS.map(|count| (count, 1)).into_iter().chain([(50, 2)]) {
        eprintln!("{count} programs of {files} files");
        let mut programs = Vec::new();
        for index in 0..count {
            let file = if files == 2 && index % 2 == 1 {
                &other
            } else {
                &one
            };
            programs.push(Program::start(file, &["-rate", "0"])?);
        }
        let daemon = Daemon::start(&setup.leaktrace, &["--name", "handler-timeou*"])?;
        settle(&daemon.asked, count)?;
        let mut shares = Vec::new();
        for _ in 0..setup.pairs {
            let (begin, before) = (Instant::now(), cpu_seconds(daemon.pid())?);
            thread::sleep(READING);
            shares.push((cpu_seconds(daemon.pid())? - before) / begin.elapsed().as_secs_f64());
        }
        let (share, megabytes) = (median(&shares) * 100.0, megabytes(daemon.pid())?);
        let _ = writeln!(
            text,
            "| {count} | {files} | {share:.2} % | {megabytes:.0} MB |"
        );
        if files == 1 {
            rows.push((
                format!("{count} targets"),
                megabytes,
                format!("{megabytes:.0} MB"),
            ));
        }
    }
    text += "\n![daemon](cost-daemon.svg)\n";
    Ok(Section {
        markdown: text,
        plots: vec![(
            "cost-daemon.svg",
            plot::bars("Memory of the daemon (logarithmic)", &rows),
        )],
    })
}

/// Waits until it has so many targets, and a moment longer.
fn settle(daemon: &Asked, targets: u32) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let begin = Instant::now();
    loop {
        let metrics = daemon.page("/metrics")?;
        let up = (metrics.lines())
            .filter(|line| line.starts_with("leaktrace_target_up{") && line.ends_with(" 1"));
        if up.count() >= targets as usize {
            break;
        }
        if begin.elapsed() > PATIENCE {
            bail!("not all of {targets} programs are watched after {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(READING);
    Ok(())
}

pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold spaces; utime and stime are the 12th and 13th after it (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(')').context("a stat line has a name")?;
    let ticks: u64 = (fields.split_ascii_whitespace().skip(11).take(2))
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok(ticks as f64 / 100.0)
}

fn megabytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: f64 = (line.and_then(|line| line.split_ascii_whitespace().next()))
        .and_then(|number| number.parse().ok())
        .context("the kernel tells what is resident")?;
    Ok(kilobytes / 1024.0)
}
