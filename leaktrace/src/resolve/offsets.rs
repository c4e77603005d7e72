//! Where the fields of the runtime's structures lie, in one release.
//!
//! One list ([`Offsets`]) names every field that leaktrace reads, under its own name and under the runtime's. The
//! binary's DWARF answers for it when it is there; else the table `offsets.json` does, which `cargo xtask offsets`
//! generates from the DWARF of binaries that real toolchains compiled. No number is typed by hand.

use serde::{Deserialize, Serialize};

use super::buildinfo::GoVersion;

/// The generated table.
const TABLE: &str = include_str!("offsets.json");

/// Defines [`Offsets`]: each field with the runtime's names for it, of which the first that a release has counts.
/// `a.b+c.d` is the sum of the offset of `b` in `runtime.a` and of `d` in `runtime.c`.
macro_rules! offsets {
    ($($(#[$doc:meta])+ $field:ident: $kind:ty = $names:expr,)+) => {
        /// Offsets in bytes from the start of the structure; `None` where a release has no such field.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Offsets {
            $($(#[$doc])+ pub $field: $kind,)+
        }

        impl Offsets {
            /// Every name of the runtime that the list uses, in the form that [`Offsets::collect`] asks for.
            pub const NAMES: &[&[&str]] = &[$(&$names),+];

            /// Fills the list from a source that knows the offset of `structure.member` (package runtime).
            ///
            /// # Errors
            /// The runtime's name of the first field that the source must know and does not.
            pub fn collect(lookup: impl Fn(&str) -> Option<u32>) -> Result<Self, &'static str> {
                Ok(Self { $($field: Presence::demand(find(&$names, &lookup), $names[0])?,)+ })
            }
        }
    };
}

offsets! {
    /// `g.stack.lo`; `hi` follows it.
    g_stack: u32 = ["g.stack"],
    /// `g.m`.
    g_m: u32 = ["g.m"],
    /// `g.sched.sp`: the saved stack pointer.
    g_sched_sp: u32 = ["g.sched+gobuf.sp"],
    /// `g.sched.pc`: the saved program counter.
    g_sched_pc: u32 = ["g.sched+gobuf.pc"],
    /// `g.sched.bp`: the saved frame pointer.
    g_sched_bp: u32 = ["g.sched+gobuf.bp"],
    /// `g.syscallsp`: the stack pointer of a goroutine in a system call.
    g_syscallsp: u32 = ["g.syscallsp"],
    /// `g.syscallpc`.
    g_syscallpc: u32 = ["g.syscallpc"],
    /// `g.atomicstatus`, 32 bits.
    g_atomicstatus: u32 = ["g.atomicstatus"],
    /// `g.goid`.
    g_goid: u32 = ["g.goid"],
    /// `g.waitsince`: when it blocked, in nanoseconds; set by the garbage collector only.
    g_waitsince: u32 = ["g.waitsince"],
    /// `g.trackingSeq`, one byte: counts how often the goroutine stopped running (Go 1.17 and on; the table has it of the
    /// releases that have a toolchain).
    g_tracking_seq: Option<u32> = ["g.trackingSeq"],
    /// `g.waitreason`, one byte.
    g_waitreason: u32 = ["g.waitreason"],
    /// `g.parentGoid`, from Go 1.21.
    g_parent_goid: Option<u32> = ["g.parentGoid"],
    /// `g.gopc`: return address of the call that the `go` statement makes.
    g_gopc: u32 = ["g.gopc"],
    /// `g.startpc`: its first instruction.
    g_startpc: u32 = ["g.startpc"],
    /// `g.waiting`: list of `sudog`s that it waits on.
    g_waiting: u32 = ["g.waiting"],
    /// `g.labels`: profiler labels.
    g_labels: u32 = ["g.labels"],
    /// `g.timer`: the timer of `time.Sleep`.
    g_timer: u32 = ["g.timer"],
    /// `g.bubble` (`syncGroup` in 1.24): set in a `testing/synctest` bubble.
    g_bubble: Option<u32> = ["g.bubble", "g.syncGroup"],
    /// `m.curg`.
    m_curg: u32 = ["m.curg"],
    /// `m.procid`: the thread id.
    m_procid: u32 = ["m.procid"],
    /// `p.id`, 32 bits.
    p_id: u32 = ["p.id"],
    /// `p.status`, 32 bits.
    p_status: u32 = ["p.status"],
    /// `p.timers`: a slice of `*timer` before Go 1.23, a `runtime.timers` from then on. `None` when an experiment may
    /// have moved it, there is no DWARF, and the code does not tell.
    p_timers: Option<u32> = ["p.timers"],
    /// `timers.heap`, from Go 1.23: a slice of (`*timer`, when).
    timers_heap: Option<u32> = ["timers.heap"],
    /// `timers.minWhenHeap`, from Go 1.23: by it the place of `p.timers` is told from code.
    timers_min_when_heap: Option<u32> = ["timers.minWhenHeap"],
    /// `timer.when`, nanoseconds of CLOCK_MONOTONIC.
    timer_when: u32 = ["timer.when"],
    /// `timer.period`, nanoseconds.
    timer_period: u32 = ["timer.period"],
    /// `timer.f`, a func value.
    timer_f: u32 = ["timer.f"],
    /// `timer.arg`, an interface.
    timer_arg: u32 = ["timer.arg"],
    /// `timer.status`, 32 bits, before Go 1.23.
    timer_status: Option<u32> = ["timer.status"],
    /// `timer.nextwhen`, before Go 1.23.
    timer_nextwhen: Option<u32> = ["timer.nextwhen"],
    /// `timer.pp`, before Go 1.23: the `*p` whose heap holds it.
    timer_pp: Option<u32> = ["timer.pp"],
    /// `timer.ts`, from Go 1.23: the `*timers` whose heap holds it.
    timer_ts: Option<u32> = ["timer.ts"],
    /// `timer.state`, one byte, from Go 1.23.
    timer_state: Option<u32> = ["timer.state"],
    /// `timer.isChan`, one byte, from Go 1.23.
    timer_is_chan: Option<u32> = ["timer.isChan"],
    /// `timer.isFake`, one byte, from Go 1.24: a timer of a `testing/synctest` bubble.
    timer_is_fake: Option<u32> = ["timer.isFake"],
    /// `hchan.qcount`.
    hchan_qcount: u32 = ["hchan.qcount"],
    /// `hchan.dataqsiz`.
    hchan_dataqsiz: u32 = ["hchan.dataqsiz"],
    /// `hchan.closed`, 32 bits.
    hchan_closed: u32 = ["hchan.closed"],
    /// `hchan.recvq`: first and last `*sudog`.
    hchan_recvq: u32 = ["hchan.recvq"],
    /// `hchan.sendq`: first and last `*sudog`.
    hchan_sendq: u32 = ["hchan.sendq"],
    /// `sudog.g`.
    sudog_g: u32 = ["sudog.g"],
    /// `sudog.next`: in the queue of its channel.
    sudog_next: u32 = ["sudog.next"],
    /// `sudog.prev`: in the same queue; in the tree of a semaphore's root, `prev` and `next` are the children.
    sudog_prev: u32 = ["sudog.prev"],
    /// `sudog.waitlink`: in the list `g.waiting`; in the tree, the next waiter for the same semaphore.
    sudog_waitlink: u32 = ["sudog.waitlink"],
    /// `sudog.elem`; from Go 1.26 the second word of it, which holds while leaks are being looked for.
    sudog_elem: u32 = ["sudog.elem+maybeTraceablePtr.vu", "sudog.elem"],
    /// `sudog.c`, the `*hchan`; from Go 1.26 the second word of it.
    sudog_c: u32 = ["sudog.c+maybeTraceablePtr.vu", "sudog.c"],
    /// `semaRoot.treap`: a tree of `sudog`s, one for each semaphore that somebody waits for.
    sema_root_treap: u32 = ["semaRoot.treap"],
    /// `moduledata.text`: start of the code that the function table is relative to.
    moduledata_text: u32 = ["moduledata.text"],
    /// `moduledata.etext`.
    moduledata_etext: u32 = ["moduledata.etext"],
    /// `moduledata.gofunc`: base of the function data.
    moduledata_gofunc: u32 = ["moduledata.gofunc"],
}

/// The first of the names that is known completely.
fn find(names: &[&str], lookup: &impl Fn(&str) -> Option<u32>) -> Option<u32> {
    names.iter().find_map(|name| {
        name.split('+')
            .try_fold(0_u32, |sum, part| sum.checked_add(lookup(part)?))
    })
}

/// A field that every release has (`u32`), or only some (`Option<u32>`).
trait Presence: Sized {
    fn demand(found: Option<u32>, name: &'static str) -> Result<Self, &'static str>;
}

impl Presence for u32 {
    fn demand(found: Option<u32>, name: &'static str) -> Result<Self, &'static str> {
        found.ok_or(name)
    }
}

impl Presence for Option<u32> {
    fn demand(found: Option<u32>, _: &'static str) -> Result<Self, &'static str> {
        Ok(found)
    }
}

/// Offsets that hold for the patch releases of one minor release from `from_patch` on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Release {
    /// 22 in 1.22.
    pub minor: u32,
    /// First patch release that they hold for: 0, or the first measured one after something moved.
    pub from_patch: u32,
    /// What was compiled and measured, as in `go1.22.10 amd64`.
    pub measured: Vec<String>,
    /// The offsets.
    pub offsets: Offsets,
    /// The names of the wait reasons, by number: by them a binary that claims another release is known.
    pub wait_reasons: Vec<String>,
}

/// Why the table has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No toolchain of this minor release was measured.
    #[error("the table of struct offsets has no such release")]
    NoRelease,
    /// A beta, a release candidate or a development build.
    #[error("it is not a final release, whose struct offsets are known")]
    Unreleased,
    /// The table itself cannot be read: this leaktrace was built wrongly.
    #[error("the built-in table of struct offsets is damaged")]
    Broken,
}

/// The whole table, sorted by minor and patch.
///
/// # Errors
/// [`TableError::Broken`], which a test rules out for a checked-in table.
pub fn table() -> Result<Vec<Release>, TableError> {
    serde_json::from_str(TABLE).map_err(|_| TableError::Broken)
}

/// The offsets of a release. They are the same on amd64 and arm64: the generator compares them.
///
/// # Errors
/// A [`TableError`] when the release is not in the table.
pub fn of_release(go: &GoVersion) -> Result<Offsets, TableError> {
    release(go).map(|release| release.offsets)
}

/// What is known of a release.
///
/// # Errors
/// A [`TableError`] when it is not in the table.
pub fn release(go: &GoVersion) -> Result<Release, TableError> {
    if go.unreleased {
        return Err(TableError::Unreleased);
    }
    let mut releases = table()?;
    releases.retain(|release| {
        go.major == 1 && release.minor == go.minor && release.from_patch <= go.patch
    });
    let newest = releases
        .into_iter()
        .max_by_key(|release| release.from_patch);
    let mut newest = newest.ok_or(TableError::NoRelease)?;
    // An experiment can move p.timers (1.25 with greenteagc, 1.26 without it), and nothing else of the list.
    if !go.experiments.is_empty() && go.minor >= 23 {
        newest.offsets.p_timers = None;
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> GoVersion {
        GoVersion::parse(text).unwrap()
    }

    #[test]
    fn the_table_answers_for_measured_releases_only() {
        let releases = table().unwrap();
        assert!(releases.is_sorted_by_key(|release| (release.minor, release.from_patch)));
        for release in &releases {
            let go = version(&format!("go1.{}.{}", release.minor, release.from_patch));
            assert_eq!(of_release(&go).unwrap(), release.offsets);
        }
        let minors: Vec<u32> = releases.iter().map(|release| release.minor).collect();
        assert!((18..=27).all(|minor| minors.contains(&minor)), "{minors:?}");
        assert_eq!(of_release(&version("go1.17.1")), Err(TableError::NoRelease));
        assert_eq!(of_release(&version("go1.99")), Err(TableError::NoRelease));
        assert_eq!(of_release(&version("go2.22")), Err(TableError::NoRelease));
        assert_eq!(
            of_release(&version("go1.22rc1")),
            Err(TableError::Unreleased)
        );
    }

    #[test]
    fn experiments_take_the_timers_of_a_p_away() {
        assert!(of_release(&version("go1.25.5")).unwrap().p_timers.is_some());
        assert_eq!(
            of_release(&version("go1.25.5 X:greenteagc"))
                .unwrap()
                .p_timers,
            None
        );
    }

    #[test]
    fn names_are_summed_and_tried_in_order() {
        let lookup = |name: &str| match name {
            "a.x" => Some(8),
            "b.y" => Some(40),
            _ => None,
        };
        assert_eq!(find(&["a.x+b.y"], &lookup), Some(48));
        assert_eq!(find(&["a.x+b.z", "b.y"], &lookup), Some(40));
        assert_eq!(find(&["c.x"], &lookup), None);
    }
}
