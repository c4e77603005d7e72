//! The arguments as typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use glob::Pattern;

use crate::budget::Share;

/// Finds leaking goroutines and timers in running, unmodified Go programs.
#[derive(Debug, Parser)]
#[command(
    name = "leaktrace",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count once what is alive: every goroutine and pending timer by call site. Puts no probe on, safe anywhere.
    Snapshot(Snapshot),
    /// Watch with probes for a while, then report. Exit code: 0 nothing found, 1 leak found, 2 error.
    Record(Record),
    /// Watch for a while, then show one verdict with all its evidence. Exit code: 0 nothing found, 1 leak found, 2 error.
    Explain(Explain),
    /// Watch all Go programs of this machine, or some, until told to stop, and serve what is known over HTTP.
    Daemon(Box<Daemon>),
    /// Watch in the terminal: a live table of call sites, the worst first. q quits, ? lists the keys.
    Top(Box<Top>),
    /// Compare two snapshots by call site: JSON or pprof, from leaktrace or from Go itself.
    Diff(Diff),
    /// Show what is in a Go program: release, build, and every instruction that a probe would sit on.
    Inspect(Inspect),
    /// Find out whether programs can be traced on this machine. Exit code: 0 with probes, 1 only snapshots, 2 nothing.
    Check(Check),
    /// Print the configuration file, the manual page or completions for a shell.
    Generate(Generate),
}

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    #[command(flatten)]
    /// Process or core file.
    pub what: SnapshotWhat,
    /// Executable that the core file came from, if it is not where the core says.
    #[arg(long, value_name = "FILE", requires = "core")]
    pub exe: Option<PathBuf>,
    #[command(flatten)]
    /// Where the report goes.
    pub output: ReportOutput,
}

/// What a snapshot looks at.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SnapshotWhat {
    /// Process to look at.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// Core file to look at, as the kernel or gcore wrote it.
    #[arg(long, value_name = "FILE")]
    pub core: Option<PathBuf>,
}

/// Arguments of `record`.
#[derive(Debug, Args)]
pub struct Record {
    /// Process to watch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// How long to watch: 90s, 5m, 1h. Ctrl-C ends it early, with the report.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    #[command(flatten)]
    /// What is heard of it.
    pub hearing: Hearing,
    /// Take what tunes the rules (`[rules]`) from this file, as the daemon does.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask a program built with Go 1.27 about a leak that was found, if it serves /debug/pprof/goroutineleak on loopback:
    /// that makes it collect its garbage, at most once in ten minutes.
    #[arg(long)]
    pub confirm: bool,
    #[command(flatten)]
    /// Where the report goes.
    pub output: ReportOutput,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Process to watch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// Call site to explain, or a part of its name: main.go:42. Without it, all that look like leaks.
    #[arg(value_name = "SITE")]
    pub site: Option<String>,
    /// How long to watch: 90s, 5m, 1h. Ctrl-C ends it early, with the answer.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    #[command(flatten)]
    /// What is heard of it.
    pub hearing: Hearing,
    #[command(flatten)]
    /// Where the answer goes.
    pub output: Output,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    /// Whom to watch, and how.
    pub watching: Watching,
}

/// Arguments of `daemon`.
#[derive(Debug, Args)]
pub struct Daemon {
    /// Ask a program built with Go 1.27 about a leak that was found, if it serves /debug/pprof/goroutineleak on loopback:
    /// that makes it collect its garbage, at most once in ten minutes.
    #[arg(long)]
    pub confirm: bool,
    #[command(flatten)]
    /// Whom to watch, and how.
    pub watching: Watching,
    /// File to read settings from, as `leaktrace generate config` prints it; SIGHUP reads it again.
    #[arg(long, value_name = "FILE", env = "LEAKTRACE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to serve on; port 0 takes a free one, which the log tells. [default: 127.0.0.1:9779]
    #[arg(long, value_name = "ADDRESS", env = "LEAKTRACE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// File that asks clients for a password, a certificate or TLS, in the format of Prometheus' exporters (web
    /// configuration file); read again when it or a file that it names changes.
    #[arg(long, value_name = "FILE", env = "LEAKTRACE_WEB_CONFIG_FILE")]
    pub web_config_file: Option<PathBuf>,
    /// Who is shown stacks and paths of executables. [default: auto]
    #[arg(long, value_name = "WHO", env = "LEAKTRACE_DETAILS")]
    pub details: Option<Details>,
    /// Folder in which the kubelet keeps logs. [default: /var/log]
    #[arg(long, value_name = "DIR", env = "LEAKTRACE_POD_LOGS")]
    pub pod_logs: Option<PathBuf>,
    /// API server or kubelet to ask for labels and owners of pods. [default: nobody]
    #[arg(long, value_name = "URL", env = "LEAKTRACE_POD_LIST")]
    pub pod_list: Option<String>,
}

/// What is heard of a program, and what that may cost it. What is not said is as [`Config`](crate::config::Config) has it.
#[derive(Clone, Copy, Debug, Args)]
pub struct Hearing {
    /// What the probes hear. [default: auto]
    #[arg(long, value_name = "LEVEL", env = "LEAKTRACE_EVENTS")]
    pub events: Option<EventsLevel>,
    /// What a program may lose to the probes, as a part of one core: 1%, 0.5%, or off. Less is heard when it would
    /// lose more; what is alive is counted all the same. [default: 1%]
    #[arg(long, value_name = "SHARE", env = "LEAKTRACE_BUDGET", value_parser = budget)]
    pub budget: Option<Allowed>,
}

/// Whom `daemon` and `top` watch, and how.
#[derive(Debug, Args)]
pub struct Watching {
    #[command(flatten)]
    /// Whom to watch.
    pub whom: Whom,
    /// Time between two counts of what is alive. [default: 5s; of `top` 1s]
    #[arg(long, value_name = "TIME", env = "LEAKTRACE_INTERVAL", value_parser = duration)]
    pub interval: Option<Duration>,
    #[command(flatten)]
    /// What is heard of each.
    pub hearing: Hearing,
    /// What all traced programs of this host together may lose. [default: 5%]
    #[arg(long, value_name = "SHARE", env = "LEAKTRACE_HOST_BUDGET", value_parser = budget)]
    pub host_budget: Option<Allowed>,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// What to print.
    #[command(subcommand)]
    pub what: GenerateWhat,
}

/// What `generate` prints.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum GenerateWhat {
    /// The daemon's configuration file with every key at its default, each explained.
    Config,
    /// The manual page, for man.
    Man,
    /// Completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Whom `daemon` and `top` watch: all of these together. Without any, every Go program. In patterns * and ? stand for
/// anything; each option may be given several times.
#[derive(Debug, Args)]
pub struct Whom {
    /// Watch this process.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Vec<i32>,
    /// Watch those whose executable's path matches, such as "/opt/*/server".
    #[arg(long, value_name = "GLOB")]
    pub exe: Vec<Pattern>,
    /// Watch those with this name, as in /proc/PID/comm.
    #[arg(long, value_name = "COMM")]
    pub name: Vec<Pattern>,
    /// Watch those of this systemd unit, such as "nginx.service".
    #[arg(long, value_name = "UNIT")]
    pub unit: Vec<Pattern>,
    /// Watch those in this container: its id, or at least six digits of it, or its name in the pod.
    #[arg(long, value_name = "ID")]
    pub container: Vec<Pattern>,
    /// Watch those in this pod.
    #[arg(long, value_name = "POD")]
    pub pod: Vec<Pattern>,
    /// Watch those in pods with this label, such as "app=web" (see --pod-list).
    #[arg(long, value_name = "LABEL")]
    pub pod_label: Vec<Pattern>,
    /// Watch those in pods of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Vec<Pattern>,
    /// Watch every Go program: what is done when nobody is named.
    #[arg(long)]
    pub all: bool,
    /// Do not watch those whose executable's path matches, unless they are named by --pid.
    #[arg(long, value_name = "GLOB")]
    pub exclude_exe: Vec<Pattern>,
    /// Do not watch those with this name.
    #[arg(long, value_name = "COMM")]
    pub exclude_name: Vec<Pattern>,
    /// Do not watch those of this systemd unit.
    #[arg(long, value_name = "UNIT")]
    pub exclude_unit: Vec<Pattern>,
    /// Do not watch those in this container.
    #[arg(long, value_name = "ID")]
    pub exclude_container: Vec<Pattern>,
    /// Do not watch those in this pod.
    #[arg(long, value_name = "POD")]
    pub exclude_pod: Vec<Pattern>,
    /// Do not watch those in pods with this label.
    #[arg(long, value_name = "LABEL")]
    pub exclude_pod_label: Vec<Pattern>,
    /// Do not watch those in pods of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    pub exclude_namespace: Vec<Pattern>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct InspectWhat {
    /// Process whose executable to look into.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// Executable to look into.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    /// Process or file.
    pub what: InspectWhat,
    #[command(flatten)]
    /// Where the answer goes.
    pub output: Output,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The earlier snapshot.
    #[arg(value_name = "A")]
    pub before: PathBuf,
    /// The later one.
    #[arg(value_name = "B")]
    pub after: PathBuf,
    #[command(flatten)]
    /// Where the answer goes.
    pub output: Output,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    /// Where the answer goes.
    pub output: Output,
}

/// How and where a report is written.
#[derive(Debug, Args)]
pub struct ReportOutput {
    /// Form of the report.
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub format: ReportFormat,
    /// File to write to instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Table,
    /// For programs: one JSON object, its shape named in "schema".
    Json,
    /// A compressed profile for `go tool pprof`, with the counts of goroutines and of timers.
    Pprof,
    /// Folded stacks of the goroutines, for flame graphs.
    Folded,
}

/// How and where an answer is written.
#[derive(Debug, Args)]
pub struct Output {
    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub format: Format,
    /// File to write to instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: one JSON object, its shape named in "schema".
    Json,
}

/// What the probes hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventsLevel {
    /// The richest level that costs the program little: today the same as lifecycle.
    Auto,
    /// Births and ends of goroutines, timers armed, stopped and fired.
    Lifecycle,
    /// Also every time a goroutine blocks or wakes: dear on a busy program.
    Full,
    /// Nothing: only count what is alive.
    None,
}

/// Who is shown stacks and paths of executables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Details {
    /// Who asks from this machine by its address or as localhost, and who has shown a password or a certificate.
    Auto,
    /// Everybody who reaches the daemon.
    Always,
    /// Nobody.
    Never,
}

/// What a program may lose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowed(pub Option<Share>);

/// Reads a share of one core such as `1%`, or `off`.
pub(crate) fn budget(text: &str) -> Result<Allowed, String> {
    if text == "off" {
        return Ok(Allowed(None));
    }
    let wrong = || "a budget is a part of one core, such as 1%, or off".to_owned();
    let number = text.strip_suffix('%').ok_or_else(wrong)?;
    let percent: f64 = number.trim_end().parse().map_err(|_| wrong())?;
    if !(0.01..=10_000.0).contains(&percent) {
        return Err("a budget lies between 0.01% and 10000% of a core, or is off".to_owned());
    }
    Ok(Allowed(Some(Share(percent / 100.0))))
}

/// Reads a time such as `90s`, `5m`, `1h` or `500ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit \"{unit}\": use ms, s, m or h")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "a time is a number and a unit, such as 60s".to_owned())?;
    let seconds = number * scale;
    if !(0.1..=31_536_000.0).contains(&seconds) {
        return Err("a time lies between 100ms and a year".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn budgets() {
        assert_eq!(budget("1%"), Ok(Allowed(Some(Share(0.01)))));
        assert_eq!(budget("0.5 %"), Ok(Allowed(Some(Share(0.005)))));
        assert_eq!(budget("off"), Ok(Allowed(None)));
        for wrong in ["", "1", "%", "-1%", "0%", "nan%", "inf%", "1%%"] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for wrong in ["", "s", "-1s", "5 parsecs", "0s", "1e9h", "nans"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
