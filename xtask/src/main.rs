//! The project's own commands.

use std::process::ExitCode;

use clap::Parser;

mod build_ebpf;

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
enum Task {
    BuildEbpf(build_ebpf::BuildEbpf),
}

fn main() -> anyhow::Result<ExitCode> {
    match Task::parse() {
        Task::BuildEbpf(task) => task.run(),
    }
}
