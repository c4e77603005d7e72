//! The screen of `leaktrace top`. Names come from the target: ratatui leaves out control characters, so that none of them
//! can drive the terminal.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use super::{Top, state, verdict_name};
use crate::export::report::SiteReport;
use crate::export::text;
use crate::verdict::Level;

/// Least width at which there is room for the curve: of one program, and of several with their names.
const WIDE: u16 = 100;
const WIDER: u16 = 118;

/// Cells of a curve.
const CURVE: usize = 12;

const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub fn draw(top: &Top, area: Rect, buffer: &mut Buffer) {
    if area.width < 20 || area.height < 5 {
        put(buffer, area, 0, "too small", Style::new());
        return;
    }
    title(top, area, buffer);
    let body = Rect {
        y: area.y + 2,
        height: area.height - 3,
        ..area
    };
    let keys = if top.help {
        help(body, buffer);
        "any key: back"
    } else if top.open {
        site(top, body, buffer);
        "q back  ↑↓ scroll  p pause  ? help"
    } else {
        list(top, body, buffer);
        "q quit  ↑↓ choose  ⏎ look into  / filter  s sort  p pause  ? help"
    };
    let last = area.height - 1;
    if top.typing {
        put(
            buffer,
            area,
            last,
            &format!("filter: {}▏", top.filter),
            HEADING,
        );
    } else if top.notice.is_empty() {
        put(buffer, area, last, keys, QUIET);
    } else {
        put(buffer, area, last, &top.notice, Style::new().fg(Color::Red));
    }
}

fn title(top: &Top, area: Rect, buffer: &mut Buffer) {
    let sites = || top.targets.iter().flat_map(|shown| &shown.report.sites);
    let leaks = sites().filter(|site| site.verdict == Level::Leak).count();
    let goroutines: u64 = (top.targets.iter())
        .map(|shown| shown.report.goroutines.total)
        .sum();
    let timers: u64 = (top.targets.iter())
        .map(|shown| shown.report.timers.total)
        .sum();
    let who = match top.targets.as_slice() {
        [one] => format!("{} (pid {})", one.label, one.pid),
        many => format!("{} programs", many.len()),
    };
    put(
        buffer,
        area,
        0,
        &format!("leaktrace top  {who}, {goroutines} goroutines, {timers} timers"),
        HEADING,
    );
    let (verdict, style) = match leaks {
        0 => ("no leak".to_owned(), Style::new().fg(Color::Green)),
        1 => ("1 leak".to_owned(), of(Level::Leak)),
        many => (format!("{many} leaks"), of(Level::Leak)),
    };
    put(buffer, area, 1, &verdict, style);
    let mut note = format!("sorted by {}", top.sort.name());
    if !top.filter.is_empty() {
        note = format!("{note}, only “{}”", top.filter);
    }
    let note = if top.paused {
        format!("{note}, HELD at {}", top.clock)
    } else {
        format!("{note}, {}", top.clock)
    };
    let width = u16::try_from(note.chars().count()).unwrap_or(u16::MAX);
    let x = area.width.saturating_sub(width).max(12);
    let rest = Rect {
        x: area.x + x,
        width: area.width - x,
        ..area
    };
    put(buffer, rest, 1, &note, QUIET);
}

/// The table: a column that has no room goes, the call site never.
fn list(top: &Top, area: Rect, buffer: &mut Buffer) {
    let rows = top.rows();
    let (wide, several) = (area.width >= WIDE, top.targets.len() > 1);
    let line = |cells: [&str; 8]| {
        let [verdict, alive, rate, oldest, curve, state, program, site] = cells;
        let curved = area.width >= if several { WIDER } else { WIDE };
        let state_width = match (curved, wide) {
            (true, _) => 18,
            (false, true) => 14,
            (false, false) => 11,
        };
        let mut text = format!("{verdict:<8}{alive:>7} {rate:>8} {oldest:>6}  ");
        if curved {
            text.push_str(&fit(curve, CURVE));
            text.push_str("  ");
        }
        text.push_str(&fit(state, state_width));
        text.push_str("  ");
        if several {
            text.push_str(&fit(program, if wide { 16 } else { 10 }));
            text.push_str("  ");
        }
        let left = usize::from(area.width).saturating_sub(text.chars().count());
        text.push_str(&shorten(site, left));
        text
    };
    let heading = line([
        "VERDICT",
        "ALIVE",
        "PER MIN",
        "OLDEST",
        "HISTORY",
        "STATE",
        "PROGRAM",
        "CALL SITE",
    ]);
    put(buffer, area, 0, &heading, HEADING);
    if rows.is_empty() {
        let words = if top.targets.is_empty() {
            "no Go program is watched"
        } else if top.filter.is_empty() {
            "nothing is alive"
        } else {
            "no call site passes the filter; Esc takes it away"
        };
        put(buffer, area, 2, words, QUIET);
        return;
    }
    let chosen = top.position(&rows);
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let first = chosen
        .saturating_sub(room / 2)
        .min(rows.len().saturating_sub(room));
    for (at, (shown, site)) in rows.iter().enumerate().skip(first).take(room) {
        let y = u16::try_from(at - first + 1).unwrap_or(u16::MAX);
        let text = line([
            verdict_name(site.verdict),
            &site.count.to_string(),
            &rate(site),
            &age(site),
            &curve(site),
            state(site),
            &shown.label,
            &site.site,
        ]);
        put(buffer, area, y, &text, of(site.verdict));
        if at == chosen {
            buffer.set_style(row(area, y), CHOSEN);
        }
    }
}

/// Everything about one call site.
fn site(top: &Top, area: Rect, buffer: &mut Buffer) {
    let Some((shown, site)) = top.open_site() else {
        put(buffer, area, 0, "nothing of it is left", QUIET);
        return;
    };
    let mut lines = vec![
        (site.site.clone(), HEADING),
        (
            format!(
                "{} (pid {}): {} alive, {} a minute, oldest {}, {} made and {} ended while watched",
                shown.label,
                shown.pid,
                site.count,
                rate(site),
                age(site),
                site.created_total,
                site.ended_total
            ),
            Style::new(),
        ),
        (curve(site), of(site.verdict)),
        (String::new(), Style::new()),
    ];
    for (at, line) in text::site(site).lines().enumerate() {
        let style = if at == 0 {
            of(site.verdict)
        } else {
            Style::new()
        };
        lines.push((line.to_owned(), style));
    }
    let lines: Vec<(String, Style)> = lines
        .into_iter()
        .flat_map(|(line, style)| {
            let wrapped = wrap(&line, usize::from(area.width));
            wrapped.into_iter().map(move |part| (part, style))
        })
        .collect();
    let room = usize::from(area.height);
    let first = usize::from(top.scroll).min(lines.len().saturating_sub(room));
    for (y, (line, style)) in (0..area.height).zip(lines.iter().skip(first)) {
        put(buffer, area, y, line, *style);
    }
}

const HELP: [&str; 16] = [
    "↑ ↓  j k      one line up or down; PgUp, PgDn, Home and End go further",
    "Enter  →      look into a call site: its evidence, stacks and channels",
    "Esc  ←        back; in the list it takes the filter away",
    "/             show only lines with these words: of program, verdict, state or site",
    "s             sort by verdict, growth, alive, age",
    "p             hold the screen still, or go on; counting goes on meanwhile",
    "q  Ctrl-C     back, and at last quit",
    "",
    "ALIVE         goroutines, or timers in the runtime's heaps, now",
    "PER MIN       how fast that grows",
    "OLDEST        age of the oldest; ≥ when it was there before leaktrace",
    "HISTORY       how many were alive, from the first count on (100 columns and more)",
    "STATE         what most of the goroutines wait for, or the kind of timer",
    "CALL SITE     the line of the go statement, or the line that armed the timer",
    "",
    "A verdict takes ten counts at least.",
];

fn help(area: Rect, buffer: &mut Buffer) {
    for (y, line) in (0..area.height).zip(HELP) {
        put(buffer, area, y, line, Style::new());
    }
}

fn row(area: Rect, y: u16) -> Rect {
    Rect {
        y: area.y.saturating_add(y),
        height: 1,
        ..area
    }
}

/// Writes one line; what does not fit is cut off.
fn put(buffer: &mut Buffer, area: Rect, y: u16, text: &str, style: Style) {
    if y < area.height {
        buffer.set_stringn(area.x, area.y + y, text, usize::from(area.width), style);
    }
}

fn of(verdict: Level) -> Style {
    match verdict {
        Level::Leak => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        Level::Suspect => Style::new().fg(Color::Yellow),
        Level::Ok | Level::NotYet => Style::new(),
    }
}

fn rate(site: &SiteReport) -> String {
    if site.growth_per_minute == 0.0 {
        "0".to_owned()
    } else if site.growth_per_minute.abs() < 10.0 {
        format!("{:+.1}", site.growth_per_minute)
    } else {
        format!("{:+.0}", site.growth_per_minute)
    }
}

fn age(site: &SiteReport) -> String {
    if site.count == 0 {
        return "–".to_owned();
    }
    let bound = if site.oldest_is_lower_bound {
        "≥"
    } else {
        ""
    };
    match site.oldest_seconds {
        seconds if seconds < 100.0 => format!("{bound}{seconds:.0}s"),
        seconds if seconds < 6000.0 => format!("{bound}{:.0}m", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{bound}{:.0}h", seconds / 3600.0),
        seconds => format!("{bound}{:.0}d", seconds / 86_400.0),
    }
}

/// The counts over time as blocks, the highest of them full.
fn curve(site: &SiteReport) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = site.history.iter().map(|(_, count)| *count).max();
    let most = most.unwrap_or(0).max(1);
    let len = site.history.len();
    let shown = len.min(CURVE);
    (1..=shown)
        .filter_map(|part| site.history.get(part * len / shown - 1))
        .map(|(_, count)| {
            let level = u128::from(*count) * 7 / u128::from(most);
            let level = usize::try_from(level).unwrap_or(7);
            BLOCKS.get(level).copied().unwrap_or('█')
        })
        .collect()
}

/// Exactly `width` characters: padded or cut.
fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:<width$}");
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// At most `width` characters. The line is at the end of a call site, so the middle goes.
fn shorten(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let keep = width.saturating_sub(1);
    let end = keep * 2 / 3;
    let head: String = text.chars().take(keep - end).collect();
    let tail: String = text.chars().skip(count - end).collect();
    format!("{head}…{tail}")
}

/// A line in parts of at most `width` characters, broken between words where that is possible; the rest is indented.
fn wrap(line: &str, width: usize) -> Vec<String> {
    let width = width.max(10);
    let indent = line
        .chars()
        .take_while(|character| *character == ' ')
        .count();
    let indent = " ".repeat((indent + 2).min(width / 2));
    let mut parts = Vec::new();
    let mut rest: Vec<char> = line.chars().collect();
    while rest.len() > width {
        let space = rest
            .iter()
            .take(width)
            .rposition(|character| *character == ' ');
        let at = space.filter(|at| *at > indent.len()).unwrap_or(width);
        let tail = rest.split_off(at);
        parts.push(rest.iter().collect());
        let tail: String = tail.into_iter().collect();
        rest = format!("{indent}{}", tail.trim_start()).chars().collect();
    }
    parts.push(rest.iter().collect());
    parts
}
