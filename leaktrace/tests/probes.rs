//! Do the probes say what really happened in a Go program, and leave no trace?
//!
//! Needs root, and Go toolchains under `$LEAKTRACE_GO_DIR` or `target/go` (`go<VERSION>/go/bin/go`); says
//! so and passes when one is missing. amd64 only: the sites are found here by a few lines of their own, so
//! that these tests do not believe the finder that they are used with.
#![cfg(target_arch = "x86_64")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env, fs,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    num::NonZeroU32,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use leaktrace::{
    address::{FileOffset, RuntimeAddr},
    event::{Change, Event, Goid, Goroutine, Ring, Slot, StackId, Timer},
    probe::{AttachRequest, LoadOptions, Point, ProbeError, Probes},
    resolve::Execution,
};
use leaktrace_common::{
    binary::BinaryConfig,
    event::{Kind, Loss},
};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// Does what it is told on standard input, and answers with one line.
const PROGRAM: &str = r#"package main

import (
	"bufio"
	"fmt"
	"os"
	"sync"
	"time"
)

//go:noinline
func spawn(n int) {
	var wg sync.WaitGroup
	for i := 0; i < n; i++ {
		wg.Add(1)
		go wg.Done()
		if i%1000 == 999 {
			wg.Wait()
		}
	}
	wg.Wait()
}

//go:noinline
func leak(n int, forever chan int) {
	for i := 0; i < n; i++ {
		go func() { <-forever }()
	}
}

//go:noinline
func spawnFromTimer() {
	done := make(chan bool)
	time.AfterFunc(time.Millisecond, func() { done <- true })
	<-done
}

var kept []*time.Timer

//go:noinline
func timers() {
	for i := 0; i < 10; i++ {
		kept = append(kept, time.NewTimer(time.Hour))
	}
	for _, timer := range kept[:4] {
		timer.Stop()
	}
	for _, timer := range kept[4:7] {
		timer.Reset(2 * time.Hour)
	}
	ticker := time.NewTicker(time.Millisecond)
	for i := 0; i < 5; i++ {
		<-ticker.C
	}
	ticker.Stop()
}

func main() {
	forever := make(chan int)
	lines := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	for lines.Scan() {
		var what string
		var n int
		fmt.Sscan(lines.Text(), &what, &n)
		start := time.Now()
		switch what {
		case "spawn":
			spawn(n)
		case "leak":
			leak(n, forever)
		case "timers":
			timers()
		case "fromtimer":
			spawnFromTimer()
		}
		fmt.Println(what, time.Since(start).Nanoseconds())
	}
}
"#;

#[test]
fn births_and_ends_are_exact_and_carry_their_stack() {
    on_each_release(&["1.22", "1.25", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let mut set = probes
            .attach(&binary.request(program.pid(), &binary.points(&Kind::ALL)))
            .expect("attaching");

        program.tell("spawn 5000");
        program.tell("leak 100");
        // The leaked ones block some time after the program's answer.
        let events = collect(&mut ring, |events| {
            let mut hits = probes.hits(&set);
            let parked = &mut hits[Kind::Parked as usize];
            // Parks and wake-ups leave no events.
            let all_parked = std::mem::take(parked) >= 100;
            hits[Kind::Readied as usize] = 0;
            all_parked && count(events) == hits
        });
        let goroutines: Vec<_> = goroutine_events(&events).collect();
        let born = |function| births(&goroutines, &binary, function);
        let spawned = born("main.spawn");
        let leaked = born("main.leak");
        assert_eq!(spawned.len(), 5000);
        assert_eq!(leaked.len(), 100);

        let ended: HashSet<_> = goroutines
            .iter()
            .filter(|event| event.kind == Kind::Ended)
            .map(|event| event.goid)
            .collect();
        assert!(spawned.iter().all(|birth| ended.contains(&birth.goid)));
        assert!(!leaked.iter().any(|birth| ended.contains(&birth.goid)));
        let goids: HashSet<_> = spawned.iter().map(|birth| birth.goid).collect();
        assert_eq!(goids.len(), 5000, "no goid twice");

        for birth in spawned.iter().chain(&leaked) {
            assert_eq!(birth.pid, program.pid().get());
            assert_eq!(birth.slot, set.slot());
            assert_eq!(birth.parent, Some(Goid(1)), "main's goroutine is number 1");
            let frames = probes
                .stack(birth.stack.expect("a stack"))
                .expect("kept in the map");
            assert!(
                frames.contains(&birth.gopc),
                "{frames:?} has {}",
                birth.gopc
            );
            let callers: Vec<_> = frames.iter().map(|&pc| binary.function_at(pc)).collect();
            assert!(callers.contains(&"main.main"), "{callers:?}");
            assert_eq!(callers.last(), Some(&"runtime.goexit"), "{callers:?}");
        }
        for birth in &leaked {
            let since = probes.blocked_since(&set, birth.g, birth.goid);
            assert!(since.is_some(), "{birth:?}", birth = birth.goid);
        }
        let waits = probes.blocked_times(&set);
        assert!(waits.iter().any(|wait| wait.totals.lengths.count() > 0));

        assert_eq!(probes.lost(&set), [0; Loss::COUNT as usize]);
        println!("hits {:?}", probes.hits(&set));

        set.detach();
        // A probe is off when its last descriptor is closed, and a test beside this one that starts a
        // process has copies of ours until that process executes its program.
        let quiet = (0..100).any(|_| {
            settle(&mut ring);
            program.tell("spawn 1000");
            settle(&mut ring).is_empty()
        });
        assert!(quiet, "no events once the probes are off");
    });
}

#[test]
fn without_attach_cookies_the_counts_are_as_exact() {
    on_each_release(&["1.22", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        if Probes::load(&LoadOptions::default()).is_err() {
            return println!("skipped: probes cannot be loaded here");
        }
        let old_kernel = LoadOptions {
            cookies: false,
            ..LoadOptions::default()
        };
        let (mut probes, mut ring) = Probes::load(&old_kernel).expect("loading");
        let binary = Binary::open(binary, minor);
        let points = binary.points(&[Kind::Born, Kind::Ended]);
        let request = binary.request(program.pid(), &points);
        let set = probes.attach(&request).expect("attaching");
        assert!(matches!(
            probes.attach(&request),
            Err(ProbeError::NoCookies(_))
        ));

        program.tell("spawn 1000");
        program.tell("leak 10");
        let events = collect(&mut ring, |events| count(events) == probes.hits(&set));
        let goroutines: Vec<_> = goroutine_events(&events).collect();
        assert_eq!(births(&goroutines, &binary, "main.spawn").len(), 1000);
        assert_eq!(births(&goroutines, &binary, "main.leak").len(), 10);
        assert!(goroutines.iter().all(|event| event.slot == set.slot()));
        assert_eq!(probes.lost(&set), [0; Loss::COUNT as usize]);

        // The next set may use other registers for the same kinds.
        drop(set);
        let mut mixed = points.clone();
        mixed.extend(points.iter().cloned().map(|point| Point {
            register: point.register ^ 1,
            ..point
        }));
        assert!(matches!(
            probes.attach(&binary.request(program.pid(), &mixed)),
            Err(ProbeError::NoCookies(_))
        ));
        assert!(probes.attach(&request).is_ok());
    });
}

#[test]
fn a_goroutine_that_a_timer_started_has_no_creation_stack() {
    on_each_release(&["1.22", "1.25", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let _set = probes
            .attach(&binary.request(program.pid(), &binary.points(&[Kind::Born])))
            .expect("attaching");
        for _ in 0..20 {
            program.tell("fromtimer");
        }
        let events = settle(&mut ring);
        let goroutines: Vec<_> = goroutine_events(&events).collect();
        let born = births(&goroutines, &binary, "time.goFunc");
        assert_eq!(born.len(), 20);
        for birth in born {
            assert_eq!(birth.stack, None);
            assert_eq!(birth.parent, None);
            let started = binary.function_at(RuntimeAddr(birth.startpc.0 + 1));
            assert_eq!(started, "main.spawnFromTimer.func1");
        }
    });
}

#[test]
fn timers_are_seen_with_what_they_run_and_where_they_were_armed() {
    on_each_release(&["1.22", "1.25", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, mut ring) = load();
        let binary = Binary::open(binary, minor);
        let timer_kinds = [Kind::Armed, Kind::Stopped, Kind::Rearmed, Kind::Fired];
        let set = probes
            .attach(&binary.request(program.pid(), &binary.points(&timer_kinds)))
            .expect("attaching");
        program.tell("timers");
        program.tell("fromtimer");
        let events = settle(&mut ring);
        let timers: Vec<TimerEvent> = timer_events(&events).collect();
        let of = |kind| -> Vec<_> { timers.iter().filter(|t| t.kind == kind).collect() };
        let runs = |timer: &TimerEvent| binary.function_at(RuntimeAddr(timer.function.0 + 1));
        const HOUR: i64 = 3_600_000_000_000;

        let armed = of(Kind::Armed);
        assert_eq!(armed.len(), 12, "ten timers, a ticker, an AfterFunc");
        let hourly: Vec<_> = armed
            .iter()
            .filter(|timer| timer.when_ns - timer.at_ns as i64 > HOUR - 60_000_000_000)
            .collect();
        assert_eq!(hourly.len(), 10);
        assert!(
            hourly
                .iter()
                .all(|t| runs(t) == "time.sendTime" && t.period_ns == 0)
        );
        let ticker: Vec<_> = armed.iter().filter(|t| t.period_ns == 1_000_000).collect();
        assert_eq!(ticker.len(), 1);
        let after: Vec<_> = armed.iter().filter(|t| runs(t) == "time.goFunc").collect();
        assert_eq!(after.len(), 1);
        let callback = RuntimeAddr(after[0].callback.0 + 1);
        assert_eq!(binary.function_at(callback), "main.spawnFromTimer.func1");
        for timer in &armed {
            let frames = probes.stack(timer.stack.expect("a stack")).expect("kept");
            let callers: Vec<_> = frames.iter().map(|&pc| binary.function_at(pc)).collect();
            let maker = if runs(timer) == "time.goFunc" {
                "main.spawnFromTimer"
            } else {
                "main.timers"
            };
            assert!(callers.contains(&maker), "{callers:?}");
            assert_eq!(callers.last(), Some(&"runtime.goexit"), "{callers:?}");
        }

        let stopped = of(Kind::Stopped);
        assert_eq!(stopped.len(), 5, "four timers and the ticker");
        assert!(stopped.iter().any(|t| t.timer == ticker[0].timer));
        let rearmed = of(Kind::Rearmed);
        assert_eq!(rearmed.len(), 3);
        for timer in rearmed {
            assert!(hourly.iter().any(|t| t.timer == timer.timer));
            assert!(timer.when_ns - timer.at_ns as i64 > 2 * HOUR - 60_000_000_000);
            assert_eq!(runs(timer), "time.sendTime");
        }
        let fired = of(Kind::Fired);
        let ticks = fired.iter().filter(|t| t.timer == ticker[0].timer);
        assert!(ticks.count() >= 5);
        let user: BTreeMap<_, _> = fired.iter().map(|t| (t.timer, runs(t))).collect();
        assert_eq!(user.get(&after[0].timer), Some(&"time.goFunc"));
        assert_eq!(probes.lost(&set), [0; Loss::COUNT as usize]);
    });
}

#[test]
fn what_does_not_fit_is_counted() {
    on_each_release(&["1.25"], |binary, minor| {
        let mut program = Program::start(binary);
        let small = LoadOptions {
            cookies: leaktrace::probe::has_cookies(),
            ring_bytes: 4096,
            stacks: 1,
            waits: 0,
        };
        let (mut probes, mut ring) = Probes::load(&small).expect("loading");
        let binary = Binary::open(binary, minor);
        let set = probes
            .attach(&binary.request(program.pid(), &binary.points(&[Kind::Born])))
            .expect("attaching");
        program.tell("spawn 1000");
        program.tell("leak 1000");
        let arrived = settle(&mut ring).len() as u64;
        let [ring_full, _, read_fault, unknown_slot, _] = probes.lost(&set);
        let hits = probes.hits(&set)[Kind::Born as usize];
        assert!(ring_full > 0);
        assert_eq!(arrived + ring_full, hits);
        assert_eq!((read_fault, unknown_slot), (0, 0));
        program.tell("leak 10");
        assert!(settle(&mut ring).len() >= 10);
        let [_, stacks_full, ..] = probes.lost(&set);
        assert!(stacks_full >= 10, "the map holds one stack, of spawn");
    });
}

#[test]
fn a_changed_instruction_and_a_gone_process_are_refused() {
    on_each_release(&["1.25"], |binary, minor| {
        let mut program = Program::start(binary);
        let (mut probes, _ring) = load();
        let binary = Binary::open(binary, minor);
        let mut points = binary.points(&[Kind::Born]);
        points[0].bytes[1] ^= 1;
        let refusal = probes.attach(&binary.request(program.pid(), &points));
        assert!(matches!(refusal, Err(ProbeError::Changed { .. })));

        let pid = program.pid();
        program.child.kill().expect("our own child");
        program.child.wait().expect("our own child");
        let points = binary.points(&[Kind::Born]);
        let refusal = probes.attach(&binary.request(pid, &points));
        let Err(ProbeError::TargetGone(gone)) = refusal else {
            panic!("attached to a process that is gone");
        };
        assert_eq!(gone, pid.get());
    });
}

#[test]
fn a_tracer_that_is_killed_leaves_no_trace() {
    on_each_release(&["1.25"], |path, minor| {
        let mut program = Program::start(path);
        let binary = Binary::open(path, minor);
        let points = binary.points(&[Kind::Born, Kind::Ended]);
        let text = |pid: NonZeroU32| -> Vec<u8> {
            let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
            points
                .iter()
                .map(|point| {
                    let mut byte = [0];
                    let address = binary.address_of(point.offset);
                    memory.read_exact_at(&mut byte, address).expect("its text");
                    byte[0]
                })
                .collect()
        };
        let unprobed = text(program.pid());
        let mut tracer = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "tracer_to_be_killed", "--nocapture"])
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

fn load() -> (Probes, Ring) {
    Probes::load(&LoadOptions::default()).expect("loading")
}

/// What is in the ring. A probe has left its record before the program's thread goes on, so all that
/// happened before the program's answer is there.
fn settle(ring: &mut Ring) -> Vec<Event> {
    collect(ring, |_| true)
}

/// What is in the ring, and comes until there is enough.
fn collect(ring: &mut Ring, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..1000 {
        let drained = ring.drain(usize::MAX, |event| events.push(event));
        assert_eq!(drained.undecodable, 0);
        if enough(&events) {
            return events;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("not enough events: {:?}", count(&events));
}

/// How many events there are of each kind.
fn count(events: &[Event]) -> [u64; Kind::COUNT as usize] {
    events
        .iter()
        .fold([0; Kind::COUNT as usize], |mut counts, event| {
            counts[kind(event) as usize] += 1;
            counts
        })
}

fn kind(event: &Event) -> Kind {
    match event.change {
        Change::Born { .. } => Kind::Born,
        Change::Ended(_) => Kind::Ended,
        Change::Armed { .. } => Kind::Armed,
        Change::Stopped { .. } => Kind::Stopped,
        Change::Rearmed(_) => Kind::Rearmed,
        Change::Fired(_) => Kind::Fired,
    }
}

/// What happened to a goroutine, whatever it was.
#[derive(Clone, Copy)]
struct GoroutineEvent {
    kind: Kind,
    pid: u32,
    slot: Slot,
    goroutine: Goroutine,
    parent: Option<Goid>,
    stack: Option<StackId>,
}

impl std::ops::Deref for GoroutineEvent {
    type Target = Goroutine;

    fn deref(&self) -> &Goroutine {
        &self.goroutine
    }
}

impl std::ops::Deref for TimerEvent {
    type Target = Timer;

    fn deref(&self) -> &Timer {
        &self.what
    }
}

fn goroutine_events(events: &[Event]) -> impl Iterator<Item = GoroutineEvent> {
    events.iter().filter_map(|event| {
        let (goroutine, parent, stack) = match event.change {
            Change::Born {
                goroutine,
                parent,
                stack,
                ..
            } => (goroutine, parent, stack),
            Change::Ended(goroutine) => (goroutine, None, None),
            _ => return None,
        };
        Some(GoroutineEvent {
            kind: kind(event),
            pid: event.pid,
            slot: event.slot,
            goroutine,
            parent,
            stack,
        })
    })
}

/// What happened to a timer, whatever it was; of a stopped one only its address is known.
struct TimerEvent {
    kind: Kind,
    at_ns: u64,
    what: Timer,
    stack: Option<StackId>,
}

fn timer_events(events: &[Event]) -> impl Iterator<Item = TimerEvent> {
    events.iter().filter_map(|event| {
        let (timer, stack) = match event.change {
            Change::Armed { timer, stack } => (timer, stack),
            Change::Rearmed(timer) | Change::Fired(timer) => (timer, None),
            Change::Stopped { timer } => (
                Timer {
                    timer,
                    when_ns: 0,
                    period_ns: 0,
                    function: RuntimeAddr(0),
                    callback: RuntimeAddr(0),
                },
                None,
            ),
            _ => return None,
        };
        Some(TimerEvent {
            kind: kind(event),
            at_ns: event.at.0,
            what: timer,
            stack,
        })
    })
}

/// Births whose `go` statement is in `function`.
fn births(events: &[GoroutineEvent], binary: &Binary, function: &str) -> Vec<GoroutineEvent> {
    events
        .iter()
        .filter(|event| event.kind == Kind::Born && binary.function_at(event.gopc) == function)
        .copied()
        .collect()
}

/// Runs the check with the program built by each release that is there; says why when it does not.
fn on_each_release(releases: &[&str], check: impl Fn(&Path, u32)) {
    let me = fs::metadata("/proc/self").expect("procfs");
    if std::os::unix::fs::MetadataExt::uid(&me) != 0 {
        println!("skipped: probes need root");
        return;
    }
    for release in releases {
        match build(release) {
            Some(binary) => {
                println!("Go {release}");
                let minor = release.split_once('.').expect("a release").1;
                check(&binary, minor.parse().expect("a number"));
            }
            None => println!("skipped: no Go {release} under LEAKTRACE_GO_DIR or target/go"),
        }
    }
}

/// The program, built by some patch release of this Go release; `None` without one.
fn build(release: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let toolchains = match env::var_os("LEAKTRACE_GO_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => workspace.join("target/go"),
    };
    let toolchain = fs::read_dir(toolchains)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("go/bin/go").is_file())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("go{release}."))
        })?;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probes-go{release}"));
    fs::create_dir_all(&directory).expect("a directory");
    // Tests run side by side: each process builds its own copy.
    let source = directory.join("main.go");
    let binary = directory.join(format!("main-{:?}", thread::current().id()));
    if !source.exists() || fs::read_to_string(&source).expect("source") != PROGRAM {
        fs::write(&source, PROGRAM).expect("writing the source");
    }
    let built = Command::new(toolchain.join("go/bin/go"))
        .args(["build", "-o"])
        .args([&binary, &source])
        .env("GOROOT", toolchain.join("go"))
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "off")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", directory.join("cache"))
        .status()
        .expect("running go");
    assert!(built.success(), "the program builds with Go {release}");
    Some(binary)
}

/// The program running; killed when dropped.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(binary: &Path) -> Self {
        let mut child = Command::new(binary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("GOMAXPROCS", "1")
            .spawn()
            .expect("starting the program");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut program = Self {
            child,
            input,
            output,
        };
        assert_eq!(program.line(), "ready\n");
        program
    }

    fn pid(&self) -> NonZeroU32 {
        NonZeroU32::new(self.child.id()).expect("a pid")
    }

    /// Has something done; answers with the nanoseconds that it took.
    fn tell(&mut self, what: &str) -> u64 {
        writeln!(self.input, "{what}").expect("a living program");
        let line = self.line();
        let took = line.trim().rsplit(' ').next().expect("an answer");
        took.parse().expect("nanoseconds")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a living program");
        line
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Go executable with symbols, not position independent.
struct Binary {
    file: File,
    minor: u32,
    /// Start, end, name; by start.
    functions: Vec<(u64, u64, String)>,
    by_name: HashMap<String, (u64, u64)>,
    bytes: Vec<u8>,
    /// Address, offset in the file, size of each segment.
    segments: Vec<(u64, u64, u64)>,
}

impl Binary {
    fn open(path: &Path, minor: u32) -> Self {
        let bytes = fs::read(path).expect("the executable");
        let elf = object::File::parse(&*bytes).expect("an ELF file");
        let mut functions: Vec<_> = elf
            .symbols()
            .filter(|symbol| symbol.kind() == object::SymbolKind::Text)
            .map(|symbol| {
                let name = symbol.name().expect("a name").trim_end_matches(".abi0");
                let start = symbol.address();
                (start, start + symbol.size(), name.to_owned())
            })
            .collect();
        functions.sort();
        let by_name = functions
            .iter()
            .map(|(start, end, name)| (name.clone(), (*start, *end)))
            .collect();
        let segments = elf
            .segments()
            .map(|segment| (segment.address(), segment.file_range().0, segment.size()))
            .collect();
        Self {
            file: File::open(path).expect("the executable"),
            minor,
            functions,
            by_name,
            segments,
            bytes,
        }
    }

    /// The function that a return address belongs to.
    fn function_at(&self, return_address: RuntimeAddr) -> &str {
        let pc = return_address.0 - 1;
        let after = self.functions.partition_point(|(start, ..)| *start <= pc);
        match self.functions.get(after.wrapping_sub(1)) {
            Some((_, end, name)) if pc < *end => name,
            _ => "?",
        }
    }

    fn request<'a>(&'a self, pid: NonZeroU32, points: &'a [Point]) -> AttachRequest<'a> {
        AttachRequest {
            executable: &self.file,
            pid,
            binary: offsets(self.minor),
            points,
        }
    }

    fn address_of(&self, offset: FileOffset) -> u64 {
        let segment = self
            .segments
            .iter()
            .find(|(_, start, size)| (*start..start + size).contains(&offset.0));
        let (address, start, _) = segment.expect("in a segment");
        address + offset.0 - start
    }

    fn offset_of(&self, address: u64) -> u64 {
        let segment = self
            .segments
            .iter()
            .find(|(start, _, size)| (*start..start + size).contains(&address));
        let (start, offset, _) = segment.expect("in a segment");
        offset + address - start
    }

    fn instructions(&self, function: &str) -> Vec<Instruction> {
        let (start, end) = self.by_name[function];
        let from = usize::try_from(self.offset_of(start)).expect("small");
        let bytes = &self.bytes[from..from + usize::try_from(end - start).expect("small")];
        Decoder::with_ip(64, bytes, start, DecoderOptions::NONE)
            .into_iter()
            .collect()
    }

    fn points(&self, kinds: &[Kind]) -> Vec<Point> {
        kinds.iter().map(|&kind| self.point(kind)).collect()
    }

    fn point(&self, kind: Kind) -> Point {
        const RAX: u8 = 0;
        const RBX: u8 = 3;
        let new = self.minor >= 23;
        let (instruction, register) = match kind {
            Kind::Born => (self.exit_of_newproc1(), RAX),
            Kind::Ended => (self.stack_check("runtime.gdestroy"), RAX),
            Kind::Parked => (self.stack_check("runtime.park_m"), RAX),
            Kind::Readied => (self.stack_check("runtime.ready"), RAX),
            Kind::Armed if new => (self.call("time.newTimer", "runtime.(*timer).modify"), RAX),
            Kind::Armed => (self.call("time.startTimer", "runtime.addtimer"), RAX),
            Kind::Stopped if new => (self.call("time.stopTimer", "runtime.(*timer).stop"), RAX),
            Kind::Stopped => (self.call("time.stopTimer", "runtime.deltimer"), RAX),
            Kind::Rearmed if new => (self.call("time.resetTimer", "runtime.(*timer).modify"), RAX),
            Kind::Rearmed => (self.call("time.resetTimer", "runtime.modtimer"), RAX),
            Kind::Fired if new => (self.stack_check("runtime.(*timer).unlockAndRun"), RAX),
            Kind::Fired => (self.stack_check("runtime.runOneTimer"), RBX),
        };
        let offset = self.offset_of(instruction.ip());
        let from = usize::try_from(offset).expect("small");
        Point {
            kind,
            offset: FileOffset(offset),
            bytes: self.bytes[from..from + instruction.len()].to_vec(),
            register,
            execution: Execution::Emulated,
        }
    }

    /// The last `jne` before the test of `g.preempt` that precedes the only return.
    fn exit_of_newproc1(&self) -> Instruction {
        let instructions = self.instructions("runtime.newproc1");
        let end = instructions
            .iter()
            .position(|i| i.flow_control() == FlowControl::Return)
            .expect("a return");
        let test = instructions[..end]
            .iter()
            .rposition(|i| {
                i.mnemonic() == Mnemonic::Cmp
                    && i.op0_kind() == OpKind::Memory
                    && i.memory_base() == Register::R14
            })
            .expect("the test of g.preempt");
        instructions[..test]
            .iter()
            .rfind(|i| i.mnemonic() == Mnemonic::Jne)
            .copied()
            .expect("the jne")
    }

    fn stack_check(&self, function: &str) -> Instruction {
        self.instructions(function)
            .into_iter()
            .find(|i| i.mnemonic() == Mnemonic::Jbe)
            .expect("a stack check")
    }

    fn call(&self, function: &str, callee: &str) -> Instruction {
        let callee = self.by_name[callee].0;
        self.instructions(function)
            .into_iter()
            .find(|i| i.mnemonic() == Mnemonic::Call && i.near_branch_target() == callee)
            .expect("the call")
    }
}

/// From the DWARF of each release: go-runtime.md, appendix A.
fn offsets(minor: u32) -> BinaryConfig {
    let (goid, waitreason, parent, gopc, startpc, bp, curg, timer) = match minor {
        22 => (152, 176, 272, 280, 296, 104, 192, 8),
        25 => (152, 176, 272, 280, 296, 96, 184, 24),
        27 => (152, 176, 280, 288, 304, 96, 184, 24),
        _ => panic!("no offsets for Go 1.{minor}"),
    };
    BinaryConfig {
        g_stack: 0,
        g_m: 48,
        g_sched_bp: bp,
        g_goid: goid,
        g_waitreason: waitreason,
        g_gopc: gopc,
        g_startpc: startpc,
        g_parent_goid: parent,
        m_curg: curg,
        timer_when: timer,
        timer_period: timer + 8,
        timer_f: timer + 16,
        timer_arg: timer + 24,
        armed_in_registers: u32::from(minor >= 23),
        frame_pointers: 1,
        filled: 0,
    }
}
