//! What came through the ring, in the words of these tests.

use std::{thread, time::Duration};

use leaktrace::{
    address::RuntimeAddr,
    event::{Change, Event, Goid, Goroutine, Ring, Slot, StackId, Timer},
};
use leaktrace_common::event::Kind;

use crate::binary::Binary;

/// What is in the ring. A probe has left its record before the program's thread goes on, so all that
/// happened before the program's answer is there.
pub fn settle(ring: &mut Ring) -> Vec<Event> {
    collect(ring, |_| true)
}

/// What is in the ring, and comes until there is enough.
pub fn collect(ring: &mut Ring, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..1000 {
        let drained = ring.drain(usize::MAX, |event| events.push(event));
        assert_eq!(drained.undecodable, 0);
        if enough(&events) {
            return events;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("not enough events: {:?}", count(&events));
}

/// How many events there are of each kind.
pub fn count(events: &[Event]) -> [u64; Kind::COUNT as usize] {
    events
        .iter()
        .fold([0; Kind::COUNT as usize], |mut counts, event| {
            counts[kind(event) as usize] += 1;
            counts
        })
}

pub fn kind(event: &Event) -> Kind {
    match event.change {
        Change::Born { .. } => Kind::Born,
        Change::Ended(_) => Kind::Ended,
        Change::Armed { .. } => Kind::Armed,
        Change::Stopped { .. } => Kind::Stopped,
        Change::Rearmed(_) => Kind::Rearmed,
        Change::Fired(_) => Kind::Fired,
    }
}

/// What happened to a goroutine, whatever it was.
#[derive(Clone, Copy)]
pub struct GoroutineEvent {
    pub kind: Kind,
    pub pid: u32,
    pub slot: Slot,
    pub goroutine: Goroutine,
    pub parent: Option<Goid>,
    pub stack: Option<StackId>,
}

impl std::ops::Deref for GoroutineEvent {
    type Target = Goroutine;

    fn deref(&self) -> &Goroutine {
        &self.goroutine
    }
}

impl std::ops::Deref for TimerEvent {
    type Target = Timer;

    fn deref(&self) -> &Timer {
        &self.what
    }
}

pub fn goroutine_events(events: &[Event]) -> impl Iterator<Item = GoroutineEvent> {
    events.iter().filter_map(|event| {
        let (goroutine, parent, stack) = match event.change {
            Change::Born {
                goroutine,
                parent,
                stack,
                ..
            } => (goroutine, parent, stack),
            Change::Ended(goroutine) => (goroutine, None, None),
            _ => return None,
        };
        Some(GoroutineEvent {
            kind: kind(event),
            pid: event.pid,
            slot: event.slot,
            goroutine,
            parent,
            stack,
        })
    })
}

/// What happened to a timer, whatever it was; of a stopped one only its address is known.
pub struct TimerEvent {
    pub kind: Kind,
    pub at_ns: u64,
    pub what: Timer,
    pub stack: Option<StackId>,
}

pub fn timer_events(events: &[Event]) -> impl Iterator<Item = TimerEvent> {
    events.iter().filter_map(|event| {
        let (timer, stack) = match event.change {
            Change::Armed { timer, stack } => (timer, stack),
            Change::Rearmed(timer) | Change::Fired(timer) => (timer, None),
            Change::Stopped { timer } => (
                Timer {
                    timer,
                    when_ns: 0,
                    period_ns: 0,
                    function: RuntimeAddr(0),
                    callback: RuntimeAddr(0),
                },
                None,
            ),
            _ => return None,
        };
        Some(TimerEvent {
            kind: kind(event),
            at_ns: event.at.0,
            what: timer,
            stack,
        })
    })
}

/// Births whose `go` statement is in `function`.
pub fn births(events: &[GoroutineEvent], binary: &Binary, function: &str) -> Vec<GoroutineEvent> {
    events
        .iter()
        .filter(|event| event.kind == Kind::Born && binary.function_at(event.gopc) == function)
        .copied()
        .collect()
}
