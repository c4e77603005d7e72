//! A binary with some damage: the bytes of the original, and what is written over them.

use std::fmt;
use std::io;
use std::ops::Range;

use leaktrace::resolve::ReadAt;

/// A binary that differs from `original` in a few places.
pub struct Damaged<'o> {
    original: &'o [u8],
    size: u64,
    /// Position and bytes; later ones win.
    patches: Vec<(u64, Vec<u8>)>,
}

/// A sequence of numbers that only its start decides (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(start: u64) -> Self {
        Self(start.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}

impl<'o> Damaged<'o> {
    /// The case with this number.
    pub fn new(original: &'o [u8], regions: &[Range<u64>], number: u64) -> Self {
        let mut random = Random::new(number);
        let mut damaged = Self {
            original,
            size: original.len() as u64,
            patches: Vec::new(),
        };
        match random.below(20) {
            0 => damaged.truncate(regions, &mut random),
            1 => damaged.swap(regions, &mut random),
            _ => {}
        }
        // One wound shows what one byte can do, several reach what one check alone keeps from being reached.
        let wounds = 1 + random.below(4) * random.below(3);
        for _ in 0..wounds {
            damaged.wound(regions, &mut random);
        }
        damaged
    }

    fn truncate(&mut self, regions: &[Range<u64>], random: &mut Random) {
        self.size = match random.below(2) {
            0 => random.below(self.size),
            _ => place(regions, random),
        };
    }

    /// Two stretches change places.
    fn swap(&mut self, regions: &[Range<u64>], random: &mut Random) {
        let magnitude = 1 + random.below(15);
        let length = 1 + random.below(1 << magnitude);
        let places = [place(regions, random), place(regions, random)];
        let [first, second] = places.map(|at| {
            let start = usize::try_from(at).unwrap_or(0);
            let end = usize::try_from(at + length).unwrap_or(0);
            let end = end.min(self.original.len());
            self.original.get(start..end).unwrap_or_default().to_vec()
        });
        self.patches.push((places[0], second));
        self.patches.push((places[1], first));
    }

    fn wound(&mut self, regions: &[Range<u64>], random: &mut Random) {
        let at = place(regions, random);
        let start = usize::try_from(at).unwrap_or(0);
        let byte = self.original.get(start).copied().unwrap_or(0);
        let bytes = match random.below(6) {
            0 | 1 => vec![byte ^ 1 << random.below(8)],
            2 => vec![random.next().to_le_bytes()[0]],
            3 => odd_number(self.size, random).to_le_bytes()[..4].to_vec(),
            4 => odd_number(self.size, random).to_le_bytes().to_vec(),
            _ => {
                // Words are mostly aligned, and so are the lies that matter.
                self.patches.push((
                    at & !7,
                    odd_number(self.size, random).to_le_bytes().to_vec(),
                ));
                return;
            }
        };
        self.patches.push((at, bytes));
    }
}

/// A position in one of the regions, near its start half of the time.
fn place(regions: &[Range<u64>], random: &mut Random) -> u64 {
    let chosen = random.below(regions.len() as u64);
    let region = &regions[usize::try_from(chosen).unwrap_or(0)];
    let length = region.end - region.start;
    let reach = if random.below(2) == 0 {
        length.min(256)
    } else {
        length
    };
    region.start + random.below(reach)
}

/// A number that sizes, counts and addresses are seldom meant to be.
fn odd_number(size: u64, random: &mut Random) -> u64 {
    match random.below(10) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << 63,
        4 => u64::from(u32::MAX),
        5 => 1 << random.below(64),
        6 => (1 << random.below(64)) - 1,
        7 => size,
        8 => random.below(size),
        _ => random.next(),
    }
}

impl ReadAt for Damaged<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        let end = end
            .filter(|end| *end <= self.size)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let range = usize::try_from(offset).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
        buffer.copy_from_slice(&self.original[range]);
        for (at, bytes) in &self.patches {
            let from = offset.max(*at);
            let to = end.min(at + bytes.len() as u64);
            let part = |start: u64| {
                let from = usize::try_from(from.checked_sub(start)?).ok()?;
                Some(from..usize::try_from(to.checked_sub(start)?).ok()?)
            };
            let (Some(into), Some(out_of)) = (part(offset), part(*at)) else {
                continue;
            };
            if let (Some(into), Some(bytes)) = (buffer.get_mut(into), bytes.get(out_of)) {
                into.copy_from_slice(bytes);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Damaged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.size, self.original.len())?;
        for (at, bytes) in &self.patches {
            write!(f, ", {at:#x}:")?;
            for byte in bytes.iter().take(16) {
                write!(f, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}
