//! `leaktrace diff`: two snapshots compared by call site.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::output;
use crate::cli::Diff;
use crate::export::pprof;
use crate::export::report::SCHEMA;

/// The answer.
#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    /// Largest growth first.
    sites: Vec<Change>,
}

/// One call site in both snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Change {
    kind: String,
    site: String,
    before: i64,
    after: i64,
    change: i64,
}

/// What is alive at each site: the kind, the site's label.
type Counts = BTreeMap<(String, String), i64>;

/// Compares and writes what changed.
///
/// # Errors
/// When a file cannot be read or is neither JSON of ours nor a profile.
pub fn run(arguments: &Diff) -> anyhow::Result<ExitCode> {
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    let answer = Answer {
        schema: SCHEMA,
        sites: compare(&before, &after),
    };
    output::write(&answer, &arguments.output, || table(&answer))?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<Counts> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let counts = if bytes.first() == Some(&b'{') {
        of_json(&bytes)
    } else {
        of_profile(&bytes)
    };
    counts.with_context(|| format!("cannot compare {}", path.display()))
}

/// The part of a report that is compared.
#[derive(Deserialize)]
struct Snapshot {
    schema: String,
    sites: Vec<SnapshotSite>,
}

#[derive(Deserialize)]
struct SnapshotSite {
    kind: String,
    site: String,
    count: i64,
}

fn of_json(bytes: &[u8]) -> anyhow::Result<Counts> {
    let snapshot: Snapshot = serde_json::from_slice(bytes)
        .context("it is no report of `leaktrace snapshot --format json`")?;
    if snapshot.schema != SCHEMA {
        bail!(
            "its schema is {}, and this leaktrace knows {SCHEMA}",
            snapshot.schema
        );
    }
    let mut counts = Counts::new();
    for site in snapshot.sites {
        *counts.entry((site.kind, site.site)).or_default() += site.count;
    }
    Ok(counts)
}

/// A profile of ours names the site in a label; one of Go's own has only stacks, whose outermost frame is what a
/// goroutine was started with.
fn of_profile(bytes: &[u8]) -> anyhow::Result<Counts> {
    let profile = pprof::parse(bytes)
        .context("it is neither JSON of `leaktrace snapshot` nor a profile of pprof")?;
    let text = |index: i64| {
        let index = usize::try_from(index).ok()?;
        profile.string_table.get(index).map(String::as_str)
    };
    if profile.sample_type.is_empty() {
        bail!("it is neither JSON of `leaktrace snapshot` nor a profile of pprof");
    }
    let outermost = |locations: &[u64]| {
        let wanted = locations.last()?;
        let location = profile.location.iter().find(|place| place.id == *wanted)?;
        let wanted = location.line.last()?.function_id;
        let function = profile.function.iter().find(|found| found.id == wanted)?;
        text(function.name)
    };
    let mut counts = Counts::new();
    for sample in &profile.sample {
        let label = sample
            .label
            .iter()
            .find(|label| text(label.key) == Some("site"))
            .and_then(|label| text(label.str));
        let site = label
            .or_else(|| outermost(&sample.location_id))
            .unwrap_or("(unknown)");
        for (value, kind) in sample.value.iter().zip(&profile.sample_type) {
            if *value != 0 {
                let kind = text(kind.r#type).unwrap_or("").to_owned();
                let count = counts.entry((kind, site.to_owned())).or_default();
                *count = count.saturating_add(*value);
            }
        }
    }
    Ok(counts)
}

fn compare(before: &Counts, after: &Counts) -> Vec<Change> {
    let mut all: BTreeMap<&(String, String), (i64, i64)> = BTreeMap::new();
    for (key, count) in before {
        all.entry(key).or_default().0 = *count;
    }
    for (key, count) in after {
        all.entry(key).or_default().1 = *count;
    }
    let mut changes: Vec<Change> = all
        .into_iter()
        .filter(|(_, (before, after))| before != after)
        .map(|((kind, site), (before, after))| Change {
            kind: kind.clone(),
            site: site.clone(),
            before,
            after,
            change: after.saturating_sub(before),
        })
        .collect();
    changes.sort_by_key(|change| Reverse(change.change));
    changes
}

fn table(answer: &Answer) -> String {
    if answer.sites.is_empty() {
        return "nothing changed\n".to_owned();
    }
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        out,
        "{:>10}  {:>10}  {:>10}  {:<9}  CALL SITE",
        "CHANGE", "BEFORE", "AFTER", "KIND"
    );
    for site in &answer.sites {
        let _ = writeln!(
            out,
            "{:>+10}  {:>10}  {:>10}  {:<9}  {}",
            site.change, site.before, site.after, site.kind, site.site
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sites: &[(&str, i64)]) -> Counts {
        let key = |site: &str| ("goroutine".to_owned(), site.to_owned());
        sites
            .iter()
            .map(|(site, count)| (key(site), *count))
            .collect()
    }

    #[test]
    fn what_grew_comes_first_and_what_stayed_is_left_out() {
        let before = counts(&[("a", 1), ("b", 5), ("c", 7)]);
        let after = counts(&[("a", 9), ("b", 5), ("d", 2)]);
        let changes: Vec<_> = compare(&before, &after)
            .into_iter()
            .map(|change| (change.site, change.change))
            .collect();
        let expected = [("a", 8), ("d", 2), ("c", -7)];
        assert_eq!(
            changes,
            expected.map(|(site, change)| (site.to_owned(), change))
        );
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for bytes in [&b"{}"[..], b"[1]", b"", b"\x1f\x8b\x00", b"\x00\x01\x02"] {
            let json = of_json(bytes);
            assert!(json.is_err() && of_profile(bytes).is_err(), "{bytes:?}");
        }
    }
}
