//! `cargo xtask screenshots`: the page in a real browser. A daemon watches real programs that leak; a headless Chromium
//! opens the page, is driven by keys alone, asks axe whether everybody can use it, and takes the pictures of `doc/`; so are the pictures of the terminal.

mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::http::Connection;
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::{repository, target_dir};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::demo;
use crate::{go, tools};

/// Arguments of `cargo xtask screenshots`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder for the pictures
    #[arg(long, default_value = "doc/pictures")]
    folder: PathBuf,
    /// Only the pictures of the terminal
    #[arg(long)]
    terminal: bool,
}

/// A service on the pictures: its name, and the fixture and Go release that it is made of.
const SERVICES: [(&str, &str, &str); 6] = [
    ("checkout", "handler-timeout", "1.27.3"),
    ("feed-reader", "time-after-loop", "1.22.10"),
    ("mailer", "fan-out", "1.26.6"),
    ("price-watch", "mixed-states", "1.25.5"),
    ("catalogue", "handler-timeout-healthy", "1.27.3"),
    ("search", "keep-alive", "1.24.11"),
];

/// Services that the daemon has to find leaking before any picture is taken.
const LEAKING: [&str; 2] = ["checkout", "feed-reader"];

/// How long it may take to find them on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What drives the browser, and what looks for obstacles: npm's packages and their versions.
const PACKAGES: [&str; 2] = ["puppeteer-core@24.43.1", "axe-core@4.14.1"];

/// Takes the pictures; an error when the page has a serious fault.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        demo::is_root()?,
        "probes need root here: run it as root, or `sudo -E env PATH=\"$PATH\" cargo xtask screenshots`"
    );
    let browser = browser()?;
    let leaktrace = build_leaktrace()?;
    let scratch = tempfile::tempdir()?;
    let mut services = Vec::new();
    for (name, fixture, release) in SERVICES {
        let built = build::build(fixture, &go::install(release)?, Variant::DEFAULT)?;
        services.push(start(scratch.path(), name, &fs::read(built)?)?);
    }
    services.push(refused(scratch.path())?);

    let everything = format!("{}/*", scratch.path().display());
    let daemon = Daemon::start(&leaktrace, &["--interval", "1s", "--exe", &everything])?;
    let empty = Daemon::start(
        &leaktrace,
        &["--interval", "1s", "--name", "no-such-program"],
    )?;
    await_leaks(&daemon.asked.address)?;

    let folder = repository().join(&arguments.folder);
    fs::create_dir_all(&folder)?;
    if !arguments.terminal {
        open_page(&browser, [&daemon, &empty], &folder)?;
    }
    eprintln!("drawing the terminal");
    let leaking = services.first().context("there are services")?;
    terminal::take(
        &leaktrace,
        &browser,
        &["--exe", &everything],
        leaking.pid(),
        &folder,
    )?;
    println!("The pictures are in {}.", folder.display());
    Ok(())
}

/// Opens the page of a daemon, and of one that has nothing to show.
fn open_page(browser: &Path, daemons: [&Daemon; 2], folder: &Path) -> Result<()> {
    let modules = tools::npm_modules("browser", &PACKAGES)?;
    eprintln!("opening the page");
    let status = Command::new("node")
        .arg(repository().join("xtask/src/screenshots/drive.mjs"))
        .args([&modules, browser])
        .args(daemons.map(|daemon| format!("http://{}", daemon.asked.address)))
        .arg(folder)
        .stdin(Stdio::null())
        .status()
        .context("starting node, Debian's package nodejs")?;
    ensure!(status.success(), "the page has the faults above");
    println!(
        "The page was opened, used with the keyboard and looked at by axe without a serious finding."
    );
    Ok(())
}

/// Builds leaktrace as the tests have it: how fast it is does not show on a picture.
pub fn build_leaktrace() -> Result<PathBuf> {
    eprintln!("building leaktrace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "leaktrace"])
        .current_dir(repository())
        .stdin(Stdio::null())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "leaktrace does not build");
    Ok(target_dir().join("debug/leaktrace"))
}

/// Starts a fixture under the name of a service.
fn start(scratch: &Path, name: &str, bytes: &[u8]) -> Result<Program> {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch.join(name);
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Program::start(&path, &[])
}

/// A program that says it was built by a release that nobody knows.
fn refused(scratch: &Path) -> Result<Program> {
    let (release, unknown) = (b"go1.27.3", b"go1.97.3");
    let toolchain = go::install("1.27.3")?;
    let mut bytes = fs::read(build::build("keep-alive", &toolchain, Variant::STRIPPED)?)?;
    let mut at = 0;
    while let Some(found) = bytes[at..]
        .windows(release.len())
        .position(|window| window == release)
    {
        bytes[at + found..at + found + release.len()].copy_from_slice(unknown);
        at += found + release.len();
    }
    start(scratch, "from-the-future", &bytes)
}

/// Waits until the leaks are found and there is a curve to draw.
fn await_leaks(address: &str) -> Result<()> {
    eprintln!("waiting for verdicts");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = Connection::open(address)?.get("/api/v1/leaks")?;
        let leaks: Value = serde_json::from_str(&answer.body).context("/api/v1/leaks is JSON")?;
        let found = |name: &&str| {
            leaks["leaks"].as_array().is_some_and(|leaks| {
                (leaks.iter()).any(|leak| leak["target"] == **name && leak["verdict"] == "leak")
            })
        };
        if LEAKING.iter().all(found) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let missing: Vec<&&str> = LEAKING.iter().filter(|name| !found(name)).collect();
            bail!("no verdict on {missing:?} after {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Debian's Chromium without a window.
fn browser() -> Result<PathBuf> {
    let place = Path::new("/usr/bin/chromium-headless-shell");
    if !place.is_file() {
        tools::install(&["chromium-headless-shell", "fonts-liberation"])?;
    }
    Ok(place.to_owned())
}
