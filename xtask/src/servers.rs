//! `cargo xtask servers`: real, unmodified Go servers of many kinds and releases, each started, lightly loaded, and
//! watched by leaktrace, whose numbers are compared with what the server says of itself.
//!
//! [`catalogue`] is the table of servers; [`watch`] takes one from its start to its row, four at a time; the answer is a
//! table with one row a server, and an error when any row is wrong.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::demo;

mod catalogue;
mod docker_daemon;
mod elf_kind;
mod load;
mod own;
mod programs;
mod running;
mod tracer;
mod watch;

use catalogue::Server;
use watch::{Outcome, Row, Watcher};

/// Servers that are watched side by side: as many as two processors carry without keeping each other waiting.
const SIDE_BY_SIDE: usize = 4;
/// The same when most of them rest.
const AT_REST: usize = 14;
/// Kinds of server that have to be right when all are watched.
const FEWEST_KINDS: usize = 12;

/// Arguments of `cargo xtask servers`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long each server is watched
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(8..=3600))]
    seconds: u64,
    /// How long each is then watched at rest; nothing in it may be called a leak
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=600))]
    idle_minutes: u64,
    /// Only servers with this in their name or release ("prometheus", "trixie", "etcd forky")
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,
    /// Only a handful, one of each peculiarity: what `cargo xtask test` runs
    #[arg(long)]
    handful: bool,
    /// An executable of leaktrace to use; without it one is built, optimised
    #[arg(long, value_name = "FILE")]
    leaktrace: Option<PathBuf>,
}

/// Watches the servers that were asked for; an error when one row is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here");
    let servers = chosen(arguments);
    ensure!(!servers.is_empty(), "no server has such a name");
    fetch(&servers)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let leaktrace = match &arguments.leaktrace {
        Some(file) => std::path::absolute(file)?,
        None => demo::build_leaktrace()?,
    };
    let watcher = Watcher {
        leaktrace,
        seconds: arguments.seconds,
        idle: arguments.idle_minutes * 60,
        interrupted,
    };
    let begin = Instant::now();
    let rows = watch_all(&servers, &watcher);
    ensure!(
        !watcher.interrupted.load(Ordering::Relaxed),
        "interrupted; no server is left running"
    );
    print!("{}", table(&rows));
    println!(
        "\n{} servers, each watched for {} s under load and {} minutes at rest, in {:.0} s",
        rows.len(),
        arguments.seconds,
        arguments.idle_minutes,
        begin.elapsed().as_secs_f64()
    );
    let everything = servers.len() == catalogue::ALL.len();
    judge(&rows, everything)
}

/// Fetches the handful that the ordinary test run watches.
pub fn fetch_handful() -> Result<()> {
    fetch(&handful())
}

fn fetch(servers: &[&'static Server]) -> Result<()> {
    servers.iter().try_for_each(|server| running::fetch(server))
}

fn chosen(arguments: &Arguments) -> Vec<&'static Server> {
    let mut servers = match arguments.handful {
        true => handful(),
        false => catalogue::ALL.iter().collect(),
    };
    servers.retain(|server| {
        let name = format!("{} {}", server.program.name, server.release());
        arguments.only.is_empty() || arguments.only.iter().any(|only| name.contains(only))
    });
    servers
}

fn handful() -> Vec<&'static Server> {
    let wanted = |server: &&Server| {
        let named = (server.program.name, server.release());
        catalogue::HANDFUL.contains(&named)
    };
    catalogue::ALL.iter().filter(wanted).collect()
}

/// Watches all, some side by side; the rows are in the order of the servers.
fn watch_all(servers: &[&'static Server], watcher: &Watcher) -> Vec<Row> {
    let waiting = Mutex::new(servers.iter().enumerate());
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let at_once = if watcher.idle > 0 {
            AT_REST
        } else {
            SIDE_BY_SIDE
        };
        for _ in 0..at_once.min(servers.len()) {
            scope.spawn(|| {
                while !watcher.interrupted.load(Ordering::Relaxed) {
                    let next = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .next();
                    let Some((position, server)) = next else {
                        break;
                    };
                    let row = watcher.watch(server);
                    eprintln!("{}", row.line());
                    rows.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((position, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|(position, _)| *position);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// All rows below their headings, columns aligned.
fn table(rows: &[Row]) -> String {
    let mut cells = vec![Row::HEADINGS.map(str::to_owned)];
    cells.extend(rows.iter().map(Row::cells));
    let mut widths = [0; Row::HEADINGS.len()];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::from("\n");
    for row in &cells {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let padding = " ".repeat(width - cell.chars().count() + 2);
            line += &(cell.clone() + &padding);
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Says what is wrong; an error if anything is.
fn judge(rows: &[Row], everything: bool) -> Result<()> {
    let mut kinds: Vec<&str> = rows
        .iter()
        .filter(|row| row.outcome == Outcome::Right)
        .map(|row| row.name)
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    for row in rows {
        for what in &row.remarks {
            println!("{} {}: {what}", row.name, row.release);
        }
        for what in &row.mistakes {
            println!("{} {}: WRONG: {what}", row.name, row.release);
        }
    }
    let wrong = rows
        .iter()
        .filter(|row| row.outcome == Outcome::Wrong)
        .count();
    if wrong > 0 {
        bail!("{wrong} of {} servers went wrong", rows.len());
    }
    if everything && kinds.len() < FEWEST_KINDS {
        bail!("only {} kinds of server could be watched", kinds.len());
    }
    println!("{} kinds of server are right", kinds.len());
    Ok(())
}
