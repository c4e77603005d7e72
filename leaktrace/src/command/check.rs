//! `leaktrace check`: looks at this machine and tries a probe on leaktrace itself.

use std::fs;
use std::path::Path;
use std::process::{self, ExitCode};

use serde::Serialize;

use super::output;
use crate::address::VirtAddr;
use crate::census::{LiveMemory, Memory as _};
use crate::cli::Check;
use crate::export::report::SCHEMA;
use crate::host::{self, Facts, Judgement, Memory};
use crate::probe;
use crate::target::{Pid, Process};

#[derive(Serialize)]
struct Answer<'a> {
    schema: &'static str,
    arch: &'static str,
    #[serde(flatten)]
    judgement: &'a Judgement,
}

/// Looks, tries, and says by the exit code what can be done: 0 probes, 1 only snapshots, 2 nothing.
///
/// # Errors
/// When the answer cannot be written.
pub fn run(arguments: &Check) -> anyhow::Result<ExitCode> {
    let judgement = host::judge(&look());
    let answer = Answer {
        schema: SCHEMA,
        arch: std::env::consts::ARCH,
        judgement: &judgement,
    };
    output::write(&answer, &arguments.output, || host::render(&judgement))?;
    Ok(ExitCode::from(judgement.usable.exit_code()))
}

/// Everything that the judgement wants to know. What cannot be read is `None`, and judged as such.
fn look() -> Facts {
    let setting = |name: &str| line(Path::new("/proc/sys/kernel").join(name));
    Facts {
        release: setting("osrelease").unwrap_or_else(|| "of unknown release".to_owned()),
        features: probe::features(),
        uprobe_events: Path::new("/sys/bus/event_source/devices/uprobe/type").exists(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        lockdown: line("/sys/kernel/security/lockdown"),
        unprivileged_bpf_disabled: setting("unprivileged_bpf_disabled"),
        perf_event_paranoid: setting("perf_event_paranoid"),
        ptrace_scope: setting("yama/ptrace_scope"),
        capabilities: procfs::process::Process::myself()
            .and_then(|own| own.status())
            .ok()
            .map(|status| status.capeff),
        first_pid_namespace: fs::read_link("/proc/self/ns/pid")
            .ok()
            .map(|name| name == Path::new(probe::FIRST_PID_NAMESPACE)),
        memory: memory(),
        probe: probe::try_probe().map_err(|error| error.to_string()),
    }
}

/// Reads a word of the first process's memory, or else of the one that started this one.
fn memory() -> Memory {
    let own = i32::try_from(process::id()).ok();
    let parent = procfs::process::Process::myself()
        .and_then(|own| own.stat())
        .map_or(0, |stat| stat.ppid);
    if own != Some(1) && read_a_word(Pid(1)).is_ok() {
        return Memory::Any;
    }
    // A parent in another pid namespace has the number 0 here.
    if parent == 0 {
        return Memory::NobodyThere;
    }
    match read_a_word(Pid(parent)) {
        Ok(()) => Memory::OwnUser,
        Err(error) => Memory::No(error.to_string()),
    }
}

fn read_a_word(pid: Pid) -> anyhow::Result<()> {
    let process = Process::open(pid)?;
    // The program headers of every process lie in its memory.
    let headers = process.load_bias(VirtAddr(0)).to_runtime(VirtAddr(0));
    LiveMemory::new(pid).word(headers)?;
    Ok(())
}

/// The first line of a small file.
fn line(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}
