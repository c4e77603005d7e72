//! `leaktrace inspect`: what is in this binary, and where probes would sit.

use std::fmt::Write as _;
use std::fs::File;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::output;
use super::progress::Progress;
use crate::cli::Inspect;
use crate::export::report::SCHEMA;
use crate::resolve::{self, Execution, GlobalsSource, OffsetsSource, Program};
use crate::session::{Session, kind_name};
use crate::target::Pid;

/// What was found, in the shape of the JSON answer.
#[derive(Debug, Serialize)]
struct Answer {
    schema: &'static str,
    file: String,
    go_version: String,
    module: String,
    version: String,
    vcs_revision: String,
    build_id: String,
    arch: &'static str,
    pie: bool,
    functions: u32,
    offsets_from: &'static str,
    globals_from: &'static str,
    probes: Vec<Probe>,
}

/// One kind of event, and where it would be probed.
#[derive(Debug, Serialize)]
struct Probe {
    event: &'static str,
    sites: Vec<Site>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct Site {
    function: String,
    offset_in_function: u64,
    address: String,
    file_offset: String,
    bytes: String,
    text: String,
    execution: &'static str,
}

/// Looks into the binary and writes what it found.
///
/// # Errors
/// When the file is no Go program that leaktrace knows, or cannot be read.
pub fn run(arguments: &Inspect) -> anyhow::Result<ExitCode> {
    let answer = match (arguments.what.pid, &arguments.what.file) {
        (Some(pid), _) => {
            // What holds for a file need not for the process: this also has its memory checked.
            let _progress = Progress::begin(format!("reading the executable of process {pid}"));
            let session = Session::open(Pid(pid))?;
            answer(session.process.exe.display().to_string(), session.program())
        }
        (None, Some(path)) => {
            let file =
                File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            let name = path.display().to_string();
            let _progress = Progress::begin(format!("reading {name}"));
            let program =
                resolve::resolve(&file).with_context(|| format!("cannot trace {name}"))?;
            answer(name, &program)
        }
        (None, None) => anyhow::bail!("name a process with --pid, or a file"),
    };
    output::write(&answer, &arguments.output, || table(&answer))?;
    Ok(ExitCode::SUCCESS)
}

fn answer(file: String, program: &Program) -> Answer {
    let build = &program.build;
    Answer {
        schema: SCHEMA,
        file,
        go_version: build.go.text.clone(),
        module: build.module.clone(),
        version: build.module_version.clone(),
        vcs_revision: build.vcs_revision.clone(),
        build_id: program.build_id.clone(),
        arch: program.arch.name(),
        pie: program.pie,
        functions: program.functions.len(),
        offsets_from: match program.offsets_source {
            OffsetsSource::Dwarf => "dwarf",
            OffsetsSource::Table => "table",
        },
        globals_from: match program.globals_source {
            GlobalsSource::Symtab => "symtab",
            GlobalsSource::Code => "code",
        },
        probes: program
            .sites
            .iter()
            .map(|choice| Probe {
                event: kind_name(choice.kind),
                sites: choice
                    .found
                    .iter()
                    .flatten()
                    .map(|site| Site {
                        function: site.function.clone(),
                        offset_in_function: site.offset_in_function,
                        address: site.address.to_string(),
                        file_offset: site.file_offset.to_string(),
                        bytes: hex(&site.bytes),
                        text: site.text.clone(),
                        execution: match site.execution {
                            Execution::Emulated => "emulated",
                            Execution::SingleStepped => "single-stepped",
                        },
                    })
                    .collect(),
                refused: choice.found.as_ref().err().cloned(),
            })
            .collect(),
    }
}

fn table(answer: &Answer) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write_table(&mut out, answer);
    out
}

fn write_table(out: &mut String, answer: &Answer) -> std::fmt::Result {
    writeln!(out, "{}", answer.file)?;
    let pie = if answer.pie {
        ", position independent"
    } else {
        ""
    };
    writeln!(out, "  {} {}{pie}", answer.go_version, answer.arch)?;
    for (name, value) in [
        ("module", &answer.module),
        ("version", &answer.version),
        ("revision", &answer.vcs_revision),
        ("build id", &answer.build_id),
    ] {
        if !value.is_empty() {
            writeln!(out, "  {name} {value}")?;
        }
    }
    let offsets = match answer.offsets_from {
        "dwarf" => "the binary's DWARF",
        _ => "the table for this Go release",
    };
    let globals = match answer.globals_from {
        "symtab" => "the symbol table",
        _ => "the code of the functions that use them",
    };
    writeln!(out, "  {} functions in pclntab", answer.functions)?;
    writeln!(out, "  offsets of fields from {offsets}")?;
    writeln!(out, "  addresses of the runtime's lists from {globals}")?;
    writeln!(out, "\nprobes")?;
    for probe in &answer.probes {
        if let Some(reason) = &probe.refused {
            writeln!(out, "  {:<8} none: {reason}", probe.event)?;
        }
        for site in &probe.sites {
            let function = format!("{}+{:#x}", site.function, site.offset_in_function);
            writeln!(
                out,
                "  {:<8} {function:<40} {:<24} {}",
                probe.event, site.text, site.execution
            )?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
