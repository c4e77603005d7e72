//! `cargo xtask bench`: what being traced costs a program, against the same program untraced; written to doc/cost.md.
//!
//! Ratios within one run count, and medians of pairs; single numbers do not, since machines drift. Each section can be
//! measured by itself: doc/cost.md is made of the latest of each, with its date.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::{repository, target_dir};

use crate::{demo, go};

mod census;
mod daemon;
mod http;
mod ledger;
mod placement;
mod plot;
mod side_by_side;
mod slow_down;
mod verdict;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Sections to measure, by default all: placement, slow-down, http, census, ledger, daemon, verdict
    #[arg(value_name = "SECTION")]
    sections: Vec<String>,
    /// Pairs of untraced and traced stretches of which medians are taken
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=99))]
    pairs: u32,
    /// Seconds of a stretch under the default settings; others are shorter
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
    /// Of the slow-down only this program: spawn-storm, ping-pong or timer-storm
    #[arg(long)]
    program: Option<String>,
    /// Go release of the traced programs
    #[arg(long, default_value = "1.27.3")]
    go: String,
}

/// What a section found.
pub struct Section {
    /// Paragraphs and tables, without the heading.
    pub markdown: String,
    /// Plots: the file's name below doc/, and what is in it.
    pub plots: Vec<(&'static str, String)>,
}

type Measure = fn(&Setup) -> Result<Section>;

/// The sections in their order: name, heading, and what measures it.
const SECTIONS: [(&str, &str, Measure); 7] = [
    (
        "placement",
        "One hit, by where the probe sits",
        placement::run,
    ),
    (
        "slow-down",
        "Programs that do nothing but what is probed",
        slow_down::run,
    ),
    ("http", "What the clients of a server notice", http::run),
    ("census", "Counting everything", census::run),
    ("ledger", "Booking events", ledger::run),
    ("daemon", "The daemon itself", daemon::run),
    ("verdict", "From start to the first verdict", verdict::run),
];

/// What sections are given.
pub struct Setup {
    /// The command under test, built for release.
    pub leaktrace: PathBuf,
    /// Pairs of stretches.
    pub pairs: u32,
    /// Seconds of a stretch under the default settings.
    pub seconds: u32,
    /// The only program whose slow-down is measured.
    pub program: Option<String>,
    /// Go release.
    pub go: String,
}

/// Measures, prints, and writes doc/cost.md.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here: run it as root");
    for wanted in &arguments.sections {
        if !SECTIONS.iter().any(|(name, _, _)| name == wanted) {
            let names: Vec<_> = SECTIONS.iter().map(|(name, _, _)| *name).collect();
            bail!(
                "there is no section {wanted}: choose of {}",
                names.join(", ")
            );
        }
    }
    let setup = Setup {
        leaktrace: demo::build_leaktrace()?,
        pairs: arguments.pairs,
        seconds: arguments.seconds,
        program: arguments.program.clone(),
        go: arguments.go.clone(),
    };
    go::install(&setup.go)?;
    let kept = target_dir().join("bench");
    fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
    let doc = repository().join("doc");
    fs::create_dir_all(&doc).with_context(|| format!("making {}", doc.display()))?;
    for (name, heading, measure) in SECTIONS {
        if !arguments.sections.is_empty() && !arguments.sections.iter().any(|wanted| wanted == name)
        {
            continue;
        }
        eprintln!("\n==> {name}: {heading}");
        let section = measure(&setup).with_context(|| format!("measuring {name}"))?;
        println!("\n{}", section.markdown);
        let text = format!(
            "## {heading}\n\n{}\n*Measured {}, {}.*\n",
            section.markdown,
            today()?,
            machine()
        );
        fs::write(kept.join(format!("{name}.md")), text)?;
        for (file, svg) in section.plots {
            fs::write(doc.join(file), svg)?;
        }
    }
    let path = doc.join("cost.md");
    // Sections that were measured on another machine stay as they are.
    let before = fs::read_to_string(&path).unwrap_or_default();
    let mut document = String::from(HEAD);
    for (name, heading, _) in SECTIONS {
        let text = fs::read_to_string(kept.join(format!("{name}.md"))).ok();
        document += "\n";
        document += &text
            .or_else(|| section(&before, heading))
            .unwrap_or_else(|| format!("## {heading}\n\nNot measured yet.\n"));
    }
    fs::write(&path, document).with_context(|| format!("writing {}", path.display()))?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// One section of a document, with its heading.
fn section(document: &str, heading: &str) -> Option<String> {
    let begin = document.find(&format!("## {heading}\n"))?;
    let text = document.get(begin..)?;
    let end = text
        .get(3..)?
        .find("\n## ")
        .map_or(text.len(), |end| end + 3);
    Some(text.get(..end)?.trim_end().to_owned() + "\n")
}

const HEAD: &str = "# What leaktrace costs\n\n\
    Written by `cargo xtask bench`. Everything is compared within one run on one machine: a program traced and untraced\n\
    in turn, or two copies of it side by side; leaktrace and others on the same program. On bare metal a probe costs\n\
    about a third of what it does in a virtual machine; the ratios stay.\n";

fn today() -> Result<String> {
    let output = Command::new("date").arg("-u").arg("+%Y-%m-%d").output();
    let output = output.context("running date")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The machine, as far as it tells: processor, how many, kernel, how busy.
fn machine() -> String {
    let field = |path: &str, key: &str| -> String {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':')).map_or_else(
            || "unknown processor".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let line = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let load = line("/proc/loadavg");
    let load = load.split_ascii_whitespace().next().unwrap_or("?");
    format!(
        "{cores} × {}, Linux {}, load {load} at the end",
        field("/proc/cpuinfo", "model name"),
        line("/proc/sys/kernel/osrelease")
    )
}

/// A processor for a program and for leaktrace: what the one takes, the other lacks.
const FIRST: &str = "0";
/// A processor for whoever else there is.
const SECOND: &str = "1";

/// A program on one processor. Where the kernel may move programs about, it is chance that decides over more than is measured.
/// Go sees one processor then.
fn on(processor: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", processor]).arg(program);
    command
}

/// The median; the upper of the middle two of an even number.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::section;

    #[test]
    fn a_section_ends_where_the_next_begins() {
        let document = "# Title\n\n## One\n\n1\n\n## Two\n\n2\n";
        assert_eq!(section(document, "One").as_deref(), Some("## One\n\n1\n"));
        assert_eq!(section(document, "Two").as_deref(), Some("## Two\n\n2\n"));
        assert_eq!(section(document, "Three"), None);
    }
}
