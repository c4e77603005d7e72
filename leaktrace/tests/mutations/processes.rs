//! Processes that forge their runtime's structures: a census takes little time and memory, and ends with a sentence.

use std::cell::Cell;

use leaktrace::address::RuntimeAddr;
use leaktrace::census::{
    self, Anchors, Census, CensusError, Layout, Memory, MemoryError, Piece, SemaphoreTable,
    TimerFunctions, semaphores::semaphores, waits,
};
use leaktrace::resolve::offsets::{self, Offsets};

use crate::allocation;

/// Where the variables lie.
const ALLGLEN: u64 = 0x1000;
const ALLGPTR: u64 = 0x1008;
const ALLP: u64 = 0x1010;
const REASONS: u64 = 0x1100;
const SEMAPHORES: u64 = 0x2000;
/// An array that goes on for ever.
const ARRAY: u64 = 0x1_0000_0000;
/// More than any of these may take.
const MOST_BYTES: usize = 64 << 20;

/// Memory of which each word is made when it is asked for.
struct Forged<F> {
    word: F,
    calls: Cell<u64>,
    bytes: Cell<u64>,
}

impl<F: Fn(u64) -> Option<u64>> Forged<F> {
    fn new(word: F) -> Self {
        let (calls, bytes) = (Cell::new(0), Cell::new(0));
        Self { word, calls, bytes }
    }

    fn fill(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let last = buffer.len() as u64;
        let end = address.checked_add(last)?;
        let mut at = address & !7;
        while at < end {
            let word = (self.word)(at)?.to_le_bytes();
            for (byte, position) in word.into_iter().zip(at..) {
                if let Some(into) = position.checked_sub(address).filter(|into| *into < last) {
                    buffer[usize::try_from(into).expect("within the buffer")] = byte;
                }
            }
            at = at.checked_add(8)?;
        }
        Some(())
    }
}

impl<F: Fn(u64) -> Option<u64>> Memory for Forged<F> {
    fn read_pieces(&self, pieces: &[Piece], buffer: &mut [u8]) -> Result<Vec<bool>, MemoryError> {
        self.calls.set(self.calls.get() + 1);
        self.bytes.set(self.bytes.get() + buffer.len() as u64);
        let mut rest = buffer;
        let read = pieces.iter().map(|piece| {
            let (now, next) = std::mem::take(&mut rest).split_at_mut(piece.bytes);
            rest = next;
            self.fill(piece.address.0, now).is_some()
        });
        Ok(read.collect())
    }
}

fn layout(offsets: &Offsets) -> Layout {
    Layout {
        heap: None,
        allglen: RuntimeAddr(ALLGLEN),
        allgptr: RuntimeAddr(ALLGPTR),
        allp: RuntimeAddr(ALLP),
        wait_reasons: RuntimeAddr(REASONS),
        wait_reason_count: 40,
        semaphores: Some(SemaphoreTable {
            roots: RuntimeAddr(SEMAPHORES),
            stride: 64,
        }),
        offsets: offsets.clone(),
        timer_functions: TimerFunctions::default(),
        anchors: Anchors::default(),
    }
}

/// The offsets of a release with the old timers, and of one with the new.
fn releases() -> [Offsets; 2] {
    [22, 27].map(|minor| {
        let table = offsets::table().expect("the table");
        let release = table.into_iter().find(|release| release.minor == minor);
        release.expect("a known release").offsets
    })
}

/// Takes a census of a process whose words are these, after the variables; answers how many calls it took, too.
fn take(
    offsets: &Offsets,
    variables: &[(u64, u64)],
    word: impl Fn(u64) -> Option<u64>,
) -> (Result<Census, CensusError>, u64) {
    let memory = Forged::new(|at| {
        let variable = variables.iter().find(|(address, _)| *address == at);
        match variable {
            Some((_, value)) => Some(*value),
            None if (ALLGLEN..REASONS).contains(&at) => Some(0),
            None => word(at),
        }
    });
    let layout = layout(offsets);
    let before = allocation::start();
    let census = census::take(&memory, &layout, &|| 1);
    let used = allocation::most_since(before);
    assert!(used <= MOST_BYTES, "{used} bytes for {variables:x?}");
    assert!(memory.bytes.get() < 1 << 30, "read {}", memory.bytes.get());
    (census, memory.calls.get())
}

#[test]
fn counts_that_no_program_has_are_refused() {
    for offsets in releases() {
        for count in [1 << 60, 1 << 63, u64::MAX, (16 << 20) + 1] {
            let lists = [(ALLGLEN, count), (ALLGPTR, ARRAY)];
            let (census, calls) = take(&offsets, &lists, |_| Some(0));
            let said = census.expect_err("it is implausible").to_string();
            assert!(said.contains(&count.to_string()), "{said}");
            assert!(calls < 10);

            let (census, _) = take(&offsets, &[(ALLP, ARRAY), (ALLP + 8, count)], |_| Some(0));
            let said = census.expect_err("it is implausible").to_string();
            assert!(said.contains("Ps"), "{said}");
        }
    }
}

#[test]
fn a_list_that_is_nowhere_takes_no_memory() {
    for offsets in releases() {
        let lists = [(ALLGLEN, 16 << 20), (ALLGPTR, ARRAY)];
        let (census, calls) = take(&offsets, &lists, |_| None);
        let said = census.expect_err("it cannot be read").to_string();
        assert!(said.contains("no memory"), "{said}");
        assert!(calls < 10);
    }
}

#[test]
fn a_list_that_moves_for_ever_is_given_up() {
    let turn = Cell::new(0);
    let memory = Forged::new(|at| {
        turn.set(turn.get() + 8);
        Some(match at {
            ALLGLEN => 3,
            ALLGPTR => ARRAY + turn.get(),
            _ => 0,
        })
    });
    let census = census::take(&memory, &layout(&releases()[0]), &|| 1);
    let said = census.expect_err("it never rests").to_string();
    assert!(said.contains("changed during each"), "{said}");
}

/// A live, waiting goroutine at every address, which all overlap: only those count that have room beside each other.
#[test]
fn goroutines_that_overlap_count_once() {
    const COUNT: u64 = 200_000;
    let offsets = &releases()[1];
    let lists = [(ALLGLEN, COUNT), (ALLGPTR, ARRAY)];
    let (census, _) = take(offsets, &lists, |at| {
        if (ARRAY..ARRAY + COUNT * 8).contains(&at) {
            return Some(ARRAY * 2 + (at - ARRAY));
        }
        // As a status: waiting, in either half of the word; as a number: one.
        Some(0x0000_0004_0000_0004)
    });
    let census = census.expect("it is all mapped");
    let seen = census.goroutines.len() as u64;
    assert!((1..COUNT / 20).contains(&seen), "{seen}");
    assert_eq!(census.unreadable, COUNT - seen);
}

#[test]
fn one_goroutine_listed_a_hundred_thousand_times_is_one() {
    let offsets = &releases()[1];
    let lists = [(ALLGLEN, 100_000), (ALLGPTR, ARRAY)];
    let (census, _) = take(offsets, &lists, |at| {
        Some(if at < ARRAY * 2 {
            ARRAY * 2
        } else {
            4 | 4 << 32
        })
    });
    assert_eq!(census.expect("it is all mapped").goroutines.len(), 1);
}

/// Two slots of which one is used again while the census is taken: who was there before may be gone, and who is there now was
/// not there when the first reading ended.
#[test]
fn a_goroutine_that_is_another_when_read_again_is_not_counted() {
    for offsets in releases() {
        let lists = [(ALLGLEN, 2), (ALLGPTR, ARRAY)];
        let readings = Cell::new(0_u64);
        let changing = ARRAY * 2 + offsets.g_goid as u64;
        let (census, _) = take(&offsets, &lists, |at| {
            if at < ARRAY * 2 {
                return Some(ARRAY * 2 + (at - ARRAY) * 512);
            }
            if at == changing {
                readings.set(readings.get() + 1);
                return Some(1000 + readings.get());
            }
            Some(4 | 4 << 32)
        });
        let census = census.expect("it is all mapped");
        let found: Vec<_> = census.goroutines.iter().map(|one| one.goid.0).collect();
        assert_eq!(found, [4 | 4 << 32]);
        assert_eq!(readings.get(), 2);
    }
}

#[test]
fn a_million_pointers_to_nowhere_are_not_followed_one_by_one() {
    const COUNT: u64 = 1_000_000;
    for offsets in releases() {
        let lists = [(ALLGLEN, COUNT), (ALLGPTR, ARRAY)];
        let (census, calls) = take(&offsets, &lists, |at| {
            (ARRAY..ARRAY + COUNT * 8)
                .contains(&at)
                .then(|| ARRAY * 8 + (at - ARRAY) * 512)
        });
        let census = census.expect("the list itself is there");
        assert_eq!(census.unreadable, COUNT);
        assert!(calls < 200_000, "{calls}");
    }
}

#[test]
fn all_heaps_together_are_bounded() {
    for offsets in releases() {
        // 65,536 Ps, each with a heap that is as large as all together may be.
        let lists = [(ALLP, ARRAY), (ALLP + 8, 1 << 16)];
        let (census, _) = take(&offsets, &lists, |at| {
            if (ARRAY..ARRAY + (8 << 16)).contains(&at) {
                return Some(ARRAY * 2 + (at - ARRAY) * (1 << 16));
            }
            // An address as well as a length: of entries that are all zero.
            Some(if at < ARRAY * 64 { 3_000_000 } else { 0 })
        });
        let said = census.expect_err("it is implausible").to_string();
        assert!(said.contains("timers"), "{said}");
    }
}

/// One P, listed many times, with one timer in its heap.
#[test]
fn a_p_listed_twice_has_its_timers_once() {
    let offsets = &releases()[1];
    let p = ARRAY * 2;
    let owner = p + u64::from(offsets.p_timers.expect("a known place"));
    let heap = owner + u64::from(offsets.timers_heap.expect("a new timer"));
    let (entries, timer) = (ARRAY * 3, ARRAY * 4);
    let names_owner = timer + u64::from(offsets.timer_ts.expect("a new timer"));
    let lists = [(ALLP, ARRAY), (ALLP + 8, 100)];
    let (census, _) = take(offsets, &lists, |at| {
        Some(match at {
            _ if (ARRAY..ARRAY + 800).contains(&at) => p,
            _ if at == heap => entries,
            _ if at == heap + 8 => 1,
            _ if at == entries => timer,
            _ if at == names_owner => owner,
            _ => 0,
        })
    });
    let timers = census.expect("it is all mapped").timers;
    assert_eq!(timers.map(|timers| timers.len()), Some(1));
}

/// Which of some timers a census finds, all of one P, whose heap is another each time that it is read, until it is the last.
fn timers_of(heaps: &[&[u64]], timers: &[u64]) -> Vec<u64> {
    let offsets = &releases()[1];
    let p = ARRAY * 2;
    let owner = p + u64::from(offsets.p_timers.expect("a known place"));
    let heap = owner + u64::from(offsets.timers_heap.expect("a new timer"));
    let entries = ARRAY * 3;
    let names_owner = u64::from(offsets.timer_ts.expect("a new timer"));
    let lists = [(ALLP, ARRAY), (ALLP + 8, 1)];
    // Its length is read once more at first, to see whether there are too many.
    let lengths_read = Cell::new(0_usize);
    let reading = || lengths_read.get().clamp(2, heaps.len() + 1) - 2;
    let (census, _) = take(offsets, &lists, |at| {
        let now = heaps[reading()];
        Some(match at {
            ARRAY => p,
            _ if at == heap => entries,
            _ if at == heap + 8 => {
                lengths_read.set(lengths_read.get() + 1);
                heaps[reading()].len() as u64
            }
            _ if (entries..entries + (now.len() as u64) * 16).contains(&at) && at % 16 == 0 => {
                now[usize::try_from((at - entries) / 16).expect("a few")]
            }
            _ if timers.contains(&at.wrapping_sub(names_owner)) => owner,
            _ => 0,
        })
    });
    let found = census.expect("it is all mapped").timers.expect("heaps");
    found.iter().map(|timer| timer.timer.0).collect()
}

#[test]
fn a_timer_that_moves_in_its_heap_is_not_missed() {
    let [one, two, three] = [ARRAY * 4, ARRAY * 5, ARRAY * 6];
    let all = [one, two, three];
    // The second was sifted to the first place when that was read already.
    assert_eq!(
        timers_of(&[&[one, one, three], &[two, one, three]], &all),
        all
    );
    // The third was pushed behind the end by a timer that was added before it.
    assert_eq!(timers_of(&[&[one, two], &[one, two, three]], &all), all);
    // It does not come to rest before the last reading.
    let restless: &[&[u64]] = &[&[one], &[one, one], &[one, two], &[two, one, three]];
    assert_eq!(timers_of(restless, &all), all);
    // It stays as it is, or ends.
    assert_eq!(timers_of(&[&all], &all), all);
    assert_eq!(timers_of(&[&all, &[]], &all), all);
}

/// A heap that is full of others each time that it is read.
#[test]
fn a_heap_that_never_rests_is_given_up() {
    let offsets = &releases()[1];
    let heap = u64::from(offsets.timers_heap.expect("a new timer"));
    let heap = ARRAY * 2 + u64::from(offsets.p_timers.expect("a known place")) + heap;
    let readings = Cell::new(0);
    let lists = [(ALLP, ARRAY), (ALLP + 8, 1)];
    let (census, calls) = take(offsets, &lists, |at| match at {
        ARRAY => Some(ARRAY * 2),
        _ if at == heap => {
            readings.set(readings.get() + 1);
            Some(ARRAY * 3)
        }
        _ if at == heap + 8 => Some(1 << 17),
        _ if at < ARRAY * 3 => Some(0),
        _ if at < ARRAY * 4 => Some((at << 8) + (readings.get() << 40)),
        _ => None,
    });
    let census = census.expect("there is nothing but an odd heap");
    assert_eq!(census.timers.map(|timers| timers.len()), Some(0));
    assert!(readings.get() <= 4, "read {} times", readings.get());
    assert!(calls < 200_000, "{calls} calls");
}

#[test]
fn names_of_a_terabyte_are_cut_off() {
    let memory = Forged::new(|at| {
        Some(if at % 16 == 8 {
            1 << 40
        } else {
            0x4141_4141_4141
        })
    });
    let names = census::wait_reasons(&memory, &layout(&releases()[0])).expect("it is mapped");
    assert_eq!(names.len(), 40);
    assert!(names.iter().all(|name| name.len() <= 64 * 3));
}

/// A goroutine that waits by a `sudog` which follows itself, and one whose channel is nowhere.
#[test]
fn a_circle_of_channels_ends() {
    let offsets = &releases()[1];
    let g = ARRAY * 2;
    let sudog = ARRAY * 3;
    let owner = sudog + u64::from(offsets.sudog_g);
    let link = sudog + u64::from(offsets.sudog_waitlink);
    let waiting = g + u64::from(offsets.g_waiting);
    let status = g + u64::from(offsets.g_atomicstatus & !7);
    let lists = [(ALLGLEN, 1), (ALLGPTR, ARRAY)];
    let word = |at: u64| match at {
        ARRAY => Some(g),
        _ if at == waiting => Some(sudog),
        _ if at == status => Some(4 | 4 << 32),
        _ if at == owner => Some(g),
        _ if at == link => Some(sudog),
        _ => Some(1),
    };
    let (census, _) = take(offsets, &lists, word);
    let census = census.expect("it is all mapped");
    assert_eq!(census.goroutines.len(), 1);
    let names = vec!["select".to_owned(); 256];
    let memory = Forged::new(word);
    let waits = waits::channels(&memory, &layout(offsets), &names, &census.goroutines);
    let waits = waits.expect("it is all mapped");
    assert!((1..100).contains(&waits.edges.len()));
    assert!(memory.calls.get() < 200);
}

/// A table of semaphores in which every word is the address of a `sudog` of the one goroutine there is.
#[test]
fn a_forest_of_semaphores_ends() {
    let offsets = &releases()[1];
    let g = ARRAY * 2;
    let status = g + u64::from(offsets.g_atomicstatus & !7);
    let lists = [(ALLGLEN, 1), (ALLGPTR, ARRAY)];
    let word = |at: u64| match at {
        ARRAY => Some(g),
        _ if at == status => Some(4 | 4 << 32),
        _ if at >= ARRAY * 3 && at % 256 == u64::from(offsets.sudog_g) => Some(g),
        _ => Some(ARRAY * 3 + (at * 256) % (1 << 40)),
    };
    let (census, _) = take(offsets, &lists, word);
    let census = census.expect("it is all mapped");
    assert_eq!(census.goroutines.len(), 1);
    let names = vec!["sync.Mutex.Lock".to_owned(); 256];
    let memory = Forged::new(word);
    let waits = semaphores(&memory, &layout(offsets), &names, &census.goroutines);
    assert!(waits.expect("it is all mapped").edges.len() <= 1);
    assert!(memory.calls.get() < 200, "{}", memory.calls.get());
}
