//! containerd and dockerd of Debian, each in a folder and a mount namespace of its own, and what is asked of them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// How long an engine may take until it answers, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the programs come from: newer runc wants a newer C library than Debian 12 has.
const CONTAINERD: (&str, &str) = ("bookworm", "containerd");
const RUNC: (&str, &str) = ("bookworm", "runc");
const DOCKERD: (&str, &str) = ("trixie", "docker.io");
const DOCKER_CLIENT: (&str, &str) = ("trixie", "docker-cli");

/// Where the engines' programs lie, fetched if they are not there yet.
pub struct Programs {
    containerd: PathBuf,
    runc: PathBuf,
    docker: Option<(PathBuf, PathBuf)>,
}

impl Programs {
    /// containerd with runc, and docker's if they are wanted.
    pub fn fetch(docker: bool) -> Result<Self> {
        let get = |(suite, package)| tools::debian(suite, package);
        let docker = match docker {
            true => {
                let client = get(DOCKER_CLIENT)?.join("usr/bin/docker");
                Some((get(DOCKERD)?.join("usr/sbin/dockerd"), client))
            }
            false => None,
        };
        Ok(Self {
            containerd: get(CONTAINERD)?.join("usr/bin"),
            runc: get(RUNC)?.join("usr/sbin"),
            docker,
        })
    }

    /// PATH with them in front: the engines start each other by name.
    fn path(&self) -> Result<std::ffi::OsString> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [self.containerd.clone(), self.runc.clone()];
        Ok(std::env::join_paths(
            own.into_iter().chain(std::env::split_paths(&path)),
        )?)
    }
}

/// A running engine. Dropping it asks it to end, and waits for that.
pub struct Engine {
    child: Child,
    /// The client with the arguments that lead to this engine.
    client: Vec<std::ffi::OsString>,
    log: PathBuf,
    /// Whether containers outlive it, so that they have to be ended before.
    leaves_containers: bool,
}

impl Engine {
    /// containerd with overlayfs, without the interface of Kubernetes.
    pub fn containerd(programs: &Programs, folder: &Path) -> Result<Self> {
        let socket = folder.join("containerd.sock");
        let config = folder.join("containerd.toml");
        let dir = folder.display();
        let text = format!(
            "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{}\"\n",
            socket.display()
        );
        fs::write(&config, text)?;
        let mut command = engine(programs, &programs.containerd.join("containerd"))?;
        command.arg("--config").arg(config);
        let ctr = programs.containerd.join("ctr");
        let client = [ctr.as_os_str(), OsStr::new("--address"), socket.as_os_str()];
        let mut engine = Self::start(command, client, &folder.join("containerd.log"))?;
        engine.leaves_containers = true;
        Ok(engine)
    }

    /// dockerd, which starts a containerd of its own.
    pub fn dockerd(programs: &Programs, folder: &Path) -> Result<Self> {
        let (dockerd, client) = (programs.docker.as_ref()).context("docker was not fetched")?;
        let socket = format!("unix://{}", folder.join("docker.sock").display());
        let mut command = engine(programs, dockerd)?;
        for (option, name) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "docker.pid"),
        ] {
            command.arg(option).arg(folder.join(name));
        }
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        command.args(["--userland-proxy=false", "--storage-driver=overlay2"]);
        command.args(["--host", &socket]);
        let client = [
            client.as_os_str(),
            OsStr::new("--host"),
            OsStr::new(&socket),
        ];
        Self::start(command, client, &folder.join("dockerd.log"))
    }

    fn start(mut command: Command, client: [&OsStr; 3], log: &Path) -> Result<Self> {
        let name = command.get_program().display().to_string();
        command.stdout(Stdio::null()).stderr(File::create(log)?);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let mut engine = Self {
            child,
            client: client.map(OsStr::to_owned).to_vec(),
            log: log.to_owned(),
            leaves_containers: false,
        };
        let deadline = Instant::now() + PATIENCE;
        while engine.ask(&["version"]).is_err() {
            let ended = !matches!(engine.child.try_wait(), Ok(None));
            ensure!(
                !ended && Instant::now() < deadline,
                "it does not serve: {}",
                engine.last_words()
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(engine)
    }

    /// Runs the client, and gives back what it printed.
    pub fn ask<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let mut words = self.client.iter();
        let mut client = Command::new(words.next().context("a client has a name")?);
        client.args(words).args(arguments).stdin(Stdio::null());
        let output = client.output().context("starting the engine's client")?;
        if !output.status.success() {
            let what: Vec<_> = arguments
                .iter()
                .map(|word| word.as_ref().display().to_string())
                .collect();
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}; {}", what.join(" "), said.trim(), self.last_words());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Ends what containerd would leave running. What fails is gone already.
    fn end_containers(&self) {
        let tasks = self.ask(&["task", "list", "--quiet"]).unwrap_or_default();
        for id in tasks.lines() {
            let _ = self.ask(&["task", "delete", "--force", id]);
        }
        let all = self
            .ask(&["container", "list", "--quiet"])
            .unwrap_or_default();
        for id in all.lines() {
            let _ = self.ask(&["container", "delete", id]);
        }
    }

    /// The last line that it logged.
    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let line = log.lines().rfind(|line| !line.trim().is_empty());
        line.unwrap_or("it logged nothing").to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.leaves_containers {
            self.end_containers();
        }
        // Asked first: it has children and mounts to take along. The pid is ours until it is waited for.
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").arg(pid).stderr(Stdio::null()).status();
        let deadline = Instant::now() + PATIENCE;
        while asked.is_ok() && matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An engine in a mount namespace of its own, so that no mount of a container is left behind.
fn engine(programs: &Programs, executable: &Path) -> Result<Command> {
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(executable);
    // Ctrl-C is for us: we end the engines in order.
    command.env("PATH", programs.path()?).process_group(0);
    command
        .env_remove("NOTIFY_SOCKET")
        .env_remove("DOCKER_HOST")
        .stdin(Stdio::null());
    Ok(command)
}
