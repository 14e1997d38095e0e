//! An io_uring with a ring of provided buffers, for the bare loops of the benchmarks: the rival of
//! that name, and the load generator.
//!
//! One thread creates a [`Ring`] and uses it (`SINGLE_ISSUER`, `DEFER_TASKRUN`). Requests are
//! gathered and go to the kernel together with the wait for completions, one system call for all of
//! them.
//!
//! Who may touch a buffer: the kernel, from [`Ring::new`] or [`Ring::give_back`] until a completion
//! names the buffer; then the holder of the [`Taken`], and nobody else, until it is given back. A
//! `Taken` cannot be copied or made elsewhere, and a ring refuses those of another.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// The kernel wants the ring of buffers to start on a page.
const PAGE: usize = 4096;

/// What lies between two buffers, in bytes. Without it, buffers of a power of two would begin in
/// the same few sets of the cache, and small messages touch little more than the beginning.
const GAP: usize = 64;

/// The only group of buffers in a ring.
const GROUP: u16 = 0;

/// An io_uring and its provided buffers.
///
/// The order of the fields is the order of their drop: the kernel lets go of the buffers when the
/// ring closes, and only then may they be freed.
pub struct Ring {
    uring: IoUring,
    buffers: Buffers,
}

/// What the kernel has to say about one request.
pub struct Completion {
    /// What the request was given as its mark.
    pub mark: u64,
    /// A count of bytes, or a negated error code.
    pub result: i32,
    /// Whether the same request will complete again.
    pub more: bool,
    /// The buffer with the bytes that a receive has brought.
    pub buffer: Option<Taken>,
}

/// A provided buffer that the kernel has filled and handed over.
#[must_use = "a buffer that is not given back is lost to its ring"]
pub struct Taken {
    ring: RawFd,
    id: u16,
    len: usize,
}

impl Taken {
    /// How many bytes were received into it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was received into it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Ring {
    /// Creates a ring for the calling thread, with room for `entries` requests at once, and `count`
    /// buffers (a power of two) of `size` bytes each.
    pub fn new(entries: u32, count: u16, size: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(entries.saturating_mul(4))
            .build(entries)?;
        let buffers = Buffers::new(count, size);
        // SAFETY: the entries stay where they are until `buffers` is dropped, which is after
        // `uring` is dropped and with it the registration.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                buffers.entries.as_ptr() as u64,
                count,
                GROUP,
                0,
            )?;
        }
        let mut ring = Self { uring, buffers };
        for id in 0..count {
            ring.buffers.put(id);
        }
        ring.buffers.publish();
        Ok(ring)
    }

    /// Asks for everything that arrives on a socket, until a completion says that there is no more.
    pub fn receive(&mut self, fd: RawFd, mark: u64) -> io::Result<()> {
        self.push(&opcode::RecvMulti::new(Fd(fd), GROUP).build().user_data(mark))
    }

    /// Asks to be told whenever a descriptor has something to read.
    pub fn watch(&mut self, fd: RawFd, mark: u64) -> io::Result<()> {
        let flags = u32::try_from(i32::from(POLLIN)).expect("a small constant");
        self.push(&opcode::PollAdd::new(Fd(fd), flags).multi(true).build().user_data(mark))
    }

    /// Sends all that a buffer holds. The buffer is to be given back when the completion is there.
    pub fn send_back(&mut self, fd: RawFd, taken: &Taken, mark: u64) -> io::Result<()> {
        let bytes = self.bytes(taken);
        // SAFETY: the bytes lie in memory that is freed after the ring is closed. Giving the buffer
        // back too early would send the wrong bytes, but no memory that is not ours.
        let entry = unsafe { send(fd, bytes, mark) };
        self.push(&entry)
    }

    /// Sends bytes. With `quiet`, there is no completion unless it fails.
    ///
    /// # Safety
    ///
    /// The bytes must neither move, change nor be freed until they are sent, or the ring is
    /// dropped.
    pub unsafe fn send(
        &mut self,
        fd: RawFd,
        bytes: &[u8],
        mark: u64,
        quiet: bool,
    ) -> io::Result<()> {
        // SAFETY: as our caller promises.
        let entry = unsafe { send(fd, bytes, mark) };
        let flags = if quiet { squeue::Flags::SKIP_SUCCESS } else { squeue::Flags::empty() };
        self.push(&entry.flags(flags))
    }

    /// Hands the gathered requests to the kernel, waits for a completion, but not longer than
    /// `timeout`, and appends all that there are to `completions`.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.buffers.publish();
        let outcome = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                self.uring.submitter().submit_with_args(1, &args)
            }
        };
        match outcome {
            Ok(_) => {}
            // EBUSY: completions must be taken before more requests are accepted.
            Err(error) if matches!(error.raw_os_error(), Some(EINTR | EBUSY | ETIME)) => {}
            Err(error) => return Err(error),
        }
        let ring = self.uring.as_raw_fd();
        for entry in self.uring.completion() {
            let buffer = cqueue::buffer_select(entry.flags()).map(|id| Taken {
                ring,
                id,
                len: usize::try_from(entry.result()).unwrap_or(0),
            });
            completions.push(Completion {
                mark: entry.user_data(),
                result: entry.result(),
                more: cqueue::more(entry.flags()),
                buffer,
            });
        }
        Ok(())
    }

    /// The bytes that were received into a buffer.
    #[must_use]
    pub fn bytes(&self, taken: &Taken) -> &[u8] {
        assert_eq!(taken.ring, self.uring.as_raw_fd(), "a buffer of another ring");
        assert!(taken.id <= self.buffers.mask && taken.len <= self.buffers.size);
        // SAFETY: the range is within the buffer, by the assertion above. The kernel has handed the
        // buffer over, and does not touch it until it is given back, which takes `taken` by value.
        unsafe {
            let start = self.buffers.memory.as_ptr().add(self.buffers.start(taken.id));
            std::slice::from_raw_parts(start, taken.len)
        }
    }

    /// Makes a buffer available to the kernel again, as of the next [`Ring::wait`].
    pub fn give_back(&mut self, taken: Taken) {
        assert_eq!(taken.ring, self.uring.as_raw_fd(), "a buffer of another ring");
        self.buffers.put(taken.id);
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: receives and polls refer to no memory but the provided buffers, which outlive
            // the ring; for sends, see where they are built.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.uring.submit()?;
        }
    }
}

const EINTR: i32 = 4;
const EBUSY: i32 = 16;
const ETIME: i32 = 62;
const POLLIN: i16 = 1;
const MSG_WAITALL: i32 = 0x100;
const MSG_NOSIGNAL: i32 = 0x4000;

/// A request to send all of `bytes`.
///
/// # Safety
///
/// As for [`Ring::send`], once the request is pushed.
unsafe fn send(fd: RawFd, bytes: &[u8], mark: u64) -> squeue::Entry {
    let len = u32::try_from(bytes.len()).expect("messages are far smaller than 4 GiB");
    opcode::Send::new(Fd(fd), bytes.as_ptr(), len)
        .flags(MSG_WAITALL | MSG_NOSIGNAL)
        .build()
        .user_data(mark)
}

/// The memory that is shared with the kernel: the buffers, and the ring of entries that names those
/// that the kernel may fill.
struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    size: usize,
    mask: u16,
    /// Counts the entries ever made; the kernel has seen those up to the last `publish`.
    tail: u16,
}

impl Buffers {
    fn new(count: u16, size: u32) -> Self {
        assert!(count.is_power_of_two(), "the kernel wants a power of two");
        let size = usize::try_from(size).expect("a 64-bit machine");
        assert!(size > 0);
        let (entries, memory) = Self::layouts(count, size);
        Self {
            entries: allocate(entries).cast(),
            memory: allocate(memory),
            size,
            mask: count - 1,
            tail: 0,
        }
    }

    fn layouts(count: u16, size: usize) -> (Layout, Layout) {
        let layout = |bytes| Layout::from_size_align(bytes, PAGE).expect("a few megabytes");
        let count = usize::from(count);
        (layout(count * size_of::<BufRingEntry>()), layout(count * (size + GAP)))
    }

    /// Where a buffer begins in the memory.
    fn start(&self, id: u16) -> usize {
        usize::from(id) * (self.size + GAP)
    }

    /// Writes the next entry. The kernel does not look at it before `publish`.
    fn put(&mut self, id: u16) {
        assert!(id <= self.mask);
        // SAFETY: both indexes are within what was allocated, by the mask. The entry is ours to
        // write: there are as many entries as buffers, and this buffer is not in any of them, so
        // the kernel has consumed the one that we overwrite.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(usize::from(self.tail & self.mask));
            entry.set_addr(self.memory.as_ptr().add(self.start(id)) as u64);
            entry.set_len(u32::try_from(self.size).expect("it came from a u32"));
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the tail lies in the first entry, which `set_*` above never write to; the kernel
        // only reads it. Release: what we wrote into the entries is visible to whoever sees the new
        // tail.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let (entries, memory) = Self::layouts(self.mask + 1, self.size);
        // SAFETY: allocated in `new` with the same layouts. The ring was closed before.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries);
            dealloc(self.memory.as_ptr(), memory);
        }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout of ours is empty.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
