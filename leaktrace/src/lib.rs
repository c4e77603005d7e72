//! leaktrace finds leaking goroutines and timers in running, unmodified Go programs.
//!
//! ```text
//! who?          what's in it?       watch it           hear it        keep the books     judge        tell
//! target  ───►  resolve  ────────►  probe ──kernel──►  event  ─────►  ledger  ────────►  verdict ───► export
//!                  │                                                    ▲
//!                  └────────────►  census (reads the runtime's memory) ─┘
//! ```
//!
//! The modules follow that line. Everything between `resolve` and `export` is pure: no I/O, no clock
//! (time is an argument); only `target`, `probe`, `event::ring`, `census::memory`, `export::server` and
//! `command` touch the world.

pub mod address;

/// 2. What is in this binary?
pub mod resolve;

/// 3. Put the probes on.
pub mod probe;

/// 4. What did the probes say?
pub mod event;
