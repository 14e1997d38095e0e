//! What posts a packet that was promised, once, when something happens: here no handle becomes
//! readable to say so.

use std::{
    ptr,
    sync::{Arc, Mutex},
};

use super::{
    Operation,
    port::{Entry, Shared},
};
use crate::sync::lock;

/// The packet, while it is promised. Whoever takes it out of here posts it or takes it back, so
/// that it comes once.
#[derive(Debug)]
pub(crate) struct Bell {
    port: Arc<Shared>,
    promised: Mutex<*mut Operation>,
}

// SAFETY: the operation is not in use by anybody while it is promised: it is handed on as a whole.
unsafe impl Send for Bell {}
// SAFETY: as for Send; the lock says who has it.
unsafe impl Sync for Bell {}

impl Bell {
    pub(crate) fn new(port: &super::Port) -> Self {
        Self { port: port.shared.clone(), promised: Mutex::new(ptr::null_mut()) }
    }

    /// Promises a packet. False: another is promised.
    pub(crate) fn promise(&self, operation: *mut Operation) -> bool {
        let mut promised = lock(&self.promised);
        if !promised.is_null() {
            return false;
        }
        *promised = operation;
        true
    }

    /// Takes the packet back. Null: there is none (any more).
    pub(crate) fn take_back(&self) -> *mut Operation {
        std::mem::replace(&mut *lock(&self.promised), ptr::null_mut())
    }

    /// Posts the packet, if one is promised.
    pub(crate) fn ring(&self) {
        self.post(|operation| Entry::Posted { bytes: 0, key: 0, operation });
    }

    /// Posts the packet as cancelled, if one is promised: from here on, none should be.
    pub(crate) fn close(&self) {
        self.post(Entry::Cancelled);
    }

    fn post(&self, entry: impl FnOnce(*mut Operation) -> Entry) {
        // Posted under the lock: who closes the port, and drains it, comes after that, or takes
        // the packet.
        let mut promised = lock(&self.promised);
        let operation = std::mem::replace(&mut *promised, ptr::null_mut());
        if !operation.is_null() {
            self.port.enqueue(entry(operation));
        }
    }
}
