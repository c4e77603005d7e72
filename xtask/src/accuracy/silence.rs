//! All healthy programs side by side under one daemon, as on a host: none may have a verdict at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::program::Program as Running;

use super::trial::{Outcome, Trial};
use crate::daemon::Daemon;

/// What the daemon says is asked so often: a verdict that comes and goes is one, too.
const PACE: Duration = Duration::from_secs(5);

/// Starts them, watches them for so long, and says what each had.
pub fn watch<'t>(
    leaktrace: &Path,
    trials: &[&'t Trial],
    lasts: Duration,
) -> Result<Vec<(&'t Trial, Outcome)>> {
    let mut running: Vec<(&Trial, Running)> = Vec::new();
    for trial in trials {
        running.push((trial, trial.start()?));
    }
    let pids = running.iter().map(|(_, program)| program.pid().to_string());
    let options: Vec<String> = pids.flat_map(|pid| ["--pid".to_owned(), pid]).collect();
    let daemon = Daemon::start(leaktrace, &options)?;
    let begin = Instant::now();
    let mut said: BTreeMap<u64, BTreeSet<(bool, String)>> = BTreeMap::new();
    let mut traced: BTreeSet<u64> = BTreeSet::new();
    let (mut asked, mut answered) = (0_u32, 0_u32);
    while begin.elapsed() < lasts {
        thread::sleep(PACE.min(lasts));
        asked += 1;
        // On a machine at its limits an answer may take longer than is waited for; the next one tells as much.
        let (Ok(leaks), Ok(targets)) = (
            daemon.asked.json("/api/v1/leaks"),
            daemon.asked.json("/api/v1/targets"),
        ) else {
            continue;
        };
        answered += 1;
        for leak in leaks["leaks"].as_array().context("a list of leaks")? {
            let text = |field: &str| leak[field].as_str().unwrap_or_default();
            let words = format!("{} ({}) at {}", text("verdict"), text("rule"), text("site"));
            let pid = leak["pid"].as_u64().context("a leak has a process")?;
            (said.entry(pid).or_default()).insert((text("verdict") == "leak", words));
        }
        traced = (targets["targets"].as_array())
            .context("a list of targets")?
            .iter()
            .filter(|target| target["up"] == true)
            .filter_map(|target| target["pid"].as_u64())
            .collect();
    }
    eprintln!("the daemon answered {answered} of {asked} times");
    ensure!(
        answered * 2 > asked,
        "the daemon answered {answered} of {asked} times only"
    );
    ensure!(!traced.is_empty(), "the daemon watched nothing");
    let outcomes = running.into_iter().map(|(trial, mut program)| {
        let pid = u64::from(program.pid());
        let outcome = if !program.is_alive() {
            Outcome::failed("it ended by itself".to_owned())
        } else if traced.contains(&pid) {
            Outcome::of_healthy(said.remove(&pid).unwrap_or_default())
        } else {
            Outcome::failed("the daemon did not watch it".to_owned())
        };
        (trial, outcome)
    });
    Ok(outcomes.collect())
}
