//! A tracer that dies leaves no trace.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use leaktrace_common::event::Kind;

use crate::{
    binary::Binary,
    load,
    program::{Program, on_each_release},
};

#[test]
fn a_tracer_that_is_killed_leaves_no_trace() {
    on_each_release(&["1.25"], |path, minor| {
        let mut program = Program::start(path);
        let binary = Binary::open(path, minor);
        let points = binary.points(&[Kind::Born, Kind::Ended]);
        let text = |pid| binary.text(pid, &points);
        let unprobed = text(program.pid());
        let mut tracer = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "killed::tracer_to_be_killed", "--nocapture"])
            .env(TRACE_PID, program.pid().to_string())
            .env(TRACE_EXE, path)
            .env(TRACE_MINOR, minor.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second tracer");
        let mut lines = BufReader::new(tracer.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains("attached"))));
        program.tell("spawn 1000");
        assert_eq!(text(program.pid()), [0xcc, 0xcc], "breakpoints are in");

        tracer.kill().expect("our own child");
        tracer.wait().expect("our own child");
        let gone = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            text(program.pid()) == unprobed
        });
        assert!(gone, "the kernel took the breakpoints out");
        program.tell("spawn 1000");
        assert_eq!(text(program.pid()), unprobed);
    });
}

const TRACE_PID: &str = "LEAKTRACE_TEST_TRACE_PID";
const TRACE_EXE: &str = "LEAKTRACE_TEST_TRACE_EXE";
const TRACE_MINOR: &str = "LEAKTRACE_TEST_TRACE_MINOR";

/// Not a test by itself: the other process of the test above.
#[test]
fn tracer_to_be_killed() {
    let (Ok(pid), Ok(exe), Ok(minor)) = (
        env::var(TRACE_PID),
        env::var(TRACE_EXE),
        env::var(TRACE_MINOR),
    ) else {
        return;
    };
    let binary = Binary::open(Path::new(&exe), minor.parse().expect("a number"));
    let (mut probes, mut ring) = load();
    let points = binary.points(&[Kind::Born, Kind::Ended]);
    let _set = probes
        .attach(&binary.request(pid.parse().expect("a pid"), &points))
        .expect("attaching");
    println!("attached");
    loop {
        ring.drain(usize::MAX, |_| {});
        thread::sleep(Duration::from_millis(1));
    }
}
