//! Who may ask the daemon: TLS and passwords, from a file in the format of Prometheus' exporters.

// What the file says.
pub mod config;

// Who knows a password.
pub mod password;

// The certificate that is shown, and those that are asked for.
#[cfg(feature = "tls")]
pub mod tls;

// The file and those that it names, as they were when last read.
pub mod door;

// Connections: how many, for how long, and who may ask what.
pub mod serve;

pub use door::{Door, Watched};
pub use serve::{Policy, Server, bind};
