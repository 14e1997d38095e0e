//! Memory straight from the kernel.

use std::{io, ptr::NonNull};

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree,
};

/// No page of any machine is smaller.
const PAGE: usize = 4096;

/// Zeroed pages, which take up memory as they are touched.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: an address range; who may touch its contents is the business of those who hold pointers
// into it.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(length: usize, _fd: Option<(i32, i64)>) -> io::Result<Self> {
        // SAFETY: fresh pages at an address of the kernel's choice alias nothing.
        let address = unsafe {
            VirtualAlloc(std::ptr::null(), length, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE)
        };
        let address = NonNull::new(address.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { address, length })
    }

    /// Zeroed pages that are there already: nothing faults when they are first touched.
    pub(crate) fn resident(length: usize) -> io::Result<Self> {
        let mapping = Self::new(length, None)?;
        for offset in (0..length).step_by(PAGE) {
            // SAFETY: inside the pages, which nobody else knows yet.
            unsafe { mapping.address().add(offset).write_volatile(0) };
        }
        Ok(mapping)
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        unsafe { VirtualFree(self.address().cast(), 0, MEM_RELEASE) };
    }
}
