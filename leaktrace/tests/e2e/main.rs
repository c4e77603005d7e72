//! End to end: the `leaktrace` command against live processes, held to the contract in design.md §4.
//!
//! What a test needs and this machine lacks (root, a Go toolchain, a server) makes it pass without a word on
//! the terminal, but never without a trace: the reason goes to the file that LEAKTRACE_SKIPS names, and
//! `cargo xtask test` prints it.

mod alerting;
mod bad_input;
mod blocked;
mod budget;
mod catalogue;
mod check;
mod crowds;
mod daemon;
mod detach;
mod fleet;
mod hostile;
mod http;
mod inspect;
mod kinds;
mod matrix;
mod monitoring;
mod needs;
mod noise;
mod pods;
mod privileges;
mod progress;
mod prometheus;
mod record;
mod report;
mod service;
mod snapshot;
mod text;
mod timers;
mod tool;
mod top;
mod verdicts;
mod web;
