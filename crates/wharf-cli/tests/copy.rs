//! `wharf copy` as its users run it.

mod common;

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};
#[cfg(unix)]
use std::{
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    thread,
};

#[cfg(unix)]
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::common::started;

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wharf-copy-{}-{number}", std::process::id()));
        // What a process of the same number has left that was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of all that is there.
    fn names(&self) -> Vec<String> {
        let all = fs::read_dir(&self.0).expect("a folder").flatten();
        let mut names: Vec<_> =
            all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

fn copy(arguments: &[&str], source: &Path, destination: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharf"));
    command.arg("copy").args(arguments).arg(source).arg(destination).env_remove("WHARF_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], source: &Path, destination: &Path) -> Output {
    started(|| copy(arguments, source, destination).output())
}

#[track_caller]
fn fails(output: &Output, with: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(with), "{said}");
}

/// Would catch: a byte that is lost or out of place, at any length and any size of the window.
#[test]
fn copies_are_exact() {
    let folder = Folder::new();
    let (source, copied) = (folder.path("source"), folder.path("copy"));
    for length in [0, 1, 4095, 4096, 65_536, 65_537, 3_000_001] {
        fs::write(&source, pattern(length)).unwrap();
        for window in [&["--depth", "1", "--block", "4K"][..], &["--block", "64K"], &["--verify"]] {
            let mut arguments = window.to_vec();
            arguments.push("--json");
            let output = run(&arguments, &source, &copied);
            assert!(output.status.success(), "{output:?}");
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(said["bytes"], length, "{said}");
            assert_eq!(said["verified"], window[0] == "--verify");
            assert!(fs::read(&copied).unwrap() == pattern(length), "{length} {window:?}");
        }
    }
    assert_eq!(folder.names(), ["copy", "source"]);
}

/// Would catch: an end that is not aligned and is lost, or padding that stays.
#[test]
fn direct_copies_are_exact() {
    let folder = Folder::new();
    let (source, copied) = (folder.path("source"), folder.path("copy"));
    for length in [0, 1, 4096, 1_000_000, 2_097_152] {
        fs::write(&source, pattern(length)).unwrap();
        let output = run(&["--direct", "--verify", "--sync"], &source, &copied);
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("no direct I/O") {
            let mut error = std::io::stderr();
            let _ = writeln!(error, "SKIP direct_copies_are_exact: no direct I/O here");
            return;
        }
        assert!(output.status.success(), "{said}");
        assert!(fs::read(&copied).unwrap() == pattern(length), "{length}");
    }
}

/// Would catch: times that are lost, or set before the last byte is written; a file that may be
/// written to though its original may not.
#[test]
fn times_are_kept_and_that_it_is_only_read() {
    let folder = Folder::new();
    let (source, copied) = (folder.path("source"), folder.path("copy"));
    fs::write(&source, pattern(300_000)).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5000);
    let file = File::options().write(true).open(&source).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(long_ago).set_accessed(long_ago)).unwrap();
    for read_only in [false, true] {
        let mut permissions = file.metadata().unwrap().permissions();
        permissions.set_readonly(read_only);
        file.set_permissions(permissions).unwrap();
        let output = run(&["--verify", "--sync"], &source, &copied);
        assert!(output.status.success(), "{output:?}");
        let metadata = fs::metadata(&copied).unwrap();
        assert_eq!(metadata.modified().unwrap(), long_ago);
        assert_eq!(metadata.permissions().readonly(), read_only);
    }
    assert_eq!(folder.names(), ["copy", "source"]);
    // Otherwise Windows would not let them go.
    for path in [&source, &copied] {
        let mut permissions = fs::metadata(path).unwrap().permissions();
        #[expect(clippy::permissions_set_readonly_false, reason = "they are about to be removed")]
        permissions.set_readonly(false);
        fs::set_permissions(path, permissions).unwrap();
    }
}

/// Would catch: a stream of a file, or a device, that is taken for a file.
#[cfg(windows)]
#[test]
fn names_that_are_no_files_are_refused() {
    let folder = Folder::new();
    let source = folder.path("source");
    fs::write(&source, pattern(1000)).unwrap();
    fails(&run(&[], &source, &folder.path("copy:stream")), "no name for a file");
    let device = run(&[], &source, Path::new("NUL"));
    assert_eq!(device.status.code(), Some(1), "{device:?}");
    assert_eq!(folder.names(), ["source"]);
}

/// Would catch: holes that are filled, data that is taken for a hole, times and permissions that
/// are lost.
#[cfg(unix)]
#[test]
fn holes_times_and_permissions_are_kept() {
    let folder = Folder::new();
    let (source, copied) = (folder.path("source"), folder.path("copy"));
    let mut file = File::create(&source).unwrap();
    for at in [0, 3 << 20, (20 << 20) + 5] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&pattern(10_000)).unwrap();
    }
    file.set_len(64 << 20).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5000);
    file.set_times(fs::FileTimes::new().set_modified(long_ago).set_accessed(long_ago)).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    let output = run(&["--verify"], &source, &copied);
    assert!(output.status.success(), "{output:?}");
    let metadata = fs::metadata(&copied).unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 < 8 << 20, "{} blocks", metadata.blocks());
    assert_eq!(metadata.modified().unwrap(), long_ago);
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    let (mut one, mut other) = (Vec::new(), Vec::new());
    File::open(&source).unwrap().read_to_end(&mut one).unwrap();
    File::open(&copied).unwrap().read_to_end(&mut other).unwrap();
    assert!(one == other);
    // Nothing but a hole.
    File::create(&source).unwrap().set_len(1 << 20).unwrap();
    assert!(run(&["--verify"], &source, &copied).status.success());
    assert_eq!(fs::metadata(&copied).unwrap().blocks(), 0);
}

/// Would catch: something half-written or left behind when it cannot be done, or an error that
/// names nothing.
#[test]
fn what_cannot_be_copied_leaves_nothing() {
    let folder = Folder::new();
    let (source, copied) = (folder.path("source"), folder.path("copy"));
    fs::write(&source, pattern(1000)).unwrap();
    fails(&run(&[], &folder.path("missing"), &copied), "missing");
    fails(&run(&[], &folder.0, &copied), "no regular file");
    fails(&run(&[], &source, &folder.path("no/where")), "where");
    fails(&run(&[], &source, &source), "source itself");
    #[cfg(unix)]
    {
        symlink(&source, folder.path("link")).unwrap();
        fails(&run(&[], &source, &folder.path("link")), "source itself");
        fs::remove_file(folder.path("link")).unwrap();
    }
    #[cfg(windows)]
    fails(&run(&[], &source, &folder.path("SOURCE")), "source itself");
    let output = run(&["--depth", "0"], &source, &copied);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(folder.names(), ["source"]);
    assert!(fs::read(&source).unwrap() == pattern(1000));
    // Into a folder, under the source's name.
    fs::create_dir(folder.path("folder")).unwrap();
    assert!(run(&[], &source, &folder.path("folder")).status.success());
    assert!(fs::read(folder.path("folder/source")).unwrap() == pattern(1000));
}

/// Would catch: a destination that is gone, or half of the new one, after an interruption.
#[cfg(unix)]
#[test]
fn an_interrupted_copy_leaves_what_was_there() {
    let folder = Folder::new();
    let (source, copied) = (folder.path("source"), folder.path("copy"));
    fs::write(&source, pattern(64 << 20)).unwrap();
    fs::write(&copied, "as it was").unwrap();
    let mut interrupted = false;
    for _ in 0..20 {
        let child = copy(&["--depth", "1", "--block", "4K"], &source, &copied).spawn().unwrap();
        // Once it has begun.
        while folder.names().len() < 3 && fs::metadata(&copied).unwrap().len() == 9 {
            thread::sleep(Duration::from_micros(100));
        }
        kill_process(Pid::from_child(&child), Signal::INT).expect("our own child");
        let output = child.wait_with_output().unwrap();
        assert_eq!(folder.names(), ["copy", "source"]);
        if output.status.success() {
            // It was faster.
            fs::write(&copied, "as it was").unwrap();
            continue;
        }
        if output.status.code().is_some() {
            fails(&output, "interrupted");
        }
        assert_eq!(fs::read(&copied).unwrap(), b"as it was");
        interrupted = true;
        break;
    }
    assert!(interrupted, "it was always faster");
}

/// Would catch: half a copy on a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = Folder::new();
    let source = folder.path("source");
    fs::write(&source, pattern(1 << 20)).unwrap();
    let script = r#"mount -t tmpfs -o size=256k tmpfs "$1" || exit 77
        "$2" copy "$3" "$1/copy"; code=$?; ls -A "$1"; umount "$1"; exit $code"#;
    fs::create_dir(folder.path("small")).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(folder.path("small"))
        .arg(env!("CARGO_BIN_EXE_wharf"))
        .arg(&source)
        .output();
    let unable = match &output {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            output.status.code() == Some(77) || said.starts_with("unshare")
        }
        Err(_) => true,
    };
    if unable {
        let _ = writeln!(std::io::stderr(), "SKIP a_full_disk_leaves_nothing: may not mount here");
        return;
    }
    let output = output.unwrap();
    fails(&output, "no room left");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "", "left behind");
}
