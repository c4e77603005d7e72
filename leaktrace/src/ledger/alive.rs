//! Who is alive, found by number.

use foldhash::HashMap;

use super::LiveGoroutine;
use crate::event::Goid;

/// The goroutines that are alive.
///
/// What the last census found is a list in the order of the numbers, what was born since is in a map: there may be a
/// million, and to put so many into a map takes longer than to read them all from the target.
#[derive(Default)]
pub(super) struct Alive {
    /// `None` for one that ended since.
    counted: Vec<(Goid, Option<LiveGoroutine>)>,
    /// How many of those have ended.
    ended: usize,
    born: HashMap<Goid, LiveGoroutine>,
}

// That `None` takes no room.
const _: () = assert!(size_of::<(Goid, Option<LiveGoroutine>)>() == 48);

impl Alive {
    /// Those that a census found, in the order of their numbers, and those born since.
    pub(super) fn new(
        counted: Vec<(Goid, Option<LiveGoroutine>)>,
        born: HashMap<Goid, LiveGoroutine>,
    ) -> Self {
        debug_assert!(counted.is_sorted_by_key(|(goid, _)| *goid));
        Self {
            counted,
            ended: 0,
            born,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.counted.len() - self.ended + self.born.len()
    }

    /// Adds one; answers what was there under its number.
    pub(super) fn insert(&mut self, goid: Goid, live: LiveGoroutine) -> Option<LiveGoroutine> {
        match self.place(goid) {
            Some(place) => {
                let before = self.counted.get_mut(place)?.1.replace(live);
                self.ended -= usize::from(before.is_none());
                before
            }
            None => self.born.insert(goid, live),
        }
    }

    pub(super) fn remove(&mut self, goid: Goid) -> Option<LiveGoroutine> {
        if let Some(live) = self.born.remove(&goid) {
            return Some(live);
        }
        let place = self.place(goid)?;
        let live = self.counted.get_mut(place)?.1.take();
        self.ended += usize::from(live.is_some());
        live
    }

    pub(super) fn get(&self, goid: Goid) -> Option<&LiveGoroutine> {
        let place = self.place(goid);
        let counted = place.and_then(|place| self.counted.get(place)?.1.as_ref());
        counted.or_else(|| self.born.get(&goid))
    }

    pub(super) fn get_mut(&mut self, goid: Goid) -> Option<&mut LiveGoroutine> {
        match self.place(goid) {
            Some(place) => self.counted.get_mut(place)?.1.as_mut(),
            None => self.born.get_mut(&goid),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Goid, &LiveGoroutine)> {
        let counted =
            (self.counted.iter()).filter_map(|(goid, live)| Some((*goid, live.as_ref()?)));
        counted.chain(self.born.iter().map(|(goid, live)| (*goid, live)))
    }

    /// Those that the last census found and that have not ended, in the order of their numbers; and those born since.
    pub(super) fn split(
        self,
    ) -> (
        impl Iterator<Item = (Goid, LiveGoroutine)>,
        HashMap<Goid, LiveGoroutine>,
    ) {
        let counted = self.counted.into_iter();
        (
            counted.filter_map(|(goid, live)| Some((goid, live?))),
            self.born,
        )
    }

    /// Where in the list a number is, should it be there.
    fn place(&self, goid: Goid) -> Option<usize> {
        // Numbers go up: what was born since has a higher one, but for a few.
        if self.counted.last().is_none_or(|(last, _)| *last < goid) {
            return None;
        }
        self.counted
            .binary_search_by_key(&goid, |(goid, _)| *goid)
            .ok()
    }
}
