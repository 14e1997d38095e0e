//! The folder that is served: from what a URL names to an open file, and nothing beyond it.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use percent_encoding::percent_decode_str;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

/// What a folder is asked for when it is named itself.
const INDEX: &str = "index.html";

/// A folder whose files are served.
#[derive(Debug)]
pub(super) struct Site {
    root: File,
    /// Whether the kernel keeps paths inside of the folder (openat2, Linux 5.6).
    beneath: bool,
}

/// What a path leads to.
#[derive(Debug)]
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

/// All files are opened like this: without waiting, should it be a FIFO.
const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

impl Site {
    /// Takes a folder.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let folder = FLAGS | OFlags::DIRECTORY;
        let root = File::from(openat(CWD, path, folder, Mode::empty())?);
        // Some containers refuse the call that keeps paths inside.
        let tried = openat2(&root, ".", folder, Mode::empty(), ResolveFlags::BENEATH);
        let beneath = tried.is_ok();
        if !beneath {
            log::warn!("openat2 is refused here: symbolic links below the folder are not followed");
        }
        Ok(Self { root, beneath })
    }

    /// Without what recent kernels have.
    #[cfg(test)]
    fn without_openat2(mut self) -> Self {
        self.beneath = false;
        self
    }

    /// Finds what the path of a URL leads to, as it stands in a request: encoded, and without the
    /// query.
    ///
    /// # Errors
    ///
    /// What the system says, if it is not about this path.
    pub(super) fn find(&self, url: &str) -> io::Result<Found> {
        let Some(path) = decode(url) else { return Ok(Found::Nothing) };
        let is_folder = path.is_empty() || path.ends_with(b"/");
        let Some(opened) = self.open(&path)? else { return Ok(Found::Nothing) };
        let Ok(file) = opened else { return Ok(Found::Forbidden) };
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            if !is_folder {
                return Ok(Found::Folder);
            }
            let index = [&path[..], INDEX.as_bytes()].concat();
            let Some(opened) = self.open(&index)? else { return Ok(Found::Nothing) };
            let Ok(file) = opened else { return Ok(Found::Forbidden) };
            let metadata = file.metadata()?;
            return Ok(found(file, metadata, INDEX.as_bytes()));
        }
        // "/file/" is no file.
        Ok(if is_folder { Found::Nothing } else { found(file, metadata, &path) })
    }

    /// Opens a path below the root. None: there is nothing. An error inside: it may not be read.
    fn open(&self, path: &[u8]) -> io::Result<Option<Result<File, Errno>>> {
        let opened = if self.beneath { self.open_beneath(path) } else { self.walk(path) };
        match opened {
            Ok(file) => Ok(Some(Ok(file))),
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
            ) => Ok(None),
            Err(error @ (Errno::ACCESS | Errno::PERM)) => Ok(Some(Err(error))),
            Err(error) => Err(error.into()),
        }
    }

    fn open_beneath(&self, path: &[u8]) -> Result<File, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.root, path, FLAGS, Mode::empty(), resolve) {
                Ok(file) => return Ok(file.into()),
                // Something was renamed meanwhile, and the kernel cannot tell where it was.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same, one name after the other, without following any link.
    fn walk(&self, path: &[u8]) -> Result<File, Errno> {
        let mut at = File::from(rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?);
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            let folder = if names.peek().is_some() { OFlags::DIRECTORY } else { OFlags::empty() };
            let flags = FLAGS | OFlags::NOFOLLOW | folder;
            at = openat(&at, name, flags, Mode::empty())?.into();
        }
        Ok(at)
    }
}

fn found(file: File, metadata: Metadata, path: &[u8]) -> Found {
    if !metadata.is_file() {
        return Found::Nothing;
    }
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let kind = mime_guess::from_path(path).first_raw().unwrap_or("application/octet-stream");
    Found::File { file, metadata, kind }
}

/// The path below the root that a URL's path names. None: it names none.
fn decode(url: &str) -> Option<Vec<u8>> {
    let path: Vec<u8> = percent_decode_str(url.strip_prefix('/')?).collect();
    // What is encoded has to be looked at decoded: "%2e%2e%2f" leads out like "../".
    let climbs = path.split(|&byte| byte == b'/').any(|name| name == b"..");
    let relative = !path.starts_with(b"/");
    (relative && !climbs && !path.contains(&0)).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read,
        os::unix::fs::symlink,
        path::PathBuf,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        /// `outside` lies beside the root `site`.
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("wharf-site-{}-{number}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(folder.join("site/below/deep")).unwrap();
            fs::write(folder.join("outside"), "outside").unwrap();
            fs::write(folder.join("site/index.html"), "index").unwrap();
            fs::write(folder.join("site/a b+c%.txt"), "strange").unwrap();
            fs::write(folder.join("site/below/file"), "file").unwrap();
            fs::write(folder.join("site/..dots.."), "dots").unwrap();
            Self(folder)
        }

        fn site(&self) -> Site {
            Site::new(&self.0.join("site")).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What is served under a path.
    fn content(site: &Site, url: &str) -> Option<String> {
        match site.find(url).unwrap() {
            Found::File { mut file, .. } => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                Some(text)
            }
            _ => None,
        }
    }

    /// Would catch: a file that is not found, or not decoded.
    #[test]
    fn files_are_found() {
        let folder = Folder::new();
        for site in [folder.site(), folder.site().without_openat2()] {
            for (url, expected) in [
                ("/", "index"),
                ("/index.html", "index"),
                ("/a%20b+c%25.txt", "strange"),
                ("/below/file", "file"),
                ("/below//file", "file"),
                ("/%62elow/file", "file"),
                ("/./below/./file", "file"),
                ("/..dots..", "dots"),
            ] {
                assert_eq!(content(&site, url).as_deref(), Some(expected), "{url}");
            }
            for url in ["/missing", "/below/file/", "/below/file/x", "/below/", "/%00", "", "x"] {
                assert!(matches!(site.find(url).unwrap(), Found::Nothing), "{url}");
            }
            assert!(matches!(site.find("/below").unwrap(), Found::Folder));
            let long = format!("/{}", "x".repeat(5000));
            assert!(matches!(site.find(&long).unwrap(), Found::Nothing));
        }
    }

    /// Would catch: a way out.
    #[test]
    fn no_path_leads_out() {
        let folder = Folder::new();
        let root = folder.0.join("site");
        symlink("../outside", root.join("relative")).unwrap();
        symlink(folder.0.join("outside"), root.join("absolute")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let outside = folder.0.join("outside");
        let outside = outside.to_str().unwrap();
        for site in [folder.site(), folder.site().without_openat2()] {
            for url in [
                "/../outside",
                "/%2e%2e/outside",
                "/%2e%2e%2foutside",
                "/..%2foutside",
                "/.%2e/outside",
                "/below/../../outside",
                "/below/deep/../../../outside",
                "//outside",
                "/relative",
                "/absolute",
                "/up/outside",
                "/magic/etc/passwd",
                "/loop",
                "/%2f",
                &format!("/{outside}"),
                &format!("/%2f{outside}"),
            ] {
                assert!(matches!(site.find(url).unwrap(), Found::Nothing), "{url}");
            }
        }
    }

    /// Would catch: a link inside of the folder that is not followed though it could be.
    #[test]
    fn links_inside_are_followed_where_the_kernel_watches() {
        let folder = Folder::new();
        symlink("below/file", folder.0.join("site/link")).unwrap();
        let site = folder.site();
        let expected = site.beneath.then_some("file");
        assert_eq!(content(&site, "/link").as_deref(), expected);
        assert_eq!(content(&site.without_openat2(), "/link"), None);
    }
}
