//! A bounded walk along the frame pointers of one goroutine.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_probe_read_user};
use leaktrace_common::{event::Loss, limits::STACK_DEPTH, stack::StackKey};

use crate::{context::Hit, maps::STACKS};

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
    for kept in &mut frames {
        if frame < low || frame % 8 != 0 || frame > high.wrapping_sub(16) {
            break;
        }
        // SAFETY: the helper checks the address.
        let Ok([next, return_address]) = (unsafe { bpf_probe_read_user(frame as *const [u64; 2]) })
        else {
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
