//! One server, started on the loopback in a folder of its own, and ended when dropped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::http::Connection;

use super::catalogue::{Need, Origin, Program, Ready, Server};
use super::docker_daemon::DockerDaemon;
use super::programs::CONTAINERD;
use crate::tools;

/// How long a server may take until it serves: dockerd waits for its own parts.
const PATIENCE: Duration = Duration::from_secs(60);
/// dockerd only asks runc for its version, and newer ones want a newer C library than this machine may have.
const RUNC_SUITE: &str = "bookworm";
/// How long it may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(10);

/// Fetches all that a server needs.
pub fn fetch(server: &Server) -> Result<()> {
    unpacked(server)?;
    if let (true, Origin::Debian(suite, _)) = (
        server.program.needs.contains(&Need::Containerd),
        server.origin,
    ) {
        tools::debian(suite, "containerd")?;
        tools::debian(RUNC_SUITE, "runc")?;
    }
    Ok(())
}

/// A running server.
pub struct Running {
    /// The executable that is traced.
    pub executable: PathBuf,
    names: Names,
    ready: Ready,
    child: Child,
    /// Bytes that it had printed when it was last asked.
    printed: u64,
    // Ended after the server itself, in this order.
    _containerd: Option<Box<Running>>,
    _daemon: Option<DockerDaemon>,
    _folder: Option<tempfile::TempDir>,
}

impl Running {
    /// Fetches a server if need be, starts it, and waits until it serves.
    pub fn start(server: &Server) -> Result<Self> {
        let root = unpacked(server)?;
        let executable = executable(server)?;
        let folder = tempfile::tempdir().context("making a folder for a server")?;
        let needs = server.program.needs;
        let containerd = match (needs.contains(&Need::Containerd), server.origin) {
            (true, Origin::Debian(suite, _)) => {
                let root = tools::debian(suite, "containerd")?;
                let executable = root.join("usr/bin/containerd");
                let names = Names::new(&root, &executable, folder.path())?;
                Some(Box::new(Self::spawn(&CONTAINERD, executable, names)?))
            }
            _ => None,
        };
        let names = Names::new(&root, &executable, folder.path())?;
        let daemon = match needs.contains(&Need::DockerDaemon) {
            true => Some(DockerDaemon::start(&names.fill("127.0.0.1:{port1}"))?),
            false => None,
        };
        let mut running = Self::spawn(server.program, executable, names)?;
        running._containerd = containerd;
        running._daemon = daemon;
        running._folder = Some(folder);
        Ok(running)
    }

    fn spawn(program: &Program, executable: PathBuf, names: Names) -> Result<Self> {
        for (path, text) in program.files {
            let path = names.folder.join(path);
            let parent = path.parent().context("a file lies in a folder")?;
            fs::create_dir_all(parent)?;
            fs::write(&path, names.fill(text))?;
        }
        let mut command = command(program, &executable, &names)?;
        let name = program.name;
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        // From here on dropping ends it.
        let mut running = Self {
            executable,
            names,
            ready: program.ready,
            child,
            printed: 0,
            _containerd: None,
            _daemon: None,
            _folder: None,
        };
        let deadline = Instant::now() + PATIENCE;
        while !running.serves() {
            if !running.is_alive() {
                bail!("{name} ended: {}", running.last_words());
            }
            ensure!(
                Instant::now() < deadline,
                "{name} does not serve: {}",
                running.last_words()
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(running)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it answers, or has printed since it was last asked.
    pub fn serves(&mut self) -> bool {
        match self.ready {
            Ready::Http(address, path) => {
                let answer = self.connect(address).and_then(|mut c| c.get(path));
                answer.is_ok_and(|answer| (200..300).contains(&answer.status))
            }
            Ready::Output => {
                let before = self.printed;
                let output = fs::metadata(self.names.folder.join("stdout"));
                self.printed = output.map_or(before, |file| file.len());
                self.printed > before
            }
        }
    }

    /// A connection to one of its addresses.
    pub fn connect(&self, address: &str) -> Result<Connection> {
        let address = self.fill(address);
        Connection::open(&address).with_context(|| format!("connecting to {address}"))
    }

    /// A text of the catalogue with this server's names in it.
    pub fn fill(&self, text: &str) -> String {
        self.names.fill(text)
    }

    /// The last line that it logged.
    fn last_words(&self) -> String {
        let log = fs::read(self.names.folder.join("stderr")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let line = log.lines().rfind(|line| !line.trim().is_empty());
        line.unwrap_or("it logged nothing").to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked first, because some have children or mounts to take along. The pid is ours until it is waited for.
        let asked = Command::new("kill")
            .arg(self.child.id().to_string())
            .stderr(Stdio::null())
            .status();
        let deadline = Instant::now() + FAREWELL;
        while asked.is_ok() && self.is_alive() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line with all that the program needs.
fn command(program: &Program, executable: &Path, names: &Names) -> Result<Command> {
    let needs = |need| program.needs.contains(&need);
    let mut command = if needs(Need::OwnShare) {
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$0\" /usr/share && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]);
        command.arg(names.root.join("usr/share")).arg(executable);
        command
    } else if needs(Need::OwnMounts) {
        let mut command = Command::new("unshare");
        command.arg("--mount").arg(executable);
        command
    } else if needs(Need::Python) {
        Command::new("python3")
    } else {
        Command::new(executable)
    };
    command.args(program.arguments.iter().map(|text| names.fill(text)));
    for (name, value) in program.environment {
        command.env(name, names.fill(value));
    }
    if needs(Need::Containerd) {
        let containerd = tools::debian(names.suite()?, "containerd")?;
        let runc = tools::debian(RUNC_SUITE, "runc")?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [containerd.join("usr/bin"), runc.join("usr/sbin")];
        let all = own.into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all)?);
    }
    // Nothing of the user's is read or written, and no server finds another.
    command
        .env("HOME", &names.folder)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME")
        .env_remove("DOCKER_HOST")
        .env_remove("KUBECONFIG")
        .env_remove("NOTIFY_SOCKET")
        .current_dir(&names.folder)
        .stdin(match needs(Need::OpenInput) {
            true => Stdio::piped(),
            false => Stdio::null(),
        })
        .stdout(File::create(names.folder.join("stdout"))?)
        .stderr(File::create(names.folder.join("stderr"))?)
        // Ctrl-C is for us: we end the servers in order.
        .process_group(0);
    Ok(command)
}

/// The folder that holds the server's package.
fn unpacked(server: &Server) -> Result<PathBuf> {
    match server.origin {
        Origin::Debian(suite, package) => tools::debian(suite, package),
        Origin::Npm(package, version) => tools::npm(package, version),
        Origin::Wheel(package, version) => tools::wheel(package, version),
        Origin::Machine => Ok(PathBuf::from("/")),
    }
}

/// Where the executable of a server lies, or will.
pub fn executable(server: &Server) -> Result<PathBuf> {
    Ok(unpacked(server)?.join(server.executable))
}

/// The version of a server's package in Debian.
pub fn version(server: &Server) -> Result<Option<String>> {
    match server.origin {
        Origin::Debian(suite, package) => tools::debian_version(suite, package).map(Some),
        _ => Ok(None),
    }
}

/// What the braces in the catalogue stand for.
struct Names {
    root: PathBuf,
    executable: PathBuf,
    folder: PathBuf,
    ports: [u16; 3],
}

impl Names {
    fn new(root: &Path, executable: &Path, folder: &Path) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            executable: executable.to_owned(),
            folder: folder.to_owned(),
            ports: [free_port()?, free_port()?, free_port()?],
        })
    }

    fn fill(&self, text: &str) -> String {
        let [port1, port2, port3] = self.ports;
        text.replace("{dir}", &self.folder.to_string_lossy())
            .replace("{root}", &self.root.to_string_lossy())
            .replace("{executable}", &self.executable.to_string_lossy())
            .replace("{port1}", &port1.to_string())
            .replace("{port2}", &port2.to_string())
            .replace("{port3}", &port3.to_string())
    }

    /// The suite that the package is from: it lies in a folder of that name.
    fn suite(&self) -> Result<&str> {
        let folder = self.root.parent().and_then(Path::file_name);
        let suite = folder.and_then(|name| name.to_str());
        suite.context("the package lies in no suite's folder")
    }
}

/// A port that was free a moment ago, and is given out once: servers started side by side get different ones.
fn free_port() -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
        let port = listener.local_addr()?.port();
        let mut given = GIVEN
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if given.insert(port) {
            return Ok(port);
        }
    }
}
