//! How much is said in the log about processes: a host on which hundreds start and end must not flood it.

/// Lines for each minute.
const LINES: u32 = 60;
const MINUTE_NS: u64 = 60_000_000_000;

/// What is left of this minute's lines.
#[derive(Default)]
pub struct Quota {
    minute_ns: u64,
    said: u32,
    unsaid: u64,
}

impl Quota {
    /// Whether one more line may be written now. What was not said is counted, and told with the next minute.
    pub fn allows(&mut self, now_ns: u64) -> bool {
        if now_ns.saturating_sub(self.minute_ns) >= MINUTE_NS {
            if self.unsaid > 0 {
                tracing::info!(
                    "{} more processes came, went or were refused; /api/v1/targets has them",
                    self.unsaid
                );
            }
            *self = Self {
                minute_ns: now_ns,
                ..Self::default()
            };
        }
        if self.said < LINES {
            self.said += 1;
            return true;
        }
        self.unsaid += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_lines() {
        let mut quota = Quota::default();
        let said = |quota: &mut Quota, at| (0..200).filter(|_| quota.allows(at)).count();
        assert_eq!(said(&mut quota, 1), LINES as usize);
        assert_eq!(said(&mut quota, 2), 0);
        assert_eq!(said(&mut quota, MINUTE_NS), LINES as usize);
    }
}
