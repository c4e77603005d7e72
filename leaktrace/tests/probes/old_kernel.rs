//! What a kernel without attach cookies (Linux 5.8 to 5.14) can do.

use leaktrace::probe::{LoadOptions, Probes};
use leaktrace_common::event::{Kind, Loss};

use crate::{
    binary::Binary,
    events::{births, collect, count, goroutine_events},
    program::{Program, on_each_release},
};

#[test]
fn without_attach_cookies_the_counts_are_as_exact() {
    on_each_release(&["1.22", "1.27"], |binary, minor| {
        let mut program = Program::start(binary);
        if Probes::load(&LoadOptions::default()).is_err() {
            return println!("skipped: probes cannot be loaded here");
        }
        let old_kernel = LoadOptions {
            cookies: false,
            ..LoadOptions::default()
        };
        let (mut probes, mut ring) = Probes::load(&old_kernel).expect("loading");
        let binary = Binary::open(binary, minor);
        let points = binary.points(&[Kind::Born, Kind::Ended]);
        let request = binary.request(program.pid(), &points);
        let set = probes.attach(&request).expect("attaching");
        program.tell("spawn 1000");
        program.tell("leak 10");
        let events = collect(&mut ring, |events| count(events) == probes.hits(&set));
        let goroutines: Vec<_> = goroutine_events(&events).collect();
        assert_eq!(births(&goroutines, &binary, "main.spawn").len(), 1000);
        assert_eq!(births(&goroutines, &binary, "main.leak").len(), 10);
        assert!(goroutines.iter().all(|event| event.slot == set.slot()));
        assert_eq!(probes.lost(&set), [0; Loss::COUNT as usize]);
    });
}
