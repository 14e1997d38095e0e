//! Memory straight from the kernel.

use std::{io, ptr::NonNull};

use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree,
};

/// Zeroed pages, which take up memory as they are touched.
#[derive(Debug)]
pub(crate) struct Mapping(NonNull<u8>);

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
        NonNull::new(address.cast()).map(Self).ok_or_else(io::Error::last_os_error)
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        unsafe { VirtualFree(self.0.as_ptr().cast(), 0, MEM_RELEASE) };
    }
}
