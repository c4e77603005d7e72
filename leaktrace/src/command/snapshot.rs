//! `leaktrace snapshot`: one census of one process or core file, no probes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, ensure};

use super::output;
use super::progress::Progress;
use crate::address::LoadBias;
use crate::census::{self, CoreFile, CoreMemory, Layout, Places};
use crate::cli::Snapshot;
use crate::export::Report;
use crate::export::report::{Events, Facts, Target};
use crate::ledger::{Ledger, Symbolizer};
use crate::resolve;
use crate::resolve::elf::Elf;
use crate::session::{Depth, Session};
use crate::target::Pid;
use crate::verdict::{Moment, Standings};

/// Takes the census and writes it.
///
/// # Errors
/// When the process or core file cannot be read, or the answer not written.
pub fn run(arguments: &Snapshot) -> anyhow::Result<ExitCode> {
    let report = match (arguments.what.pid, &arguments.what.core) {
        (Some(pid), _) => {
            let progress = Progress::begin(format!("reading the executable of process {pid}"));
            let mut session = Session::open(Pid(pid))?;
            progress.next("counting what is alive");
            session.census(Depth::Places)?;
            session.report()
        }
        (None, Some(core)) => of_core(core, arguments.exe.as_deref())
            .with_context(|| format!("cannot examine {}", core.display()))?,
        (None, None) => anyhow::bail!("name a process with --pid, or a core file with --core"),
    };
    output::write_report(&report, &arguments.output)?;
    Ok(ExitCode::SUCCESS)
}

/// The same walk over the memory that a core file kept. There is no clock in it: nothing has an age.
fn of_core(path: &Path, exe: Option<&Path>) -> anyhow::Result<Report> {
    let progress = Progress::begin(format!("reading {}", path.display()));
    let file = File::open(path).context("cannot open it")?;
    let core = CoreFile::open(&file)?;
    let exe = exe.map_or_else(|| PathBuf::from(&core.exe), Path::to_path_buf);
    ensure!(
        !exe.as_os_str().is_empty(),
        "the core does not tell which executable it came from: name it with --exe"
    );
    let executable = File::open(&exe).with_context(|| {
        format!(
            "cannot open its executable {}: name it with --exe",
            exe.display()
        )
    })?;
    let program = Rc::new(
        resolve::resolve(&executable).with_context(|| format!("cannot read {}", exe.display()))?,
    );
    let elf = Elf::open(&executable)?;
    let linked = program.program_headers;
    let bias = LoadBias(core.program_headers.0.wrapping_sub(linked.0));
    let memory = CoreMemory::new(&core, &file, &elf, bias);
    let layout = Layout::new(&program, bias);
    let wait_reasons = census::wait_reasons(&memory, &layout)?;
    let symbols = Symbolizer::new(Rc::clone(&program), bias, layout.timer_functions.clone());
    progress.next("counting what was alive");
    let census = census::take(&memory, &layout, &|| 0)?;
    let places = Places::of(
        &census,
        &memory,
        &layout,
        &wait_reasons,
        &symbols,
        false,
        &|| 0,
    )?;
    let mut ledger = Ledger::default();
    ledger.reconcile(census, &symbols);
    let mut standings = Standings::default();
    standings.judge(&Moment {
        reached: None,
        has_pointers: layout.heap.is_some(),
        ledger: &ledger,
        symbols: &symbols,
        wait_reasons: &wait_reasons,
        places: Some(&places),
        started_ns: 0,
        watched_since_ns: 0,
        now_ns: 0,
    });
    let facts = Facts {
        target: Target::new(core.pid, 0.0, exe.to_string_lossy().into_owned(), &program),
        program: &program,
        wait_reasons: &wait_reasons,
        hidden: None,
        places: &places,
        standings: &standings,
        watched_since_ns: 0,
        blocked: &[],
        events: Events {
            level: "none",
            ..Events::default()
        },
        now_ns: 0,
        now_unix: 0.0,
    };
    Ok(Report::new(&ledger, &symbols, facts))
}
