//! A node with its control plane: what is started, in which order, and how it is asked.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::configuration::{CONTAINERD, Files, NODE, NODE_ADDRESS};
use super::source::last_line;
use super::{Steps, folder, images, source};
use crate::tools;

/// How long the node may take for anything: two cores, and whatever else they do.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Where the programs are.
pub struct Programs {
    kubernetes: PathBuf,
    etcd: PathBuf,
    containerd: PathBuf,
    runc: PathBuf,
    network_plugins: PathBuf,
    kubectl: PathBuf,
}

impl Programs {
    /// Fetches and builds what is not there yet.
    pub fn fetch() -> Result<Self> {
        tools::need("ip", &["iproute2"])?;
        tools::need("openssl", &["openssl"])?;
        Ok(Self {
            kubernetes: source::build()?,
            etcd: tools::debian("forky", "etcd-server")?.join("usr/bin/etcd"),
            // Newer ones want a newer C library than Debian 12 has.
            containerd: tools::debian("bookworm", "containerd")?.join("usr/bin"),
            runc: tools::debian("bookworm", "runc")?.join("usr/sbin"),
            network_plugins: tools::debian("bookworm", "containernetworking-plugins")?
                .join("usr/lib/cni"),
            kubectl: tools::debian("trixie", "kubectl")?.join("usr/bin/kubectl"),
        })
    }
}

/// A node that runs. Nobody ends it but who waits outside (see [`super::room`]).
pub struct Node {
    programs: Programs,
    files: Files,
    running: Vec<Running>,
}

struct Running {
    name: &'static str,
    child: RefCell<Child>,
    log: PathBuf,
}

impl Node {
    /// Starts everything, and waits until the node is ready.
    pub fn start(steps: &Steps) -> Result<Self> {
        let programs = Programs::fetch()?;
        let files = Files::write(&programs.network_plugins)?;
        fs::create_dir_all(folder().join("log"))?;
        let mut node = Self {
            programs,
            files,
            running: Vec::new(),
        };
        node.start_control_plane()?;
        steps.say("etcd and the API server serve");
        node.start_containerd()?;
        let archives = images::archives()?;
        for archive in &archives {
            let import = ["image".as_ref(), "import".as_ref(), archive.as_os_str()];
            node.containers(&import)?;
        }
        steps.say(&format!(
            "containerd serves, with {} images",
            archives.len()
        ));
        node.start_kubelet()?;
        let mut version = String::new();
        node.eventually("the node is ready", || {
            let all = node.json(&["get", "nodes"])?;
            let status = &all["items"][0]["status"];
            version = [
                &status["nodeInfo"]["kubeletVersion"],
                &status["nodeInfo"]["containerRuntimeVersion"],
            ]
            .map(|text| text.as_str().unwrap_or_default())
            .join(", ");
            let conditions = status["conditions"].as_array();
            let ready = (conditions.into_iter().flatten())
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            Ok(ready)
        })?;
        steps.say(&format!("the node is ready: {version}"));
        Ok(node)
    }

    fn start_control_plane(&mut self) -> Result<()> {
        let scratch = super::room::scratch();
        let etcd = self.programs.etcd.clone();
        let data = scratch.join("etcd");
        self.spawn(
            "etcd",
            &etcd,
            &[("--data-dir", data.as_os_str())],
            &["--unsafe-no-fsync"],
        )?;
        let files = [
            ("--token-auth-file", self.files.tokens.as_os_str()),
            (
                "--service-account-signing-key-file",
                self.files.key.as_os_str(),
            ),
            ("--service-account-key-file", self.files.key.as_os_str()),
            ("--cert-dir", self.files.certificates.as_os_str()),
            ("--advertise-address", NODE_ADDRESS.as_ref()),
        ];
        let files = files.map(|(option, value)| (option, value.to_owned()));
        self.spawn(
            "kube-apiserver",
            &self.programs.kubernetes.join("kube-apiserver"),
            &borrowed(&files),
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                "--service-cluster-ip-range=10.96.0.0/24",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=RBAC",
                "--kubelet-preferred-address-types=InternalIP",
                // What it is by itself: a privileged container would be refused.
                "--allow-privileged=false",
            ],
        )?;
        self.eventually("the API server is ready", || {
            Ok(self.kubectl(&["get", "--raw", "/readyz"]).is_ok())
        })?;
        let kubeconfig = self.files.kubeconfig.clone();
        let certificates = self.files.certificates.clone();
        let key = self.files.key.clone();
        let common = [
            ("--kubeconfig", kubeconfig.as_os_str()),
            ("--cert-dir", certificates.as_os_str()),
        ];
        let server = certificates.join("apiserver.crt");
        let manager = self.programs.kubernetes.join("kube-controller-manager");
        self.spawn(
            "kube-controller-manager",
            &manager,
            &[
                common[0],
                common[1],
                ("--service-account-private-key-file", key.as_os_str()),
                // It has signed its own certificate.
                ("--root-ca-file", server.as_os_str()),
            ],
            &["--leader-elect=false"],
        )?;
        let scheduler = self.programs.kubernetes.join("kube-scheduler");
        self.spawn(
            "kube-scheduler",
            &scheduler,
            &common,
            &["--leader-elect=false"],
        )
    }

    fn start_containerd(&mut self) -> Result<()> {
        let containerd = self.programs.containerd.join("containerd");
        let config = self.files.containerd.clone();
        self.spawn(
            "containerd",
            &containerd,
            &[("--config", config.as_os_str())],
            &[],
        )?;
        self.eventually("containerd serves", || {
            Ok(self.containers(&["version"]).is_ok())
        })
    }

    fn start_kubelet(&mut self) -> Result<()> {
        let kubelet = self.programs.kubernetes.join("kubelet");
        let root = super::room::scratch().join("kubelet");
        let files = [
            ("--config", self.files.kubelet.clone().into_os_string()),
            (
                "--kubeconfig",
                self.files.kubeconfig.clone().into_os_string(),
            ),
            (
                "--cert-dir",
                self.files.certificates.clone().into_os_string(),
            ),
            ("--root-dir", root.into_os_string()),
            ("--node-ip", NODE_ADDRESS.into()),
            ("--hostname-override", NODE.into()),
            ("--container-runtime", "remote".into()),
            (
                "--container-runtime-endpoint",
                format!("unix://{CONTAINERD}").into(),
            ),
        ];
        self.spawn("kubelet", &kubelet, &borrowed(&files), &[])
    }

    /// Starts a program whose log goes to `log/NAME.log`.
    fn spawn(
        &mut self,
        name: &'static str,
        program: &Path,
        options: &[(&str, &OsStr)],
        more: &[&str],
    ) -> Result<()> {
        let log = folder().join("log").join(format!("{name}.log"));
        let file = File::create(&log)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [self.programs.containerd.clone(), self.programs.runc.clone()];
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))?;
        let mut command = Command::new(program);
        for (option, value) in options {
            let mut word = OsString::from(option);
            word.push("=");
            word.push(value);
            command.arg(word);
        }
        command
            .args(more)
            .env("PATH", path)
            .env_remove("NOTIFY_SOCKET");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let child = RefCell::new(child);
        self.running.push(Running { name, child, log });
        Ok(())
    }

    /// Runs kubectl, and gives back what it printed.
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let mut kubectl = Command::new(&self.programs.kubectl);
        let cache = super::room::scratch().join("kubectl");
        kubectl
            .arg("--kubeconfig")
            .arg(&self.files.kubeconfig)
            .arg("--cache-dir")
            .arg(cache);
        output(kubectl.args(arguments))
    }

    /// What kubectl says as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[arguments, &["--output=json"]].concat())?;
        serde_json::from_str(&text).context("kubectl says no JSON")
    }

    /// For who asks the API server by another client.
    pub fn kubeconfig(&self) -> &Path {
        &self.files.kubeconfig
    }

    /// Keeps what a workload's pod has logged, in `log/NAMESPACE.log`, if it has logged.
    pub fn keep_logs(&self, namespace: &str, what: &str) {
        let logs = self.kubectl(&["--namespace", namespace, "logs", what]);
        let file = folder().join("log").join(format!("{namespace}.log"));
        if let Ok(logs) = logs
            && let Err(error) = fs::write(&file, logs)
        {
            eprintln!("{}: {error}", file.display());
        }
    }

    /// Applies a manifest that a test has written.
    pub fn apply(&self, name: &str, manifest: &str) -> Result<()> {
        let file = super::room::scratch().join(name);
        fs::write(&file, manifest)?;
        self.kubectl(&["apply".as_ref(), "--filename".as_ref(), file.as_os_str()])?;
        Ok(())
    }

    /// Asks containerd about the kubelet's containers.
    pub fn containers<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let mut ctr = Command::new(self.programs.containerd.join("ctr"));
        ctr.args(["--address", CONTAINERD, "--namespace", "k8s.io"]);
        output(ctr.args(arguments))
    }

    /// Waits for something; an error if one of the node's programs ends meanwhile.
    pub fn eventually(
        &self,
        what: &str,
        mut condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let met = condition();
            if matches!(met, Ok(true)) {
                return Ok(());
            }
            for running in &self.running {
                ensure!(
                    matches!(running.child.borrow_mut().try_wait(), Ok(None)),
                    "{} has ended: {}",
                    running.name,
                    last_line(&running.log)
                );
            }
            if begin.elapsed() > PATIENCE {
                met.with_context(|| format!("not in {PATIENCE:?}: {what}"))?;
                bail!("not in {PATIENCE:?}: {what}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn borrowed<'o>(options: &'o [(&'o str, OsString)]) -> Vec<(&'o str, &'o OsStr)> {
    let options = options.iter();
    options
        .map(|(option, value)| (*option, value.as_os_str()))
        .collect()
}

/// Runs a client, and gives back what it printed.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
