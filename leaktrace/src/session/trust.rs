//! Whether a process is what it is taken for: a Go program whose memory is that of its release, without Go code beside its own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};

use crate::census::{self, Distrust, Layout, LiveMemory, MemoryError, SelfCheck};
use crate::resolve::elf::Elf;
use crate::resolve::{self, Program, Refusal};
use crate::target::Process;

/// How often the memory of a process is looked at before its contradictions count.
pub const PATIENCE: u32 = 10;

/// Asks the memory whether it is what we take it for, again and again while a program starts or moves.
pub(super) fn believe(
    memory: &LiveMemory,
    layout: &Layout,
    most: u32,
) -> anyhow::Result<SelfCheck> {
    const PAUSE: Duration = Duration::from_millis(30);
    let mut tries = 1;
    loop {
        match census::self_check(memory, layout) {
            Ok(believed) => return Ok(believed),
            Err(Distrust::Memory(error @ (MemoryError::Exited(_) | MemoryError::Denied(_)))) => {
                return Err(error.into());
            }
            Err(reason @ Distrust::NotStarted) if tries >= most => {
                return Err(reason).context("try again when it runs");
            }
            Err(reason) if tries >= most => {
                return Err(reason).context(
                    "its memory is not what its Go release has, so nothing in it is believed",
                );
            }
            Err(_) => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Why a process whose executable is no Go program cannot be traced: Go code may have been loaded into it.
pub(super) fn not_go(process: &Process) -> anyhow::Error {
    match go_library(process) {
        Some((path, go)) => anyhow!(
            "this is not a Go program, but one that has loaded Go code: {} ({go}); leaktrace traces Go programs only",
            path.display()
        ),
        None => Refusal::NotGo.into(),
    }
}

/// Refuses a Go program that has loaded a plugin: a plugin brings functions of the runtime with it, so probes on
/// the program's own would miss what happens in the plugin's.
pub(super) fn without_plugins(process: &Process, program: &Program) -> anyhow::Result<()> {
    // Only a program with this function in it can have loaded one (src/plugin/plugin_dlopen.go).
    if program.functions.function_named("plugin.open").is_none() {
        return Ok(());
    }
    match go_library(process) {
        Some((path, _)) => Err(anyhow!(
            "it has loaded the Go plugin {}; leaktrace traces programs without plugins only",
            path.display()
        )),
        None => Ok(()),
    }
}

/// A library in the process that Go compiled, and by which release.
fn go_library(process: &Process) -> Option<(PathBuf, String)> {
    process.mapped_files().find_map(|(path, file)| {
        if path == process.exe {
            return None;
        }
        let build = resolve::buildinfo::read(&Elf::open(&file).ok()?).ok()?;
        Some((path, build.go.text.escape_debug().to_string()))
    })
}
