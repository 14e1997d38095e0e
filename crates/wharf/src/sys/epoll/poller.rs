//! The system calls: an epoll instance, and the eventfd that wakes whoever waits in one.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::{sync::kernel, sys::RawDescriptor};

/// Both directions of a socket, the end of either, and urgent data, by edges: registered once,
/// and told of each change.
pub(crate) const EDGES: u32 = (libc::EPOLLIN
    | libc::EPOLLOUT
    | libc::EPOLLRDHUP
    | libc::EPOLLPRI
    | libc::EPOLLET)
    .cast_unsigned();
/// Readable, for as long as it is.
pub(crate) const LEVEL: u32 = libc::EPOLLIN.cast_unsigned();
/// Readable, once.
pub(crate) const ONCE: u32 = (libc::EPOLLIN | libc::EPOLLONESHOT).cast_unsigned();

/// How many events one look brings at most; the rest stays for the next one.
const EVENTS: usize = 256;
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is 256")]
const MOST: i32 = EVENTS as i32;

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poller {
    fd: OwnedFd,
    calls: AtomicU64,
}

/// Readable while there are events.
impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, calls: AtomicU64::new(0) })
    }

    pub(crate) fn fd(&self) -> RawDescriptor {
        self.fd.as_raw_fd()
    }

    /// System calls made for it so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Registers a descriptor.
    pub(crate) fn add(&self, fd: RawDescriptor, interest: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, interest, token)
    }

    /// Registers a descriptor, or arms it again.
    pub(crate) fn arm(&self, fd: RawDescriptor, interest: u32, token: u64) -> io::Result<()> {
        match self.control(libc::EPOLL_CTL_MOD, fd, interest, token) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.add(fd, interest, token)
            }
            done => done,
        }
    }

    pub(crate) fn remove(&self, fd: RawDescriptor) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, what: i32, fd: RawDescriptor, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        self.calls.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the event lives across the call, which copies it.
        kernel(|| match unsafe { libc::epoll_ctl(self.fd(), what, fd, &raw mut event) } {
            ..0 => Err(io::Error::last_os_error()),
            0.. => Ok(()),
        })
    }

    /// Waits for events, and hands each to `sink` as its token and what has happened. Returns how
    /// many there were: none if the time is over, or if a signal came. Any number of threads may
    /// wait at once; each event goes to one of them.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        mut sink: impl FnMut(u64, u32),
    ) -> io::Result<usize> {
        let mut events = [const { MaybeUninit::<libc::epoll_event>::uninit() }; EVENTS];
        let count = match kernel(|| self.wait_into(&mut events, timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            count => count?,
        };
        for event in &events[..count] {
            // SAFETY: the kernel has written the first `count` events.
            let libc::epoll_event { events, u64: token } = unsafe { event.assume_init_read() };
            sink(token, events);
        }
        Ok(count)
    }

    fn wait_into(
        &self,
        events: &mut [MaybeUninit<libc::epoll_event>; EVENTS],
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        /// Whether the kernel takes fractions of a millisecond (Linux 5.11), and lets us call it.
        static EXACT: AtomicBool = AtomicBool::new(true);
        let address = events.as_mut_ptr().cast();
        self.calls.fetch_add(1, Ordering::Relaxed);
        let exact = timeout.is_some_and(|timeout| timeout > Duration::ZERO)
            && EXACT.load(Ordering::Relaxed);
        let count = if exact {
            let timeout = timeout.unwrap_or_default();
            let timespec = [
                i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
                i64::from(timeout.subsec_nanos()),
            ];
            // SAFETY: there is room for so many events, and the time-out has the layout of
            // __kernel_timespec on every processor; both live across the call.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.fd(),
                    address,
                    MOST,
                    timespec.as_ptr(),
                    std::ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            i32::try_from(count).unwrap_or(-1)
        } else {
            // SAFETY: there is room for so many events.
            unsafe { libc::epoll_wait(self.fd(), address, MOST, milliseconds(timeout)) }
        };
        if count >= 0 {
            return Ok(usize::try_from(count).unwrap_or(0));
        }
        let error = io::Error::last_os_error();
        if exact && matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
            EXACT.store(false, Ordering::Relaxed);
            return self.wait_into(events, timeout);
        }
        Err(error)
    }
}

/// Rounded up, so that a wait never ends before its time.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    let Some(timeout) = timeout else { return -1 };
    i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// Wakes whoever waits in a poller with which it is registered, and whoever comes to wait there,
/// until it is cleared.
#[derive(Debug)]
pub(crate) struct Waker {
    fd: OwnedFd,
    /// It has been written to, or is about to be, and has not been read since.
    raised: AtomicBool,
    /// The poller has said that it can be read.
    reported: AtomicBool,
    calls: AtomicU64,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            raised: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            calls: AtomicU64::new(0),
        })
    }

    pub(crate) fn fd(&self) -> RawDescriptor {
        self.fd.as_raw_fd()
    }

    /// System calls made for it so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(crate) fn raise(&self) -> io::Result<()> {
        if self.raised.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let one = 1u64;
        // SAFETY: eight bytes are read from a number that lives across the call.
        if unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The poller says that it can be read: it will, until it is cleared.
    pub(crate) fn report(&self) {
        self.reported.store(true, Ordering::Relaxed);
    }

    /// For whoever has been woken, before it looks for what it was woken for: a wake-up that comes
    /// while this one is being cleared may be taken for it.
    pub(crate) fn clear(&self) {
        // Whoever raised it may have been slow to write: then it was cleared before it was written
        // to, and only the poller knows.
        let reported = self.reported.load(Ordering::Relaxed);
        if !self.raised.load(Ordering::SeqCst) && !reported {
            return;
        }
        self.reported.store(false, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut count = 0u64;
        // The reading comes first: the other way round it could take the mark of a wake-up along
        // that has just been raised, and none would be written any more.
        // SAFETY: eight bytes are written to a number that lives across the call.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
        self.raised.swap(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Would catch: a worker that turns round and round because a wake-up was cleared between the
    /// mark and the writing.
    #[test]
    fn a_wake_up_that_is_written_late_is_cleared_all_the_same() {
        let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(waker.fd(), LEVEL, 1).unwrap();
        waker.raise().unwrap();
        // What the one who clears makes of a wake-up whose writing is still to come.
        waker.raised.store(false, Ordering::SeqCst);
        let events = || poller.wait(Some(Duration::ZERO), |_, _| waker.report()).unwrap();
        assert_eq!(events(), 1);
        waker.clear();
        assert_eq!(events(), 0);
        waker.raise().unwrap();
        assert_eq!(events(), 1, "the next one is written");
    }
}
