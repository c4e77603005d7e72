//! Whom do we watch? One running process, named by pid *and* start time, because pids are used again.

pub mod inquiry;
pub mod names;
pub mod pod_list;
pub mod pod_source;
pub mod room;
pub mod roster;
pub mod scan;
pub mod selection;
pub mod whereabouts;

mod http;
mod process;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

pub use process::{Process, TargetError};

/// A process id in the initial pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The identity of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    /// The process id.
    pub pid: Pid,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

/// A file, whatever its name: its device too, because numbers are only unique on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode {
    /// The device that holds it (`st_dev`).
    pub device: u64,
    /// Its number there.
    pub number: u64,
}

impl Inode {
    /// Of an open file.
    ///
    /// # Errors
    /// When the file cannot be looked at.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            number: found.ino(),
        })
    }
}
