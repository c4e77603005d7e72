//! The kernel side; on the host an empty program.
fn main() {}
