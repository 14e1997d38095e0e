//! What Registered I/O promises, as tests. A file beside this directory mounts them for one engine.
//!
//! No test asserts that something was fast. That something does *not* happen is asserted after a
//! moment in which it would have, and such a test can only fail to notice, never fail by chance.

mod datagrams;
mod lifecycle;
mod notify;
mod quotas;
mod streams;
pub(crate) mod support;
