//! What the node's programs are told, in files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::images::PAUSE;
use super::room::{CGROUP, scratch};
use crate::tools;

/// The node's address.
pub const NODE_ADDRESS: &str = "10.87.0.1";

/// The same with its network.
pub const NODE_NETWORK: &str = "10.87.0.1/24";

/// The node's name.
pub const NODE: &str = "leaktrace-node";

/// Where containerd listens. The path of a socket may have 107 bytes: `target/` can be longer.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// The token of who may do everything.
const TOKEN: &str = "leaktrace-test";

/// The files, and the folders that programs write to.
pub struct Files {
    /// For kubectl and the cluster's own programs.
    pub kubeconfig: PathBuf,
    /// Who has which token.
    pub tokens: PathBuf,
    /// What service accounts' tokens are signed with.
    pub key: PathBuf,
    /// containerd's configuration.
    pub containerd: PathBuf,
    /// The kubelet's.
    pub kubelet: PathBuf,
    /// For certificates.
    pub certificates: PathBuf,
}

impl Files {
    /// Writes them; `plugins` is where the network plugins are.
    pub fn write(plugins: &Path) -> Result<Self> {
        let place = |name: &str| scratch().join(name);
        let files = Self {
            kubeconfig: place("kubeconfig"),
            tokens: place("tokens.csv"),
            key: place("service-accounts.key"),
            containerd: place("containerd.toml"),
            kubelet: place("kubelet.yaml"),
            certificates: place("certificates"),
        };
        for folder in ["certificates", "cni"] {
            fs::create_dir(place(folder))?;
        }
        fs::write(&files.kubeconfig, kubeconfig())?;
        let tokens = format!("{TOKEN},admin,1,\"system:masters\"\n");
        fs::write(&files.tokens, tokens)?;
        fs::write(&files.containerd, containerd(plugins))?;
        fs::write(&files.kubelet, kubelet())?;
        fs::write(place("cni/10-node.conflist"), network())?;
        let mut openssl = Command::new("openssl");
        openssl.args(["genrsa", "-out"]).arg(&files.key).arg("2048");
        tools::silently(&mut openssl)?;
        Ok(files)
    }
}

fn kubeconfig() -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: node
clusters:
  - name: node
    cluster:
      server: https://{NODE_ADDRESS}:6443
      # Its certificate is one that it has just made for itself.
      insecure-skip-tls-verify: true
users:
  - name: admin
    user:
      token: {TOKEN}
contexts:
  - name: node
    context:
      cluster: node
      user: admin
"
    )
}

/// With the interface of Kubernetes; runc and overlayfs are what it takes by itself.
fn containerd(plugins: &Path) -> String {
    format!(
        "version = 2
root = \"{run}/containerd\"
state = \"/run/containerd\"
[grpc]
  address = \"{CONTAINERD}\"
[plugins.\"io.containerd.grpc.v1.cri\"]
  sandbox_image = \"{PAUSE}\"
  # Who lacks CAP_SYS_RESOURCE may not lower it.
  restrict_oom_score_adj = true
  [plugins.\"io.containerd.grpc.v1.cri\".cni]
    bin_dir = \"{plugins}\"
    conf_dir = \"{run}/cni\"
",
        run = scratch().display(),
        plugins = plugins.display(),
    )
}

/// Each pod has an address, and a route to the node.
fn network() -> String {
    format!(
        "{{
  \"cniVersion\": \"0.4.0\",
  \"name\": \"node\",
  \"plugins\": [{{
    \"type\": \"ptp\",
    \"ipam\": {{
      \"type\": \"host-local\",
      \"dataDir\": \"{}/addresses\",
      \"ranges\": [[{{\"subnet\": \"10.88.0.0/16\"}}]],
      \"routes\": [{{\"dst\": \"0.0.0.0/0\"}}]
    }}
  }}]
}}
",
        scratch().display()
    )
}

/// Pods below a cgroup of ours; nothing is asked of iptables, and nothing evicted because the disk is full.
fn kubelet() -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: true
  webhook:
    enabled: false
authorization:
  mode: AlwaysAllow
cgroupDriver: cgroupfs
cgroupRoot: /{CGROUP}
enforceNodeAllocatable: []
evictionHard: {{}}
failSwapOn: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
readOnlyPort: 0
volumePluginDir: {}/volume-plugins
",
        scratch().display()
    )
}
