//! Lengths of time by powers of two: small enough for a map of the kernel, and from a microsecond to a week.

/// How many buckets a histogram has.
pub const BUCKETS: usize = 40;

/// Everything below 2^11 ns (two microseconds) is in the first bucket.
const FIRST_POWER: u32 = 10;

/// How often which length of time was seen, and their sum.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Sum of all lengths in nanoseconds; it wraps round after 584 years.
    pub sum_ns: u64,
    /// How many fell into each bucket, see [`bucket`].
    pub counts: [u64; BUCKETS],
}

const _: () = assert!(size_of::<Histogram>() == 8 + 8 * BUCKETS);

impl Default for Histogram {
    fn default() -> Self {
        Self {
            sum_ns: 0,
            counts: [0; BUCKETS],
        }
    }
}

impl Histogram {
    /// Adds one length of time.
    pub fn record(&mut self, ns: u64) {
        self.sum_ns = self.sum_ns.wrapping_add(ns);
        if let Some(count) = self.counts.get_mut(bucket(ns)) {
            *count = count.saturating_add(1);
        }
    }

    /// Adds all that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// How many lengths were seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// What `permille` of a thousand lengths are shorter than: the upper edge of a bucket, in nanoseconds. `None` when
    /// nothing was seen, or it is in the last bucket, which has no edge.
    #[must_use]
    pub fn below_ns(&self, permille: u64) -> Option<u64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let may_be_longer = total.saturating_mul(1000_u64.saturating_sub(permille));
        let mut left = total;
        for (index, count) in self.counts.iter().enumerate() {
            left = left.saturating_sub(*count);
            if left.saturating_mul(1000) <= may_be_longer {
                return upper_edge_ns(index);
            }
        }
        None
    }
}

/// The bucket of a length of time: the powers of two from 2^10 ns on, shorter ones with the first, longer ones with the last.
#[must_use]
#[inline(always)]
pub fn bucket(ns: u64) -> usize {
    let power = 63 - (ns | 1).leading_zeros();
    let index = power.saturating_sub(FIRST_POWER) as usize;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// What all lengths in a bucket are shorter than, in nanoseconds; `None` for the last bucket, which has no end.
#[must_use]
pub fn upper_edge_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 >= BUCKETS {
        return None;
    }
    // At most 2^50.
    Some(1_u64 << (bucket + FIRST_POWER as usize + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_length_is_below_the_edge_of_its_bucket_and_not_below_the_one_before() {
        for shift in 0..64 {
            for ns in [1_u64 << shift, (1 << shift) - 1, (1 << shift) + 1] {
                let index = bucket(ns);
                assert!(upper_edge_ns(index).is_none_or(|edge| ns < edge), "{ns}");
                if index > 0 {
                    assert!(
                        upper_edge_ns(index - 1).is_some_and(|edge| ns >= edge),
                        "{ns}"
                    );
                }
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn sums_counts_and_what_most_are_below() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.below_ns(500), None);
        for ns in [3_000_000, 3_000_000, 3_000_000, 50_000_000] {
            histogram.record(ns);
        }
        assert_eq!((histogram.count(), histogram.sum_ns), (4, 59_000_000));
        assert_eq!(histogram.below_ns(500), Some(1 << 22));
        assert_eq!(histogram.below_ns(750), Some(1 << 22));
        assert_eq!(histogram.below_ns(1000), Some(1 << 26));
        let mut twice = histogram;
        twice.merge(&histogram);
        assert_eq!((twice.count(), twice.sum_ns), (8, 118_000_000));
    }
}
