//! A bounded walk along the frame pointers of one goroutine.

use core::{
    ffi::c_void,
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_probe_read_user, generated},
};
use leaktrace_common::{event::Loss, limits::STACK_DEPTH, stack::StackKey};

use crate::{
    context::Hit,
    maps::{SCRATCH, STACKS},
};

const EEXIST: i32 = 17;

/// Walks the stack that lies between two addresses from the frame at `frame`, keeps it in the map of stacks and answers with its
/// key; 0 when there is none.
///
/// A frame is two words: the caller's frame pointer, then the return address. The walk stays inside the
/// stack and only ever climbs, so that a damaged chain ends it early and cannot make it go round.
#[inline(always)]
pub fn keep(hit: &Hit, [low, high]: [u64; 2], frame: u64) -> u64 {
    if hit.binary.frame_pointers == 0 {
        return 0;
    }
    let mut frames = [0u64; STACK_DEPTH];
    let mut hash = 0u64;
    let mut frame = frame;
    let Some(window) = Window::open(frame, high) else {
        return 0;
    };
    for kept in &mut frames {
        if frame < low || frame % 8 != 0 || frame > high.wrapping_sub(16) {
            break;
        }
        let Some([next, return_address]) = window.frame(frame) else {
            hit.lose(Loss::ReadFault);
            break;
        };
        if return_address == 0 {
            break;
        }
        *kept = return_address;
        hash = (hash.rotate_left(5) ^ return_address).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if next <= frame {
            break;
        }
        frame = next;
    }
    window.close();
    if frames[0] == 0 {
        return 0;
    }
    let key = StackKey::new(hash, hit.slot()).to_bits();
    // Looking first takes no lock, and nearly every stack is there already.
    if STACKS.get_ptr(&key).is_some() {
        return key;
    }
    match STACKS.insert(&key, &frames, u64::from(BPF_NOEXIST)) {
        Ok(()) => key,
        Err(error) if error == -EEXIST => key,
        Err(_) => {
            hit.lose(Loss::StacksFull);
            0
        }
    }
}

/// Bytes of a stack that are read at once, a power of two: servers of net/http have most frames of a chain in so many.
const WINDOW: u64 = 1024;

/// Room for a part of a stack, on each CPU: a program's own is too small, and cannot be indexed before Linux 5.12.
#[repr(C)]
pub struct Scratch {
    /// How many programs want it now.
    users: u64,
    /// One more than the window has, since the verifier sees two words taken from any of them on.
    words: [u64; WINDOW as usize / 8 + 1],
}

/// The part of a stack that follows on its innermost frame, read at once: a read takes 0.1 µs, and hardly more when it is
/// of many words.
struct Window {
    scratch: *mut Scratch,
    begin: u64,
    /// How much of it was read: 0 when it could not be.
    length: u64,
}

impl Window {
    /// Reads what lies between two addresses, as far as there is room; nothing when the room is taken. To be closed.
    #[inline(always)]
    fn open(begin: u64, end: u64) -> Option<Self> {
        let mut window = Self {
            scratch: SCRATCH.get_ptr_mut(0)?,
            begin,
            length: 0,
        };
        window.come_and_go(1);
        // A preemptible kernel may run another program on this CPU at any time. Whoever finds himself alone was here
        // first, and all others find him.
        // SAFETY: a pointer into the map, which holds aligned u64s.
        let users = unsafe { ptr::read_volatile(&raw const (*window.scratch).users) };
        if users == 1 {
            let length = end.wrapping_sub(begin).min(WINDOW);
            // SAFETY: the room is larger than `length`; the helper checks the address.
            let failed = unsafe {
                generated::bpf_probe_read_user(
                    (&raw mut (*window.scratch).words).cast(),
                    length as u32,
                    begin as *const c_void,
                )
            };
            if failed == 0 {
                window.length = length;
            }
        }
        Some(window)
    }

    /// The two words at an address that is not below the window's first; read by itself when it is beyond the last.
    #[inline(always)]
    fn frame(&self, address: u64) -> Option<[u64; 2]> {
        let offset = address.wrapping_sub(self.begin);
        if offset.wrapping_add(16) > self.length {
            // SAFETY: the helper checks the address.
            return unsafe { bpf_probe_read_user(address as *const [u64; 2]) }.ok();
        }
        // The verifier does not see that `length` bounds it, nor would the compiler keep what it knows to change nothing.
        let offset = black_box(offset) & (WINDOW - 8);
        // SAFETY: the word and the next one lie in the room.
        unsafe {
            let word = (&raw const (*self.scratch).words)
                .byte_add(offset as usize)
                .cast::<u64>();
            Some([word.read_volatile(), word.add(1).read_volatile()])
        }
    }

    /// Leaves the room to others.
    #[inline(always)]
    fn close(self) {
        self.come_and_go(u64::MAX);
    }

    /// Adds to the number of users.
    #[inline(always)]
    fn come_and_go(&self, by: u64) {
        // SAFETY: a pointer into the map, which holds aligned u64s.
        unsafe {
            let users = &raw mut (*self.scratch).users;
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(users, by);
        }
    }
}
