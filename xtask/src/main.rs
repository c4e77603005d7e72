//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, and what those are made of.

use std::process::ExitCode;

use clap::Parser;

mod demo;
mod fixtures;
mod go;
mod test;
mod tools;

/// The project's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    /// Watch two leaking programs and a healthy one, and show what leaktrace says
    Demo(demo::Arguments),
    /// Run every test, those that attach to real processes too
    Test(test::Arguments),
    /// Fetch Go toolchains
    Go(go::Arguments),
    /// Build a Go fixture and print where it is
    Fixture(fixtures::Arguments),
    /// Fetch the real servers that tests attach to
    Tools(tools::Arguments),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Go(arguments) => go::run(&arguments),
        Command::Fixture(arguments) => fixtures::run(&arguments),
        Command::Tools(arguments) => tools::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
