//! What a program knows when it starts: registers, the process that was hit, and the way to a record.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    mem::MaybeUninit,
    ptr,
};

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{BPF_RB_NO_WAKEUP, bpf_pidns_info, bpf_user_pt_regs_t},
    helpers::{
        bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user,
        generated::{self, bpf_get_attach_cookie, bpf_get_ns_current_pid_tgid},
    },
    maps::{PerCpuArray, ring_buf::RingBufEntry},
    programs::ProbeContext,
};
use leaktrace_common::{
    binary::{BinaryConfig, Cookie},
    event::{Header, Kind, Loss},
    process::Enrolment,
};

use crate::maps::{ALLOWANCE, BINARIES, EVENTS, HITS, LOST, PROCESSES, STRANGERS};

/// Whether the kernel has attach cookies (Linux 5.15); the loader says so before the programs are verified.
///
/// The verifier knows what a frozen global holds, so it never looks at the branch that is not taken, and
/// removes it: the helper of newer kernels is no offence on an older one.
#[unsafe(no_mangle)]
static HAS_COOKIES: Global<u32> = Global::new(1);

/// Device and inode of leaktrace's own pid namespace; 0 when it is the machine's first.
#[unsafe(no_mangle)]
static PID_NAMESPACE_DEVICE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static PID_NAMESPACE_INODE: Global<u64> = Global::new(0);

/// One hit of a probe.
pub struct Hit {
    context: ProbeContext,
    kind: Kind,
    pid: u32,
    slot: u16,
    object: u64,
    /// Where the fields of this binary are.
    pub binary: &'static BinaryConfig,
}

impl Hit {
    /// Finds out whose hit it is, counts it and finds the binary's table; `None` when the process is not
    /// traced, or by another probe set.
    #[inline(always)]
    pub fn new(context: ProbeContext, kind: Kind) -> Option<Self> {
        let (pid, _) = own_pids();
        // SAFETY: the map's values are integers, and a torn read of one is of an old or a new enrolment.
        let Some(&Enrolment { set, slot, .. }) = (unsafe { PROCESSES.get(&pid) }) else {
            count(&STRANGERS, 0);
            return None;
        };
        let mut register = None;
        if HAS_COOKIES.load() != 0 {
            // SAFETY: the context is the one that the kernel gave to this program.
            let cookie = Cookie::from_bits(unsafe { bpf_get_attach_cookie(context.as_ptr()) });
            if cookie.set != set {
                return None;
            }
            register = Some(cookie.register);
        }
        count(
            &HITS,
            u32::from(slot) * Kind::COUNT + u32::from(kind as u16),
        );
        if !may_spend(slot) {
            lose(slot, Loss::OverBudget);
            return None;
        }
        match BINARIES.get(u32::from(slot)) {
            Some(binary) if binary.filled != 0 => {
                let mut hit = Self {
                    context,
                    kind,
                    pid,
                    slot,
                    object: 0,
                    binary,
                };
                // Once: each choice among the registers is a page of instructions.
                hit.object = hit.register(register.unwrap_or(binary.registers[kind as usize]));
                Some(hit)
            }
            _ => {
                lose(slot, Loss::UnknownSlot);
                None
            }
        }
    }

    /// The `*g` or `*timer` that the event is about.
    #[inline(always)]
    pub fn object(&self) -> u64 {
        self.object
    }

    /// The running g: Go keeps it in a register of its own (cmd/compile/abi-internal.md, go1.18 and later).
    #[inline(always)]
    pub fn current_g(&self) -> u64 {
        if self.binary.object_is_current_g != 0 {
            return self.object;
        }
        #[cfg(bpf_target_arch = "x86_64")]
        return self.register(14);
        #[cfg(bpf_target_arch = "aarch64")]
        return self.register(28);
    }

    /// The frame pointer of the function that holds the probe.
    #[inline(always)]
    pub fn frame_pointer(&self) -> u64 {
        #[cfg(bpf_target_arch = "x86_64")]
        return self.register(5);
        #[cfg(bpf_target_arch = "aarch64")]
        return self.register(29);
    }

    /// Integer argument `N` of a Go function, counted from 0, at a call or an entry: rax, rbx, rcx, rdi,
    /// rsi, r8 on amd64, x0 to x5 on arm64 (cmd/compile/abi-internal.md).
    #[inline(always)]
    pub fn argument<const N: usize>(&self) -> u64 {
        #[cfg(bpf_target_arch = "x86_64")]
        return self.register(const { [0, 3, 1, 7, 6, 8][N] });
        #[cfg(bpf_target_arch = "aarch64")]
        return self.register(const { [0, 1, 2, 3, 4, 5][N] });
    }

    /// The slot of the process.
    #[inline(always)]
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The first half of this hit's record.
    #[inline(always)]
    pub fn header(&self, object: u64, stack: u64) -> Header {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!(
            &self.context,
            "kind {} slot {} object {:x} stack {:x}",
            self.kind as u16,
            self.slot,
            object,
            stack
        );
        Header {
            // SAFETY: a helper without arguments.
            at_ns: unsafe { bpf_ktime_get_ns() },
            object,
            stack,
            pid: self.pid,
            kind: self.kind as u16,
            slot: self.slot,
        }
    }

    /// Room for a record in the ring buffer; `None`, and counted, when it is full.
    ///
    /// Asked for before anything is read, so that a full ring costs the target little.
    #[inline(always)]
    pub fn reserve<T: 'static>(&self) -> Option<RingBufEntry<T>> {
        let entry = EVENTS.reserve::<T>(0);
        if entry.is_none() {
            self.lose(Loss::RingFull);
        }
        entry
    }

    /// Reads the target's memory; a fault is counted and answered with zeros.
    #[inline(always)]
    pub fn read<T: Default>(&self, address: u64) -> T {
        // SAFETY: the helper checks the address; T is made of integers in every use.
        match unsafe { bpf_probe_read_user(address as *const T) } {
            Ok(value) => value,
            Err(_) => {
                self.lose(Loss::ReadFault);
                T::default()
            }
        }
    }

    /// Reads the `N` words of the structure at `object` that begin at `offset`, at once: a read takes 0.1 µs, and hardly
    /// more when it is of twenty words.
    #[inline(always)]
    pub fn words<const N: usize>(&self, object: u64, offset: u32) -> Words<N> {
        let mut words = MaybeUninit::<[u64; N]>::uninit();
        let address = object.wrapping_add(u64::from(offset));
        // SAFETY: the room is as large as it says; the helper checks the address, and clears the room when it fails.
        let (failed, words) = unsafe {
            let room: *mut c_void = words.as_mut_ptr().cast();
            let size = size_of::<[u64; N]>() as u32;
            let failed = generated::bpf_probe_read_user(room, size, address as *const c_void);
            (failed, words.assume_init())
        };
        if failed != 0 {
            self.lose(Loss::ReadFault);
        }
        Words { words, offset }
    }

    /// Reads a field of the structure at `object`; 0 when this release has no such field.
    #[inline(always)]
    pub fn field<T: Default>(&self, object: u64, offset: u32) -> T {
        if offset == BinaryConfig::ABSENT {
            return T::default();
        }
        self.read(object.wrapping_add(u64::from(offset)))
    }

    /// Counts something that the reader will not see.
    #[inline(always)]
    pub fn lose(&self, cause: Loss) {
        lose(self.slot, cause);
    }

    /// A register by the hardware's number. The verifier wants each offset into the context to be a
    /// constant, hence no array; volatile keeps the compiler from making one.
    #[inline(always)]
    fn register(&self, number: u8) -> u64 {
        let registers: *const bpf_user_pt_regs_t = self.context.as_ptr().cast();
        macro_rules! choose {
            ($($number:literal => $($field:tt).+ $([$index:literal])?),+ $(,)?) => {
                match number {
                    // SAFETY: the context of a uprobe is a pt_regs, and every field lies in it.
                    $($number => unsafe { ptr::read_volatile(&raw const (*registers).$($field).+ $([$index])?) },)+
                    _ => 0,
                }
            };
        }
        #[cfg(bpf_target_arch = "x86_64")]
        return choose!(
            0 => rax, 1 => rcx, 2 => rdx, 3 => rbx, 4 => rsp, 5 => rbp, 6 => rsi, 7 => rdi,
            8 => r8, 9 => r9, 10 => r10, 11 => r11, 12 => r12, 13 => r13, 14 => r14, 15 => r15,
        );
        #[cfg(bpf_target_arch = "aarch64")]
        return choose!(
            0 => regs[0], 1 => regs[1], 2 => regs[2], 3 => regs[3], 4 => regs[4], 5 => regs[5],
            6 => regs[6], 7 => regs[7], 8 => regs[8], 9 => regs[9], 10 => regs[10], 11 => regs[11],
            12 => regs[12], 13 => regs[13], 14 => regs[14], 15 => regs[15], 16 => regs[16],
            17 => regs[17], 18 => regs[18], 19 => regs[19], 20 => regs[20], 21 => regs[21],
            22 => regs[22], 23 => regs[23], 24 => regs[24], 25 => regs[25], 26 => regs[26],
            27 => regs[27], 28 => regs[28], 29 => regs[29], 30 => regs[30],
        );
    }
}

/// Neighbouring words of one structure.
pub struct Words<const N: usize> {
    words: [u64; N],
    offset: u32,
}

impl<const N: usize> Words<N> {
    /// The word `NUMBER`.
    #[inline(always)]
    pub fn at<const NUMBER: usize>(&self) -> u64 {
        const { assert!(NUMBER < N) };
        // Volatile keeps the compiler from choosing among words by their address, which the verifier knows only since
        // Linux 5.12.
        // SAFETY: a word of the array.
        unsafe { ptr::read_volatile(&raw const self.words[NUMBER]) }
    }

    /// The number of the word in which the field at `offset` of the same structure is.
    #[inline(always)]
    pub fn number(&self, offset: u32) -> u32 {
        offset.wrapping_sub(self.offset) / 8
    }
}

/// Hands a filled record to the reader, who is never woken: it drains by the clock.
#[inline(always)]
pub fn submit<T>(mut entry: RingBufEntry<T>, record: T) {
    entry.write(record);
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// The process and the thread that run, as leaktrace numbers them; 0 for those outside of its pid namespace.
#[inline(always)]
pub fn own_pids() -> (u32, u32) {
    if PID_NAMESPACE_INODE.load() == 0 {
        let both = bpf_get_current_pid_tgid();
        return ((both >> 32) as u32, both as u32);
    }
    let mut found = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the structure lies on this program's stack; the helper clears it when it fails.
    unsafe {
        bpf_get_ns_current_pid_tgid(
            PID_NAMESPACE_DEVICE.load(),
            PID_NAMESPACE_INODE.load(),
            &raw mut found,
            size_of::<bpf_pidns_info>() as u32,
        );
    }
    (found.tgid, found.pid)
}

/// Takes one hit from what the process may have on this CPU.
#[inline(always)]
fn may_spend(slot: u16) -> bool {
    let Some(left) = ALLOWANCE.get_ptr_mut(u32::from(slot)) else {
        return false;
    };
    // Not atomic: another probe that a preemptible kernel runs in between makes it one hit more or less, never fewer
    // than none, since nothing is taken from 0.
    // SAFETY: the map holds aligned u64s, and nobody has a reference to one.
    let found = unsafe { ptr::read_volatile(left) };
    if found == 0 {
        return false;
    }
    // SAFETY: as above.
    unsafe { ptr::write_volatile(left, found - 1) };
    true
}

#[inline(always)]
fn lose(slot: u16, cause: Loss) {
    count(&LOST, u32::from(slot) * Loss::COUNT + cause as u32);
}

#[inline(always)]
fn count(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // Atomic although it is this CPU's own: a preemptible kernel may run another probe in between.
        // SAFETY: the map holds aligned u64s, and nobody has a reference to one.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
    }
}
