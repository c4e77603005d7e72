//! Where are goroutines stuck, and on what? All that a report shows beyond counts.

use super::reach::{self, ReachError};
use super::semaphores::{Semaphore, semaphores};
use super::stacks::{self, StackGroup};
use super::waits::{Channel, SiteWait, channels};
use super::{Goroutine, Layout, Memory, MemoryError};
use crate::event::Goid;
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
    /// Those that wait for what nothing else refers to, in the order of their numbers; `None` when nobody looked, or that
    /// cannot be told.
    pub stranded: Option<Vec<Goid>>,
}

impl Places {
    /// Looks at the goroutines of a census; with `reach` also at who could still wake them, which takes following all
    /// pointers of the program. `clock` answers CLOCK_MONOTONIC in nanoseconds.
    ///
    /// # Errors
    /// When the memory as a whole is out of reach; what cannot be read is left out.
    pub fn of(
        goroutines: &[Goroutine],
        memory: &dyn Memory,
        layout: &Layout,
        wait_reasons: &[String],
        symbols: &Symbolizer,
        reach: bool,
        clock: &dyn Fn() -> u64,
    ) -> Result<Self, MemoryError> {
        let channels = channels(memory, layout, wait_reasons, goroutines)?;
        let semaphores = semaphores(memory, layout, wait_reasons, goroutines)?;
        let stranded = reach.then(|| {
            reach::stranded(
                memory,
                layout,
                wait_reasons,
                goroutines,
                &channels,
                &semaphores,
                clock,
            )
        });
        let stranded = match stranded.transpose() {
            Err(ReachError::Memory(error)) if !matches!(error, MemoryError::Unmapped { .. }) => {
                return Err(error);
            }
            Err(reason) => {
                tracing::debug!(%reason, "it is not known who could still be woken");
                None
            }
            Ok(reached) => reached.map(|reached| {
                let (milliseconds, found) = (reached.took_ns / 1_000_000, reached.stranded.len());
                tracing::debug!(
                    bytes = reached.bytes,
                    milliseconds,
                    found,
                    "all pointers were followed"
                );
                reached.stranded
            }),
        };
        Ok(Self {
            stacks: stacks::walk(memory, layout, symbols, goroutines)?,
            channels: channels.by_site(goroutines),
            semaphores: semaphores.by_site(goroutines),
            stranded,
        })
    }
}
