//! What keys do, and what the screen then holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;

use super::draw::draw;
use super::{Shown, Top, Wish};
use crate::export::Report;
use crate::export::report::{Events, Goroutines, SCHEMA, SiteReport, Target, Timers};
use crate::verdict::Level;

fn site(name: &str, count: u64, growth_per_minute: f64, verdict: Level) -> SiteReport {
    SiteReport {
        kind: "goroutine",
        site: name.to_owned(),
        count,
        states: BTreeMap::from([("chan send".to_owned(), count)]),
        start_function: format!("{name}.func1"),
        oldest_seconds: 61.0,
        growth_per_minute,
        history: (0..20_u32)
            .map(|at| (f64::from(at), u64::from(at)))
            .collect(),
        attributed: true,
        verdict,
        rule: if verdict == Level::Leak {
            "growing"
        } else {
            ""
        },
        evidence: "it grows and grows".to_owned(),
        ..SiteReport::default()
    }
}

fn top(sites: Vec<SiteReport>) -> Top {
    let report = Report {
        schema: SCHEMA,
        target: Target::default(),
        goroutines: Goroutines {
            total: 42,
            ..Goroutines::default()
        },
        timers: Timers::default(),
        sites,
        events: Events::default(),
    };
    Top {
        targets: vec![Shown {
            pid: 7,
            label: "shop".to_owned(),
            report: Arc::new(report),
        }],
        ..Top::default()
    }
}

fn three() -> Top {
    top(vec![
        site("main.slow a/a.go:1", 900, 1.0, Level::Ok),
        site("main.leak b/b.go:2", 50, 600.0, Level::Leak),
        site("main.odd c/c.go:3", 3, 0.0, Level::Suspect),
    ])
}

fn screen(top: &Top, width: u16, height: u16) -> Vec<String> {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(top, area, &mut buffer);
    (0..height)
        .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect())
        .collect()
}

fn press(top: &mut Top, keys: &str) -> Wish {
    let mut wish = Wish::Draw;
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            other => KeyCode::Char(other),
        };
        wish = top.press(KeyEvent::new(code, KeyModifiers::NONE));
    }
    wish
}

fn order(top: &Top) -> Vec<String> {
    let names = screen(top, 80, 24).into_iter().skip(3).take(3);
    names
        .map(|line| line.split("main.").nth(1).unwrap_or_default()[..4].to_owned())
        .collect()
}

#[test]
fn the_worst_comes_first_and_s_sorts_otherwise() {
    let mut top = three();
    assert_eq!(order(&top), ["leak", "odd ", "slow"]);
    press(&mut top, "s");
    assert_eq!(order(&top), ["leak", "slow", "odd "]);
    press(&mut top, "s");
    assert_eq!(order(&top), ["slow", "leak", "odd "]);
}

#[test]
fn a_screen_of_80_columns_holds_the_line_that_leaks() {
    let lines = screen(&three(), 80, 24);
    assert!(
        lines[0].contains("shop (pid 7), 42 goroutines"),
        "{lines:#?}"
    );
    assert!(lines[1].starts_with("1 leak"), "{lines:#?}");
    let leak = &lines[3];
    assert!(leak.starts_with("LEAK"), "{leak}");
    for part in ["50", "+600", "61s", "chan send", "main.leak b/b.go:2"] {
        assert!(leak.contains(part), "{part} in {leak}");
    }
    assert!(lines[23].starts_with("q quit"), "{lines:#?}");
    assert!(
        screen(&three(), 120, 24)[3].contains('█'),
        "a wide screen has a curve"
    );
}

#[test]
fn a_filter_is_typed_and_taken_away() {
    let mut top = three();
    press(&mut top, "/odd");
    assert!(screen(&top, 80, 24)[23].contains("filter: odd"));
    // While a filter is typed, q is a letter.
    press(&mut top, "\nq");
    let mut top = three();
    press(&mut top, "/b.go\n");
    let lines = screen(&top, 80, 24);
    assert!(
        lines[3].contains("main.leak") && !lines[4].contains("main."),
        "{lines:#?}"
    );
    press(&mut top, "\x1b");
    assert!(screen(&top, 80, 24)[4].contains("main."));
}

#[test]
fn what_is_chosen_stays_chosen_when_the_order_changes() {
    let mut top = three();
    press(&mut top, "j");
    press(&mut top, "ss");
    assert_eq!(press(&mut top, "\n"), Wish::Look(7));
    assert!(screen(&top, 80, 24)[2].starts_with("main.odd"));
}

#[test]
fn a_site_is_opened_and_q_leads_back_before_it_ends() {
    let mut top = three();
    assert_eq!(press(&mut top, "\n"), Wish::Look(7));
    assert_eq!(top.open_pid(), Some(7));
    let lines = screen(&top, 80, 24);
    assert!(
        lines
            .iter()
            .any(|line| line.contains("LEAK (growing): it grows")),
        "{lines:#?}"
    );
    assert_eq!(press(&mut top, "q"), Wish::Draw);
    assert_eq!(top.open_pid(), None);
    assert_eq!(press(&mut top, "q"), Wish::Quit);
}

#[test]
fn control_c_ends_it_wherever_it_is() {
    for keys in ["", "?", "/x", "\n"] {
        let mut top = three();
        press(&mut top, keys);
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(top.press(key), Wish::Quit, "after {keys:?}");
    }
}

#[test]
fn names_of_a_hostile_program_do_not_reach_the_terminal() {
    let mut top = top(vec![site(
        "main.\x1b[2Jgone\r\n\u{9b}31m x.go:1",
        1,
        0.0,
        Level::Leak,
    )]);
    for keys in ["", "\n"] {
        press(&mut top, keys);
        for line in screen(&top, 80, 24) {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

#[test]
fn no_size_and_no_key_is_too_much() {
    for (width, height) in [(0, 0), (1, 1), (19, 4), (20, 5), (40, 6), (300, 3)] {
        let mut top = three();
        for key in "jkGg?pqs/ \n\x1bhl".chars() {
            press(&mut top, &key.to_string());
            screen(&top, width, height);
        }
    }
    screen(&Top::default(), 80, 24);
}
