//! Can this machine be traced? What was found out about it, judged line by line. Pure: `command::check` looks.

use serde::Serialize;

use crate::probe::{Features, Offer, Trial};

/// What was found out about the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Such as "6.1.0-50-cloud-amd64".
    pub release: String,
    /// What the kernel has.
    pub features: Features,
    /// Whether the kernel offers uprobes as a kind of perf event.
    pub uprobe_events: bool,
    /// Whether the kernel carries its own type information.
    pub btf: bool,
    /// `/sys/kernel/security/lockdown`: `[none] integrity confidentiality`.
    pub lockdown: Option<String>,
    /// `/proc/sys/kernel/unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<String>,
    /// `/proc/sys/kernel/perf_event_paranoid`.
    pub perf_event_paranoid: Option<String>,
    /// `/proc/sys/kernel/yama/ptrace_scope`; `None` when there is no Yama.
    pub ptrace_scope: Option<String>,
    /// The effective capabilities, one bit each; `None` when they could not be read.
    pub capabilities: Option<u64>,
    /// Whether leaktrace runs in the first pid namespace; `None` when it could not be read.
    pub first_pid_namespace: Option<bool>,
    /// Whether another process's memory could be read.
    pub memory: Memory,
    /// A probe on leaktrace itself, or why there was none.
    pub probe: Result<Trial, String>,
}

/// What reading another process's memory came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Of process 1.
    Any,
    /// Not of process 1, but of the one that started leaktrace.
    OwnUser,
    /// Not at all, for this reason.
    No(String),
    /// There is no other process to try it on.
    NobodyThere,
}

/// The judgement, in the shape of the JSON answer.
#[derive(Clone, Debug, Serialize)]
pub struct Judgement {
    /// What can be done here.
    pub usable: Usable,
    /// Line by line.
    pub findings: Vec<Finding>,
}

/// What can be done on this machine, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Usable {
    /// Everything.
    Probes,
    /// Only counting what is alive.
    Snapshot,
    /// Nothing.
    Nothing,
}

impl Usable {
    /// 0, 1, 2.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self as u8
    }

    /// The judgement as a sentence.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Probes => "Go programs can be traced here, with probes.",
            Self::Snapshot => {
                "Only `leaktrace snapshot` works here: probes do not, see what FAILED above."
            }
            Self::Nothing => "Nothing can be traced here, see what FAILED above.",
        }
    }
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<&'static str>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be, or without influence.
    Ok,
    /// Something is less than it could be.
    Warning,
    /// Something does not work.
    Failed,
}

/// Judges.
#[must_use]
pub fn judge(facts: &Facts) -> Judgement {
    let memory_works = !matches!(facts.memory, Memory::No(_));
    let counted = facts.probe.as_ref().is_ok_and(is_exact);
    let findings = vec![
        ok("kernel", facts.release.clone()),
        offer(
            "bpf system call",
            &facts.features.maps,
            "boot a kernel with CONFIG_BPF_SYSCALL",
        ),
        offer(
            "ring buffer",
            &facts.features.ring_buffer,
            "boot Linux 5.8 or later",
        ),
        uprobes(facts.uprobe_events),
        cookies(facts),
        ok(
            "type information",
            if facts.btf {
                "/sys/kernel/btf/vmlinux is there (not needed)"
            } else {
                "the kernel has none (not needed)"
            },
        ),
        lockdown(facts.lockdown.as_deref()),
        setting(
            "unprivileged_bpf_disabled",
            facts.unprivileged_bpf_disabled.as_deref(),
            "without influence on a user with CAP_BPF",
        ),
        setting(
            "perf_event_paranoid",
            facts.perf_event_paranoid.as_deref(),
            "without influence on a user with CAP_PERFMON",
        ),
        yama(facts),
        capabilities(facts),
        pid_namespace(facts.first_pid_namespace),
        memory(facts),
        trial(&facts.probe),
    ];
    let usable = match (memory_works, counted) {
        (true, true) => Usable::Probes,
        (true, false) => Usable::Snapshot,
        (false, _) => Usable::Nothing,
    };
    Judgement { usable, findings }
}

/// The judgement as a table.
#[must_use]
pub fn render(judgement: &Judgement) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for finding in &judgement.findings {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "FAILED",
        };
        let _ = writeln!(text, "{status:<8} {:<26} {}", finding.name, finding.found);
        if let Some(mend) = finding.mend {
            let _ = writeln!(text, "{:<8} {:<26} → {mend}", "", "");
        }
    }
    let _ = writeln!(text, "{}", judgement.usable.sentence());
    text
}

fn is_exact(trial: &Trial) -> bool {
    trial.hits == trial.calls && trial.records == trial.calls
}

fn offer(name: &'static str, offer: &Offer, mend: &'static str) -> Finding {
    match offer {
        Offer::There => ok(name, "works"),
        Offer::Missing => failed(name, "the kernel has none", mend),
        Offer::Unknown(reason) => failed(name, format!("could not be tried: {reason}"), AS_ROOT),
    }
}

fn uprobes(there: bool) -> Finding {
    if there {
        return ok("uprobes", "the kernel offers them as perf events");
    }
    failed(
        "uprobes",
        "/sys/bus/event_source/devices/uprobe is not there",
        "mount sysfs on /sys, or boot a kernel with CONFIG_UPROBE_EVENTS",
    )
}

fn cookies(facts: &Facts) -> Finding {
    let name = "attach cookies";
    if facts.features.cookies {
        return ok(name, "work");
    }
    if facts.features.ring_buffer == Offer::There {
        return warning(
            name,
            "the kernel has none: processes of one file do not share their probes, and a kind of event with \
             sites that differ is not probed",
            "boot Linux 5.15 or later",
        );
    }
    failed(name, "could not be tried", AS_ROOT)
}

fn lockdown(state: Option<&str>) -> Finding {
    let name = "lockdown";
    match state.and_then(|state| state.split(['[', ']']).nth(1)) {
        None => ok(name, "the kernel has none"),
        Some("confidentiality") => warning(
            name,
            "confidentiality: the kernel may refuse programs that read memory; the trial below tells",
            "boot with lockdown=integrity, or without",
        ),
        Some(state) => ok(name, state),
    }
}

fn setting(name: &'static str, value: Option<&str>, meaning: &str) -> Finding {
    ok(
        name,
        match value {
            Some(value) => format!("{value}, {meaning}"),
            None => "the kernel has no such setting".to_owned(),
        },
    )
}

fn yama(facts: &Facts) -> Finding {
    let name = "ptrace_scope";
    let may = may_ptrace(facts);
    match facts.ptrace_scope.as_deref() {
        None => ok(name, "the kernel has no Yama"),
        Some("0") => ok(name, "0"),
        Some("3") => failed(
            name,
            "3: nobody may read another process's memory until the next boot",
            "set kernel.yama.ptrace_scope to 2 or less in /etc/sysctl.d, and boot",
        ),
        Some(scope) if may => ok(
            name,
            format!("{scope}, without influence on a user with CAP_SYS_PTRACE"),
        ),
        Some(scope) => failed(
            name,
            format!("{scope}: only with CAP_SYS_PTRACE may another process's memory be read"),
            "run as root, or give leaktrace CAP_SYS_PTRACE",
        ),
    }
}

fn capabilities(facts: &Facts) -> Finding {
    let name = "capabilities";
    let Some(bits) = facts.capabilities else {
        return warning(
            name,
            "/proc/self/status does not tell",
            "mount proc on /proc",
        );
    };
    let known = [
        ("CAP_SYS_PTRACE", CAP_SYS_PTRACE),
        ("CAP_DAC_READ_SEARCH", CAP_DAC_READ_SEARCH),
        ("CAP_PERFMON", CAP_PERFMON),
        ("CAP_BPF", CAP_BPF),
        ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
    ];
    let (held, lacking): (Vec<_>, Vec<_>) = known.iter().partition(|(_, bit)| has(bits, *bit));
    let names = |list: &[&(&str, u32)]| match list {
        [] => "none".to_owned(),
        list => list
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let found = format!("effective: {}; lacking: {}", names(&held), names(&lacking));
    let admin = has(bits, CAP_SYS_ADMIN);
    // CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON (include/linux/capability.h).
    let loads = has(bits, CAP_BPF) && has(bits, CAP_PERFMON);
    if !admin && !loads {
        return failed(name, found, AS_ROOT);
    }
    if !admin && facts.features.ring_buffer == Offer::There && facts.probe.is_err() {
        // kernel/events/core.c, perf_uprobe_event_init since "perf: Revert to requiring CAP_SYS_ADMIN for uprobes".
        return failed(
            name,
            found,
            "give leaktrace CAP_SYS_ADMIN: kernels from July 2025 that are older than 6.10 let nobody else put on uprobes (CVE-2025-38466)",
        );
    }
    if !has(bits, CAP_SYS_PTRACE) {
        return warning(
            name,
            found,
            "without CAP_SYS_PTRACE only this user's processes can be read",
        );
    }
    if !has(bits, CAP_DAC_READ_SEARCH) {
        return warning(
            name,
            found,
            "without CAP_DAC_READ_SEARCH only this user's processes can be looked into",
        );
    }
    ok(name, found)
}

fn pid_namespace(first: Option<bool>) -> Finding {
    let name = "pid namespace";
    match first {
        Some(true) => ok(name, "the machine's first one: every process can be named"),
        Some(false) => warning(
            name,
            "a container's own: only the processes in it can be named",
            "run it in the machine's pid namespace (Docker: --pid=host, Kubernetes: hostPID: true)",
        ),
        None => warning(
            name,
            "/proc/self/ns/pid cannot be read",
            "mount proc on /proc",
        ),
    }
}

fn memory(facts: &Facts) -> Finding {
    let name = "memory of a process";
    match &facts.memory {
        Memory::Any => ok(name, "can be read"),
        Memory::OwnUser if may_ptrace(facts) => ok(name, "can be read, though not process 1's"),
        Memory::OwnUser => warning(
            name,
            "can be read only of this user's own processes",
            "run as root, or give leaktrace CAP_SYS_PTRACE",
        ),
        Memory::NobodyThere => ok(name, "not tried: there is no other process"),
        Memory::No(reason) => failed(
            name,
            reason.clone(),
            "run as root, or give leaktrace CAP_SYS_PTRACE",
        ),
    }
}

fn trial(probe: &Result<Trial, String>) -> Finding {
    let name = "a probe on leaktrace itself";
    match probe {
        Ok(trial) if is_exact(trial) => ok(
            name,
            format!(
                "on `{}`, {}: {} of {} calls counted, {} ns each",
                trial.instruction,
                if trial.linked {
                    "held by a link"
                } else {
                    "a perf event, as before Linux 6.10"
                },
                trial.hits,
                trial.calls,
                trial.nanoseconds
            ),
        ),
        Ok(trial) => failed(
            name,
            format!(
                "on `{}`: of {} calls {} were counted and {} recorded",
                trial.instruction, trial.calls, trial.hits, trial.records
            ),
            "please report this with the kernel's version",
        ),
        Err(reason) => failed(name, reason.clone(), "mend what failed above"),
    }
}

fn may_ptrace(facts: &Facts) -> bool {
    facts
        .capabilities
        .is_some_and(|bits| has(bits, CAP_SYS_PTRACE))
}

const AS_ROOT: &str =
    "run as root, or give leaktrace CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH";

// include/uapi/linux/capability.h
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn has(bits: u64, capability: u32) -> bool {
    bits >> capability & 1 == 1
}

fn ok(name: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        name,
        status: Status::Ok,
        found: found.into(),
        mend: None,
    }
}

fn warning(name: &'static str, found: impl Into<String>, mend: &'static str) -> Finding {
    Finding {
        status: Status::Warning,
        mend: Some(mend),
        ..ok(name, found)
    }
}

fn failed(name: &'static str, found: impl Into<String>, mend: &'static str) -> Finding {
    Finding {
        status: Status::Failed,
        mend: Some(mend),
        ..ok(name, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            release: "6.12.107".to_owned(),
            features: Features {
                maps: Offer::There,
                ring_buffer: Offer::There,
                cookies: true,
            },
            uprobe_events: true,
            btf: true,
            lockdown: Some("[none] integrity confidentiality".to_owned()),
            unprivileged_bpf_disabled: Some("2".to_owned()),
            perf_event_paranoid: Some("3".to_owned()),
            ptrace_scope: Some("1".to_owned()),
            capabilities: Some(u64::MAX),
            first_pid_namespace: Some(true),
            memory: Memory::Any,
            probe: Ok(Trial {
                calls: 1000,
                hits: 1000,
                records: 1000,
                nanoseconds: 900,
                instruction: "push rbp".to_owned(),
                linked: true,
            }),
        }
    }

    fn failures(facts: &Facts) -> Vec<&'static str> {
        let failed = |finding: &Finding| finding.status == Status::Failed;
        let findings = judge(facts).findings;
        let failed = findings.into_iter().filter(failed);
        failed.map(|finding| finding.name).collect()
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        let judgement = judge(&good());
        assert_eq!(judgement.usable, Usable::Probes);
        assert!(
            judgement
                .findings
                .iter()
                .all(|finding| finding.mend.is_none())
        );
    }

    #[test]
    fn a_kernel_that_wants_more_for_uprobes_is_named() {
        let mut facts = good();
        let four = [CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_PERFMON, CAP_BPF];
        let bits = |list: &[u32]| Some(list.iter().fold(0, |bits, one| bits | 1 << one));
        facts.capabilities = bits(&four);
        assert_eq!(failures(&facts), [""; 0]);
        facts.probe = Err("no permission".to_owned());
        assert!(failures(&facts).contains(&"capabilities"));
        let capabilities = |facts: &Facts| {
            let mut findings = judge(facts).findings.into_iter();
            findings.find(|finding| finding.name == "capabilities")
        };
        let mend = |facts: &Facts| capabilities(facts).and_then(|found| found.mend);
        assert!(mend(&facts).is_some_and(|mend| mend.contains("CAP_SYS_ADMIN")));
        // Each of the others is missed by its name.
        facts.probe = good().probe;
        for lacking in 0..four.len() {
            let mut some = four.to_vec();
            some.remove(lacking);
            facts.capabilities = bits(&some);
            assert!(mend(&facts).is_some(), "{lacking}");
        }
    }

    #[test]
    fn a_user_without_capabilities_may_at_most_take_snapshots() {
        let mut facts = good();
        facts.capabilities = Some(0);
        facts.features.maps = Offer::Unknown("Operation not permitted".to_owned());
        facts.features.ring_buffer = facts.features.maps.clone();
        facts.features.cookies = false;
        facts.ptrace_scope = Some("0".to_owned());
        facts.memory = Memory::OwnUser;
        facts.probe = Err("no permission".to_owned());
        assert_eq!(judge(&facts).usable, Usable::Snapshot);
        assert!(failures(&facts).contains(&"capabilities"));
        facts.memory = Memory::No("not allowed".to_owned());
        facts.ptrace_scope = Some("1".to_owned());
        assert_eq!(judge(&facts).usable, Usable::Nothing);
        assert!(failures(&facts).contains(&"ptrace_scope"));
        for finding in judge(&facts).findings {
            assert_eq!(finding.mend.is_some(), finding.status != Status::Ok);
        }
    }

    #[test]
    fn a_kernel_without_cookies_is_worth_a_warning() {
        let mut facts = good();
        facts.features.cookies = false;
        assert_eq!(failures(&facts), [""; 0]);
        assert_eq!(judge(&facts).usable, Usable::Probes);
        assert!(render(&judge(&facts)).contains("warning  attach cookies"));
    }

    #[test]
    fn a_probe_that_miscounts_is_no_probe() {
        let mut facts = good();
        if let Ok(trial) = &mut facts.probe {
            trial.hits = 999;
        }
        assert_eq!(judge(&facts).usable, Usable::Snapshot);
        assert_eq!(failures(&facts), ["a probe on leaktrace itself"]);
    }

    #[test]
    fn a_closed_yama_ends_everything() {
        let mut facts = good();
        facts.ptrace_scope = Some("3".to_owned());
        facts.memory = Memory::No("not allowed".to_owned());
        assert_eq!(judge(&facts).usable.exit_code(), 2);
        assert_eq!(failures(&facts), ["ptrace_scope", "memory of a process"]);
    }
}
