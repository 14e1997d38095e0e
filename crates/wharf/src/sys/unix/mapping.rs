//! Memory straight from the kernel.

use std::{io, ptr::NonNull, sync::atomic::AtomicU32};

/// No page of any machine is smaller.
const PAGE: usize = 4096;

/// A mapping of kernel memory, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is an address range; who may touch its contents is the business of those who
// hold pointers into it.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself has no interior state.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `fd` at `offset`, or of fresh zeroed memory without one. A child
    /// made by fork does not inherit the mapping: a ring shared with a child would complete the
    /// child's operations in the parent.
    pub(crate) fn new(length: usize, fd: Option<(i32, i64)>) -> io::Result<Self> {
        let (flags, (fd, offset)) = match fd {
            Some(place) => (libc::MAP_SHARED | libc::MAP_POPULATE, place),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, (-1, 0)),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let address =
            unsafe { libc::mmap64(std::ptr::null_mut(), length, protection, flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, length })
    }

    /// Fresh zeroed memory that is there already: nothing faults when it is first touched. In
    /// large pages where the system gives some.
    pub(crate) fn resident(length: usize) -> io::Result<Self> {
        let mapping = Self::new(length, None)?;
        let address = mapping.address();
        // SAFETY: the range is a whole mapping of ours; neither advice changes what is in it.
        let populated = unsafe {
            libc::madvise(address.cast(), length, libc::MADV_HUGEPAGE);
            libc::madvise(address.cast(), length, libc::MADV_POPULATE_WRITE)
        };
        if populated != 0 {
            match io::Error::last_os_error() {
                // Before Linux 5.14: touch each page.
                error if error.raw_os_error() == Some(libc::EINVAL) => {
                    for offset in (0..length).step_by(PAGE) {
                        // SAFETY: inside the mapping, which nobody else knows yet.
                        unsafe { address.add(offset).write_volatile(0) };
                    }
                }
                error => return Err(error),
            }
        }
        Ok(mapping)
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The word at an offset that the kernel has named.
    pub(crate) fn atomic(&self, offset: u32) -> *const AtomicU32 {
        debug_assert!(offset as usize + 4 <= self.length && offset.is_multiple_of(4));
        // SAFETY: the offset comes from the kernel and lies inside the mapping.
        unsafe { self.address.as_ptr().add(offset as usize).cast::<AtomicU32>() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new` and is unmapped once, here.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
    }
}
