//! `cargo xtask containers`: Go programs in real containers, traced from the host.
//!
//! containerd with runc and overlayfs, and dockerd, all of Debian, run in a folder of their own; their containers have
//! mount and pid namespaces of their own and no network. Takes about half a minute, and nothing is left behind.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use serde_json::Value;

use crate::daemon::{Daemon, in_state};
use crate::oci::Image;
use crate::{demo, dist, go, tools};
use engine::{Engine, Programs};

pub mod engine;
mod image;
mod pods;

/// Arguments of `cargo xtask containers`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The leaktrace to try; built for release when none is named
    #[arg(long, value_name = "FILE")]
    leaktrace: Option<PathBuf>,
    /// Run the image of `cargo xtask dist` too, as the manifests say
    #[arg(long)]
    image: bool,
    /// Go release of the programs
    #[arg(long, default_value = "1.27.3")]
    go: String,
}

/// How soon who comes and goes has to show.
const SOON: Duration = Duration::from_secs(2);

/// Name of the image with the Go program.
const IMAGE: &str = "localhost/leak:1";

/// What containerd makes a container of that image by.
const OF_IMAGE: [&str; 3] = ["--snapshotter", "overlayfs", IMAGE];

/// Where the program lies in it: nothing else on the machine has that path.
const PROGRAM: &str = "app/leaktrace-leaks";

/// Fetches what a run needs.
pub fn fetch() -> Result<()> {
    Programs::fetch(true).map(|_| ())
}

/// Runs all of it.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "containers need root: run it as root");
    let leaktrace = match &arguments.leaktrace {
        Some(path) => path.clone(),
        None => demo::build_leaktrace()?,
    };
    let toolchain = go::install(&arguments.go)?;
    let program = build::build("handler-timeout", &toolchain, Variant::STRIPPED)?;
    let other = build::build("handler-timeout", &toolchain, Variant::DEFAULT)?;
    let programs = Programs::fetch(true)?;
    let shipped = match arguments.image {
        true => Some(dist::image(dist::Machine::Amd64)?),
        false => None,
    };
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("leak.tar");
    write_image(&fs::read(&program)?, &image)?;
    let devices = Devices::mount(folder.path(), [&program, &other])?;

    let exe = format!("/{PROGRAM}");
    let logs = folder.path().join("log");
    let pod_logs = logs.to_str().context("a path of ours is text")?;
    let watch = ["--interval", "500ms", "--exe", &exe, "--pod-logs", pod_logs];
    let mut daemon = Daemon::start(&leaktrace, &watch)?;
    {
        let place = folder.path().join("containerd");
        fs::create_dir(&place)?;
        let engine = Engine::containerd(&programs, &place)?;
        with_containerd(&engine, &daemon, &image, &devices)?;
        pods::run(&engine, &daemon, &logs)?;
    }
    let place = folder.path().join("docker");
    fs::create_dir(&place)?;
    let engine = Engine::dockerd(&programs, &place)?;
    with_docker(&engine, &daemon, &program, folder.path())?;
    if let Some(archive) = &shipped {
        image::run(&engine, archive)?;
    }
    ensure!(daemon.is_running(), "leaktrace has ended");
    Ok(())
}

/// Several containers of one image, two of two devices, and one that is started again.
fn with_containerd(
    engine: &Engine,
    daemon: &Daemon,
    image: &Path,
    devices: &Devices,
) -> Result<()> {
    engine.ask(&["image".as_ref(), "import".as_ref(), image.as_os_str()])?;
    let mut running = Vec::new();
    for (number, burst) in [(1, "10"), (2, "20"), (3, "30")] {
        // runc keeps one list of them for the whole machine.
        let id = format!("leak-{number}-{}", std::process::id());
        running.push(Container::in_containerd(engine, &OF_IMAGE, &id, burst)?);
    }
    let files: Vec<_> = running.iter().map(|container| container.file).collect();
    ensure!(
        files.iter().all(|file| file.1 == files[0].1),
        "one image, but the inodes {files:?}"
    );
    for (container, burst) in running.iter().zip([10, 20, 30]) {
        container.is_traced(daemon, burst)?;
    }
    println!(
        "containerd: 3 containers of one image, inode {}, are told apart",
        files[0].1
    );

    // Two files of one inode number, on two devices.
    for (place, burst) in devices.places.iter().zip(["15", "25"]) {
        let name = place.file_name().and_then(|name| name.to_str());
        let name = name.context("a folder of ours has a name")?;
        let id = &format!("{name}-{}", std::process::id());
        let root = place.to_str().context("a path of ours is text")?;
        running.push(Container::in_containerd(
            engine,
            &["--rootfs", root],
            id,
            burst,
        )?);
    }
    let files: Vec<_> = running
        .iter()
        .skip(3)
        .map(|container| container.file)
        .collect();
    ensure!(
        files[0].0 != files[1].0 && files[0].1 == files[1].1,
        "not the same inode number on two devices: {files:?}"
    );
    for (container, burst) in running.iter().skip(3).zip([15, 25]) {
        container.is_traced(daemon, burst)?;
    }
    println!(
        "containerd: inode {} on two devices is not confused",
        files[0].1
    );

    // The same container, another process.
    let before = running.remove(0);
    engine.ask(&["task", "kill", "--signal", "SIGKILL", &before.id])?;
    daemon.asked.forgets(before.pid, SOON)?;
    eventually("its task can be deleted", || {
        engine.ask(&["task", "delete", &before.id]).is_ok()
    })?;
    engine.ask(&["task", "start", "--detach", "--null-io", &before.id])?;
    let after = Container::of_containerd(engine, &before.id)?;
    ensure!(after.pid != before.pid, "it is the same process");
    after.is_traced(daemon, 10)?;
    for container in &running {
        container.is_traced(daemon, container.burst(daemon)?)?;
    }
    println!("containerd: a container that was killed and started again is followed");
    running.push(after);
    for container in &running {
        engine.ask(&["task", "kill", "--signal", "SIGKILL", &container.id])?;
        daemon.asked.forgets(container.pid, SOON)?;
    }
    Ok(())
}

/// Two containers of one image, one of them restarted by docker.
fn with_docker(engine: &Engine, daemon: &Daemon, program: &Path, folder: &Path) -> Result<()> {
    let root = folder.join("docker-root");
    fs::create_dir_all(root.join("app"))?;
    fs::copy(program, root.join(PROGRAM))?;
    let archive = folder.join("docker.tar");
    let mut tar = Command::new("tar");
    tools::silently(tar.arg("-cf").arg(&archive).arg("-C").arg(&root).arg("."))?;
    engine.ask(&["import".as_ref(), archive.as_os_str(), "leak:1".as_ref()])?;
    let mut running = Vec::new();
    for burst in ["12", "22"] {
        running.push(Container::in_docker(engine, "0", burst)?);
    }
    for (container, burst) in running.iter().zip([12, 22]) {
        container.is_traced(daemon, burst)?;
    }
    println!("docker: 2 containers of one image are told apart");
    let before = running.remove(0);
    engine.ask(&["restart", "--time", "0", &before.id])?;
    daemon.asked.forgets(before.pid, SOON)?;
    let after = Container::of_docker(engine, &before.id)?;
    after.is_traced(daemon, 12)?;
    running[0].is_traced(daemon, 22)?;
    println!("docker: a restarted container is followed");
    running.push(after);
    for container in &running {
        engine.ask(&["rm", "--force", &container.id])?;
        daemon.asked.forgets(container.pid, SOON)?;
    }
    Ok(())
}

/// A running container with one process.
struct Container {
    id: String,
    pid: i64,
    /// Device and inode of its program.
    file: (u64, u64),
}

impl Container {
    /// Starts one; `what` it runs, and further options of `ctr run`.
    fn in_containerd(engine: &Engine, what: &[&str], id: &str, burst: &str) -> Result<Self> {
        let exe = exe();
        let run = ["run", "--detach", "--null-io"];
        engine.ask(&[&run, what, &[id, &exe, "-rate", "0", "-burst", burst]].concat())?;
        Self::of_containerd(engine, id)
    }

    /// Starts one of the image that docker has.
    fn in_docker(engine: &Engine, rate: &str, burst: &str) -> Result<Self> {
        let exe = exe();
        let id = engine.ask(&[
            "run",
            "--detach",
            "--network",
            "none",
            "leak:1",
            &exe,
            "-rate",
            rate,
            "-burst",
            burst,
        ])?;
        Self::of_docker(engine, &id)
    }

    fn of_containerd(engine: &Engine, id: &str) -> Result<Self> {
        let tasks = engine.ask(&["task", "list"])?;
        let mut lines = tasks.lines().map(|line| line.split_whitespace());
        let mut line = lines
            .find(|line| line.clone().next() == Some(id))
            .with_context(|| format!("{id} does not run: {tasks}"))?;
        let pid = line.nth(1).context("a task has a pid")?;
        Self::new(id, pid)
    }

    fn of_docker(engine: &Engine, id: &str) -> Result<Self> {
        let pid = engine.ask(&["inspect", "--format", "{{.State.Pid}}", id])?;
        Self::new(id, &pid)
    }

    fn new(id: &str, pid: &str) -> Result<Self> {
        let pid = pid.parse().with_context(|| format!("{pid:?} is no pid"))?;
        for namespace in ["mnt", "pid"] {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}"));
            ensure!(
                of(&format!("{pid}"))? != of("self")?,
                "{id} has no {namespace} namespace of its own"
            );
        }
        let file = fs::metadata(format!("/proc/{pid}/exe"))
            .with_context(|| format!("looking at the program of {id}"))?;
        Ok(Self {
            id: id.to_owned(),
            pid,
            file: (file.dev(), file.ino()),
        })
    }

    /// It has to be traced soon, as a container of its own, with as many goroutines stuck as it was told to make.
    fn is_traced(&self, daemon: &Daemon, burst: u64) -> Result<()> {
        let row = daemon.asked.waits_for(self.pid, SOON)?;
        ensure!(row["up"] == true, "it is not up: {row}");
        let mut report = Value::Null;
        eventually("its goroutines are there", || {
            report = daemon.asked.report(self.pid).unwrap_or_default();
            in_state(&report, "chan send") == burst
        })
        .with_context(|| {
            let found = in_state(&report, "chan send");
            format!("{}: {found} goroutines and not {burst}", self.id)
        })?;
        let container = &report["target"]["container_id"];
        ensure!(
            container == self.id.as_str(),
            "{} has the container id {container}",
            self.id
        );
        let metrics = daemon.asked.page("/metrics")?;
        let info = metrics.lines().any(|line| {
            line.starts_with("leaktrace_target_info{")
                && line.contains(&format!("pid=\"{}\"", self.pid))
                && line.contains(&format!("container_id=\"{}\"", self.id))
        });
        ensure!(info, "leaktrace_target_info has no {}", self.id);
        Ok(())
    }

    /// As many as it has.
    fn burst(&self, daemon: &Daemon) -> Result<u64> {
        Ok(in_state(&daemon.asked.report(self.pid)?, "chan send"))
    }
}

/// Two file systems in memory, filled alike: their files have the same inode numbers.
struct Devices {
    places: [PathBuf; 2],
}

impl Devices {
    fn mount(folder: &Path, programs: [&PathBuf; 2]) -> Result<Self> {
        let places = ["device-a", "device-b"].map(|name| folder.join(name));
        let devices = Self { places };
        for (place, program) in devices.places.iter().zip(programs) {
            fs::create_dir(place)?;
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=64m", "none"]);
            tools::silently(mount.arg(place))?;
            for name in ["app", "proc", "dev", "sys", "run", "etc"] {
                fs::create_dir(place.join(name))?;
            }
            fs::copy(program, place.join(PROGRAM))?;
        }
        Ok(devices)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for place in &self.places {
            // It may not have been mounted, and a container that still runs keeps a copy of it for a moment.
            let _ = Command::new("umount").args(["--lazy"]).arg(place).status();
        }
    }
}

fn exe() -> String {
    format!("/{PROGRAM}")
}

/// An image with one Go program.
fn write_image(program: &[u8], path: &Path) -> Result<()> {
    Image {
        name: IMAGE,
        architecture: "amd64",
        files: &[(PROGRAM, program, None)],
        entrypoint: &[&exe()],
        arguments: &[],
        user: "",
    }
    .write(path)
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !condition() {
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "not in 10 s: {what}"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
