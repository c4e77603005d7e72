//! `cargo xtask accuracy`: runs every leak of the catalogue, its healthy twin and the programs that must stay silent, and
//! writes doc/accuracy.md: what was found, at which line, after how long, and what was found that is none.
//!
//! [`catalogue`] is the table of programs; [`trial`] takes one leak from its start to its outcome, several side by side;
//! meanwhile [`silence`] has all healthy programs under one daemon.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use leaktrace_fixtures::repository;

use crate::demo;

mod catalogue;
mod silence;
mod trial;

use catalogue::{Load, Program};
use trial::{Outcome, Trial};

/// Arguments of `cargo xtask accuracy`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long each leak is watched, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(20..=3600))]
    seconds: u64,
    /// How long the healthy programs are watched, in minutes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    healthy_minutes: u64,
    /// Go releases in which all programs are tried
    #[arg(long, num_args = 1.., default_values_t = ["1.22.10".to_owned(), "1.27.3".to_owned()])]
    go: Vec<String>,
    /// Leaks watched side by side
    #[arg(long, default_value_t = 24)]
    side_by_side: usize,
    /// Only programs with this in their name
    #[arg(long, num_args = 1..)]
    only: Vec<String>,
    /// An executable of leaktrace to use; without it one is built, optimised
    #[arg(long, value_name = "FILE")]
    leaktrace: Option<PathBuf>,
    /// Print the table, and leave doc/accuracy.md as it is
    #[arg(long)]
    print: bool,
}

/// Tries everything; an error when a leak at one a second was missed, or anything healthy was called one.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here");
    let leaktrace = match &arguments.leaktrace {
        Some(file) => file.clone(),
        None => demo::build_leaktrace()?,
    };
    let trials = trials(arguments)?;
    ensure!(!trials.is_empty(), "no program has such a name");
    let (healthy, leaks): (Vec<_>, Vec<_>) =
        (trials.iter()).partition(|trial| trial.program.healthy());
    eprintln!(
        "{} healthy programs under one daemon; {} leaks, {} side by side",
        healthy.len(),
        leaks.len(),
        arguments.side_by_side
    );
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let lasts = Duration::from_secs(arguments.healthy_minutes * 60);
    let silent = thread::scope(|scope| {
        let silent = scope.spawn(|| match healthy.as_slice() {
            [] => Ok(Vec::new()),
            healthy => silence::watch(&leaktrace, healthy, lasts),
        });
        for _ in 0..arguments.side_by_side.clamp(1, 64) {
            scope.spawn(|| {
                while let Some(trial) = leaks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = trial.run(&leaktrace);
                    eprintln!("{}: {outcome}", trial.name());
                    let mut all = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push((*trial, outcome));
                }
            });
        }
        silent.join()
    });
    let silent = silent.map_err(|_| anyhow!("the watch of the healthy programs broke off"))??;
    let mut outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    outcomes.extend(silent);
    outcomes.sort_by_key(|(trial, _)| trial.number);
    let text = render(arguments, &outcomes)?;
    if arguments.print {
        println!("{text}");
    } else {
        let path = repository().join("doc/accuracy.md");
        fs::create_dir_all(repository().join("doc"))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    let wrong: Vec<String> = outcomes
        .iter()
        .filter(|(trial, outcome)| match trial.program.healthy() {
            true => !outcome.silent(),
            // A burst alone is no growth: what memory does not tell is suspect.
            false if trial.load == Load::Burst => !outcome.found() && !outcome.only_suspected(),
            false => !outcome.found(),
        })
        .map(|(trial, outcome)| format!("{}: {outcome}", trial.name()))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Every program in every release that it is for, leaks under each load.
fn trials(arguments: &Arguments) -> Result<Vec<Trial>> {
    let wanted = |program: &Program| {
        arguments.only.is_empty()
            || (arguments.only.iter()).any(|part| program.name.contains(part.as_str()))
    };
    let mut trials = Vec::new();
    for program in catalogue::PROGRAMS.iter().filter(|program| wanted(program)) {
        for go in arguments.go.iter().filter(|go| program.builds_with(go)) {
            let loads: &[Load] = if program.healthy() {
                &[Load::Usual]
            } else if program.spins {
                &[Load::OneASecond]
            } else {
                &[Load::OneASecond, Load::BurstAndMore, Load::Burst]
            };
            let seconds = if program.healthy() {
                arguments.healthy_minutes * 60
            } else {
                arguments.seconds
            };
            for load in loads {
                trials.push(Trial::new(trials.len(), program, go, *load, seconds)?);
            }
        }
    }
    Ok(trials)
}

/// What this was run on.
fn machine() -> String {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load
        .split_ascii_whitespace()
        .next()
        .unwrap_or("?")
        .to_owned();
    format!("This run: {cores} cores, load average at its end {load}.")
}

fn render(arguments: &Arguments, outcomes: &[(&Trial, Outcome)]) -> Result<String> {
    let mut text = format!(
        "# Accuracy\n\n\
         Every leak of the catalogue, its healthy twin, and programs that must stay silent, at default settings. `cargo xtask \
         accuracy` runs them and writes this file. Each leak is watched by `leaktrace record` for {} s ({} side by side); \
         meanwhile all healthy programs are watched by one `leaktrace daemon` for {} minutes. The time is that from the \
         first count to the verdict; of several lines, the last. A burst alone comes 5 s after the first count. {}\n\n",
        arguments.seconds,
        arguments.side_by_side,
        arguments.healthy_minutes,
        machine(),
    );
    let leaks: Vec<_> = (outcomes.iter())
        .filter(|(trial, _)| !trial.program.healthy())
        .collect();
    writeln!(text, "## Leaks\n")?;
    writeln!(
        text,
        "| row | program | Go | one a second | a burst of 100, then one a second | a burst of 100 alone |"
    )?;
    writeln!(text, "|--:|---|---|---|---|---|")?;
    let cell = |program: &Program, go: &str, load: Load| {
        (leaks.iter())
            .find(|(trial, _)| {
                trial.program.name == program.name && trial.go == go && trial.load == load
            })
            .map_or_else(|| "–".to_owned(), |(_, outcome)| outcome.to_string())
    };
    for program in catalogue::PROGRAMS.iter().filter(|one| !one.healthy()) {
        for go in arguments.go.iter().filter(|go| program.builds_with(go)) {
            if !leaks
                .iter()
                .any(|(trial, _)| trial.program.name == program.name)
            {
                continue;
            }
            writeln!(
                text,
                "| {} | {} | {go} | {} | {} | {} |",
                program.row,
                program.name,
                cell(program, go, Load::OneASecond),
                cell(program, go, Load::BurstAndMore),
                cell(program, go, Load::Burst)
            )?;
        }
    }
    writeln!(
        text,
        "\nA burst alone comes when the program has run for a minute: what comes before that may belong to its start. It is a \
         leak where healthy programs do not rest (a lock, a send that nobody takes, a nil channel, an empty select), where \
         timers were left behind, and where memory shows that nobody is left who could end it: nothing else in the program \
         refers to what a goroutine waits for, or only what has no use for it does, such as the list of a parent's context, \
         its own timer, or a connection whose body nobody can close any more. What is left has the same memory as a program \
         in good health. Row 22: a loop that waits for nothing but time is suspect, for so do the jobs of a scheduler. Row 19: \
         connections without a deadline of which not one has said a word or gone are suspect, for their peers may just have \
         nothing to say.\n\n## Healthy programs\n"
    )?;
    writeln!(text, "| program | Go | verdicts |\n|---|---|---|")?;
    for (trial, outcome) in outcomes.iter().filter(|(trial, _)| trial.program.healthy()) {
        writeln!(
            text,
            "| {} | {} | {outcome} |",
            trial.program.name, trial.go
        )?;
    }
    let count = |load: Load| {
        let of = leaks.iter().filter(|(trial, _)| trial.load == load);
        let found = of.clone().filter(|(_, outcome)| outcome.found()).count();
        (found, of.count())
    };
    let growing = [Load::OneASecond, Load::BurstAndMore].map(count);
    let (found, all) = growing
        .iter()
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let healthy = outcomes.iter().filter(|(trial, _)| trial.program.healthy());
    let loud = healthy
        .clone()
        .filter(|(_, outcome)| !outcome.silent())
        .count();
    let suspected = (leaks.iter())
        .filter(|(trial, outcome)| trial.load == Load::Burst && outcome.only_suspected())
        .count();
    let wrong: usize = outcomes.iter().map(|(_, outcome)| outcome.wrong).sum();
    let right: usize = outcomes.iter().map(|(_, outcome)| outcome.right).sum();
    writeln!(
        text,
        "\n## Sums\n\n\
         * Recall: {found} of {all} runs that go on leaking were found, at every line that leaks; of bursts alone {} of {}, and \
         {} more are suspect.\n\
         * Precision: {right} of {} leak verdicts were right (the others are named above).\n\
         * {loud} of {} healthy runs had a verdict.",
        count(Load::Burst).0,
        count(Load::Burst).1,
        suspected,
        right + wrong,
        healthy.count()
    )?;
    Ok(text)
}
