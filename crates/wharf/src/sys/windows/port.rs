//! The kernel's completion port.

use std::{
    io,
    mem::MaybeUninit,
    os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle},
    ptr,
    time::Duration,
};

use windows_sys::Win32::{
    Foundation::{HANDLE, INVALID_HANDLE_VALUE, NTSTATUS, WAIT_TIMEOUT},
    System::IO::{
        CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_ENTRY,
        PostQueuedCompletionStatus,
    },
};

use super::RawDescriptor;

/// A completion port. It is the port of this library: which thread is released, how many run and
/// what happens when one blocks is the kernel's business.
#[derive(Debug)]
pub(crate) struct CompletionPort(OwnedHandle);

/// A packet as the kernel hands it out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) key: usize,
    pub(crate) pointer: *mut OVERLAPPED,
    pub(crate) status: NTSTATUS,
    pub(crate) bytes: u32,
}

/// The most packets that one wait takes.
pub(crate) const MOST: usize = 64;

impl CompletionPort {
    /// `concurrency` is at least 1.
    pub(crate) fn new(concurrency: u32) -> io::Result<Self> {
        // SAFETY: without a handle to associate this only makes a port.
        let port = unsafe {
            CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, concurrency)
        };
        if port.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new handle, which nobody else owns.
        Ok(Self(unsafe { OwnedHandle::from_raw_handle(port) }))
    }

    pub(super) fn handle(&self) -> HANDLE {
        self.0.as_raw_handle()
    }

    /// Sends the packets of a descriptor's operations here, under a key, until it is closed.
    pub(crate) fn associate(&self, descriptor: RawDescriptor, key: usize) -> io::Result<()> {
        let descriptor = ptr::with_exposed_provenance_mut(descriptor);
        // SAFETY: handles are numbers for the kernel; one that is not open is refused.
        let port = unsafe { CreateIoCompletionPort(descriptor, self.handle(), key, 0) };
        if port.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Posts three values that nobody examines on the way.
    pub(crate) fn post<T>(&self, bytes: u32, key: usize, pointer: *mut T) -> io::Result<()> {
        // SAFETY: the kernel only hands the pointer on.
        let posted =
            unsafe { PostQueuedCompletionStatus(self.handle(), bytes, key, pointer.cast()) };
        if posted == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for packets, and hands those that are there to `take`, at most `most` of them and at
    /// most [`MOST`]. None came if the time is over before.
    pub(crate) fn wait(
        &self,
        most: usize,
        timeout: Option<Duration>,
        mut take: impl FnMut(Entry),
    ) -> io::Result<usize> {
        let mut entries = [const { MaybeUninit::<OVERLAPPED_ENTRY>::uninit() }; MOST];
        let most = u32::try_from(most.clamp(1, MOST)).unwrap_or(1);
        let mut count = 0;
        // SAFETY: there is room for that many entries.
        let waited = unsafe {
            GetQueuedCompletionStatusEx(
                self.handle(),
                entries.as_mut_ptr().cast(),
                most,
                &raw mut count,
                milliseconds(timeout),
                0,
            )
        };
        if waited == 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error().map(i32::cast_unsigned) {
                Some(WAIT_TIMEOUT) => Ok(0),
                _ => Err(error),
            };
        }
        let count = usize::try_from(count).unwrap_or(0);
        for entry in &entries[..count] {
            // SAFETY: the kernel has filled that many.
            let entry = unsafe { entry.assume_init_ref() };
            #[expect(clippy::cast_possible_truncation, reason = "an NTSTATUS has 32 bits")]
            take(Entry {
                key: entry.lpCompletionKey,
                pointer: entry.lpOverlapped,
                status: entry.Internal as NTSTATUS,
                bytes: entry.dwNumberOfBytesTransferred,
            });
        }
        Ok(count)
    }

    /// How many packets wait here now.
    pub(crate) fn depth(&self) -> usize {
        let mut depth = 0u32;
        // SAFETY: the kernel writes one number, which lives across the call.
        let status = unsafe {
            NtQueryIoCompletion(self.handle(), 0, (&raw mut depth).cast(), 4, ptr::null_mut())
        };
        if status == 0 { usize::try_from(depth).unwrap_or(0) } else { 0 }
    }
}

windows_link::link!("ntdll.dll" "system" fn NtQueryIoCompletion(
    port: HANDLE,
    class: i32,
    information: *mut core::ffi::c_void,
    length: u32,
    returned: *mut u32,
) -> NTSTATUS);

/// A time-out as the kernel takes it: whole milliseconds, rounded up so that nobody looks too
/// early, and never the value that means for ever.
pub(super) fn milliseconds(timeout: Option<Duration>) -> u32 {
    let Some(timeout) = timeout else { return u32::MAX };
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    u32::try_from(millis).map_or(u32::MAX - 1, |millis| millis.min(u32::MAX - 1))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, mem::ManuallyDrop, thread};

    use windows_sys::Win32::Foundation::{CloseHandle, ERROR_ABANDONED_WAIT_0};

    use super::*;

    #[test]
    fn time_outs_are_rounded_up() {
        assert_eq!(milliseconds(None), u32::MAX);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_millis(7))), 7);
        assert_eq!(milliseconds(Some(Duration::MAX)), u32::MAX - 1);
    }

    /// A port closes its handle when nobody waits any more, so that its waiters never see this. But
    /// should it happen, they must not wait for ever.
    #[test]
    fn waiters_of_a_closed_handle_are_abandoned() {
        if super::super::probe::is_wine() {
            let _ = writeln!(
                io::stderr(),
                "SKIP waiters_of_a_closed_handle_are_abandoned: Wine 8.0 lets them wait on"
            );
            return;
        }
        let port = ManuallyDrop::new(CompletionPort::new(1).unwrap());
        let handle = port.handle().expose_provenance();
        let waiter = thread::spawn(move || port.wait(1, None, |_| {}).unwrap_err());
        thread::sleep(Duration::from_millis(200));
        // SAFETY: open, and closed nowhere else.
        unsafe { CloseHandle(ptr::with_exposed_provenance_mut(handle)) };
        let abandoned = ERROR_ABANDONED_WAIT_0.cast_signed();
        assert_eq!(waiter.join().unwrap().raw_os_error(), Some(abandoned));
    }

    #[test]
    fn what_is_posted_comes_out_as_it_was() {
        let port = CompletionPort::new(1).unwrap();
        let pointer = ptr::without_provenance_mut::<u8>(4711);
        port.post(3, 5, pointer).unwrap();
        assert_eq!(port.depth(), 1);
        let mut taken = Vec::new();
        assert_eq!(port.wait(8, None, |entry| taken.push(entry)).unwrap(), 1);
        let entry = taken[0];
        assert_eq!((entry.bytes, entry.key, entry.pointer.addr()), (3, 5, 4711));
        assert_eq!(port.wait(8, Some(Duration::ZERO), |_| unreachable!()).unwrap(), 0);
    }
}
