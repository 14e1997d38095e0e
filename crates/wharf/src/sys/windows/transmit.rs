//! Files to sockets: not yet on Windows. The operation is accepted, and fails with `Unsupported`.

use super::{RawDescriptor, Slice};

/// A head, a part of a file and a tail on their way to a socket, at a fixed address that the
/// caller owns.
#[derive(Debug)]
#[doc(alias = "TRANSMIT_FILE_BUFFERS")]
pub struct Transmission(());

impl Transmission {
    /// Sends the bytes of `head`, then `length` bytes of a file from `offset` on, then those of
    /// `tail`. The bytes must stay valid, and the file open, as long as the operation.
    #[must_use]
    pub const fn new(
        _head: Slice,
        _file: RawDescriptor,
        _offset: u64,
        _length: u64,
        _tail: Slice,
    ) -> Self {
        Self(())
    }
}
