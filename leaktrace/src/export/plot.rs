//! Counts over time as a small plot of block characters.

use crate::ledger::Sample;

/// Rows of a plot.
const ROWS: u64 = 6;

/// Columns of a plot.
const COLUMNS: usize = 60;

/// Eighths of a cell.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws the readings from zero up to the largest, oldest at the left; "" when there are fewer than two.
#[must_use]
pub fn draw(samples: &[Sample]) -> String {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return String::new();
    };
    let span_ns = last.at_ns.saturating_sub(first.at_ns);
    if span_ns == 0 {
        return String::new();
    }
    let columns = columns(samples, first.at_ns, span_ns);
    let most = columns.iter().copied().max().unwrap_or(0).max(1);
    let width = most.to_string().len();
    let mut plot = String::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            row if row + 1 == ROWS => most.to_string(),
            0 => "0".to_owned(),
            _ => String::new(),
        };
        let cells: String = columns
            .iter()
            .map(|count| {
                // A count above zero is seen, however small.
                let eighths = scale(*count, most, ROWS * 8).max(u64::from(*count > 0));
                let here = eighths.saturating_sub(row * 8).min(8);
                BLOCKS
                    .get(usize::try_from(here).unwrap_or(8))
                    .copied()
                    .unwrap_or('█')
            })
            .collect();
        plot.push_str(&format!("  {label:>width$} │{}\n", cells.trim_end()));
    }
    let seconds = span_ns / 1_000_000_000;
    let end = format!("{seconds} s");
    plot.push_str(&format!("  {:>width$} └{}\n", "", "─".repeat(COLUMNS)));
    plot.push_str(&format!(
        "  {:>width$}  0 s{end:>rest$}\n",
        "",
        rest = COLUMNS - 3
    ));
    plot
}

/// The last count known at the end of each column's time.
fn columns(samples: &[Sample], from_ns: u64, span_ns: u64) -> Vec<u64> {
    let mut readings = samples.iter().peekable();
    let mut count = 0;
    (1..=COLUMNS as u64)
        .map(|column| {
            let until_ns = from_ns.saturating_add(scale(span_ns, COLUMNS as u64, column));
            while let Some(sample) = readings.next_if(|sample| sample.at_ns <= until_ns) {
                count = sample.count;
            }
            count
        })
        .collect()
}

/// `value / whole * part`, without overflow.
fn scale(value: u64, whole: u64, part: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(counts: impl IntoIterator<Item = u64>) -> Vec<Sample> {
        (0..)
            .zip(counts)
            .map(|(second, count)| Sample {
                at_ns: second * 1_000_000_000,
                count,
            })
            .collect()
    }

    #[test]
    fn a_rise_rises() {
        let plot = draw(&samples(0..=60));
        let rows: Vec<&str> = plot.lines().collect();
        assert_eq!(rows.len(), 8, "{plot}");
        assert!(rows[0].starts_with("  60 │"), "{plot}");
        assert!(rows[0].ends_with('█'), "{plot}");
        assert!(rows[5].starts_with("   0 │▁"), "{plot}");
        assert!(rows[7].ends_with("60 s"), "{plot}");
        let filled = |row: &str| {
            row.chars()
                .filter(|cell| BLOCKS[1..].contains(cell))
                .count()
        };
        assert!(filled(rows[0]) < filled(rows[3]) && filled(rows[3]) < filled(rows[5]));
    }

    #[test]
    fn odd_readings_are_no_trouble() {
        assert_eq!(draw(&[]), "");
        assert_eq!(draw(&samples([5])), "");
        assert!(draw(&samples([0, 0, 0])).contains("0 │"));
        assert!(!draw(&samples([u64::MAX, 0, u64::MAX])).is_empty());
    }
}
