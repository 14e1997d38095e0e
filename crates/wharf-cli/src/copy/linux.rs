//! What copying asks of Linux.

use std::{
    ffi::OsStr,
    fs::{File, Metadata, OpenOptions, Permissions},
    io,
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use rustix::{
    fs::{Advice, SeekFrom, fadvise, seek},
    io::Errno,
};

/// Whether a file can have this name.
pub(super) fn is_name(_name: &OsStr) -> bool {
    true
}

/// Whether two paths lead to one file.
pub(super) fn are_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Lets nobody else read a file that is made so.
pub(super) fn make_private(options: &mut OpenOptions) {
    options.mode(0o600);
}

/// What of the permissions a copy has, too.
pub(super) fn permissions(original: &Metadata) -> Permissions {
    Permissions::from_mode(original.mode() & 0o777)
}

/// The next part of a file that is no hole, from a position on. None: there is no more.
pub(super) fn next_data(file: &File, at: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    let begin = match seek(file, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        // Nothing but a hole is left.
        Err(Errno::NXIO) => return Ok(None),
        // It does not know of holes.
        Err(Errno::INVAL) => at,
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Hole(begin)) {
        Ok(end) => end.min(length),
        Err(Errno::INVAL) => length,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(begin..end))
}

/// Has what is next read of a file read from the disk.
pub(super) fn forget(file: &File) -> io::Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}
