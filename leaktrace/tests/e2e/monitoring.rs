//! What Prometheus and Grafana are given: every metric is documented, and the rules fire when they should.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leaktrace_fixtures::repository;

use crate::needs;

const SOURCE: &str = include_str!("../../src/export/metrics.rs");

/// The text of a file.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names that the code exports.
fn exported() -> BTreeSet<String> {
    let literals = SOURCE.split('"').skip(1).step_by(2);
    literals
        .filter(|text| text.starts_with("leaktrace_") && !text.contains(' '))
        .map(str::to_owned)
        .collect()
}

/// Words of a text that are names of metrics.
fn named(text: &str) -> BTreeSet<String> {
    let words =
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words
        .filter(|word| word.starts_with("leaktrace_"))
        .map(str::to_owned)
        .collect()
}

/// The files of the dashboards.
pub fn dashboards() -> Vec<PathBuf> {
    let folder = fs::read_dir(repository().join("deploy/grafana")).expect("there are dashboards");
    let paths: Vec<PathBuf> = folder
        .map(|entry| entry.expect("it is there").path())
        .collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    paths
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let documentation = read(&repository().join("doc/prometheus.md"));
    let rows = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    assert_eq!(documented, exported());
}

#[test]
fn rules_and_dashboards_ask_for_metrics_that_there_are() {
    let exported = exported();
    let rules = repository().join("deploy/prometheus/leaktrace.rules.yml");
    let records = recorded(&read(&rules));
    let exported: BTreeSet<String> = (exported.into_iter())
        .chain(records.iter().flat_map(|record| named(record)))
        .collect();
    for path in dashboards().into_iter().chain([rules]) {
        let asked = named(&read(&path));
        assert!(!asked.is_empty(), "{}", path.display());
        let unknown: Vec<_> = asked.difference(&exported).collect();
        assert!(
            unknown.is_empty(),
            "{} asks for {unknown:?}",
            path.display()
        );
    }
}

/// The recording rules of this project, by the colons in their names.
fn recorded(rules: &str) -> BTreeSet<String> {
    let names = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "));
    names.map(str::to_owned).collect()
}

#[test]
fn alerts_fire_when_they_should() {
    let Some(promtool) = needs::promtool() else {
        return;
    };
    // The first is made up; the second was recorded from a real leak and its end.
    for file in ["leaktrace.rules.test.yml", "leaktrace.recorded.test.yml"] {
        let tests = repository().join("deploy/prometheus").join(file);
        let output = Command::new(&promtool)
            .args(["test", "rules"])
            .arg(tests)
            .output();
        let output = output.expect("promtool starts");
        assert!(output.status.success(), "{file}: {output:?}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_is_documented() {
    let rules = read(&repository().join("deploy/prometheus/leaktrace.rules.yml"));
    let runbooks = read(&repository().join("doc/runbooks.md"));
    let documentation = read(&repository().join("doc/prometheus.md"));
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 8, "{}", alerts.len());
    for alert in &alerts {
        let name = alert.lines().next().expect("a name");
        assert!(alert.contains("runbook:"), "{name} has no runbook");
        let link = format!("(doc/runbooks.md#{})", name.to_lowercase());
        assert!(alert.contains(&link), "{name} does not link to {link}");
        assert!(runbooks.contains(&format!("\n## {name}\n")), "{name}");
        assert!(documentation.contains(&format!("\n| {name} |")), "{name}");
    }
    assert_eq!(runbooks.matches("\n## ").count(), alerts.len());
    for record in recorded(&rules) {
        assert!(documentation.contains(&format!("`{record}`")), "{record}");
    }
}
