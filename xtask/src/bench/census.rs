//! What counting everything costs, from a thousand goroutines to a million.
//!
//! The program has a thousand call sites; it is generated, since nobody writes such a program by hand.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::target_dir;
use leaktrace_fixtures::toolchain::Toolchain;

use super::daemon::cpu_seconds;
use super::slow_down::Tracer;
use super::{FIRST, Section, Setup, median, on, plot};
use crate::go;

/// Lines that start goroutines.
const SITES: usize = 1000;

/// The most goroutines: Delve lists them, too.
const MOST: u32 = 1_000_000;

/// The program that works meanwhile has so many.
const BESIDE_WORK: u32 = 100_000;

/// How often a program at work says how fast it is, in milliseconds.
const WINDOW_MS: u32 = 100;

/// How long to wait for all counts of a daemon: it rests for two hundred times as long as one takes.
const PATIENCE: Duration = Duration::from_secs(1200);

/// How long a daemon has been there: reading the executable is no part of its counts.
const SETTLED: Duration = Duration::from_secs(5);

/// Readings of each size, of which the median counts.
const READINGS: usize = 5;

/// Measures.
pub fn run(setup: &Setup) -> Result<Section> {
    let toolchain = go::install(&setup.go)?;
    let program = build_many(&toolchain)?;
    let mut text = format!(
        "`leaktrace snapshot --format json` of so many goroutines at {SITES} call sites, Go {}, medians of {READINGS}. The\n\
         census is what a daemon does again and again; the command also reads the executable and writes JSON:\n\n\
         | goroutines | CPU of the census | CPU of the command | wall | memory |\n|--:|--:|--:|--:|--:|\n",
        setup.go
    );
    let mut points = Vec::new();
    let (mut beside_work, mut by_delve) = (0.0, String::new());
    for count in [1_000, 10_000, 100_000, MOST] {
        eprintln!("{count} goroutines");
        let target = Program::start(&program, &["-n", &count.to_string()])?;
        let pid = target.pid().to_string();
        let mut readings = (0..READINGS)
            // The main goroutine is one more.
            .map(|_| measure(&setup.leaktrace, &pid, "goroutines", count + 1))
            .collect::<Result<Vec<_>>>()?;
        let median = Reading::median(&mut readings);
        let _ = writeln!(
            text,
            "| {count} | {:.3} s | {:.3} s | {:.3} s | {} MB |",
            median.census, median.command, median.wall, median.megabytes
        );
        points.push((f64::from(count), median.census));
        if count == BESIDE_WORK {
            beside_work = median.census;
        }
        if count == MOST {
            by_delve = delve(&pid, median.wall)?;
        }
    }
    text += &by_delve;
    text += &timers(setup, &toolchain)?;
    text += &slow_down(setup, &program, beside_work)?;
    text += "\n![census](cost-census.svg)\n";
    Ok(Section {
        markdown: text,
        plots: vec![(
            "cost-census.svg",
            plot::line(
                "CPU time of a census",
                "goroutines",
                "seconds of CPU time",
                &points,
            ),
        )],
    })
}

/// A million timers, of five kinds.
fn timers(setup: &Setup, toolchain: &Toolchain) -> Result<String> {
    const EACH: u32 = 200_000;
    let program = build::build("timers-mixed", toolchain, Variant::DEFAULT)?;
    let target = Program::start(&program, &["-each", &EACH.to_string()])?;
    let pid = target.pid().to_string();
    // Each of the channel timers lies in a heap once its goroutine waits for it.
    let mut tries = 0;
    while measure(&setup.leaktrace, &pid, "timers", 5 * EACH).is_err() && tries < 30 {
        tries += 1;
    }
    let mut readings = (0..READINGS)
        .map(|_| measure(&setup.leaktrace, &pid, "timers", 5 * EACH))
        .collect::<Result<Vec<_>>>()?;
    let median = Reading::median(&mut readings);
    Ok(format!(
        "\n{} pending timers of five kinds, and the {} goroutines that wait for three of them: {:.3} s of CPU for the census\n\
         of all, {:.3} s for the command, {} MB.\n",
        5 * EACH,
        3 * EACH,
        median.census,
        median.command,
        median.megabytes
    ))
}

/// What a program with many goroutines loses to a daemon that counts them again and again, one of which takes `census` seconds.
fn slow_down(setup: &Setup, program: &Path, census: f64) -> Result<String> {
    let report = format!("{WINDOW_MS}ms");
    let count = BESIDE_WORK.to_string();
    let mut program = on(FIRST, program);
    program.args(["-n", &count, "-work", "-report", &report]);
    let program = Program::spawn(&mut program)?;
    let mut daemon = on(FIRST, &setup.leaktrace);
    daemon.args(["daemon", "--events", "none", "--listen", "127.0.0.1:0"]);
    daemon.args(["--pid", &program.pid().to_string()]);
    let daemon = Tracer::start(&mut daemon, "leaktrace daemon", None)?;
    thread::sleep(SETTLED);
    while program.line_at_once().is_some() {}
    let counts = setup.pairs as usize;
    let mut windows = Vec::new();
    let mut found = Vec::new();
    let (began, mut last, mut before) =
        (Instant::now(), Instant::now(), cpu_seconds(daemon.pid())?);
    while found.len() < counts {
        ensure!(began.elapsed() < PATIENCE, "the daemon does not count");
        let line = program.line()?;
        let (now, cpu) = (Instant::now(), cpu_seconds(daemon.pid())?);
        windows.push(Window {
            rate: (line["ops_per_second"].as_f64()).context("the program prints ops_per_second")?,
            seconds: (now - last).as_secs_f64(),
            daemon: cpu - before,
        });
        (last, before) = (now, cpu);
        found = found_counts(&windows, census);
    }
    let lost: Vec<f64> = found.iter().map(|one| one.lost).collect();
    let apart: Vec<f64> = (found.windows(2))
        .filter_map(|pair| Some(pair.get(1)?.at - pair.first()?.at))
        .collect();
    let (lost, apart) = (median(&lost), median(&apart));
    Ok(format!(
        "\n{BESIDE_WORK} goroutines counted by a daemon on the program's own processor: a count keeps the program from {:.0} ms of\n\
         its work, and comes every {apart:.0} s, since counting may take 0.5 % of a core: {:.2} % of the program's throughput (medians\n\
         of {counts} counts, each compared with the seconds before and after it).\n",
        lost * 1e3,
        lost / apart * 100.0,
    ))
}

/// A moment of a program at work, and what a daemon did meanwhile.
struct Window {
    /// Operations a second.
    rate: f64,
    /// How long it was.
    seconds: f64,
    /// Seconds of CPU that the daemon took.
    daemon: f64,
}

/// A count that a daemon made.
struct Count {
    /// When it began: seconds since the first window.
    at: f64,
    /// Seconds of its work that the program did not do meanwhile.
    lost: f64,
}

/// The counts among windows, of those that have enough windows on either side; one takes about `census` seconds of CPU.
fn found_counts(windows: &[Window], census: f64) -> Vec<Count> {
    /// Windows between two pieces of one count.
    const GAP: usize = 3;
    /// Windows on either side that tell how fast the program is.
    const AROUND: usize = 20;
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    for (index, _) in (windows.iter().enumerate()).filter(|(_, window)| window.daemon > 0.015) {
        match pieces.last_mut() {
            Some((_, end)) if index <= *end + GAP => *end = index,
            _ => pieces.push((index, index)),
        }
    }
    let mut counts = Vec::new();
    for (first, last) in pieces {
        let took: f64 = windows[first..=last]
            .iter()
            .map(|window| window.daemon)
            .sum();
        // The program says late what it did, and may be kept waiting a moment longer.
        let (begin, end) = (first.saturating_sub(2), last + 2);
        if took < census / 2.0 || begin < AROUND || end + AROUND >= windows.len() {
            continue;
        }
        let beside = windows[begin - AROUND..begin]
            .iter()
            .chain(&windows[end + 1..=end + AROUND]);
        let usual = median(&beside.map(|window| window.rate).collect::<Vec<_>>());
        let lost = |window: &Window| window.seconds * (1.0 - window.rate / usual);
        counts.push(Count {
            at: windows[..first].iter().map(|window| window.seconds).sum(),
            lost: windows[begin..=end].iter().map(lost).sum(),
        });
    }
    counts
}

/// One snapshot: seconds of CPU time and of wall time.
struct Reading {
    census: f64,
    command: f64,
    wall: f64,
    megabytes: u64,
}

impl Reading {
    /// The one whose census is in the middle.
    fn median(readings: &mut [Self]) -> &Self {
        readings.sort_by(|a, b| a.census.total_cmp(&b.census));
        &readings[readings.len() / 2]
    }
}

/// One snapshot, which must find so many of `what`; Python starts it and asks the kernel what it took.
fn measure(leaktrace: &Path, pid: &str, what: &str, count: u32) -> Result<Reading> {
    const SCRIPT: &str = "import json, resource, subprocess, sys, time\n\
        begin = time.monotonic()\n\
        out = subprocess.run(sys.argv[2:], stdout=subprocess.PIPE, check=True).stdout\n\
        wall = time.monotonic() - begin\n\
        used = resource.getrusage(resource.RUSAGE_CHILDREN)\n\
        said = json.loads(out)\n\
        print(used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, wall)\n\
        print(said['events']['census_seconds'], said[sys.argv[1]]['total'])";
    let output = Command::new("python3")
        .args(["-c", SCRIPT, what])
        .arg(leaktrace)
        .args(["snapshot", "--format", "json", "--pid", pid])
        .output()
        .context("python3 is needed to measure: install it")?;
    ensure!(
        output.status.success(),
        "a snapshot failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_ascii_whitespace();
    let mut next = || numbers.next().context("five numbers are printed");
    let reading = Reading {
        command: next()?.parse()?,
        megabytes: next()?.parse()?,
        wall: next()?.parse()?,
        census: next()?.parse()?,
    };
    let total: u32 = next()?.parse()?;
    ensure!(total == count, "{total} {what} were found of {count}");
    Ok(reading)
}

/// The same list by Delve, which stops the process for it.
fn delve(pid: &str, ours: f64) -> Result<String> {
    let listed = tempfile::tempfile()?;
    let begin = Instant::now();
    let started = Command::new("dlv")
        .args(["attach", pid, "--allow-non-terminal-interactive=true"])
        .stdin(Stdio::piped())
        .stdout(listed.try_clone()?)
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else {
        return Ok(
            "\nDelve, which would list the same, is not installed (apt-get install delve).\n"
                .to_owned(),
        );
    };
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    std::io::Write::write_all(&mut stdin, b"goroutines -t 1\nquit\nn\n")?;
    drop(stdin);
    child.wait()?;
    let took = begin.elapsed().as_secs_f64();
    let mut listed = BufReader::new(listed);
    listed.rewind()?;
    let mut lines = 0;
    for line in listed.lines() {
        lines += u32::from(line?.contains("Goroutine "));
    }
    ensure!(lines >= MOST, "Delve listed {lines} goroutines of {MOST}");
    Ok(format!(
        "\nDelve lists the {MOST} (`goroutines -t 1`) in {took:.1} s of wall time, with the process stopped: {:.0} times as\n\
         long as the command.\n",
        took / ours
    ))
}

fn build_many(toolchain: &Toolchain) -> Result<PathBuf> {
    let folder = target_dir().join("bench/many");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut source = String::from(
        "package main\n\nimport (\n\t\"flag\"\n\t\"fmt\"\n\t\"os\"\n\t\"time\"\n)\n\nvar never = make(chan struct{})\n\n",
    );
    let mut table = String::new();
    for site in 0..SITES {
        writeln!(source, "func f{site}() {{ go func() {{ <-never }}() }}")?;
        write!(table, "f{site}, ")?;
    }
    write!(
        source,
        "\nvar all = []func(){{{table}}}\n\nfunc main() {{\n\tn := flag.Int(\"n\", 1000, \"\")\n\
         \twork := flag.Bool(\"work\", false, \"\")\n\treport := flag.Duration(\"report\", time.Second, \"\")\n\tflag.Parse()\n\
         \tfor i := 0; i < *n; i++ {{\n\t\tall[i%len(all)]()\n\t}}\n\ttime.Sleep(2 * time.Second)\n\
         \tfmt.Printf(\"{{\\\"ready\\\":true,\\\"pid\\\":%d}}\\n\", os.Getpid())\n\
         \tfor !*work {{\n\t\ttime.Sleep(time.Hour)\n\t}}\n\
         \tfor {{\n\t\tbegin, done := time.Now(), 0\n\t\tfor ; time.Since(begin) < *report; done++ {{\n\
         \t\t\tsum := make(chan int)\n\t\t\tgo func() {{ sum <- done }}()\n\t\t\t<-sum\n\t\t}}\n\
         \t\tfmt.Printf(\"{{\\\"ops_per_second\\\":%f}}\\n\", float64(done)/time.Since(begin).Seconds())\n\t}}\n}}\n"
    )?;
    fs::write(folder.join("main.go"), source)?;
    let output = folder.join(format!("many-{}", toolchain.version()));
    let status = toolchain
        .go()
        .env("GO111MODULE", "off")
        .args(["build", "-o"])
        .arg(&output)
        .arg("main.go")
        .current_dir(&folder)
        .status()
        .context("running go build")?;
    ensure!(status.success(), "the generated program does not compile");
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::{Window, found_counts};

    #[test]
    fn counts_and_what_they_cost_are_found() {
        let mut windows: Vec<Window> = (0..100)
            .map(|index| Window {
                rate: 1000.0 + f64::from(index % 3),
                seconds: 0.1,
                daemon: 0.0,
            })
            .collect();
        // Two thirds of 0.2 s; then the daemon's other work; then a count too near to the end.
        for (index, rate, daemon) in [
            (50, 334.0, 0.06),
            (51, 334.0, 0.07),
            (70, 900.0, 0.02),
            (90, 334.0, 0.1),
        ] {
            (windows[index].rate, windows[index].daemon) = (rate, daemon);
        }
        let found = found_counts(&windows, 0.12);
        assert_eq!(found.len(), 1);
        assert!((found[0].at - 5.0).abs() < 1e-6, "{}", found[0].at);
        assert!((found[0].lost - 0.1333).abs() < 0.001, "{}", found[0].lost);
    }
}
