//! One server from its start to its row in the table.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::catalogue::{Expected, Origin, Server};
use super::elf_kind::ElfKind;
use super::load::Load;
use super::own::Own;
use super::running::{self, Running};
use super::tracer::{self, Answer, Tracer};

/// Load before anything is looked at, so that all is there that a server starts only when it is asked something.
const WARM_UP: Duration = Duration::from_secs(2);
/// Rest before the end of the recording, so that its last census meets a server at rest.
const REST: Duration = Duration::from_secs(2);
/// How long a recording may take beyond its duration.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches servers.
pub struct Watcher {
    pub leaktrace: PathBuf,
    pub seconds: u64,
    /// How long they then rest, watched all the same, in seconds: nothing may be called a leak.
    pub idle: u64,
    pub interrupted: Arc<AtomicBool>,
}

/// How a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Right,
    /// Not as expected; the notes tell.
    Wrong,
    /// The program is not to be had here.
    Skipped,
}

/// What was found.
pub struct Row {
    pub name: &'static str,
    pub release: String,
    go: String,
    kind: String,
    inspect: String,
    record: String,
    own: String,
    verdicts: String,
    pub outcome: Outcome,
    /// What is wrong.
    pub mistakes: Vec<String>,
    /// What is worth saying, such as the sentences by which it was refused.
    pub remarks: Vec<String>,
}

impl Watcher {
    /// Starts a server, watches it, ends it.
    pub fn watch(&self, server: &'static Server) -> Row {
        let mut row = Row::new(server);
        match running::executable(server) {
            Ok(file) if matches!(server.origin, Origin::Machine) && !file.is_file() => {
                row.outcome = Outcome::Skipped;
                let file = file.display();
                row.remarks
                    .push(format!("there is no {file} on this machine"));
                return row;
            }
            _ => {}
        }
        if let Err(error) = self.try_watch(server, &mut row) {
            row.mistakes.push(format!("{error:#}"));
        }
        if !row.mistakes.is_empty() {
            row.outcome = Outcome::Wrong;
        }
        row
    }

    fn try_watch(&self, server: &'static Server, row: &mut Row) -> Result<()> {
        let folder = tempfile::tempdir()?;
        if let Some(version) = running::version(server)? {
            row.release = format!("{} {version}", row.release);
        }
        let mut running = Running::start(server)?;
        let tracer = Tracer {
            leaktrace: &self.leaktrace,
            pid: running.pid(),
            folder: folder.path(),
        };
        let inspected = tracer.inspect(&running.executable)?;
        match (server.expected, inspected) {
            (Expected::Traced | Expected::Either(_), Answer::Report(found)) => {
                row.inspected(&found, server, ElfKind::of(&running.executable)?);
                self.traced(server, &mut running, &tracer, row)?;
            }
            (Expected::Refused(words) | Expected::Either(words), Answer::Refusal(sentence)) => {
                refused(&sentence, words, &tracer, row)?;
            }
            (Expected::Traced, Answer::Refusal(sentence)) => bail!("inspect: {sentence}"),
            (Expected::Refused(words), Answer::Report(_)) => {
                bail!("inspect does not refuse it ({words})")
            }
        }
        ensure!(running.is_alive(), "the server has ended");
        let deadline = Instant::now() + REST;
        // A program that only prints has done so a moment ago, or will.
        while server.expected_to_serve() && !running.serves() {
            ensure!(Instant::now() < deadline, "the server serves no longer");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Watches a server that leaktrace can trace.
    fn traced(
        &self,
        server: &'static Server,
        running: &mut Running,
        tracer: &Tracer<'_>,
        row: &mut Row,
    ) -> Result<()> {
        let program = server.program;
        self.load(Load::start(program, running), WARM_UP, None)?;
        let mut own = Own::calibrate(program, running)?;
        own.compare(running, tracer, "before probes", &mut row.mistakes)?;

        let begin = Instant::now();
        let duration = Duration::from_secs(self.seconds);
        let whole = duration + Duration::from_secs(self.idle);
        let until = |share: f64| duration.mul_f64(share).saturating_sub(begin.elapsed());
        let recording = tracer.record(whole.as_secs())?;
        let mut answered = self.load(
            Load::start(program, running),
            until(0.4),
            Some((tracer, row)),
        )?;
        own.compare(running, tracer, "under probes", &mut row.mistakes)?;
        let busy = (duration - REST).saturating_sub(begin.elapsed());
        answered += self.load(Load::start(program, running), busy, Some((tracer, row)))?;
        self.pause((whole - REST).saturating_sub(begin.elapsed()))?;
        let report = recording
            .wait(whole.saturating_sub(begin.elapsed()) + PATIENCE)?
            .report()
            .context("record")?;
        tracer::mistakes_in_report(&report, running.pid(), &mut row.mistakes);
        tracer::mistakes_in_record(&report, whole.as_secs(), &mut row.mistakes);
        if self.idle > 0 {
            for site in report["sites"].as_array().into_iter().flatten() {
                if site["verdict"] == "leak" {
                    row.mistakes.push(format!("called a leak: {}", why(site)));
                }
            }
        }
        row.recorded(&report, answered);
        own.compare(running, tracer, "after probes", &mut row.mistakes)?;
        row.own = own.words();
        Ok(())
    }

    /// Lets load go on for a while, with a look at the busy server in the middle of it.
    fn load(
        &self,
        load: Load,
        time: Duration,
        look: Option<(&Tracer<'_>, &mut Row)>,
    ) -> Result<u64> {
        self.pause(time / 2)?;
        if let Some((tracer, row)) = look {
            let report = tracer.snapshot()?.report().context("snapshot")?;
            tracer::mistakes_in_report(&report, tracer.pid, &mut row.mistakes);
        }
        self.pause(time / 2)?;
        load.stop().context("the server under load")
    }

    /// Waits; an error when interrupted.
    fn pause(&self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            let left = deadline.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }
}

/// A line of code, by which rule it has its verdict, and what was seen.
fn why(site: &Value) -> String {
    let (line, rule, evidence) = (&site["site"], &site["rule"], &site["evidence"]);
    format!("{line} ({rule}): {evidence}")
}

/// Checks that the process is refused as its file was, and the file for the reason that was expected.
fn refused(sentence: &str, words: &str, tracer: &Tracer<'_>, row: &mut Row) -> Result<()> {
    "refused".clone_into(&mut row.inspect);
    row.remarks.push(format!("inspect: {sentence}"));
    if !sentence.contains(words) {
        row.mistakes
            .push(format!("refused for another reason: {sentence}"));
    }
    for (name, answer) in [
        ("snapshot", tracer.snapshot()?),
        ("record", tracer.record(1)?.wait(PATIENCE)?),
    ] {
        match answer {
            Answer::Report(_) => row.mistakes.push(format!("{name} does not refuse it")),
            Answer::Refusal(other) => row.remarks.push(format!("{name}: {other}")),
        }
    }
    "refused".clone_into(&mut row.record);
    Ok(())
}

impl Row {
    /// What the columns hold.
    pub const HEADINGS: [&'static str; 9] = [
        "SERVER",
        "RELEASE",
        "GO",
        "KIND",
        "INSPECT",
        "RECORD",
        "OWN COUNT − CENSUS",
        "VERDICTS",
        "ROW",
    ];

    fn new(server: &Server) -> Self {
        Self {
            name: server.program.name,
            release: server.release().to_owned(),
            go: server.go.to_owned(),
            kind: String::new(),
            inspect: "–".to_owned(),
            record: "–".to_owned(),
            own: "–".to_owned(),
            verdicts: "–".to_owned(),
            outcome: Outcome::Right,
            mistakes: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// The cells of the table.
    pub fn cells(&self) -> [String; 9] {
        let outcome = match self.outcome {
            Outcome::Right => "right",
            Outcome::Wrong => "WRONG",
            Outcome::Skipped => "skipped",
        };
        [
            self.name.to_owned(),
            self.release.clone(),
            self.go.clone(),
            self.kind.clone(),
            self.inspect.clone(),
            self.record.clone(),
            self.own.clone(),
            self.verdicts.clone(),
            outcome.to_owned(),
        ]
    }

    /// One line for those who wait for the table.
    pub fn line(&self) -> String {
        let (name, release) = (self.name, &self.release);
        match self.outcome {
            Outcome::Right => format!("{name} {release}: {}", self.record),
            Outcome::Wrong => format!("{name} {release}: WRONG: {}", self.mistakes.join("; ")),
            Outcome::Skipped => format!("{name} {release}: skipped"),
        }
    }

    fn inspected(&mut self, found: &Value, server: &Server, elf: ElfKind) {
        self.inspect = tracer::mistakes_in_inspection(
            found,
            server.go,
            elf.position_independent,
            &mut self.mistakes,
        );
        let version = found["go_version"].as_str().unwrap_or(server.go);
        self.go = version.trim_start_matches("go").to_owned();
        let stripped = match found["globals_from"].as_str() {
            Some("symtab") => "symbols",
            _ => "stripped",
        };
        self.kind = format!("{}, {stripped}", elf.name());
    }

    fn recorded(&mut self, report: &Value, answered: u64) {
        let hits = report["events"]["hits"].as_object().into_iter().flatten();
        let hits: u64 = hits.map(|(_, count)| count.as_u64().unwrap_or(0)).sum();
        let (lost, drift) = (&report["events"]["lost"], &report["goroutines"]["drift"]);
        self.record = format!("{hits} hits, lost {lost}, drift {drift}");
        if answered > 0 && hits == 0 {
            self.mistakes
                .push(format!("{answered} requests and no hit of a probe"));
        }
        let mut verdicts = [("leak", 0), ("suspect", 0), ("ok", 0)];
        for site in report["sites"].as_array().into_iter().flatten() {
            for (level, count) in &mut verdicts {
                *count += u64::from(site["verdict"] == *level);
            }
            if site["verdict"] == "suspect" {
                self.remarks.push(format!("suspect: {}", why(site)));
            }
        }
        let words = verdicts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(level, count)| format!("{count} {level}"));
        self.verdicts = words.collect::<Vec<_>>().join(", ");
    }
}
