//! The roll of all processes: who is there, since when, and what became of it. Pure: sightings in, time as an argument.
//!
//! A new process is left alone for a moment before anybody looks at it: hundreds of short-lived ones come and go
//! without a trace in the log, and a container's first process has become what it is to be.

use std::collections::BTreeMap;

use super::{Inode, Pid, scan::Sighting};

/// How long a new process is left alone, in nanoseconds.
pub const SETTLE_NS: u64 = 250_000_000;

/// Processes that are listed; a machine with more is told so.
const MOST: usize = 65_536;

/// All processes.
#[derive(Default)]
pub struct Roster {
    entries: BTreeMap<Pid, Entry>,
    /// Processes that were not listed because there were too many.
    pub turned_away: u64,
}

/// One process.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which.
    pub sighting: Sighting,
    /// Path of its executable; "" until it was looked at.
    pub exe: String,
    /// The file that it runs, if that was looked at.
    pub inode: Option<Inode>,
    /// What became of it.
    pub state: State,
}

/// What became of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has looked at it yet, or it was not ready.
    New {
        /// When to look.
        at_ns: u64,
        /// How often it was looked at.
        tries: u32,
        /// Why it was not taken then; "" at first.
        reason: String,
    },
    /// It is traced; a reason when it is only counted.
    Traced(String),
    /// It is a Go program that cannot be traced, for this reason.
    Refused(String),
    /// Not wanted, for this reason.
    Excluded(String),
    /// No Go program.
    NotGo(&'static str),
}

impl State {
    /// What users call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::New { .. } => "waiting",
            Self::Traced(_) => "traced",
            Self::Refused(_) => "refused",
            Self::Excluded(_) => "excluded",
            Self::NotGo(_) => "not go",
        }
    }

    /// Why it is so; "" when there is nothing to say.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::New { reason, .. }
            | Self::Traced(reason)
            | Self::Refused(reason)
            | Self::Excluded(reason) => reason,
            Self::NotGo(reason) => reason,
        }
    }
}

impl Roster {
    /// Everybody who is there now. Answers with those who are not any more, and those who run another program.
    pub fn see_all(&mut self, seen: Vec<Sighting>, now_ns: u64) -> Vec<Entry> {
        let mut before = std::mem::take(&mut self.entries);
        let mut gone = Vec::new();
        for sighting in seen {
            match before.remove(&sighting.pid) {
                Some(entry) if entry.sighting.life == sighting.life => {
                    self.entries.insert(sighting.pid, renamed(entry, sighting));
                }
                other => {
                    gone.extend(other);
                    self.enter(sighting, now_ns);
                }
            }
        }
        gone.extend(before.into_values());
        gone
    }

    /// One process as it is now; `None` when it has ended. Answers with what was there, if that is no more.
    pub fn see(&mut self, pid: Pid, seen: Option<Sighting>, now_ns: u64) -> Option<Entry> {
        let before = self.entries.remove(&pid);
        match (before, seen) {
            (Some(entry), Some(sighting)) if entry.sighting.life == sighting.life => {
                self.entries.insert(pid, renamed(entry, sighting));
                None
            }
            (before, Some(sighting)) => {
                self.enter(sighting, now_ns);
                before
            }
            (before, None) => before,
        }
    }

    fn enter(&mut self, sighting: Sighting, now_ns: u64) {
        if self.entries.len() >= MOST {
            self.turned_away += 1;
            return;
        }
        let state = if sighting.kernel {
            State::NotGo("it is a thread of the kernel")
        } else {
            State::New {
                at_ns: now_ns.saturating_add(SETTLE_NS),
                tries: 0,
                reason: String::new(),
            }
        };
        let entry = Entry {
            sighting,
            exe: String::new(),
            inode: None,
            state,
        };
        self.entries.insert(entry.sighting.pid, entry);
    }

    /// The process that is to be looked at now, if there is one.
    #[must_use]
    pub fn due(&self, now_ns: u64) -> Option<Pid> {
        let mut entries = self.entries.iter();
        entries
            .find(|(_, entry)| matches!(entry.state, State::New { at_ns, .. } if at_ns <= now_ns))
            .map(|(pid, _)| *pid)
    }

    /// One process.
    #[must_use]
    pub fn entry(&self, pid: Pid) -> Option<&Entry> {
        self.entries.get(&pid)
    }

    /// One process, to write down what became of it.
    pub fn entry_mut(&mut self, pid: Pid) -> Option<&mut Entry> {
        self.entries.get_mut(&pid)
    }

    /// Everybody, by number.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Looks at everybody again, as if they had just come: what is wanted has changed.
    pub fn forget(&mut self, now_ns: u64, mut whom: impl FnMut(&Entry) -> bool) {
        for entry in self.entries.values_mut() {
            if !entry.sighting.kernel && whom(entry) {
                entry.state = State::New {
                    at_ns: now_ns,
                    tries: 0,
                    reason: String::new(),
                };
            }
        }
    }

    /// Whether somebody who is not traced runs this file: probes must not be shared then.
    #[must_use]
    pub fn outsiders(&self, file: Inode) -> bool {
        self.entries.values().any(|entry| {
            entry.inode == Some(file)
                && !matches!(entry.state, State::Traced(_) | State::New { .. })
        })
    }
}

/// A process may call itself by another name at any time.
fn renamed(entry: Entry, sighting: Sighting) -> Entry {
    Entry { sighting, ..entry }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::scan::LifeId;

    fn sighting(pid: i32, start_ticks: u64, image: u64) -> Sighting {
        Sighting {
            pid: Pid(pid),
            life: LifeId { start_ticks, image },
            name: "x".to_owned(),
            kernel: false,
        }
    }

    fn traced(roster: &mut Roster, pid: i32) {
        roster.entry_mut(Pid(pid)).expect("there").state = State::Traced(String::new());
    }

    #[test]
    fn a_new_process_is_looked_at_after_a_while() {
        let mut roster = Roster::default();
        assert!(roster.see_all(vec![sighting(7, 1, 1)], 5).is_empty());
        assert_eq!(roster.due(5), None);
        assert_eq!(roster.due(5 + SETTLE_NS), Some(Pid(7)));
        traced(&mut roster, 7);
        assert_eq!(roster.due(u64::MAX), None);
        assert!(roster.see_all(vec![sighting(7, 1, 1)], 6).is_empty());
        assert_eq!(roster.due(u64::MAX), None, "it is the same");
    }

    #[test]
    fn a_number_used_again_and_a_program_in_the_place_of_another_are_new() {
        for next in [sighting(7, 2, 1), sighting(7, 1, 2)] {
            let mut roster = Roster::default();
            roster.see_all(vec![sighting(7, 1, 1)], 0);
            traced(&mut roster, 7);
            let gone = roster.see(Pid(7), Some(next.clone()), 9);
            assert_eq!(gone.map(|entry| entry.sighting), Some(sighting(7, 1, 1)));
            assert_eq!(roster.due(9 + SETTLE_NS), Some(Pid(7)));

            let mut roster = Roster::default();
            roster.see_all(vec![sighting(7, 1, 1)], 0);
            assert_eq!(roster.see_all(vec![next], 9).len(), 1);
        }
    }

    #[test]
    fn those_who_are_not_seen_are_gone() {
        let mut roster = Roster::default();
        roster.see_all((1..=9).map(|pid| sighting(pid, 1, 1)).collect(), 0);
        let gone = roster.see_all((1..=4).map(|pid| sighting(pid, 1, 1)).collect(), 1);
        assert_eq!(gone.len(), 5);
        assert!(roster.see(Pid(1), None, 2).is_some());
        assert_eq!(roster.entries().count(), 3);
    }

    #[test]
    fn whoever_runs_the_file_untraced_is_an_outsider() {
        let file = Inode {
            device: 1,
            number: 2,
        };
        let mut roster = Roster::default();
        roster.see_all(vec![sighting(1, 1, 1), sighting(2, 1, 1)], 0);
        for pid in [1, 2] {
            roster.entry_mut(Pid(pid)).expect("there").inode = Some(file);
            traced(&mut roster, pid);
        }
        assert!(!roster.outsiders(file));
        roster.entry_mut(Pid(2)).expect("there").state = State::Excluded("no".to_owned());
        assert!(roster.outsiders(file));
        assert!(!roster.outsiders(Inode { device: 2, ..file }));
    }
}
