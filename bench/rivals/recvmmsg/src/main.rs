//! Counts datagrams with a bare recvmmsg: a thread that blocks until there are some, and takes
//! up to 64 of them.

use std::{io, mem, os::fd::AsRawFd, ptr};

use nix::sys::socket::{setsockopt, sockopt::UdpGroSegment};
use rival_common::{Datagrams, count::BATCH};

/// Room for the one control message that was asked for, aligned as it must be: the size of the
/// datagrams that the system has put together.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

fn main() -> io::Result<()> {
    let datagrams = Datagrams::parse("libc");
    let options = datagrams.counter.options();
    let socket = datagrams.bind()?;
    if options.coalesce {
        setsockopt(&socket, UdpGroSegment, &true)?;
    }
    let room = options.room();
    let mut rooms = vec![0_u8; BATCH * room];
    let mut controls = vec![Control([0; 64]); BATCH];
    let mut slices: Vec<_> = rooms
        .chunks_exact_mut(room)
        .map(|room| libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() })
        .collect();
    // SAFETY: zero is a valid value of each field: no address, no buffers, no control messages.
    let mut headers: Vec<libc::mmsghdr> = vec![unsafe { mem::zeroed() }; BATCH];
    for ((header, slice), control) in headers.iter_mut().zip(&mut slices).zip(&mut controls) {
        header.msg_hdr.msg_iov = slice;
        header.msg_hdr.msg_iovlen = 1;
        if options.coalesce {
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
        }
    }
    let tally = datagrams.counter.thread();
    loop {
        if options.coalesce {
            // The last call has said there how much there was.
            for header in &mut headers {
                header.msg_hdr.msg_controllen = size_of::<Control>();
            }
        }
        // SAFETY: the headers, and through them the slices, the rooms and the controls, are as long
        // as they say, live until the end of main, and nothing refers to them during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        tally.notified();
        for (header, slice) in headers.iter().zip(&slices).take(received as usize) {
            let length = header.msg_len as usize;
            // SAFETY: the kernel has written so many bytes into this room (no more than there is
            // room for, without MSG_TRUNC), and writes there again only in the next call.
            let bytes = unsafe { std::slice::from_raw_parts(slice.iov_base.cast::<u8>(), length) };
            let each = segment(&header.msg_hdr).unwrap_or(length).max(1);
            for datagram in bytes.chunks(each) {
                if !tally.datagram(datagram) {
                    return datagrams.report();
                }
            }
        }
    }
}

/// The size of each of the datagrams that came together.
fn segment(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: `header` is one that recvmmsg has filled in, so that what it says of its control
    // messages is true.
    let control = unsafe { libc::CMSG_FIRSTHDR(header).as_ref()? };
    if (control.cmsg_level, control.cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO) {
        return None;
    }
    // SAFETY: a control message of this kind has an integer.
    let size = unsafe { libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned() };
    usize::try_from(size).ok()
}
