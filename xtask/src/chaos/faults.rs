//! What goes wrong.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::program::Program;

use super::world::{RELEASES, World, own_copy};
use crate::go;

/// A kind of fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The daemon is killed, and started again.
    DaemonKilled,
    /// Some programs are killed, and others started.
    ProgramsKilled,
    /// The daemon may have no more memory than it has.
    MemoryLimit,
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
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DaemonKilled,
        Self::ProgramsKilled,
        Self::MemoryLimit,
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
        }
    }

    /// The next piece of memory that it asks for is not given, and it aborts, as in a container that is full.
    fn memory_limit(&mut self) -> Result<String> {
        let pid = self.daemon.pid().to_string();
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: u64 = statm
            .split(' ')
            .next()
            .context("statm has numbers")?
            .parse()?;
        let limit = format!("--as={}", pages * 4096);
        let status = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        ensure!(
            status.context("starting prlimit")?.success(),
            "there is no limit of memory"
        );
        // Files that it has not seen need memory.
        let mut news = Vec::new();
        for release in RELEASES {
            let executable = own_copy("timers-mixed", &go::install(release)?)?;
            news.push(Program::start(&executable, &[])?);
        }
        let end = Instant::now() + Duration::from_secs(3);
        while self.daemon.is_running() && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
        }
        if self.daemon.is_running() {
            self.daemon.restart(None)?;
            return Ok("no more memory: the daemon did with what it had".to_owned());
        }
        Ok("no more memory: the daemon ended, and is started again".to_owned())
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
