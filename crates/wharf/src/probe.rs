//! What this machine gives a port.

use crate::{
    error::Result,
    sys::{refusal, uring::Features},
};

/// Something the kernel may have, and what a port does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Feature {
    /// Its name in the kernel's documentation.
    pub name: &'static str,
    /// Whether this kernel has it.
    pub present: bool,
    /// The Linux release that brought it.
    pub since: &'static str,
    /// What it gives, and what is done without it.
    pub gives: &'static str,
}

/// Asks the kernel what its io_uring can do. Chosen by trying, never by version number.
///
/// # Errors
///
/// Where io_uring is refused or too old; the error names the remedy. [`crate::Port::new`] fails
/// there too.
///
/// ```
/// for feature in wharf::probe()? {
///     println!("{} {}: {}", feature.name, feature.present, feature.gives);
/// }
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn probe() -> Result<Vec<Feature>> {
    let found = Features::probe().map_err(|error| refusal(&error))?;
    Ok(vec![
        Feature {
            name: "IORING_FEAT_EXT_ARG",
            present: true,
            since: "5.11",
            gives: "waiting with a deadline; without it there is no port",
        },
        Feature {
            name: "IORING_SETUP_COOP_TASKRUN",
            present: found.cooperative,
            since: "5.19",
            gives: "fewer interruptions of running workers; without it the kernel sends them",
        },
        Feature {
            name: "IORING_REGISTER_PBUF_RING",
            present: found.provided_buffers,
            since: "5.19",
            gives: "pooled buffers taken by the kernel; without it a receive waits for readiness \
                    first, and takes one then",
        },
        Feature {
            name: "IORING_RECVSEND_POLL_FIRST",
            present: found.poll_first,
            since: "5.19",
            gives: "no futile receive on an empty socket; without it the kernel tries each time",
        },
        Feature {
            name: "IORING_OP_FTRUNCATE",
            present: found.truncate,
            since: "6.9",
            gives: "cutting files without waiting; without it the thread that starts it does it",
        },
        Feature {
            name: "IORING_ENTER_NO_IOWAIT",
            present: found.no_iowait,
            since: "6.15",
            gives: "idle workers do not show as I/O wait; without it they do",
        },
    ])
}
