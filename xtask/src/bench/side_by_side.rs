//! Two copies of a program at the same time, one of them traced.
//!
//! The machine's speed drifts by a tenth within a minute, far more than is looked for. So each of two copies has half of one
//! processor, and leaktrace works in the half of the one that it traces; then the sides change. What both notice is the
//! machine, and what one copy has by itself is on both sides.

use std::array;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::daemon::cpu_seconds;
use super::slow_down::Tracer;
use super::{FIRST, median};

/// Half of the first processor, as long as another half is used: a control group of the scheduler's.
pub struct Half(PathBuf);

impl Half {
    /// A half of this name.
    pub fn new(name: &str) -> Result<Self> {
        // Version 1 has a hierarchy for each controller, version 2 one for all.
        let root = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())
            .context("there are no control groups to divide a processor with")?;
        let divided = root.join("cgroup.subtree_control");
        if divided.exists() {
            fs::write(&divided, "+cpu")
                .with_context(|| format!("writing {}", divided.display()))?;
        }
        let folder = root.join(format!("leaktrace-bench-{name}"));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// A command that runs there. Go sees one processor.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.0.join("cgroup.procs"))
            .args(["taskset", "-c", FIRST])
            .arg(program);
        command
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

/// Two stretches, in which the one and then the other copy was traced.
pub struct Pair<M> {
    /// In either stretch, the untraced and the traced one.
    pub stretches: [[M; 2]; 2],
    /// What the tracer used, as a part of a processor.
    pub own: f64,
}

impl<M> Pair<M> {
    /// Measures both copies for a stretch with the first traced, and for one with the second traced: `start` has the tracer of one
    /// of them, and `measure` measures both, the first before the second.
    pub fn measure(
        start: impl Fn(usize) -> Result<Option<Tracer>>,
        measure: impl Fn() -> Result<[M; 2]>,
    ) -> Result<Self> {
        let stretch = |traced| -> Result<([M; 2], f64)> {
            let tracer = start(traced)?;
            let own = || {
                tracer
                    .as_ref()
                    .map_or(Ok(0.0), |tracer| cpu_seconds(tracer.pid()))
            };
            let (before, begin) = (own()?, Instant::now());
            let [first, second] = measure()?;
            let own = (own()? - before) / begin.elapsed().as_secs_f64();
            let measured = if traced == 0 {
                [second, first]
            } else {
                [first, second]
            };
            Ok((measured, own))
        };
        let (first, first_own) = stretch(0)?;
        let (second, second_own) = stretch(1)?;
        Ok(Self {
            stretches: [first, second],
            own: (first_own + second_own) / 2.0,
        })
    }

    /// Traced to untraced: the geometric mean of both stretches, in which what one copy has by itself cancels out.
    pub fn ratio(&self, of: impl Fn(&M) -> f64) -> f64 {
        let [first, second] = self
            .stretches
            .each_ref()
            .map(|[untraced, traced]| of(traced) / of(untraced));
        (first * second).sqrt()
    }
}

/// Pairs, compared by one measure.
pub struct Compared {
    /// The median of the untraced.
    pub untraced: f64,
    /// The median of the traced.
    pub traced: f64,
    /// The median of the pairs' ratios, traced to untraced.
    pub ratio: f64,
    /// How far a pair's ratio is from that, in the middle.
    pub apart: f64,
}

impl Compared {
    /// Compares what `of` finds.
    pub fn of<M>(pairs: &[Pair<M>], of: impl Fn(&M) -> f64) -> Self {
        let [untraced, traced] = array::from_fn(|side| {
            let all = pairs.iter().flat_map(|pair| &pair.stretches);
            median(&all.map(|stretch| of(&stretch[side])).collect::<Vec<_>>())
        });
        let ratios: Vec<f64> = pairs.iter().map(|pair| pair.ratio(&of)).collect();
        let ratio = median(&ratios);
        let apart: Vec<f64> = ratios.iter().map(|one| (one - ratio).abs()).collect();
        Self {
            untraced,
            traced,
            ratio,
            apart: median(&apart),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Compared, Pair};

    /// The second copy is twice as slow by itself, and being traced costs either a tenth.
    #[test]
    fn what_a_copy_has_by_itself_cancels_out() {
        let pair = |drift: f64| Pair {
            stretches: [[200.0 * drift, 110.0 * drift], [100.0, 220.0]],
            own: 0.0,
        };
        let compared = Compared::of(&[pair(0.5), pair(1.0), pair(3.0)], |cost| *cost);
        assert!((compared.ratio - 1.1).abs() < 1e-9, "{}", compared.ratio);
        assert!(compared.apart < 1e-9, "{}", compared.apart);
    }
}
