//! Receiving and sending datagrams: the calls, and which of their errors mean nothing.

use std::{io, os::windows::io::BorrowedSocket, ptr};

use windows_sys::Win32::{Networking::WinSock as ws, System::IO::OVERLAPPED};

use super::header::DatagramHeader;
use crate::sys::windows::socket::{self, Way};

/// Starts to receive a datagram.
///
/// # Safety
///
/// The header, the buffer and the overlapped structure stay where they are, untouched, until the
/// packet.
pub(crate) unsafe fn receive(
    socket: BorrowedSocket<'_>,
    header: *mut DatagramHeader,
    buffer: *mut u8,
    length: usize,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let receive = socket::receive_message()?;
    // SAFETY: the caller's promise.
    let result = unsafe {
        let message = (*header).for_receive(buffer, length);
        receive(socket::raw(socket), message, ptr::null_mut(), overlapped, None)
    };
    socket::begun_unless_too_long(result == 0, Way::In)
}

/// Starts to send the next datagram of a buffer, or the next few, of which so much is left.
///
/// # Safety
///
/// As for `receive`.
pub(crate) unsafe fn send(
    socket: BorrowedSocket<'_>,
    header: *mut DatagramHeader,
    rest: *const u8,
    left: usize,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let (socket, none) = (socket::raw(socket), ptr::null_mut());
    // SAFETY: the caller's promise; what is only described in the message is copied by Winsock.
    let result = unsafe {
        let message = (*header).for_send(rest, left);
        let ws::WSAMSG { name, namelen, lpBuffers: bytes, Control: control, .. } = *message;
        if control.len > 0 {
            ws::WSASendMsg(socket, message, 0, none, overlapped, None)
        } else if name.is_null() {
            ws::WSASend(socket, bytes, 1, none, 0, overlapped, None)
        } else {
            ws::WSASendTo(socket, bytes, 1, none, 0, name, namelen, overlapped, None)
        }
    };
    socket::begun_unless_too_long(result == 0, Way::Out)
}

/// Whether an error may be one that a datagram sent earlier has met on its way, and that the socket
/// reports with the next call, whatever that does. (SIO_UDP_CONNRESET turns most of that off.)
pub(crate) fn is_of_an_earlier_send(code: i32) -> bool {
    matches!(
        code,
        ws::WSAECONNRESET
            | ws::WSAENETRESET
            | ws::WSAECONNREFUSED
            | ws::WSAEHOSTUNREACH
            | ws::WSAENETUNREACH
    )
}
