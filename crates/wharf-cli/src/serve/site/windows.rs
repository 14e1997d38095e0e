//! What a name may be that is looked for in a folder, and how it is opened so that it stays there.
//!
//! A name leads elsewhere on Windows in many ways: by `\\` and `:`, as a device, by dots and spaces
//! at its end that are left out, by links. So only plain names are looked for at all; paths are
//! made in the form that Windows takes as it stands (`\\?\`); and no link is followed.

use std::{
    fs::{File, OpenOptions},
    io,
    os::windows::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Opened;

/// Of a file that is open: whether others may read, write, or rename and remove it.
const SHARE_READ: u32 = 1;
const SHARE_WRITE: u32 = 2;
const SHARE_DELETE: u32 = 4;
/// Opens folders, too.
const BACKUP_SEMANTICS: u32 = 0x0200_0000;
/// Opens a link itself, and not what it leads to.
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
/// It is a link, or something like it.
const ATTRIBUTE_REPARSE_POINT: u32 = 0x400;
/// Somebody has it open and lets nobody else read it.
const SHARING_VIOLATION: i32 = 32;

/// A folder, held open, so that it keeps its name.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    _folder: File,
}

impl Root {
    /// Takes a folder.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        // In the form that Windows takes as it stands.
        let path = path.canonicalize()?;
        let folder = open(&path, SHARE_READ | SHARE_WRITE)?;
        if !folder.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { path, _folder: folder })
    }

    /// Opens what is at a path below the root.
    pub(super) fn open(&self, path: &[u8]) -> io::Result<Opened> {
        let Some(names) = names(path) else { return Ok(Opened::Nothing) };
        match self.walk(&names) {
            Ok(Some(file)) => Ok(Opened::There(file)),
            Ok(None) => Ok(Opened::Nothing),
            Err(error) if error.raw_os_error() == Some(SHARING_VIOLATION) => Ok(Opened::Forbidden),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::InvalidFilename => Ok(Opened::Nothing),
                io::ErrorKind::PermissionDenied => Ok(Opened::Forbidden),
                _ => Err(error),
            },
        }
    }

    /// Opens one name after the other. The folders on the way are held meanwhile so that nobody
    /// can rename them and put others in their place. None: something on the way is a link.
    fn walk(&self, names: &[&str]) -> io::Result<Option<File>> {
        let mut path = self.path.clone();
        let Some((last, folders)) = names.split_last() else {
            return open(&path, SHARE_READ | SHARE_WRITE | SHARE_DELETE).map(Some);
        };
        let mut held = Vec::with_capacity(names.len());
        for name in folders {
            path.push(name);
            held.push(open(&path, SHARE_READ | SHARE_WRITE)?);
            if is_link(&held[held.len() - 1])? {
                return Ok(None);
            }
        }
        path.push(last);
        held.push(open(&path, SHARE_READ | SHARE_WRITE | SHARE_DELETE)?);
        // A folder may have been made a link since it was looked at, without a new name.
        for file in &held {
            if is_link(file)? {
                return Ok(None);
            }
        }
        Ok(held.pop())
    }
}

fn open(path: &Path, share: u32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .share_mode(share)
        .custom_flags(BACKUP_SEMANTICS | OPEN_REPARSE_POINT)
        .open(path)
}

fn is_link(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_attributes() & ATTRIBUTE_REPARSE_POINT != 0)
}

/// The names in a path. None: one of them is no plain name.
fn names(path: &[u8]) -> Option<Vec<&str>> {
    let path = str::from_utf8(path).ok()?;
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.map(|name| is_plain(name).then_some(name)).collect()
}

/// Whether a name can be that of a file, and means the same wherever it is used.
fn is_plain(name: &str) -> bool {
    let special = |c: char| c.is_control() || r#"<>:"/\|?*"#.contains(c);
    !name.contains(special) && !name.ends_with(['.', ' ']) && !is_device(name)
}

/// Whether it is the name of a device, which it is in every folder, whatever follows a dot.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or("").trim_end();
    let is = |device: &str| stem.eq_ignore_ascii_case(device);
    if ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"].into_iter().any(is) {
        return true;
    }
    let mut rest = stem.chars();
    let port: String = rest.by_ref().take(3).collect();
    // The superscripts count as digits.
    let numbered = matches!((rest.next(), rest.next()), (Some('0'..='9' | '¹' | '²' | '³'), None));
    numbered && ["COM", "LPT"].iter().any(|kind| port.eq_ignore_ascii_case(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Would catch: a name that means something else to Windows than it says.
    #[test]
    fn only_plain_names_are_looked_for() {
        for name in ["a", "index.html", "..dots..x", ".hidden", "console", "COM", "COM10", "nul1",
            "a b", "Ünïcode", "com1x.txt", "~1"]
        {
            assert!(is_plain(name), "{name}");
        }
        for name in ["..", "a.", "a ", "a. .", "C:", "C:a", "a:stream", "a::$DATA", "a\\b", "\\\\x",
            "a*", "a?", "a|b", "a<", "a>", "a\"", "\t", "NUL", "nul.txt", "Con", "con .txt",
            "aux.a.b", "COM1", "lpt9.txt", "COM¹", "lpt³.x", "CONIN$", "conout$.txt"]
        {
            assert!(!is_plain(name), "{name}");
        }
        assert_eq!(names(b"a/./b//c"), Some(vec!["a", "b", "c"]));
        assert_eq!(names(b""), Some(vec![]));
        assert_eq!(names(b"a/\xff"), None);
        assert_eq!(names(b"a/NUL/b"), None);
    }
}
