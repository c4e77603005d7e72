//! `cargo xtask vm-test`: boots Debian's kernels in emulated machines, and traces Go programs on them.
//!
//! Nothing of this machine takes part but its processor: the kernel is Debian's, and the first and only
//! file system is an initramfs with busybox, a static leaktrace and Go fixtures. The guest says on its serial
//! console what it saw; what that means is judged here.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leaktrace_fixtures::target_dir;

mod guest;
mod image;
mod judge;
mod kernel;

use guest::Boot;
use judge::Check;
use kernel::{Arch, KERNELS, Kernel};

/// Go releases that the guests' programs are built with: the old timers, and the newest of everything.
const RELEASES: [&str; 2] = ["1.22.10", "1.27.3"];

/// Machines that run at one time; each has two processors.
const AT_ONCE: usize = 2;

/// What `cargo xtask test` takes for "left out": no Debian, no emulator, no network.
pub const EXIT_SKIPPED: u8 = 77;

/// Arguments of `cargo xtask vm-test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kernels, such as 5.10,6.1; all that are known when none is named
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    /// Machines: amd64, arm64; both when none is named
    #[arg(long, value_delimiter = ',')]
    arch: Vec<Arch>,
}

/// One machine to boot.
struct Machine {
    arch: Arch,
    kernel: &'static Kernel,
    image: Result<kernel::Image>,
}

/// How it went there.
struct Outcome {
    took: Duration,
    attempts: u32,
    checks: Result<Vec<Check>>,
}

/// Fetches, builds, boots, and prints what came of it; the exit code is 77 when nothing could be booted.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kernels = choose(&arguments.kernels)?;
    let arches = match arguments.arch.as_slice() {
        [] => vec![Arch::Amd64, Arch::Arm64],
        some => some.to_vec(),
    };
    let begin = Instant::now();
    let mut machines = Vec::new();
    let mut archives = Vec::new();
    for arch in arches {
        if let Err(error) = guest::install_emulator(arch) {
            skip(&format!("all kernels for {arch}"), &error)?;
            continue;
        }
        for kernel in &kernels {
            let image = kernel::fetch(arch, kernel);
            if let Err(error) = &image {
                skip(&format!("kernel {} on {arch}", kernel.release), error)?;
            }
            machines.push(Machine {
                arch,
                kernel,
                image,
            });
        }
        if machines
            .iter()
            .any(|machine| machine.arch == arch && machine.image.is_ok())
        {
            archives.push((arch, image::build(arch, &RELEASES)?));
        }
    }
    if !machines.iter().any(|machine| machine.image.is_ok()) {
        return Ok(ExitCode::from(EXIT_SKIPPED));
    }
    eprintln!(
        "everything is there after {:.0} s",
        begin.elapsed().as_secs_f64()
    );

    let outcomes = boot_all(&machines, |arch| {
        archives
            .iter()
            .find(|(of, _)| *of == arch)
            .map(|(_, archive)| archive.as_path())
            .context("every machine has its archive")
    });
    let failures = print(&machines, &outcomes);
    println!(
        "logs of the consoles are in {}",
        target_dir().join("vm/log").display()
    );
    if failures > 0 {
        bail!("{failures} failed");
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what is left out, and why; to `cargo xtask test` too, when that asked.
fn skip(what: &str, error: &anyhow::Error) -> Result<()> {
    println!("skipped {what}: {error:#}");
    if let Some(path) = env::var_os("LEAKTRACE_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        writeln!(file?, "{what}: {error:#}")?;
    }
    Ok(())
}

/// The kernels that were asked for.
fn choose(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    names
        .iter()
        .map(|name| {
            KERNELS
                .iter()
                .find(|kernel| kernel.release == name)
                .with_context(|| {
                    let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.release).collect();
                    format!("there is no kernel {name}: there are {}", known.join(", "))
                })
        })
        .collect()
}

/// Boots every machine whose kernel is there, a few at one time.
fn boot_all<'a>(
    machines: &[Machine],
    archive: impl Fn(Arch) -> Result<&'a std::path::Path> + Sync,
) -> Vec<Option<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(machines.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((index, machine)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    machines.get(index).map(|machine| (index, machine))
                } {
                    let Ok(image) = &machine.image else { continue };
                    let outcome = boot(machine, image, &archive);
                    outcomes.lock().expect("no thread panics with it")[index] = Some(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("no thread panicked with it")
}

/// How often a machine is booted that does not come to its end: emulated ones hang or panic now and then, each kernel
/// at another place.
const ATTEMPTS: u32 = 3;

/// Boots one machine, again if it did not come to its end.
fn boot<'a>(
    machine: &Machine,
    image: &kernel::Image,
    archive: &impl Fn(Arch) -> Result<&'a std::path::Path>,
) -> Outcome {
    let begin = Instant::now();
    let mut attempts = 0;
    let name = format!("{}-{}", machine.kernel.release, machine.arch);
    let checks = archive(machine.arch).and_then(|initramfs| {
        let boot = Boot {
            arch: machine.arch,
            kernel: &image.path,
            initramfs,
            log: target_dir().join(format!("vm/log/{name}")),
        };
        loop {
            attempts += 1;
            match boot.run(attempts) {
                Ok(lines) => {
                    let may_fault = machine.arch == Arch::Arm64 && machine.kernel.moves_pages;
                    return Ok(judge::judge(&lines, &RELEASES, may_fault));
                }
                Err(error) if attempts < ATTEMPTS => eprintln!("{name}: {error:#}; once more"),
                Err(error) => return Err(error),
            }
        }
    });
    let outcome = Outcome {
        took: begin.elapsed(),
        attempts,
        checks,
    };
    eprintln!("{name}: {:.0} s", outcome.took.as_secs_f64());
    outcome
}

/// Prints kernels by checks, then what failed in full; answers how many failures there are.
fn print(machines: &[Machine], outcomes: &[Option<Outcome>]) -> usize {
    let (mut failures, mut notes) = (Vec::new(), Vec::new());
    let names = judge::names(&RELEASES);
    println!(
        "\n{:<26} {:<6} {:>6}  {}",
        "kernel",
        "arch",
        "took",
        names.join("  ")
    );
    for (machine, outcome) in machines.iter().zip(outcomes) {
        let what = format!("{} {}", machine.kernel.release, machine.arch);
        let (image, outcome) = match (&machine.image, outcome) {
            (Ok(image), Some(outcome)) => (image, outcome),
            // It was said why.
            (Err(_), _) => continue,
            (_, None) => {
                failures.push(format!("{what}: was never booted"));
                continue;
            }
        };
        let mut row = format!(
            "{:<26} {:<6} {:>4.0} s",
            image.release,
            machine.arch.to_string(),
            outcome.took.as_secs_f64()
        );
        match &outcome.checks {
            Ok(checks) => {
                for (name, check) in names.iter().zip(checks) {
                    let word = match check {
                        Ok(None) => "ok",
                        Ok(Some(note)) => {
                            notes.push(format!("{what}, {name}: {note}"));
                            "ok (*)"
                        }
                        Err(reason) => {
                            failures.push(format!("{what}, {name}: {reason}"));
                            "FAILED"
                        }
                    };
                    row.push_str(&format!("  {word:<width$}", width = name.len()));
                }
            }
            Err(error) => failures.push(format!("{what}: {error:#}")),
        }
        if outcome.attempts > 1 {
            row.push_str(&format!("  (boot {})", outcome.attempts));
        }
        println!("{}", row.trim_end());
    }
    for note in &notes {
        println!("(*) {note}");
    }
    for failure in &failures {
        println!("FAILED {failure}");
    }
    failures.len()
}
