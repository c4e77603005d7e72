//! Are probe sites and globals found in what real Go compilers wrote?
//!
//! Builds one program with every toolchain that is there, for both machines, and compares what the code
//! says with what the symbol table says. Toolchains: `$LEAKTRACE_GO_DIR/go<VERSION>/go/bin/go`, by default
//! under `target/go`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use leaktrace::address::{FileOffset, VirtAddr};
use leaktrace::resolve::code::{CodeView, Function};
use leaktrace::resolve::decode::{Flow, Listing};
use leaktrace::resolve::{Arch, Execution, GlobalsSource, ProbeSite, SiteChoice, globals, sites};
use leaktrace_common::event::Kind;
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _};

/// Uses every kind of timer, and goroutines; from 1.23 coroutines too.
const PROGRAM: &str = r#"package main

import (
	"fmt"
	"time"
)

func main() {
	timer := time.NewTimer(time.Hour)
	timer.Reset(time.Minute)
	timer.Stop()
	ticker := time.NewTicker(time.Hour)
	ticker.Reset(time.Minute)
	ticker.Stop()
	done := make(chan bool)
	time.AfterFunc(time.Millisecond, func() { done <- true })
	<-done
	go func() { done <- true }()
	<-done
	coroutines()
	fmt.Println("done")
}
"#;

const COROUTINES: &str = r#"package main

import "iter"

func coroutines() {
	next, stop := iter.Pull(func(yield func(int) bool) { yield(1) })
	next()
	stop()
}
"#;

/// Keeps goroutines and timers hot for a second under the profiler.
const STORM: &str = r#"//go:build storm

package main

import (
	"os"
	"runtime/pprof"
	"time"
)

func init() {
	file, err := os.Create("cpu.pprof")
	if err != nil {
		panic(err)
	}
	pprof.StartCPUProfile(file)
	defer pprof.StopCPUProfile()
	done := make(chan bool)
	for start := time.Now(); time.Since(start) < time.Second; {
		for i := 0; i < 100; i++ {
			go func() { done <- true }()
			<-done
		}
		time.AfterFunc(0, func() { done <- true })
		<-done
	}
}
"#;

const NO_COROUTINES: &str = "package main\n\nfunc coroutines() {}\n";

struct Toolchain {
    go: PathBuf,
    version: String,
    minor: u32,
}

/// The toolchains that are there, oldest first.
fn toolchains() -> Vec<Toolchain> {
    let directory = match std::env::var_os("LEAKTRACE_GO_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/go"),
    };
    let mut found: Vec<Toolchain> = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("go")?;
            let minor = version.split('.').nth(1)?.parse().ok()?;
            let go = entry.path().join("go/bin/go").canonicalize().ok()?;
            Some(Toolchain {
                go,
                version: version.to_owned(),
                minor,
            })
        })
        .collect();
    found.sort_by_key(|toolchain| toolchain.minor);
    if found.is_empty() {
        println!("skipped: no Go toolchain under {}", directory.display());
    }
    found
}

/// Builds the program; `extra` goes to `go build`.
fn build(toolchain: &Toolchain, arch: Arch, label: &str, extra: &[&str]) -> Vec<u8> {
    let goarch = match arch {
        Arch::Amd64 => "amd64",
        Arch::Arm64 => "arm64",
    };
    let module = module(toolchain, arch, label);
    std::fs::create_dir_all(&module).expect("create the program's directory");
    let coroutines = if toolchain.minor >= 23 {
        COROUTINES
    } else {
        NO_COROUTINES
    };
    let go_mod = format!("module sites\n\ngo 1.{}\n", toolchain.minor);
    for (name, text) in [
        ("main.go", PROGRAM),
        ("coroutines.go", coroutines),
        ("storm.go", STORM),
        ("go.mod", &go_mod),
    ] {
        std::fs::write(module.join(name), text).expect("write the program");
    }
    let root = toolchain
        .go
        .ancestors()
        .nth(2)
        .expect("bin/go has a GOROOT");
    let output = Command::new(&toolchain.go)
        .arg("build")
        .args(extra)
        .args(["-o", "program", "."])
        .current_dir(&module)
        .env("GOROOT", root)
        .env("GOARCH", goarch)
        .env("GOOS", "linux")
        .env("GOTOOLCHAIN", "local")
        .env("GOPROXY", "off")
        .env("GOFLAGS", "-mod=mod")
        .env("CGO_ENABLED", "0")
        .env(
            "GOCACHE",
            std::env::var_os("GOCACHE").unwrap_or_else(|| {
                Path::new(env!("CARGO_TARGET_TMPDIR"))
                    .join("gocache")
                    .into()
            }),
        )
        .output()
        .expect("run go build");
    assert!(
        output.status.success(),
        "{} {goarch}: {}",
        toolchain.version,
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read(module.join("program")).expect("read the program")
}

/// Where the program is written and built.
fn module(toolchain: &Toolchain, arch: Arch, label: &str) -> PathBuf {
    let version = &toolchain.version;
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sites-{version}-{arch:?}-{label}"))
}

/// A binary with its symbol table; mutable, and able to deny that it has variables' symbols.
struct SymtabView {
    arch: Arch,
    functions: BTreeMap<u64, (String, Vec<u8>)>,
    entries: BTreeMap<String, u64>,
    variables: BTreeMap<String, (VirtAddr, u64)>,
    segments: Vec<(u64, u64, u64)>,
}

impl SymtabView {
    fn new(file: &[u8]) -> Self {
        let elf = object::File::parse(file).expect("an ELF file");
        let arch = match elf.architecture() {
            object::Architecture::X86_64 => Arch::Amd64,
            object::Architecture::Aarch64 => Arch::Arm64,
            other => panic!("unexpected machine {other:?}"),
        };
        let text = elf.section_by_name(".text").expect("a .text section");
        let bytes = text.data().expect("readable code");
        let mut functions = BTreeMap::new();
        let mut entries = BTreeMap::new();
        let mut variables = BTreeMap::new();
        for symbol in elf.symbols() {
            let name = symbol.name().expect("a name").to_owned();
            if symbol.kind() == object::SymbolKind::Text {
                // Like pclntab: up to the next function's entry, padding included.
                entries.insert(name.clone(), symbol.address());
                functions.insert(symbol.address(), (name, Vec::new()));
            } else {
                variables.insert(name, (VirtAddr(symbol.address()), symbol.size()));
            }
        }
        let starts: Vec<u64> = functions.keys().copied().collect();
        let ends = starts.iter().skip(1).copied().chain([u64::MAX]);
        for (start, end) in starts.iter().zip(ends) {
            let from = usize::try_from(start.saturating_sub(text.address())).expect("64 bits");
            let to = usize::try_from(end.saturating_sub(text.address())).expect("64 bits");
            let code = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
            functions.get_mut(start).expect("just inserted").1 = code.to_vec();
        }
        let segments = elf
            .segments()
            .map(|segment| {
                let (offset, size) = segment.file_range();
                (segment.address(), size, offset)
            })
            .collect();
        Self {
            arch,
            functions,
            entries,
            variables,
            segments,
        }
    }

    fn code_mut(&mut self, name: &str) -> &mut Vec<u8> {
        let entry = self.entries.get(name).expect("the function");
        &mut self.functions.get_mut(entry).expect("its code").1
    }
}

impl CodeView for SymtabView {
    fn arch(&self) -> Arch {
        self.arch
    }

    fn function(&self, name: &str) -> Option<Function> {
        let entry = *self.entries.get(name)?;
        let (name, code) = self.functions.get(&entry)?.clone();
        Some(Function {
            name,
            entry: VirtAddr(entry),
            code,
        })
    }

    fn function_at(&self, address: VirtAddr) -> Option<(String, VirtAddr)> {
        let (entry, (name, code)) = self.functions.range(..=address.0).next_back()?;
        let inside = usize::try_from(address.0 - entry).is_ok_and(|offset| offset < code.len());
        inside.then(|| (name.clone(), VirtAddr(*entry)))
    }

    fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        self.segments.iter().find_map(|(start, size, offset)| {
            let into = address.0.checked_sub(*start)?;
            (into < *size).then_some(FileOffset(offset + into))
        })
    }

    fn symbol(&self, name: &str) -> Option<(VirtAddr, u64)> {
        self.variables.get(name).copied()
    }
}

fn print_choices(title: &str, choices: &[SiteChoice]) {
    println!("{title}");
    for choice in choices {
        match &choice.found {
            Ok(found) => {
                for site in found {
                    println!(
                        "  {:8} {:32} +{:#06x} {:44} r{} {:?}",
                        format!("{:?}", choice.kind),
                        site.function,
                        site.offset_in_function,
                        site.text,
                        site.register,
                        site.execution
                    );
                }
            }
            Err(reason) => println!("  {:8} none: {reason}", format!("{:?}", choice.kind)),
        }
    }
}

/// What must hold of every site, whatever the binary.
fn check_sites(view: &SymtabView, choices: &[SiteChoice]) {
    assert!(choices.iter().map(|choice| choice.kind).eq(Kind::ALL));
    for site in choices
        .iter()
        .flat_map(|choice| choice.found.iter().flatten())
    {
        let function = view.function(&site.function).expect("the site's function");
        assert!(site.offset_in_function > 0, "first instruction: {site:?}");
        assert_eq!(site.address, function.entry.offset(site.offset_in_function));
        assert_eq!(view.file_offset(site.address), Some(site.file_offset));
        let start = usize::try_from(site.offset_in_function).expect("64 bits");
        let there = function.code.get(start..start + site.bytes.len());
        assert_eq!(there, Some(site.bytes.as_slice()), "bytes: {site:?}");
        let alone = Function {
            name: String::new(),
            entry: site.address,
            code: site.bytes.clone(),
        };
        let decoded = Listing::decode(view.arch, &alone).expect("a site that decodes");
        assert_eq!(decoded.instructions.len(), 1, "{site:?}");
        assert_eq!(decoded.instructions[0].execution, Some(site.execution));
        if site.execution == Execution::SingleStepped {
            assert_eq!(decoded.instructions[0].flow, Flow::Return, "{site:?}");
        } else {
            assert!(emulated_by_the_kernel(view.arch, &site.bytes), "{site:?}");
        }
    }
}

/// The kernel's list once more, written down apart from the code under test.
fn emulated_by_the_kernel(arch: Arch, bytes: &[u8]) -> bool {
    match arch {
        Arch::Amd64 => match bytes {
            [0xe8 | 0xe9, rest @ ..] => rest.len() == 4,
            [0x0f, second, rest @ ..] => second & 0xf0 == 0x80 && rest.len() == 4,
            [first, _] => first & 0xf0 == 0x70 || *first == 0xeb,
            _ => false,
        },
        Arch::Arm64 => {
            let word = u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
            let branch = matches!(word >> 26, 0b00_0101 | 0b10_0101);
            branch || word >> 24 == 0x54 || word == 0xd65f_03c0
        }
    }
}

#[test]
fn every_site_and_global_is_found_by_every_toolchain() {
    for toolchain in toolchains() {
        for arch in [Arch::Amd64, Arch::Arm64] {
            for (label, extra) in [("plain", &[][..]), ("pie", &["-buildmode=pie"][..])] {
                let file = build(&toolchain, arch, label, extra);
                let mut view = SymtabView::new(&file);
                let title = format!("go{} {arch:?} {label}", toolchain.version);
                let choices = sites::find(&view, toolchain.minor);
                print_choices(&title, &choices);
                check_sites(&view, &choices);
                for choice in &choices {
                    let found = choice.found.as_ref().expect("a site for every kind");
                    let two = choice.kind == Kind::Rearmed && toolchain.minor < 23;
                    assert_eq!(found.len(), if two { 2 } else { 1 }, "{choice:?}");
                    for site in found {
                        assert_eq!(site.execution, Execution::Emulated, "{site:?}");
                        let register = match (choice.kind, arch) {
                            (Kind::Fired, Arch::Amd64) if toolchain.minor < 23 => 3,
                            (Kind::Fired, Arch::Arm64) if toolchain.minor < 23 => 1,
                            _ => 0,
                        };
                        assert_eq!(site.register, register, "{site:?}");
                    }
                }

                let (by_symbol, source) = globals::find(&view).expect("globals");
                assert_eq!(source, GlobalsSource::Symtab);
                view.variables.clear();
                let (by_code, source) = globals::find(&view).expect("globals in code");
                assert_eq!(source, GlobalsSource::Code);
                assert_eq!(by_symbol, by_code);
                println!("  {by_code:x?}");
            }
        }
    }
}

#[test]
fn without_inlining_the_exit_of_newproc1_is_its_return() {
    for toolchain in toolchains().into_iter().rev().take(1) {
        let file = build(&toolchain, Arch::Amd64, "l", &["-gcflags=runtime=-l"]);
        let view = SymtabView::new(&file);
        let choices = sites::find(&view, toolchain.minor);
        print_choices(&format!("go{} -l", toolchain.version), &choices);
        check_sites(&view, &choices);
        for choice in &choices {
            let site = choice.found.as_ref().ok().and_then(|found| found.first());
            match choice.kind {
                Kind::Born => {
                    let site = site.expect("a site of the last resort");
                    assert_eq!(site.execution, Execution::SingleStepped);
                    assert_eq!(site.text, "ret");
                }
                Kind::Rearmed => {
                    let site = site.expect("a site between the door and modify");
                    assert_eq!(site.text, "call runtime.(*timer).reset");
                }
                _ => assert!(site.is_some(), "{choice:?}"),
            }
        }
    }
}

/// A profile makes the compiler inline what is hot. Births and deaths must be found all the same; of the
/// rest what is found must be true.
#[test]
fn a_profile_may_hide_sites_but_not_births_and_deaths() {
    let Some(toolchain) = toolchains().pop() else {
        return;
    };
    build(&toolchain, Arch::Amd64, "pgo", &["-tags=storm"]);
    let module = module(&toolchain, Arch::Amd64, "pgo");
    let status = Command::new(module.join("program"))
        .current_dir(&module)
        .status()
        .expect("run the program to profile");
    assert!(status.success());
    let profile = format!("-pgo={}", module.join("cpu.pprof").display());
    for arch in [Arch::Amd64, Arch::Arm64] {
        let file = build(&toolchain, arch, "pgo", &[&profile]);
        let view = SymtabView::new(&file);
        let choices = sites::find(&view, toolchain.minor);
        print_choices(&format!("go{} {arch:?} pgo", toolchain.version), &choices);
        check_sites(&view, &choices);
        for choice in &choices {
            if matches!(choice.kind, Kind::Born | Kind::Ended | Kind::Parked) {
                let found = choice.found.as_ref().expect("a site");
                let emulated = |site: &ProbeSite| site.execution == Execution::Emulated;
                assert!(found.iter().all(emulated), "{choice:?}");
            }
        }
    }
}

/// Flips bits, overwrites and cuts the functions that the finders read: nothing may panic, and what is
/// found must still be what it says.
#[test]
fn damaged_code_never_panics_and_never_yields_a_false_site() {
    let Some(toolchain) = toolchains().pop() else {
        return;
    };
    let functions = [
        "runtime.newproc1",
        "runtime.newproc.func1",
        "runtime.gdestroy",
        "runtime.goexit0",
        "runtime.park_m",
        "runtime.ready",
        "time.newTimer",
        "time.stopTimer",
        "time.resetTimer",
        "runtime.(*timer).unlockAndRun",
        "runtime.forEachGRace",
        "runtime.preemptall",
        "runtime.waitReason.String",
    ];
    for arch in [Arch::Amd64, Arch::Arm64] {
        let file = build(&toolchain, arch, "damaged", &[]);
        let mut view = SymtabView::new(&file);
        view.variables.clear();
        let intact = sites::find(&view, toolchain.minor);
        let mut random = Random(1);
        let mut refused = 0;
        for _ in 0..3000 {
            let name = functions[random.below(functions.len())];
            let original = view.code_mut(name).clone();
            let code = view.code_mut(name);
            // Where finders look: the beginning, the end, or anywhere.
            let at = match random.below(3) {
                0 => random.below(24.min(code.len())),
                1 => code.len() - 1 - random.below(96.min(code.len())),
                _ => random.below(code.len()),
            };
            match random.below(4) {
                0 => code.truncate(at),
                1 => code[at..].fill(0xff),
                2 => code[at] = u8::try_from(random.below(256)).expect("a byte"),
                _ => code[at] ^= 1 << random.below(8),
            }
            let choices = sites::find(&view, toolchain.minor);
            check_sites(&view, &choices);
            refused += usize::from(choices != intact);
            // Any answer will do, but no panic.
            drop(globals::find(&view));
            *view.code_mut(name) = original;
        }
        println!("{arch:?}: {refused} of 3000 changed what is found");
        assert!(refused > 100);
    }
}

/// xorshift64: the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}
