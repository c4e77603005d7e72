//! How many events a second can one core decode and book? The bar is 5 million.
//!
//! Run by `cargo bench -p leaktrace`, and by `cargo xtask bench` for doc/cost.md. The records are those that probes
//! leave; that the ring buffer hands them over is not in it.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use leaktrace::address::RuntimeAddr;
use leaktrace::census::TimerKind;
use leaktrace::event::{StackId, decode};
use leaktrace::ledger::{Ledger, Symbols};
use leaktrace::resolve::pclntab::Frame;
use leaktrace_common::event::{Kind, RECORD_BYTES};

/// Events of one round.
const EVENTS: u64 = 100_000;

/// Lines that start goroutines and arm timers.
const SITES: u64 = 1000;

/// Goroutines alive at any time.
const ALIVE: u64 = 10_000;

/// Go's `time.sendTime`, as far as the ledger is told.
const SEND_TIME: u64 = 0x90_0000;

/// One function for each address.
struct Functions;

impl Symbols for Functions {
    fn frames_of_return(&self, pc: RuntimeAddr) -> Vec<Frame> {
        self.frames(pc)
    }

    fn frames(&self, pc: RuntimeAddr) -> Vec<Frame> {
        vec![Frame {
            function: format!("main.f{}", pc.0),
            file: "/src/main.go".to_owned(),
            line: u32::try_from(pc.0 & 0xffff).unwrap_or(0),
            inlined: false,
        }]
    }

    fn stack(&self, stack: StackId) -> Vec<RuntimeAddr> {
        vec![RuntimeAddr(0x40_0000 + stack.0.get() % SITES * 16)]
    }

    fn timer_kind(&self, function: RuntimeAddr, _: i64) -> Option<TimerKind> {
        (function.0 == SEND_TIME).then_some(TimerKind::Timer)
    }
}

type Record = [u8; RECORD_BYTES];

/// A record as a probe leaves it: the words of `GoroutineRecord` and `TimerRecord`.
fn record(kind: Kind, at: u64, object: u64, stack: u64, details: [u64; 4]) -> Record {
    let identity = 4711 | (kind as u64) << 32;
    let mut bytes = [0; RECORD_BYTES];
    let words = [at, object, stack, identity].into_iter().chain(details);
    for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_ne_bytes();
    }
    bytes
}

/// Goroutines that are born, and end `ALIVE` births later.
fn goroutines() -> Vec<Record> {
    let of = |kind: Kind, at: u64, goid: u64, stack: u64| {
        let site = 0x40_0000 + goid % SITES * 16;
        let stack = if stack == 0 {
            0
        } else {
            1 << 63 | ((goid % SITES) << 10)
        };
        record(
            kind,
            at,
            0xc000_0000 + goid % ALIVE * 448,
            stack,
            [goid, site, site + 8, 1],
        )
    };
    (0..EVENTS / 2)
        .flat_map(|step| {
            [
                of(Kind::Born, step, ALIVE + step, 1),
                of(Kind::Ended, step, step, 0),
            ]
        })
        .collect()
}

/// Timers that are armed, fire or are stopped, and are armed again at the same addresses.
fn timers() -> Vec<Record> {
    let of = |kind: Kind, step: u64| {
        let stack = if kind == Kind::Armed {
            1 << 63 | ((step % SITES) << 10)
        } else {
            0
        };
        record(
            kind,
            step,
            0xc100_0000 + step % ALIVE * 96,
            stack,
            [step, 0, SEND_TIME, 0],
        )
    };
    (0..EVENTS / 2)
        .flat_map(|step| {
            let end = if step % 3 == 0 {
                Kind::Stopped
            } else {
                Kind::Fired
            };
            [of(Kind::Armed, step), of(end, step)]
        })
        .collect()
}

fn book(ledger: &mut Ledger, records: &[Record]) {
    for record in records {
        if let Ok(event) = decode(black_box(record)) {
            ledger.apply(&event, &Functions);
        }
    }
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode and book");
    group.throughput(Throughput::Elements(EVENTS));
    for (name, records) in [("goroutines", goroutines()), ("timers", timers())] {
        // All sites are known, as they are after the first second of a watch.
        let warm = || {
            let mut ledger = Ledger::default();
            book(&mut ledger, &records);
            ledger
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(warm, |ledger| book(ledger, &records), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(5));
    targets = bench
}
criterion_main!(benches);
