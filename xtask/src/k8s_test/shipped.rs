//! What is shipped for Kubernetes, and how it comes to the node: the manifests by kubectl, the chart by Helm itself, which is
//! to be had as a library.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::repository;

use super::configuration::NODE_ADDRESS;
use super::node::Node;
use crate::manifests;

/// All but `service-monitor.yaml`, which is for an operator that this node has not.
const MANIFESTS: [&str; 2] = ["leaktrace.yaml", "network-policy.yaml"];

/// A line of the configuration in the manifest and in the chart, and what comes after it where only pods are watched.
const LAST_LINE: &str = "pod_logs = \"/host/var/log\"";
const ONLY_PODS: [&str; 2] = ["[watch]", "namespace = [\"?*\"]"];

/// Installs or uninstalls a chart, and does not wait for its pods.
const HELM: &str = "
import asyncio, json, sys
from helm_sdkpy.actions import Configuration, Install, Uninstall
what, chart, kubeconfig, values = sys.argv[1:]
configuration = Configuration(namespace='leaktrace', kubeconfig=kubeconfig)
if what == 'install':
    asyncio.run(Install(configuration).run('leaktrace', chart, json.loads(values), wait=False))
else:
    asyncio.run(Uninstall(configuration).run('leaktrace', wait=False))
";

/// `deploy/kubernetes` and `deploy/helm`.
pub struct Shipped {
    /// Two lines are added to the configuration, so that the rest of the machine is left alone.
    pub only_pods: bool,
}

impl fmt::Display for Shipped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = MANIFESTS.join(", ");
        match self.only_pods {
            false => write!(out, "applied unchanged: deploy/kubernetes/{names}"),
            true => write!(
                out,
                "applied: deploy/kubernetes/{names}; changed: leaktrace.toml has {} too",
                ONLY_PODS.join(" ")
            ),
        }
    }
}

impl Shipped {
    /// Applies the manifests.
    pub fn apply(&self, node: &Node) -> Result<()> {
        for name in MANIFESTS {
            let text = fs::read_to_string(manifest(name))?;
            match self.only_pods && text.contains(LAST_LINE) {
                true => node.apply(name, &narrowed(&text)?)?,
                false => node.apply(name, &text)?,
            }
        }
        Ok(())
    }

    /// Takes away what was applied; does not wait for its end.
    pub fn delete(&self, node: &Node) -> Result<()> {
        for name in MANIFESTS.iter().rev() {
            let file = manifest(name);
            let delete = ["delete", "--wait=false", "--filename"];
            let delete = delete.iter().map(|word| word.as_ref());
            node.kubectl(&delete.chain([file.as_os_str()]).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// `helm install leaktrace deploy/helm/leaktrace --namespace leaktrace`, with the API server asked for labels and owners.
    /// On this node nobody routes to kubernetes.default.svc.
    pub fn install_chart(&self, node: &Node) -> Result<()> {
        let url = format!(
            "https://{NODE_ADDRESS}:6443/api/v1/pods?fieldSelector=spec.nodeName%3D$(NODE_NAME)"
        );
        let mut values = serde_json::json!({"podList": {"enabled": true, "url": url}});
        if self.only_pods {
            let config = format!("listen = \"0.0.0.0:9779\"\n{LAST_LINE}\n");
            values["config"] = narrowed(&config)?.into();
        }
        helm(node, "install", &values.to_string())
    }

    /// `helm uninstall leaktrace --namespace leaktrace`
    pub fn uninstall_chart(&self, node: &Node) -> Result<()> {
        helm(node, "uninstall", "{}")
    }
}

fn manifest(name: &str) -> PathBuf {
    repository().join("deploy/kubernetes").join(name)
}

/// The text with the lines of [`ONLY_PODS`], as far to the right as what comes before.
fn narrowed(text: &str) -> Result<String> {
    let line = text.lines().find(|line| line.trim() == LAST_LINE);
    let line = line.with_context(|| format!("no line {LAST_LINE:?}"))?;
    let margin = line.strip_suffix(LAST_LINE).unwrap_or_default();
    let more = ONLY_PODS.map(|line| format!("\n{margin}{line}")).concat();
    let narrowed = text.replace(line, &format!("{line}{more}"));
    ensure!(
        narrowed.matches(ONLY_PODS[1]).count() == 1,
        "it is there twice"
    );
    Ok(narrowed)
}

fn helm(node: &Node, what: &str, values: &str) -> Result<()> {
    let mut python = Command::new("python3");
    python
        .args(["-c", HELM, what])
        .arg(repository().join("deploy/helm/leaktrace"))
        .arg(node.kubeconfig())
        .arg(values)
        .env("PYTHONPATH", manifests::helm()?)
        // Its caches are below it.
        .env("HOME", super::room::scratch())
        .stdin(Stdio::null());
    let output = python.output().context("starting python3")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("helm {what}: {}", said.trim());
    }
    Ok(())
}
