//! leaktrace on one process, as a user runs it, and whether its answers make sense in themselves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// How long a command may take beyond what it was told to watch.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command.
pub struct Tracer<'l> {
    pub leaktrace: &'l Path,
    pub pid: u32,
    /// A folder for its answers.
    pub folder: &'l Path,
}

/// What a command came to.
pub enum Answer {
    /// Exit code 0 or 1, and what was printed.
    Report(Box<Value>),
    /// Exit code 2, and the sentence that says why.
    Refusal(String),
}

/// A command that is still at work. Dropping it kills it.
pub struct Working {
    child: Child,
    output: PathBuf,
}

impl Tracer<'_> {
    /// What is in an executable.
    pub fn inspect(&self, executable: &Path) -> Result<Answer> {
        let file = executable.to_string_lossy();
        self.start("inspect", &["inspect", &file])?.wait(PATIENCE)
    }

    /// One census.
    pub fn snapshot(&self) -> Result<Answer> {
        let pid = self.pid.to_string();
        self.start("snapshot", &["snapshot", "--pid", &pid])?
            .wait(PATIENCE)
    }

    /// Begins to watch.
    pub fn record(&self, seconds: u64) -> Result<Working> {
        let pid = self.pid.to_string();
        let duration = format!("{seconds}s");
        self.start(
            "record",
            &["record", "--pid", &pid, "--duration", &duration],
        )
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Result<Working> {
        let output = self.folder.join(name);
        let child = Command::new(self.leaktrace)
            .args(arguments)
            .args(["--format", "json"])
            .stdin(Stdio::null())
            .stdout(File::create(output.with_extension("out"))?)
            .stderr(File::create(output.with_extension("err"))?)
            .spawn()
            .context("starting leaktrace")?;
        Ok(Working { child, output })
    }
}

impl Working {
    /// Waits for its end, which has to come within `limit` from now.
    pub fn wait(mut self, limit: Duration) -> Result<Answer> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "leaktrace did not end in time");
            thread::sleep(Duration::from_millis(10));
        };
        let errors = fs::read_to_string(self.output.with_extension("err"))?;
        let sentence = errors.trim().trim_start_matches("leaktrace: ").to_owned();
        match status.code() {
            Some(0 | 1) => {
                let text = fs::read(self.output.with_extension("out"))?;
                let report = serde_json::from_slice(&text).context("leaktrace's JSON")?;
                ensure!(sentence.is_empty(), "leaktrace complains: {sentence}");
                Ok(Answer::Report(Box::new(report)))
            }
            Some(2) => Ok(Answer::Refusal(sentence)),
            code => bail!("leaktrace ended with {code:?}: {sentence}"),
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // Both fail only when it has ended, as it has in most cases.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    /// The report; the refusal as an error.
    pub fn report(self) -> Result<Value> {
        match self {
            Self::Report(report) => Ok(*report),
            Self::Refusal(sentence) => bail!("leaktrace: {sentence}"),
        }
    }
}

/// What does not make sense in the answer of `inspect`; and in a few words what it found.
pub fn mistakes_in_inspection(
    found: &Value,
    go: &str,
    position_independent: bool,
    mistakes: &mut Vec<String>,
) -> String {
    let version = found["go_version"].as_str().unwrap_or_default();
    let release = version.strip_prefix("go").unwrap_or_default();
    let patch = release.strip_prefix(go);
    if !patch.is_some_and(|rest| rest.is_empty() || !rest.starts_with(|c: char| c.is_ascii_digit()))
    {
        mistakes.push(format!("inspect says {version:?}, but Go {go} built it"));
    }
    if found["pie"] != position_independent {
        let what = &found["pie"];
        mistakes.push(format!("inspect says that position independent is {what}"));
    }
    let probes: Vec<&Value> = found["probes"].as_array().into_iter().flatten().collect();
    let (mut probed, mut words) = (0, Vec::new());
    for probe in &probes {
        let event = probe["event"].as_str().unwrap_or("?");
        let sites: Vec<&Value> = probe["sites"].as_array().into_iter().flatten().collect();
        let stepped = sites.iter().any(|site| site["execution"] != "emulated");
        match (sites.is_empty(), probe["refused"].as_str()) {
            (false, None) if !stepped => probed += 1,
            (false, None) => words.push(format!("{event} single-stepped")),
            (true, Some(reason)) => words.push(format!("no {event}: {reason}")),
            _ => mistakes.push(format!("inspect has neither site nor reason for {event}")),
        }
    }
    if probes.is_empty() {
        mistakes.push("inspect names no events".to_owned());
    }
    words.insert(0, format!("{probed}/{} emulated", probes.len()));
    words.join(", ")
}

/// What does not add up in a report of `snapshot` or `record`.
pub fn mistakes_in_report(report: &Value, pid: u32, mistakes: &mut Vec<String>) {
    let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
    let sum = |value: &Value| -> u64 {
        let parts = value.as_object().into_iter().flatten();
        parts.map(|(_, part)| part.as_u64().unwrap_or(0)).sum()
    };
    if report["schema"] != "leaktrace/v1" || report["target"]["pid"] != pid {
        mistakes.push("a report is of another shape or process".to_owned());
    }
    let sites = |kind: &str| -> u64 {
        let all = report["sites"].as_array().into_iter().flatten();
        let of_kind = all.filter(|site| site["kind"] == kind);
        of_kind
            .map(|site| site["count"].as_u64().unwrap_or(0))
            .sum()
    };
    for (kind, totals, parts) in [
        (
            "goroutine",
            &report["goroutines"]["total"],
            &report["goroutines"]["by_state"],
        ),
        (
            "timer",
            &report["timers"]["total"],
            &report["timers"]["by_kind"],
        ),
    ] {
        let (total, by_part, by_site) = (number(totals), sum(parts), sites(kind));
        if total != by_part || total != by_site {
            mistakes.push(format!(
                "{total} {kind}s in all, {by_part} of them by kind, {by_site} by site"
            ));
        }
    }
    if report["goroutines"]["total"].as_u64().is_none_or(|n| n < 1) {
        mistakes.push("a report has no goroutine".to_owned());
    }
}

/// What is wrong in the report of `record` beyond that.
pub fn mistakes_in_record(report: &Value, seconds: u64, mistakes: &mut Vec<String>) {
    let events = &report["events"];
    let watched = events["seconds"].as_f64().unwrap_or(0.0);
    #[expect(
        clippy::cast_precision_loss,
        reason = "it is at most an hour of seconds"
    )]
    let wanted = seconds as f64;
    if !(wanted - 1.0..wanted + 10.0).contains(&watched) {
        mistakes.push(format!("record watched for {watched} s of {seconds}"));
    }
    if events["level"] != "lifecycle" || events["lost"].as_u64().is_none() {
        mistakes.push(format!(
            "record speaks of level {} and {} lost events",
            events["level"], events["lost"]
        ));
    }
    if report["goroutines"]["drift"] != 0 {
        let drift = &report["goroutines"]["drift"];
        mistakes.push(format!("events and census disagree on {drift} at the end"));
    }
    for site in report["sites"].as_array().into_iter().flatten() {
        if site["verdict"] == "leak" {
            let (site, evidence) = (&site["site"], &site["evidence"]);
            mistakes.push(format!("called a leak: {site}: {evidence}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sound() -> Value {
        json!({
            "schema": "leaktrace/v1", "target": {"pid": 7},
            "goroutines": {"total": 3, "by_state": {"select": 2, "running": 1}, "drift": 0},
            "timers": {"total": 1, "by_kind": {"sleep": 1}},
            "sites": [
                {"kind": "goroutine", "count": 3, "verdict": "ok"},
                {"kind": "timer", "count": 1, "verdict": "ok"},
            ],
            "events": {"level": "lifecycle", "lost": 0, "seconds": 10.02},
        })
    }

    fn mistakes(report: &Value) -> Vec<String> {
        let mut found = Vec::new();
        mistakes_in_report(report, 7, &mut found);
        mistakes_in_record(report, 10, &mut found);
        found
    }

    #[test]
    fn a_sound_report_is_accepted_and_each_mistake_is_named() {
        assert_eq!(mistakes(&sound()), Vec::<String>::new());
        for (path, value, word) in [
            ("/schema", json!("other"), "another shape"),
            ("/target/pid", json!(8), "another shape"),
            ("/goroutines/by_state/select", json!(1), "3 goroutines"),
            ("/timers/total", json!(0), "0 timers"),
            ("/sites/0/count", json!(2), "2 by site"),
            ("/goroutines/drift", json!(2), "disagree on 2"),
            ("/events/seconds", json!(3.0), "watched for 3"),
            ("/events/lost", json!(null), "lost events"),
            ("/sites/1/verdict", json!("leak"), "called a leak"),
        ] {
            let mut report = sound();
            *report.pointer_mut(path).unwrap() = value;
            let found = mistakes(&report).join("; ");
            assert!(found.contains(word), "{path}: {found:?}");
        }
    }

    #[test]
    fn an_inspection_is_held_against_what_is_known() {
        let found = json!({"go_version": "go1.24.4", "pie": false, "probes": [
            {"event": "born", "sites": [{"execution": "emulated"}]},
            {"event": "fired", "sites": [], "refused": "it was inlined"},
        ]});
        let mut mistakes = Vec::new();
        let words = mistakes_in_inspection(&found, "1.24", false, &mut mistakes);
        assert_eq!(words, "1/2 emulated, no fired: it was inlined");
        assert_eq!(mistakes, Vec::<String>::new());
        mistakes_in_inspection(&found, "1.2", true, &mut mistakes);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }
}
