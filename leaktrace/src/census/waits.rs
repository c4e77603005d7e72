//! What do goroutines wait on? The channels behind "chan receive", "chan send" and "select".
//!
//! A waiting goroutine hangs by a list of `sudog`s (`g.waiting`, src/runtime/runtime2.go), one for each channel of a
//! select. Goroutines of different sites that hang on one channel are seen together, and a channel on which nobody but
//! receivers wait is seen as such.

use foldhash::{HashMap, HashMapExt};

use super::{Goroutine, Layout, Memory, MemoryError, Status, for_each_structure};
use crate::address::RuntimeAddr;

/// One thing that goroutines wait on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Address of its `hchan`.
    pub address: RuntimeAddr,
    /// Elements that it can hold.
    pub capacity: u64,
    /// Elements that it holds.
    pub length: u64,
    /// Whether it was closed.
    pub closed: bool,
    /// Goroutines that wait to receive from it and nothing else.
    pub receivers: u64,
    /// Goroutines that wait to send to it and nothing else.
    pub senders: u64,
    /// Goroutines that wait for it among others, in a select.
    pub selecting: u64,
}

/// The things of one sort (channels, semaphores) that goroutines wait on, and which goroutine waits on which.
#[derive(Clone, Debug)]
pub struct Waits<T> {
    /// Each thing that somebody waits on, by address.
    pub things: Vec<T>,
    /// Index into the census' goroutines, index into `things`: one for each thing that a goroutine waits on.
    pub edges: Vec<(usize, usize)>,
    /// Goroutines that wait on such things and were not looked at, because there were too many.
    pub left_out: u64,
}

impl<T> Default for Waits<T> {
    fn default() -> Self {
        Self {
            things: Vec::new(),
            edges: Vec::new(),
            left_out: 0,
        }
    }
}

/// A channel or semaphore, and how many goroutines of one site wait on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteWait<T> {
    /// Return address of the `go` statement that made them.
    pub gopc: RuntimeAddr,
    /// The first instruction that they ran.
    pub startpc: RuntimeAddr,
    /// How many of them.
    pub count: u64,
    /// What they wait on.
    pub on: T,
}

impl<T: Clone> Waits<T> {
    /// Sums up by site: for each thing and site, how many goroutines wait; most first.
    #[must_use]
    pub fn by_site(&self, goroutines: &[Goroutine]) -> Vec<SiteWait<T>> {
        let mut counts: HashMap<(RuntimeAddr, RuntimeAddr, usize), u64> = HashMap::new();
        for (index, place) in &self.edges {
            if let Some(goroutine) = goroutines.get(*index) {
                let key = (goroutine.gopc, goroutine.startpc, *place);
                *counts.entry(key).or_default() += 1;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts
            .sort_unstable_by_key(|(key, count)| (std::cmp::Reverse(*count), key.2, key.0, key.1));
        counts
            .into_iter()
            .filter_map(|((gopc, startpc, place), count)| {
                Some(SiteWait {
                    gopc,
                    startpc,
                    count,
                    on: self.things.get(place)?.clone(),
                })
            })
            .collect()
    }
}

/// Goroutines that are looked at: more tell no more about a leak.
const MOST_GOROUTINES: usize = 100_000;

/// Channels that goroutines hang on, all told: a select may name many.
const MOST_EDGES: usize = 1 << 20;

/// Cases of one select that are followed (the compiler allows 65,536).
const MOST_CASES: usize = 64;

/// The count of a channel that a goroutine which waits on it belongs to.
type Role = fn(&mut Channel) -> &mut u64;

/// How goroutines wait on a channel, by the name of their wait reason; the names are the target's own.
fn role(wait_reason: &str) -> Option<Role> {
    match wait_reason {
        "chan receive" => Some(|channel| &mut channel.receivers),
        "chan send" => Some(|channel| &mut channel.senders),
        "select" => Some(|channel| &mut channel.selecting),
        _ => None,
    }
}

/// Looks at what every goroutine that waits on a channel waits on.
///
/// # Errors
/// When the memory as a whole is out of reach; what cannot be read is left out.
pub fn channels(
    memory: &dyn Memory,
    layout: &Layout,
    wait_reasons: &[String],
    goroutines: &[Goroutine],
) -> Result<Waits<Channel>, MemoryError> {
    let mut waits = Waits::default();
    let roles: Vec<Option<Role>> = wait_reasons.iter().map(|reason| role(reason)).collect();
    let role = |goroutine: &Goroutine| *roles.get(usize::from(goroutine.wait_reason))?;
    // Sudogs and their goroutines; replaced by the next sudogs of the same goroutines, until none is left.
    let mut hooks: Vec<(u64, usize)> = Vec::new();
    for (index, goroutine) in goroutines.iter().enumerate() {
        let hangs = goroutine.status == Status::Waiting && goroutine.waiting != 0;
        if !hangs || role(goroutine).is_none() {
            continue;
        }
        if hooks.len() < MOST_GOROUTINES {
            hooks.push((goroutine.waiting, index));
        } else {
            waits.left_out += 1;
        }
    }

    let offsets = &layout.offsets;
    let sudog_bytes = [offsets.sudog_g, offsets.sudog_waitlink, offsets.sudog_c]
        .into_iter()
        .max()
        .map_or(0, |last| last as usize + 8);
    let mut on: Vec<(usize, u64)> = Vec::new();
    for _ in 0..MOST_CASES {
        if hooks.is_empty() {
            break;
        }
        hooks.sort_unstable();
        let mut next = Vec::new();
        let mut unreadable = 0;
        // They are shown in the order of their addresses.
        let mut rest = hooks.iter().peekable();
        for_each_structure(
            memory,
            &mut hooks.iter().map(|(sudog, _)| *sudog).collect(),
            sudog_bytes,
            &mut unreadable,
            |address, mut fields| {
                while rest.next_if(|(sudog, _)| *sudog < address).is_some() {}
                let Some(&(_, index)) = rest.next_if(|(sudog, _)| *sudog == address) else {
                    return;
                };
                // A sudog that was given back meanwhile belongs to somebody else.
                let owner = fields.word(offsets.sudog_g as usize);
                if goroutines.get(index).map(|waiter| waiter.g.0) != Some(owner) {
                    return;
                }
                let channel = fields.word(offsets.sudog_c as usize);
                if channel != 0 && on.len() < MOST_EDGES {
                    on.push((index, channel));
                } else if channel != 0 {
                    waits.left_out += 1;
                }
                let link = fields.word(offsets.sudog_waitlink as usize);
                if link != 0 {
                    next.push((link, index));
                }
            },
        )?;
        hooks = next;
    }

    let hchan_bytes = [
        offsets.hchan_qcount + 8,
        offsets.hchan_dataqsiz + 8,
        offsets.hchan_closed + 4,
    ];
    let mut unreadable = 0;
    for_each_structure(
        memory,
        &mut on.iter().map(|(_, channel)| *channel).collect(),
        hchan_bytes.into_iter().max().unwrap_or(0) as usize,
        &mut unreadable,
        |address, mut fields| {
            waits.things.push(Channel {
                address: RuntimeAddr(address),
                capacity: fields.word(offsets.hchan_dataqsiz as usize),
                length: fields.word(offsets.hchan_qcount as usize),
                closed: fields.half(offsets.hchan_closed as usize) != 0,
                ..Channel::default()
            });
        },
    )?;
    for (index, channel) in on {
        let by_address = |thing: &Channel| thing.address.0;
        let place = waits.things.binary_search_by_key(&channel, by_address);
        let (Ok(place), Some(goroutine)) = (place, goroutines.get(index)) else {
            continue;
        };
        if let (Some(channel), Some(role)) = (waits.things.get_mut(place), role(goroutine)) {
            *role(channel) += 1;
        }
        waits.edges.push((index, place));
    }
    Ok(waits)
}
