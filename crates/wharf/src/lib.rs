//! I/O completion ports for Rust.
