//! What this Windows has.

use std::sync::OnceLock;

use windows_sys::{
    Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress},
    s, w,
};


use super::socket;
use crate::{error::Result, probe::Feature};

/// See [`crate::probe()`].
pub(crate) fn probe() -> Result<Vec<Feature>> {
    let found = socket::features().map_err(|error| super::refusal(&error))?;
    Ok(vec![
        Feature {
            name: "AcceptEx, ConnectEx",
            present: true,
            since: "XP",
            gives: "accepts and connects through the port; without them there are none",
        },
        Feature {
            name: "XP1_IFS_HANDLES",
            present: found.handles,
            since: "XP",
            gives: "sockets that are handles of the kernel's, for which no event is set; without \
                    it a layered provider sees every call first",
        },
        Feature {
            name: "WSAID_MULTIPLE_RIO",
            present: found.registered,
            since: "8",
            gives: "Registered I/O by the system's own functions; without it overlapped calls do \
                    its work",
        },
        Feature {
            name: "Windows itself, not Wine",
            present: !is_wine(),
            since: "XP",
            gives: "the concurrency value and the order of release; Wine keeps neither",
        },
    ])
}

/// Whether this is Wine, which says so by a function that Windows does not have.
pub(super) fn is_wine() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the names are constants, and the module is one that every process has.
        unsafe {
            let ntdll = GetModuleHandleW(w!("ntdll.dll"));
            GetProcAddress(ntdll, s!("wine_get_version")).is_some()
        }
    })
}
