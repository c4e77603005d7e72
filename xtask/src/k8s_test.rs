//! `cargo xtask k8s-test`: the manifests of deploy/ on a real Kubernetes node.
//!
//! Debian's etcd, containerd and runc, and Kubernetes built out of Debian's source, run a node of their own; the image of
//! `cargo xtask dist` is brought there, `deploy/kubernetes` is applied as it is shipped, and Deployments of Go programs are
//! made, deleted and rolled. Everything is in a network and a mount namespace and below a cgroup of its own, and ended by
//! whoever waits outside. The first run builds Kubernetes, 6 minutes on two cores; the others take about two minutes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::target_dir;

use crate::{demo, manifests};
use node::{Node, Programs};
use room::Room;

mod configuration;
mod confined;
mod images;
mod node;
mod pods;
mod room;
mod shipped;
mod shop;
mod source;

/// Arguments of `cargo xtask k8s-test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Go release of the programs that are traced
    #[arg(long, default_value = "1.27.3")]
    go: String,
    /// Only fetch and build what a run needs
    #[arg(long)]
    fetch: bool,
    /// Let leaktrace watch programs in pods only, and not the rest of this machine: two lines more in its configuration
    #[arg(long)]
    only_pods: bool,
    /// The part that runs in the namespaces
    #[arg(long, hide = true)]
    inside: bool,
}

/// `target/kubernetes`, where all of it lies: `bin`, `log`, `image`, and `run` while it runs.
pub fn folder() -> PathBuf {
    target_dir().join("kubernetes")
}

/// Builds, runs, and takes everything away again.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        demo::is_root()?,
        "a Kubernetes node needs root: run it as root"
    );
    if arguments.inside {
        return inside(arguments);
    }
    let steps = Steps::begin();
    Programs::fetch()?;
    images::write(&arguments.go)?;
    manifests::helm()?;
    steps.say("Kubernetes, its node's programs and three images are there");
    if arguments.fetch {
        return Ok(());
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let room = Room::open()?;
    let outcome = room.run_inside(arguments, &interrupted);
    let left = room.close();
    match &left {
        Ok(told) => steps.say(told),
        Err(error) => steps.say(&format!("NOT cleaned up: {error:#}")),
    }
    let logs = folder().join("log");
    outcome.with_context(|| format!("the logs are in {}", logs.display()))?;
    left?;
    steps.say("all of it was as it has to be");
    Ok(())
}

/// What is done on the node.
fn inside(arguments: &Arguments) -> Result<()> {
    let steps = Steps::begin();
    room::furnish()?;
    let node = Node::start(&steps)?;
    shop::run(&node, &steps, arguments.only_pods)
}

/// Says what is done, and when.
pub struct Steps {
    begin: Instant,
}

impl Steps {
    fn begin() -> Self {
        Self {
            begin: Instant::now(),
        }
    }

    /// One line.
    pub fn say(&self, what: &str) {
        println!("{:>6.1} s  {what}", self.begin.elapsed().as_secs_f64());
    }
}
