//! The leaktrace command: parse, run, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use leaktrace::cli::{Cli, Command};
use leaktrace::command;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default_level = match cli.command {
        Command::Daemon(_) => "info",
        // A line on standard error would tear the screen.
        Command::Top(_) => "off",
        _ => "warn",
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("LEAKTRACE_LOG").unwrap_or_else(|_| default_level.into()),
        )
        .with_writer(io::stderr)
        // A line that cannot be written is lost: to complain about it in the same place would be the end of us.
        .log_internal_errors(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
    let outcome = match cli.command {
        Command::Snapshot(arguments) => command::snapshot::run(&arguments),
        Command::Record(arguments) => command::record::run(&arguments),
        Command::Explain(arguments) => command::explain::run(&arguments),
        Command::Daemon(arguments) => command::daemon::run(&arguments),
        Command::Top(arguments) => command::top::run(&arguments),
        Command::Diff(arguments) => command::diff::run(&arguments),
        Command::Inspect(arguments) => command::inspect::run(&arguments),
        Command::Check(arguments) => command::check::run(&arguments),
        Command::Generate(arguments) => command::generate::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the parts of the chain hold. If standard error is closed, nobody is there to tell.
            let sentence = format!("{error:#}").replace('\n', " ");
            let _ = writeln!(io::stderr(), "leaktrace: {sentence}");
            ExitCode::from(2)
        }
    }
}

/// `leaktrace … | head` closes our standard output: that is no error of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
