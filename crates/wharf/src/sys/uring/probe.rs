//! What this kernel's io_uring has.

use super::{Features, refusal};
use crate::{error::Result, probe::Feature};

/// See [`crate::probe()`].
pub(crate) fn probe() -> Result<Vec<Feature>> {
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
            name: "IORING_REGISTER_FILES2, prompt",
            present: found.lets_go,
            since: "6.13",
            gives: "busy connections that a ring knows by a number; without it, where one that is \
                    closed might be kept for as long as another waits, they have none",
        },
        Feature {
            name: "IORING_ENTER_NO_IOWAIT",
            present: found.no_iowait,
            since: "6.15",
            gives: "idle workers do not show as I/O wait; without it they do",
        },
    ])
}
