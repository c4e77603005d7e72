//! The pictures of what leaktrace shows in a terminal: `top`, as tmux sees it, and a report.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::repository;

use crate::tools;

/// npm's terminal that draws in a browser, and what drives that.
const PACKAGES: [&str; 2] = ["puppeteer-core@24.43.1", "@xterm/xterm@5.5.0"];

/// Columns of the terminal of `top` and lines of it, and columns of a report, which is as long as it is.
const TOP: (u32, u32) = (120, 24);
const REPORT: u32 = 132;

/// Leaks that `top` has to show first.
const LEAKS: usize = 3;

/// How long `top` may take to show a leak.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes the pictures: `top` on whom these arguments name, a report on one process that leaks.
pub fn take(
    leaktrace: &Path,
    browser: &Path,
    whom: &[&str],
    pid: u32,
    folder: &Path,
) -> Result<()> {
    let modules = tools::npm_modules("terminal", &PACKAGES)?;
    let scratch = tempfile::tempdir()?;
    let mut terminal = Terminal::open(
        &[
            &[leaktrace.to_str().context("a path of ours")?, "top"],
            whom,
        ]
        .concat(),
    )?;
    let list = terminal.wait_for(|screen| screen.matches("LEAK ").count() >= LEAKS)?;
    terminal.press("Enter")?;
    let site =
        terminal.wait_for(|screen| screen.contains("started at") || screen.contains("armed at"))?;
    // Out of the call site, and out of `top`: it must have ended before its terminal does.
    terminal.press("q")?;
    terminal.press("q")?;

    let asked = format!("leaktrace record --pid {pid} --duration 15s");
    let report = Command::new(leaktrace)
        .args(asked.split(' ').skip(1))
        .stdin(Stdio::null())
        .output()
        .context("starting leaktrace")?;
    ensure!(
        report.status.code() == Some(1),
        "the report has no leak: {report:?}"
    );
    let report = format!(
        "\x1b[1m# {asked}\x1b[0m\n{}",
        String::from_utf8_lossy(&report.stdout)
    );
    let mut draw = Command::new("node");
    draw.arg(repository().join("xtask/src/screenshots/terminal.mjs"))
        .args([&modules, browser, folder]);
    for (name, columns, text) in [
        ("top", TOP.0, list),
        ("top-site", TOP.0, site),
        ("report", REPORT, report),
    ] {
        let file = scratch.path().join(name);
        fs::write(&file, text)?;
        draw.arg(format!("{name}={columns}={}", file.display()));
    }
    let status = draw
        .stdin(Stdio::null())
        .status()
        .context("starting node, Debian's package nodejs")?;
    ensure!(status.success(), "the terminal cannot be drawn");
    Ok(())
}

/// A command in a tmux of its own. Dropping it ends both.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn open(command: &[&str]) -> Result<Self> {
        let terminal = Self {
            socket: format!("leaktrace-screenshots-{}", std::process::id()),
        };
        let (columns, lines) = (TOP.0.to_string(), TOP.1.to_string());
        terminal.tmux(
            &[
                &["new-session", "-d", "-x", &columns, "-y", &lines],
                command,
            ]
            .concat(),
        )?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .args(["-f", "/dev/null", "-L", &self.socket])
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .context("starting tmux, Debian's package tmux")?;
        ensure!(output.status.success(), "tmux: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// The screen with its colours, as soon as this holds.
    fn wait_for(&mut self, holds: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.tmux(&["capture-pane", "-p"])?;
            if holds(&screen) {
                return self.tmux(&["capture-pane", "-p", "-e"]);
            }
            if Instant::now() > deadline {
                bail!("after {} s top still shows\n{screen}", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It fails only when its command has ended, and tmux with it.
        let _ = self.tmux(&["kill-server"]);
    }
}
