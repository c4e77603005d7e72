//! The books' list of who is alive, beside a plain map.

use std::collections::BTreeMap;

use super::super::alive::Alive;
use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u64),
    Remove(u64),
    Count,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..40_u64).prop_map(Step::Insert),
        4 => (0..40_u64).prop_map(Step::Remove),
        1 => Just(Step::Count),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn is_a_map_whatever_was_counted_and_whatever_was_born(steps in steps()) {
        let site = Sites::default().of_goroutine(RuntimeAddr(0), RuntimeAddr(0), &Numbers);
        let (mut alive, mut model) = (Alive::default(), BTreeMap::new());
        for (now_ns, step) in (0..).zip(steps) {
            let live = LiveGoroutine {
                site,
                since_ns: now_ns,
                exact: true,
                state: State::New,
                stack_bytes: 0,
                waits_since_ns: 0,
                waits_exact: false,
                still: Stillness::moving(now_ns),
            };
            match step {
                Step::Insert(number) => {
                    prop_assert_eq!(alive.insert(Goid(number), live), model.insert(Goid(number), live));
                }
                Step::Remove(number) => {
                    prop_assert_eq!(alive.remove(Goid(number)), model.remove(&Goid(number)));
                }
                Step::Count => {
                    let (counted, born) = alive.split();
                    let all: BTreeMap<_, _> = counted.chain(born).collect();
                    prop_assert_eq!(&all, &model);
                    let counted = all.into_iter().map(|(goid, live)| (goid, Some(live)));
                    alive = Alive::new(counted.collect(), foldhash::HashMap::default());
                }
            }
            prop_assert_eq!(alive.len(), model.len());
            for number in 0..40 {
                prop_assert_eq!(alive.get(Goid(number)), model.get(&Goid(number)));
                prop_assert_eq!(alive.get_mut(Goid(number)), model.get_mut(&Goid(number)));
            }
            let all: BTreeMap<_, _> = alive.iter().map(|(goid, live)| (goid, *live)).collect();
            prop_assert_eq!(&all, &model);
        }
    }
}
