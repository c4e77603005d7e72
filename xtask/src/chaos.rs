//! `cargo xtask chaos`: what can go wrong with a daemon goes wrong, at random, while twenty programs come and go. After each
//! fault every program has to be traced again, and counted as it counts itself.
//!
//! The time of day is stepped only when asked for, since it is everybody's on this machine. A full disk can only meet the log, for
//! the daemon writes nothing else.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::target_dir;

use crate::demo;

mod faults;
mod memory;
mod world;

use faults::Fault;
use world::World;

/// Arguments of `cargo xtask chaos`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long to go on, in seconds; what has begun then is finished
    #[arg(long, default_value_t = 200)]
    seconds: u64,
    /// Number that the faults follow from; another one each time without it
    #[arg(long)]
    seed: Option<u64>,
    /// Also set the time of day ahead by an hour and back, for all of this machine
    #[arg(long)]
    step_clock: bool,
    /// Use this leaktrace instead of building one
    #[arg(long, value_name = "FILE")]
    leaktrace: Option<PathBuf>,
}

/// Runs it, and prints a line for each fault.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here: run it as root");
    let leaktrace = match &arguments.leaktrace {
        Some(path) => path.clone(),
        None => demo::build_leaktrace()?,
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seed = arguments.seed.unwrap_or(now.as_secs());
    println!("seed {seed}: cargo xtask chaos --seed {seed}");
    let log = target_dir().join("chaos.log");
    let _ = fs::remove_file(&log);
    let mut world = World::begin(&leaktrace, seed, &log)?;
    world.settle().context("before any fault")?;

    let begin = Instant::now();
    let end = begin + Duration::from_secs(arguments.seconds);
    // Each kind at least once, in an order that follows from the seed; then any.
    let mut all = Fault::ALL.to_vec();
    if arguments.step_clock {
        all.push(Fault::ClockStepped);
    }
    let mut first = all.clone();
    let mut done = 0;
    while !first.is_empty() || Instant::now() < end {
        let fault = if first.is_empty() {
            all[world.random.below(all.len())]
        } else {
            first.swap_remove(world.random.below(first.len()))
        };
        let at = begin.elapsed().as_secs_f64();
        let said = world
            .strike(fault)
            .with_context(|| format!("{fault:?}, seed {seed}"))?;
        let settled = Instant::now();
        let counted = world
            .settle()
            .with_context(|| format!("after {fault:?}, seed {seed}"))?;
        println!(
            "{at:>6.1} s  {said}; {counted} goroutines of {} programs counted right {:.1} s later",
            world.programs(),
            settled.elapsed().as_secs_f64()
        );
        done += 1;
    }
    world.end()?;
    println!("{done} faults: no program was lost or harmed, and every count is right");
    Ok(())
}
