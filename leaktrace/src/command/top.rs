//! `leaktrace top`: a live table in the terminal.

use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::tty::IsTty;
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::daemon::{allow_many_files, selection};
use super::record::level;
use crate::cli;
use crate::clock::{monotonic_ns, unix_of};
use crate::config::Config;
use crate::fleet::Budget;
use crate::target::Pid;
use crate::top::{Shown, Top, Wish, draw};
use crate::watcher::{Manner, Settings, Watcher};

/// Time between two counts, unless another is asked for: somebody is looking.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often the stacks of an open call site are looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Shows and obeys until `q`, Ctrl-C, SIGTERM or SIGHUP.
///
/// # Errors
/// When there is no terminal, or a process that was named cannot be watched.
pub fn run(arguments: &cli::Top) -> anyhow::Result<ExitCode> {
    ensure!(
        std::io::stdout().is_tty() && std::io::stdin().is_tty(),
        "top needs a terminal: `leaktrace record` writes a report without one"
    );
    let end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&end)).context("cannot catch signals")?;
    }
    allow_many_files();
    let (watching, usual) = (&arguments.watching, Config::default());
    let selection = selection(&watching.whom);
    let (named, only_named) = (selection.pids.clone(), selection.only_pids());
    let mut watcher = Watcher::new(Settings {
        selection,
        manner: Manner {
            level: level(watching.hearing.events.unwrap_or(usual.events)),
            interval: watching.interval.unwrap_or(INTERVAL),
        },
        special: Vec::new(),
        pod_logs: usual.pod_logs,
        pod_list: usual.pod_list,
        confirm: false,
        rules: usual.rules,
        budget: Budget {
            target: watching.hearing.budget.unwrap_or(usual.budget).0,
            host: watching.host_budget.unwrap_or(usual.host_budget).0,
        },
    });
    for pid in named {
        let found = watcher.require(pid);
        if only_named {
            found?;
        }
    }
    watcher.listen();
    let mut terminal = ratatui::try_init().context("cannot take over the terminal")?;
    let ended = drive(&mut terminal, &mut watcher, &end);
    // Whatever happened, the terminal is the user's again before anything is said.
    ratatui::restore();
    watcher.stop();
    ended?;
    Ok(ExitCode::SUCCESS)
}

fn drive(
    terminal: &mut DefaultTerminal,
    watcher: &mut Watcher,
    end: &AtomicBool,
) -> anyhow::Result<()> {
    let mut top = Top::default();
    let mut changed = true;
    let mut looked = Instant::now();
    while !end.load(Ordering::Relaxed) {
        changed |= watcher.step();
        if let Some(pid) = top.open_pid()
            && !top.is_paused()
            && looked.elapsed() >= LOOK_EVERY
        {
            watcher.fresh(Pid(pid));
            (changed, looked) = (true, Instant::now());
        }
        if changed && !top.is_paused() {
            show(&mut top, watcher);
            draw_on(terminal, &top)?;
        }
        changed = false;
        if terminal_is_gone(watcher.pause())? {
            return Ok(());
        }
        if !event::poll(Duration::ZERO).context("cannot read keys")? {
            continue;
        }
        match event::read().context("cannot read keys")? {
            Event::Key(key) if key.kind != KeyEventKind::Release => match top.press(key) {
                Wish::Quit => return Ok(()),
                Wish::Draw => {}
                Wish::Look(pid) => {
                    watcher.fresh(Pid(pid));
                    looked = Instant::now();
                    show(&mut top, watcher);
                }
            },
            Event::Resize(..) => {}
            _ => continue,
        }
        draw_on(terminal, &top)?;
    }
    Ok(())
}

/// Waits for a key, or so long; whether nobody can press one any more. The library that reads keys would try again for
/// ever where a terminal was torn away.
fn terminal_is_gone(wait: Duration) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    let mut keys = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
    match poll(&mut keys, wait) {
        // A signal: whoever waits looks at what it was.
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno).context("cannot wait for keys"),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok((keys.iter()).any(|keys| keys.revents().is_some_and(|found| found.intersects(gone))))
}

fn draw_on(terminal: &mut DefaultTerminal, top: &Top) -> anyhow::Result<()> {
    terminal
        .draw(|frame| draw::draw(top, frame.area(), frame.buffer_mut()))
        .context("cannot write to the terminal")?;
    Ok(())
}

/// Hands over what is known now.
fn show(top: &mut Top, watcher: &Watcher) {
    let board = watcher.board();
    let known = board.rows.iter().filter_map(|row| {
        Some(Shown {
            pid: row.pid,
            label: row.target.clone(),
            report: Arc::clone(row.report.as_ref()?),
        })
    });
    top.targets = known.collect();
    let ended = board.rows.iter().find(|row| row.status == "ended");
    top.notice = match ended {
        Some(row) if top.targets.is_empty() => {
            format!("{} (pid {}) has exited; q quits", row.target, row.pid)
        }
        _ => String::new(),
    };
    top.clock = time_of_day(unix_of(monotonic_ns()));
}

/// Hours, minutes and seconds, in universal time: a report from another machine is compared more easily.
fn time_of_day(unix: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time of day is positive, and its fraction is not shown"
    )]
    let seconds = unix as u64;
    format!(
        "{:02}:{:02}:{:02} UTC",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}
