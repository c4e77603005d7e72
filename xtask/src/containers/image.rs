//! The image of leaktrace, run as the manifests say: not as root, few capabilities, the usual filter of system calls,
//! nothing writable, in the host's pid namespace.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::engine::Engine;
use super::{Container, eventually, exe};
use crate::daemon::{Asked, in_state};
use crate::dist;

/// As deploy/kubernetes/leaktrace.yaml names them.
const CAPABILITIES: [&str; 5] = [
    "BPF",
    "PERFMON",
    "SYS_PTRACE",
    "DAC_READ_SEARCH",
    "SYS_ADMIN",
];

/// How soon a program has to be traced by a daemon that has just been started.
const SOON: Duration = Duration::from_secs(10);

/// Runs leaktrace in a container beside a Go program in another one.
pub fn run(engine: &Engine, archive: &Path) -> Result<()> {
    engine.ask(&["load".as_ref(), "--input".as_ref(), archive.as_os_str()])?;
    let program = Container::in_docker(engine, "20", "40")?;

    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let name = format!("{}:{}", dist::IMAGE, dist::version());
    let exe = exe();
    let capabilities = CAPABILITIES.map(|name| format!("--cap-add={name}"));
    let mut arguments = vec!["run", "--detach", "--pid=host", "--network=host"];
    arguments.extend(["--read-only", "--cap-drop=ALL"]);
    arguments.extend(capabilities.iter().map(String::as_str));
    arguments.extend([&*name, "daemon", "--listen", &address, "--exe", &exe]);
    let id = engine.ask(&arguments)?;
    let pid = engine.ask(&["inspect", "--format", "{{.State.Pid}}", &id])?;
    let watched = watched(&Asked { address }, &program);
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let log = engine.ask(&["logs", &id]);
    watched.with_context(|| format!("its log: {}", log.unwrap_or_default()))?;

    let status = status?;
    let field = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    };
    ensure!(field("Uid").starts_with("65532\t"), "{status}");
    ensure!(field("Seccomp") == "2", "{status}");
    let bounding = u64::from_str_radix(&field("CapBnd"), 16)?;
    ensure!(bounding & !dist::CAPABILITIES == 0, "{status}");
    println!(
        "image: as user 65532 with capabilities {} it traces another container",
        field("CapEff")
    );
    for id in [id, program.id] {
        engine.ask(&["rm", "--force", &id])?;
    }
    Ok(())
}

/// The program has to be counted, and heard through probes.
fn watched(asked: &Asked, program: &Container) -> Result<()> {
    eventually("leaktrace listens", || asked.page("/healthz").is_ok())?;
    asked.waits_for(program.pid, SOON)?;
    eventually("its goroutines are counted and heard", || {
        let report = asked.report(program.pid).unwrap_or_default();
        let sites = report["sites"].as_array();
        let created = sites
            .into_iter()
            .flatten()
            .filter_map(|site| site["created_total"].as_u64());
        in_state(&report, "chan send") > 40 && created.sum::<u64>() > 0
    })
}
