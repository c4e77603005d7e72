//! The project's own commands.

use std::process::ExitCode;

use clap::Parser;

mod offsets;

/// The project's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    /// Make the table of struct offsets from what Go toolchains compile
    Offsets(offsets::Arguments),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Offsets(arguments) => offsets::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
