//! The report as a gzip-compressed profile.proto, which `go tool pprof` opens.
//!
//! Two sample types, goroutine/count and timer/count. A goroutine's sample is where it is stuck, a timer's where it was
//! armed. The messages mirror github.com/google/pprof/proto/profile.proto; only the fields that are used are here.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use prost::Message;

use super::Report;
use super::report::SiteReport;
use crate::ledger::CallSite;

/// A profile.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    /// What the values of a sample mean.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The samples.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// What is mapped into the process.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// The places that samples refer to.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// The functions that locations refer to.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// All strings; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// The sample type that is shown first: index of its name.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// Name and unit of a value, as indexes into the strings.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ValueType {
    /// Name.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// Unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// One stack with its values.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Sample {
    /// Where, innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One for each sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What else is known.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A fact about a sample; the strings by index.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Label {
    /// Name.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Value, when it is text.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// Value, when it is a number.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// Unit of the number.
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// A mapped file. Says that nothing is left to symbolise.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mapping {
    /// Number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Path.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// Build id.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Functions are known.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Files are known.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Lines are known.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Inlined calls are expanded.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// A place in the program.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Location {
    /// Number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Number of its mapping.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// Its lines, innermost first.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Line {
    /// Number of the function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// The line.
    #[prost(int64, tag = "2")]
    pub line: i64,
}

/// A function; the strings by index.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Function {
    /// Number, from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Name as the linker has it.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Path of its file.
    #[prost(int64, tag = "4")]
    pub filename: i64,
}

/// Renders the goroutines and timers of `report`.
///
/// # Errors
/// Only if the compressor fails, which writes to memory.
pub fn render(report: &Report) -> io::Result<Vec<u8>> {
    render_with(report, "goroutine")
}

/// The same with `goroutine` or `timer` as the sample type that is shown first.
///
/// # Errors
/// As [`render`].
pub fn render_with(report: &Report, first: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&profile(report, first).encode_to_vec())?;
    encoder.finish()
}

/// Reads a profile, compressed or not.
///
/// # Errors
/// When it is none, or unpacks to more than 1 GiB.
pub fn parse(bytes: &[u8]) -> io::Result<Profile> {
    const MOST_BYTES: u64 = 1 << 30;
    let mut unpacked = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(bytes)
            .take(MOST_BYTES)
            .read_to_end(&mut unpacked)?;
    } else {
        unpacked.extend_from_slice(bytes);
    }
    Profile::decode(unpacked.as_slice()).map_err(io::Error::other)
}

fn profile(report: &Report, first: &str) -> Profile {
    let mut builder = Builder::default();
    // The first string is the empty one.
    builder.string("");
    let count = builder.string("count");
    for name in ["goroutine", "timer"] {
        let r#type = builder.string(name);
        let value = ValueType {
            r#type,
            unit: count,
        };
        builder.profile.sample_type.push(value);
    }
    builder.profile.default_sample_type = builder.string(first);
    let mapping = Mapping {
        id: 1,
        filename: builder.string(&report.target.exe),
        build_id: builder.string(&report.target.build_id),
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
    };
    builder.profile.mapping.push(mapping);
    for site in &report.sites {
        builder.site(site);
    }
    builder.profile
}

#[derive(Default)]
struct Builder {
    profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<(u64, u32), u64>,
}

impl Builder {
    fn site(&mut self, site: &SiteReport) {
        if site.timer_kind.is_some() {
            if site.count > 0 {
                let labels = self.labels(site, None);
                let at = CallSite {
                    function: site.function.clone(),
                    file: site.file.clone(),
                    line: site.line,
                };
                let frames = if site.creation_stack.is_empty() {
                    std::slice::from_ref(&at)
                } else {
                    &site.creation_stack
                };
                self.sample(frames, [0, signed(site.count)], labels);
            }
            return;
        }
        for stack in &site.blocked_stacks {
            let mut labels = self.labels(site, Some(&stack.state));
            for (key, goid) in [("goid_first", stack.goids.0), ("goid_last", stack.goids.1)] {
                labels.push(Label {
                    key: self.string(key),
                    num: signed(goid),
                    ..Label::default()
                });
            }
            // It runs: all that is known is what it was started with.
            let started = CallSite {
                function: site.start_function.clone(),
                ..CallSite::default()
            };
            let frames = if stack.frames.is_empty() {
                std::slice::from_ref(&started)
            } else {
                &stack.frames
            };
            self.sample(frames, [signed(stack.count), 0], labels);
        }
    }

    fn labels(&mut self, site: &SiteReport, state: Option<&str>) -> Vec<Label> {
        let texts = [
            ("site", Some(site.site.as_str())),
            ("state", state),
            ("timer_kind", site.timer_kind),
        ];
        let mut labels: Vec<Label> = texts
            .into_iter()
            .filter_map(|(key, value)| {
                Some(Label {
                    key: self.string(key),
                    str: self.string(value?),
                    ..Label::default()
                })
            })
            .collect();
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds are enough")]
        let age = site.oldest_seconds as i64;
        labels.push(Label {
            key: self.string("oldest"),
            num: age,
            num_unit: self.string("seconds"),
            ..Label::default()
        });
        labels
    }

    fn sample(&mut self, frames: &[CallSite], value: [i64; 2], label: Vec<Label>) {
        let location_id = frames.iter().map(|frame| self.location(frame)).collect();
        self.profile.sample.push(Sample {
            location_id,
            value: value.to_vec(),
            label,
        });
    }

    fn location(&mut self, frame: &CallSite) -> u64 {
        let name = self.string(&frame.function);
        let filename = self.string(&frame.file);
        let next = self.profile.function.len() as u64 + 1;
        let function_id = *self.functions.entry((name, filename)).or_insert(next);
        if function_id == next {
            self.profile.function.push(Function {
                id: next,
                name,
                system_name: name,
                filename,
            });
        }
        let next = self.profile.location.len() as u64 + 1;
        let id = *self
            .locations
            .entry((function_id, frame.line))
            .or_insert(next);
        if id == next {
            self.profile.location.push(Location {
                id,
                mapping_id: 1,
                line: vec![Line {
                    function_id,
                    line: frame.line.into(),
                }],
            });
        }
        id
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = i64::try_from(self.profile.string_table.len()).unwrap_or(0);
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
