//! Ten thousand damaged copies of real binaries: none may panic, take 256 MB, or take two seconds.
//!
//! The damage goes where it hurts: into headers, tables and the code that is decoded, rather than anywhere. Each case is
//! made from its number alone: a failure prints the number, and `LEAKTRACE_MUTATION=NUMBER` runs just that case.

mod allocation;
mod damage;
mod files;
mod processes;
mod regions;

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use leaktrace::address::{LoadBias, VirtAddr};
use leaktrace::census::Layout;
use leaktrace::resolve::{self, ReadAt};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::toolchain::Toolchain;
use nix::time::{ClockId, clock_gettime};

use damage::{Damaged, Random};

/// Cases of each binary; there are five.
const CASES: u64 = 2000;
const MOST_BYTES: usize = 256 << 20;
const LONGEST: Duration = Duration::from_secs(2);

#[test]
fn plain_go_1_22() {
    check("1.22.10", Variant::DEFAULT);
}

#[test]
fn stripped_pie_go_1_22() {
    let variant = Variant {
        pie: true,
        ..Variant::STRIPPED
    };
    check("1.22.10", variant);
}

#[test]
fn pie_go_1_25() {
    let variant = Variant {
        pie: true,
        ..Variant::DEFAULT
    };
    check("1.25.5", variant);
}

#[test]
fn stripped_go_1_27() {
    check("1.27.3", Variant::STRIPPED);
}

#[test]
fn arm64_go_1_27() {
    let variant = Variant {
        arm64: true,
        ..Variant::DEFAULT
    };
    check("1.27.3", variant);
}

/// The damaged binary that resolves, and the one that is refused, are both right answers; all else is not.
fn check(go: &str, variant: Variant) {
    let Some(toolchain) = Toolchain::find(go) else {
        return skip(&format!("needs go {go}: cargo xtask go {go}"));
    };
    let path = build::build("handler-timeout", &toolchain, variant).expect("fixtures compile");
    let binary = std::fs::read(path).expect("the binary can be read");
    let regions = regions::of(&binary);
    let only: Option<u64> = std::env::var("LEAKTRACE_MUTATION")
        .ok()
        .map(|number| number.parse().expect("the number of a case"));
    let cases = only.map_or(0..CASES, |number| number..number + 1);
    let (mut resolved, mut most_bytes, mut longest) = (0, 0, Duration::ZERO);
    for number in cases {
        let damaged = Damaged::new(&binary, &regions, number);
        let what = || format!("case {number} of go {go} {}: {damaged:?}", variant.name());
        let answered = Cell::new(false);
        let before = allocation::start();
        let start = cpu_time();
        let survived = panic::catch_unwind(AssertUnwindSafe(|| {
            answered.set(resolve_and_look(&damaged, number));
        }));
        let took = cpu_time().saturating_sub(start);
        let bytes = allocation::most_since(before);
        assert!(survived.is_ok(), "panic in {}", what());
        assert!(bytes <= MOST_BYTES, "{bytes} bytes in {}", what());
        assert!(took <= LONGEST, "{took:?} in {}", what());
        resolved += u64::from(answered.get());
        most_bytes = most_bytes.max(bytes);
        longest = longest.max(took);
    }
    println!(
        "{go} {}: {resolved} resolved, at most {} KB and {longest:?}",
        variant.name(),
        most_bytes >> 10
    );
    // If hardly any came through, the damage would be too coarse to try what lies deeper; if all did, too light.
    if only.is_none() {
        assert!(
            (CASES / 20..CASES).contains(&resolved),
            "{resolved} resolved"
        );
    }
}

/// Resolves, and asks for what is asked later: names and lines.
fn resolve_and_look(file: &dyn ReadAt, number: u64) -> bool {
    let program = match resolve::resolve(file) {
        Ok(program) => program,
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty());
            return false;
        }
    };
    let _ = Layout::new(&program, LoadBias(0x5555_5555_0000));
    let mut frames = Vec::new();
    let mut look = |address: VirtAddr| {
        frames.clear();
        program.functions.frames(address, &mut frames);
        program.functions.frames_of_return(address, &mut frames);
        if let Some(found) = program.functions.find(address) {
            assert!(found.entry <= address && address < found.end);
            let name = program.functions.name(found);
            let _ = program.functions.function_named(&name);
        }
    };
    for choice in &program.sites {
        for site in choice.found.iter().flatten() {
            look(site.address);
        }
    }
    let mut random = Random::new(number);
    let start = program.functions.function_named("runtime.main");
    let start = start.map_or(0, |main| main.entry.0);
    for _ in 0..50 {
        look(VirtAddr(start.wrapping_add(random.below(1 << 18))));
        look(VirtAddr(start.wrapping_sub(random.below(1 << 18))));
    }
    true
}

/// What this thread alone has used, so that a busy machine fails no test.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every Linux has this clock")
        .into()
}

/// Says why a test does not run, also to `cargo xtask test`.
fn skip(reason: &str) {
    let line = format!("mutations of real binaries: {reason}");
    println!("skipped: {line}");
    if let Some(path) = std::env::var_os("LEAKTRACE_SKIPS") {
        let file = OpenOptions::new().append(true).open(path);
        let mut file = file.expect("LEAKTRACE_SKIPS can be written");
        writeln!(file, "{line}").expect("LEAKTRACE_SKIPS can be written");
    }
}
