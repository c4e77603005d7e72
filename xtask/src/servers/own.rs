//! What a server says of its own goroutines, held against a census of leaktrace at rest.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use leaktrace_fixtures::http::Connection;
use leaktrace_fixtures::own_count;

use super::catalogue::Program;
use super::running::Running;
use super::tracer::Tracer;

/// Times that a census is taken until the server's numbers before and after it are the same.
const TRIES: usize = 40;
/// Time between those.
const PACE: Duration = Duration::from_millis(100);
/// How far `go_goroutines` may be off: what a reading adds is up to the scheduler of a busy machine.
const SLACK: i64 = 2;

/// A server's own numbers.
pub struct Own {
    program: &'static Program,
    /// What a reading of its metrics adds by itself; unknown without a listing.
    added: Option<i64>,
    /// What was found each time: by listing, by metrics.
    differences: Vec<(Option<i64>, Option<i64>)>,
}

/// Where a number is asked for: over connections that stay open from one look to the next, because serving them takes
/// a goroutine each. Some servers close them when nothing is asked for some seconds.
struct Place {
    connection: Connection,
    path: &'static str,
}

impl Place {
    fn open(server: &Running, place: Option<(&'static str, &'static str)>) -> Result<Option<Self>> {
        let open = |(address, path)| {
            let connection = server.connect(address)?;
            Ok(Self { connection, path })
        };
        place.map(open).transpose()
    }

    fn listing(&mut self) -> Result<i64> {
        own_count::listing(&mut self.connection, self.path)
    }

    fn reading(&mut self) -> Result<i64> {
        own_count::reading(&mut self.connection, self.path)
    }
}

impl Own {
    /// Finds out what a reading of the server's metrics adds. Nothing may watch the server yet.
    pub fn calibrate(program: &'static Program, server: &Running) -> Result<Self> {
        let mut listing = Place::open(server, program.listing)?;
        let mut metrics = Place::open(server, program.metrics)?;
        let added = match (&mut metrics, &mut listing) {
            (Some(metrics), Some(listing)) => Some(own_count::added_by_a_reading(
                (&mut metrics.connection, metrics.path),
                (&mut listing.connection, listing.path),
            )?),
            _ => None,
        };
        Ok(Self {
            program,
            added,
            differences: Vec::new(),
        })
    }

    /// Compares once. What does not agree is a mistake.
    pub fn compare(
        &mut self,
        server: &Running,
        tracer: &Tracer<'_>,
        when: &str,
        mistakes: &mut Vec<String>,
    ) -> Result<()> {
        let mut found = (None, None);
        if let Some(mut place) = Place::open(server, self.program.listing)? {
            let difference = difference(|| place.listing(), tracer)
                .with_context(|| format!("its list {when}"))?;
            if difference != 0 {
                mistakes.push(format!("{when} its list has {difference:+} goroutines"));
            }
            found.0 = Some(difference);
        }
        if let (Some(added), Some(mut place)) =
            (self.added, Place::open(server, self.program.metrics)?)
        {
            let difference = difference(|| Ok(place.reading()? - added), tracer)
                .with_context(|| format!("go_goroutines {when}"))?;
            if difference.abs() > SLACK {
                mistakes.push(format!("{when} go_goroutines is {difference:+} off"));
            }
            found.1 = Some(difference);
        }
        self.differences.push(found);
        Ok(())
    }

    /// All that was found, in a few words.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        let lists: Vec<String> = self
            .differences
            .iter()
            .filter_map(|found| Some(found.0?.to_string()))
            .collect();
        let metrics: Vec<String> = self
            .differences
            .iter()
            .filter_map(|found| Some(found.1?.to_string()))
            .collect();
        for (name, numbers) in [("list", lists), ("metric", metrics)] {
            if !numbers.is_empty() {
                words.push(format!("{name} {}", numbers.join(" ")));
            }
        }
        match words.is_empty() {
            true => "–".to_owned(),
            false => words.join(", "),
        }
    }
}

/// The server's own number minus the census at moments when it does not move: the median of three.
fn difference(mut own: impl FnMut() -> Result<i64>, tracer: &Tracer<'_>) -> Result<i64> {
    let mut differences = Vec::new();
    let mut last = String::new();
    for _ in 0..TRIES {
        let before = own()?;
        let report = tracer.snapshot()?.report()?;
        let after = own()?;
        let total = report["goroutines"]["total"].as_i64();
        let total = total.context("a snapshot has a total")?;
        if before == after {
            differences.push(before - total);
        }
        if let [_, _, _] = differences.as_mut_slice() {
            differences.sort_unstable();
            break;
        }
        last = format!("{before}, census {total}, {after}");
        thread::sleep(PACE);
    }
    differences
        .get(1)
        .copied()
        .with_context(|| format!("never at rest, at last {last}"))
}
