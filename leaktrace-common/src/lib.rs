//! Everything that crosses the boundary between the eBPF programs and user space, and nothing else.
//!
//! Records are plain integers with explicit padding; sizes are asserted on both sides, because the two
//! sides are compiled by different compilers for different machines.
#![no_std]

pub mod binary;
pub mod event;
pub mod histogram;
pub mod limits;
pub mod process;
pub mod stack;
pub mod wait;
