//! Overlapped calls on sockets, and the few that are not.
//!
//! From an overlapped call that succeeds, at once or later, a packet comes; from one that is
//! refused, none does.

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{SocketAddr, UdpSocket},
    os::windows::io::{AsRawSocket, AsSocket, BorrowedSocket, FromRawSocket, OwnedSocket},
    ptr,
    sync::OnceLock,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use windows_sys::{
    Win32::{
        Foundation::{HANDLE, NTSTATUS, RtlNtStatusToDosError},
        Networking::WinSock as ws,
        Storage::FileSystem::SetFileCompletionNotificationModes,
        System::{
            IO::{CancelIoEx, OVERLAPPED},
            WindowsProgramming::FILE_SKIP_SET_EVENT_ON_HANDLE,
        },
    },
    core::GUID,
};

use super::{
    RawDescriptor, Slice,
    datagram::{ADDRESS_MAX, Message},
    port::CompletionPort,
    rio,
};

/// The most bytes that one call is given.
const MAX_BYTES: usize = 1 << 30;

/// What accepting needs beside the operation: the socket that becomes the connection, and room for
/// the two addresses, which the kernel writes.
#[derive(Debug)]
pub(crate) struct Accepting {
    socket: OwnedSocket,
    addresses: [MaybeUninit<u8>; 2 * ADDRESS],
}

/// What AcceptEx wants for an address.
const ADDRESS: usize = size_of::<ws::SOCKADDR_STORAGE>() + 16;

/// The calls that have to be asked for.
struct Extensions {
    accept: AcceptEx,
    connect: ConnectEx,
    transmit: TransmitFile,
    disconnect: DisconnectEx,
    receive_message: ReceiveMessage,
}

type AcceptEx = <ws::LPFN_ACCEPTEX as Inner>::Function;
type ConnectEx = <ws::LPFN_CONNECTEX as Inner>::Function;
type DisconnectEx = <ws::LPFN_DISCONNECTEX as Inner>::Function;
type TransmitFile = <ws::LPFN_TRANSMITFILE as Inner>::Function;
pub(super) type ReceiveMessage = <ws::LPFN_WSARECVMSG as Inner>::Function;

/// The type inside of an option.
pub(super) trait Inner {
    type Function;
}

impl<F> Inner for Option<F> {
    type Function = F;
}

/// The socket as Winsock names it.
pub(crate) fn raw(socket: BorrowedSocket<'_>) -> ws::SOCKET {
    // A SOCKET is a handle: as wide as a pointer.
    usize::try_from(socket.as_raw_socket()).unwrap_or(ws::INVALID_SOCKET)
}

pub(super) fn last_error() -> io::Error {
    // SAFETY: takes nothing and cannot fail.
    io::Error::from_raw_os_error(unsafe { ws::WSAGetLastError() })
}

/// Whether an overlapped call was accepted, from what it returned.
fn begun(accepted: bool) -> io::Result<()> {
    if accepted {
        return Ok(());
    }
    let error = last_error();
    if error.raw_os_error() == Some(ws::WSA_IO_PENDING) { Ok(()) } else { Err(error) }
}

/// How many bytes a call has moved that is not overlapped.
fn moved(result: i32, bytes: u32) -> io::Result<usize> {
    if result == 0 { Ok(usize::try_from(bytes).unwrap_or(0)) } else { Err(last_error()) }
}

/// A slice of a send or a receive, cut to what one call may be given.
pub(crate) fn slice(bytes: *mut u8, length: usize) -> ws::WSABUF {
    ws::WSABUF { len: u32::try_from(length.min(MAX_BYTES)).unwrap_or(0), buf: bytes }
}

/// Prepares a socket to be used by a port: what is not overlapped must not wait, and where the
/// provider's sockets are handles of the kernel's, no event needs to be set for them. Returns
/// whether it is one for datagrams.
pub(crate) fn prepare(socket: &OwnedSocket) -> io::Result<bool> {
    let socket = socket.as_socket();
    socket2::SockRef::from(&socket).set_nonblocking(true)?;
    let protocol = protocol(socket)?;
    let connected = socket2::SockRef::from(&socket).peer_addr().is_ok();
    let datagrams = protocol.iSocketType == ws::SOCK_DGRAM;
    if datagrams && !connected {
        // What an ICMP message says of one of many peers is nothing that the next receive should
        // fail with.
        pass_over_errors(socket)?;
    }
    if protocol.dwServiceFlags1 & ws::XP1_IFS_HANDLES != 0 {
        #[expect(clippy::cast_possible_truncation, reason = "it is 2")]
        let mode = FILE_SKIP_SET_EVENT_ON_HANDLE as u8;
        // SAFETY: an open handle. It only saves time: a refusal changes nothing.
        unsafe { SetFileCompletionNotificationModes(raw(socket) as HANDLE, mode) };
    }
    Ok(datagrams)
}

/// The call that receives a datagram with all that is known of it.
pub(super) fn receive_message() -> io::Result<ReceiveMessage> {
    Ok(Extensions::get()?.receive_message)
}

/// Keeps what an ICMP message says of an earlier datagram off a socket's receives.
pub(crate) fn pass_over_errors(socket: BorrowedSocket<'_>) -> io::Result<()> {
    control(socket, ws::SIO_UDP_CONNRESET, &0u32)?;
    // What it says of routers that were too many, older systems do not ask about.
    let _ = control(socket, ws::SIO_UDP_NETRESET, &0u32);
    Ok(())
}

/// What kind of socket it is.
pub(super) fn protocol(socket: BorrowedSocket<'_>) -> io::Result<ws::WSAPROTOCOL_INFOW> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut info: ws::WSAPROTOCOL_INFOW = unsafe { mem::zeroed() };
    let mut length = size_of_val(&info) as i32;
    // SAFETY: the structure is what this option asks for, and lives across the call.
    let result = unsafe {
        ws::getsockopt(
            raw(socket),
            ws::SOL_SOCKET,
            ws::SO_PROTOCOL_INFOW,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info) } else { Err(last_error()) }
}

/// Starts to receive.
///
/// # Safety
///
/// The buffer, the flags and the overlapped structure stay where they are, untouched, until the
/// packet.
pub(crate) unsafe fn receive(
    socket: BorrowedSocket<'_>,
    buffer: ws::WSABUF,
    flags: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    // SAFETY: the caller's promise; Winsock copies the description of the buffer.
    let result = unsafe {
        ws::WSARecv(raw(socket), &raw const buffer, 1, ptr::null_mut(), flags, overlapped, None)
    };
    begun(result == 0)
}

/// Starts to receive a datagram, without its address.
///
/// # Safety
///
/// As for [`receive`].
pub(crate) unsafe fn receive_datagram(
    socket: BorrowedSocket<'_>,
    buffer: ws::WSABUF,
    flags: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    // SAFETY: the caller's promise; Winsock copies the description of the buffer.
    let result = unsafe {
        ws::WSARecv(raw(socket), &raw const buffer, 1, ptr::null_mut(), flags, overlapped, None)
    };
    begun_unless_too_long(result == 0, Way::In)
}

/// Starts to receive into several buffers, the first of them first.
///
/// # Safety
///
/// As for [`receive`].
pub(crate) unsafe fn receive_vectored(
    socket: BorrowedSocket<'_>,
    buffers: &[ws::WSABUF],
    flags: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let count = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
    // SAFETY: the caller's promise; Winsock copies the descriptions of the buffers.
    let result = unsafe {
        let none = ptr::null_mut();
        ws::WSARecv(raw(socket), buffers.as_ptr(), count, none, flags, overlapped, None)
    };
    begun(result == 0)
}

/// Starts to wait until there is a datagram, which is left where it is.
///
/// # Safety
///
/// The flags and the overlapped structure stay where they are, untouched, until the packet.
pub(crate) unsafe fn wait_for_datagram(
    socket: BorrowedSocket<'_>,
    flags: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let nothing = slice(ptr::null_mut(), 0);
    // SAFETY: the caller's promise; Winsock copies the description of the buffer.
    let result = unsafe {
        *flags = ws::MSG_PEEK.cast_unsigned();
        ws::WSARecv(raw(socket), &raw const nothing, 1, ptr::null_mut(), flags, overlapped, None)
    };
    begun_unless_too_long(result == 0, Way::In)
}

/// Receives what is there.
///
/// # Safety
///
/// The buffer may be written to.
pub(crate) unsafe fn receive_now(
    socket: BorrowedSocket<'_>,
    buffer: ws::WSABUF,
) -> io::Result<usize> {
    let (mut bytes, mut flags) = (0, 0);
    // SAFETY: the caller's promise; without an overlapped structure the call is over when it
    // returns.
    let result = unsafe {
        ws::WSARecv(
            raw(socket),
            &raw const buffer,
            1,
            &raw mut bytes,
            &raw mut flags,
            ptr::null_mut(),
            None,
        )
    };
    moved(result, bytes)
}

/// Starts to send.
///
/// # Safety
///
/// The buffers and the overlapped structure stay where they are, untouched, until the packet.
pub(crate) unsafe fn send(
    socket: BorrowedSocket<'_>,
    buffers: &[ws::WSABUF],
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let count = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
    // SAFETY: the caller's promise; Winsock copies the descriptions of the buffers.
    let result = unsafe {
        ws::WSASend(raw(socket), buffers.as_ptr(), count, ptr::null_mut(), 0, overlapped, None)
    };
    begun(result == 0)
}

/// Starts to receive a datagram.
///
/// # Safety
///
/// The buffer, the message, the flags and the overlapped structure stay where they are, untouched,
/// until the packet.
pub(crate) unsafe fn receive_from(
    socket: BorrowedSocket<'_>,
    buffer: ws::WSABUF,
    message: *mut Message,
    flags: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    // SAFETY: the caller's promise; Winsock copies the description of the buffer.
    let result = unsafe {
        (*message).address_length = ADDRESS_MAX;
        ws::WSARecvFrom(
            raw(socket),
            &raw const buffer,
            1,
            ptr::null_mut(),
            flags,
            (&raw mut (*message).address).cast(),
            &raw mut (*message).address_length,
            overlapped,
            None,
        )
    };
    begun_unless_too_long(result == 0, Way::In)
}

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    In,
    Out,
}

/// The same as `begun` for datagrams. A call that says at once that one was too long has failed, so
/// that no packet should come; for a kernel it may also be a success with a warning, of which one
/// comes. Nobody documents which: it is tried once, on a socket that is thrown away.
pub(super) fn begun_unless_too_long(accepted: bool, way: Way) -> io::Result<()> {
    static FOUND: [OnceLock<bool>; 2] = [const { OnceLock::new() }; 2];
    match begun(accepted) {
        Err(error) if error.raw_os_error() == Some(ws::WSAEMSGSIZE) => {
            let has_packet = *FOUND[way as usize].get_or_init(|| {
                too_long_has_packet(way).unwrap_or_else(|error| {
                    log::error!("what becomes of datagrams that are too long is unknown: {error}");
                    true
                })
            });
            if has_packet { Ok(()) } else { Err(error) }
        }
        begun => begun,
    }
}

fn too_long_has_packet(way: Way) -> io::Result<bool> {
    const TOO_LONG: usize = 70_000;
    let port = CompletionPort::new(1)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(socket.local_addr()?)?;
    port.associate(raw(socket.as_socket()), 0)?;
    let mut bytes = vec![0; TOO_LONG];
    let (mut flags, mut overlapped) = (0, OVERLAPPED::default());
    let borrowed = socket.as_socket();
    let begun = match way {
        Way::In => {
            socket.send(&[0; 8])?;
            // When it can be seen, it has arrived.
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let _ = socket.peek(&mut [0; 8])?;
            let room = slice(bytes.as_mut_ptr(), 1);
            // SAFETY: everything stays until the packet below, if one comes.
            unsafe { receive(borrowed, room, &raw mut flags, &raw mut overlapped) }
        }
        Way::Out => {
            let all = slice(bytes.as_mut_ptr(), TOO_LONG);
            // SAFETY: as above.
            unsafe { send(borrowed, &[all], &raw mut overlapped) }
        }
    };
    // One that is pending is waited for; of one that has failed, the packet is there or not.
    let patience = if begun.is_ok() { None } else { Some(Duration::ZERO) };
    let packets = port.wait(1, patience, |_| {})?;
    Ok(begun.is_err() && packets == 1)
}

/// Starts to send a datagram, to its address if it has one.
///
/// # Safety
///
/// The message, its bytes and the overlapped structure stay where they are, untouched, until the
/// packet.
pub(crate) unsafe fn send_to(
    socket: BorrowedSocket<'_>,
    message: *const Message,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let (Slice(bytes), length) = unsafe { ((*message).slice, (*message).address_length) };
    if length == 0 {
        // SAFETY: the caller's promise; Winsock copies the description of the buffer.
        let result = unsafe {
            ws::WSASend(raw(socket), &raw const bytes, 1, ptr::null_mut(), 0, overlapped, None)
        };
        return begun_unless_too_long(result == 0, Way::Out);
    }
    // SAFETY: the caller's promise; Winsock copies the description of the buffer.
    let result = unsafe {
        ws::WSASendTo(
            raw(socket),
            &raw const bytes,
            1,
            ptr::null_mut(),
            0,
            (&raw const (*message).address).cast(),
            length,
            overlapped,
            None,
        )
    };
    begun_unless_too_long(result == 0, Way::Out)
}

/// Sends what there is room for.
///
/// # Safety
///
/// The buffer may be read.
pub(crate) unsafe fn send_now(socket: BorrowedSocket<'_>, buffer: ws::WSABUF) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: as for `receive_now`.
    let result = unsafe {
        ws::WSASend(
            raw(socket),
            &raw const buffer,
            1,
            &raw mut bytes,
            0,
            ptr::null_mut(),
            None,
        )
    };
    moved(result, bytes)
}

impl Accepting {
    /// Makes the socket for the next connection of a listener.
    pub(crate) fn new(listener: BorrowedSocket<'_>) -> io::Result<Box<Self>> {
        let protocol = protocol(listener)?;
        // SAFETY: takes numbers, and makes a new socket.
        let socket = unsafe {
            ws::WSASocketW(
                protocol.iAddressFamily,
                protocol.iSocketType,
                protocol.iProtocol,
                ptr::null(),
                0,
                ws::WSA_FLAG_OVERLAPPED | ws::WSA_FLAG_NO_HANDLE_INHERIT,
            )
        };
        if socket == ws::INVALID_SOCKET {
            return Err(last_error());
        }
        // SAFETY: new, and nobody else's.
        let socket = unsafe { OwnedSocket::from_raw_socket(socket as _) };
        Ok(Box::new(Self { socket, addresses: [const { MaybeUninit::uninit() }; 2 * ADDRESS] }))
    }

    /// Starts to accept.
    ///
    /// # Safety
    ///
    /// This and the overlapped structure stay where they are, untouched, until the packet.
    pub(crate) unsafe fn start(
        &mut self,
        listener: BorrowedSocket<'_>,
        overlapped: *mut OVERLAPPED,
    ) -> io::Result<()> {
        let address = ADDRESS as u32;
        let mut bytes = 0;
        let accept = Extensions::get()?.accept;
        // SAFETY: the caller's promise; there is room for two addresses and no data.
        let accepted = unsafe {
            accept(
                raw(listener),
                self.socket.as_raw_socket() as ws::SOCKET,
                self.addresses.as_mut_ptr().cast(),
                0,
                address,
                address,
                &raw mut bytes,
                overlapped,
            )
        };
        begun(accepted != 0)
    }

    /// The connection, once it stands: a socket like any other from here on.
    pub(crate) fn finish(self, listener: BorrowedSocket<'_>) -> io::Result<OwnedSocket> {
        let listener = raw(listener);
        set(&self.socket, ws::SO_UPDATE_ACCEPT_CONTEXT, Some(&listener))?;
        Ok(self.socket)
    }
}

/// Starts to connect. The socket is bound, if it was not.
///
/// # Safety
///
/// `address` is one of `length` bytes; the overlapped structure stays where it is, untouched,
/// until the packet.
pub(crate) unsafe fn connect(
    socket: BorrowedSocket<'_>,
    address: *const u8,
    length: u32,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let address = address.cast::<ws::SOCKADDR>();
    let length = i32::try_from(length).unwrap_or(0);
    // SAFETY: the caller's promise: an address begins with its family.
    let family = unsafe { (*address).sa_family };
    // SAFETY: plain numbers, for which zero is a value: no address and no port in particular.
    let mut any: ws::SOCKADDR_STORAGE = unsafe { mem::zeroed() };
    any.ss_family = family;
    let connect = Extensions::get()?.connect;
    // SAFETY: `any` is large enough for an address of any family. That the socket is bound
    // already is no failure, and any other is one of the connect's too.
    unsafe { ws::bind(raw(socket), (&raw const any).cast(), length) };
    // SAFETY: the caller's promise.
    let connected = unsafe {
        connect(raw(socket), address, length, ptr::null(), 0, ptr::null_mut(), overlapped)
    };
    begun(connected != 0)
}

/// Starts to send a part of a file, from where the overlapped structure says.
///
/// # Safety
///
/// The file stays open, and the buffers, what they lead to, and the overlapped structure stay where
/// they are, untouched, until the packet.
pub(crate) unsafe fn transmit(
    socket: BorrowedSocket<'_>,
    file: RawDescriptor,
    length: u32,
    buffers: *const ws::TRANSMIT_FILE_BUFFERS,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let transmit = Extensions::get()?.transmit;
    let file = ptr::with_exposed_provenance_mut(file);
    // SAFETY: the caller's promise.
    begun(unsafe { transmit(raw(socket), file, length, 0, overlapped, buffers, 0) } != 0)
}

/// Starts to end a connection, so that the socket may be connected again if `reuse`.
///
/// # Safety
///
/// The overlapped structure stays where it is, untouched, until the packet.
pub(crate) unsafe fn disconnect(
    socket: BorrowedSocket<'_>,
    reuse: bool,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let disconnect = Extensions::get()?.disconnect;
    let flags = if reuse { ws::TF_REUSE_SOCKET } else { 0 };
    // SAFETY: the caller's promise.
    begun(unsafe { disconnect(raw(socket), overlapped, flags, 0) } != 0)
}

/// Makes a socket that ConnectEx has connected like any other.
pub(crate) fn finish_connect(socket: BorrowedSocket<'_>) -> io::Result<()> {
    set::<ws::SOCKET>(&socket, ws::SO_UPDATE_CONNECT_CONTEXT, None)
}

/// Sets an option.
pub(crate) fn set<T>(socket: &impl AsSocket, option: i32, value: Option<&T>) -> io::Result<()> {
    set_at(socket.as_socket(), ws::SOL_SOCKET, option, value)
}

/// Sets an option of one of the protocols.
pub(super) fn set_at<T>(
    socket: BorrowedSocket<'_>,
    level: i32,
    option: i32,
    value: Option<&T>,
) -> io::Result<()> {
    let (at, length) = match value {
        Some(value) => (ptr::from_ref(value).cast(), size_of::<T>() as i32),
        None => (ptr::null(), 0),
    };
    // SAFETY: the value lives across the call.
    let result = unsafe { ws::setsockopt(raw(socket), level, option, at, length) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Sets what has no option.
fn control(socket: BorrowedSocket<'_>, code: u32, value: &u32) -> io::Result<()> {
    let mut bytes = 0;
    // SAFETY: the value lives across the call, which writes nothing back.
    let result = unsafe {
        ws::WSAIoctl(
            raw(socket),
            code,
            ptr::from_ref(value).cast(),
            4,
            ptr::null_mut(),
            0,
            &raw mut bytes,
            ptr::null_mut(),
            None,
        )
    };
    moved(result, 0).map(drop)
}

/// Asks for one call to be cancelled, or for all of a socket's. Their packets come all the same.
pub(crate) fn cancel(socket: BorrowedSocket<'_>, overlapped: *const OVERLAPPED) {
    // SAFETY: the address is compared by the kernel, never followed. There is nothing to do about
    // a refusal: if the call is not found, its packet is on its way.
    unsafe { CancelIoEx(raw(socket) as HANDLE, overlapped) };
}

/// What a call has failed with, as Winsock calls it.
///
/// # Safety
///
/// The call is over, and was made on this socket with this structure.
pub(crate) unsafe fn error_of(
    socket: BorrowedSocket<'_>,
    overlapped: *const OVERLAPPED,
    status: NTSTATUS,
) -> i32 {
    let (mut bytes, mut flags) = (0, 0);
    // SAFETY: the caller's promise; the numbers live across the call, which does not wait.
    let succeeded = unsafe {
        ws::WSAGetOverlappedResult(raw(socket), overlapped, &raw mut bytes, 0, &raw mut flags)
    };
    if succeeded == 0
        && let Some(code) = last_error().raw_os_error()
        && code != ws::WSA_IO_INCOMPLETE
    {
        return code;
    }
    // SAFETY: takes a number and gives one.
    unsafe { RtlNtStatusToDosError(status) }.cast_signed()
}

impl Extensions {
    fn get() -> io::Result<&'static Self> {
        static FOUND: OnceLock<Extensions> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        // Through a socket that is thrown away: looking must not change anybody's.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        // SAFETY: these are the types of the functions that go by these names.
        let found = unsafe {
            Self {
                accept: extension::<AcceptEx>(&socket, ws::WSAID_ACCEPTEX)?,
                connect: extension::<ConnectEx>(&socket, ws::WSAID_CONNECTEX)?,
                transmit: extension::<TransmitFile>(&socket, ws::WSAID_TRANSMITFILE)?,
                disconnect: extension::<DisconnectEx>(&socket, ws::WSAID_DISCONNECTEX)?,
                receive_message: extension::<ReceiveMessage>(&datagrams, ws::WSAID_WSARECVMSG)?,
            }
        };
        Ok(FOUND.get_or_init(|| found))
    }
}

/// What the sockets of this system can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// They are handles of the kernel's.
    pub(crate) handles: bool,
    /// There is Registered I/O.
    pub(crate) registered: bool,
}

/// Asks for what may be there or not; fails where something is missing that has to be.
pub(crate) fn features() -> io::Result<Features> {
    Extensions::get()?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let info = protocol(socket.as_socket())?;
    Ok(Features {
        handles: info.dwServiceFlags1 & ws::XP1_IFS_HANDLES != 0,
        registered: rio::Functions::get().is_some(),
    })
}

/// Makes a socket for datagrams, also for Registered I/O, if the system has that.
pub(crate) fn new_for_datagrams(address: SocketAddr) -> io::Result<Socket> {
    let mut flags = ws::WSA_FLAG_OVERLAPPED | ws::WSA_FLAG_NO_HANDLE_INHERIT;
    if rio::Functions::get().is_some() {
        flags |= ws::WSA_FLAG_REGISTERED_IO;
    }
    let family = i32::from(if address.is_ipv6() { ws::AF_INET6 } else { ws::AF_INET });
    // This one also has Winsock begin.
    Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // SAFETY: takes numbers, and makes a new socket.
    let socket = unsafe { ws::WSASocketW(family, ws::SOCK_DGRAM, 0, ptr::null(), 0, flags) };
    if socket == ws::INVALID_SOCKET {
        return Err(last_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { Socket::from_raw_socket(socket as _) })
}

/// Asks for a function of a socket's provider.
///
/// # Safety
///
/// `F` is the type of the function, a pointer.
unsafe fn extension<F: Copy>(socket: &Socket, name: GUID) -> io::Result<F> {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    let mut function = MaybeUninit::<F>::uninit();
    let mut bytes = 0;
    // SAFETY: the name and the place for the pointer live across the call.
    let result = unsafe {
        ws::WSAIoctl(
            socket.as_raw_socket() as _,
            ws::SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const name).cast(),
            size_of::<GUID>() as u32,
            function.as_mut_ptr().cast(),
            size_of::<F>() as u32,
            &raw mut bytes,
            ptr::null_mut(),
            None,
        )
    };
    if result != 0 {
        return Err(last_error());
    }
    // SAFETY: the call has written the pointer, whose type the caller vouches for.
    Ok(unsafe { function.assume_init() })
}
