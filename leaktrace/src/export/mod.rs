//! Tell people and machines. Each renderer takes a [`Report`] and does no I/O; only [`server`] does.

pub mod api;
pub mod explain;
pub mod folded;
mod histograms;
pub mod label;
pub mod metrics;
pub mod page;
pub mod plot;
pub mod pprof;
pub mod report;
pub mod server;
pub mod text;
pub mod times;

pub use report::Report;
