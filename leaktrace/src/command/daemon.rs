//! `leaktrace daemon`: watch until told to stop, and serve what is known.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::record::{DRAIN_EVERY, level};
use crate::cli::Daemon;
use crate::export::metrics::target_name;
use crate::export::server::{self, Status};
use crate::fleet::Fleet;
use crate::probe::Scope;
use crate::session::Depth;
use crate::target::{Pid, TargetId};

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When the process cannot be watched at the start, or the address not be served on.
pub fn run(arguments: &Daemon) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

/// Part of one core that counting may take; a census that takes long is taken less often.
const CENSUS_BUDGET: f64 = 0.005;

/// Takes a census, and sets the time of the next so that the budget is kept.
fn timed(
    fleet: &mut Fleet,
    id: TargetId,
    next: &mut Instant,
    interval: Duration,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let result = fleet.census(id, Depth::Counts);
    let took = begin.elapsed();
    *next = begin + interval.max(took.div_f64(CENSUS_BUDGET));
    result.map(drop)
}

async fn serve(arguments: &Daemon) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let listener = server::bind(arguments.listen).await?;
    let address = listener.local_addr().context("the socket has no address")?;
    let mut fleet = Fleet::default();
    let id = fleet.open(Pid(arguments.pid))?;
    fleet.attach(id, level(arguments.events), Scope::Process)?;
    fleet.census(id, Depth::Counts)?;
    let session = fleet.session(id)?;
    tracing::info!(pid = arguments.pid, exe = %session.process.exe.display(), "watching");

    let (publish, status) = watch::channel(Status::Watching(Arc::new(session.report())));
    tokio::spawn(server::serve(listener, status));
    tracing::info!("listening on http://{address}");

    let mut drain = interval(DRAIN_EVERY);
    drain.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut next = Instant::now() + arguments.interval;
    let mut watching = true;
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = sleep_until(next), if watching => match timed(&mut fleet, id, &mut next, arguments.interval) {
                Ok(()) => {
                    publish.send_replace(Status::Watching(Arc::new(fleet.session(id)?.report())));
                }
                Err(error) if fleet.session(id)?.process.is_alive() => {
                    // The last report stays; the next census may succeed.
                    tracing::warn!("no census of process {}: {error:#}", arguments.pid);
                }
                Err(_) => {
                    watching = false;
                    let session = fleet.let_go(id).context("nothing was watched")?;
                    tracing::info!(pid = arguments.pid, "the target has exited");
                    let name = target_name(&session.process.exe.to_string_lossy()).to_owned();
                    publish.send_replace(Status::Gone(name));
                }
            },
            _ = drain.tick(), if watching => {
                fleet.drain();
            }
        }
    }
    fleet.let_go(id);
    tracing::info!("stopped");
    Ok(())
}
