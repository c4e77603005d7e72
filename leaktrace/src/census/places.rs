//! Where are goroutines stuck, and on what? All that a report shows beyond counts.

use super::semaphores::{Semaphore, semaphores};
use super::stacks::{self, StackGroup};
use super::waits::{Channel, SiteWait, channels};
use super::{Goroutine, Layout, Memory, MemoryError};
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
}

impl Places {
    /// Looks at the goroutines of a census.
    ///
    /// # Errors
    /// When the memory as a whole is out of reach; what cannot be read is left out.
    pub fn of(
        goroutines: &[Goroutine],
        memory: &dyn Memory,
        layout: &Layout,
        wait_reasons: &[String],
        symbols: &Symbolizer,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            stacks: stacks::walk(memory, layout, symbols, goroutines)?,
            channels: channels(memory, layout, wait_reasons, goroutines)?.by_site(goroutines),
            semaphores: semaphores(memory, layout, wait_reasons, goroutines)?.by_site(goroutines),
        })
    }
}
