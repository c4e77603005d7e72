//! `leaktrace daemon`: watch until told to stop, and serve what is known.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::front::Front;
use super::record::level;
use super::service::Service;
use crate::cli::{Daemon, Watching, Whom};
use crate::config::{self, Config};
use crate::export::server::{self, MOST_QUESTIONS, Source};
use crate::fleet::Budget;
use crate::privilege;
use crate::target::Pid;
use crate::target::pod_source::PodSource;
use crate::target::selection::{Patterns, Selection};
use crate::watcher::{Manner, Settings, Watcher};
use crate::web::Server;

/// How often what is shown is renewed.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// How often it is looked whether the files of TLS and passwords have changed.
const LOOK_AT_FILES_EVERY: Duration = Duration::from_secs(2);

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When a process that was named cannot be watched at the start, or the address not be served on.
pub fn run(arguments: &Daemon) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &Daemon) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    let config = read(arguments.config.as_deref())?;
    let (mut front, listener) = Front::open(arguments, &config)?;
    allow_many_files();
    privilege::keep_what_is_needed();

    let settings = wanted(arguments, config);
    let selection = &settings.selection;
    let (named, only_named) = (selection.pids.clone(), selection.only_pids());
    let mut watcher = Watcher::new(settings);
    for pid in named {
        match watcher.require(pid) {
            Err(error) if only_named => return Err(error),
            Err(error) => tracing::warn!("{error:#}"),
            Ok(()) => {}
        }
    }
    watcher.listen();
    watcher.step();

    let (publish, board) = watch::channel(Arc::new(watcher.board()));
    let (questions, mut asked) = mpsc::channel(MOST_QUESTIONS);
    let source = Source { board, questions };
    let address = listener.local_addr().context("the socket has no address")?;
    let server = Server::start(listener, source, front.policy.clone(), || {
        // It opens no file, and talks to clients.
        privilege::give_up_all();
    })?;
    front.say_where(address);
    let mut service = Service::find();
    service.ready();

    let (mut changed, mut published) = (false, Instant::now());
    let mut next = Instant::now();
    let mut look = interval(LOOK_AT_FILES_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => {
                service.reloading();
                let again = read(arguments.config.as_deref())
                    .and_then(|config| Ok((front.change(arguments, &config, &server)?, config)));
                match again {
                    Ok(((), config)) => {
                        watcher.change(wanted(arguments, config));
                        tracing::info!("the configuration was read again");
                    }
                    Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
                }
                service.ready();
            }
            _ = look.tick() => front.look(&server),
            () = sleep_until(next) => {
                changed |= watcher.step();
                next = Instant::now() + watcher.pause();
                if changed && published.elapsed() >= PUBLISH_EVERY {
                    publish.send_replace(Arc::new(watcher.board()));
                    (changed, published) = (false, Instant::now());
                }
                service.turn(&publish.borrow());
            }
            Some(question) = asked.recv() => {
                let server::Ask { pid, reply } = question;
                // A client that has gone wants no answer.
                if !reply.is_closed() {
                    let _ = reply.send(watcher.fresh(pid));
                }
            }
        }
    }
    service.stopping();
    watcher.stop();
    tracing::info!("stopped");
    Ok(())
}

/// The configuration file, or the defaults without one.
pub(super) fn read(path: Option<&Path>) -> anyhow::Result<Config> {
    /// Nobody writes this much by hand.
    const MOST_BYTES: u64 = 1 << 20;
    let Some(path) = path else {
        return Ok(Config::default());
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    config::parse(&text).map_err(|mistake| anyhow!("{}: {mistake}", path.display()))
}

/// Whom the options name, and whom they leave out.
fn patterns(whom: &Whom) -> (Patterns, Patterns) {
    let named = Patterns {
        exe: whom.exe.clone(),
        name: whom.name.clone(),
        unit: whom.unit.clone(),
        container: whom.container.clone(),
        pod: whom.pod.clone(),
        pod_label: whom.pod_label.clone(),
        namespace: whom.namespace.clone(),
    };
    let excluded = Patterns {
        exe: whom.exclude_exe.clone(),
        name: whom.exclude_name.clone(),
        unit: whom.exclude_unit.clone(),
        container: whom.exclude_container.clone(),
        pod: whom.exclude_pod.clone(),
        pod_label: whom.exclude_pod_label.clone(),
        namespace: whom.exclude_namespace.clone(),
    };
    (named, excluded)
}

/// Whom the options choose, without a configuration file.
pub(super) fn selection(whom: &Whom) -> Selection {
    let (include, exclude) = patterns(whom);
    Selection {
        all: whom.all || (whom.pid.is_empty() && include.is_empty()),
        pids: whom.pid.iter().copied().map(Pid).collect(),
        include,
        exclude,
    }
}

/// Options beat the file: whom they name is watched, whatever the file names.
fn wanted(arguments: &Daemon, config: Config) -> Settings {
    let Watching {
        whom,
        interval,
        hearing,
        host_budget,
    } = &arguments.watching;
    let (named, excluded) = patterns(whom);
    let typed = whom.all || !whom.pid.is_empty() || !named.is_empty();
    let manner = Manner {
        level: level(hearing.events.unwrap_or(config.events)),
        interval: interval.unwrap_or(config.interval),
    };
    let special = config.target.iter().map(|one| {
        let own = Manner {
            level: one.events.map_or(manner.level, level),
            interval: one.interval.unwrap_or(manner.interval),
        };
        (one.whom(), own)
    });
    let special = special.collect();
    let include = if typed { named } else { config.watch.into() };
    Settings {
        selection: Selection {
            all: whom.all || (whom.pid.is_empty() && include.is_empty()),
            pids: whom.pid.iter().copied().map(Pid).collect(),
            include,
            exclude: if excluded.is_empty() {
                config.exclude.into()
            } else {
                excluded
            },
        },
        manner,
        special,
        budget: Budget {
            target: hearing.budget.unwrap_or(config.budget).0,
            host: host_budget.unwrap_or(config.host_budget).0,
        },
        pod_logs: arguments.pod_logs.clone().unwrap_or(config.pod_logs),
        pod_list: PodSource {
            url: arguments.pod_list.clone().unwrap_or(config.pod_list.url),
            ..config.pod_list
        },
        confirm: arguments.confirm || config.confirm,
        rules: config.rules,
    }
}

/// Each probe takes two file descriptors, and the usual limit is 1024: takes what may be had.
pub(super) fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!("the limit of open files stays: {error}");
    }
}
