//! What this machine gives a port.

use crate::{error::Result, sys};

/// Something the system may have, and what a port does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Feature {
    /// Its name in the system's documentation.
    pub name: &'static str,
    /// Whether this system has it.
    pub present: bool,
    /// The release of Linux or Windows that brought it.
    pub since: &'static str,
    /// What it gives, and what is done without it.
    pub gives: &'static str,
}

/// Asks the system for what a port can use. Chosen by trying, never by version number.
///
/// # Errors
///
/// Where the system's facility (io_uring, on Linux) is refused or too old; the error names the
/// remedy. [`crate::Port::new`] fails
/// there too.
///
/// ```
/// for feature in wharf::probe()? {
///     println!("{} {}: {}", feature.name, feature.present, feature.gives);
/// }
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn probe() -> Result<Vec<Feature>> {
    sys::probe()
}
