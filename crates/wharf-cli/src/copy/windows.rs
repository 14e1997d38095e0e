//! What copying asks of Windows.

use std::{
    ffi::OsStr,
    fs::{File, Metadata, OpenOptions, Permissions},
    io,
    ops::Range,
    path::Path,
};

/// Whether a file can have this name: `name:stream` is a part of one.
pub(super) fn is_name(name: &OsStr) -> bool {
    !name.to_string_lossy().contains(':')
}

/// Whether two paths lead to one file, as far as its names tell.
pub(super) fn are_same(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(one.canonicalize()? == other.canonicalize()?)
}

/// Who may read a file is what its folder says.
pub(super) fn make_private(_options: &mut OpenOptions) {}

/// What of the permissions a copy has, too: whether it may be written to.
pub(super) fn permissions(original: &Metadata) -> Permissions {
    original.permissions()
}

/// The next part of a file that is no hole, from a position on: holes are not looked for here.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere it may fail")]
pub(super) fn next_data(_file: &File, at: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    Ok(Some(at..length))
}

/// No call does that for a file that is open.
pub(super) fn forget(_file: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
