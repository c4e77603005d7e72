//! Seeds that no program is needed for: records of the ring buffer, and small processes.

use anyhow::{Result, ensure};
use leaktrace::census::{self, waits};
use leaktrace::resolve::offsets::{self, Offsets};
use leaktrace_fuzz::elf_file::{ElfFile, Segment, WRITABLE};
use leaktrace_fuzz::memory::{
    self, ALLGLEN, ALLGPTR, ALLP, BASE, FORCE_GC, FUNCTIONS, MAIN, WAIT_REASONS, small,
};
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
        let bytes = [&[number_of(release.minor), 0, 8], image.as_slice()].concat();
        (format!("go1.{}", release.minor), bytes)
    });
    processes.collect()
}

/// A process is worth nothing as a seed if leaktrace does not see in it what was put there.
pub fn check(process: &[u8]) -> Result<()> {
    let (memory, layout) = memory::process(process);
    census::self_check(&memory, &layout)?;
    let census = census::take(&memory, &layout, &|| 1)?;
    let waits = waits::channels(
        &memory,
        &layout,
        &REASONS.map(str::to_owned),
        &census.goroutines,
    )?;
    let seen = (
        census.goroutines.len(),
        census.timers.map(|timers| timers.len()),
        census.unreadable,
        waits.edges.len(),
    );
    ensure!(
        seen == (4, Some(6), 0, 2),
        "goroutines, timers, unreadable, waits: {seen:?}"
    );
    Ok(())
}

/// What the self-check looks for, and the empty one.
const REASONS: [&str; 8] = [
    "",
    "chan receive",
    "chan send",
    "select",
    "IO wait",
    "semacquire",
    "sleep",
    "force gc (idle)",
];

/// Where the goroutines have their stack.
const STACK: u64 = 0x2000;

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
    let mut name = BASE + 0x100;
    for (number, reason) in (0..).zip(REASONS) {
        let at = BASE + WAIT_REASONS + 16 * number;
        image.put(name, reason.as_bytes());
        image.word(at, name);
        image.word(at + 8, reason.len() as u64);
        name += reason.len() as u64;
    }
    let channel = image.end();
    image.word(channel + u64::from(offsets.hchan_dataqsiz), 3);
    image.put(channel + u64::from(offsets.hchan_closed), &[0; 4]);
    let gs: Vec<u64> = (1..6)
        .map(|goid| goroutine(&mut image, offsets, goid, channel))
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
        .map(|number| processor(&mut image, offsets, number, &values))
        .collect();
    assert!(
        image.end() <= STACK + 0x700,
        "the stack lies over something"
    );
    // The part of the stack that is in use.
    for at in (0x700..0x800).step_by(8) {
        image.word(STACK + at, MAIN + at);
    }
    list(&mut image, &ps, ALLP, ALLP + 8);
    image.0
}

/// Goroutine 1 is main's and runs, 2 forces garbage collections, 3 and 4 wait on the channel, 5 is dead.
fn goroutine(image: &mut Image, offsets: &Offsets, goid: u8, channel: u64) -> u64 {
    let thread = image.end();
    image.word(thread + u64::from(offsets.m_curg), 0);
    let g = image.end();
    let at = |offset: u32| g + u64::from(offset);
    let (status, reason, start) = match goid {
        1 => (2, 0, MAIN),
        2 => (4, 7, FORCE_GC),
        3 => (4, 1, MAIN + 0x100),
        4 => (4, 3, MAIN + 0x100),
        _ => (6, 0, 0),
    };
    // One stack for all: its 2 KB begin with a few return addresses.
    image.word(at(offsets.g_stack), STACK);
    image.word(at(offsets.g_stack) + 8, STACK + 0x800);
    image.word(at(offsets.g_sched_sp), STACK + 0x700);
    image.word(at(offsets.g_sched_pc), MAIN + 0x13);
    image.put(at(offsets.g_atomicstatus), &[status, 0, 0, 0]);
    image.word(at(offsets.g_goid), goid.into());
    image.put(at(offsets.g_waitreason), &[reason]);
    image.word(at(offsets.g_gopc), MAIN + 0x20);
    image.word(at(offsets.g_startpc), start);
    image.word(at(offsets.g_m), if goid == 1 { thread } else { 0 });
    image.word(at(offsets.g_syscallsp), 0);
    image.word(at(offsets.g_waitsince), 0);
    if goid == 1 {
        image.word(thread + u64::from(offsets.m_curg), g);
    }
    image.word(at(offsets.g_waiting), 0);
    if matches!(goid, 3 | 4) {
        let hook = image.end();
        image.word(hook + u64::from(offsets.sudog_g), g);
        image.word(hook + u64::from(offsets.sudog_waitlink), 0);
        image.word(hook + u64::from(offsets.sudog_c), channel);
        image.word(at(offsets.g_waiting), hook);
    }
    g
}

/// A P, with a timer of each kind.
fn processor(image: &mut Image, offsets: &Offsets, number: u8, values: &[u64]) -> u64 {
    let timers_at = u64::from(offsets.p_timers.unwrap_or(0));
    let p = image.end();
    image.put(p + u64::from(offsets.p_id), &[number, 0, 0, 0]);
    image.put(p + u64::from(offsets.p_status), &[1, 0, 0, 0]);
    let owner = p + timers_at;
    let heap = owner + u64::from(offsets.timers_heap.unwrap_or(0));
    image.word(heap + 16, 4);
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

/// A core file of a process with one thread, as the kernel writes it.
pub fn core() -> Vec<u8> {
    let note = |kind: u32, owner: &[u8; 8], contents: &[u8]| {
        let length = u32::try_from(contents.len()).unwrap_or(0);
        let mut bytes = 5_u32.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(owner);
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let words =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let mut files = words(&[1, 4096, 0x40_0000, 0x50_0000, 0]);
    files.extend(b"/usr/bin/program\0");
    let mut status = vec![0; 112];
    status[32] = 42;
    let owner = b"CORE\0\0\0\0";
    let notes = [
        note(1, owner, &status),
        note(6, owner, &words(&[3, 0x40_0040, 0, 0])),
        note(0x4649_4c45, owner, &files),
    ];
    let segment = |address, bytes| Segment {
        address,
        flags: WRITABLE,
        bytes,
    };
    let mut file = ElfFile {
        segments: vec![
            segment(0x1000, notes.concat()),
            segment(0x50_0000, vec![7; 200]),
            segment(0x50_0000 + 200, vec![8; 200]),
        ],
        marks: vec![(4, 0)],
        ..ElfFile::default()
    }
    .bytes();
    file[16] = 4;
    file
}
