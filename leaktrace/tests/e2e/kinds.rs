//! Unusual binaries: altered, stripped by other tools, deleted, packed, loaded into another program. Each is traced
//! as it should be, or refused with the right reason.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaktrace_fixtures::build::Variant;
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::toolchain::Toolchain;

use crate::matrix::a_snapshot_is_the_truth;
use crate::{needs, report, tool};

/// In which every refusal has to come.
const SOON: Duration = Duration::from_secs(10);

/// A copy of a fixture that a test may alter.
struct Copy {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Copy {
    /// Of mixed-states.
    fn new(go: &str, variant: Variant) -> Option<Self> {
        let executable = needs::fixture("mixed-states", go, variant)?;
        Some(Self {
            folder: tempfile::tempdir().expect("temporary folders can be made"),
            bytes: fs::read(executable).expect("the fixture is there"),
        })
    }

    /// Puts `after` wherever `before`, which is as long, stands; says how often.
    fn replace(&mut self, before: &str, after: &str) -> usize {
        assert_eq!(before.len(), after.len());
        let mut count = 0;
        let mut at = 0;
        while let Some(found) = find(&self.bytes[at..], before.as_bytes()) {
            self.bytes[at + found..][..after.len()].copy_from_slice(after.as_bytes());
            at += found + after.len();
            count += 1;
        }
        count
    }

    /// Writes it down.
    fn path(&self) -> PathBuf {
        let path = self.folder.path().join("program");
        fs::write(&path, &self.bytes).expect("temporary files can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// `inspect` refuses the file, and its sentence has these words.
fn refuses(path: &Path, words: &str) {
    let outcome = tool::run(
        &["inspect", path.to_str().expect("our paths are UTF-8")],
        SOON,
    );
    assert_eq!(outcome.code, Some(2), "{words}: {}", outcome.stdout);
    assert!(
        outcome.stderr.contains(words),
        "{words}: {}",
        outcome.stderr
    );
}

/// The commands that read a process refuse it, each with these words.
fn refuses_process(pid: u32, words: &str) {
    let pid = pid.to_string();
    for command in [
        &["snapshot"][..],
        &["inspect"],
        &["record", "--duration", "60s"],
    ] {
        let arguments: Vec<_> = command.iter().copied().chain(["--pid", &pid]).collect();
        let outcome = tool::run(&arguments, SOON);
        assert_eq!(outcome.code, Some(2), "{command:?}: {}", outcome.stdout);
        assert!(
            outcome.stderr.contains(words),
            "{command:?}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn an_unknown_release_without_dwarf_is_refused() {
    let (Some(()), Some(mut copy)) = (needs::root(), Copy::new("1.27.3", Variant::STRIPPED)) else {
        return;
    };
    assert!(
        copy.replace("go1.27.3", "go1.28.3") >= 2,
        "build information and runtime.buildVersion"
    );
    let path = copy.path();
    refuses(&path, "go1.28.3, which this leaktrace does not know");
    let program = Program::start(&path, &[]).expect("an altered version does not matter to it");
    refuses_process(
        program.pid(),
        "go1.28.3, which this leaktrace does not know",
    );
}

/// Its own DWARF says where the fields lie, and its memory proves it: what lives is counted, but nothing is probed.
#[test]
fn an_unknown_release_with_dwarf_is_counted_but_not_probed() {
    let (Some(()), Some(mut copy)) = (needs::root(), Copy::new("1.27.3", Variant::DEFAULT)) else {
        return;
    };
    assert!(copy.replace("go1.27.3", "go1.28.3") >= 2);
    let path = copy.path();
    refuses(&path, "go1.28.3, which this leaktrace does not know");
    a_snapshot_is_the_truth(&path);
    let program = Program::start(&path, &[]).expect("it starts");
    let pid = program.pid().to_string();
    let outcome = tool::run(&["record", "--duration", "1s", "--pid", &pid], SOON);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stdout);
    assert!(
        outcome.stderr.contains("leaktrace does not know go1.28.3"),
        "{}",
        outcome.stderr
    );
    assert_eq!(crate::text::changed_bytes(program.pid()), 0);
}

/// A wrong release means wrong offsets: each is refused by what the binary itself shows.
#[test]
fn a_release_that_is_not_what_it_claims_is_refused() {
    for (is, claims) in [
        ("1.22.10", "1.25.10"),
        ("1.22.10", "1.23.10"),
        ("1.22.10", "1.21.10"),
        ("1.25.5", "1.22.5"),
        ("1.25.5", "1.26.5"),
        ("1.27.3", "1.22.3"),
        ("1.27.3", "1.25.3"),
        ("1.27.3", "1.26.3"),
        ("1.26.6", "1.27.6"),
    ] {
        for kind in [
            Variant::STRIPPED,
            Variant {
                pie: true,
                ..Variant::STRIPPED
            },
        ] {
            let Some(mut copy) = Copy::new(is, kind) else {
                continue;
            };
            assert!(copy.replace(&format!("go{is}"), &format!("go{claims}")) >= 2);
            let outcome = tool::run(&["inspect", copy.path().to_str().expect("UTF-8")], SOON);
            let words = [
                "claims to be compiled by",
                "function table (pclntab) is not found",
            ];
            let refused = words.iter().any(|words| outcome.stderr.contains(words));
            // Release 1.22 with 1.23's table can only be told apart while it runs.
            if (is, claims) == ("1.22.10", "1.23.10") && outcome.code == Some(0) {
                let Some(()) = needs::root() else { return };
                let program = Program::start(&copy.path(), &[]).expect("it starts");
                refuses_process(program.pid(), "its memory is not what its Go release has");
                continue;
            }
            assert!(
                outcome.code == Some(2) && refused,
                "{is} as {claims}: {}{}",
                outcome.stdout,
                outcome.stderr
            );
        }
    }
}

#[test]
fn a_deleted_executable_is_read_all_the_same() {
    let (Some(()), Some(copy)) = (needs::root(), Copy::new("1.27.3", Variant::STRIPPED)) else {
        return;
    };
    let path = copy.path();
    let mut program = Program::start(&path, &[]).expect("it starts");
    fs::remove_file(&path).expect("it is ours");
    let truth = program.ask("truth").expect("fixtures answer");
    let found = tool::json(&["snapshot", "--pid", &program.pid().to_string()]);
    assert_eq!(report::states(&found), report::truth(&truth));
}

/// As `sstrip` leaves it: the kernel needs no section headers, and neither does Go.
#[test]
fn without_section_headers() {
    for go in ["1.22.10", "1.27.3"] {
        for pie in [false, true] {
            let (Some(()), Some(mut copy)) = (
                needs::root(),
                Copy::new(
                    go,
                    Variant {
                        pie,
                        ..Variant::STRIPPED
                    },
                ),
            ) else {
                return;
            };
            // e_shoff; e_shentsize, e_shnum and e_shstrndx.
            copy.bytes[0x28..0x30].fill(0);
            copy.bytes[0x3a..0x40].fill(0);
            a_snapshot_is_the_truth(&copy.path());
        }
    }
}

#[test]
fn stripped_by_binutils() {
    let (Some(()), Some(copy)) = (
        needs::root(),
        Copy::new(
            "1.25.5",
            Variant {
                pie: true,
                ..Variant::DEFAULT
            },
        ),
    ) else {
        return;
    };
    let path = copy.path();
    match Command::new("strip").arg(&path).status() {
        Ok(status) => assert!(status.success()),
        Err(_) => {
            return needs::skip::<()>("needs strip: apt-get install binutils").unwrap_or_default();
        }
    }
    a_snapshot_is_the_truth(&path);
}

/// As an obfuscator leaves it: the names that the runtime's functions are found by are others.
#[test]
fn garbled_names_are_refused() {
    let Some(mut copy) = Copy::new("1.27.3", Variant::STRIPPED) else {
        return;
    };
    assert!(copy.replace("runtime.forEachGRace", "zfPqTn.kW3ahGdLmvRxe") >= 1);
    refuses(&copy.path(), "trace an unaltered build");
}

#[test]
fn packed_programs_are_refused() {
    let (Some(()), Some(mut upx)) = (needs::root(), needs::upx()) else {
        return;
    };
    let Some(executable) = needs::fixture("mixed-states", "1.27.3", Variant::STRIPPED) else {
        return;
    };
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let packed = folder.path().join("packed");
    upx.args(["-q", "-1", "-o"]).arg(&packed).arg(executable);
    let output = upx.output().expect("the loader starts");
    assert!(output.status.success(), "{output:?}");
    refuses(&packed, "packed with UPX");
    // While it runs there is Go in its memory, but not in its file.
    let program = Program::start(&packed, &[]).expect("fixtures start");
    refuses_process(program.pid(), "packed with UPX");
}

/// A child that is killed when dropped.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Compiles `source` in a folder with cgo; `None` when that cannot be done here.
fn compile(folder: &Path, name: &str, source: &str, arguments: &[&str]) -> Option<()> {
    needs::gcc()?;
    let Some(go) = Toolchain::find("1.27.3") else {
        return needs::skip("needs go 1.27.3: cargo xtask go 1.27.3");
    };
    fs::write(folder.join(name), source).expect("temporary files can be written");
    let built = go
        .go()
        .current_dir(folder)
        .env("CGO_ENABLED", "1")
        .env("GO111MODULE", "off")
        .arg("build")
        .args(arguments)
        .arg(name)
        .output()
        .expect("go starts");
    let complaint = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{complaint}");
    Some(())
}

/// Starts a program that prints a line when it is ready, and ends with its standard input.
fn start(command: &mut Command) -> Option<(Victim, String)> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        let name = command.get_program().display().to_string();
        return needs::skip(&format!("needs {name}"));
    };
    let stdout = child.stdout.take().expect("stdout is piped");
    let victim = Victim(child);
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("it prints a line");
    Some((victim, line.trim().to_owned()))
}

/// Go code in a process that is no Go program.
#[test]
fn a_library_in_python_is_refused_by_name() {
    const SOURCE: &str = r#"package main

import "C"

//export Answer
func Answer() int { return 42 }

func main() {}
"#;
    let Some(()) = needs::root() else { return };
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let arguments = ["-buildmode=c-shared", "-o", "answer.so"];
    let Some(()) = compile(folder.path(), "answer.go", SOURCE, &arguments) else {
        return;
    };
    let library = folder.path().join("answer.so");
    refuses(
        &library,
        "Go code for another program to load (-buildmode=c-shared)",
    );
    let script = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).Answer(), flush=True); sys.stdin.read()";
    let mut command = Command::new("python3");
    let Some((python, answer)) = start(command.args(["-c", script]).arg(&library)) else {
        return;
    };
    assert_eq!(answer, "42");
    refuses_process(python.0.id(), "has loaded Go code: ");
    refuses_process(python.0.id(), "answer.so (go1.27.3)");
}

/// A plugin brings its own copies of the runtime's functions.
#[test]
fn a_program_that_has_loaded_a_plugin_is_refused() {
    const PLUGIN: &str = r#"package main

func Leak() { go func() { select {} }() }

func main() {}
"#;
    const HOST: &str = r#"package main

import (
	"os"
	"plugin"
)

func main() {
	loaded, err := plugin.Open("./plugin.so")
	if err != nil {
		panic(err)
	}
	leak, err := loaded.Lookup("Leak")
	if err != nil {
		panic(err)
	}
	leak.(func())()
	os.Stdout.WriteString("loaded\n")
	os.Stdin.Read(make([]byte, 1))
}
"#;
    let Some(()) = needs::root() else { return };
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path();
    // Both must hold the same runtime/cgo, byte for byte. Without -trimpath another test's build of it may take its
    // place in the cache between the two.
    let arguments = ["-trimpath", "-buildmode=plugin", "-o", "plugin.so"];
    let Some(()) = compile(path, "plugin.go", PLUGIN, &arguments) else {
        return;
    };
    let arguments = ["-trimpath", "-o", "host"];
    let Some(()) = compile(path, "host.go", HOST, &arguments) else {
        return;
    };
    refuses(&path.join("plugin.so"), "(-buildmode=plugin)");
    let mut command = Command::new(path.join("host"));
    let Some((host, said)) = start(command.current_dir(path)) else {
        return;
    };
    assert_eq!(said, "loaded");
    refuses_process(host.0.id(), "has loaded the Go plugin ");
}

/// With the race detector, whose runtime is C, and with what release builds add.
#[test]
fn a_race_build_is_counted() {
    const SOURCE: &str = r#"package main

import "os"

func main() {
	for i := 0; i < 7; i++ {
		go func() { select {} }()
	}
	os.Stdout.WriteString("ready\n")
	os.Stdin.Read(make([]byte, 1))
}
"#;
    let Some(()) = needs::root() else { return };
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let arguments = [
        "-race",
        "-trimpath",
        "-ldflags=-s -w -X main.version=1",
        "-o",
        "racy",
    ];
    let Some(()) = compile(folder.path(), "racy.go", SOURCE, &arguments) else {
        return;
    };
    let mut command = Command::new(folder.path().join("racy"));
    let Some((program, said)) = start(&mut command) else {
        return;
    };
    assert_eq!(said, "ready");
    let found = tool::json(&["snapshot", "--pid", &program.0.id().to_string()]);
    let counts: Vec<_> = report::sites(&found)
        .filter(|site| site["line"] == 7)
        .map(|site| report::number(&site["count"]))
        .collect();
    assert_eq!(counts, [7], "{found}");
}
