//! Files that a ring knows by a number.
//!
//! For each request on a descriptor the kernel looks the file up and counts a reference to it. That
//! costs little, until rings of several processors do it to one file. A file that is registered
//! with the ring has a number there, and nothing is counted.

use std::{
    io::{self, Read},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Mutex,
    sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
};

use linux_raw_sys::io_uring as abi;

use super::{Ring, Sqe, poll_in, ring};
use crate::sync::lock;

/// What the driver knows of a handle's descriptor.
#[derive(Debug)]
pub(crate) struct Registration {
    /// Whether a call that waits for room in the socket does so for a tick only.
    pub(crate) hurries: AtomicBool,
    /// How many operations of a file have been started, up to [`MANY`]. Counted under the handle's
    /// lock, as the number is set.
    uses: AtomicU16,
    /// The number of the file, and in the upper half the lane where it has it; or [`NONE`].
    number: AtomicU32,
}

/// After how many operations a file gets a number where they are started. To get it and to give it
/// back takes as long as a read or two.
const MANY: u16 = 64;

const NONE: u32 = u32::MAX;

impl Registration {
    pub(crate) fn new() -> Self {
        Self {
            hurries: AtomicBool::new(false),
            uses: AtomicU16::new(0),
            number: AtomicU32::new(NONE),
        }
    }

    /// Its number in a lane.
    #[inline]
    pub(super) fn number_in(&self, lane: u16) -> Option<u16> {
        let word = self.number.load(Ordering::Relaxed);
        let number = (word & 0xffff) as u16;
        (word != NONE && word >> 16 == u32::from(lane)).then_some(number)
    }

    /// Which lane knows it by a number; 0 if none does.
    pub(crate) fn lane(&self) -> u16 {
        match self.number.load(Ordering::Relaxed) {
            NONE => 0,
            word => (word >> 16) as u16,
        }
    }

    /// Counts an operation of a file. True, once: there have been many.
    pub(super) fn is_worth_a_number(&self) -> bool {
        let uses = self.uses.load(Ordering::Relaxed);
        if uses < MANY {
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
        uses + 1 == MANY
    }

    pub(super) fn set(&self, lane: u16, number: Option<u16>) {
        if let Some(number) = number {
            self.number.store(u32::from(lane) << 16 | u32::from(number), Ordering::Relaxed);
        }
    }
}

/// The files that are registered with a ring.
#[derive(Debug)]
pub(super) struct Files {
    /// The numbers that are free. None: the ring has no table of files yet.
    free: Mutex<Option<Vec<u16>>>,
}

impl Files {
    /// How many files one ring may know. The kernel allows no more than descriptors
    /// (RLIMIT_NOFILE).
    const SIZES: [u16; 3] = [1024, 256, 64];

    /// `allowed`: to use the table at all.
    pub(super) fn new(allowed: bool) -> Self {
        Self { free: Mutex::new(if allowed { None } else { Some(Vec::new()) }) }
    }

    /// Registers a file, which the kernel then keeps open until it is taken out again. None: there
    /// is no room, or the kernel (before Linux 5.19) has no such table.
    pub(super) fn add(&self, ring: &Ring, file: i32) -> Option<u16> {
        let mut free = lock(&self.free);
        let free = free.get_or_insert_with(|| {
            let opcode = abi::io_uring_register_op::IORING_REGISTER_FILES2;
            let made = |size: &u16| ring::make_table(ring.fd(), opcode, *size).is_ok();
            let size = Self::SIZES.into_iter().find(made);
            (0..size.unwrap_or(0)).rev().collect()
        });
        let number = *free.last()?;
        put(ring, number, file).ok()?;
        free.pop()
    }

    /// Takes a file out, of which no request is in the ring any more.
    pub(super) fn remove(&self, ring: &Ring, number: u16) {
        match put(ring, number, -1) {
            Ok(()) => lock(&self.free).get_or_insert_default().push(number),
            Err(error) => log::warn!("a ring keeps a file open: {error}"),
        }
    }
}

/// Whether a file is let go as soon as it is taken out. Before Linux 6.13 the kernel keeps it until
/// all requests have ended that were made before on any file of the table: a receive, say, that
/// waits for hours.
pub(super) fn lets_go(ring: &Ring) -> io::Result<bool> {
    let (idle, _peer) = UnixStream::pair()?;
    let (closed, mut other) = UnixStream::pair()?;
    other.set_nonblocking(true)?;
    let files = Files::new(true);
    let numbers = [&idle, &closed].map(|it| files.add(ring, it.as_raw_fd()));
    let [Some(waits), Some(goes)] = numbers else { return Ok(false) };
    let flags = 1 << abi::io_uring_sqe_flags_bit::IOSQE_FIXED_FILE_BIT as u8;
    let entry = Sqe { fd: i32::from(waits), flags, user_data: 1, ..Sqe::default() };
    // SAFETY: a poll points to nothing.
    unsafe { ring.push(&[poll_in(entry)])? };
    ring.enter(0, None)?;
    files.remove(ring, goes);
    drop(closed);
    Ok(matches!(other.read(&mut [0]), Ok(0)))
}

/// Puts a file under a number, or none (-1).
fn put(ring: &Ring, number: u16, file: i32) -> io::Result<()> {
    let update = abi::io_uring_rsrc_update {
        offset: u32::from(number),
        resv: 0,
        data: (&raw const file) as u64,
    };
    let opcode = abi::io_uring_register_op::IORING_REGISTER_FILES_UPDATE as u32;
    // SAFETY: the structure is what this opcode asks for; it leads to one descriptor, and both are
    // read during the call.
    unsafe { ring.register(opcode, (&raw const update).cast(), 1) }
}
