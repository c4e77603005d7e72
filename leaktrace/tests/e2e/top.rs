//! `top` in a real terminal of 80 columns and 24 lines, which tmux provides: keys go in, the screen is read.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use leaktrace_fixtures::build;

use crate::needs;

/// How long the screen may take to show what is expected.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_leak_is_found_and_looked_into_and_the_terminal_given_back() {
    let Some(program) = needs::program("handler-timeout", "1.27.3", &[]) else {
        return;
    };
    let Some(terminal) = Terminal::open("top") else {
        return;
    };
    let tool = env!("CARGO_BIN_EXE_leaktrace");
    let line = build::marked_line("handler-timeout", "LEAK: goroutine").expect("it is marked");
    let place = format!("main.go:{line}");

    terminal.line(&format!(
        "{tool} top --pid {} --interval 300ms",
        program.pid()
    ));
    let screen = terminal.wait_for("LEAK ");
    assert!(screen.contains(&place), "{screen}");
    assert!(screen.contains("chan send"), "{screen}");
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );

    terminal.keys(&["Enter"]);
    let screen = terminal.wait_for("started at");
    assert!(screen.contains("main.handle"), "{screen}");
    terminal.keys(&["?"]);
    terminal.wait_for("any key: back");
    terminal.keys(&["x", "q", "/"]);
    terminal.wait_for("filter:");
    terminal.keys(&["nosuchline", "Enter"]);
    terminal.wait_for("no call site passes");
    terminal.keys(&["Escape", "s"]);
    terminal.wait_for("sorted by growth");
    terminal.keys(&["p"]);
    terminal.wait_for("HELD at");

    // Whichever way it ends, the terminal echoes again and the cursor is there.
    terminal.keys(&["q"]);
    terminal.is_a_shell_again("0");
    for ending in ["C-c", "SIGTERM"] {
        terminal.line(&format!("{tool} top --pid {}", program.pid()));
        terminal.wait_for("main.handle");
        match ending {
            "SIGTERM" => {
                let found = Command::new("pgrep")
                    .args(["-f", &format!("^{tool} top --pid {}$", program.pid())])
                    .output()
                    .expect("pgrep runs");
                let pid = String::from_utf8_lossy(&found.stdout).trim().to_owned();
                assert!(!pid.is_empty(), "top runs");
                let killed = Command::new("kill").arg(&pid).status();
                assert!(killed.expect("kill runs").success());
            }
            key => terminal.keys(&[key]),
        }
        terminal.is_a_shell_again("0");
    }
    terminal.line(&format!("{tool} top --pid {}", needs::unused_pid()));
    terminal.wait_for("leaktrace: ");
    terminal.is_a_shell_again("2");
}

/// A shell in a tmux of its own. Dropping it ends both.
pub struct Terminal {
    socket: String,
}

impl Terminal {
    /// Opens one; the name tells it from others of this process.
    pub fn open(name: &str) -> Option<Self> {
        let terminal = Self {
            socket: format!("leaktrace-test-{name}-{}", std::process::id()),
        };
        let arguments = [
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            "env PS1='ready> ' sh",
        ];
        let Ok(output) = terminal.tmux(&arguments).output() else {
            return needs::skip("needs tmux: apt-get install tmux");
        };
        assert!(output.status.success(), "{output:?}");
        terminal.wait_for("ready>");
        Some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.args(["-f", "/dev/null", "-L", &self.socket])
            .args(arguments);
        tmux.env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        tmux
    }

    fn keys(&self, keys: &[&str]) {
        let sent = self.tmux(&["send-keys"]).args(keys).status();
        assert!(sent.expect("tmux runs").success());
    }

    /// Types a command on a cleared screen.
    pub fn line(&self, command: &str) {
        self.keys(&[&format!("clear; {command}"), "Enter"]);
    }

    /// What stands on the screen.
    pub fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]).output();
        String::from_utf8_lossy(&output.expect("tmux runs").stdout).into_owned()
    }

    /// The screen, as soon as it holds this.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if screen.contains(text) {
                return screen;
            }
            assert!(Instant::now() < deadline, "no {text:?} on\n{screen}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The command has ended with this code, and the terminal is as it was.
    pub fn is_a_shell_again(&self, code: &str) {
        self.wait_for("ready>");
        // Not on a cleared screen: clearing it has an exit code of its own.
        self.keys(&[
            "echo \"code=$?\"; stty -a | tr ' ;' '\\n' | grep -cx 'echo\\|icanon'",
            "Enter",
        ]);
        // The command itself is on the screen, too: only its answer has the number.
        let screen = self.wait_for(&format!("code={code}\n2\n"));
        let output = self
            .tmux(&["display", "-p", "#{cursor_flag} #{alternate_on}"])
            .output();
        let flags = String::from_utf8_lossy(&output.expect("tmux runs").stdout).into_owned();
        assert_eq!(flags.trim(), "1 0", "{screen}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).output();
    }
}
