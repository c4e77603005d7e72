//! A pod as Kubernetes knows it, and as leaktrace has to know it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::configuration::NODE;
use super::node::Node;
use crate::daemon::Asked;

/// How soon leaktrace has to know who came, and to have forgotten who went.
pub const SOON: Duration = Duration::from_secs(5);

/// How long a leaktrace that has just started may take to get to somebody: it takes in one program after another, and this
/// machine may run many.
pub const FIRST: Duration = Duration::from_secs(30);

/// One running pod with one container, by the API server and containerd.
#[derive(Clone)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub container: String,
    /// 64 hexadecimal digits.
    pub container_id: String,
    /// In the machine's pid namespace.
    pub pid: i64,
    /// Its address in the node's network; "" when it has none yet.
    pub address: String,
    /// How often the kubelet has started its container again.
    pub restarts: u64,
    /// The Deployment that its ReplicaSet is of, or the DaemonSet; itself when nothing made it.
    pub owner: String,
}

/// The pods of a namespace that run and are not being deleted.
pub fn running(node: &Node, namespace: &str) -> Result<Vec<Pod>> {
    let all = node.json(&["get", "pods", "--namespace", namespace])?;
    let tasks = node.containers(&["task", "list"])?;
    let pods = all["items"].as_array().into_iter().flatten();
    let pods = pods.filter(|pod| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
    });
    pods.map(|pod| read(node, pod, &tasks)).collect()
}

fn read(node: &Node, pod: &Value, tasks: &str) -> Result<Pod> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = &pod["status"]["containerStatuses"][0];
    let container_id = text(&status["containerID"]).replace("containerd://", "");
    let line = tasks
        .lines()
        .map(str::split_whitespace)
        .find(|line| line.clone().next() == Some(&*container_id));
    let pid = line.and_then(|mut line| line.nth(1)?.parse().ok());
    let namespace = text(&pod["metadata"]["namespace"]);
    let made_by = &pod["metadata"]["ownerReferences"][0];
    let owner = match made_by["kind"].as_str() {
        Some("ReplicaSet") => {
            let name = text(&made_by["name"]);
            let set = node.json(&["get", "replicaset", &name, "--namespace", &namespace])?;
            text(&set["metadata"]["ownerReferences"][0]["name"])
        }
        Some(_) => text(&made_by["name"]),
        None => text(&pod["metadata"]["name"]),
    };
    Ok(Pod {
        name: text(&pod["metadata"]["name"]),
        container: text(&status["name"]),
        pid: pid.with_context(|| format!("containerd has no task {container_id}"))?,
        address: text(&pod["status"]["podIP"]),
        restarts: status["restartCount"].as_u64().unwrap_or(0),
        namespace,
        container_id,
        owner,
    })
}

impl Pod {
    /// leaktrace has to trace it within a time, with every name that Kubernetes has for it, in the metrics and in the list; answers
    /// how old its process was then, in seconds.
    pub fn is_traced(&self, asked: &Asked, limit: Duration) -> Result<f64> {
        let row = asked.waits_for(self.pid, limit)?;
        let age = age(self.pid)?;
        let expected = [
            ("namespace", &self.namespace),
            ("owner", &self.owner),
            ("pod", &self.name),
            ("container", &self.container),
        ];
        let info = self.info(asked)?;
        for (label, value) in expected {
            let part = format!("{label}=\"{value}\"");
            ensure!(
                info.contains(&format!(",{part}")),
                "{part} is missing: {info}"
            );
        }
        for (label, value) in [("container_id", &*self.container_id), ("node", NODE)] {
            let part = format!("{label}=\"{value}\"");
            ensure!(info.contains(&part), "{part} is missing: {info}");
        }
        for (field, value) in expected {
            ensure!(
                row[field] == value.as_str(),
                "{field} is not {value}: {row}"
            );
        }
        let target = row["target"].as_str().unwrap_or_default();
        let label = self.label();
        // A second process of the same name is numbered.
        ensure!(
            target.split('#').next() == Some(&*label),
            "its label is {target} and not {label}"
        );
        Ok(age)
    }

    /// What has to stay the same when the pod is another.
    pub fn label(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.owner, self.container)
    }

    /// Waits for the end of its process; answers how many seconds that took.
    pub fn ends(&self, node: &Node) -> Result<f64> {
        let begin = Instant::now();
        node.eventually(
            &format!("{} ends", self.name),
            || Ok(age(self.pid).is_err()),
        )?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Once its process has ended, leaktrace has to have forgotten it soon, in every series; answers how many seconds that took.
    pub fn is_forgotten(&self, node: &Node, asked: &Asked) -> Result<f64> {
        self.ends(node)?;
        let begin = Instant::now();
        loop {
            let metrics = asked.page("/metrics")?;
            let named = [
                format!("pid=\"{}\"", self.pid),
                format!("pod=\"{}\"", self.name),
            ];
            if !named.iter().any(|label| metrics.contains(label)) {
                return Ok(begin.elapsed().as_secs_f64());
            }
            ensure!(
                begin.elapsed() < SOON,
                "{} is not gone in {SOON:?}",
                self.name
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its line of `leaktrace_target_info`, once it is there.
    fn info(&self, asked: &Asked) -> Result<String> {
        let begin = Instant::now();
        let pid = format!("pid=\"{}\"", self.pid);
        loop {
            let metrics = asked.page("/metrics")?;
            let mut lines = metrics.lines();
            let line = lines
                .find(|line| line.starts_with("leaktrace_target_info{") && line.contains(&pid));
            if let Some(line) = line {
                return Ok(line.replace('{', "{,"));
            }
            if begin.elapsed() > SOON {
                bail!("leaktrace_target_info has no {pid}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How long a process has run, in seconds; an error when it runs no more.
fn age(pid: i64) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold anything, a parenthesis too (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(") ").context("a name in parentheses")?;
    let mut fields = fields.split(' ');
    let state = fields.next().unwrap_or_default();
    ensure!(state != "Z" && state != "X", "{pid} has ended");
    let ticks: f64 = fields.nth(18).context("a start time")?.parse()?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let now: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
    Ok((now - ticks / 100.0).max(0.0))
}

/// The sum of the series of a metric whose line has all these parts.
pub fn sum(metrics: &str, metric: &str, parts: &[&str]) -> f64 {
    let lines = metrics.lines().filter(|line| {
        line.strip_prefix(metric)
            .is_some_and(|rest| rest.starts_with('{'))
    });
    let lines = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
    let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.sum()
}
