//! Files to sockets.

use windows_sys::Win32::Networking::WinSock as ws;

use super::{RawDescriptor, Slice};

/// A head, a part of a file and a tail on their way to a socket, at a fixed address that the
/// caller owns.
///
/// The head goes with the first call, and the tail with one of its own: so it does not follow a
/// file that has ended too early.
#[doc(alias = "TRANSMIT_FILE_BUFFERS")]
pub struct Transmission {
    head: Slice,
    tail: Slice,
    file: RawDescriptor,
    /// Where the rest of the file's part begins, and how long it is.
    offset: u64,
    left: u64,
    /// How many bytes of the file the call is for that is under way.
    called: u32,
    /// What it sends beside them.
    buffers: ws::TRANSMIT_FILE_BUFFERS,
}

// SAFETY: the pointers lead to what its user has promised for as long as it is used.
unsafe impl Send for Transmission {}

impl std::fmt::Debug for Transmission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transmission")
            .field("offset", &self.offset)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// The most bytes of a file that one call sends.
const MAX_BYTES: u64 = 1 << 30;

/// What to call next.
pub(super) enum Next {
    /// Send bytes: of what has no file, or the tail.
    Send([ws::WSABUF; 2]),
    /// Send so many bytes of the file from a position on, and what the buffers hold before them.
    Transmit { offset: u64, length: u32, buffers: *const ws::TRANSMIT_FILE_BUFFERS },
    /// The file has ended before its part has.
    Ended,
}

impl Transmission {
    /// Sends the bytes of `head`, then `length` bytes of a file from `offset` on, then those of
    /// `tail`. The bytes must stay valid, and the file open, as long as the operation.
    #[must_use]
    pub const fn new(
        head: Slice,
        file: RawDescriptor,
        offset: u64,
        length: u64,
        tail: Slice,
    ) -> Self {
        let nothing = std::ptr::null_mut();
        let buffers = ws::TRANSMIT_FILE_BUFFERS {
            Head: nothing,
            HeadLength: 0,
            Tail: nothing,
            TailLength: 0,
        };
        Self { head, tail, file, offset, left: length, called: 0, buffers }
    }

    pub(super) fn file(&self) -> RawDescriptor {
        self.file
    }

    /// Whether the next call is about the file.
    pub(super) fn reads(&self) -> bool {
        self.left > 0
    }

    /// What to call next, for a file of this size.
    pub(super) fn next(&mut self, size: u64) -> Next {
        if self.left == 0 {
            self.called = 0;
            return Next::Send([self.head.0, self.tail.0]);
        }
        let there = size.saturating_sub(self.offset).min(self.left).min(MAX_BYTES);
        if there == 0 {
            return Next::Ended;
        }
        self.called = u32::try_from(there).unwrap_or(u32::MAX);
        self.buffers.Head = self.head.0.buf.cast();
        self.buffers.HeadLength = self.head.0.len;
        Next::Transmit {
            offset: self.offset,
            length: self.called,
            buffers: &raw const self.buffers,
        }
    }

    /// Takes note of how much a call has sent. Returns whether anything is left.
    pub(super) fn advance(&mut self, bytes: usize) -> bool {
        let head = bytes.min(self.head.length());
        let file = (bytes - head).min(usize::try_from(self.called).unwrap_or(0));
        self.head.skip(head);
        self.offset += file as u64;
        self.left -= file as u64;
        self.tail.skip((bytes - head - file).min(self.tail.length()));
        self.left > 0 || self.head.length() + self.tail.length() > 0
    }
}
