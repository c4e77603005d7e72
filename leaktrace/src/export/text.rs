//! The report as a table for people.

use std::fmt::{self, Write as _};

use super::Report;
use super::report::{SiteReport, WaitsOn};
use super::times::{Blocked, LONGER_THAN, Lengths};
use crate::ledger::CallSite;
use crate::verdict::Level;

/// Renders `report`. At most `rows` sites are shown; how many were left out is said.
#[must_use]
pub fn render(report: &Report, rows: usize) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut out, report, rows);
    out
}

fn write(out: &mut String, report: &Report, rows: usize) -> fmt::Result {
    let target = &report.target;
    let name = target.exe.rsplit('/').next().unwrap_or(&target.exe);
    write!(out, "{name} (pid {}), {}", target.pid, target.go_version)?;
    if !target.module.is_empty() {
        write!(out, ", {}", target.module)?;
        if !target.version.is_empty() {
            write!(out, " {}", target.version)?;
        }
    }
    writeln!(out)?;

    let goroutines = &report.goroutines;
    write!(
        out,
        "{} and {} of the runtime's own",
        counted(goroutines.total, "goroutine"),
        goroutines.system
    )?;
    let mut states: Vec<_> = goroutines.by_state.iter().collect();
    states.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    if !states.is_empty() {
        let shown: Vec<String> = states
            .iter()
            .take(5)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        write!(out, ": {}", shown.join(", "))?;
        if states.len() > shown.len() {
            write!(out, ", …")?;
        }
    }
    writeln!(out)?;
    let timers = &report.timers;
    if timers.unknown {
        write!(
            out,
            "pending timers are not known: this build keeps them where no release does"
        )?;
    } else {
        write!(out, "{}", counted(timers.total, "pending timer"))?;
    }
    if !timers.by_kind.is_empty() {
        let kinds: Vec<String> = timers
            .by_kind
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        write!(out, ": {}", kinds.join(", "))?;
    }
    writeln!(out)?;
    write_events(out, report)?;

    for (heading, level) in [("LEAK", Level::Leak), ("SUSPECT", Level::Suspect)] {
        for site in report.sites.iter().filter(|site| site.verdict == level) {
            writeln!(out)?;
            write_finding(out, heading, site)?;
        }
    }
    writeln!(out)?;
    write_table(out, report, rows)?;
    write_armed_longer(out, report, rows)?;
    write_blocked(out, report, rows)
}

/// One call site with all that is known of it.
#[must_use]
pub fn site(site: &SiteReport) -> String {
    let mut out = String::new();
    let heading = match site.verdict {
        Level::Leak => "LEAK",
        Level::Suspect => "SUSPECT",
        Level::Ok => "FINE",
        Level::NotYet => "NOT YET JUDGED",
    };
    let _ = write_finding(&mut out, heading, site);
    out
}

fn write_events(out: &mut String, report: &Report) -> fmt::Result {
    let events = &report.events;
    if events.level == "none" {
        return Ok(());
    }
    write!(
        out,
        "watched for {:.0} s, {} events",
        events.seconds,
        events.hits.values().sum::<u64>()
    )?;
    if events.lost > 0 {
        let causes: Vec<String> = events
            .lost_by_cause
            .iter()
            .map(|(cause, count)| format!("{count} {cause}"))
            .collect();
        write!(out, ", {} lost ({})", events.lost, causes.join(", "))?;
    }
    if report.goroutines.drift > 0 {
        write!(
            out,
            ", {} goroutines of drift ({})",
            report.goroutines.drift, report.goroutines.drift_cause
        )?;
    }
    writeln!(out)?;
    for (kind, reason) in &events.not_probed {
        writeln!(out, "not watched: {kind}: {reason}")?;
    }
    Ok(())
}

pub(super) fn write_finding(out: &mut String, heading: &str, site: &SiteReport) -> fmt::Result {
    let heading = match site.rule {
        "" => format!("{heading}: {} are alive", site.count),
        rule => format!("{heading} ({rule}): {}", site.evidence),
    };
    write_place(out, &heading, site)
}

/// All that is known of where a site is and where its goroutines are, under a heading.
pub(super) fn write_place(out: &mut String, heading: &str, site: &SiteReport) -> fmt::Result {
    writeln!(out, "{heading}")?;
    match (&site.timer_kind, site.period_seconds) {
        (Some(kind), Some(period)) => write!(out, "  {kind} of {period} s armed at ")?,
        (Some(kind), None) => match site.armed_for_seconds {
            // Computed from a clock that was read a moment before.
            Some((shortest, longest)) if longest - shortest < 0.01 * longest => {
                write!(out, "  {kind} of {} armed at ", length(longest))?;
            }
            _ => write!(out, "  {kind} armed at ")?,
        },
        (None, _) => match site.started_by_timer {
            Some(kind) => write!(out, "  started by the {kind} timer armed at ")?,
            None => write!(out, "  started at ")?,
        },
    }
    writeln!(out, "{}", at(site))?;
    if !site.start_function.is_empty() && site.start_function != site.function {
        let verb = if site.timer_kind.is_some() {
            "calls"
        } else {
            "runs"
        };
        writeln!(out, "  {verb} {}", site.start_function)?;
    }
    write_stack(out, &site.creation_stack)?;
    write_lengths(out, site)?;
    for stack in site.blocked_stacks.iter().take(STACKS) {
        // How it parks is the runtime's affair.
        let user = stack
            .frames
            .iter()
            .position(|frame| !frame.function.starts_with("runtime."));
        if let Some(frames) = user.and_then(|first| stack.frames.get(first..)) {
            writeln!(out, "  {} in {} at", stack.count, stack.state)?;
            write_stack(out, frames)?;
        }
    }
    for wait in site.waits_on.iter().take(STACKS) {
        write_wait(out, wait)?;
    }
    if site.channels > STACKS as u64 {
        writeln!(
            out,
            "  and on {} more channels",
            site.channels - STACKS as u64
        )?;
    }
    for wait in site.waits_for.iter().take(STACKS) {
        writeln!(
            out,
            "  {} for semaphore {}: {} wait for it in all",
            wait.count, wait.semaphore, wait.waiters
        )?;
    }
    if site.semaphores > STACKS as u64 {
        writeln!(
            out,
            "  and for {} more semaphores",
            site.semaphores - STACKS as u64
        )?;
    }
    if let Some(remedy) = site.remedy {
        writeln!(out, "  usually: {remedy}")?;
    }
    Ok(())
}

/// How long those lived that have ended, and how long they were blocked.
fn write_lengths(out: &mut String, site: &SiteReport) -> fmt::Result {
    if let Some(lengths) = &site.lifetimes {
        write!(
            out,
            "  {} whose beginning and end were heard",
            lengths.count
        )?;
        let verb = if site.timer_kind.is_some() {
            "were pending for"
        } else {
            "lived"
        };
        write_half_and_most(out, verb, lengths)?;
    }
    for blocked in &site.blocked_time {
        let lengths = &blocked.lengths;
        if lengths.count > 0 {
            let total = length(lengths.total_seconds);
            write!(
                out,
                "  blocked {} times in {}, {total} in all",
                lengths.count, blocked.state
            )?;
            write_half_and_most(out, "took", lengths)?;
        }
    }
    Ok(())
}

fn write_half_and_most(out: &mut String, verb: &str, lengths: &Lengths) -> fmt::Result {
    match lengths.half_and_most_below() {
        [Some(half), Some(most)] if half < most => writeln!(
            out,
            ": half {verb} less than {}, nine of ten less than {}",
            length(half),
            length(most)
        ),
        [_, Some(most)] => writeln!(out, ": nine of ten {verb} less than {}", length(most)),
        _ => writeln!(out),
    }
}

/// Stacks, channels and semaphores shown of each finding.
const STACKS: usize = 3;

fn write_stack(out: &mut String, frames: &[CallSite]) -> fmt::Result {
    for frame in frames {
        writeln!(out, "    {}  {}:{}", frame.function, frame.file, frame.line)?;
    }
    Ok(())
}

fn write_wait(out: &mut String, wait: &WaitsOn) -> fmt::Result {
    let buffer = match wait.capacity {
        0 => "unbuffered".to_owned(),
        capacity => format!("{} of {capacity} buffered", wait.length),
    };
    let closed = if wait.closed { ", closed" } else { "" };
    writeln!(
        out,
        "  {} on channel {} ({buffer}{closed}): {} receive, {} send, {} select on it",
        wait.count, wait.channel, wait.receivers, wait.senders, wait.selecting
    )
}

fn write_table(out: &mut String, report: &Report, rows: usize) -> fmt::Result {
    if report.sites.is_empty() {
        return writeln!(out, "no goroutines and no timers of the program's own");
    }
    let watched = report.events.level != "none";
    let header = if watched {
        [
            "COUNT",
            "PER MIN",
            "CREATED",
            "ENDED",
            "OLDEST",
            "STATE",
            "CALL SITE",
        ]
        .as_slice()
    } else {
        ["COUNT", "STACK", "OLDEST", "STATE", "CALL SITE"].as_slice()
    };
    let mut table = vec![header.iter().map(|cell| (*cell).to_owned()).collect()];
    // What sleeps is already there as a goroutine.
    let shown: Vec<&SiteReport> = report
        .sites
        .iter()
        .filter(|site| site.attributed || site.timer_kind != Some("sleep"))
        .collect();
    for site in shown.iter().take(rows) {
        let state = site
            .timer_kind
            .map_or_else(|| main_state(site), str::to_owned);
        table.push(if watched {
            vec![
                site.count.to_string(),
                if site.growth_per_minute == 0.0 {
                    "0".to_owned()
                } else {
                    format!("{:+.0}", site.growth_per_minute)
                },
                site.created_total.to_string(),
                site.ended_total.to_string(),
                age(site),
                state,
                site.site.clone(),
            ]
        } else {
            vec![
                site.count.to_string(),
                bytes(site.stack_bytes),
                // Without probes an age is known only of what the garbage collector has seen waiting.
                if site.oldest_seconds < 1.0 {
                    "–".to_owned()
                } else {
                    age(site)
                },
                state,
                site.site.clone(),
            ]
        });
    }
    write_aligned(out, &table)?;
    if let Some(rest) = shown.get(rows..).filter(|rest| !rest.is_empty()) {
        let count: u64 = rest.iter().map(|site| site.count).sum();
        writeln!(out, "and {} more call sites with {count} alive", rest.len())?;
    }
    Ok(())
}

/// Who armed the timers that have been pending for long.
fn write_armed_longer(out: &mut String, report: &Report, rows: usize) -> fmt::Result {
    let sites = &report.timers.armed_longer;
    if sites.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ntimers that have been armed for longer than")?;
    let mut header: Vec<String> = LONGER_THAN.iter().map(|seconds| span(*seconds)).collect();
    header.extend(["KIND".to_owned(), "CALL SITE".to_owned()]);
    let mut table = vec![header];
    for site in sites.iter().take(rows) {
        let counts = site.longer_than.iter().map(|one| one.count.to_string());
        let place = [site.kind.to_owned(), site.site.clone()];
        table.push(counts.chain(place).collect());
    }
    write_aligned(out, &table)
}

/// "1m", "10m", "1h", "1d".
fn span(seconds: u64) -> String {
    match seconds {
        86_400.. => format!("{}d", seconds / 86_400),
        3600.. => format!("{}h", seconds / 3600),
        _ => format!("{}m", seconds / 60),
    }
}

/// How long goroutines were blocked, at level full: the sites that lost most time first.
fn write_blocked(out: &mut String, report: &Report, rows: usize) -> fmt::Result {
    let mut waits: Vec<(&Blocked, &SiteReport)> = (report.sites.iter())
        .flat_map(|site| site.blocked_time.iter().map(move |blocked| (blocked, site)))
        .filter(|(blocked, _)| blocked.lengths.count > 0)
        .collect();
    if waits.is_empty() {
        return Ok(());
    }
    waits.sort_by(|(a, _), (b, _)| b.lengths.total_seconds.total_cmp(&a.lengths.total_seconds));
    writeln!(out)?;
    let header = [
        "WAITS",
        "BLOCKED",
        "MEAN",
        "HALF <",
        "90% <",
        "STATE",
        "CALL SITE",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for (blocked, site) in waits.iter().take(rows) {
        let lengths = &blocked.lengths;
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of one run fit a double's 53 bits"
        )]
        let mean = lengths.total_seconds / lengths.count as f64;
        let [half, most] = lengths.half_and_most_below();
        table.push(vec![
            lengths.count.to_string(),
            length(lengths.total_seconds),
            length(mean),
            half.map_or_else(|| "–".to_owned(), length),
            most.map_or_else(|| "–".to_owned(), length),
            blocked.state.clone(),
            site.site.clone(),
        ]);
    }
    write_aligned(out, &table)
}

/// A length of time with two or three digits that count.
pub(super) fn length(seconds: f64) -> String {
    let (number, unit) = match seconds {
        seconds if seconds >= 7200.0 => (seconds / 3600.0, "h"),
        seconds if seconds >= 600.0 => (seconds / 60.0, "m"),
        seconds if seconds >= 1.0 => (seconds, "s"),
        seconds if seconds >= 1e-3 => (seconds * 1e3, "ms"),
        seconds => (seconds * 1e6, "µs"),
    };
    let text = if number >= 100.0 {
        format!("{number:.0}")
    } else {
        format!("{number:.1}")
    };
    format!("{}{unit}", text.trim_end_matches(".0"))
}

/// All columns padded to the widest cell; numbers (all but the last two) to the right.
fn write_aligned(out: &mut String, table: &[Vec<String>]) -> fmt::Result {
    let columns = table.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = table.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in table {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column + 1 == columns {
                writeln!(out, "{cell}")?;
            } else if column + 2 == columns {
                write!(out, "{cell:<width$}  ")?;
            } else {
                write!(out, "{cell:>width$}  ")?;
            }
        }
    }
    Ok(())
}

/// `pkg.Func  /path/file.go:42`, or the name alone when no line is known.
fn at(site: &SiteReport) -> String {
    if site.file.is_empty() {
        site.function.clone()
    } else {
        format!("{}  {}:{}", site.function, site.file, site.line)
    }
}

/// The state that most are in, with a mark when there are others.
fn main_state(site: &SiteReport) -> String {
    let most = site.states.iter().max_by_key(|(_, count)| **count);
    match (most, site.states.len()) {
        (None, _) => "–".to_owned(),
        (Some((state, _)), 1) => state.clone(),
        (Some((state, count)), _) => format!("{state} ({count}), …"),
    }
}

fn age(site: &SiteReport) -> String {
    if site.count == 0 {
        return "–".to_owned();
    }
    let mark = if site.oldest_is_lower_bound {
        "≥"
    } else {
        ""
    };
    let seconds = site.oldest_seconds;
    if seconds < 120.0 {
        format!("{mark}{seconds:.0}s")
    } else if seconds < 7200.0 {
        format!("{mark}{:.0}m", seconds / 60.0)
    } else {
        format!("{mark}{:.0}h", seconds / 3600.0)
    }
}

fn bytes(count: u64) -> String {
    match count {
        0 => "–".to_owned(),
        1..=9_999 => format!("{count}B"),
        10_000..=9_999_999 => format!("{}K", count >> 10),
        _ => format!("{}M", count >> 20),
    }
}
/// "1 goroutine", "2 goroutines".
fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}
