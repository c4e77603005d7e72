//! `cargo xtask alerts`: records the metrics of a real leak, and of its mending, for `promtool test rules`.
//!
//! A daemon watches a service that leaks and one that does not. After some minutes the one that leaks is replaced by its
//! healthy twin, as a release would. The series that the rules read are written down with the alerts that have to fire on
//! them, and when: the test run gives both to promtool. Nothing is shortened, so this takes a quarter of an hour.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::repository;

use crate::daemon::Daemon;
use crate::demo;
use crate::{go, screenshots};

/// Arguments of `cargo xtask alerts`.
#[derive(clap::Args)]
pub struct Arguments {
    /// File to write
    #[arg(
        long,
        value_name = "FILE",
        default_value = "deploy/prometheus/leaktrace.recorded.test.yml"
    )]
    output: PathBuf,
}

/// Time between two scrapes.
const STEP: Duration = Duration::from_secs(15);

/// Scrapes before the leaking program is replaced, and in all: eight minutes of eleven.
const REPLACED: usize = 32;
const SCRAPES: usize = 44;

/// The metrics that the rules read.
const READ: [&str; 12] = [
    "leaktrace_census_drift",
    "leaktrace_budget_ratio",
    "leaktrace_events_lost_total",
    "leaktrace_goroutine_stack_bytes",
    "leaktrace_goroutines",
    "leaktrace_leak",
    "leaktrace_leak_growth_per_hour",
    "leaktrace_overhead_ratio",
    "leaktrace_target_memory_bytes",
    "leaktrace_target_memory_limit_bytes",
    "leaktrace_target_up",
    "leaktrace_timers_pending",
];

/// The service that leaks and is mended, and the line of its leak.
const SHOP: &str = "shop";

/// What Prometheus adds: whether the scrape succeeded.
const UP: &str = "up{instance=\"127.0.0.1:9779\",job=\"leaktrace\"}";

/// Values by series, one for each scrape; `None` where there was none.
type Series = BTreeMap<String, Vec<Option<String>>>;

/// Records, and writes the file.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root: run it as root");
    let leaktrace = screenshots::build_leaktrace()?;
    let toolchain = go::install("1.27.3")?;
    let leaking = build::build("handler-timeout", &toolchain, Variant::DEFAULT)?;
    let healthy = build::build("handler-timeout-healthy", &toolchain, Variant::DEFAULT)?;
    let folder = tempfile::tempdir()?;
    let mut shop = start(&leaking, folder.path(), SHOP)?;
    let _other = start(&healthy, folder.path(), "catalogue")?;
    let everything = format!("{}/*", folder.path().display());
    let daemon = Daemon::start(&leaktrace, &["--interval", "1s", "--exe", &everything])?;

    let mut series = Series::new();
    let minutes = STEP.as_secs_f64() * SCRAPES as f64 / 60.0;
    eprintln!("recording for {minutes:.0} minutes");
    let begin = Instant::now();
    for (number, at) in (0..SCRAPES).zip(1..) {
        if number == REPLACED {
            drop(shop);
            shop = start(&healthy, folder.path(), SHOP)?;
        }
        match daemon.asked.page("/metrics") {
            Ok(metrics) => note(&mut series, &metrics, number),
            // As Prometheus does: the scrape has failed, and the next may not.
            Err(error) => eprintln!("scrape {number}: {error:#}"),
        }
        // The time of the next scrape, not a pause: a slow scrape does not shift the others.
        thread::sleep((begin + STEP * at).saturating_duration_since(Instant::now()));
    }
    let text = rendered(&series)?;
    let path = repository().join(&arguments.output);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Starts a program under the name of a service; a file of that name is replaced as a release does it.
fn start(executable: &Path, folder: &Path, name: &str) -> Result<Program> {
    let (new, path) = (folder.join(format!(".{name}.new")), folder.join(name));
    fs::copy(executable, &new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(&new, &path)?;
    Program::start(&path, &[])
}

/// Writes down one scrape.
fn note(series: &mut Series, text: &str, number: usize) {
    let up = format!("{UP} 1");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    for line in lines.chain([&*up]) {
        let Some((name, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let family = name.split_once('{').map_or(name, |(family, _)| family);
        if READ.contains(&family) || family == "up" {
            let values = series.entry(name.to_owned()).or_default();
            values.resize(number, None);
            values.push(Some(value.to_owned()));
        }
    }
}

/// The file for promtool.
fn rendered(series: &Series) -> Result<String> {
    // The rule that says so may change while it leaks, and with it the series.
    let leaks: Vec<_> = (series.iter())
        .filter(|(name, _)| {
            name.starts_with("leaktrace_leak{") && name.contains(&format!("target=\"{SHOP}\""))
        })
        .collect();
    let begins = leaks
        .iter()
        .filter_map(|(_, values)| values.iter().position(Option::is_some));
    let ends = leaks
        .iter()
        .filter_map(|(_, values)| values.iter().rposition(Option::is_some));
    let (first, last) = (begins.min())
        .zip(ends.max())
        .context("no leak was found")?;
    ensure!(
        (REPLACED - 1..=REPLACED + 1).contains(&last),
        "the leak was last seen in scrape {last}, and its program replaced before scrape {REPLACED}: {leaks:?}"
    );
    let mut text = format!(
        "# Recorded from a real run by `cargo xtask alerts`: {SHOP} (fixtures/handler-timeout, Go 1.27.3) leaks, and is replaced by\n\
         # its healthy twin before scrape {REPLACED}; catalogue is healthy all the time. A scrape every {} seconds; nothing was edited.\n\
         rule_files: [leaktrace.rules.yml]\n\
         group_eval_order: [leaktrace-records, leaktrace-leaks, leaktrace-itself]\n\
         evaluation_interval: {}s\n\
         tests:\n  - name: a real leak, and its end\n    interval: {}s\n    input_series:\n",
        STEP.as_secs(),
        STEP.as_secs(),
        STEP.as_secs(),
    );
    for (name, values) in series {
        let name = name.replace('\'', "''");
        let values = written(values);
        writeln!(text, "      - series: '{name}'\n        values: '{values}'")?;
    }
    text.push_str("    promql_expr_test:\n");
    let at = |scrape: usize| format!("{}s", STEP.as_secs() * scrape as u64);
    let five_minutes = 300 / usize::try_from(STEP.as_secs())?;
    let alerts = "count by (alertname, alertstate, target) (ALERTS)";
    let both = |state: &str| -> Vec<(String, u32)> {
        ["LeaktraceLeak", "LeaktraceLeakFast"]
            .map(|name| {
                let labels =
                    format!("{{alertname=\"{name}\", alertstate=\"{state}\", target=\"{SHOP}\"}}");
                (labels, 1)
            })
            .to_vec()
    };
    let in_shop = format!("{{target=\"{SHOP}\"}}");
    let count = format!("target:leaktrace_leak:count{in_shop}");
    for (query, scrape, found) in [
        (alerts, first.saturating_sub(1), vec![]),
        // The rules are evaluated in order, so growth and leak are seen in one evaluation.
        (alerts, first + five_minutes - 1, both("pending")),
        (alerts, first + five_minutes + 1, both("firing")),
        (alerts, last, both("firing")),
        (alerts, last + 1, vec![]),
        (alerts, SCRAPES - 1, vec![]),
        ("target:leaktrace_leak:count", last, vec![(count, 1)]),
        (
            "target:leaktrace_memory_left:seconds > bool 3600",
            last,
            vec![(in_shop, 1)],
        ),
    ] {
        let found: Vec<String> = (found.iter())
            .map(|(labels, value)| format!("{{labels: '{labels}', value: {value}}}"))
            .collect();
        writeln!(
            text,
            "      - expr: {query}\n        eval_time: {}\n        exp_samples: [{}]",
            at(scrape),
            found.join(", ")
        )?;
    }
    Ok(text)
}

/// Values as promtool reads them: `5x3` is 5 four times, `_x3` nothing three times; a series that ends is stale from then on.
fn written(values: &[Option<String>]) -> String {
    let ends = values.len() < SCRAPES;
    let mut words: Vec<String> = (values.chunk_by(|one, next| one == next))
        .map(|run| match (&run[0], run.len()) {
            (None, length) => format!("_x{length}"),
            (Some(value), 1) => value.clone(),
            (Some(value), length) => format!("{value}x{}", length - 1),
        })
        .collect();
    if ends {
        words.push("stale".to_owned());
    }
    words.join(" ")
}
