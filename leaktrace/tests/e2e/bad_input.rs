//! What cannot be traced is refused: one sentence, exit code 2, at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaktrace_fixtures::build::Variant;
use nix::sys::signal::Signal;

use crate::tool::{Outcome, Tool};
use crate::{needs, tool};

/// In which every refusal has to come.
const SOON: Duration = Duration::from_secs(10);

/// The commands that take `--pid`.
const COMMANDS: [&[&str]; 4] = [
    &["snapshot"],
    &["record", "--duration", "60s"],
    &["inspect"],
    &["daemon", "--listen", "127.0.0.1:0"],
];

/// A child that is killed when dropped.
struct Victim(Child);

impl Victim {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("the program starts"),
        )
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_such_process() {
    each_command_refuses(&needs::unused_pid());
}

#[test]
fn a_program_that_is_not_go() {
    let sleep = Victim::start(Command::new("/bin/sleep").arg("60"));
    each_command_refuses(&sleep.0.id().to_string());
}

#[test]
fn a_process_that_has_ended_but_is_still_listed() {
    let Some(executable) = needs::fixture("mixed-states", "1.27.3", Variant::DEFAULT) else {
        return;
    };
    let zombie = Victim::start(Command::new(executable).args(["-for", "1ms"]));
    let stat = format!("/proc/{}/stat", zombie.0.id());
    tool::eventually("the program has ended", SOON, || {
        fs::read_to_string(&stat)
            .expect("nobody has waited for it")
            .contains(") Z ")
    });
    each_command_refuses(&zombie.0.id().to_string());
}

#[test]
fn a_process_that_ends_while_it_is_looked_at() {
    let Some(executable) = needs::fixture("mixed-states", "1.27.3", Variant::DEFAULT) else {
        return;
    };
    // Ends at some other point of leaktrace's start each time: what it says depends on that, but it says it.
    for lifetime in ["1ms", "5ms", "20ms", "50ms", "100ms", "200ms", "400ms"] {
        for arguments in COMMANDS {
            let mut program = Victim::start(Command::new(&executable).args(["-for", lifetime]));
            let pid = program.0.id().to_string();
            let mut tool = Tool::spawn(tool::leaktrace().args(arguments).args(["--pid", &pid]));
            program.0.wait().expect("the target ends by itself");
            if arguments[0] == "daemon" && tool.runs_for(Duration::from_secs(2)) {
                // It had begun to watch, so it goes on without the target, until told to stop.
                tool.signal(Signal::SIGTERM);
            }
            let outcome = tool.wait(SOON);
            assert!(
                !outcome.stderr.contains("panicked"),
                "{arguments:?}: {}",
                outcome.stderr
            );
            match outcome.code {
                Some(0 | 1) => {}
                _ => assert_refused(&outcome, &format!("{arguments:?} of {lifetime}")),
            }
        }
    }
}

#[test]
fn a_go_binary_that_is_cut_off() {
    let directory = tempfile::tempdir().expect("temporary folders can be made");
    let file = directory.path().join("half");
    for variant in [Variant::DEFAULT, Variant::STRIPPED] {
        let Some(executable) = needs::fixture("mixed-states", "1.27.3", variant) else {
            return;
        };
        let whole = fs::read(executable).expect("the fixture is there");
        for part in [whole.len() / 2, whole.len() / 10, 4096, 64, 63, 5, 0] {
            fs::write(&file, &whole[..part]).expect("temporary files can be written");
            refuses_file(&file, &format!("{part} bytes of {}", whole.len()));
        }
    }
}

#[test]
fn a_file_that_is_no_program() {
    refuses_file(Path::new("/etc/passwd"), "a text");
    refuses_file(Path::new("/"), "a folder");
    refuses_file(Path::new("/bin/sleep"), "a C program");
    refuses_file(Path::new("/dev/zero"), "a device without end");
    refuses_file(Path::new("/no/such/file"), "nothing");
}

#[test]
fn without_privileges() {
    let (Some(()), Some(setpriv)) = (needs::root(), needs::setpriv()) else {
        return;
    };
    let Some(program) = needs::program("mixed-states", "1.27.3", &[]) else {
        return;
    };
    // Where everybody can start it, unlike the folder of the build.
    let directory = tempfile::tempdir().expect("temporary folders can be made");
    let copy = directory.path().join("leaktrace");
    fs::copy(env!("CARGO_BIN_EXE_leaktrace"), &copy).expect("the command can be copied");
    for path in [directory.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("they are ours");
    }
    for arguments in COMMANDS {
        let mut command = Command::new(&setpriv);
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy);
        command
            .args(arguments)
            .args(["--pid", &program.pid().to_string()])
            .current_dir("/");
        let outcome = Tool::spawn(&mut command).wait(SOON);
        assert_refused(&outcome, &format!("{arguments:?} without privileges"));
    }
}

#[test]
fn arguments_that_mean_nothing() {
    for arguments in [
        &["record"][..],
        &["snapshot", "--pid", "-1"],
        &["record", "--pid", "1", "--duration", "soon"],
        &["nonsense"],
    ] {
        let outcome = tool::run(arguments, SOON);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.stderr);
        assert!(
            !outcome.stderr.is_empty() && outcome.stdout.is_empty(),
            "{arguments:?}"
        );
    }
}

fn each_command_refuses(pid: &str) {
    for arguments in COMMANDS {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--pid", pid]).collect();
        assert_refused(&tool::run(&arguments, SOON), &format!("{arguments:?}"));
    }
}

fn refuses_file(file: &Path, what: &str) {
    let file = file.to_str().expect("our paths are UTF-8");
    assert_refused(
        &tool::run(&["inspect", file], SOON),
        &format!("inspect {what}"),
    );
}

fn assert_refused(outcome: &Outcome, what: &str) {
    assert_eq!(
        outcome.code,
        Some(2),
        "{what}: {} {}",
        outcome.stdout,
        outcome.stderr
    );
    assert_eq!(outcome.stdout, "", "{what}: errors go to standard error");
    // A daemon's log goes to standard error too: it may have said where it listens, and what it may not do.
    let lines = outcome.stderr.lines();
    let lines: Vec<_> = lines.filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), 1, "{what}: one sentence, not {lines:?}");
    assert!(lines[0].starts_with("leaktrace: "), "{what}: {lines:?}");
    assert!(
        !outcome.stderr.contains("panicked"),
        "{what}: {}",
        outcome.stderr
    );
    assert!(outcome.took < SOON, "{what}: took {:?}", outcome.took);
}
