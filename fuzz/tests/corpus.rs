//! Every kept input goes through its target: what was once found stays mended, on ordinary stable Rust.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use leaktrace_fuzz::targets::TARGETS;

/// Far longer than any input takes in a debug build on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);

#[test]
fn every_kept_input_is_survived() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("a corpus for each target") {
            let path = entry.expect("an input").path();
            let bytes = fs::read(&path).expect("an input can be read");
            let start = Instant::now();
            // A panic says where; this line, kept back by the test runner, says with which input.
            println!("{}", path.display());
            target(&bytes);
            assert!(start.elapsed() < LONGEST, "{} is slow", path.display());
            inputs += 1;
        }
        assert!(inputs > 0, "no input in {}", folder.display());
        println!("{name}: {inputs} inputs");
    }
}
