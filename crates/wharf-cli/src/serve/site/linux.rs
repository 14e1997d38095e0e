//! What the kernel keeps inside of a folder.

use std::{fs::File, io, path::Path};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

use super::Opened;

/// A folder, held open.
#[derive(Debug)]
pub(super) struct Root {
    folder: File,
    /// Whether the kernel keeps paths inside of the folder (openat2, Linux 5.6).
    pub(super) beneath: bool,
}

/// All files are opened like this: without waiting, should it be a FIFO.
const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

impl Root {
    /// Takes a folder.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let flags = FLAGS | OFlags::DIRECTORY;
        let folder = File::from(openat(CWD, path, flags, Mode::empty())?);
        // Some containers refuse the call that keeps paths inside.
        let tried = openat2(&folder, ".", flags, Mode::empty(), ResolveFlags::BENEATH);
        let beneath = tried.is_ok();
        if !beneath {
            log::warn!("openat2 is refused here: symbolic links below the folder are not followed");
        }
        Ok(Self { folder, beneath })
    }

    /// Opens what is at a path below the root.
    pub(super) fn open(&self, path: &[u8]) -> io::Result<Opened> {
        let opened = if self.beneath { self.open_beneath(path) } else { self.walk(path) };
        match opened {
            Ok(file) => Ok(Opened::There(file)),
            // Out of the folder, by a link, is nowhere; so is what lies below a file.
            Err(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::NAMETOOLONG
                | Errno::XDEV
                | Errno::LOOP
                | Errno::NXIO
                | Errno::NODEV
                | Errno::INVAL,
            ) => Ok(Opened::Nothing),
            Err(Errno::ACCESS | Errno::PERM) => Ok(Opened::Forbidden),
            Err(error) => Err(error.into()),
        }
    }

    fn open_beneath(&self, path: &[u8]) -> Result<File, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.folder, path, FLAGS, Mode::empty(), resolve) {
                Ok(file) => return Ok(file.into()),
                // Something was renamed meanwhile, and the kernel cannot tell where it was.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same, one name after the other, without following any link.
    fn walk(&self, path: &[u8]) -> Result<File, Errno> {
        let mut at = File::from(rustix::io::fcntl_dupfd_cloexec(&self.folder, 0)?);
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            let folder = if names.peek().is_some() { OFlags::DIRECTORY } else { OFlags::empty() };
            let flags = FLAGS | OFlags::NOFOLLOW | folder;
            at = openat(&at, name, flags, Mode::empty())?.into();
        }
        Ok(at)
    }
}
