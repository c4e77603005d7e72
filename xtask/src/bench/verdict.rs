//! How long a leaking program is watched until the first verdict is on /metrics.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;

use super::{Section, Setup, median};
use crate::daemon::Daemon;
use crate::go;

/// Measures.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let executable = build::build("handler-timeout", &toolchain, Variant::DEFAULT)?;
    let times = (0..setup.pairs)
        .map(|_| first_verdict(setup, &executable))
        .collect::<Result<Vec<_>>>()?;
    let most = times.iter().copied().fold(0.0, f64::max);
    Ok(Section {
        markdown: format!(
            "From the start of `leaktrace daemon --interval 1s` beside a program that leaks ten goroutines a second, to\n\
             `leaktrace_leak` on /metrics: **{:.1} s** (median of {}; the longest {most:.1} s).\n",
            median(&times),
            times.len()
        ),
        plots: Vec::new(),
    })
}

fn first_verdict(setup: &Setup, executable: &std::path::Path) -> Result<f64> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let program = Program::start(executable, &["-rate", "10"])?;
    let begin = Instant::now();
    let pid = program.pid().to_string();
    let daemon = Daemon::start(&setup.leaktrace, &["--interval", "1s", "--pid", &pid])?;
    while begin.elapsed() < PATIENCE {
        if daemon.asked.page("/metrics")?.contains("leaktrace_leak{") {
            return Ok(begin.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("no verdict within {PATIENCE:?}")
}
