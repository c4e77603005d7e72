//! Debian's cloud kernels, fetched by apt into `target/vm`; which patch release is apt's to say.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use leaktrace_fixtures::target_dir;

use crate::tools::silently;

/// A line of kernels, and the suite of Debian that has it.
pub struct Kernel {
    /// Such as "6.1".
    pub release: &'static str,
    suite: &'static str,
    /// Whether on arm64 a page of a program's heap can be away for a moment while the program runs, so that
    /// a probe cannot read it (and counts that). Seen with 7.2 and large folios, never when booted with
    /// transparent_hugepage=never, =madvise, or thp_anon=16K-1M:never. Probes cannot wait for the page, since
    /// they must not sleep, and trying at once again does not help.
    pub moves_pages: bool,
}

/// The kernels that are tried, oldest first.
pub const KERNELS: [Kernel; 4] = [
    Kernel {
        release: "5.10",
        suite: "bullseye",
        moves_pages: false,
    },
    Kernel {
        release: "6.1",
        suite: "bookworm",
        moves_pages: false,
    },
    Kernel {
        release: "6.12",
        suite: "trixie",
        moves_pages: false,
    },
    Kernel {
        release: "7.2",
        suite: "forky",
        moves_pages: true,
    },
];

/// A machine, by Debian's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        })
    }
}

/// A kernel that can be booted.
pub struct Image {
    /// The compressed kernel.
    pub path: PathBuf,
    /// What it calls itself, such as "6.1.0-50-cloud-amd64".
    pub release: String,
}

/// Debian's newest kernel of this line, fetched if it was not before.
///
/// # Errors
/// When this is no Debian, apt finds nothing, or what it found is another line of kernels.
pub fn fetch(arch: Arch, kernel: &Kernel) -> Result<Image> {
    let folder = target_dir().join(format!("vm/kernel/{}-{arch}", kernel.release));
    if let Some(image) = unpacked(&folder)? {
        return Ok(image);
    }
    let apt = Apt::new(arch, kernel.suite)?;
    eprintln!(
        "fetching Debian's kernel {} for {arch} (once)",
        kernel.release
    );
    // A package of its own names the current kernel; in newer suites that one in turn names the package with the files.
    let mut package = apt.dependency(&format!("linux-image-cloud-{arch}"), "linux-image-")?;
    if let Ok(binary) = apt.dependency(&package, "linux-binary-") {
        package = binary;
    }
    let files = apt.unpack(&package)?;
    let image = match unpacked(&files.path().join("boot"))? {
        Some(image) => image,
        None => among_modules(&files.path().join("usr/lib/modules"))?
            .with_context(|| format!("Debian's package {package} holds no vmlinuz"))?,
    };
    ensure!(
        image.release.starts_with(&format!("{}.", kernel.release)),
        "{} has Linux {} by now, not {}",
        kernel.suite,
        image.release,
        kernel.release
    );
    fs::create_dir_all(&folder)?;
    let unfinished = folder.join("unfinished");
    fs::copy(&image.path, &unfinished)?;
    fs::rename(
        &unfinished,
        folder.join(format!("vmlinuz-{}", image.release)),
    )?;
    unpacked(&folder)?.context("the kernel was just put there")
}

/// A static busybox for this machine, fetched if it was not before.
///
/// # Errors
/// As for [`fetch`].
pub fn busybox(arch: Arch) -> Result<PathBuf> {
    let path = target_dir().join(format!("vm/busybox-{arch}"));
    if !path.is_file() {
        eprintln!("fetching Debian's busybox for {arch} (once)");
        let files = Apt::new(arch, "bookworm")?.unpack("busybox-static")?;
        let unfinished = path.with_extension("unfinished");
        let program = ["bin/busybox", "usr/bin/busybox"]
            .map(|name| files.path().join(name))
            .into_iter()
            .find(|program| program.is_file())
            .context("Debian's package busybox-static holds no busybox")?;
        fs::copy(program, &unfinished)?;
        fs::rename(unfinished, &path)?;
    }
    Ok(path)
}

/// The `vmlinuz-RELEASE` in a folder.
fn unpacked(folder: &Path) -> Result<Option<Image>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(None);
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok(Some(Image {
                release: release.to_owned(),
                path: path.clone(),
            }));
        }
    }
    Ok(None)
}

/// The `RELEASE/vmlinuz` in a folder: newer packages have it so.
fn among_modules(folder: &Path) -> Result<Option<Image>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(None);
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path().join("vmlinuz");
        if path.is_file() {
            return Ok(Some(Image {
                path,
                release: entry.file_name().to_string_lossy().into_owned(),
            }));
        }
    }
    Ok(None)
}

/// apt for another machine and suite, with lists of its own: nothing is installed, no setting of this one is touched.
struct Apt {
    options: Vec<String>,
    folder: PathBuf,
}

impl Apt {
    /// Takes this machine's first source of packages for the wanted suite, and reads its lists.
    fn new(arch: Arch, suite: &str) -> Result<Self> {
        let own = "/etc/apt/sources.list.d/debian.sources";
        let sources = fs::read_to_string(own)
            .with_context(|| format!("{own}: kernels can only be fetched on Debian 12 or later"))?;
        let folder = target_dir().join(format!("vm/apt/{suite}-{arch}"));
        for inside in ["sources", "lists/partial", "cache/archives/partial"] {
            let path = folder.join(inside);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        fs::write(
            folder.join("sources/one.sources"),
            stanza(&sources, suite, arch),
        )?;
        let at = |name: &str| folder.join(name).display().to_string();
        let options = [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={}", at("sources")),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("APT::Architecture={arch}"),
            format!("APT::Architectures::={arch}"),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        let apt = Self {
            options: options
                .into_iter()
                .flat_map(|option| ["-o".to_owned(), option])
                .collect(),
            folder,
        };
        silently(apt.command("apt-get").args(["--quiet", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).current_dir(&self.folder);
        command
    }

    /// The package that `package` depends on, among those whose names begin so.
    fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let output = self
            .command("apt-cache")
            .args(["show", "--no-all-versions", package])
            .output()
            .context("starting apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .filter_map(|line| line.strip_prefix("Depends: "))
            .flat_map(|names| names.split([',', '|']))
            .filter_map(|name| name.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("Debian's package {package} needs no {prefix}…"))
    }

    /// Downloads a package and unpacks it into a folder that is gone when dropped.
    fn unpack(&self, package: &str) -> Result<tempfile::TempDir> {
        let scratch = tempfile::tempdir_in(&self.folder)?;
        silently(
            self.command("apt-get")
                .current_dir(scratch.path())
                .args(["--quiet", "download", package]),
        )?;
        let Some(archive) = fs::read_dir(scratch.path())?.next() else {
            bail!("apt-get downloaded nothing for {package}");
        };
        let files = tempfile::tempdir_in(&self.folder)?;
        silently(
            Command::new("dpkg")
                .arg("-x")
                .arg(archive?.path())
                .arg(files.path()),
        )?;
        Ok(files)
    }
}

/// The first stanza of a file of sources, for another suite and machine.
fn stanza(sources: &str, suite: &str, arch: Arch) -> String {
    let mut text = String::new();
    let stanza = sources.lines().skip_while(|line| line.trim().is_empty());
    for line in stanza.take_while(|line| !line.trim().is_empty()) {
        if line.starts_with("Suites:") {
            text.push_str(&format!("Suites: {suite}\nArchitectures: {arch}\n"));
        } else if !line.starts_with("Architectures:") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_source_is_taken_for_another_suite() {
        let own = "Types: deb\nURIs: a-place\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                   Types: deb\nURIs: a-place\nSuites: bookworm-security\n";
        assert_eq!(
            stanza(own, "forky", Arch::Arm64),
            "Types: deb\nURIs: a-place\nSuites: forky\nArchitectures: arm64\nComponents: main\n"
        );
    }
}
