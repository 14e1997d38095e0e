//! What every driver of a Unix needs.

mod call;
mod datagram;
mod event;
pub(crate) mod file;
mod fork;
mod mapping;
pub(crate) mod signal;
pub(crate) mod progress;
pub(crate) mod transmit;
pub(crate) mod udp;

use std::{
    collections::HashSet,
    io,
    net::Shutdown,
    os::fd::{AsRawFd, FromRawFd},
    sync::Mutex,
    time::Duration,
};

pub use std::os::fd::OwnedFd as OwnedDescriptor;
pub(crate) use std::os::fd::{
    BorrowedFd as BorrowedFile, BorrowedFd as BorrowedSocket, OwnedFd as OwnedFile,
    OwnedFd as OwnedSocket, RawFd as RawDescriptor,
};

use socket2::{SockRef, Socket};

pub use self::{datagram::Message, transmit::Transmission};
pub(crate) use self::{
    call::{Call, Called, receive},
    event::{Event, Popped, Source},
    fork::ForkGuard,
    mapping::Mapping,
    progress::attempt,
    udp::{DatagramHeader, cuts_datagrams, is_ipv6},
};
use crate::{
    error::ErrorKind,
    sync::lock,
    sys::{Descriptor, Kind},
};

/// No descriptor.
pub(crate) const NO_DESCRIPTOR: RawDescriptor = -1;

/// A pipe: an end for a port, which is read from if `reads`, and the other end.
pub(crate) fn pipe(reads: bool) -> io::Result<(OwnedDescriptor, OwnedFile)> {
    let (reader, writer) = io::pipe()?;
    Ok(if reads { (reader.into(), writer.into()) } else { (writer.into(), reader.into()) })
}

impl Descriptor for OwnedDescriptor {
    fn back(descriptor: OwnedDescriptor) -> Self {
        descriptor
    }
}

/// What a cancelled operation fails with.
pub(crate) const CANCELLED: i32 = libc::ECANCELED;
/// What an operation fails with whose failure has no code.
pub(crate) const FAILED: i32 = libc::EIO;

/// What a vectored send looks like to the system.
pub(crate) use libc::msghdr as MessageHeader;

/// A part of memory that a vectored operation takes bytes from, or puts them into. Only an address
/// and a length: what is there need not be initialised.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[doc(alias = "WSABUF")]
#[doc(alias = "FILE_SEGMENT_ELEMENT")]
pub struct Slice(libc::iovec);

impl Slice {
    /// So many bytes from an address on.
    #[must_use]
    pub const fn new(address: *mut u8, length: usize) -> Self {
        Self(libc::iovec { iov_base: address.cast(), iov_len: length })
    }

    /// Whether one can hold so many bytes.
    pub(crate) const fn holds(_length: usize) -> bool {
        true
    }

    pub(crate) fn address(&self) -> *mut libc::c_void {
        self.0.iov_base
    }

    pub(crate) fn length(&self) -> usize {
        self.0.iov_len
    }

    /// Leaves out bytes at the start, no more than there are.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.0.iov_base = self.0.iov_base.wrapping_byte_add(bytes);
        self.0.iov_len -= bytes;
    }
}

/// The system's id of this thread.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    let id = unsafe { libc::syscall(libc::SYS_gettid) };
    i32::try_from(id).unwrap_or(0)
}

/// How much processor time a thread of this process has used.
pub(crate) fn processor_time(thread: i32) -> Option<Duration> {
    // How Linux names the clock of a thread: its number, inverted, above three bits that say so.
    const OF_A_THREAD: libc::clockid_t = 0b110;
    time_by((!thread << 3) | OF_A_THREAD)
}

/// How much processor time all threads of this process have used, together.
pub(crate) fn processor_time_of_all() -> Option<Duration> {
    time_by(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn time_by(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives across the call.
    let told = unsafe { libc::clock_gettime(clock, &raw mut time) } == 0;
    let time = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    told.then(|| Duration::new(time.0, time.1))
}

/// How long this thread has waited for a processor. None: the system does not tell.
pub(crate) fn processor_delay() -> Option<Duration> {
    let numbers = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(numbers.split_ascii_whitespace().nth(1)?.parse().ok()?))
}

/// How long the processors have had nothing to do, all together, in steps of 10 ms. None: the
/// system does not tell.
pub(crate) fn processors_idle() -> Option<Duration> {
    let numbers = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds = numbers.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A descriptor as the system knows it.
pub(crate) fn raw(descriptor: &OwnedDescriptor) -> RawDescriptor {
    descriptor.as_raw_fd()
}

/// A descriptor of a socket, to set options.
pub(crate) fn socket(descriptor: &OwnedDescriptor) -> SockRef<'_> {
    SockRef::from(descriptor)
}

/// Takes a socket that the system has given.
///
/// # Safety
///
/// It is open, and nobody else owns it.
pub(crate) unsafe fn own(descriptor: RawDescriptor) -> OwnedSocket {
    // SAFETY: the caller's promise.
    unsafe { OwnedSocket::from_raw_fd(descriptor) }
}

/// What a descriptor leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    kind: Kind,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(descriptor: &OwnedDescriptor) -> io::Result<Self> {
        // SAFETY: plain integers, for which zero is a value.
        let mut stat: libc::stat64 = unsafe { std::mem::zeroed() };
        // SAFETY: the structure lives across the call, the descriptor is open.
        if unsafe { libc::fstat64(descriptor.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFREG | libc::S_IFBLK => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            _ => Kind::Pipe,
        };
        Ok(Self { kind, inode: stat.st_ino })
    }

    pub(crate) fn kind(self) -> Kind {
        self.kind
    }
}

/// The sockets that belong to a port of this process, by inode: a duplicate of a descriptor is
/// the same socket, and a socket belongs to one port until it is closed.
static ASSOCIATED: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

/// Notes that a socket belongs to a port. False: it does already.
pub(crate) fn adopt(identity: Identity) -> bool {
    identity.kind != Kind::Socket
        || lock(&ASSOCIATED).get_or_insert_default().insert(identity.inode)
}

/// Ends that: the descriptor is about to be closed.
pub(crate) fn release(identity: Identity) {
    if identity.kind == Kind::Socket {
        lock(&ASSOCIATED).get_or_insert_default().remove(&identity.inode);
    }
}

/// Whether it is a TCP socket: one on which a receive that does not fill its buffer has emptied it.
pub(crate) fn is_tcp(descriptor: &OwnedDescriptor) -> bool {
    let protocol = SockRef::from(descriptor).protocol();
    matches!(protocol, Ok(Some(socket2::Protocol::TCP)))
}

/// Lets a listener have its address as soon as the last one that had it is gone.
pub(crate) fn claim_address(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Ends both directions of a connection.
pub(crate) fn end_connection(socket: &OwnedDescriptor) {
    let _ = SockRef::from(socket).shutdown(Shutdown::Both);
}

/// Sets or clears a descriptor's O_NONBLOCK. Returns whether that changed anything.
pub(crate) fn set_nonblocking(descriptor: RawDescriptor, on: bool) -> bool {
    // SAFETY: F_GETFL and F_SETFL take no pointers.
    unsafe {
        let flags = libc::fcntl(descriptor, libc::F_GETFL);
        let wanted = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        flags >= 0
            && flags != wanted
            && libc::fcntl(descriptor, libc::F_SETFL, wanted) == 0
    }
}

/// What an errno means.
pub(crate) fn kind_of(code: i32) -> ErrorKind {
    match code {
        libc::ECANCELED => ErrorKind::Cancelled,
        libc::ETIMEDOUT | libc::ETIME => ErrorKind::TimedOut,
        libc::EBADF | libc::ESHUTDOWN => ErrorKind::Closed,
        libc::ENOMEM | libc::ENOBUFS => ErrorKind::OutOfMemory,
        libc::EMFILE | libc::ENFILE => ErrorKind::OutOfDescriptors,
        libc::EINVAL | libc::EFAULT | libc::ENOTSOCK | libc::EDESTADDRREQ | libc::EMSGSIZE => {
            ErrorKind::InvalidInput
        }
        libc::ECONNRESET => ErrorKind::ConnectionReset,
        libc::ECONNREFUSED => ErrorKind::ConnectionRefused,
        libc::EPIPE | libc::ENOTCONN | libc::ECONNABORTED => ErrorKind::BrokenPipe,
        libc::EADDRINUSE => ErrorKind::AddressInUse,
        libc::EADDRNOTAVAIL => ErrorKind::AddressNotAvailable,
        libc::EPERM | libc::EACCES => ErrorKind::PermissionDenied,
        libc::ENODATA => ErrorKind::UnexpectedEnd,
        libc::ENOENT | libc::ENOTDIR => ErrorKind::NotFound,
        libc::EEXIST => ErrorKind::AlreadyExists,
        libc::EISDIR => ErrorKind::IsADirectory,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::StorageFull,
        libc::ENOSYS | libc::EOPNOTSUPP | libc::EAFNOSUPPORT => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    use super::*;

    /// Would catch: another number than that of idle processors, or one that is no time.
    #[test]
    fn processors_have_nothing_to_do_for_a_part_of_the_time() {
        let Some(before) = processors_idle() else {
            eprintln!("SKIP processors_idle: no uptime in /proc");
            return;
        };
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(200));
        let idle = processors_idle().unwrap().checked_sub(before).unwrap();
        let processors = std::fs::read_dir("/sys/devices/system/cpu").map_or(1024, Iterator::count);
        let most = start.elapsed() * u32::try_from(processors).unwrap();
        assert!(idle <= most + Duration::from_millis(50), "{idle:?} of {most:?}");
    }

    /// Would catch: a number that does not grow while others have the processor; another thread's.
    #[test]
    fn a_thread_knows_how_long_it_waits_for_a_processor() {
        if processor_delay().is_none() {
            eprintln!("SKIP processor_delay: no schedstat in /proc");
            return;
        }
        let threads = 2 * std::thread::available_parallelism().unwrap().get();
        let left = AtomicUsize::new(threads);
        let end = Instant::now() + Duration::from_secs(20);
        // Where there are more threads than processors, each has to wait for its turn.
        let wait = || {
            let mut waits = true;
            while left.load(Ordering::Relaxed) > 0 {
                if waits && processor_delay() > Some(Duration::from_millis(1)) {
                    left.fetch_sub(1, Ordering::Relaxed);
                    waits = false;
                }
                assert!(Instant::now() < end, "{:?}", processor_delay());
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(wait);
            }
        });
    }
}
