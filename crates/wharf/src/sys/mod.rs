//! What the operating system does for a port.
//!
//! Required of a driver: a `Lane` that takes operations (`push`, `push_cancel`), gives their
//! events back to any thread that asks (`pop`), waits (`wait`), can be woken from any thread
//! (`wake`) and submitted from any thread (`submit`), and says what an event means (`digest`).
//! Operations are data ([`crate::raw::Request`]): a driver prepares each in one place and
//! understands its result in another.

pub(crate) mod fork;
pub(crate) mod uring;
