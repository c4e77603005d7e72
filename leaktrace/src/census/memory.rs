//! Reading another process's memory without stopping it.

use std::cell::OnceCell;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd;

use crate::address::RuntimeAddr;
use crate::target::Pid;

/// One stretch of the target's memory to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts.
    pub address: RuntimeAddr,
    /// How many bytes.
    pub bytes: usize,
}

/// The memory of a target, live or in a file.
pub trait Memory {
    /// Copies all pieces, one after another, into `buffer`, whose length is their sum.
    ///
    /// Answers, for each piece, whether it could be read; the bytes of one that could not are zero.
    ///
    /// # Errors
    /// When the memory as a whole cannot be read: the process is gone or out of bounds to this user.
    fn read_pieces(&self, pieces: &[Piece], buffer: &mut [u8]) -> Result<Vec<bool>, MemoryError>;

    /// Copies one stretch.
    ///
    /// # Errors
    /// As above, and when the stretch is not mapped.
    fn read(&self, address: RuntimeAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let piece = Piece {
            address,
            bytes: buffer.len(),
        };
        match self.read_pieces(&[piece], buffer)?.first() {
            Some(true) => Ok(()),
            _ => Err(MemoryError::Unmapped {
                address,
                bytes: buffer.len(),
            }),
        }
    }

    /// Reads one 8-byte word.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn word(&self, address: RuntimeAddr) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Why memory cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The process ended.
    #[error("process {0} has exited")]
    Exited(Pid),
    /// No CAP_SYS_PTRACE, or a security module said no.
    #[error(
        "not allowed to read the memory of process {0}: run leaktrace as root, or give it CAP_SYS_PTRACE"
    )]
    Denied(Pid),
    /// Nothing is mapped there.
    #[error("no memory of {bytes} bytes at {address}")]
    Unmapped {
        /// Where.
        address: RuntimeAddr,
        /// How much was asked.
        bytes: usize,
    },
    /// The kernel's own words.
    #[error("cannot read the memory of process {0}: {1}")]
    System(Pid, String),
}

/// A running process, read with `process_vm_readv` (mm/process_vm_access.c), or through `/proc/PID/mem` where that
/// system call is filtered out.
pub struct LiveMemory {
    pid: Pid,
    /// Opened when first needed; `None` when it cannot be.
    file: OnceCell<Option<File>>,
}

impl LiveMemory {
    /// The memory of `pid`. Nothing is opened: each read asks the kernel anew.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self {
            pid,
            file: OnceCell::new(),
        }
    }

    /// The same as the system call through the file: slower, a read for each piece.
    fn read_through_file(&self, pieces: &[Piece], buffer: &mut [u8]) -> Option<Vec<bool>> {
        let open = || File::open(format!("/proc/{}/mem", self.pid)).ok();
        let file = self.file.get_or_init(open).as_ref()?;
        let mut rest = buffer;
        let read = pieces.iter().map(|piece| {
            let bytes = piece.bytes.min(rest.len());
            let (now, next) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = next;
            let read = file.read_exact_at(now, piece.address.0).is_ok();
            if !read {
                now.fill(0);
            }
            read
        });
        Some(read.collect())
    }
}

/// The kernel takes at most `UIO_MAXIOV` pieces a call (include/uapi/linux/uio.h).
const MAX_PIECES: usize = 1024;

impl Memory for LiveMemory {
    fn read_pieces(&self, pieces: &[Piece], buffer: &mut [u8]) -> Result<Vec<bool>, MemoryError> {
        let mut read = vec![false; pieces.len()];
        let mut done = 0;
        let mut filled = 0_usize;
        while let Some(rest) = pieces.get(done..).filter(|rest| !rest.is_empty()) {
            let batch = rest.get(..MAX_PIECES).unwrap_or(rest);
            let remote: Vec<RemoteIoVec> = batch
                .iter()
                .map(|piece| RemoteIoVec {
                    // An address beyond usize cannot exist in a 64-bit process; it reads as unmapped.
                    base: usize::try_from(piece.address.0).unwrap_or(usize::MAX),
                    len: piece.bytes,
                })
                .collect();
            let wanted: usize = batch.iter().map(|piece| piece.bytes).sum();
            let Some(room) = buffer.get_mut(filled..filled.saturating_add(wanted)) else {
                return Ok(read);
            };
            let copied = match process_vm_readv(
                unistd::Pid::from_raw(self.pid.0),
                &mut [IoSliceMut::new(room)],
                &remote,
            ) {
                Ok(copied) => copied,
                // The first piece is not mapped: nothing was copied.
                Err(Errno::EFAULT) => 0,
                Err(Errno::ESRCH) => return Err(MemoryError::Exited(self.pid)),
                Err(errno @ (Errno::EPERM | Errno::ENOSYS)) => {
                    return match self.read_through_file(pieces, buffer) {
                        Some(read) => Ok(read),
                        None if errno == Errno::EPERM => Err(MemoryError::Denied(self.pid)),
                        None => Err(MemoryError::System(self.pid, errno.desc().to_owned())),
                    };
                }
                Err(errno) => return Err(MemoryError::System(self.pid, errno.desc().to_owned())),
            };
            // The kernel stops at the first piece that it cannot read whole: take what came before, mark
            // that one unread, and go on behind it.
            let mut taken = 0;
            let mut whole = 0;
            for piece in batch {
                if taken + piece.bytes > copied {
                    break;
                }
                taken += piece.bytes;
                whole += 1;
            }
            for flag in read.iter_mut().skip(done).take(whole) {
                *flag = true;
            }
            done += whole;
            filled += taken;
            if let Some(failed) = batch.get(whole) {
                if let Some(bytes) = buffer.get_mut(filled..filled + failed.bytes) {
                    bytes.fill(0);
                }
                done += 1;
                filled += failed.bytes;
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> LiveMemory {
        LiveMemory::new(Pid(i32::try_from(std::process::id()).expect("a pid")))
    }

    fn piece_of(bytes: &[u8]) -> Piece {
        Piece {
            address: RuntimeAddr(bytes.as_ptr() as u64),
            bytes: bytes.len(),
        }
    }

    #[test]
    fn reads_more_pieces_than_one_call_takes() {
        let source: Vec<u8> = (0..=255).cycle().take(40_000).collect();
        let pieces: Vec<Piece> = source.chunks(10).map(piece_of).collect();
        let mut buffer = vec![0; source.len()];
        let read = own().read_pieces(&pieces, &mut buffer).expect("own memory");
        assert!(read.iter().all(|read| *read));
        assert_eq!(buffer, source);
    }

    #[test]
    fn an_unmapped_piece_does_not_hide_its_neighbours() {
        let source = [7_u8; 16];
        let nowhere = Piece {
            address: RuntimeAddr(8),
            bytes: 16,
        };
        let pieces = [nowhere, piece_of(&source), nowhere, piece_of(&source)];
        let mut buffer = vec![1; 64];
        let read = own().read_pieces(&pieces, &mut buffer).expect("own memory");
        assert_eq!(read, [false, true, false, true]);
        assert_eq!(buffer[..16], [0; 16]);
        assert_eq!(buffer[16..32], source);
        assert_eq!(buffer[48..], source);
    }

    #[test]
    fn the_file_says_the_same_as_the_system_call() {
        let source = [7_u8; 16];
        let nowhere = Piece {
            address: RuntimeAddr(8),
            bytes: 16,
        };
        let pieces = [piece_of(&source), nowhere, piece_of(&source)];
        let mut by_call = vec![1; 48];
        let mut by_file = vec![2; 48];
        let called = own()
            .read_pieces(&pieces, &mut by_call)
            .expect("own memory");
        let filed = own()
            .read_through_file(&pieces, &mut by_file)
            .expect("own memory");
        assert_eq!(called, filed);
        assert_eq!(by_call, by_file);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let error = LiveMemory::new(Pid(i32::MAX)).word(RuntimeAddr(4096));
        assert_eq!(error, Err(MemoryError::Exited(Pid(i32::MAX))));
    }
}
