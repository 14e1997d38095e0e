//! What several of the program's tests need.

use std::io::{self, Write};

/// Starts a program. Wine now and then loses a process before it has begun, says "Internal error"
/// of that, and can do it the next time.
pub(crate) fn started<T>(mut start: impl FnMut() -> io::Result<T>) -> T {
    const ERROR_INTERNAL_ERROR: i32 = 1359;
    for _ in 0..3 {
        match start() {
            Err(error) if cfg!(windows) && error.raw_os_error() == Some(ERROR_INTERNAL_ERROR) => {
                let _ = writeln!(io::stderr(), "a process did not start: once more");
            }
            other => return other.expect("it starts"),
        }
    }
    start().expect("it starts")
}
