//! Twenty programs, the daemon that watches them, and how both are compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::toolchain::Toolchain;
use leaktrace_fixtures::{repository, target_dir};

use crate::daemon::Daemon;
use crate::go;

/// Programs that are always there.
const PROGRAMS: usize = 20;

/// How soon after a fault all has to be right again.
const PATIENCE: Duration = Duration::from_secs(45);

/// The releases that they are built with.
pub(super) const RELEASES: [&str; 3] = ["1.22.10", "1.25.5", "1.27.3"];

/// Some rest, some grow, and of some the goroutines come and go.
const KINDS: [(&str, &[&str]); 4] = [
    ("mixed-states", &[]),
    ("handler-timeout", &["-rate", "3", "-burst", "50"]),
    ("handler-timeout-healthy", &["-rate", "20"]),
    ("time-after-loop", &[]),
];

/// Everything there is.
pub struct World {
    /// Where chance comes from.
    pub random: Random,
    /// The daemon.
    pub daemon: Daemon,
    /// Where its log goes.
    pub log: PathBuf,
    pub(super) programs: Vec<Program>,
    most_bytes: u64,
    executables: Vec<(PathBuf, &'static [&'static str])>,
}

impl World {
    /// Builds and starts everything.
    ///
    /// # Errors
    /// Something cannot be built or started.
    pub fn begin(leaktrace: &Path, seed: u64, log: &Path) -> Result<Self> {
        let mut executables = Vec::new();
        for release in RELEASES {
            let toolchain = go::install(release)?;
            for (name, arguments) in KINDS {
                executables.push((own_copy(name, &toolchain)?, arguments));
            }
        }
        // Without a budget, so that the probes hear all, and a storm can overrun the ring.
        let ours = target_dir().join("chaos/*/*").display().to_string();
        let options = [
            "--exe",
            &ours,
            "--interval",
            "1s",
            "--budget",
            "off",
            "--host-budget",
            "off",
        ];
        let mut world = Self {
            random: Random(seed | 1),
            daemon: Daemon::start_with_log(leaktrace, &options, log)?,
            log: log.to_owned(),
            programs: Vec::new(),
            most_bytes: 0,
            executables,
        };
        for _ in 0..PROGRAMS {
            world.start_one()?;
        }
        Ok(world)
    }

    /// How many programs there are.
    pub fn programs(&self) -> usize {
        self.programs.len()
    }

    /// Starts one more program, of any kind.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_one(&mut self) -> Result<()> {
        let (executable, arguments) = &self.executables[self.random.below(self.executables.len())];
        self.programs.push(Program::start(executable, arguments)?);
        Ok(())
    }

    /// Kills any one program.
    pub fn kill_one(&mut self) {
        let at = self.random.below(self.programs.len());
        drop(self.programs.swap_remove(at));
    }

    /// What is called a leak: the program, and the line.
    pub(super) fn leaks(&self) -> Result<BTreeSet<(u32, String)>> {
        let mut leaks = BTreeSet::new();
        for program in &self.programs {
            let report = self.daemon.asked.report(i64::from(program.pid()))?;
            let sites = report["sites"].as_array().context("sites is a list")?;
            let leaking = sites.iter().filter(|site| site["verdict"] == "leak");
            leaks.extend(leaking.map(|site| (program.pid(), site["site"].to_string())));
        }
        Ok(leaks)
    }

    /// Nothing that is healthy is called a leak.
    pub(super) fn healthy_ones_are_in_peace(&self) -> Result<()> {
        for (pid, site) in self.leaks()? {
            let exe = fs::read_link(format!("/proc/{pid}/exe"))?;
            ensure!(
                !exe.to_string_lossy().ends_with("-healthy"),
                "{site} of {}, which is healthy, is called a leak",
                exe.display()
            );
        }
        Ok(())
    }

    /// Notes what the daemon has taken at most.
    fn note_memory(&mut self) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse().ok());
        let kilobytes: u64 = peak.context("VmHWM is a number")?;
        self.most_bytes = self.most_bytes.max(kilobytes * 1024);
        Ok(())
    }

    /// An executable that ends by itself when it is told `-for`.
    pub fn short_lived(&self) -> &Path {
        &self.executables[0].0
    }

    /// Waits until every program is traced and counted as it counts itself, and nobody else is in the list; answers how many
    /// goroutines that were.
    ///
    /// # Errors
    /// That does not come about in time.
    pub fn settle(&mut self) -> Result<u64> {
        let end = Instant::now() + PATIENCE;
        if !self.daemon.is_running() {
            // As systemd does.
            self.daemon.restart(None)?;
        }
        loop {
            match self.compare() {
                Ok(counted) => {
                    self.note_memory()?;
                    return Ok(counted);
                }
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn compare(&mut self) -> Result<u64> {
        let listed = self.daemon.asked.json("/api/v1/targets")?;
        let listed = listed["targets"].as_array().context("a list")?;
        let traced: Vec<_> = listed
            .iter()
            .filter(|row| row["status"] == "traced")
            .collect();
        ensure!(
            traced.len() == self.programs.len(),
            "{} programs are traced, and {} run",
            traced.len(),
            self.programs.len()
        );
        let mut counted = 0;
        for program in &mut self.programs {
            let pid = program.pid();
            ensure!(program.is_alive(), "program {pid} was harmed");
            let row = traced.iter().find(|row| row["pid"] == pid);
            let row = row.with_context(|| format!("program {pid} is not traced"))?;
            ensure!(row["up"] == true, "program {pid} is not counted");
            ensure!(row["reason"] == "", "program {pid}: {}", row["reason"]);
            counted += agree(program, &self.daemon)?;
        }
        Ok(counted)
    }

    /// Ends the daemon as systemd does; every program has to go on, with its code as it was.
    ///
    /// # Errors
    /// Something is left behind.
    pub fn end(mut self) -> Result<()> {
        self.healthy_ones_are_in_peace()?;
        let limit = limit_of_the_unit()?;
        ensure!(
            self.most_bytes < limit,
            "it took {} bytes, and its unit lets it have {limit}",
            self.most_bytes
        );
        println!(
            "the daemon took {} MB at most, of the {} MB that its unit lets it have",
            self.most_bytes >> 20,
            limit >> 20
        );
        self.daemon.signal("TERM")?;
        let told = Instant::now();
        while self.daemon.is_running() {
            // The kernel takes off one probe after another.
            ensure!(told.elapsed() < 2 * PATIENCE, "the daemon does not end");
            thread::sleep(Duration::from_millis(20));
        }
        println!(
            "the daemon ended {:.1} s after it was told to",
            told.elapsed().as_secs_f64()
        );
        for program in &mut self.programs {
            program.ask("truth").context("a program was harmed")?;
        }
        let log = fs::read_to_string(&self.log)?;
        ensure!(
            !log.contains("panicked"),
            "the daemon panicked; see {}",
            self.log.display()
        );
        Ok(())
    }
}

/// `MemoryMax` of the systemd unit, in bytes.
fn limit_of_the_unit() -> Result<u64> {
    let unit = fs::read_to_string(repository().join("deploy/systemd/leaktrace.service"))?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("MemoryMax="));
    let gigabytes = line.and_then(|text| text.strip_suffix('G')?.parse::<u64>().ok());
    Ok(gigabytes.context("the unit has no MemoryMax in G")? << 30)
}

/// A fixture in a folder of its own, so that the daemon watches no others that run meanwhile.
pub(super) fn own_copy(name: &str, toolchain: &Toolchain) -> Result<PathBuf> {
    let built = build::build(name, toolchain, Variant::DEFAULT)?;
    let folder = target_dir().join("chaos").join(toolchain.version());
    fs::create_dir_all(&folder)?;
    let copy = folder.join(name);
    // One of an earlier run may still be running: it keeps its file.
    let _ = fs::remove_file(&copy);
    fs::copy(built, &copy)?;
    Ok(copy)
}

/// Compares what a program counts with what the daemon does: equal when it rests, else between before and after.
fn agree(program: &mut Program, daemon: &Daemon) -> Result<u64> {
    let mut seen = String::new();
    for _ in 0..10 {
        let own = |program: &mut Program| -> Result<u64> {
            let truth = program.ask("truth")?;
            truth["goroutines"]
                .as_u64()
                .context("a program counts itself")
        };
        let before = own(program)?;
        let answer = daemon
            .asked
            .json(&format!("/api/v1/targets/{}", program.pid()))?;
        let after = own(program)?;
        let total = answer["report"]["goroutines"]["total"].as_u64();
        let total = total.context("a target that is traced has a report")?;
        let (least, most) = (before.min(after), before.max(after));
        if (least..=most).contains(&total) {
            return Ok(total);
        }
        seen = format!("{total} instead of {least} to {most}");
        // What was counted within the last second answers again.
        thread::sleep(Duration::from_millis(1100));
    }
    bail!("program {} is counted as {seen}", program.pid())
}

/// Marsaglia's xorshift: chance that can be had again.
pub struct Random(u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper half is the better one.
        usize::try_from(self.0 >> 32).unwrap_or(0) % limit.max(1)
    }
}
