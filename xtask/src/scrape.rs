//! `cargo xtask scrape`: a real Prometheus scrapes the daemon for ten minutes, with a program of ten thousand call sites among
//! its targets. No scrape may fail, the number of series stays bounded, and sums stay exact.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::build::{self, Variant};
use leaktrace_fixtures::http::Connection;
use leaktrace_fixtures::program::Program;
use leaktrace_fixtures::target_dir;
use leaktrace_fixtures::toolchain::Toolchain;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::{demo, go, tools};

/// Arguments of `cargo xtask scrape`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long to scrape, once a second
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Go release of the programs
    #[arg(long, default_value = "1.27.3")]
    go: String,
    /// Use this leaktrace instead of building one
    #[arg(long, value_name = "FILE")]
    leaktrace: Option<PathBuf>,
}

/// Lines of the program that start a goroutine each.
const SITES: usize = 10_000;

/// Sites of one target that have a name of their own in metrics (doc/prometheus.md), and the rest together.
const MOST_SITES: f64 = 51.0;

/// Runs it, and prints what came of it.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(demo::is_root()?, "probes need root here: run it as root");
    let leaktrace = match &arguments.leaktrace {
        Some(path) => path.clone(),
        None => demo::build_leaktrace()?,
    };
    let prometheus = tools::prometheus()?;
    let toolchain = go::install(&arguments.go)?;
    let folder = target_dir().join("scrape");
    fs::create_dir_all(&folder)?;
    let mut many = Program::start(&many_sites(&folder, &toolchain)?, &[])?;
    // One that grows, and one whose goroutines come and go.
    let fixture = |name: &str, arguments: &[&str]| {
        Program::start(
            &build::build(name, &toolchain, Variant::DEFAULT)?,
            arguments,
        )
    };
    let growing = fixture("handler-timeout", &["-rate", "2"])?;
    let healthy = fixture("handler-timeout-healthy", &["-rate", "50"])?;

    let log = folder.join("daemon.log");
    let _ = fs::remove_file(&log);
    let mut daemon_arguments = vec!["--interval".to_owned(), "2s".to_owned()];
    for program in [&many, &growing, &healthy] {
        daemon_arguments.extend(["--pid".to_owned(), program.pid().to_string()]);
    }
    let mut daemon = Daemon::start_with_log(&leaktrace, &daemon_arguments, &log)?;
    let own = many.ask("count")?["goroutines"].as_f64();
    let own = own.context("the program counts itself")?;
    lint(&prometheus, &daemon)?;

    let server = Server::start(&prometheus, &daemon.asked.address, &folder)?;
    let minutes = arguments.minutes;
    println!(
        "scraping {} once a second for {minutes} min",
        daemon.asked.address
    );
    let begin = Instant::now();
    for minute in 1..=minutes {
        while begin.elapsed() < Duration::from_secs(60 * minute) {
            thread::sleep(Duration::from_millis(200));
            ensure!(
                daemon.is_running(),
                "the daemon has ended; see {}",
                log.display()
            );
        }
        let scrapes = server.number("sum(count_over_time(up{job=\"leaktrace\"}[1d]))")?;
        let failed = server
            .number("sum(count_over_time((up{job=\"leaktrace\"} == 0)[1d:1s])) or vector(0)")?;
        let series = server.number("max(scrape_samples_scraped{job=\"leaktrace\"})")?;
        println!(
            "minute {minute:>3}: {scrapes} scrapes, {failed} failed, {series} series in the last"
        );
    }
    judge(&server, own, &format!("[{minutes}m:1s]"))?;
    lint(&prometheus, &daemon)?;
    ensure!(
        many.ask("count")?["goroutines"].as_f64() == Some(own),
        "the program did not rest"
    );
    println!("no scrape failed, series are bounded, sums are exact");
    Ok(())
}

fn judge(server: &Server, own: f64, span: &str) -> Result<()> {
    ensure!(
        server.number("min_over_time(up{job=\"leaktrace\"}[1d])")? == 1.0,
        "a scrape failed"
    );
    let error = server.ask("/api/v1/targets")?["data"]["activeTargets"][0]["lastError"].clone();
    ensure!(error == "", "the last scrape failed: {error}");
    let slowest = server.number("max_over_time(scrape_duration_seconds{job=\"leaktrace\"}[1d])")?;
    println!("the slowest scrape took {:.0} ms", slowest * 1000.0);
    // The program rests, so that every scrape has to say the same.
    let sum = "sum(leaktrace_goroutines{target=\"many-sites\"})";
    let least = server.number(&format!("min_over_time(({sum}){span})"))?;
    let most = server.number(&format!("max_over_time(({sum}){span})"))?;
    println!(
        "goroutines of {SITES} call sites: {least} to {most} in every scrape, {own} by the program's own count"
    );
    ensure!(
        least == own && most == own,
        "the sum is not what the program counts"
    );
    for target in ["many-sites", "handler-timeout", "handler-timeout-healthy"] {
        let sites = format!("count(count by (site) ({{target=\"{target}\",site!=\"\"}}))");
        let sites = server.number(&format!("max_over_time(({sites}){span})"))?;
        let series = server.number(&format!(
            "max_over_time((count({{target=\"{target}\"}})){span})"
        ))?;
        println!("{target}: at most {sites} sites with a name, {series} series");
        // Goroutines and timers each have their largest.
        ensure!(sites <= 2.0 * MOST_SITES, "too many sites");
    }
    let other = "sum(leaktrace_goroutines{target=\"many-sites\",site=\"other\"})";
    let folded = server.number(&format!("min_over_time(({other}){span})"))?;
    println!("{folded} of them are in site=\"other\"");
    ensure!(
        folded > own - 2.0 * MOST_SITES,
        "more have a name than should"
    );
    for counter in ["created", "ended"] {
        let name = format!("leaktrace_goroutines_{counter}_total");
        let resets = server.number(&format!("sum(resets({name}[1d]))"))?;
        ensure!(resets == 0.0, "{name} went back {resets} times");
    }
    Ok(())
}

/// promtool has nothing to say against what is served.
fn lint(prometheus: &Path, daemon: &Daemon) -> Result<()> {
    let mut promtool = Command::new(prometheus.with_file_name("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool is beside Prometheus")?;
    let metrics = daemon.asked.page("/metrics")?;
    let mut input = promtool.stdin.take().context("a piped stdin is there")?;
    input.write_all(metrics.as_bytes())?;
    drop(input);
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.success() && said.trim().is_empty(),
        "promtool says: {said}"
    );
    println!(
        "promtool check metrics: clean, {} lines",
        metrics.lines().count()
    );
    Ok(())
}

/// A program with a goroutine at each of many lines.
fn many_sites(folder: &Path, toolchain: &Toolchain) -> Result<PathBuf> {
    use std::fmt::Write as _;
    let mut text = "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"os\"\n\t\"runtime\"\n)\n\nvar never = make(chan int)\n\nfunc main() {\n".to_owned();
    for number in 0..SITES {
        if number % 100 == 0 {
            let _ = writeln!(text, "\tpart{}()", number / 100);
        }
    }
    text.push_str("\tfmt.Println(`{\"ready\": true}`)\n\tlines := bufio.NewScanner(os.Stdin)\n\tfor lines.Scan() {\n\t\tfmt.Printf(\"{\\\"goroutines\\\": %d}\\n\", runtime.NumGoroutine())\n\t}\n}\n\nfunc wait() { <-never }\n");
    for number in 0..SITES {
        if number % 100 == 0 {
            let _ = write!(text, "\nfunc part{}() {{\n", number / 100);
        }
        text.push_str("\tgo wait()\n");
        if number % 100 == 99 {
            text.push_str("}\n");
        }
    }
    let source = folder.join("many-sites.go");
    fs::write(&source, text)?;
    let executable = folder.join("many-sites");
    let mut go = toolchain.go();
    go.args(["build", "-o"]).arg(&executable).arg(&source);
    let output = go.current_dir(folder).output().context("starting go")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(executable)
}

/// Prometheus, scraping a daemon every second. Dropping it kills it.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(prometheus: &Path, daemon: &str, folder: &Path) -> Result<Self> {
        let data = folder.join("prometheus");
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(&data)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let configuration = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: leaktrace\n  static_configs: [{{targets: ['{daemon}']}}]\n"
        );
        fs::write(&configuration, text)?;
        let child = Command::new(prometheus)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("prometheus.log"))?)
            .spawn()
            .context("starting Prometheus")?;
        let server = Self { child, address };
        let end = Instant::now() + Duration::from_secs(60);
        while server
            .ask("/api/v1/query?query=up")
            .ok()
            .is_none_or(|found| found["data"]["result"][0].is_null())
        {
            ensure!(Instant::now() < end, "Prometheus has scraped nothing");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    fn ask(&self, path: &str) -> Result<Value> {
        let answer = Connection::open(&self.address)?.get(path)?;
        ensure!(answer.status == 200, "{path}: {}", answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// The one number that a query finds.
    fn number(&self, query: &str) -> Result<f64> {
        let encoded: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let found = self.ask(&format!("/api/v1/query?query={encoded}"))?;
        let value = found["data"]["result"][0]["value"][1].as_str();
        let value = value.with_context(|| format!("{query} finds nothing"))?;
        Ok(value.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
