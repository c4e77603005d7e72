//! One record of the ring buffer to one [`Event`]. Takes any bytes, never panics, does no I/O.

use std::num::NonZeroU64;

use leaktrace_common::{
    event::{Kind, RECORD_BYTES},
    limits::SLOTS,
    stack::StackKey,
};
use thiserror::Error;

use super::{Change, Event, Goid, Goroutine, Ktime, Slot, StackId, Timer};
use crate::address::RuntimeAddr;

/// Decodes one record: the layouts are `GoroutineRecord` and `TimerRecord` of `leaktrace_common::event`.
pub fn decode(record: &[u8]) -> Result<Event, DecodeError> {
    let (words, rest) = record.as_chunks::<8>();
    let &[at_ns, object, origin, identity, a, b, c, d] = words else {
        return Err(DecodeError::Length(record.len()));
    };
    if !rest.is_empty() {
        return Err(DecodeError::Length(record.len()));
    }
    let [at_ns, object, origin, a, b, c, d] =
        [at_ns, object, origin, a, b, c, d].map(u64::from_ne_bytes);
    let [p0, p1, p2, p3, k0, k1, s0, s1] = identity;
    let number = u16::from_ne_bytes([k0, k1]);
    let kind = Kind::from_number(number).ok_or(DecodeError::Kind(number))?;
    let slot = u16::from_ne_bytes([s0, s1]);
    if u32::from(slot) >= SLOTS {
        return Err(DecodeError::Slot(slot));
    }

    let object = RuntimeAddr(object);
    let stack = StackKey::from_bits(origin)
        .and_then(|key| NonZeroU64::new(key.to_bits()))
        .map(StackId);
    let goroutine = Goroutine {
        goid: Goid(a),
        g: object,
        gopc: RuntimeAddr(b),
        startpc: RuntimeAddr(c),
    };
    let timer = Timer {
        timer: object,
        when_ns: a.cast_signed(),
        period_ns: b.cast_signed(),
        function: RuntimeAddr(c),
        callback: RuntimeAddr(d),
    };
    let change = match kind {
        Kind::Born => Change::Born {
            goroutine,
            parent: (d != 0).then_some(Goid(d)),
            stack,
            timer: (origin != 0 && stack.is_none()).then_some(RuntimeAddr(origin)),
        },
        Kind::Ended => Change::Ended(goroutine),
        // Their probes leave no records (leaktrace_common::wait).
        Kind::Parked | Kind::Readied => return Err(DecodeError::Kind(number)),
        Kind::Armed => Change::Armed { timer, stack },
        Kind::Stopped => Change::Stopped { timer: object },
        Kind::Rearmed => Change::Rearmed(timer),
        Kind::Fired => Change::Fired(timer),
    };
    Ok(Event {
        at: Ktime(at_ns),
        pid: u32::from_ne_bytes([p0, p1, p2, p3]),
        slot: Slot(slot),
        change,
    })
}

/// Why bytes are no record. Such records are counted, never guessed at.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Not the size of a record.
    #[error("a record of {0} bytes, not {RECORD_BYTES}")]
    Length(usize),
    /// No such kind of event.
    #[error("no event of kind {0}")]
    Kind(u16),
    /// No such slot.
    #[error("slot {0} of {SLOTS}")]
    Slot(u16),
}

#[cfg(test)]
mod tests {
    use leaktrace_common::event::{GoroutineRecord, Header, TimerRecord};
    use proptest::prelude::*;

    use super::*;

    /// The bytes that a probe would leave for an event.
    fn encode(event: &Event) -> Vec<u8> {
        let header = |kind: Kind, object: RuntimeAddr, stack: Option<StackId>| Header {
            at_ns: event.at.0,
            object: object.0,
            stack: stack.map_or(0, |StackId(id)| id.get()),
            pid: event.pid,
            kind: kind as u16,
            slot: event.slot.0,
        };
        let goroutine = |kind, g: Goroutine, detail, stack| {
            words(GoroutineRecord {
                header: header(kind, g.g, stack),
                goid: g.goid.0,
                gopc: g.gopc.0,
                startpc: g.startpc.0,
                detail,
            })
        };
        let timer = |kind, t: Timer, stack| {
            timer_words(TimerRecord {
                header: header(kind, t.timer, stack),
                when_ns: t.when_ns,
                period_ns: t.period_ns,
                function: t.function.0,
                callback: t.callback.0,
            })
        };
        match event.change {
            Change::Born {
                goroutine: g,
                parent,
                stack,
                timer,
            } => {
                let mut bytes = goroutine(Kind::Born, g, parent.map_or(0, |Goid(id)| id), stack);
                if let Some(timer) = timer {
                    bytes[16..24].copy_from_slice(&timer.0.to_ne_bytes());
                }
                bytes
            }
            Change::Ended(g) => goroutine(Kind::Ended, g, 0, None),
            Change::Armed { timer: t, stack } => timer(Kind::Armed, t, stack),
            Change::Stopped { timer } => timer_words(TimerRecord {
                header: header(Kind::Stopped, timer, None),
                ..TimerRecord::default()
            }),
            Change::Rearmed(t) => timer(Kind::Rearmed, t, None),
            Change::Fired(t) => timer(Kind::Fired, t, None),
        }
    }

    fn header_bytes(header: Header) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(header.at_ns.to_ne_bytes());
        bytes.extend(header.object.to_ne_bytes());
        bytes.extend(header.stack.to_ne_bytes());
        bytes.extend(header.pid.to_ne_bytes());
        bytes.extend(header.kind.to_ne_bytes());
        bytes.extend(header.slot.to_ne_bytes());
        bytes
    }

    fn words(record: GoroutineRecord) -> Vec<u8> {
        let mut bytes = header_bytes(record.header);
        for word in [record.goid, record.gopc, record.startpc, record.detail] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    fn timer_words(record: TimerRecord) -> Vec<u8> {
        let mut bytes = header_bytes(record.header);
        bytes.extend(record.when_ns.to_ne_bytes());
        bytes.extend(record.period_ns.to_ne_bytes());
        bytes.extend(record.function.to_ne_bytes());
        bytes.extend(record.callback.to_ne_bytes());
        bytes
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let address = || any::<u64>().prop_map(RuntimeAddr);
        let stack = || {
            any::<Option<u64>>().prop_map(|id| NonZeroU64::new(id? | StackKey::MARK).map(StackId))
        };
        let goroutine =
            (any::<u64>(), address(), address(), address()).prop_map(|(goid, g, gopc, startpc)| {
                Goroutine {
                    goid: Goid(goid),
                    g,
                    gopc,
                    startpc,
                }
            });
        let timer = (address(), any::<i64>(), any::<i64>(), address(), address()).prop_map(
            |(timer, when_ns, period_ns, function, callback)| Timer {
                timer,
                when_ns,
                period_ns,
                function,
                callback,
            },
        );
        let parent = any::<u64>().prop_map(|id| (id != 0).then_some(Goid(id)));
        prop_oneof![
            (goroutine.clone(), parent, stack(), 1..StackKey::MARK).prop_map(
                |(goroutine, parent, stack, timer)| {
                    Change::Born {
                        goroutine,
                        parent,
                        stack,
                        timer: stack.is_none().then_some(RuntimeAddr(timer)),
                    }
                }
            ),
            goroutine.prop_map(Change::Ended),
            (timer.clone(), stack()).prop_map(|(timer, stack)| Change::Armed { timer, stack }),
            address().prop_map(|timer| Change::Stopped { timer }),
            timer.clone().prop_map(Change::Rearmed),
            timer.prop_map(Change::Fired),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn sixty_four_bytes_are_refused_only_for_what_they_say(bytes in any::<[u8; 32]>(), rest in any::<[u8; 32]>()) {
            let record = [bytes, rest].concat();
            prop_assert_ne!(decode(&record), Err(DecodeError::Length(64)));
        }

        #[test]
        fn what_a_probe_writes_is_what_we_read(
            at in any::<u64>(), pid in any::<u32>(), slot in 0..256u16, change in any_change()
        ) {
            let event = Event { at: Ktime(at), pid, slot: Slot(slot), change };
            prop_assert_eq!(decode(&encode(&event)), Ok(event));
        }
    }

    #[test]
    fn wrong_sizes_kinds_and_slots_are_named() {
        assert_eq!(decode(&[0; 63]), Err(DecodeError::Length(63)));
        assert_eq!(decode(&[0; 72]), Err(DecodeError::Length(72)));
        let mut record = [0; RECORD_BYTES];
        record[28] = 8;
        assert_eq!(decode(&record), Err(DecodeError::Kind(8)));
        record[28] = 0;
        record[31] = 4;
        assert_eq!(decode(&record), Err(DecodeError::Slot(1024)));
    }
}
