//! The state of `leaktrace top`, and what each key does to it. Pure: [`draw`] renders it, `command::top` feeds it.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::export::Report;
use crate::export::report::SiteReport;
use crate::verdict::Level;

pub mod draw;

/// A target on the screen.
#[derive(Clone)]
pub struct Shown {
    /// Its process.
    pub pid: i32,
    /// Its label.
    pub label: String,
    /// What is known of it.
    pub report: Arc<Report>,
}

/// Everything that the screen shows.
#[derive(Default)]
pub struct Top {
    /// The targets, as of the last count.
    pub targets: Vec<Shown>,
    /// What has to be said in the last line; "" when nothing has.
    pub notice: String,
    /// The time of day of the last count, as text.
    pub clock: String,
    sort: Sort,
    filter: String,
    typing: bool,
    paused: bool,
    help: bool,
    chosen: Option<SiteKey>,
    open: bool,
    scroll: u16,
}

/// A call site of a target, the same from one report to the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteKey {
    /// Its process.
    pub pid: i32,
    kind: &'static str,
    timer_kind: Option<&'static str>,
    site: String,
    start_function: String,
}

/// By what the sites are sorted; the first is the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// The worst verdict, then the fastest growth.
    #[default]
    Verdict,
    /// The fastest growth.
    Growth,
    /// The most alive.
    Count,
    /// The oldest.
    Age,
}

impl Sort {
    /// Its name on the screen.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Growth => "growth",
            Self::Count => "alive",
            Self::Age => "age",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Verdict => Self::Growth,
            Self::Growth => Self::Count,
            Self::Count => Self::Age,
            Self::Age => Self::Verdict,
        }
    }
}

/// What the caller has to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing but to draw again.
    Draw,
    /// Look at once where the goroutines of this process are.
    Look(i32),
    /// End.
    Quit,
}

impl Top {
    /// Whether new counts are to be left out.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The process whose call site is open, if one is.
    #[must_use]
    pub fn open_pid(&self) -> Option<i32> {
        let chosen = self.chosen.as_ref().filter(|_| self.open)?;
        Some(chosen.pid)
    }

    /// Does what a key asks for.
    pub fn press(&mut self, key: KeyEvent) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Wish::Quit,
                _ => Wish::Draw,
            };
        }
        if self.help {
            self.help = false;
            return Wish::Draw;
        }
        if self.typing {
            self.type_key(key.code);
            return Wish::Draw;
        }
        match key.code {
            KeyCode::Char('q') if !self.open => return Wish::Quit,
            KeyCode::Char('q' | 'h') | KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => {
                if self.open {
                    self.open = false;
                } else {
                    self.filter.clear();
                }
            }
            KeyCode::Char('?') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') if !self.open => self.typing = true,
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => return self.enter(),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(10),
            KeyCode::PageUp => self.step(-10),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            _ => {}
        }
        Wish::Draw
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            // Nobody types more, but somebody may paste it.
            KeyCode::Char(character) if self.filter.len() < 100 => self.filter.push(character),
            _ => {}
        }
    }

    fn enter(&mut self) -> Wish {
        let Some(key) = self.chosen_row().map(|(shown, site)| key_of(shown, site)) else {
            return Wish::Draw;
        };
        let pid = key.pid;
        self.chosen = Some(key);
        self.open = true;
        self.scroll = 0;
        Wish::Look(pid)
    }

    fn step(&mut self, by: isize) {
        if self.open {
            let by = i32::try_from(by.clamp(-10_000, 10_000)).unwrap_or(0);
            let to = i32::from(self.scroll).saturating_add(by);
            self.scroll = u16::try_from(to.clamp(0, 10_000)).unwrap_or(0);
            return;
        }
        let rows = self.rows();
        let Some(last) = rows.len().checked_sub(1) else {
            return;
        };
        let to = self.position(&rows).saturating_add_signed(by).min(last);
        self.chosen = rows.get(to).map(|(shown, site)| key_of(shown, site));
    }

    /// The call sites that pass the filter, in order.
    fn rows(&self) -> Vec<(&Shown, &SiteReport)> {
        let words: Vec<String> = (self.filter.split_whitespace())
            .map(str::to_lowercase)
            .collect();
        let mut rows: Vec<(&Shown, &SiteReport)> = (self.targets.iter())
            .flat_map(|shown| shown.report.sites.iter().map(move |site| (shown, site)))
            // What sleeps is already there as a goroutine.
            .filter(|(_, site)| site.attributed || site.timer_kind != Some("sleep"))
            .filter(|(shown, site)| {
                let text = format!(
                    "{} {} {} {} {} {}",
                    shown.label,
                    shown.pid,
                    verdict_name(site.verdict),
                    state(site),
                    site.site,
                    site.start_function
                );
                let text = text.to_lowercase();
                words.iter().all(|word| text.contains(word))
            })
            .collect();
        rows.sort_by(|(_, a), (_, b)| {
            let growth = b.growth_per_minute.total_cmp(&a.growth_per_minute);
            let count = b.count.cmp(&a.count);
            match self.sort {
                Sort::Verdict => b.verdict.cmp(&a.verdict).then(growth).then(count),
                Sort::Growth => growth.then(count),
                Sort::Count => count.then(growth),
                Sort::Age => b.oldest_seconds.total_cmp(&a.oldest_seconds).then(count),
            }
            .then_with(|| a.site.cmp(&b.site))
        });
        rows
    }

    /// Where the chosen one is now; the first when it is gone.
    fn position(&self, rows: &[(&Shown, &SiteReport)]) -> usize {
        let chosen = self.chosen.as_ref();
        rows.iter()
            .position(|(shown, site)| chosen.is_some_and(|chosen| chosen.is(shown, site)))
            .unwrap_or(0)
    }

    fn chosen_row(&self) -> Option<(&Shown, &SiteReport)> {
        let rows = self.rows();
        rows.get(self.position(&rows)).copied()
    }

    /// The open call site, if it is still there.
    fn open_site(&self) -> Option<(&Shown, &SiteReport)> {
        let chosen = self.chosen.as_ref()?;
        let shown = self.targets.iter().find(|shown| shown.pid == chosen.pid)?;
        let mut sites = shown.report.sites.iter();
        Some((shown, sites.find(|site| chosen.is(shown, site))?))
    }
}

fn key_of(shown: &Shown, site: &SiteReport) -> SiteKey {
    SiteKey {
        pid: shown.pid,
        kind: site.kind,
        timer_kind: site.timer_kind,
        site: site.site.clone(),
        start_function: site.start_function.clone(),
    }
}

impl SiteKey {
    fn is(&self, shown: &Shown, site: &SiteReport) -> bool {
        self.pid == shown.pid
            && self.kind == site.kind
            && self.timer_kind == site.timer_kind
            && self.site == site.site
            && self.start_function == site.start_function
    }
}

fn verdict_name(verdict: Level) -> &'static str {
    match verdict {
        Level::Leak => "LEAK",
        Level::Suspect => "SUSPECT",
        Level::Ok => "fine",
        Level::NotYet => "–",
    }
}

/// The state that most of its goroutines are in, or the kind of its timers.
fn state(site: &SiteReport) -> &str {
    if let Some(kind) = site.timer_kind {
        return kind;
    }
    let most = site.states.iter().max_by_key(|(_, count)| **count);
    most.map_or("–", |(state, _)| state)
}

#[cfg(test)]
mod tests;
