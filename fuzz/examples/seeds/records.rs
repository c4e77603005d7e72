//! Seeds that no program is needed for: records of the ring buffer, and small processes.

use leaktrace::resolve::offsets::{self, Offsets};
use leaktrace_fuzz::memory::{ALLGLEN, ALLGPTR, ALLP, BASE, FUNCTIONS, WAIT_REASONS, small};
use leaktrace_fuzz::number_of;

/// One record of each kind, and a short life of goroutines and timers.
pub fn events() -> Vec<(&'static str, Vec<u8>)> {
    let record = |kind: u8, object: u64, words: [u64; 4]| {
        let mut bytes = 1000_u64.to_le_bytes().to_vec();
        bytes.extend(object.to_le_bytes());
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend(words.into_iter().flat_map(u64::to_le_bytes));
        bytes
    };
    let goroutine = |kind, goid: u64| record(kind, 0x1000 + goid, [goid, 16, 32, 3]);
    let timer = |kind, at| record(kind, at, [5, 0, 0x40, 0x50]);
    let every_kind = [
        goroutine(0, 1),
        goroutine(2, 1),
        goroutine(3, 1),
        goroutine(1, 1),
        timer(4, 0x2000),
        timer(6, 0x2000),
        timer(7, 0x2000),
        timer(5, 0x2000),
    ];
    let lives: Vec<Vec<u8>> = (1..6)
        .map(|goid| goroutine(0, goid))
        .chain([goroutine(3, 0), goroutine(1, 2), goroutine(3, 0)])
        .collect();
    vec![
        ("every-kind", every_kind.concat()),
        ("lives", lives.concat()),
    ]
}

/// One process for each release: goroutines, two Ps, timers of each kind.
pub fn processes() -> Vec<(String, Vec<u8>)> {
    let table = offsets::table().unwrap_or_default();
    let processes = table.iter().map(|release| {
        let image = process(&small(&release.offsets));
        let bytes = [&[number_of(release.minor), 0, 3], image.as_slice()].concat();
        (format!("go1.{}", release.minor), bytes)
    });
    processes.collect()
}

/// Memory that grows as it is written.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at - BASE).unwrap_or(0);
        let end = start + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[start..end].copy_from_slice(bytes);
    }

    fn word(&mut self, at: u64, word: u64) {
        self.put(at, &word.to_le_bytes());
    }

    /// The next free address, on a multiple of 16.
    fn end(&self) -> u64 {
        BASE + (self.0.len() as u64).next_multiple_of(16)
    }
}

fn process(offsets: &Offsets) -> Vec<u8> {
    let mut image = Image(Vec::new());
    let names = BASE + 0x100;
    image.put(names, b"chan receivesleep");
    for (number, (start, length)) in [(names, 0), (names, 12), (names + 12, 5)]
        .into_iter()
        .enumerate()
    {
        let at = BASE + WAIT_REASONS + 16 * number as u64;
        image.word(at, start);
        image.word(at + 8, length);
    }
    let gs: Vec<u64> = (1..5_u64)
        .map(|goid| {
            let g = image.end();
            image.word(g + u64::from(offsets.g_stack), 0x8000);
            image.word(g + u64::from(offsets.g_stack) + 8, 0x8800);
            image.put(
                g + u64::from(offsets.g_atomicstatus),
                &[[4, 2, 1, 6][goid as usize - 1], 0, 0, 0],
            );
            image.word(g + u64::from(offsets.g_goid), goid);
            image.put(g + u64::from(offsets.g_waitreason), &[1]);
            image.word(g + u64::from(offsets.g_gopc), 0x50_1000);
            image.word(g + u64::from(offsets.g_startpc), 0x50_2000);
            g
        })
        .collect();
    list(&mut image, &gs, ALLGPTR, ALLGLEN);
    // Function values: a word with the code.
    let values: Vec<u64> = FUNCTIONS
        .iter()
        .map(|(code, _)| {
            let value = image.end();
            image.word(value, *code);
            value
        })
        .collect();
    let ps: Vec<u64> = (0..2)
        .map(|_| processor(&mut image, offsets, &values))
        .collect();
    list(&mut image, &ps, ALLP, ALLP + 8);
    image.0
}

/// A P, with a timer of each kind.
fn processor(image: &mut Image, offsets: &Offsets, values: &[u64]) -> u64 {
    let timers_at = u64::from(offsets.p_timers.unwrap_or(0));
    let p = image.end();
    image.put(p + u64::from(offsets.p_status), &[1, 0, 0, 0]);
    let owner = p + timers_at;
    let heap = owner + u64::from(offsets.timers_heap.unwrap_or(0));
    image.word(heap + 16, 3);
    let timers: Vec<u64> = values
        .iter()
        .map(|value| {
            let timer = image.end();
            image.word(timer + u64::from(offsets.timer_when), 77);
            image.word(timer + u64::from(offsets.timer_period), 0);
            image.word(timer + u64::from(offsets.timer_f), *value);
            image.word(timer + u64::from(offsets.timer_arg), 1);
            image.word(timer + u64::from(offsets.timer_arg) + 8, *value);
            if let Some(at) = offsets.timer_ts {
                image.word(timer + u64::from(at), owner);
            }
            if let Some(at) = offsets.timer_pp {
                image.word(timer + u64::from(at), p);
            }
            if let Some(at) = offsets.timer_status {
                image.put(timer + u64::from(at), &[1]);
            }
            timer
        })
        .collect();
    let entries = image.end();
    for (number, timer) in timers.iter().enumerate() {
        let size = if offsets.timers_heap.is_some() { 16 } else { 8 };
        image.word(entries + size * number as u64, *timer);
    }
    image.word(heap, entries);
    image.word(heap + 8, timers.len() as u64);
    p
}

/// Writes a list of pointers, where it is and how long.
fn list(image: &mut Image, addresses: &[u64], pointer: u64, length: u64) {
    let array = image.end();
    for (number, address) in addresses.iter().enumerate() {
        image.word(array + 8 * number as u64, *address);
    }
    image.word(BASE + pointer, array);
    image.word(BASE + length, addresses.len() as u64);
}
