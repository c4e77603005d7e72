//! Which probes shall go where? Pure: what was resolved in, a list out.

use leaktrace_common::{binary::BinaryConfig, event::Kind};

use crate::{
    address::FileOffset,
    resolve::{Arch, Execution, Program, SiteChoice},
};

/// How much is watched, from free to rich.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No probes.
    None,
    /// Births and ends of goroutines, and timers.
    #[default]
    Lifecycle,
    /// Also each park and wake-up, which are many.
    Full,
}

impl Level {
    /// What users call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lifecycle => "lifecycle",
            Self::Full => "full",
        }
    }

    /// The kinds of event that are watched on this level.
    #[must_use]
    pub fn kinds(self) -> &'static [Kind] {
        match self {
            Self::None => &[],
            Self::Lifecycle => &[
                Kind::Born,
                Kind::Ended,
                Kind::Armed,
                Kind::Stopped,
                Kind::Rearmed,
                Kind::Fired,
            ],
            Self::Full => &Kind::ALL,
        }
    }
}

/// What to attach to one binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The instructions to probe.
    pub points: Vec<Point>,
    /// Kinds of event of this level that cannot be seen in this binary, each with the reason as a sentence.
    pub refused: Vec<(Kind, String)>,
}

impl Plan {
    /// The plan for a kernel without attach cookies, where all probes of a kind find their object in the
    /// same register: a kind whose sites differ is refused.
    #[must_use]
    pub fn without_cookies(mut self) -> Self {
        for kind in Kind::ALL {
            let mut of_kind = self.points.iter().filter(|point| point.kind == kind);
            let Some(first) = of_kind.next() else {
                continue;
            };
            if of_kind.any(|point| point.register != first.register) {
                self.points.retain(|point| point.kind != kind);
                self.refused.push((
                    kind,
                    "its sites hold the object in different registers, and this kernel has no attach cookies \
                     to tell them apart: Linux 5.15 or later has"
                        .to_owned(),
                ));
            }
        }
        self
    }
}

/// One probe on one instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// What it watches.
    pub kind: Kind,
    /// Where the instruction lies in the file.
    pub offset: FileOffset,
    /// Its bytes, which must still be there.
    pub bytes: Vec<u8>,
    /// The register that holds the object (hardware number, see `leaktrace_common::binary::Cookie`).
    pub register: u8,
    /// What a hit costs.
    pub execution: Execution,
}

/// Chooses the probes of a level among the sites that were found (`resolve::Program::sites`).
#[must_use]
pub fn plan(sites: &[SiteChoice], level: Level) -> Plan {
    let mut plan = Plan::default();
    for &kind in level.kinds() {
        let mut reasons = Vec::new();
        let mut found = false;
        for choice in sites.iter().filter(|choice| choice.kind == kind) {
            match &choice.found {
                Ok(chosen) => {
                    found |= !chosen.is_empty();
                    plan.points.extend(chosen.iter().map(|site| Point {
                        kind,
                        offset: site.file_offset,
                        bytes: site.bytes.clone(),
                        register: site.register,
                        execution: site.execution,
                    }));
                }
                Err(reason) => reasons.push(reason.clone()),
            }
        }
        if !found {
            if reasons.is_empty() {
                reasons.push("no place to probe it was found in this binary".to_owned());
            }
            plan.refused.push((kind, reasons.join("; ")));
        }
    }
    plan
}

/// What the probes must know of a binary.
#[must_use]
pub fn binary_config(program: &Program) -> BinaryConfig {
    let offsets = &program.offsets;
    BinaryConfig {
        g_stack: offsets.g_stack,
        g_m: offsets.g_m,
        g_sched_bp: offsets.g_sched_bp,
        g_goid: offsets.g_goid,
        g_waitreason: offsets.g_waitreason,
        g_gopc: offsets.g_gopc,
        g_startpc: offsets.g_startpc,
        g_parent_goid: offsets.g_parent_goid.unwrap_or(BinaryConfig::ABSENT),
        m_curg: offsets.m_curg,
        timer_when: offsets.timer_when,
        timer_period: offsets.timer_period,
        timer_f: offsets.timer_f,
        timer_arg: offsets.timer_arg,
        // time.newTimer hands them over; time.startTimer before Go 1.23 had filled in the timer
        // (src/time/sleep.go).
        armed_in_registers: u32::from(program.build.go.minor >= 23),
        // On arm64 a stack that grew kept stale frame pointers until Go 1.21 (src/runtime/stack.go: adjustframe).
        frame_pointers: u32::from(program.arch == Arch::Amd64 || program.build.go.minor >= 21),
        filled: 0,
        object_is_current_g: 0,
        registers: [0; Kind::COUNT as usize],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        address::VirtAddr,
        resolve::{ProbeSite, offsets},
    };

    #[test]
    fn in_every_release_the_programs_read_a_goroutine_at_once() {
        // The words that leaktrace-ebpf/src/goroutine.rs looks for; a field elsewhere is read by itself, which is dearer.
        for release in offsets::table().expect("the table is read") {
            let of = &release.offsets;
            let facts = of
                .g_parent_goid
                .into_iter()
                .chain([of.g_gopc, of.g_startpc]);
            for fact in facts {
                let word = (fact - of.g_goid) / 8;
                assert!((15..=20).contains(&word), "go1.{}: {word}", release.minor);
            }
            let frame = (of.g_sched_bp - of.g_stack) / 8;
            assert!((12..=13).contains(&frame), "go1.{}: {frame}", release.minor);
        }
    }

    fn site(kind: Kind, offset: u64) -> SiteChoice {
        SiteChoice {
            kind,
            found: Ok(vec![ProbeSite {
                function: "runtime.something".to_owned(),
                address: VirtAddr(0x40_0000 + offset),
                file_offset: FileOffset(offset),
                offset_in_function: 4,
                bytes: vec![0x76, 0x10],
                text: "jbe".to_owned(),
                execution: Execution::Emulated,
                register: 0,
            }]),
        }
    }

    #[test]
    fn a_level_takes_its_kinds_and_no_others() {
        let sites: Vec<_> = Kind::ALL
            .into_iter()
            .zip(1..)
            .map(|(kind, offset)| site(kind, offset))
            .collect();
        let kinds = |level| {
            let plan = plan(&sites, level);
            assert_eq!(plan.refused, []);
            plan.points
                .iter()
                .map(|point| point.kind)
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(Level::None), []);
        assert_eq!(kinds(Level::Lifecycle).len(), 6);
        assert!(!kinds(Level::Lifecycle).contains(&Kind::Parked));
        assert_eq!(kinds(Level::Full), Kind::ALL);
    }

    #[test]
    fn without_cookies_the_sites_of_a_kind_must_agree_on_the_register() {
        let mut sites = [
            site(Kind::Born, 1),
            site(Kind::Ended, 2),
            site(Kind::Ended, 3),
        ];
        let plan_of = |sites: &[SiteChoice]| plan(sites, Level::Lifecycle).without_cookies();
        assert_eq!(plan_of(&sites).points.len(), 3);
        if let Ok(found) = &mut sites[2].found {
            found[0].register = 3;
        }
        let plan = plan_of(&sites);
        assert_eq!(plan.points.len(), 1);
        assert!(plan.refused.iter().any(|(kind, _)| *kind == Kind::Ended));
    }

    #[test]
    fn what_cannot_be_seen_is_named_with_its_reason() {
        let sites = [
            site(Kind::Born, 1),
            SiteChoice {
                kind: Kind::Ended,
                found: Err("runtime.gdestroy is not in this binary".to_owned()),
            },
        ];
        let plan = plan(&sites, Level::Lifecycle);
        assert_eq!(plan.points.len(), 1);
        assert_eq!(plan.refused.len(), 5);
        assert_eq!(
            plan.refused[0],
            (
                Kind::Ended,
                "runtime.gdestroy is not in this binary".to_owned()
            )
        );
        assert_eq!(plan.refused[1].0, Kind::Armed);
    }
}
