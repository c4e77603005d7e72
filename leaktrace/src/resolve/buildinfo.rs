//! What the Go linker wrote about the build: release, module, version control.
//!
//! From `.go.buildinfo` in the inline format of Go ≥ 1.18 (src/debug/buildinfo/buildinfo.go), which survives
//! `strip`; where the section table is gone the same bytes are searched in the writable segments, and where
//! they are gone too the release alone is read from `runtime.buildVersion`, by its symbol or by the code that reads it.

use std::fmt;

use super::Refusal;
use super::elf::{Elf, word_at};
use super::release;
use crate::address::VirtAddr;

/// First bytes of the record; it lies on a multiple of 16.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Bytes of the record before the inline strings.
const HEADER_BYTES: u64 = 32;
/// Longest strings that are believed: a list of modules with 10,000 entries is a megabyte.
const MAX_VERSION_BYTES: u64 = 1024;
const MAX_MODULES_BYTES: u64 = 4 << 20;
/// Longest line of that list that is taken: paths, versions and revisions are far shorter.
const MAX_LINE_BYTES: usize = 1024;
/// The linker frames the module list with 16 arbitrary bytes on either side (src/cmd/go/internal/modload/build.go).
const FRAME_BYTES: usize = 16;

/// What is known about a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// The release that compiled it.
    pub go: GoVersion,
    /// Import path of package main; "" when unknown.
    pub path: String,
    /// Path of the main module; "" when unknown.
    pub module: String,
    /// Version of the main module, often `(devel)`; "" when unknown.
    pub module_version: String,
    /// Revision in version control; "" when unknown.
    pub vcs_revision: String,
    /// Was cgo enabled? `None` when unknown.
    pub cgo: Option<bool>,
    /// `-buildmode`, such as `exe` or `pie`; "" when unknown.
    pub build_mode: String,
    /// Architecture by Go's name; "" when unknown.
    pub goarch: String,
}

/// A Go release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoVersion {
    /// 1.
    pub major: u32,
    /// 22 in go1.22.10.
    pub minor: u32,
    /// 10 in go1.22.10.
    pub patch: u32,
    /// A beta, a release candidate or a development build: what it holds may differ from the release.
    pub unreleased: bool,
    /// Experiments that differ from the release's own choice (`X:greenteagc`): some move fields.
    pub experiments: Vec<String>,
    /// All of it as the linker wrote it, vendor's suffix and experiments included.
    pub text: String,
}

impl GoVersion {
    /// Reads `go1.22.10`, `go1.27rc1`, `go1.25.5 X:greenteagc`, `go1.22.2-vendor`, `devel go1.24-8f1e2d3 …`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let development = text.starts_with("devel ");
        let release = text
            .strip_prefix("devel ")
            .unwrap_or(text)
            .strip_prefix("go")?;
        let first_word = release.split_ascii_whitespace().next()?;
        let (major, rest) = number(first_word)?;
        let (minor, rest) = number(rest.strip_prefix('.')?)?;
        let (patch, rest) = match rest.strip_prefix('.') {
            Some(rest) => number(rest)?,
            None => (0, rest),
        };
        // Behind a blank, or from Go 1.26 on behind a dash when the release has none in its name
        // (src/cmd/link/internal/ld/main.go).
        let experiments = text
            .split_once(" X:")
            .or_else(|| text.split_once("-X:"))
            .and_then(|(_, list)| list.split_ascii_whitespace().next())
            .map(|list| list.split(',').map(str::to_owned).collect())
            .unwrap_or_default();
        Some(Self {
            major,
            minor,
            patch,
            unreleased: development || rest.starts_with("rc") || rest.starts_with("beta"),
            experiments,
            text: text.to_owned(),
        })
    }
}

/// The decimal number that `text` starts with, and what follows it.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads the build information of an executable.
///
/// # Errors
/// [`Refusal::NotGo`] when there is none, [`Refusal::GoTooOld`] for the format before Go 1.18, and
/// [`Refusal::UnknownVersion`] when the release cannot be understood.
pub fn read(elf: &Elf<'_>) -> Result<BuildInfo, Refusal> {
    let (version, modules) = match find(elf) {
        Some(record) => strings(elf, record)?,
        None => (build_version(elf).ok_or(Refusal::NotGo)?, String::new()),
    };
    let Some(go) = GoVersion::parse(&version) else {
        return Err(Refusal::UnknownVersion { version });
    };
    let mut info = BuildInfo {
        go,
        ..BuildInfo::default()
    };
    info.read_modules(&modules);
    Ok(info)
}

/// Where the record lies.
fn find(elf: &Elf<'_>) -> Option<VirtAddr> {
    let starts_here = |address: VirtAddr| {
        let start = elf.read(address, HEADER_BYTES);
        start.is_some_and(|bytes| bytes.starts_with(MAGIC))
    };
    let section = elf.section(".go.buildinfo").map(|section| section.address);
    section.filter(|address| starts_here(*address)).or_else(|| {
        elf.search(
            |segment| segment.writable,
            16,
            |bytes| bytes.starts_with(MAGIC),
        )
        .find(|address| starts_here(*address))
    })
}

/// The two strings of the record: release and list of modules (without its frame).
fn strings(elf: &Elf<'_>, record: VirtAddr) -> Result<(String, String), Refusal> {
    const INLINE: u8 = 2;
    let damaged = || Refusal::Damaged {
        what: "its build information",
    };
    let header = elf.read(record, HEADER_BYTES).ok_or_else(damaged)?;
    if header.get(15).is_none_or(|flags| flags & INLINE == 0) {
        // Before 1.18 the record held pointers to Go strings.
        let version = word_at(&header, 16).and_then(|at| go_string(elf, VirtAddr(at)));
        return Err(Refusal::GoTooOld {
            version: version.unwrap_or_else(|| "a release before 1.18".to_owned()),
        });
    }
    let (version, after) =
        inline_string(elf, record.offset(HEADER_BYTES), MAX_VERSION_BYTES).ok_or_else(damaged)?;
    let (modules, _) = inline_string(elf, after, MAX_MODULES_BYTES).ok_or_else(damaged)?;
    let list = modules
        .len()
        .checked_sub(FRAME_BYTES)
        .and_then(|end| modules.get(FRAME_BYTES..end))
        .unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&version), text(list)))
}

/// A string behind its length (a varint), and where the next one starts.
fn inline_string(elf: &Elf<'_>, address: VirtAddr, longest: u64) -> Option<(Vec<u8>, VirtAddr)> {
    let start = elf.read_up_to(address, 10)?;
    let (mut length, mut bytes) = (0_u64, 0_u64);
    for byte in start {
        // Ten groups of seven bits would overflow; a length that large is refused below anyway.
        length |= u64::from(byte & 0x7f).checked_shl(u32::try_from(bytes).ok()? * 7)?;
        bytes += 1;
        if byte & 0x80 == 0 {
            let text = address.offset(bytes);
            if length > longest {
                return None;
            }
            let content = if length == 0 {
                Vec::new()
            } else {
                elf.read(text, length)?
            };
            return Some((content, text.offset(length)));
        }
    }
    None
}

/// The value of `runtime.buildVersion`.
fn build_version(elf: &Elf<'_>) -> Option<String> {
    elf.symbol("runtime.buildVersion")
        .and_then(|(at, _)| go_string(elf, at))
        .or_else(|| release::build_version_by_code(elf))
}

/// The Go string whose header lies at an address.
pub(super) fn go_string(elf: &Elf<'_>, header: VirtAddr) -> Option<String> {
    let start = elf.pointer(header)?;
    let length = elf.pointer(header.offset(8))?;
    let bytes = elf.read(VirtAddr(start), length.min(MAX_VERSION_BYTES))?;
    String::from_utf8(bytes).ok()
}

impl BuildInfo {
    /// Takes what is wanted from the list of modules (src/runtime/debug/mod.go: BuildInfo.String).
    fn read_modules(&mut self, list: &str) {
        for line in list.lines().filter(|line| line.len() <= MAX_LINE_BYTES) {
            let mut columns = line.split('\t');
            match columns.next() {
                Some("path") => self.path = columns.next().unwrap_or_default().to_owned(),
                Some("mod") => {
                    self.module = columns.next().unwrap_or_default().to_owned();
                    self.module_version = columns.next().unwrap_or_default().to_owned();
                }
                Some("build") => {
                    let setting = columns.next().unwrap_or_default();
                    if let Some((key, value)) = setting.split_once('=') {
                        self.set(key, value);
                    }
                }
                _ => {}
            }
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            "-buildmode" => self.build_mode = value.to_owned(),
            "CGO_ENABLED" => self.cgo = Some(value == "1"),
            "GOARCH" => self.goarch = value.to_owned(),
            "vcs.revision" => self.vcs_revision = value.to_owned(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, numbers: (u32, u32, u32), unreleased: bool, experiments: &[&str]) {
        let version = GoVersion::parse(text).unwrap();
        assert_eq!(
            (version.major, version.minor, version.patch),
            numbers,
            "{text}"
        );
        assert_eq!(version.unreleased, unreleased, "{text}");
        assert_eq!(version.experiments, experiments, "{text}");
        assert_eq!(version.to_string(), text);
    }

    #[test]
    fn versions_are_understood() {
        check("go1.22.10", (1, 22, 10), false, &[]);
        check("go1.18", (1, 18, 0), false, &[]);
        check("go1.27rc1", (1, 27, 0), true, &[]);
        check("go1.21beta2", (1, 21, 0), true, &[]);
        check(
            "go1.25.5 X:greenteagc,synctest",
            (1, 25, 5),
            false,
            &["greenteagc", "synctest"],
        );
        check(
            "go1.27.3-X:nogreenteagc",
            (1, 27, 3),
            false,
            &["nogreenteagc"],
        );
        check("go1.22.2-1-vendor", (1, 22, 2), false, &[]);
        check("go1.21.4 (Red Hat 1.21.4-1.el9)", (1, 21, 4), false, &[]);
        check(
            "devel go1.24-8f1e2d3 Tue Jan 7 X:nocoverageredesign",
            (1, 24, 0),
            true,
            &["nocoverageredesign"],
        );
        for nonsense in [
            "",
            "go",
            "go1",
            "go1.",
            "1.22",
            "gox.y",
            "go99999999999.1",
            "devel +abc",
        ] {
            assert_eq!(GoVersion::parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn the_module_list_is_understood() {
        let mut info = BuildInfo::default();
        info.read_modules(
            "path\texample.org/cmd/server\nmod\texample.org\tv1.2.3\th1:abc=\ndep\tother.org\tv0.1.0\t\n\
             build\t-buildmode=pie\nbuild\tCGO_ENABLED=0\nbuild\tGOARCH=arm64\nbuild\tvcs.revision=0123abc\n",
        );
        assert_eq!(info.path, "example.org/cmd/server");
        assert_eq!(
            (info.module.as_str(), info.module_version.as_str()),
            ("example.org", "v1.2.3")
        );
        assert_eq!(info.build_mode, "pie");
        assert_eq!(info.cgo, Some(false));
        assert_eq!(info.goarch, "arm64");
        assert_eq!(info.vcs_revision, "0123abc");
        // A line that is longer than any path is none.
        info.read_modules(&format!("path\t{}\n", "x".repeat(4000)));
        assert_eq!(info.path, "example.org/cmd/server");
    }
}
