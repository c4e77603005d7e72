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
//! (time is an argument); only `target`, `probe`, `event::ring`, `census::memory`, `export::server`,
//! `session`, `fleet`, `watcher` and `command` touch the world.

// Arguments as typed.
pub mod cli;

// The daemon's configuration file.
pub mod config;

// What each subcommand does.
pub mod command;

// All processes of this machine, and what becomes of them.
pub mod watcher;

// All targets, and the probes that serve them.
pub mod fleet;

// One target from end to end.
pub mod session;

// 1. Whom do we watch?
pub mod target;

// 2. What is in this binary?
pub mod resolve;

// 3. Put the probes on.
pub mod probe;

// 4. What did the probes say?
pub mod event;

// What may all that cost the program?
pub mod budget;

// 5. What is really alive? A second witness, without probes.
pub mod census;

// 6. Keep the books.
pub mod ledger;

// 7. Is it a leak?
pub mod verdict;

// 8. Tell people and machines.
pub mod export;

// The same on a terminal, live.
pub mod top;

// Who may ask the daemon?
pub mod web;

// What is leaktrace itself allowed to do?
pub mod privilege;

// Can this machine be traced?
pub mod host;

pub mod address;
pub mod clock;
