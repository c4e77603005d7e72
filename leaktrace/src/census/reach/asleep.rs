//! Who sleeps, and on what: the goroutines that somebody else has to wake, with the objects by which that could be done.

use std::ops::Range;

use foldhash::{HashMap, HashMapExt};

use super::heap::words;
use super::{ReachError, Walk};
use crate::address::RuntimeAddr;
use crate::census::{ConnectionLoops, Goroutine, MemoryError, Status};

/// A select that names more is not followed to its end.
const MOST_CASES: usize = 63;

/// Of a stack: it blocks in the innermost frames.
const MOST_STACK: u64 = 2 << 10;

/// Who sleeps. Everybody else counts as awake.
pub(super) struct Asleep {
    /// By index into the goroutines: the objects in the heap by which it can be woken.
    on: HashMap<usize, Vec<u64>>,
    /// Of each connection of an HTTP client that waits for a body to be closed: who reads, and who writes.
    pub(super) connections: Vec<(usize, Option<usize>)>,
}

impl Asleep {
    /// Those who wait for what lies in the heap.
    pub(super) fn find(walk: &Walk<'_>) -> Result<Self, ReachError> {
        let scene = walk.scene;
        let mut on: HashMap<usize, Vec<u64>> = HashMap::new();
        for (index, thing) in &scene.channels.edges {
            if let Some(channel) = scene.channels.things.get(*thing) {
                on.entry(*index).or_default().push(channel.address.0);
            }
        }
        for (index, thing) in &scene.semaphores.edges {
            if let Some(semaphore) = scene.semaphores.things.get(*thing) {
                on.entry(*index).or_default().push(semaphore.address.0);
            }
        }
        for (index, goroutine) in scene.goroutines.iter().enumerate() {
            let reason = (scene.wait_reasons).get(usize::from(goroutine.wait_reason));
            let own = match reason.map(String::as_str) {
                _ if goroutine.status != Status::Waiting || on.contains_key(&index) => None,
                // The runtime's `coro` begins with its goroutine (src/runtime/coro.go).
                Some("coroutine") => Some(0),
                // Before Go 1.26 only its own stack says by which `sudog` it hangs in the list of the Cond.
                Some("sync.Cond.Wait") => Some(scene.layout.offsets.sudog_g),
                _ => None,
            };
            if let Some(back) = own
                && let Some(object) = walk.refers_back(goroutine, u64::from(back))?
            {
                on.insert(index, vec![object]);
            }
        }
        let loops = (scene.layout.heap.as_ref()).and_then(|heap| heap.connection_loops.as_ref());
        let connections = match loops {
            Some(loops) => connections(loops, walk, &mut on)?,
            None => Vec::new(),
        };
        let on = (on.into_iter())
            .filter(|(_, things)| things.len() <= MOST_CASES)
            .filter_map(|(index, things)| {
                let objects = things.iter().map(|thing| walk.spans.base(*thing));
                Some((index, objects.collect::<Option<Vec<u64>>>()?))
            })
            .collect();
        Ok(Self { on, connections })
    }

    /// Each with the objects by which it can be woken.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[u64])> {
        (self.on.iter()).map(|(index, objects)| (*index, objects.as_slice()))
    }

    /// The objects by which one can be woken.
    pub(super) fn on(&self, index: usize) -> &[u64] {
        self.on.get(&index).map_or(&[], Vec::as_slice)
    }
}

/// The connections of HTTP clients that wait for the body of a response to be read or closed: the goroutine that reads waits
/// for that on a channel with room, the only one in its select (src/net/http/transport.go, Go 1.18 to 1.27: `readLoop`,
/// `waitForBodyRead`). The others are those of the request's context and of the end of the connection, which the one that
/// writes waits for as well: they end a connection too, but do not make good for a body that nobody has any more. So the one
/// that reads counts as waiting for the body alone. Answers who reads and who writes.
fn connections(
    loops: &ConnectionLoops,
    walk: &Walk<'_>,
    on: &mut HashMap<usize, Vec<u64>>,
) -> Result<Vec<(usize, Option<usize>)>, ReachError> {
    let scene = walk.scene;
    let has_room: HashMap<u64, bool> = (scene.channels.things.iter())
        .map(|channel| (channel.address.0, channel.capacity > 0))
        .collect();
    let (mut reads, mut writes) = (Vec::new(), HashMap::new());
    for (index, things) in on.iter() {
        let Some(goroutine) = scene.goroutines.get(*index) else {
            continue;
        };
        if things.len() < 2 || !loops.starts.contains(&goroutine.gopc) {
            continue;
        }
        match walk.blocks_in(goroutine, &loops.reads, &loops.writes)? {
            Some(true) => {
                let (body, others): (Vec<u64>, Vec<u64>) = (things.iter().copied())
                    .partition(|thing| has_room.get(thing).copied().unwrap_or_default());
                if body.len() == 1 {
                    reads.push((*index, body, others));
                }
            }
            Some(false) => writes.extend(things.iter().map(|thing| (*thing, *index))),
            None => {}
        }
    }
    let mut found = Vec::new();
    for (index, body, others) in reads {
        let writes = others.iter().find_map(|thing| writes.get(thing).copied());
        on.insert(index, body);
        found.push((index, writes));
    }
    Ok(found)
}

impl Walk<'_> {
    /// The one object that a goroutine's own stack refers to and that names the goroutine, `back` bytes from its start.
    fn refers_back(&self, goroutine: &Goroutine, back: u64) -> Result<Option<u64>, ReachError> {
        let Some(bytes) = self.innermost(goroutine)? else {
            return Ok(None);
        };
        let mut objects: Vec<u64> = words(&bytes)
            .filter_map(|word| self.spans.base(word))
            .collect();
        objects.sort_unstable();
        objects.dedup();
        let mut found = None;
        for object in objects {
            match self.scene.memory.word(RuntimeAddr(object).offset(back)) {
                Ok(word) if word == goroutine.g.0 && found.replace(object).is_some() => {
                    return Ok(None);
                }
                Ok(_) | Err(MemoryError::Unmapped { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// Whether a goroutine blocks in one function, or else in another: which of them the innermost return address on its
    /// stack lies in; `None` for neither.
    fn blocks_in(
        &self,
        goroutine: &Goroutine,
        one: &Range<RuntimeAddr>,
        other: &Range<RuntimeAddr>,
    ) -> Result<Option<bool>, ReachError> {
        let Some(bytes) = self.innermost(goroutine)? else {
            return Ok(None);
        };
        Ok(words(&bytes).map(RuntimeAddr).find_map(|word| {
            let in_one = one.contains(&word);
            (in_one || other.contains(&word)).then_some(in_one)
        }))
    }

    /// The innermost part of a goroutine's stack; `None` when it cannot be read.
    fn innermost(&self, goroutine: &Goroutine) -> Result<Option<Vec<u8>>, ReachError> {
        self.in_time()?;
        let Some(&(low, high)) = self.stacks.get(&goroutine.g.0) else {
            return Ok(None);
        };
        let used = high.saturating_sub(low).min(MOST_STACK);
        let mut bytes = vec![0; usize::try_from(used).unwrap_or(0)];
        match self.scene.memory.read(RuntimeAddr(low), &mut bytes) {
            Err(MemoryError::Unmapped { .. }) => Ok(None),
            other => Ok(other.map(|()| Some(bytes))?),
        }
    }
}
