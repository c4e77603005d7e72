//! Holds the dashboards against Grafana's own types: npm's @grafana/schema by the TypeScript compiler, which refuses what is
//! missing or unknown, and PyPI's grafana-foundation-sdk by reading them and writing them again. No Grafana is needed.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use leaktrace_fixtures::{repository, target_dir};

use crate::tools;

/// npm's packages and their versions.
const NPM: [&str; 2] = ["@grafana/schema@13.2.3", "typescript@5.9.3"];

/// PyPI's, for Grafana 11.6: of its releases the newest that this was published for.
const PYPI: &str = "grafana-foundation-sdk==1769699379!11.6.0";

/// Checks these dashboards; an error when Grafana's types do not have what is in one.
pub fn check(dashboards: &[PathBuf]) -> Result<()> {
    let modules = tools::npm_modules("grafana", &NPM)?;
    let mut compile = Command::new("node");
    compile
        .arg(modules.join("node_modules/typescript/bin/tsc"))
        .args(["--noEmit", "--strict", "--skipLibCheck"])
        .args(["--module", "nodenext", "--target", "es2022"])
        .current_dir(&modules);
    for path in dashboards {
        let text = fs::read_to_string(path)?;
        let name = path.file_stem().context("a dashboard has a name")?;
        let source = modules.join(name).with_extension("ts");
        fs::write(
            &source,
            format!(
                "import type {{ Dashboard }} from '@grafana/schema';\n\
                 const dashboard: Dashboard = {text};\nvoid dashboard;\n"
            ),
        )?;
        compile.arg(source);
    }
    judge("@grafana/schema", &mut compile)?;

    let packages = tools::pip_packages("grafana", PYPI)?;
    let mut read = Command::new("python3");
    read.arg(repository().join("xtask/src/dashboards/typed.py"))
        .arg(packages)
        .args(dashboards)
        .current_dir(target_dir());
    judge("grafana-foundation-sdk", &mut read)
}

/// Runs a check, which prints what it found.
fn judge(what: &str, command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting the check with {what}"))?;
    ensure!(status.success(), "{what} finds the faults above");
    println!("{what}: nothing is missing or unknown");
    Ok(())
}
