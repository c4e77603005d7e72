//! What goes wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::program::Program;

use super::world::{World, own_copy};
use crate::go;

/// A kind of fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The daemon is killed, and started again.
    DaemonKilled,
    /// Some programs are killed, and others started.
    ProgramsKilled,
    /// The daemon may have no more memory than it has: what it asks for is refused.
    MemoryLimit,
    /// The same in a control group: the kernel kills it.
    OutOfMemory,
    /// The disk of its log is full.
    DiskFull,
    /// It sleeps while a storm fills the ring.
    RingOverflow,
    /// Five hundred programs come and go.
    ShortLived,
    /// A program forges its own lists.
    Hostile,
    /// The daemon is killed amid new programs.
    KilledAmidChurn,
    /// The time of day jumps ahead by an hour, and back.
    ClockStepped,
}

impl Fault {
    /// All that concern nobody else on this machine.
    pub const ALL: [Self; 9] = [
        Self::DaemonKilled,
        Self::ProgramsKilled,
        Self::MemoryLimit,
        Self::OutOfMemory,
        Self::DiskFull,
        Self::RingOverflow,
        Self::ShortLived,
        Self::Hostile,
        Self::KilledAmidChurn,
    ];
}

impl World {
    /// Makes it happen; answers what was done.
    ///
    /// # Errors
    /// It could not be done, or the daemon did not notice what it should have.
    pub fn strike(&mut self, fault: Fault) -> Result<String> {
        match fault {
            Fault::DaemonKilled => {
                self.daemon.restart(None)?;
                Ok("daemon killed and started again".to_owned())
            }
            Fault::ProgramsKilled => {
                let number = 1 + self.random.below(8);
                for _ in 0..number {
                    self.kill_one();
                }
                for _ in 0..number {
                    self.start_one()?;
                }
                Ok(format!("{number} programs killed, as many started"))
            }
            Fault::MemoryLimit => self.memory_limit(),
            Fault::OutOfMemory => self.out_of_memory(),
            Fault::DiskFull => {
                self.daemon.restart(Some(Path::new("/dev/full")))?;
                self.kill_one();
                self.start_one()?;
                let counted = self.settle()?;
                ensure!(self.daemon.is_running(), "a full disk ended the daemon");
                self.daemon.restart(None)?;
                Ok(format!(
                    "log on a full disk, {counted} goroutines counted meanwhile"
                ))
            }
            Fault::RingOverflow => self.ring_overflow(),
            Fault::ShortLived => self.short_lived_ones(),
            Fault::Hostile => self.hostile(),
            Fault::KilledAmidChurn => {
                for _ in 0..5 {
                    self.kill_one();
                }
                for number in 0..5 {
                    self.start_one()?;
                    if number == 2 {
                        self.daemon.restart(None)?;
                    }
                }
                Ok("daemon killed while 5 programs came".to_owned())
            }
            Fault::ClockStepped => self.clock_stepped(),
        }
    }

    /// Ages and rates may not jump with it, nor a verdict come or go: they are of the clock that nobody can set.
    fn clock_stepped(&mut self) -> Result<String> {
        // A daemon that has just started has no verdicts yet.
        let deadline = Instant::now() + Duration::from_secs(90);
        let mut leaks = self.leaks()?;
        while leaks.is_empty() {
            ensure!(Instant::now() < deadline, "nothing is called a leak");
            thread::sleep(Duration::from_millis(500));
            leaks = self.leaks()?;
        }
        let oldest = |world: &Self| -> Result<f64> {
            let mut oldest = 0.0_f64;
            for program in &world.programs {
                let report = world.daemon.asked.report(i64::from(program.pid()))?;
                let sites = report["sites"].as_array().context("sites is a list")?;
                let ages = (sites.iter()).filter_map(|site| site["oldest_seconds"].as_f64());
                oldest = ages.fold(oldest, f64::max);
            }
            Ok(oldest)
        };
        let before = oldest(self)?;
        let begin = Instant::now();
        let ahead = Step::ahead(Duration::from_secs(3600))?;
        self.kill_one();
        self.start_one()?;
        let counted = self.settle();
        let during = oldest(self);
        drop(ahead);
        let (counted, during) = (counted?, during?);
        self.settle()?;
        let after = oldest(self)?;
        let alive: BTreeSet<_> = self.programs.iter().map(|program| program.pid()).collect();
        let still = self.leaks()?;
        let lost = leaks.difference(&still);
        let lost: Vec<_> = lost.filter(|(pid, _)| alive.contains(pid)).collect();
        ensure!(lost.is_empty(), "no leaks any more: {lost:?}");
        self.healthy_ones_are_in_peace()?;
        let passed = begin.elapsed().as_secs_f64();
        for age in [during, after] {
            ensure!(
                age > 0.0 && age < before + passed + 5.0,
                "an age of {before:.0} s became {age:.0} s within {passed:.0} s"
            );
        }
        Ok(format!(
            "the time of day an hour ahead and back, {counted} goroutines counted meanwhile, {} leaks stayed what they are",
            leaks.len()
        ))
    }

    fn ring_overflow(&mut self) -> Result<String> {
        let lost = "leaktrace_events_lost_total";
        let toolchain = go::install("1.27.3")?;
        let storm = own_copy("spawn-storm", &toolchain)?;
        let storm = Program::start(&storm, &["-report", "1h"])?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self
            .daemon
            .asked
            .page("/metrics")?
            .contains(&format!("pid=\"{}\"", storm.pid()))
        {
            ensure!(Instant::now() < deadline, "the storm is not traced");
            thread::sleep(Duration::from_millis(50));
        }
        let before = self.daemon.asked.sum(lost)?;
        self.daemon.signal("STOP")?;
        thread::sleep(Duration::from_secs(5));
        self.daemon.signal("CONT")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut after = before;
        while after <= before {
            ensure!(Instant::now() < deadline, "nothing is said to be lost");
            thread::sleep(Duration::from_millis(100));
            after = self.daemon.asked.sum(lost)?;
        }
        drop(storm);
        Ok(format!(
            "ring overrun, {:.0} events lost and said so",
            after - before
        ))
    }

    fn short_lived_ones(&mut self) -> Result<String> {
        const ALL: usize = 500;
        for _ in 0..ALL / 20 {
            let batch: Result<Vec<Child>> = (0..20)
                .map(|_| {
                    let mut command = Command::new(self.short_lived());
                    command
                        .args(["-for", "10ms"])
                        .stdin(Stdio::null())
                        .stdout(Stdio::null());
                    command.spawn().context("starting a program")
                })
                .collect();
            for mut child in batch? {
                child.wait()?;
            }
        }
        Ok(format!("{ALL} programs came and went"))
    }

    fn hostile(&mut self) -> Result<String> {
        let toolchain = go::install("1.22.10")?;
        let forger = own_copy("forger", &toolchain)?;
        let forge = ["length", "pointer", "goroutines"][self.random.below(3)];
        let forger = Program::start(&forger, &["-forge", forge])?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let listed = self.daemon.asked.json("/api/v1/targets")?;
            let rows = listed["targets"].as_array().context("a list")?;
            let row = rows.iter().find(|row| row["pid"] == forger.pid());
            if let Some(row) = row
                && row["status"] != "waiting"
            {
                return Ok(format!(
                    "a program forged its {forge}, and is {}",
                    row["status"].as_str().unwrap_or("")
                ));
            }
            ensure!(
                Instant::now() < deadline,
                "a hostile program is not decided upon"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The time of day of this machine, ahead until this is dropped.
struct Step(Duration);

impl Step {
    fn ahead(by: Duration) -> Result<Self> {
        set_time_of_day(SystemTime::now() + by)?;
        Ok(Self(by))
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Err(error) = set_time_of_day(SystemTime::now() - self.0) {
            eprintln!("the time of day is {} s ahead: {error:#}", self.0.as_secs());
        }
    }
}

fn set_time_of_day(to: SystemTime) -> Result<()> {
    let seconds = to.duration_since(UNIX_EPOCH)?.as_secs_f64();
    let status = Command::new("date")
        .arg(format!("--set=@{seconds:.3}"))
        .stdout(Stdio::null())
        .status();
    ensure!(
        status.context("starting date")?.success(),
        "the time of day cannot be set here"
    );
    Ok(())
}
