//! What each subcommand does, one file each.

pub mod check;
pub mod daemon;
pub mod diff;
pub mod explain;
pub mod generate;
pub mod inspect;
pub mod record;
pub mod snapshot;
pub mod top;

mod front;
mod output;
mod progress;
mod service;
