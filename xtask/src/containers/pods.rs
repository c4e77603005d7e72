//! Containers as a kubelet makes them: in its cgroups, with its log folders beside. No kubelet runs: this shows that real
//! containers get the names of their pods, not that a cluster does it so.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::engine::Engine;
use super::{Container, OF_IMAGE, SOON, eventually};
use crate::daemon::Daemon;

/// A pod of a Deployment: namespace, name, container, and the label that it has to have.
type Pod = (&'static str, &'static str, &'static str, &'static str);

const WEB: Pod = ("shop", "web-7d4b9c6f5d-x2x7k", "server", "shop/web/server");
const API: Pod = ("shop", "api-6c8f4d9b7c-qz5tn", "api", "shop/api/api");
/// What comes after WEB when its Deployment is rolled.
const WEB_ROLLED: Pod = ("shop", "web-5f6d8c7b49-4kwzd", "server", "shop/web/server");

/// Runs two pods, and rolls one.
pub fn run(engine: &Engine, daemon: &Daemon, logs: &Path) -> Result<()> {
    let mut cgroups = Cgroups(Vec::new());
    let web = start(engine, logs, WEB, 1, "11", &mut cgroups)?;
    let api = start(engine, logs, API, 2, "21", &mut cgroups)?;
    named(daemon, &web, WEB, 11)?;
    named(daemon, &api, API, 21)?;
    // The new one comes up, then the old one goes.
    let rolled = start(engine, logs, WEB_ROLLED, 3, "31", &mut cgroups)?;
    daemon.asked.waits_for(rolled.pid, SOON)?;
    end(engine, daemon, &web)?;
    let next = start(engine, logs, WEB_ROLLED, 4, "31", &mut cgroups)?;
    named(daemon, &next, WEB_ROLLED, 31)?;
    named(daemon, &api, API, 21)?;
    for container in [rolled, next, api] {
        end(engine, daemon, &container)?;
    }
    println!(
        "containerd: containers in a kubelet's cgroups have their pod's names, also when it is rolled"
    );
    Ok(())
}

/// As the kubelet does: a cgroup by the pod's unique id, a container by 64 digits, a folder and a link for its log.
fn start(
    engine: &Engine,
    logs: &Path,
    (namespace, name, container, _): Pod,
    number: u32,
    burst: &str,
    cgroups: &mut Cgroups,
) -> Result<Container> {
    let own = std::process::id();
    let uid = format!("{own:08x}-0000-4000-8000-{number:012x}");
    let id = format!("{own:032x}{number:032x}");
    let folder = logs.join(format!("pods/{namespace}_{name}_{uid}/{container}"));
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(logs.join("containers"))?;
    let link = logs.join(format!(
        "containers/{name}_{namespace}_{container}-{id}.log"
    ));
    std::os::unix::fs::symlink(folder.join("0.log"), link)?;
    let pod = format!("kubepods/burstable/pod{uid}");
    let cgroup = format!("/{pod}/{id}");
    cgroups.0.push(PathBuf::from(pod));
    let what = [&["--cgroup", &cgroup], &OF_IMAGE[..]].concat();
    Container::in_containerd(engine, &what, &id, burst)
}

/// It has to have the names of its pod, and the label that stays.
fn named(
    daemon: &Daemon,
    container: &Container,
    (namespace, name, of_pod, label): Pod,
    burst: u64,
) -> Result<()> {
    container.is_traced(daemon, burst)?;
    let mut seen = String::new();
    eventually("it has its pod's names", || {
        let metrics = daemon.asked.page("/metrics").unwrap_or_default();
        let pid = format!("pid=\"{}\"", container.pid);
        let mut lines = metrics.lines();
        let info =
            lines.find(|line| line.starts_with("leaktrace_target_info{") && line.contains(&pid));
        seen = info.unwrap_or_default().to_owned();
        [
            format!("namespace=\"{namespace}\""),
            format!("pod=\"{name}\""),
            format!("container=\"{of_pod}\""),
        ]
        .iter()
        .all(|part| seen.contains(part))
    })
    .with_context(|| format!("its line is {seen:?}"))?;
    let row = daemon.asked.waits_for(container.pid, SOON)?;
    let target = row["target"].as_str().unwrap_or_default();
    // A second process of the same name is numbered.
    let plain = target.split('#').next().unwrap_or_default();
    ensure!(plain == label, "its label is {target} and not {label}");
    Ok(())
}

fn end(engine: &Engine, daemon: &Daemon, container: &Container) -> Result<()> {
    engine.ask(&["task", "kill", "--signal", "SIGKILL", &container.id])?;
    daemon.asked.forgets(container.pid, SOON)?;
    // That takes its cgroup away.
    eventually("its task can be deleted", || {
        engine.ask(&["task", "delete", &container.id]).is_ok()
    })
}

/// The pods' cgroups, which runc leaves behind. They are taken away as far as they are empty.
struct Cgroups(Vec<PathBuf>);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
            return;
        };
        let mut roots: Vec<_> = hierarchies.flatten().map(|entry| entry.path()).collect();
        roots.push(PathBuf::from("/sys/fs/cgroup"));
        let parents = ["kubepods/burstable", "kubepods"].map(PathBuf::from);
        for root in roots {
            for folder in self.0.iter().chain(&parents) {
                // Whatever is not empty is somebody's.
                let _ = fs::remove_dir(root.join(folder));
            }
        }
    }
}
