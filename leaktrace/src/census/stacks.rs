//! Where is each goroutine stuck? Unwinds parked goroutines from outside.
//!
//! The sizes of the frames come from pclntab, not from frame pointers: those lie on arm64 before Go 1.21, and in
//! assembly. Goroutines are grouped first, by where they were started, what they wait for and how much stack they use;
//! one of each group is unwound, so that a million goroutines of a thousand sites cost some thousand stacks.

use foldhash::{HashMap, HashMapExt};

use super::{Fields, Goroutine, Layout, Memory, MemoryError, Status};
use crate::address::RuntimeAddr;
use crate::event::Goid;
use crate::resolve::Arch;

/// What unwinding asks of the program's tables.
pub trait Frames {
    /// Bytes of the frame at `pc`; `None` when no Go function is there.
    fn frame_bytes(&self, pc: RuntimeAddr) -> Option<u32>;
    /// Whether `pc` is in the function that every goroutine returns to at its end (`runtime.goexit`).
    fn is_outermost(&self, pc: RuntimeAddr) -> bool;
    /// The machine.
    fn arch(&self) -> Arch;
}

/// Goroutines that are stuck at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackGroup {
    /// Return address of the `go` statement that made them.
    pub gopc: RuntimeAddr,
    /// The first instruction that they ran.
    pub startpc: RuntimeAddr,
    /// What they do.
    pub status: Status,
    /// Index into the wait reasons; means something only while waiting.
    pub wait_reason: u8,
    /// How many there are.
    pub count: u64,
    /// The lowest and the highest of their numbers.
    pub goids: (Goid, Goid),
    /// Where they are, innermost first: the first an instruction, the others return addresses. Empty when it could
    /// not be read: they run, or were gone when we looked.
    pub stack: Vec<RuntimeAddr>,
}

/// Most groups that are unwound, the largest first.
const MOST_GROUPS: usize = 4096;

/// Most groups that are told apart. More come only from a program that makes up where its goroutines were started; what
/// is left then is one group for each status, of no place in the program.
const MOST_KEYS: usize = 1 << 17;

/// Most bytes of one stack that are read: deeper stacks lose their outermost frames.
const MOST_BYTES: u64 = 64 << 10;

/// Most frames of one stack, as in Go's own profiles (src/runtime/mprof.go: maxProfStackDepth is 1024; it keeps fewer).
const MOST_FRAMES: usize = 128;

/// Goroutines of a group that are tried, should the first have moved on.
const TRIES: usize = 3;

/// Groups the goroutines and unwinds one of each group.
///
/// # Errors
/// When the memory as a whole is out of reach; a stack that cannot be read is left empty.
pub fn walk(
    memory: &dyn Memory,
    layout: &Layout,
    frames: &dyn Frames,
    goroutines: &[Goroutine],
) -> Result<Vec<StackGroup>, MemoryError> {
    #[derive(PartialEq, Eq, Hash)]
    struct Key(RuntimeAddr, RuntimeAddr, Status, u8, u32);
    struct Group<'g> {
        count: u64,
        goids: (Goid, Goid),
        members: Vec<&'g Goroutine>,
    }
    let mut groups: HashMap<Key, Group<'_>> = HashMap::new();
    for goroutine in goroutines {
        let wait_reason = match goroutine.status {
            Status::Waiting => goroutine.wait_reason,
            _ => 0,
        };
        let mut key = Key(
            goroutine.gopc,
            goroutine.startpc,
            goroutine.status,
            wait_reason,
            goroutine.depth,
        );
        if groups.len() >= MOST_KEYS && !groups.contains_key(&key) {
            key = Key(RuntimeAddr(0), RuntimeAddr(0), goroutine.status, 0, 0);
        }
        let group = groups.entry(key).or_insert(Group {
            count: 0,
            goids: (goroutine.goid, goroutine.goid),
            members: Vec::new(),
        });
        group.count += 1;
        group.goids.0 = group.goids.0.min(goroutine.goid);
        group.goids.1 = group.goids.1.max(goroutine.goid);
        if group.members.len() < TRIES {
            group.members.push(goroutine);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    // Ties by address, so that two walks of the same world choose the same.
    groups
        .sort_unstable_by_key(|(key, group)| (std::cmp::Reverse(group.count), key.0, key.1, key.4));
    groups
        .into_iter()
        .enumerate()
        .map(|(rank, (key, group))| {
            let mut stack = Vec::new();
            for goroutine in group.members.into_iter().filter(|_| rank < MOST_GROUPS) {
                stack = unwind(memory, layout, frames, goroutine)?;
                if !stack.is_empty() {
                    break;
                }
            }
            Ok(StackGroup {
                gopc: key.0,
                startpc: key.1,
                status: key.2,
                wait_reason: key.3,
                count: group.count,
                goids: group.goids,
                stack,
            })
        })
        .collect()
}

/// The stack of one goroutine; empty when it runs, has gone on, or is another by now.
fn unwind(
    memory: &dyn Memory,
    layout: &Layout,
    frames: &dyn Frames,
    goroutine: &Goroutine,
) -> Result<Vec<RuntimeAddr>, MemoryError> {
    let offsets = &layout.offsets;
    let (sp_offset, pc_offset) = match goroutine.status {
        Status::Waiting | Status::Preempted => (offsets.g_sched_sp, offsets.g_sched_pc),
        Status::Syscall => (offsets.g_syscallsp, offsets.g_syscallpc),
        Status::Runnable | Status::Running => return Ok(Vec::new()),
    };
    let header = || -> Result<Option<[u64; 4]>, MemoryError> {
        let word = |offset: u32| memory.word(goroutine.g.offset(offset.into()));
        let read = || {
            Ok([
                word(offsets.g_goid)?,
                word(sp_offset)?,
                word(pc_offset)?,
                word(offsets.g_stack + 8)?,
            ])
        };
        mapped(read())
    };
    let Some(before @ [goid, sp, pc, high]) = header()? else {
        return Ok(Vec::new());
    };
    let used = high.saturating_sub(sp);
    if goid != goroutine.goid.0 || used == 0 || used != u64::from(goroutine.depth) {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; usize::try_from(used.min(MOST_BYTES)).unwrap_or(0)];
    if mapped(memory.read(RuntimeAddr(sp), &mut bytes))?.is_none() {
        return Ok(Vec::new());
    }
    // The collector may have moved the stack, or the goroutine gone on, while we read.
    if header()? != Some(before) {
        return Ok(Vec::new());
    }
    Ok(walk_frames(&bytes, RuntimeAddr(pc), frames))
}

/// What is not mapped is gone; anything else is an error of the memory as a whole.
fn mapped<T>(read: Result<T, MemoryError>) -> Result<Option<T>, MemoryError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(MemoryError::Unmapped { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Follows return addresses through the bytes of a stack that begin at the stack pointer.
fn walk_frames(stack: &[u8], pc: RuntimeAddr, frames: &dyn Frames) -> Vec<RuntimeAddr> {
    let mut found = vec![pc];
    let mut at = 0_usize;
    let mut lookup = pc;
    while found.len() < MOST_FRAMES && !frames.is_outermost(lookup) {
        let Some(size) = frames.frame_bytes(lookup) else {
            break;
        };
        let size = size as usize;
        let (return_address_at, next) = match frames.arch() {
            Arch::Amd64 => (at.saturating_add(size), at.saturating_add(size + 8)),
            // A function without a frame keeps its return address in a register: none of those can park.
            Arch::Arm64 if size == 0 => break,
            Arch::Arm64 => (at, at.saturating_add(size)),
        };
        if return_address_at.saturating_add(8) > stack.len() {
            break;
        }
        let return_address = Fields(stack).word(return_address_at);
        if return_address == 0 {
            break;
        }
        found.push(RuntimeAddr(return_address));
        // The call is what matters, not what follows it: that may be another function.
        lookup = RuntimeAddr(return_address - 1);
        at = next;
    }
    // The end of every goroutine tells nothing.
    if found
        .last()
        .is_some_and(|last| frames.is_outermost(RuntimeAddr(last.0.saturating_sub(1))))
    {
        found.pop();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Functions of 0x100 bytes from 0x1000 on; the number of 16-byte units of the frame is in the hundreds digit.
    struct Table(Arch);

    impl Frames for Table {
        fn frame_bytes(&self, pc: RuntimeAddr) -> Option<u32> {
            (0x1000..0x2000)
                .contains(&pc.0)
                .then(|| u32::try_from((pc.0 >> 8) & 0xf).unwrap_or(0) * 16)
        }

        fn is_outermost(&self, pc: RuntimeAddr) -> bool {
            pc.0 >> 8 == 0x1f
        }

        fn arch(&self) -> Arch {
            self.0
        }
    }

    fn stack(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn return_addresses_lie_behind_the_frame_on_amd64() {
        let bytes = stack(&[7, 7, 0x1280, 7, 7, 7, 7, 0x1f01, 0]);
        let found = walk_frames(&bytes, RuntimeAddr(0x1110), &Table(Arch::Amd64));
        assert_eq!(found, [RuntimeAddr(0x1110), RuntimeAddr(0x1280)]);
    }

    #[test]
    fn return_addresses_lie_at_the_start_of_the_frame_on_arm64() {
        let bytes = stack(&[0x1280, 7, 0x1f04, 7, 7, 7, 0]);
        let found = walk_frames(&bytes, RuntimeAddr(0x1110), &Table(Arch::Arm64));
        assert_eq!(found, [RuntimeAddr(0x1110), RuntimeAddr(0x1280)]);
    }

    /// Nothing is mapped.
    struct Nowhere;

    impl Memory for Nowhere {
        fn read_pieces(
            &self,
            pieces: &[super::super::Piece],
            _: &mut [u8],
        ) -> Result<Vec<bool>, MemoryError> {
            Ok(vec![false; pieces.len()])
        }
    }

    #[test]
    fn made_up_places_are_bounded() {
        let release = crate::resolve::offsets::table()
            .expect("the table")
            .pop()
            .expect("a release");
        let layout = Layout {
            heap: None,
            allglen: RuntimeAddr(0),
            allgptr: RuntimeAddr(0),
            allp: RuntimeAddr(0),
            wait_reasons: RuntimeAddr(0),
            wait_reason_count: 0,
            semaphores: None,
            offsets: release.offsets,
            timer_functions: crate::census::TimerFunctions::default(),
            anchors: crate::census::Anchors::default(),
        };
        let goroutines: Vec<Goroutine> = (1..=200_000)
            .map(|number| Goroutine {
                goid: Goid(number),
                g: RuntimeAddr(number << 12),
                status: Status::Waiting,
                wait_reason: 3,
                gopc: RuntimeAddr(number),
                startpc: RuntimeAddr(number),
                stack_bytes: 2048,
                depth: u32::try_from(number).expect("few"),
                waiting_since_ns: 0,
                waiting: 0,
                stops: 0,
                leaked: false,
            })
            .collect();
        let groups = walk(&Nowhere, &layout, &Table(Arch::Amd64), &goroutines);
        let groups = groups.expect("nothing fails as a whole");
        assert!(groups.len() <= MOST_KEYS + 8);
        let counted: u64 = groups.iter().map(|group| group.count).sum();
        assert_eq!(counted, goroutines.len() as u64);
    }

    #[test]
    fn a_stack_that_lies_ends() {
        // A function with no frame that returns to itself for ever.
        let bytes = stack(&[0x1050; 1000]);
        let found = walk_frames(&bytes, RuntimeAddr(0x1050), &Table(Arch::Amd64));
        assert_eq!(found.len(), MOST_FRAMES);
        let found = walk_frames(&[], RuntimeAddr(0x1050), &Table(Arch::Amd64));
        assert_eq!(found, [RuntimeAddr(0x1050)]);
    }
}
