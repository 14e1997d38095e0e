//! Windows: the kernel's completion port is the port.

mod datagram;
mod descriptor;
pub(crate) mod file;
mod first;
mod lane;
mod memory;
pub(crate) mod pipe;
mod port;
mod probe;
pub(crate) mod rio;
pub(crate) mod signal;
pub(crate) mod socket;
mod timers;
mod transmit;
pub(crate) mod udp;

use std::{
    io,
    net::Shutdown,
    os::windows::io::FromRawSocket,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

pub(crate) use std::os::windows::io::{
    BorrowedHandle as BorrowedFile, BorrowedSocket, OwnedHandle as OwnedFile, OwnedSocket,
};

use socket2::{SockRef, Socket};
use windows_sys::Win32::{Foundation as win, Networking::WinSock as ws};

pub use self::{datagram::Message, descriptor::OwnedDescriptor, transmit::Transmission};
pub(crate) use self::{
    descriptor::{Identity, NO_DESCRIPTOR, RawDescriptor, raw},
    lane::{Event, Header, Lane, attempt, key},
    memory::Mapping,
    pipe::pair as pipe,
    port::{CompletionPort, Entry as PortEntry, MOST as PORT_BATCH},
    probe::probe,
    udp::{DatagramHeader, cuts_datagrams, is_ipv6},
};
use crate::error::{Error, ErrorKind};

/// What a cancelled operation fails with.
pub(crate) const CANCELLED: i32 = win::ERROR_OPERATION_ABORTED.cast_signed();
/// What an operation fails with whose deadline has passed.
pub(crate) const TIMED_OUT: i32 = ws::WSAETIMEDOUT;
/// What an operation fails with whose failure has no code.
pub(crate) const FAILED: i32 = win::ERROR_GEN_FAILURE.cast_signed();

/// What a vectored send looks like to the system: the slices themselves.
pub(crate) type MessageHeader = ();

/// The free buffers of a pool, where the kernel takes them: nowhere.
#[derive(Debug)]
pub(crate) enum Provided {}

impl Provided {
    pub(crate) fn put(&mut self, _id: u16, _address: *mut u8, _size: usize) {
        match *self {}
    }
}

/// Which process this is: there is no fork.
#[derive(Debug)]
pub(crate) struct ForkGuard;

impl ForkGuard {
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere it may fail")]
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) fn in_child(&self) -> bool {
        false
    }
}

/// A descriptor of a socket, to set options.
pub(crate) fn socket(descriptor: &OwnedDescriptor) -> SockRef<'_> {
    match descriptor {
        OwnedDescriptor::Socket(socket) => SockRef::from(socket),
        OwnedDescriptor::File(_) => unreachable!("asked of handles for sockets only"),
    }
}

/// Takes a socket that the system has given.
///
/// # Safety
///
/// It is open, and nobody else owns it.
pub(crate) unsafe fn own(descriptor: RawDescriptor) -> OwnedSocket {
    // SAFETY: the caller's promise.
    unsafe { OwnedSocket::from_raw_socket(descriptor as _) }
}

/// A socket that is known by its number.
///
/// # Safety
///
/// It is one, and stays open for as long as what is returned.
pub(crate) unsafe fn borrow<'a>(descriptor: RawDescriptor) -> BorrowedSocket<'a> {
    // SAFETY: the caller's promise.
    unsafe { BorrowedSocket::borrow_raw(descriptor as _) }
}

/// Lets a listener have its address for itself. (SO_REUSEADDR would let it take the address of
/// another that is there.)
pub(crate) fn claim_address(socket: &Socket) -> io::Result<()> {
    socket::set(socket, ws::SO_EXCLUSIVEADDRUSE, Some(&1i32))
}

/// What the driver knows of a handle's descriptor.
#[derive(Debug, Default)]
pub(crate) struct Registration {
    /// Its receiving direction was ended: receives take what has arrived, and wait for no more.
    pub(crate) ended: AtomicBool,
    /// It is a socket for datagrams.
    pub(crate) datagrams: bool,
}

impl Registration {
    /// Whether the driver makes calls itself, and might as well do so at once.
    pub(crate) fn tries_first(&self) -> bool {
        false
    }

    /// For a branch of a file's handle. With one lane there is none.
    pub(crate) fn of_branch(&self) -> Self {
        Self::default()
    }

    /// Which lane knows of it.
    pub(crate) fn lane(&self) -> u16 {
        0
    }
}

/// That a descriptor belongs to one port is known to the kernel.
pub(crate) fn adopt(_identity: Identity) -> bool {
    true
}

/// And forgotten with the descriptor.
pub(crate) fn release(_identity: Identity) {}

/// Ends both directions of a connection.
pub(crate) fn end_connection(socket: &OwnedDescriptor) {
    let _ = SockRef::from(&socket.as_socket()).shutdown(Shutdown::Both);
}

/// A part of memory that a vectored operation takes bytes from, or puts them into. Only an address
/// and a length: what is there need not be initialised.
#[repr(transparent)]
#[derive(Clone, Copy)]
#[doc(alias = "WSABUF")]
#[doc(alias = "FILE_SEGMENT_ELEMENT")]
pub struct Slice(pub(crate) ws::WSABUF);

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slice").field("address", &self.0.buf).field("length", &self.0.len).finish()
    }
}

impl Slice {
    /// Whether one can hold so many bytes.
    pub(crate) const fn holds(length: usize) -> bool {
        length <= u32::MAX as usize
    }

    /// So many bytes from an address on.
    ///
    /// # Panics
    ///
    /// If these are 4 GiB or more.
    #[must_use]
    pub const fn new(address: *mut u8, length: usize) -> Self {
        assert!(Self::holds(length), "one slice has less than 4 GiB");
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        Self(ws::WSABUF { len: length as u32, buf: address })
    }

    pub(crate) fn length(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }

    /// Leaves out bytes at the start, no more than there are.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.0.buf = self.0.buf.wrapping_add(bytes);
        self.0.len -= u32::try_from(bytes).unwrap_or(0);
    }
}

/// Has a packet with this key posted, when there is memory for it.
pub(crate) fn set_alarm(port: &Arc<CompletionPort>, key: usize) {
    if let Err(error) = timers::set(port, Instant::now(), key, std::ptr::null_mut()) {
        log::error!("a waiting worker could not be woken: {error}");
    }
}

/// Why there is no port.
pub(crate) fn refusal(error: &io::Error) -> Error {
    Error::from_io(error, "CreateIoCompletionPort")
}

/// What a Win32 or a Winsock code means.
pub(crate) fn kind_of(code: i32) -> ErrorKind {
    match code.cast_unsigned() {
        win::ERROR_OPERATION_ABORTED => return ErrorKind::Cancelled,
        win::ERROR_SEM_TIMEOUT | win::WAIT_TIMEOUT => return ErrorKind::TimedOut,
        win::ERROR_INVALID_HANDLE | win::ERROR_ABANDONED_WAIT_0 => return ErrorKind::Closed,
        win::ERROR_NOT_ENOUGH_MEMORY
        | win::ERROR_OUTOFMEMORY
        | win::ERROR_NO_SYSTEM_RESOURCES
        | win::ERROR_COMMITMENT_LIMIT => return ErrorKind::OutOfMemory,
        win::ERROR_TOO_MANY_OPEN_FILES => return ErrorKind::OutOfDescriptors,
        win::ERROR_INVALID_PARAMETER
        | win::ERROR_NOACCESS
        | win::ERROR_INVALID_NAME
        | win::ERROR_BAD_PIPE
        | win::ERROR_INVALID_FUNCTION => return ErrorKind::InvalidInput,
        win::ERROR_NETNAME_DELETED => return ErrorKind::ConnectionReset,
        win::ERROR_CONNECTION_REFUSED => return ErrorKind::ConnectionRefused,
        win::ERROR_PIPE_BUSY => return ErrorKind::QueueFull,
        win::ERROR_BROKEN_PIPE
        | win::ERROR_NO_DATA
        | win::ERROR_PIPE_NOT_CONNECTED
        | win::ERROR_CONNECTION_ABORTED
        | win::ERROR_GRACEFUL_DISCONNECT => return ErrorKind::BrokenPipe,
        win::ERROR_ACCESS_DENIED | win::ERROR_SHARING_VIOLATION | win::ERROR_WRITE_PROTECT => {
            return ErrorKind::PermissionDenied;
        }
        win::ERROR_FILE_NOT_FOUND | win::ERROR_PATH_NOT_FOUND => return ErrorKind::NotFound,
        win::ERROR_HANDLE_EOF => return ErrorKind::UnexpectedEnd,
        win::ERROR_FILE_EXISTS | win::ERROR_ALREADY_EXISTS => return ErrorKind::AlreadyExists,
        win::ERROR_DISK_FULL | win::ERROR_DISK_QUOTA_EXCEEDED | win::ERROR_FILE_TOO_LARGE => {
            return ErrorKind::StorageFull;
        }
        win::ERROR_NOT_SUPPORTED | win::ERROR_CALL_NOT_IMPLEMENTED => return ErrorKind::Unsupported,
        _ => {}
    }
    match code {
        ws::WSAETIMEDOUT => ErrorKind::TimedOut,
        ws::WSAEBADF => ErrorKind::Closed,
        ws::WSAENOBUFS => ErrorKind::OutOfMemory,
        ws::WSAEMFILE => ErrorKind::OutOfDescriptors,
        ws::WSAEINVAL
        | ws::WSAEFAULT
        | ws::WSAENOTSOCK
        | ws::WSAEDESTADDRREQ
        | ws::WSAEMSGSIZE => ErrorKind::InvalidInput,
        ws::WSAECONNRESET | ws::WSAENETRESET => ErrorKind::ConnectionReset,
        ws::WSAECONNREFUSED => ErrorKind::ConnectionRefused,
        ws::WSAESHUTDOWN | ws::WSAENOTCONN | ws::WSAECONNABORTED | ws::WSAEDISCON => {
            ErrorKind::BrokenPipe
        }
        ws::WSAEADDRINUSE => ErrorKind::AddressInUse,
        ws::WSAEADDRNOTAVAIL => ErrorKind::AddressNotAvailable,
        ws::WSAEACCES => ErrorKind::PermissionDenied,
        ws::WSAEOPNOTSUPP | ws::WSAENOPROTOOPT | ws::WSAEAFNOSUPPORT | ws::WSAEPROTONOSUPPORT => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::Other,
    }
}
