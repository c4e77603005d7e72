//! For which semaphore do goroutines wait? It is what a mutex, a read-write mutex and a wait group are made of.
//!
//! The runtime hangs those who wait into the trees of `runtime.semtable` (src/runtime/sema.go, the same from Go 1.18 to
//! 1.27): 251 roots, picked by the address; in each a tree of `sudog`s, one a semaphore, each the head of a list of
//! those who wait for the same. From Go 1.26 `g.waiting` names that `sudog` too, also for `sync.Cond`, which has a list
//! of its own that nothing points to.

use foldhash::{HashMap, HashMapExt};

use super::waits::Waits;
use super::{Goroutine, Layout, Memory, MemoryError, Status, for_each_structure};
use crate::address::RuntimeAddr;

/// A semaphore that goroutines wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Semaphore {
    /// Its address: that of the field `sema` in a `sync.Mutex`, for one.
    pub address: RuntimeAddr,
    /// How many goroutines of all sites wait for it.
    pub waiters: u64,
}

/// Roots of the table (src/runtime/sema.go: `semTabSize`).
const ROOTS: u64 = 251;

/// Waiters that are looked at: more tell no more about a leak.
const MOST_WAITERS: usize = 200_000;

/// How far a list or a tree is followed. Each step costs a call of its own, for which all trees go together.
const MOST_STEPS: usize = 50_000;

/// Looks at what every goroutine that waits for a semaphore waits for.
///
/// # Errors
/// When the memory as a whole is out of reach; what cannot be read is left out.
pub fn semaphores(
    memory: &dyn Memory,
    layout: &Layout,
    wait_reasons: &[String],
    goroutines: &[Goroutine],
) -> Result<Waits<Semaphore>, MemoryError> {
    let tells: Vec<bool> = (wait_reasons.iter())
        .map(|reason| is_semaphore(reason))
        .collect();
    let tells = |goroutine: &Goroutine| tells.get(usize::from(goroutine.wait_reason));
    // `*g` -> index. Those who wait for something else are no evidence of a semaphore.
    let mut waiting: HashMap<u64, usize> = HashMap::new();
    for (index, goroutine) in goroutines.iter().enumerate() {
        if goroutine.status == Status::Waiting && tells(goroutine) == Some(&true) {
            waiting.insert(goroutine.g.0, index);
        }
    }
    let mut found: HashMap<usize, u64> = HashMap::new();
    if !waiting.is_empty() {
        from_table(memory, layout, &waiting, &mut found)?;
        from_goroutines(memory, layout, goroutines, &waiting, &mut found)?;
    }

    let mut waits = Waits {
        left_out: (waiting.len() - found.len()) as u64,
        ..Waits::default()
    };
    let mut edges: Vec<(u64, usize)> = found
        .iter()
        .map(|(index, address)| (*address, *index))
        .collect();
    edges.sort_unstable();
    for (address, index) in edges {
        match waits.things.last_mut() {
            Some(Semaphore {
                address: last,
                waiters,
            }) if last.0 == address => *waiters += 1,
            _ => waits.things.push(Semaphore {
                address: RuntimeAddr(address),
                waiters: 1,
            }),
        }
        waits.edges.push((index, waits.things.len() - 1));
    }
    Ok(waits)
}

/// Whether a goroutine with this wait reason hangs on a semaphore (src/runtime/runtime2.go: `waitReasonStrings`).
fn is_semaphore(wait_reason: &str) -> bool {
    wait_reason == "semacquire" || wait_reason.starts_with("sync.")
}

/// Walks all trees at once, a level or a list's next link a step. Goroutine -> address of its semaphore.
fn from_table(
    memory: &dyn Memory,
    layout: &Layout,
    waiting: &HashMap<u64, usize>,
    found: &mut HashMap<usize, u64>,
) -> Result<(), MemoryError> {
    let Some(table) = layout.semaphores else {
        return Ok(());
    };
    let offsets = &layout.offsets;
    let mut bytes = vec![0; usize::try_from(ROOTS * table.stride).unwrap_or(0)];
    match memory.read(table.roots, &mut bytes) {
        Ok(()) => {}
        Err(MemoryError::Unmapped { .. }) => return Ok(()),
        Err(error) => return Err(error),
    }
    // sudog -> the root that it was reached from.
    let mut hooks: HashMap<u64, u64> = HashMap::new();
    let stride = usize::try_from(table.stride).unwrap_or(usize::MAX);
    for (root, entry) in (0..).zip(bytes.chunks_exact(stride)) {
        let tree = super::Fields(entry).word(offsets.sema_root_treap as usize);
        if tree != 0 {
            hooks.insert(tree, root);
        }
    }

    for _ in 0..MOST_STEPS {
        if hooks.is_empty() || found.len() >= MOST_WAITERS {
            break;
        }
        let mut next = HashMap::new();
        for_each_structure(
            memory,
            &mut hooks.keys().copied().collect(),
            sudog_bytes(layout),
            &mut 0,
            |address, mut fields| {
                let (Some(&root), Some(&index)) = (
                    hooks.get(&address),
                    waiting.get(&fields.word(offsets.sudog_g as usize)),
                ) else {
                    return;
                };
                let semaphore = fields.word(offsets.sudog_elem as usize);
                // `semtable.rootFor`: a sudog that was given back and used again meanwhile is not of this tree. And nobody
                // waits twice: what comes back to the same goroutine is a circle.
                let elsewhere = semaphore == 0 || (semaphore >> 3) % ROOTS != root;
                if elsewhere || found.contains_key(&index) {
                    return;
                }
                found.insert(index, semaphore);
                for link in [
                    offsets.sudog_prev,
                    offsets.sudog_next,
                    offsets.sudog_waitlink,
                ] {
                    let other = fields.word(link as usize);
                    if other != 0 {
                        next.insert(other, root);
                    }
                }
            },
        )?;
        hooks = next;
    }
    Ok(())
}

/// Asks `g.waiting` of those that no tree has: `sync.Cond`, and a binary whose table is not known. Before Go 1.26 it
/// names channels only, and is nil for those who wait for something else.
fn from_goroutines(
    memory: &dyn Memory,
    layout: &Layout,
    goroutines: &[Goroutine],
    waiting: &HashMap<u64, usize>,
    found: &mut HashMap<usize, u64>,
) -> Result<(), MemoryError> {
    let mut hooks: HashMap<u64, usize> = HashMap::new();
    for index in waiting.values().filter(|index| !found.contains_key(index)) {
        if let Some(goroutine) = goroutines
            .get(*index)
            .filter(|goroutine| goroutine.waiting != 0)
        {
            hooks.insert(goroutine.waiting, *index);
        }
    }
    let offsets = &layout.offsets;
    for_each_structure(
        memory,
        &mut hooks.keys().copied().take(MOST_WAITERS).collect(),
        sudog_bytes(layout),
        &mut 0,
        |address, mut fields| {
            let (Some(&index), owner) =
                (hooks.get(&address), fields.word(offsets.sudog_g as usize))
            else {
                return;
            };
            let semaphore = fields.word(offsets.sudog_elem as usize);
            if waiting.get(&owner) == Some(&index) && semaphore != 0 {
                found.insert(index, semaphore);
            }
        },
    )
}

/// Bytes of a `sudog` up to the last field that is read.
fn sudog_bytes(layout: &Layout) -> usize {
    let offsets = &layout.offsets;
    [
        offsets.sudog_g,
        offsets.sudog_elem,
        offsets.sudog_prev,
        offsets.sudog_next,
        offsets.sudog_waitlink,
    ]
    .into_iter()
    .max()
    .map_or(0, |last| last as usize + 8)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::census::tests::Regions;
    use crate::census::{Anchors, SemaphoreTable, TimerFunctions};
    use crate::event::Goid;
    use crate::resolve::offsets;

    const TABLE: u64 = 0x1000;
    const STRIDE: u64 = 64;
    const SUDOGS: u64 = 0x10_0000;
    const SUDOG_BYTES: u64 = 128;

    /// A table of semaphores and the goroutines that wait, written word by word.
    struct Program {
        memory: Regions,
        layout: Layout,
        goroutines: Vec<Goroutine>,
    }

    impl Program {
        fn new() -> Self {
            let mut releases = offsets::table().expect("the table");
            let release = releases.pop().expect("a release");
            let nowhere = RuntimeAddr(0);
            Self {
                memory: Regions(BTreeMap::from([
                    (TABLE, vec![0; 1 << 14]),
                    (SUDOGS, vec![0; 1 << 16]),
                ])),
                layout: Layout {
                    heap: None,
                    allglen: nowhere,
                    allgptr: nowhere,
                    allp: nowhere,
                    wait_reasons: nowhere,
                    wait_reason_count: 0,
                    semaphores: Some(SemaphoreTable {
                        roots: RuntimeAddr(TABLE),
                        stride: STRIDE,
                    }),
                    offsets: release.offsets,
                    timer_functions: TimerFunctions::default(),
                    anchors: Anchors::default(),
                },
                goroutines: Vec::new(),
            }
        }

        fn write(&mut self, address: u64, word: u64) {
            let (start, region) =
                (self.memory.0.range_mut(..=address).next_back()).expect("a region");
            let at = usize::try_from(address - start).expect("regions are small");
            region[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }

        /// One more goroutine that waits for `semaphore`; answers with its sudog.
        fn wait(&mut self, semaphore: u64) -> u64 {
            let number = self.goroutines.len() as u64;
            let (g, sudog) = (0xc000_0000 + number * 512, SUDOGS + number * SUDOG_BYTES);
            self.goroutines.push(Goroutine {
                goid: Goid(number + 1),
                g: RuntimeAddr(g),
                status: Status::Waiting,
                wait_reason: 1,
                gopc: RuntimeAddr(0x50),
                startpc: RuntimeAddr(0x60),
                stack_bytes: 2048,
                depth: 100,
                waiting_since_ns: 0,
                waiting: 0,
                stops: 0,
                leaked: false,
            });
            let offsets = self.layout.offsets.clone();
            self.write(sudog + u64::from(offsets.sudog_g), g);
            self.write(sudog + u64::from(offsets.sudog_elem), semaphore);
            sudog
        }

        fn root(&mut self, semaphore: u64, sudog: u64) {
            let root = TABLE + (semaphore >> 3) % ROOTS * STRIDE;
            self.write(root + u64::from(self.layout.offsets.sema_root_treap), sudog);
        }

        fn link(&mut self, from: u64, field: u32, to: u64) {
            self.write(from + u64::from(field), to);
        }

        fn waits(&self) -> Vec<(u64, u64)> {
            let names = ["".to_owned(), "sync.Mutex.Lock".to_owned()];
            let waits = semaphores(&self.memory, &self.layout, &names, &self.goroutines);
            let waits = waits.expect("regions never fail as a whole");
            assert_eq!(
                waits.edges.len() as u64 + waits.left_out,
                self.goroutines.len() as u64
            );
            let counts = waits.things.iter();
            counts
                .map(|semaphore| (semaphore.address.0, semaphore.waiters))
                .collect()
        }
    }

    #[test]
    fn a_tree_of_lists_is_walked() {
        let mut program = Program::new();
        let offsets = program.layout.offsets.clone();
        // Three semaphores of one root: addresses apart by 8 times the number of roots.
        let [a, b, c] = [0, 1, 2].map(|step| 0xc000_1000 + step * 8 * ROOTS);
        let (first, left, right) = (program.wait(a), program.wait(b), program.wait(c));
        let (second, third) = (program.wait(a), program.wait(a));
        program.root(a, first);
        program.link(first, offsets.sudog_prev, left);
        program.link(first, offsets.sudog_next, right);
        program.link(first, offsets.sudog_waitlink, second);
        program.link(second, offsets.sudog_waitlink, third);
        assert_eq!(program.waits(), [(a, 3), (b, 1), (c, 1)]);
    }

    #[test]
    fn what_is_of_another_tree_is_not_believed() {
        let mut program = Program::new();
        let offsets = program.layout.offsets.clone();
        let first = program.wait(0xc000_1000);
        // Used again by one who waits for something else.
        let stray = program.wait(0xc000_1008);
        program.root(0xc000_1000, first);
        program.link(first, offsets.sudog_waitlink, stray);
        assert_eq!(program.waits(), [(0xc000_1000, 1)]);
    }

    #[test]
    fn a_circle_ends() {
        let mut program = Program::new();
        let offsets = program.layout.offsets.clone();
        let (first, second) = (program.wait(0xc000_1000), program.wait(0xc000_1000));
        program.root(0xc000_1000, first);
        program.link(first, offsets.sudog_waitlink, second);
        program.link(second, offsets.sudog_waitlink, first);
        program.link(second, offsets.sudog_next, second);
        assert_eq!(program.waits(), [(0xc000_1000, 2)]);
    }

    #[test]
    fn from_go_1_26_a_goroutine_names_what_it_waits_for() {
        let mut program = Program::new();
        program.layout.semaphores = None;
        let sudog = program.wait(0xc000_1000);
        program.wait(0xc000_2000);
        program.goroutines[0].waiting = sudog;
        // That of another is not its own.
        program.goroutines[1].waiting = sudog;
        assert!(program.waits().len() <= 1);
        program.goroutines[1].waiting = 0;
        assert_eq!(program.waits(), [(0xc000_1000, 1)]);
    }
}
