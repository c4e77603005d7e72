//! `leaktrace generate`: what packages ship besides the program.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory as _;

use crate::cli::{Cli, Generate, GenerateWhat};
use crate::config;

/// Prints it.
///
/// # Errors
/// When standard output cannot be written to.
pub fn run(arguments: &Generate) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    match arguments.what {
        GenerateWhat::Config => text.extend_from_slice(config::TEMPLATE.as_bytes()),
        GenerateWhat::Man => clap_mangen::Man::new(Cli::command())
            .render(&mut text)
            .context("cannot write the manual page")?,
        GenerateWhat::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "leaktrace", &mut text);
        }
    }
    io::stdout().lock().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}
