//! The daemon as a service: what it tells its manager, and whether the unit that is shipped is sound.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use leaktrace_fixtures::repository;
use nix::sys::signal::Signal;

use crate::needs;
use crate::tool::{self, Tool};

/// Far longer than any message takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `systemd-analyze security` may say at most, times ten: 100 is a service that may do everything.
const MOST_EXPOSED: &str = "30";

#[test]
fn a_service_manager_hears_that_the_daemon_lives() {
    let folder = tempfile::tempdir().expect("a folder");
    let manager = Manager::listen(&folder.path().join("notify"));
    let config = folder.path().join("leaktrace.toml");
    fs::write(&config, "").expect("ours");
    let mut command = tool::leaktrace();
    command
        .args(["daemon", "--listen", "127.0.0.1:0", "--name", "nobody"])
        .arg("--config")
        .arg(&config)
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .env("WATCHDOG_USEC", "400000");
    let daemon = Tool::spawn(&mut command);
    manager.hears("READY=1");
    manager.hears("STATUS=watching 0 programs with 0 goroutines; 0 lines leak");
    // The watchdog hears it again and again.
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    daemon.signal(Signal::SIGHUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    // A wrong file is refused, and the reload ends all the same.
    fs::write(&config, "nonsense = 1").expect("ours");
    daemon.signal(Signal::SIGHUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    daemon.signal(Signal::SIGTERM);
    manager.hears("STOPPING=1");
    let outcome = daemon.wait(PATIENCE);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn the_unit_has_no_mistake_and_little_to_lose() {
    let Some(()) = analyze() else { return };
    let shipped = repository().join("deploy/systemd/leaktrace.service");
    // It names the program where the package puts it: here it lies elsewhere.
    let unit = fs::read_to_string(&shipped).expect("the unit is there");
    assert!(unit.contains("=/usr/bin/leaktrace "), "{unit}");
    let unit = unit.replace("/usr/bin/leaktrace", env!("CARGO_BIN_EXE_leaktrace"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("leaktrace.service");
    fs::write(&file, unit).expect("ours");
    let (code, said) = systemd_analyze(&["verify", "--man=no"], &file);
    // It ends well even when it does not know a key; but then it says so.
    let about_us: Vec<_> = said
        .lines()
        .filter(|line| line.contains("leaktrace.service"))
        .collect();
    assert_eq!((code, about_us), (Some(0), Vec::new()), "{said}");
    let threshold = format!("--threshold={MOST_EXPOSED}");
    let (code, said) = systemd_analyze(&["security", "--offline=true", &threshold], &file);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_unit_with_a_mistake_is_noticed() {
    let Some(()) = analyze() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("leaktrace.service");
    fs::write(
        &file,
        "[Service]\nExecStart=/bin/true\nProtectSytem=strict\n",
    )
    .expect("ours");
    let (_, said) = systemd_analyze(&["verify", "--man=no"], &file);
    assert!(
        said.contains("leaktrace.service") && said.contains("ProtectSytem"),
        "{said}"
    );
    let (code, _) = systemd_analyze(&["security", "--offline=true", "--threshold=20"], &file);
    assert_eq!(code, Some(1));
}

/// systemd-analyze, of Debian's package systemd.
fn analyze() -> Option<()> {
    if Path::new("/usr/bin/systemd-analyze").is_file() {
        return Some(());
    }
    needs::skip("needs systemd-analyze: apt-get install systemd")
}

/// Its exit code and all that it says.
fn systemd_analyze(arguments: &[&str], unit: &Path) -> (Option<i32>, String) {
    let mut command = Command::new("systemd-analyze");
    let output = command.args(arguments).arg(unit).output();
    let output = output.expect("it was there a moment ago");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.code(), said)
}

/// The other end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(socket)
    }

    /// Waits for a message with this line.
    fn hears(&self, line: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = self.0.recv(&mut buffer);
            let length = length.unwrap_or_else(|error| panic!("{line} is not said: {error}"));
            let message = String::from_utf8_lossy(&buffer[..length]);
            if message.lines().any(|said| said == line) {
                return;
            }
        }
    }
}
