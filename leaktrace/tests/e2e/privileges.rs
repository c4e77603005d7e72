//! A plain user with a few capabilities: what is needed, that it is enough, and that the rest is given up.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::address;
use crate::http::Connection;
use crate::tool::{self, Tool};
use crate::{needs, text};

/// As setpriv calls them, with their bits (include/uapi/linux/capability.h).
const LIST: [(&str, u32); 5] = [
    ("dac_read_search", 2),
    ("sys_ptrace", 19),
    ("sys_admin", 21),
    ("perfmon", 38),
    ("bpf", 39),
];

const SOON: Duration = Duration::from_secs(30);

/// A copy of the command that everybody may start, and how to start it with few rights.
struct Plain {
    setpriv: PathBuf,
    _folder: tempfile::TempDir,
    copy: PathBuf,
}

impl Plain {
    fn new() -> Option<Self> {
        needs::root()?;
        let setpriv = needs::setpriv()?;
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let copy = folder.path().join("leaktrace");
        fs::copy(env!("CARGO_BIN_EXE_leaktrace"), &copy).expect("the command can be copied");
        for path in [folder.path(), &copy] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("they are ours");
        }
        Some(Self {
            setpriv,
            _folder: folder,
            copy,
        })
    }

    /// The command as the user nobody with these capabilities, who can never get others.
    fn with(&self, capabilities: &[&str], arguments: &[&str]) -> Command {
        let set = capabilities
            .iter()
            .fold("-all".to_owned(), |set, one| set + ",+" + one);
        let mut command = Command::new(&self.setpriv);
        command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--no-new-privs",
            ])
            .args([
                "--inh-caps",
                &set,
                "--ambient-caps",
                &set,
                "--bounding-set",
                &set,
            ])
            .arg(&self.copy)
            .args(arguments)
            .current_dir("/");
        command
    }

    fn check(&self, capabilities: &[&str]) -> Value {
        let outcome = Tool::spawn(&mut self.with(capabilities, &["check", "--format", "json"]));
        let outcome = outcome.wait(SOON);
        serde_json::from_str(&outcome.stdout).expect("the answer is JSON")
    }
}

fn names() -> Vec<&'static str> {
    LIST.iter().map(|(name, _)| *name).collect()
}

#[test]
fn a_plain_user_with_the_listed_capabilities_records() {
    let Some(plain) = Plain::new() else { return };
    let arguments = ["-burst", "30", "-rate", "0"];
    let Some(program) = needs::program("handler-timeout", "1.27.3", &arguments) else {
        return;
    };
    let pid = program.pid().to_string();
    let record = [
        "record",
        "--pid",
        &pid,
        "--duration",
        "1s",
        "--format",
        "json",
    ];
    let outcome = Tool::spawn(&mut plain.with(&names(), &record)).wait(SOON);
    let report = outcome.json();
    assert_eq!(outcome.stderr, "");
    assert_eq!(
        report["goroutines"]["by_state"]["chan send"], 30,
        "{report}"
    );
    assert_eq!(report["events"]["level"], "lifecycle", "{report}");
    // Without probes two are enough.
    let snapshot = ["snapshot", "--pid", &pid, "--format", "json"];
    let outcome = Tool::spawn(&mut plain.with(&["sys_ptrace", "dac_read_search"], &snapshot));
    let report = outcome.wait(SOON).json();
    assert_eq!(
        report["goroutines"]["by_state"]["chan send"], 30,
        "{report}"
    );
}

#[test]
fn what_lacks_is_named() {
    let Some(plain) = Plain::new() else { return };
    assert_eq!(plain.check(&names())["usable"], "probes");
    for lacking in names() {
        let rest: Vec<_> = names()
            .into_iter()
            .filter(|name| *name != lacking)
            .collect();
        let found = plain.check(&rest);
        let findings = found["findings"].as_array().expect("a list");
        let finding = findings
            .iter()
            .find(|finding| finding["name"] == "capabilities");
        let finding = finding.expect("it is looked at");
        let named = format!("CAP_{}", lacking.to_uppercase());
        let said = finding["found"].as_str().expect("text");
        let (_, missing) = said.split_once("lacking: ").expect("both lists");
        assert!(missing.contains(&named), "{finding}");
        match lacking {
            // CAP_SYS_ADMIN stands in for these.
            "bpf" | "perfmon" => assert_eq!(finding["status"], "ok", "{finding}"),
            // Older kernels do not ask for it.
            "sys_admin" if found["usable"] == "probes" => {}
            _ => {
                let mend = finding["mend"].as_str().expect("how to mend it");
                assert!(mend.contains(&named), "{finding}");
            }
        }
    }
}

#[test]
fn the_daemon_keeps_what_it_needs_and_its_clients_thread_nothing() {
    let Some(plain) = Plain::new() else { return };
    let arguments = ["-burst", "30", "-rate", "0"];
    let Some(program) = needs::program("handler-timeout", "1.27.3", &arguments) else {
        return;
    };
    let pid = program.pid().to_string();
    let daemon = ["daemon", "--pid", &pid, "--listen", "127.0.0.1:0"];
    let needs_admin =
        plain.check(&["dac_read_search", "sys_ptrace", "perfmon", "bpf"])["usable"] != "probes";
    let allowed = LIST
        .iter()
        .filter(|(name, _)| needs_admin || *name != "sys_admin")
        .fold(0, |bits, (_, bit)| bits | 1_u64 << bit);
    // As a plain user, and as root, who has all of them at the start.
    for mut command in [plain.with(&names(), &daemon), {
        let mut root = tool::leaktrace();
        root.args(daemon);
        root
    }] {
        let tool = Tool::spawn(&mut command);
        let mut connection = Connection::open(&address(&tool)).expect("the daemon listens");
        let metrics = connection.get("/metrics").body;
        assert!(
            metrics.contains("leaktrace_target_up{target=\"handler-timeout\"} 1"),
            "{metrics}"
        );
        assert_ne!(text::changed_bytes(program.pid()), 0, "the probes are on");
        let threads = fs::read_dir(format!("/proc/{}/task", tool.pid())).expect("it runs");
        let mut seen = 0;
        for thread in threads {
            let folder = thread.expect("a thread").path();
            let name = fs::read_to_string(folder.join("comm")).expect("it has a name");
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
                let bits = set_of(&folder, set);
                let most = match (name.trim(), set) {
                    ("http", _) | (_, "CapInh" | "CapAmb") => 0,
                    _ => allowed,
                };
                assert_eq!(bits & !most, 0, "{name} {set} {bits:x}");
                assert!(
                    name.trim() == "http" || set != "CapEff" || bits == allowed,
                    "{bits:x}"
                );
            }
            seen += u32::from(name.trim() == "http");
        }
        assert_eq!(seen, 1, "one thread talks to clients");
    }
}

fn set_of(thread: &Path, name: &str) -> u64 {
    let status = fs::read_to_string(thread.join("status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    u64::from_str_radix(line.expect("the kernel tells").trim(), 16).expect("a number")
}
