//! What `resolve` finds in binaries that real Go toolchains compile, compared with what these binaries say of themselves.
//!
//! Needs Go toolchains (`cargo xtask go`); without any, each test says so and passes.

mod go;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use go::{Build, Toolchain};
use leaktrace::address::{LoadBias, RuntimeAddr};
use leaktrace::resolve::buildinfo::{self, BuildInfo};
use leaktrace::resolve::elf::Elf;
use leaktrace::resolve::offsets::{self, Offsets};
use leaktrace::resolve::pclntab::{Frame, Pclntab};
use leaktrace::resolve::{OffsetsSource, Refusal, dwarf};

/// A line that `frames.go` prints.
struct Said {
    kind: String,
    pc: RuntimeAddr,
    function: String,
    file: String,
    line: u32,
}

impl Said {
    fn parse(line: &str) -> Self {
        let column: Vec<&str> = line.split('\t').collect();
        let [kind, pc, function, file, number] = column[..] else {
            panic!("five columns, not {line:?}");
        };
        Self {
            kind: kind.to_owned(),
            pc: RuntimeAddr(
                u64::from_str_radix(pc.trim_start_matches("0x"), 16).expect("hexadecimal"),
            ),
            function: function.to_owned(),
            file: file.to_owned(),
            line: number.parse().expect("a line number"),
        }
    }

    fn assert_is(&self, frame: Option<&Frame>, context: &str) {
        let frame = frame.unwrap_or_else(|| panic!("{context}: nothing at {}", self.pc));
        // The runtime takes name number 0 for none, although one function has it (src/runtime/symtab.go: funcName).
        let function = match self.function.as_str() {
            "" => &frame.function,
            _ => &self.function,
        };
        assert_eq!(
            (&frame.function, &frame.file, frame.line),
            (function, &self.file, self.line),
            "{context}: {} {}",
            self.kind,
            self.pc
        );
    }
}

/// Compiles, runs, and compares every line that the program prints.
fn check(go: &Toolchain, build: Build) {
    let context = format!("{} {build:?}", go.version());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binary = directory.path().join("frames");
    go.compile("frames.go", build, &binary);
    let output = Command::new(&binary).output().expect("the program starts");
    let said: Vec<Said> = String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(Said::parse)
        .collect();
    assert!(said.len() > 1000, "{context}: only {} lines", said.len());

    let (info, _, functions) = read(&binary);
    assert_eq!(info.go.text, go.version());
    assert_eq!(info.goarch, "amd64");
    assert_eq!(info.cgo, Some(build.external));
    let main = functions
        .function_named("main.main")
        .expect("main.main is there");
    let entry = said
        .iter()
        .find(|line| line.kind == "entry")
        .expect("an entry line");
    let bias = LoadBias(entry.pc.0 - main.entry.0);
    assert_eq!(bias.0 != 0, build.pie, "{context}: bias {:#x}", bias.0);

    for (index, line) in said.iter().enumerate() {
        let pc = bias.to_linked(line.pc);
        let mut frames = Vec::new();
        if line.kind == "stack" {
            functions.frames_of_return(pc, &mut frames);
            // The runtime gives each inlined call a line of its own: they must follow each other as we expand them.
            for (offset, frame) in frames.iter().enumerate() {
                said[index + offset].assert_is(Some(frame), &context);
            }
        } else {
            functions.frames(pc, &mut frames);
        }
        line.assert_is(frames.first(), &context);
        assert!(
            frames.last().is_some_and(|last| !last.inlined),
            "{context}: a chain without its function"
        );
        let holder = functions.find(pc).expect("a function holds it");
        assert!(holder.entry <= pc && pc < holder.end);
        let name = functions.name(holder);
        let before_types = name.split('[').next().expect("split gives something");
        assert!(
            frames
                .last()
                .is_some_and(|last| last.function.starts_with(before_types))
        );
    }
    let inlined = said
        .iter()
        .filter(|line| line.kind == "stack" && line.function == "main.inlinedOnce");
    assert!(
        inlined.count() >= 3,
        "{context}: the program does not inline"
    );
}

fn read(binary: &Path) -> (BuildInfo, Offsets, Pclntab) {
    let file = File::open(binary).expect("the binary is there");
    let elf = Elf::open(&file).expect("an ELF file");
    let info = buildinfo::read(&elf).expect("Go build information");
    let from_dwarf = dwarf::offsets(&elf);
    let offsets = from_dwarf
        .or_else(|| offsets::of_release(&info.go).ok())
        .expect("offsets are known");
    let functions = Pclntab::read(&elf, &offsets).expect("a function table");
    (info, offsets, functions)
}

fn check_all(build: Build) {
    for go in Toolchain::all() {
        check(&go, build);
    }
}

#[test]
fn frames_of_a_plain_binary() {
    check_all(Build::default());
}

#[test]
fn frames_of_a_stripped_binary() {
    check_all(Build {
        stripped: true,
        ..Build::default()
    });
}

#[test]
fn frames_of_a_position_independent_binary() {
    check_all(Build {
        pie: true,
        ..Build::default()
    });
}

#[test]
fn frames_of_a_stripped_position_independent_binary() {
    check_all(Build {
        pie: true,
        stripped: true,
        ..Build::default()
    });
}

#[test]
fn frames_of_externally_linked_binaries() {
    if Command::new("gcc").arg("--version").output().is_err() {
        eprintln!("skipped: no gcc, which Go links with");
        return;
    }
    check_all(Build {
        external: true,
        stripped: true,
        ..Build::default()
    });
    check_all(Build {
        external: true,
        pie: true,
        stripped: true,
        ..Build::default()
    });
}

#[test]
fn dwarf_and_table_agree() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binary = directory.path().join("frames");
    for go in Toolchain::all() {
        for arm64 in [false, true] {
            go.compile(
                "frames.go",
                Build {
                    arm64,
                    ..Build::default()
                },
                &binary,
            );
            let (info, from_dwarf, _) = read(&binary);
            let from_table = offsets::of_release(&info.go).expect("the release is in the table");
            assert_eq!(from_dwarf, from_table, "{} {}", info.go, info.goarch);
        }
    }
}

/// An experiment moves the timers of a P: no table by release tells where to, the code does.
#[test]
fn the_timers_of_a_p_are_told_from_code() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binary = directory.path().join("frames");
    for (minor, experiment, arm64) in [
        (25, "greenteagc", false),
        (25, "greenteagc", true),
        (27, "nogreenteagc", false),
    ] {
        let Some(go) = Toolchain::one(minor) else {
            return;
        };
        if !go.version().starts_with(&format!("go1.{minor}.")) {
            eprintln!("skipped: no Go 1.{minor}");
            continue;
        }
        let build = Build {
            arm64,
            experiment,
            ..Build::default()
        };
        go.compile("frames.go", build, &binary);
        let (info, from_dwarf, _) = read(&binary);
        assert_eq!(info.go.experiments, [experiment]);
        let usual = offsets::release(&buildinfo::GoVersion {
            experiments: Vec::new(),
            ..info.go
        });
        let usual = usual.expect("the release is in the table").offsets;
        assert_ne!(
            from_dwarf.p_timers, usual.p_timers,
            "{experiment} moves them"
        );

        go.compile(
            "frames.go",
            Build {
                stripped: true,
                ..build
            },
            &binary,
        );
        let file = File::open(&binary).expect("the binary is there");
        let stripped = leaktrace::resolve::resolve(&file).expect("a Go program");
        assert_eq!(stripped.offsets_source, OffsetsSource::Table);
        assert_eq!(stripped.offsets, from_dwarf, "{experiment} arm64 {arm64}");
    }
}

#[test]
fn functions_lie_where_the_symbol_table_says() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binary = directory.path().join("frames");
    for go in Toolchain::all() {
        for arm64 in [false, true] {
            go.compile(
                "frames.go",
                Build {
                    arm64,
                    ..Build::default()
                },
                &binary,
            );
            let (_, _, functions) = read(&binary);
            let file = File::open(&binary).expect("the binary is there");
            let elf = Elf::open(&file).expect("an ELF file");
            // Some of these have an ABI wrapper of the same name in pclntab; ELF calls that one NAME.abi0.
            for name in [
                "runtime.newproc1",
                "runtime.newproc",
                "runtime.goexit0",
                "runtime.park_m",
                "runtime.ready",
                "runtime.gopark",
                "runtime.mallocgc",
                "runtime.schedule",
                "time.stopTimer",
                "main.main",
            ] {
                let symbol = elf.symbol(name).map(|(address, _)| address);
                let found = functions
                    .function_named(name)
                    .map(|function| function.entry);
                assert_eq!(found, symbol, "{} arm64 {arm64}: {name}", go.version());
            }
        }
    }
}

#[test]
fn a_binary_cut_short_is_refused() {
    let Some(go) = Toolchain::one(27) else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binary = directory.path().join("frames");
    for stripped in [false, true] {
        go.compile(
            "frames.go",
            Build {
                stripped,
                ..Build::default()
            },
            &binary,
        );
        let whole = std::fs::read(&binary).expect("the binary is there");
        let cuts = (0..4096)
            .step_by(61)
            .chain((1..64).map(|part| whole.len() * part / 64));
        for length in cuts {
            let cut = whole[..length].to_vec();
            let refusal = leaktrace::resolve::resolve(&cut).err();
            let refusal =
                refusal.unwrap_or_else(|| panic!("{length} of {} bytes pass", whole.len()));
            if length >= whole.len() / 2 {
                assert!(
                    matches!(refusal, Refusal::Truncated { .. }),
                    "{length} bytes: {refusal}"
                );
            }
        }
    }
}

/// Damages a copy of a binary in many ways; nothing may panic or hang, whatever comes out.
#[test]
fn a_damaged_binary_does_no_harm() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let binary = directory.path().join("frames");
    for (minor, build) in [
        (
            19,
            Build {
                stripped: true,
                ..Build::default()
            },
        ),
        (
            25,
            Build {
                stripped: true,
                pie: true,
                ..Build::default()
            },
        ),
        (27, Build::default()),
    ] {
        let Some(go) = Toolchain::one(minor) else {
            return;
        };
        go.compile("frames.go", build, &binary);
        let whole = std::fs::read(&binary).expect("the binary is there");
        let targets = interesting_ranges(&whole);
        // A fixed sequence (xorshift), so that a failure can be seen again.
        let mut state = 0x9e37_79b9_u32;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as usize % below
        };
        for _ in 0..150 {
            let mut damaged = whole.clone();
            let range = &targets[random(targets.len())];
            for _ in 0..=random(8) {
                let at = range.start + random(range.len());
                damaged[at] = match random(5) {
                    0 => 0,
                    1 => 0xff,
                    2 => damaged[at] ^ 0x80,
                    3 => damaged[at].wrapping_add(1),
                    _ => damaged[random(whole.len())],
                };
            }
            let Ok(program) = leaktrace::resolve::resolve(&damaged) else {
                continue;
            };
            let Some(main) = program.functions.function_named("main.main") else {
                continue;
            };
            let mut frames = Vec::new();
            for step in (0..100_000).step_by(997) {
                program
                    .functions
                    .frames(main.entry.offset(step), &mut frames);
            }
        }
    }
}

/// Headers and tables: the parts of the file where a damaged byte matters most.
fn interesting_ranges(binary: &Vec<u8>) -> Vec<Range<usize>> {
    let elf = Elf::open(binary).expect("an ELF file");
    let mut ranges = vec![0..64, 64..4096];
    for name in [
        ".go.buildinfo",
        ".gopclntab",
        ".data.rel.ro.gopclntab",
        ".go.module",
        ".noptrdata",
        ".dynamic",
        ".rela.dyn",
        ".rela",
        ".debug_abbrev",
        ".debug_info",
        ".symtab",
    ] {
        if let Some(section) = elf.section(name).filter(|section| section.size > 0) {
            let start = usize::try_from(section.file_offset.0).expect("a position in the file");
            let length = usize::try_from(section.size).expect("a length in the file");
            ranges.push(start..start + length);
            // Tables start with what matters most.
            ranges.push(start..start + length.min(128));
        }
    }
    ranges
}
