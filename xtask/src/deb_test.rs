//! `cargo xtask deb-test`: the Debian package installed, used, upgraded and removed under a real systemd.
//!
//! The machine is a container of systemd-nspawn with a small Debian that debootstrap makes once below `target/`. A Go
//! program runs in it as a service. Takes about half a minute when everything has been built.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::target_dir;

use crate::dist;
use crate::{deb, demo, go};
use machine::Machine;

mod machine;

/// Arguments of `cargo xtask deb-test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Go release of the program that is traced
    #[arg(long, default_value = "1.27.3")]
    go: String,
}

/// Where the daemon listens, unless it is told otherwise.
const PORT: u16 = 9779;

/// How soon a program has to be traced, on a machine that has just booted.
const SOON: Duration = Duration::from_secs(10);

/// Runs all of it, and prints each thing that was seen.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        demo::is_root()?,
        "systemd-nspawn needs root: run it as root"
    );
    let toolchain = go::install(&arguments.go)?;
    let program = build::build("handler-timeout", &toolchain, Variant::STRIPPED)?;
    for revision in ["1", "2"] {
        deb::build(dist::Machine::Amd64, revision)?;
    }
    let packages = dist::folder()?;
    let log = target_dir().join("deb-test.log");
    let machine = Machine::boot(
        &log,
        &[(&packages, "/opt/packages"), (&program, "/opt/leaky")],
    )?;
    println!("booted: {}", machine.run("systemctl --version | head -1")?);
    installed(&machine)?;
    traced(&machine)?;
    reloaded(&machine)?;
    upgraded(&machine)?;
    guarded(&machine)?;
    removed(&machine)
}

/// Installed, it runs, as a user of its own with a handful of capabilities.
fn installed(machine: &Machine) -> Result<()> {
    machine.run(&install("1"))?;
    let pid = main_pid(machine)?;
    let status = machine.run(&format!("cat /proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    // It may have dropped those that this kernel does not ask for.
    let bits = |name: &str| u64::from_str_radix(&field(name), 16).unwrap_or(u64::MAX);
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let too_much = bits(name) & !dist::CAPABILITIES;
        ensure!(too_much == 0, "{name} has {too_much:#x} beyond the list");
    }
    ensure!(bits("CapEff") != 0, "it has no capability");
    let user = field("Uid");
    ensure!(!user.starts_with("0\t"), "it runs as root");
    ensure!(
        field("NoNewPrivs") == "1" && field("Seccomp") == "2",
        "{status}"
    );
    for file in [
        "/usr/share/man/man1/leaktrace.1.gz",
        "/usr/share/bash-completion/completions/leaktrace",
        "/usr/share/doc/leaktrace/copyright",
        "/etc/leaktrace/leaktrace.toml",
    ] {
        machine.run(&format!("test -s {file}"))?;
    }
    let conffile = machine.run("dpkg-query --show --showformat='${Conffiles}' leaktrace")?;
    ensure!(
        conffile.contains("/etc/leaktrace/leaktrace.toml"),
        "{conffile}"
    );
    println!(
        "installed: active as user {}, capabilities {}",
        user.split('\t').next().unwrap_or_default(),
        field("CapEff")
    );
    Ok(())
}

/// A Go program that is started as a service is found, named by its unit, probed and counted.
fn traced(machine: &Machine) -> Result<()> {
    machine.run("systemd-run --quiet --unit=leaky /opt/leaky -burst 20 -rate 20")?;
    let mut metrics = String::new();
    eventually("leaky.service is traced", || {
        metrics = machine.get(PORT, "/metrics").unwrap_or_default();
        sum(
            &metrics,
            "leaktrace_goroutines{",
            &["target=\"leaky.service\"", "state=\"chan send\""],
        ) >= 20.0
            && sum(
                &metrics,
                "leaktrace_goroutines_created_total{",
                &["target=\"leaky.service\"", "main.handle "],
            ) > 0.0
    })
    .with_context(|| {
        machine
            .ask("journalctl --unit leaktrace --no-pager")
            .unwrap_or_default()
    })?;
    eventually("the status line tells", || {
        let status = status(machine);
        status.starts_with("watching ") && !status.starts_with("watching 0 ")
    })?;
    println!("traced: leaky.service; status: {}", status(machine));
    Ok(())
}

/// A new configuration is read without a restart; a wrong one is refused.
fn reloaded(machine: &Machine) -> Result<()> {
    let pid = main_pid(machine)?;
    machine.run(
        "printf '\\n# ours\\n' >> /etc/leaktrace/leaktrace.toml && systemctl reload leaktrace",
    )?;
    eventually("it was read again", || {
        let log = machine
            .ask("journalctl --unit leaktrace --no-pager")
            .unwrap_or_default();
        log.contains("the configuration was read again")
    })?;
    ensure!(main_pid(machine)? == pid, "it was restarted");
    println!("reloaded: the same process");
    Ok(())
}

/// The next package restarts it, and leaves the configuration alone.
fn upgraded(machine: &Machine) -> Result<()> {
    let before = main_pid(machine)?;
    machine.run(&install("2"))?;
    let after = main_pid(machine)?;
    ensure!(before != after, "the old one still runs");
    machine.run("tail -1 /etc/leaktrace/leaktrace.toml | grep -qx '# ours'")?;
    let version = machine.run("dpkg-query --show --showformat='${Version}' leaktrace")?;
    ensure!(version.ends_with("-2"), "{version}");
    eventually("leaky.service is traced again", || {
        let metrics = machine.get(PORT, "/metrics").unwrap_or_default();
        sum(
            &metrics,
            "leaktrace_target_up{",
            &["target=\"leaky.service\""],
        ) == 1.0
    })?;
    println!("upgraded: to {version}, restarted, the configuration kept");
    Ok(())
}

/// A daemon that hangs is ended by the watchdog and started anew.
fn guarded(machine: &Machine) -> Result<()> {
    machine.run(
        "mkdir -p /etc/systemd/system/leaktrace.service.d && \
         printf '[Service]\\nWatchdogSec=2s\\nTimeoutAbortSec=1s\\nRestartSec=100ms\\n' \
         > /etc/systemd/system/leaktrace.service.d/quick.conf && \
         systemctl daemon-reload && systemctl restart leaktrace",
    )?;
    let before = main_pid(machine)?;
    machine.run(&format!("kill -STOP {before}"))?;
    eventually("the watchdog has it started anew", || {
        let pid = main_pid(machine);
        pid.is_ok_and(|pid| pid != before)
    })?;
    let log = machine.run("journalctl --unit leaktrace --no-pager")?;
    ensure!(log.contains("Watchdog timeout"), "{log}");
    println!("guarded: a stopped daemon was started anew by the watchdog");
    Ok(())
}

/// Removed, nothing of it runs, and the program goes on; purged, nothing is left.
fn removed(machine: &Machine) -> Result<()> {
    let leaky = machine.run("systemctl show --property MainPID --value leaky")?;
    machine.run("dpkg --remove leaktrace")?;
    let active = machine.ask("systemctl is-active leaktrace")?;
    ensure!(active != "active", "it still runs");
    machine.run("test ! -e /usr/bin/leaktrace && test -e /etc/leaktrace/leaktrace.toml")?;
    machine.run("dpkg --purge leaktrace")?;
    machine.run("test ! -e /etc/leaktrace/leaktrace.toml")?;
    let left = machine.ask("pgrep -x leaktrace; find / -xdev -name '*leaktrace*' -not -path '/proc/*' -not -path '/opt/*' -not -path '/etc/systemd/system/leaktrace.service.d*' -not -path '/var/log/*'")?;
    ensure!(left.is_empty(), "this is left: {left}");
    let still = machine.run("systemctl show --property MainPID --value leaky")?;
    ensure!(leaky == still && leaky != "0", "the program was disturbed");
    println!("removed and purged: nothing is left, and the traced program runs on");
    Ok(())
}

fn install(revision: &str) -> String {
    let version = dist::version();
    format!("dpkg --install /opt/packages/leaktrace_{version}-{revision}_amd64.deb")
}

fn main_pid(machine: &Machine) -> Result<u32> {
    let state = machine.ask("systemctl is-active leaktrace")?;
    if state != "active" {
        let log = machine
            .ask("systemctl status --no-pager leaktrace; journalctl --unit leaktrace --no-pager")?;
        anyhow::bail!("leaktrace.service is {state}: {log}");
    }
    let pid = machine.run("systemctl show --property MainPID --value leaktrace")?;
    pid.parse().with_context(|| format!("{pid:?} is no pid"))
}

fn status(machine: &Machine) -> String {
    let line = machine.ask("systemctl show --property StatusText --value leaktrace");
    line.unwrap_or_default()
}

/// The sum of all series whose line begins so and holds all these.
fn sum(metrics: &str, begin: &str, parts: &[&str]) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(begin));
    let ours = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
    let values = ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !condition() {
        ensure!(begin.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
