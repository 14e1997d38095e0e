//! Two runs at once would measure each other: a lock that holds for the whole machine.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::Failure;
use crate::child::Stop;

/// How often one that waits looks again.
const TICK: Duration = Duration::from_millis(200);

/// Held while a run goes on. The kernel lets go of it when the process ends, however that happens.
#[derive(Debug)]
pub struct Lock {
    #[expect(dead_code, reason = "the lock is held as long as the file is open")]
    file: File,
}

impl Lock {
    /// Where it is unless told otherwise.
    #[must_use]
    pub fn path() -> PathBuf {
        std::env::temp_dir().join("wharf-bench.lock")
    }

    /// Takes it. When another run has it, waits or fails.
    pub fn take(path: &Path, wait: bool, stop: &Stop) -> Result<Self, Failure> {
        let named = |error| Failure(format!("cannot lock {}: {error}", path.display()));
        let mut options = OpenOptions::new();
        // Of other users too. When the file is one's of another user, reading is all that locking
        // needs.
        options.read(true).write(true).create(true).truncate(false).mode(0o666);
        let mut file = options.open(path).or_else(|_| File::open(path)).map_err(named)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(named(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let mut holder = String::new();
            // For people; without it the message says less.
            file.rewind().and_then(|()| file.read_to_string(&mut holder)).ok();
            let holder = holder.trim();
            if !wait {
                return Err(Failure(format!(
                    "another run goes on (process {holder}), and two at once would measure each \
                     other; --wait waits for its end"
                )));
            }
            if !told {
                told = true;
                eprintln!("waiting for another run to end (process {holder}) ...");
            }
            if stop.asked() {
                return Err(Failure("interrupted".to_owned()));
            }
            thread::sleep(TICK);
        }
        // For whoever finds it taken; no harm if it cannot be written.
        file.set_len(0).and_then(|()| file.rewind()).ok();
        write!(file, "{}", std::process::id()).ok();
        Ok(Self { file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let path = std::env::temp_dir().join(format!("wharf-bench-test-{}", std::process::id()));
        let stop = Stop::default();
        let first = Lock::take(&path, false, &stop).expect("free");
        let reason = Lock::take(&path, false, &stop).expect_err("taken").to_string();
        assert!(reason.contains(&std::process::id().to_string()), "{reason}");
        drop(first);
        // Not at once, perhaps: a child of another test has the file until it becomes its program.
        Lock::take(&path, true, &stop).expect("free again");
        std::fs::remove_file(path).expect("ours");
    }
}
