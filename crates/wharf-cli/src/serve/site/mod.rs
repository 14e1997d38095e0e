//! The folder that is served: from what a URL names to an open file, and nothing beyond it.

use std::{
    fs::{File, Metadata},
    io,
    path::Path,
};

use percent_encoding::percent_decode_str;

cfg_select! {
    windows => {
        mod windows;
        use windows::Root;
    }
    _ => {
        mod linux;
        use linux::Root;
    }
}

/// What a folder is asked for when it is named itself.
const INDEX: &str = "index.html";

/// A folder whose files are served.
#[derive(Debug)]
pub(super) struct Site {
    root: Root,
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

/// What is at a path below the root.
#[derive(Debug)]
enum Opened {
    /// A file, a folder or something else.
    There(File),
    Nothing,
    Forbidden,
}

impl Site {
    /// Takes a folder.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { root: Root::new(path)? })
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
        let file = match self.root.open(&path)? {
            Opened::There(file) => file,
            Opened::Nothing => return Ok(Found::Nothing),
            Opened::Forbidden => return Ok(Found::Forbidden),
        };
        let metadata = file.metadata()?;
        if !metadata.is_dir() {
            // "/file/" is no file.
            return Ok(if is_folder { Found::Nothing } else { found(file, metadata, &path) });
        }
        if !is_folder {
            return Ok(Found::Folder);
        }
        let index = [&path[..], INDEX.as_bytes()].concat();
        Ok(match self.root.open(&index)? {
            Opened::There(file) => {
                let metadata = file.metadata()?;
                found(file, metadata, INDEX.as_bytes())
            }
            Opened::Nothing => Found::Nothing,
            Opened::Forbidden => Found::Forbidden,
        })
    }
}

fn found(file: File, metadata: Metadata, path: &[u8]) -> Found {
    if !metadata.is_file() {
        return Found::Nothing;
    }
    let path = String::from_utf8_lossy(path);
    let kind = mime_guess::from_path(&*path).first_raw().unwrap_or("application/octet-stream");
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
    #[cfg(unix)]
    use std::os::unix::fs::symlink;
    use std::{
        fs,
        io::Read,
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
            fs::write(folder.join("site/..dots..x"), "dots").unwrap();
            Self(folder)
        }

        fn site(&self) -> Site {
            Site::new(&self.0.join("site")).unwrap()
        }

        /// In every way that it can be served here.
        fn sites(&self) -> Vec<Site> {
            cfg_select! {
                windows => { vec![self.site()] }
                _ => {
                    let mut without = self.site();
                    without.root.beneath = false;
                    vec![self.site(), without]
                }
            }
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
        for site in folder.sites() {
            for (url, expected) in [
                ("/", "index"),
                ("/index.html", "index"),
                ("/a%20b+c%25.txt", "strange"),
                ("/below/file", "file"),
                ("/below//file", "file"),
                ("/%62elow/file", "file"),
                ("/./below/./file", "file"),
                ("/..dots..x", "dots"),
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
        #[cfg(unix)]
        {
            let root = folder.0.join("site");
            symlink("../outside", root.join("relative")).unwrap();
            symlink(folder.0.join("outside"), root.join("absolute")).unwrap();
            symlink("..", root.join("up")).unwrap();
            symlink("/proc/self/root", root.join("magic")).unwrap();
            symlink("loop", root.join("loop")).unwrap();
        }
        let outside = folder.0.join("outside");
        let outside = outside.to_str().unwrap();
        for site in folder.sites() {
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

    /// Would catch: a name that means something else to Windows than it says.
    #[cfg(windows)]
    #[test]
    fn no_name_of_windows_leads_out() {
        let folder = Folder::new();
        let site = folder.site();
        fs::write(folder.0.join("site/file:stream"), "stream").unwrap();
        let outside = folder.0.join("outside");
        let outside = outside.to_str().unwrap();
        for url in [
            "/..\\outside",
            "/%2e%2e%5coutside",
            "/below\\..\\..\\outside",
            "/below/..%5c..%5coutside",
            "/%5c%5c?%5cC:%5cwindows%5cwin.ini",
            "/C:/windows/win.ini",
            "/C:%5cwindows%5cwin.ini",
            "/C:",
            "/index.html::$DATA",
            "/index.html:",
            "/file:stream",
            "/below:$I30:$INDEX_ALLOCATION/file",
            "/index.html.",
            "/index.html%20",
            "/below./file",
            "/below%20/file",
            "/.../outside",
            "/..%20/outside",
            "/%2e%2e./outside",
            "/NUL",
            "/nul.txt",
            "/below/CON",
            "/COM1",
            "/COM%C2%B9",
            "/index.htm?",
            "/index.*",
            "/index%ff.html",
            &format!("/{outside}"),
            &format!("/{}", outside.replace('\\', "/")),
        ] {
            assert!(matches!(site.find(url).unwrap(), Found::Nothing), "{url}");
        }
        assert_eq!(content(&site, "/BELOW/File").as_deref(), Some("file"), "as Windows has it");
        // Nor a link.
        let link = folder.0.join("site/link");
        // Wine says that it has made one, and has not.
        let _ = std::os::windows::fs::symlink_file(folder.0.join("outside"), &link);
        if fs::symlink_metadata(link).is_err() {
            use std::io::Write;
            let test = "no_name_of_windows_leads_out";
            let _ = writeln!(io::stderr(), "SKIP {test}: in part: no links can be made here");
            return;
        }
        assert!(matches!(site.find("/link").unwrap(), Found::Nothing));
    }

    /// Would catch: a file that is not said to be there, because somebody else has it.
    #[cfg(windows)]
    #[test]
    fn a_file_that_may_not_be_read_is_forbidden() {
        use std::os::windows::fs::OpenOptionsExt;
        let folder = Folder::new();
        let site = folder.site();
        let path = folder.0.join("site/below/file");
        let held = File::options().read(true).share_mode(0).open(path).unwrap();
        assert!(matches!(site.find("/below/file").unwrap(), Found::Forbidden));
        drop(held);
        assert_eq!(content(&site, "/below/file").as_deref(), Some("file"));
    }

    /// Would catch: a link inside of the folder that is not followed though it could be.
    #[cfg(unix)]
    #[test]
    fn links_inside_are_followed_where_the_kernel_watches() {
        let folder = Folder::new();
        symlink("below/file", folder.0.join("site/link")).unwrap();
        for site in folder.sites() {
            let expected = site.root.beneath.then_some("file");
            assert_eq!(content(&site, "/link").as_deref(), expected);
        }
    }
}
