//! One set of probes for all traced processes of one file.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use leaktrace::{
    event::Event,
    probe::{AttachRequest, AttachedSet, Point, Probes, Scope},
};
use leaktrace_common::event::{Kind, Loss};

use crate::{
    binary::Binary,
    events::{births, goroutine_events, settle},
    load,
    program::{Program, on_each_release},
};

const BOTH: [Kind; 2] = [Kind::Born, Kind::Ended];

#[test]
fn two_processes_of_one_file_share_one_set_and_are_told_apart() {
    on_each_release(&["1.22", "1.27"], |path, minor| {
        let binary = Binary::open(path, minor);
        let points = binary.points(&BOTH);
        let (mut probes, mut ring) = load();
        let mut programs = [Program::start(path), Program::start(path)];
        let sets = share(&mut probes, &binary, &programs, &points);
        if !probes.has_cookies() {
            return println!("skipped: without attach cookies nothing is shared");
        }
        assert!(sets.iter().all(|set| set.scope() == Scope::File));
        let strangers = probes.strangers();

        programs[0].tell("spawn 3000");
        programs[1].tell("spawn 1000");
        programs[1].tell("leak 10");
        programs[0].tell("leak 20");
        let events = settle(&mut ring);
        for ((set, program), expected) in sets.iter().zip(&programs).zip([(3000, 20), (1000, 10)]) {
            let own: Vec<_> = (events.iter())
                .filter(|event| event.slot == set.slot())
                .copied()
                .collect();
            assert!(own.iter().all(|event| event.pid == program.pid().get()));
            assert_eq!(spawned_and_leaked(&own, &binary), expected);
            assert_eq!(probes.lost(set), [0; Loss::COUNT as usize]);
        }
        assert_eq!(probes.strangers(), strangers, "nobody else runs this file");

        // Whoever leaves does not take the other's probes with it.
        let [first, second] = sets;
        drop(first);
        programs[0].tell("spawn 1000");
        programs[1].tell("spawn 1000");
        let events = settle(&mut ring);
        assert!(events.iter().all(|event| event.slot == second.slot()));
        assert_eq!(spawned_and_leaked(&events, &binary), (1000, 0));
        assert!(probes.strangers() >= strangers + 2000);
        drop(second);
        let unprobed = points.iter().map(|point| point.bytes[0]);
        assert_eq!(
            binary.text(programs[1].pid(), &points),
            unprobed.collect::<Vec<_>>()
        );
    });
}

#[test]
fn a_process_that_is_not_enrolled_leaves_no_record() {
    on_each_release(&["1.27"], |path, minor| {
        let binary = Binary::open(path, minor);
        let points = binary.points(&BOTH);
        let (mut probes, mut ring) = load();
        let traced = [Program::start(path), Program::start(path)];
        let sets = share(&mut probes, &binary, &traced, &points);
        let mut stranger = Program::start(path);
        let before = probes.strangers();
        stranger.tell("spawn 1000");
        let events = settle(&mut ring);
        assert!(events.iter().all(|event| event.pid != stranger.pid().get()));
        if probes.has_cookies() {
            // Its own probes would be in nobody else; a shared one is, and each hit of it is counted.
            assert!(probes.strangers() >= before + 2000);
        }
        drop(sets);
    });
}

#[test]
fn one_is_lowered_while_the_other_goes_on() {
    on_each_release(&["1.22", "1.27"], |path, minor| {
        const SPAWNED: usize = 40_000;
        let binary = Binary::open(path, minor);
        let points = binary.points(&BOTH);
        let (mut probes, mut ring) = load();
        let mut programs = [Program::start(path), Program::start(path)];
        let sets = share(&mut probes, &binary, &programs, &points);
        if !probes.has_cookies() {
            return println!("skipped: without attach cookies there is a gap");
        }
        let unprobed: Vec<_> = points.iter().map(|point| point.bytes[0]).collect();

        // The second loses its probes and gets them back while the first is busy: no hit of the first is
        // missed, and none counts twice.
        programs[0].begin(&format!("spawn {SPAWNED}"));
        for _ in 0..3 {
            probes.replan(&sets[1], &[], &[]).expect("taking them off");
            assert_eq!((sets[1].len(), sets[1].scope()), (0, Scope::Process));
            assert_eq!((sets[0].len(), sets[0].scope()), (2, Scope::Process));
            gone_off(|| binary.text(programs[1].pid(), &points) == unprobed);
            probes
                .replan(&sets[1], &points, &[])
                .expect("putting them on");
            assert!(sets.iter().all(|set| set.scope() == Scope::File));
        }
        programs[0].answer();
        programs[1].tell("spawn 1000");
        let events = settle(&mut ring);
        let of = |set: &AttachedSet| -> Vec<Event> {
            let own = events.iter().filter(|event| event.slot == set.slot());
            own.copied().collect()
        };
        let (spawned, _) = spawned_and_leaked(&of(&sets[0]), &binary);
        // The word in the map changed six times: at most a hit each may have fallen between two sets, a birth or an end.
        const BETWEEN: u64 = 6;
        assert!(
            SPAWNED.abs_diff(spawned) as u64 <= BETWEEN,
            "{spawned} births of {SPAWNED}"
        );
        assert_eq!(spawned_and_leaked(&of(&sets[1]), &binary), (1000, 0));

        // Fewer kinds for the second: the first keeps both.
        probes
            .replan(&sets[1], &points[..1], &[])
            .expect("births only");
        programs[0].tell("spawn 500");
        programs[1].tell("spawn 500");
        let [first, second] = [&sets[0], &sets[1]].map(|set| probes.hits(set));
        assert!(first[Kind::Ended as usize] + BETWEEN >= first[Kind::Born as usize]);
        assert!(second[Kind::Born as usize] >= second[Kind::Ended as usize] + 500);
        // A third process of the file that is not to be traced: nobody shares any more.
        probes.replan(&sets[1], &points, &[]).expect("both kinds");
        probes.rescope(&sets[0], Scope::Process).expect("its own");
        assert!(sets.iter().all(|set| set.scope() == Scope::Process));
        let outsider = Program::start(path);
        gone_off(|| binary.text(outsider.pid(), &points) == unprobed);
    });
}

#[test]
fn the_same_number_on_two_devices_is_two_files() {
    on_each_release(&["1.27"], |path, minor| {
        let Some(places) = Mounts::new(path, |place, _| {
            run("mount", &["-t", "tmpfs", "none", place.to_str()?])
        }) else {
            return println!("skipped: no file system can be mounted here");
        };
        let copies = places.0.each_ref().map(|place| {
            let copy = place.join("program");
            fs::copy(path, &copy).expect("a copy");
            copy
        });
        let [first, second] = copies
            .each_ref()
            .map(|copy| fs::metadata(copy).expect("it"));
        assert_eq!(first.ino(), second.ino(), "the first file of each");
        assert_ne!(first.dev(), second.dev());
        two_files(&copies, minor);
    });
}

/// Two containers of one image: two overlays over one real file, which is where the kernel puts the probes.
#[test]
fn one_file_seen_through_two_overlays_is_not_counted_twice() {
    on_each_release(&["1.27"], |path, minor| {
        let Some(places) = Mounts::new(path, |place, lower| {
            let parts = ["upper", "work"].map(|part| place.with_extension(part));
            for part in &parts {
                fs::create_dir_all(part).ok()?;
            }
            let [upper, work] = parts;
            let options = format!(
                "lowerdir={},upperdir={},workdir={}",
                lower.display(),
                upper.display(),
                work.display()
            );
            let place = place.to_str()?;
            run("mount", &["-t", "overlay", "none", "-o", &options, place])
        }) else {
            return println!("skipped: no overlay can be mounted here");
        };
        let name = path.file_name().expect("a name");
        let copies = places.0.each_ref().map(|place| place.join(name));
        two_files(&copies, minor);
    });
}

/// Two processes of each file: every one's events are its own, and none counts twice.
fn two_files(paths: &[PathBuf; 2], minor: u32) {
    let binaries = paths.each_ref().map(|path| Binary::open(path, minor));
    let (mut probes, mut ring) = load();
    let points = binaries[0].points(&BOTH);
    let mut programs = [0, 0, 1, 1].map(|file: usize| (file, Program::start(&paths[file])));
    let sets: Vec<_> = programs
        .iter()
        .map(|(file, program)| attach(&mut probes, &binaries[*file], program, &points))
        .collect();
    for ((_, program), number) in programs.iter_mut().zip(1..) {
        program.tell(&format!("spawn {}", number * 1000));
    }
    let events = settle(&mut ring);
    for (set, number) in sets.iter().zip(1..) {
        let own: Vec<_> = (events.iter())
            .filter(|event| event.slot == set.slot())
            .copied()
            .collect();
        assert_eq!(spawned_and_leaked(&own, &binaries[0]), (number * 1000, 0));
    }
}

fn share<const N: usize>(
    probes: &mut Probes,
    binary: &Binary,
    programs: &[Program; N],
    points: &[Point],
) -> [AttachedSet; N] {
    programs
        .each_ref()
        .map(|program| attach(probes, binary, program, points))
}

fn attach(
    probes: &mut Probes,
    binary: &Binary,
    program: &Program,
    points: &[Point],
) -> AttachedSet {
    let request = AttachRequest {
        scope: Scope::File,
        ..binary.request(program.pid(), points)
    };
    probes.attach(&request).expect("attaching")
}

fn spawned_and_leaked(events: &[Event], binary: &Binary) -> (usize, usize) {
    let goroutines: Vec<_> = goroutine_events(events).collect();
    let born = |function| births(&goroutines, binary, function).len();
    (born("main.spawn"), born("main.leak"))
}

fn run(program: &str, arguments: &[&str]) -> Option<()> {
    let status = Command::new(program).args(arguments).status().ok()?;
    status.success().then_some(())
}

/// Two places where something is mounted until this is dropped.
struct Mounts([PathBuf; 2]);

impl Mounts {
    fn new(program: &Path, mount: impl Fn(&Path, &Path) -> Option<()>) -> Option<Self> {
        let lower = program.parent()?;
        let base = lower.join(format!("mounts-{}", std::process::id()));
        let places = ["a", "b"].map(|name| base.join(name));
        for place in &places {
            fs::create_dir_all(place).ok()?;
            mount(place, lower)?;
        }
        Some(Self(places))
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for place in &self.0 {
            // Lazily, because the programs may not have gone yet.
            let _ = Command::new("umount").arg("-l").arg(place).status();
        }
        if let Some(base) = self.0[0].parent() {
            let _ = fs::remove_dir_all(base);
        }
    }
}

/// Probes that are exchanged go off in the background, within a moment.
fn gone_off(are_off: impl Fn() -> bool) {
    assert!(
        (0..500).any(|_| are_off() || {
            thread::sleep(Duration::from_millis(10));
            false
        }),
        "the probes stay"
    );
}
