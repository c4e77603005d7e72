//! `cargo xtask manifests`: the Kubernetes manifests and the Helm chart of deploy/, held against the schemas of many
//! Kubernetes releases, against checkov's rules and by Helm's own lint.
//!
//! The checkers are PyPI's, installed below `target/`; none of them asks anybody anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::{repository, target_dir};
use serde_json::Value;

use crate::dist;
use crate::tools;

/// Arguments of `cargo xtask manifests`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Without checkov, which is large: 300 MB
    #[arg(long)]
    quick: bool,
}

/// Kubernetes releases whose schemas are asked: the oldest and the newest that the package has, and two between.
const RELEASES: [&str; 4] = ["1.25", "1.29", "1.33", "1.37"];

/// Packages of PyPI, each with what it needs: a folder of its own for each.
const KUBERNETES_VALIDATE: &str = "kubernetes-validate==1.37.0";
const CHECKOV: &str = "checkov==3.3.30";
/// Helm 4 itself, as a library.
const HELM: &str = "helm-sdkpy==0.1.32";

/// What checkov asks for and is not done, with the reason.
const NOT_DONE: [(&str, &str); 6] = [
    (
        "CKV_K8S_17",
        "processes are named by their numbers in the host's pid namespace",
    ),
    (
        "CKV_K8S_20",
        "no_new_privs would take the file's capabilities away",
    ),
    ("CKV_K8S_25", "the capabilities are what it is there for"),
    (
        "CKV_K8S_39",
        "kernels from July 2025 that are older than 6.10 ask for CAP_SYS_ADMIN where a uprobe is put on",
    ),
    (
        "CKV_K8S_15",
        "the image is brought to the nodes, there may be no registry",
    ),
    ("CKV_K8S_43", "nor a digest that is known beforehand"),
];

/// Helm's lint with the chart's own values and with all that is optional. Messages of severity 1 are advice: the
/// chart has no icon.
const LINT: &str = "
import asyncio, json, sys
from helm_sdkpy.actions import Configuration
from helm_sdkpy.chart import Lint
found = asyncio.run(Lint(Configuration()).run(sys.argv[1]))
bad = [m for m in found.get('Messages') or [] if m['Severity'] > 1]
print(json.dumps({'linted': found['TotalChartsLinted'], 'bad': bad, 'errors': found.get('Errors')}))
";

/// Checks everything; an error says what is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    let deploy = repository().join("deploy");
    versions(&deploy)?;
    let manifests: Vec<PathBuf> = {
        let entries = fs::read_dir(deploy.join("kubernetes"))?;
        let paths: Result<Vec<_>, _> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect();
        paths?
    };
    schemas(&manifests)?;
    println!(
        "kubernetes-validate: {} files, Kubernetes {}",
        manifests.len(),
        RELEASES.join(", ")
    );
    lint(&deploy.join("helm/leaktrace"))?;
    println!("helm lint: as it is, and with all options on");
    if !arguments.quick {
        let passed = checkov(&deploy.join("kubernetes"))?;
        println!("checkov: {passed} checks passed; not done:");
        for (check, reason) in NOT_DONE {
            println!("  {check}: {reason}");
        }
    }
    Ok(())
}

/// All of them name the version that is built.
fn versions(deploy: &Path) -> Result<()> {
    let version = dist::version();
    for (file, line) in [
        (
            "kubernetes/leaktrace.yaml",
            format!("image: {}:{version}", dist::IMAGE),
        ),
        ("helm/leaktrace/Chart.yaml", format!("version: {version}")),
        (
            "helm/leaktrace/Chart.yaml",
            format!("appVersion: {version}"),
        ),
    ] {
        let text = fs::read_to_string(deploy.join(file))?;
        let found = text.lines().any(|found| found.trim() == line);
        ensure!(found, "{file} has no line {line:?}");
    }
    Ok(())
}

/// Holds each manifest against the schemas; unknown fields are mistakes.
fn schemas(manifests: &[PathBuf]) -> Result<()> {
    let library = python(KUBERNETES_VALIDATE, &[])?;
    for release in RELEASES {
        let mut validate = Command::new("python3");
        validate
            .env("PYTHONPATH", &library)
            .args(["-m", "kubernetes_validate", "--strict"])
            .args(["--kubernetes-version", release])
            .args(manifests)
            .stdin(Stdio::null());
        let output = validate.output().context("starting python3")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(
            output.status.success(),
            "Kubernetes {release}: {}",
            said.trim()
        );
    }
    Ok(())
}

/// Helm's lint: it renders every template.
fn lint(chart: &Path) -> Result<()> {
    let library = helm()?;
    let lint = |chart: &Path| -> Result<Value> {
        let mut helm = Command::new("python3");
        let helm = helm
            .env("PYTHONPATH", &library)
            .args(["-c", LINT])
            .arg(chart);
        let output = helm
            .stdin(Stdio::null())
            .output()
            .context("starting python3")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm lint: {}", said.trim());
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let sound = |found: &Value| {
        found["linted"] == 1
            && found["bad"].as_array().is_some_and(Vec::is_empty)
            && (found["errors"].is_null() || found["errors"].as_array().is_some_and(Vec::is_empty))
    };
    let found = lint(chart)?;
    ensure!(sound(&found), "helm lint: {found}");

    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("leaktrace");
    tools::silently(Command::new("cp").arg("-r").arg(chart).arg(&copy))?;
    let values = copy.join("values.yaml");
    let text = fs::read_to_string(&values)?;
    let changed = text.replace("enabled: false", "enabled: true");
    let changed = changed.replace(
        "priorityClassName: \"\"",
        "priorityClassName: system-node-critical",
    );
    let changed = changed.replace("imagePullSecrets: []", "imagePullSecrets: [{name: one}]");
    ensure!(
        changed.matches("enabled: true").count() == 3,
        "the options have other names"
    );
    fs::write(&values, changed)?;
    let found = lint(&copy)?;
    ensure!(sound(&found), "helm lint with all options on: {found}");

    // It would have noticed a mistake.
    let template = copy.join("templates/service.yaml");
    let text = fs::read_to_string(&template)?;
    fs::write(
        &template,
        text.replace("spec:", "spec: {{ .Values.none.there }}"),
    )?;
    ensure!(
        !sound(&lint(&copy)?),
        "helm lint finds no mistake in a chart that has one"
    );
    Ok(())
}

/// Where Helm's library is, for Python's path.
pub fn helm() -> Result<PathBuf> {
    python(HELM, &["--no-deps", "--ignore-requires-python"])
}

/// checkov's rules but those of [`NOT_DONE`]; answers how many passed.
fn checkov(manifests: &Path) -> Result<u64> {
    // It wants other versions of what others want too: an environment of its own.
    let home = target_dir().join("python").join(CHECKOV);
    let program = home.join("bin/checkov");
    if !program.is_file() {
        eprintln!("installing {CHECKOV} (once)");
        tools::silently(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        let mut pip = Command::new(home.join("bin/pip"));
        tools::silently(pip.args(["install", "--quiet", CHECKOV]))?;
    }
    let skipped: Vec<_> = NOT_DONE.iter().map(|(check, _)| *check).collect();
    let mut command = Command::new(program);
    command
        // Without asking its maker for texts.
        .args([
            "--skip-download",
            "--framework",
            "kubernetes",
            "--compact",
            "--output",
            "json",
        ])
        .args(["--skip-check", &skipped.join(",")])
        .arg("--directory")
        .arg(manifests)
        .stdin(Stdio::null());
    let output = command.output().context("starting checkov")?;
    let found: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("checkov: {}", said.trim())
    })?;
    let failed = &found["results"]["failed_checks"];
    let failed: Vec<_> = failed
        .as_array()
        .into_iter()
        .flatten()
        .map(|check| format!("{} {}", check["check_id"], check["check_name"]))
        .collect();
    ensure!(
        output.status.success() && failed.is_empty(),
        "checkov: {}",
        failed.join("; ")
    );
    let passed = found["summary"]["passed"].as_u64().unwrap_or(0);
    ensure!(
        passed > 50,
        "checkov looked at nothing: {}",
        found["summary"]
    );
    Ok(passed)
}

/// A package of PyPI in a folder of its own; answers which.
fn python(package: &str, options: &[&str]) -> Result<PathBuf> {
    let place = target_dir().join("python").join(package);
    if place.is_dir() {
        return Ok(place);
    }
    eprintln!("installing {package} (once)");
    let unfinished = target_dir()
        .join("python")
        .join(format!("{package}.unfinished"));
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "install",
    ])
    .args(options)
    .arg("--target")
    .arg(&unfinished)
    .arg(package);
    tools::silently(&mut pip)?;
    fs::rename(&unfinished, &place)?;
    Ok(place)
}
