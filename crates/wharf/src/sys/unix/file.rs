//! What files need of the system beside their operations.

use std::{
    fs, io,
    mem::ManuallyDrop,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::OpenOptionsExt,
    },
};

use super::RawDescriptor;

/// What is taken where the system does not tell: no device asks for more.
const USUAL_ALIGNMENT: usize = 4096;

/// The descriptor of a file of the standard library's.
pub(crate) fn raw(file: &fs::File) -> RawDescriptor {
    file.as_raw_fd()
}

/// Size, times and so on.
pub(crate) fn metadata(file: RawDescriptor) -> io::Result<fs::Metadata> {
    // SAFETY: the descriptor is open, and is not closed here.
    let file = ManuallyDrop::new(unsafe { fs::File::from_raw_fd(file) });
    file.metadata()
}

/// Cuts a file to a size, or makes it grow.
pub(crate) fn truncate(file: RawDescriptor, length: u64) -> io::Result<()> {
    let Ok(length) = libc::off_t::try_from(length) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    // SAFETY: it takes no pointers.
    if unsafe { libc::ftruncate(file, length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Adds what a port needs, and direct I/O if it is asked for.
pub(crate) fn prepare(options: &mut fs::OpenOptions, direct: bool) {
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
}

/// Whether it is a descriptor at all.
pub(crate) fn is_open(file: RawDescriptor) -> bool {
    // SAFETY: F_GETFD takes no pointers.
    unsafe { libc::fcntl(file, libc::F_GETFD) >= 0 }
}

/// Whether a file was opened for direct I/O.
pub(crate) fn is_direct(file: RawDescriptor) -> bool {
    // SAFETY: F_GETFL takes no pointers.
    let flags = unsafe { libc::fcntl(file, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_DIRECT != 0
}

/// Whether a file was opened for appending: then every write goes to its end.
pub(crate) fn is_append_only(file: RawDescriptor) -> bool {
    // SAFETY: F_GETFL takes no pointers.
    let flags = unsafe { libc::fcntl(file, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_APPEND != 0
}

/// What positions, lengths and addresses must be multiples of.
pub(crate) fn alignment(file: RawDescriptor) -> io::Result<usize> {
    if !is_direct(file) {
        return Ok(1);
    }
    // SAFETY: plain integers, for which zero is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (path, wanted) = (c"".as_ptr(), libc::STATX_DIOALIGN);
    // SAFETY: the path is an empty string and the structure lives across the call.
    let result =
        unsafe { libc::statx(file, path, libc::AT_EMPTY_PATH, wanted, &raw mut found) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // Linux 6.1 tells, for file systems that know.
    let told = found.stx_dio_mem_align.max(found.stx_dio_offset_align);
    Ok(match usize::try_from(told) {
        Ok(told) if found.stx_mask & libc::STATX_DIOALIGN != 0 && told > 0 => told,
        _ => USUAL_ALIGNMENT,
    })
}
