//! The machine code of a live process against its file: a probe is a byte that differs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::tool::Tool;

/// How many bytes of the executable's code differ between the process and the file: one per probe on amd64.
pub fn changed_bytes(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let executable = fs::read_link(format!("/proc/{pid}/exe")).expect("the process lives");
    let file = File::open(format!("/proc/{pid}/exe")).expect("root may open it");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may open it");
    let mut changed = 0;
    for line in maps.lines() {
        // 00400000-00482000 r-xp 00000000 fe:00 1234  /path
        let fields: Vec<_> = line.split_whitespace().collect();
        let [range, access, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !access.contains('x') || executable.as_os_str() != path {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range has a dash");
        let (start, end) = (hex(start), hex(end));
        let length = usize::try_from(end - start).expect("code fits in memory");
        let (mut live, mut linked) = (vec![0; length], Vec::new());
        memory
            .read_exact_at(&mut live, start)
            .expect("code can be read");
        // The last page of the mapping goes on where the file may have ended.
        linked.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            let at = hex(offset) + filled as u64;
            match file
                .read_at(&mut linked[filled..], at)
                .expect("the file can be read")
            {
                0 => break,
                count => filled += count,
            }
        }
        changed += live[..filled]
            .iter()
            .zip(&linked[..filled])
            .filter(|(a, b)| a != b)
            .count();
    }
    changed
}

/// Waits until all probes of a starting `tool` are on: their number is above zero, and does not grow for half
/// a second.
pub fn wait_for_probes(pid: u32, tool: &mut Tool) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut count, mut since) = (0, Instant::now());
    loop {
        if !tool.is_running() {
            panic!(
                "leaktrace ended before its probes were on: {}",
                tool.error_line(Duration::from_secs(1))
            );
        }
        let now = changed_bytes(pid);
        if now != count {
            (count, since) = (now, Instant::now());
        } else if count > 0 && since.elapsed() > Duration::from_millis(500) {
            return count;
        }
        assert!(
            Instant::now() < deadline,
            "no probe appeared in the process"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("addresses in maps are hexadecimal")
}
