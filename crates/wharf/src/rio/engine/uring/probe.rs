//! Whether this kernel has what the engine needs, found out by trying.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
    sync::OnceLock,
};

use linux_raw_sys::io_uring as abi;

use super::{BUFFER_SELECT, MULTISHOT};
use crate::sys::uring::{Provided, Ring, RingSize, Sqe};

/// What to do where it has not.
pub(crate) const FLOOR: &str = "on io_uring it needs Linux 6.0";

/// Tries a multishot receive with provided buffers, on throwaway sockets, once per process that
/// it works in.
pub(super) fn probe() -> io::Result<()> {
    static FOUND: OnceLock<()> = OnceLock::new();
    if FOUND.get().is_none() {
        ask()?;
        let _ = FOUND.set(());
    }
    Ok(())
}

fn ask() -> io::Result<()> {
    let too_old = || {
        let text = "this kernel's io_uring is older than Linux 6.0";
        io::Error::new(io::ErrorKind::Unsupported, text)
    };
    let old = |error: io::Error| match error.raw_os_error() {
        Some(libc::EINVAL) => too_old(),
        _ => error,
    };
    let mut buffer = Box::new([0_u8; 16]);
    let (one, other) = UnixDatagram::pair()?;
    let size = RingSize { submissions: 4, completions: 8 };
    let mut ring = Ring::polled(size).map_err(old)?;
    let mut provided = Provided::new(&ring, 1).map_err(old)?;
    provided.put(0, buffer.as_mut_ptr(), buffer.len());
    one.send(b"first")?;
    let receive = Sqe {
        opcode: abi::io_uring_op::IORING_OP_RECV as u8,
        fd: other.as_raw_fd(),
        flags: BUFFER_SELECT,
        ioprio: MULTISHOT,
        buf_index: Provided::GROUP,
        ..Sqe::default()
    };
    // SAFETY: the one buffer is filled during the call below, from what is there already. Then
    // none is left for the receive to write to.
    unsafe { ring.push_alone(&[receive])? };
    ring.enter(1, None)?;
    let done = ring.pop_alone().ok_or_else(too_old)?;
    let multishot = abi::IORING_CQE_F_MORE | abi::IORING_CQE_F_BUFFER;
    match done.result == 5 && done.flags & multishot == multishot {
        true => Ok(()),
        false => Err(too_old()),
    }
}
