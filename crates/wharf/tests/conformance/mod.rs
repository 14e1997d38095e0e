//! What every driver of a port must do, as tests.
//!
//! A file beside this directory mounts these modules for one driver or one variant of it, and says
//! with `fn builder() -> wharf::Builder` how its ports are made.
//!
//! No test asserts that something was fast. A test waits, with a deadline that only a hang
//! exceeds, for what must happen, and asserts orders, counts and values.

mod datagrams;
#[cfg(unix)]
mod descriptors;
mod exchange;
mod files;
mod lifecycle;
mod lifecycle_of_others;
#[cfg(windows)]
mod named_pipes;
mod needs;
#[cfg(unix)]
mod network;
mod operations;
mod pipes;
mod port;
mod scheduling;
mod serial;
mod stress;
pub(crate) mod support;
mod tcp;
mod transmit;
mod udp;
