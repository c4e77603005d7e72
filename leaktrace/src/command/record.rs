//! `leaktrace record`: watch for a while, then report.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::output;
use super::progress::Progress;
use crate::cli::{EventsLevel, Hearing, Record};
use crate::config::Config;
use crate::fleet::{Budget, Fleet};
use crate::probe::{Level, Scope};
use crate::session::{Depth, Session};
use crate::target::{Pid, TargetId};
use crate::verdict;

/// Readings that a recording takes of what is alive, within the bounds below.
const READINGS: u32 = 40;

/// Shortest and longest time between two readings.
const PACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Watches, reports, and says by the exit code whether a leak was found.
///
/// # Errors
/// When the process cannot be watched, or the answer not written.
pub fn run(arguments: &Record) -> anyhow::Result<ExitCode> {
    let rules = super::daemon::read(arguments.config.as_deref())?.rules;
    let session = watched(
        Pid(arguments.pid),
        arguments.duration,
        arguments.hearing,
        rules,
        arguments.confirm,
    )?;
    let report = session.report();
    output::write_report(&report, &arguments.output)?;
    Ok(exit_code(report.worst()))
}

/// What a finding means for the exit code.
pub(super) fn exit_code(worst: verdict::Level) -> ExitCode {
    match worst {
        verdict::Level::Leak => ExitCode::from(1),
        verdict::Level::Suspect | verdict::Level::Ok | verdict::Level::NotYet => ExitCode::SUCCESS,
    }
}

/// A process after it was watched for a while, or until Ctrl-C; the probes are off again.
pub(super) fn watched(
    pid: Pid,
    duration: Duration,
    hearing: Hearing,
    rules: verdict::Config,
    confirm: bool,
) -> anyhow::Result<Session> {
    let usual = Config::default();
    let level = level(hearing.events.unwrap_or(usual.events));
    let budget = Budget {
        target: hearing.budget.unwrap_or(usual.budget).0,
        host: None,
    };
    let mut fleet = Fleet::new(level, budget);
    fleet.judge_by(rules);
    fleet.confirm(confirm);
    let progress = Progress::begin(format!("reading the executable of process {pid}"));
    let id = fleet.open(pid)?;
    progress.next("putting the probes on");
    fleet.attach(id, level, Scope::Process)?;
    if let Some(probes) = fleet.session(id)?.probes() {
        tracing::info!(pid = pid.0, probes = probes.len(), "the probes are on");
    }
    progress.next("counting what is alive");
    fleet.census(id, Depth::Counts)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    progress.next_for(format!("watching process {pid}"), duration);
    let ended = runtime.block_on(watch(&mut fleet, id, duration, &progress));
    drop(progress);
    let session = fleet.let_go(id).context("nothing was watched")?;
    match ended? {
        Ended::Over => {}
        Ended::Interrupted => eprintln!("leaktrace: interrupted: this is the report so far"),
        Ended::TargetExited => {
            eprintln!("leaktrace: process {pid} exited: this is the report up to its end");
        }
    }
    Ok(session)
}

/// What the typed level means for the probes.
pub(super) fn level(typed: EventsLevel) -> Level {
    match typed {
        EventsLevel::Auto | EventsLevel::Lifecycle => Level::Lifecycle,
        EventsLevel::Full => Level::Full,
        EventsLevel::None => Level::None,
    }
}

enum Ended {
    Over,
    Interrupted,
    TargetExited,
}

async fn watch(
    fleet: &mut Fleet,
    id: TargetId,
    duration: Duration,
    progress: &Progress,
) -> anyhow::Result<Ended> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let end = Instant::now() + duration;
    let mut next = Instant::now();
    let mut reading = interval((duration / READINGS).clamp(PACE.0, PACE.1));
    reading.set_missed_tick_behavior(MissedTickBehavior::Delay);
    reading.tick().await;
    let ended = loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break Ended::Interrupted,
            _ = terminate.recv() => break Ended::Interrupted,
            () = sleep_until(end) => break Ended::Over,
            _ = reading.tick() => {
                if let Err(error) = fleet.census(id, Depth::Counts) {
                    if fleet.session(id)?.process.is_alive() {
                        return Err(error);
                    }
                    break Ended::TargetExited;
                }
            }
            () = sleep_until(next) => {
                fleet.drain();
                next = Instant::now() + fleet.pause();
                progress.reached(duration.saturating_sub(end.saturating_duration_since(Instant::now())));
            }
        }
    };
    // The last word belongs to the runtime itself.
    if !matches!(ended, Ended::TargetExited) && fleet.census(id, Depth::Places).is_err() {
        return Ok(Ended::TargetExited);
    }
    Ok(ended)
}
