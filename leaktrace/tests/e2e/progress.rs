//! Whoever waits at a terminal is told what leaktrace does; a pipe gets nothing but the answer.

use std::time::Duration;

use crate::top::Terminal;
use crate::{needs, tool};

#[test]
fn a_terminal_is_told_what_is_being_done() {
    let Some(program) = needs::program("sleepers", "1.27.3", &[]) else {
        return;
    };
    let Some(terminal) = Terminal::open("progress") else {
        return;
    };
    let tool = env!("CARGO_BIN_EXE_leaktrace");
    let pid = program.pid();
    terminal.line(&format!(
        "{tool} record --pid {pid} --duration 4s -o /dev/null"
    ));
    let screen = terminal.wait_for(" of 4 s");
    assert!(
        screen.contains(&format!("watching process {pid}")),
        "{screen}"
    );
    // The line is gone when the answer is there, and no other came in its place.
    terminal.is_a_shell_again("0");
    let screen = terminal.screen();
    assert!(!screen.contains("watching"), "{screen}");
}

#[test]
fn a_pipe_gets_nothing_but_the_answer() {
    let Some(program) = needs::program("sleepers", "1.27.3", &[]) else {
        return;
    };
    let pid = program.pid().to_string();
    let arguments = ["record", "--pid", &pid, "--duration", "2s"];
    let outcome = tool::run(&arguments, Duration::from_secs(30));
    assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""));
    assert!(outcome.stdout.starts_with("sleepers"), "{}", outcome.stdout);
}
