//! The first receive of an accepted connection, which belongs to no port yet: its program may
//! associate it with any. So this one receive signals an event, and whoever waits for that posts
//! the packet.

use std::{
    ffi::c_void,
    io,
    os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle},
    ptr,
    sync::Arc,
    thread,
    time::Duration,
};

use windows_sys::Win32::{
    Foundation::{HANDLE, INVALID_HANDLE_VALUE},
    System::Threading::{
        CreateEventW, INFINITE, RegisterWaitForSingleObject, UnregisterWaitEx,
        WT_EXECUTEINWAITTHREAD, WT_EXECUTEONLYONCE,
    },
};

use super::port::CompletionPort;
use crate::raw::Operation;

/// An event, and the system's thread that waits for it.
#[derive(Debug)]
pub(crate) struct Signal {
    event: OwnedHandle,
    wait: HANDLE,
    fired: bool,
    port: Arc<CompletionPort>,
    key: usize,
    operation: *mut Operation,
}

impl Signal {
    /// Posts a packet once the event is set. It stays where it is until then, or is dropped
    /// before anybody can set the event.
    pub(crate) fn new(
        port: &Arc<CompletionPort>,
        key: usize,
        operation: *mut Operation,
    ) -> io::Result<Box<Self>> {
        // SAFETY: an event of its own, without a name.
        let event = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
        if event.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new, and nobody else's.
        let event = unsafe { OwnedHandle::from_raw_handle(event) };
        let mut signal = Box::new(Self {
            event,
            wait: ptr::null_mut(),
            fired: false,
            port: port.clone(),
            key,
            operation,
        });
        let mut wait = ptr::null_mut();
        // SAFETY: the box stays until the callback has run, or until nobody will run it.
        let registered = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                signal.event(),
                Some(post),
                (&raw const *signal).cast(),
                INFINITE,
                WT_EXECUTEONLYONCE | WT_EXECUTEINWAITTHREAD,
            )
        };
        if registered == 0 {
            return Err(io::Error::last_os_error());
        }
        signal.wait = wait;
        Ok(signal)
    }

    pub(crate) fn event(&self) -> HANDLE {
        self.event.as_raw_handle()
    }

    /// Its packet has come.
    pub(crate) fn has_fired(&mut self) {
        self.fired = true;
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        if self.wait.is_null() {
            return;
        }
        // Where the callback has not run it never will: that is waited for. Where it has posted
        // its packet it touches this memory no more, though it may not have returned yet.
        let wait_for = if self.fired { ptr::null_mut() } else { INVALID_HANDLE_VALUE };
        // SAFETY: registered once, unregistered once.
        unsafe { UnregisterWaitEx(self.wait, wait_for) };
    }
}

unsafe extern "system" fn post(context: *mut c_void, _timed_out: bool) {
    let signal = context.cast::<Signal>();
    // SAFETY: the signal is alive until its packet has been taken. What is needed is copied
    // before that is posted.
    let (port, key, operation) =
        unsafe { (Arc::clone(&(*signal).port), (*signal).key, (*signal).operation) };
    while port.post(0, key, operation).is_err() {
        // There is no memory for a packet: there will be.
        thread::sleep(Duration::from_millis(10));
    }
}
