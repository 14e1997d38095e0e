//! The folder that is served: not on Windows yet, where names lead out of a folder in more ways.

use std::{
    fs::{File, Metadata},
    io,
    path::Path,
};

/// A folder whose files are served: there is none.
#[derive(Debug)]
pub(super) enum Site {}

/// What a path leads to.
#[derive(Debug)]
#[expect(dead_code, reason = "nothing is found here")]
pub(super) enum Found {
    File {
        file: File,
        metadata: Metadata,
        /// By its name.
        kind: &'static str,
    },
    /// A folder that was named without a slash at its end.
    Folder,
    /// Nothing, or nothing that is shown.
    Nothing,
    /// Something that this process may not read.
    Forbidden,
}

impl Site {
    /// Refuses.
    pub(super) fn new(_path: &Path) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "files are not served on Windows yet"))
    }

    pub(super) fn find(&self, _url: &str) -> io::Result<Found> {
        match *self {}
    }
}
