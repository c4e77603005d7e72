//! Where are goroutines stuck, and on what? All that a report shows beyond counts.

use super::reach::{self, ReachError, Reached, Scene};
use super::semaphores::{Semaphore, semaphores};
use super::stacks::{self, StackGroup};
use super::waits::{Channel, SiteWait, channels};
use super::{Census, Layout, Memory, MemoryError};
use crate::ledger::Symbolizer;

/// What a census saw of places: empty when it only counted.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Where goroutines are.
    pub stacks: Vec<StackGroup>,
    /// The channels that they wait on.
    pub channels: Vec<SiteWait<Channel>>,
    /// The semaphores that they wait for.
    pub semaphores: Vec<SiteWait<Semaphore>>,
    /// Who could still wake them, and who could stop timers; `None` when nobody looked, or that cannot be told.
    pub reached: Option<Reached>,
}

impl Places {
    /// Looks at the goroutines of a census; with `reach` also at who could still wake them, which takes following all
    /// pointers of the program. `clock` answers CLOCK_MONOTONIC in nanoseconds.
    ///
    /// # Errors
    /// When the memory as a whole is out of reach; what cannot be read is left out.
    pub fn of(
        census: &Census,
        memory: &dyn Memory,
        layout: &Layout,
        wait_reasons: &[String],
        symbols: &Symbolizer,
        reach: bool,
        clock: &dyn Fn() -> u64,
    ) -> Result<Self, MemoryError> {
        let goroutines = &census.goroutines;
        let channels = channels(memory, layout, wait_reasons, goroutines)?;
        let semaphores = semaphores(memory, layout, wait_reasons, goroutines)?;
        let scene = Scene {
            memory,
            layout,
            wait_reasons,
            goroutines,
            timers: census.timers.as_deref().unwrap_or_default(),
            channels: &channels,
            semaphores: &semaphores,
        };
        let reached = match reach.then(|| reach::look(&scene, clock)).transpose() {
            Err(ReachError::Memory(error)) if !matches!(error, MemoryError::Unmapped { .. }) => {
                return Err(error);
            }
            Err(reason) => {
                tracing::debug!(%reason, "it is not known who could still be woken");
                None
            }
            Ok(reached) => reached.inspect(|reached| {
                tracing::debug!(
                    bytes = reached.bytes,
                    milliseconds = reached.took_ns / 1_000_000,
                    alone = reached.alone.len(),
                    forgotten = reached.forgotten.len(),
                    "all pointers were followed"
                );
            }),
        };
        Ok(Self {
            stacks: stacks::walk(memory, layout, symbols, goroutines)?,
            channels: channels.by_site(goroutines),
            semaphores: semaphores.by_site(goroutines),
            reached,
        })
    }
}
