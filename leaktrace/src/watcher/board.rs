//! What the daemon shows of all processes, as it was when it last changed.

use std::sync::Arc;

use serde::Serialize;

use crate::export::Report;
use crate::target::roster::Entry;

/// Everybody.
#[derive(Default)]
pub struct Board {
    /// One for each process.
    pub rows: Vec<Row>,
    /// The machine's name: what `NODE_NAME` says, as Kubernetes sets it, else its host name.
    pub node: String,
    /// Hits of probes in processes that are not traced.
    pub stranger_hits: u64,
    /// Events that came after their target had ended.
    pub late_events: u64,
    /// Processes that are not listed, because there are too many.
    pub unlisted: u64,
}

/// One process, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `PID-START`: never used again while the machine runs.
    pub id: String,
    /// Its number.
    pub pid: i32,
    /// Its label in metrics; "" when it is not traced.
    pub target: String,
    /// `comm`.
    pub name: String,
    /// Path of its executable; "" until it was looked at.
    pub exe: String,
    /// `waiting`, `traced`, `refused`, `excluded`, `not go` or `ended`.
    pub status: &'static str,
    /// Why; "" when there is nothing to say.
    pub reason: String,
    /// Whether it is traced and its last census succeeded.
    pub up: bool,
    /// The last report.
    #[serde(skip)]
    pub report: Option<Arc<Report>>,
}

impl Row {
    /// Of a process, with label and success if it is traced.
    #[must_use]
    pub fn new(entry: &Entry, traced: Option<(&str, bool)>) -> Self {
        let sighting = &entry.sighting;
        Self {
            id: format!("{}-{}", sighting.pid, sighting.life.start_ticks),
            pid: sighting.pid.0,
            target: traced.map_or_else(String::new, |(label, _)| label.to_owned()),
            name: sighting.name.clone(),
            exe: entry.exe.clone(),
            status: entry.state.name(),
            reason: entry.state.reason().to_owned(),
            up: traced.is_some_and(|(_, up)| up),
            report: None,
        }
    }

    /// Of a target that has ended.
    #[must_use]
    pub fn ended(entry: &Entry, label: &str) -> Self {
        Self {
            status: "ended",
            reason: "it has exited".to_owned(),
            ..Self::new(entry, Some((label, false)))
        }
    }

    /// The same for who may not see paths.
    #[must_use]
    pub fn without_path(self) -> Self {
        Self {
            exe: String::new(),
            ..self
        }
    }

    /// The same with a report.
    #[must_use]
    pub fn with_report(self, report: Option<Arc<Report>>) -> Self {
        Self { report, ..self }
    }
}

impl Board {
    /// The process with this id, pid or label.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&Row> {
        let pid: Option<i32> = key.parse().ok();
        let mut rows = self.rows.iter();
        rows.find(|row| {
            row.id == key || pid == Some(row.pid) || (!row.target.is_empty() && row.target == key)
        })
    }

    /// The targets, with and without a report.
    pub fn targets(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.target.is_empty())
    }

    /// Whether everything that is to be watched is: nothing that was traced has ended for good.
    #[must_use]
    pub fn ready(&self) -> bool {
        let ended = self.rows.iter().filter(|row| row.status == "ended").count();
        ended == 0 || self.targets().any(|row| row.up)
    }
}
