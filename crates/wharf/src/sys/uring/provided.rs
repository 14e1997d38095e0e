//! The ring in which the kernel finds the free buffers of a pool (Linux 5.19).

use std::{
    io,
    sync::atomic::{AtomicU16, Ordering},
};

use linux_raw_sys::io_uring as abi;

use super::ring::Ring;
use crate::sys::Mapping;

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Provided {
    entries: Mapping,
    count: u16,
    tail: u16,
}

#[repr(C)]
struct Entry {
    address: u64,
    length: u32,
    id: u16,
    /// In entry 0 this is the ring's tail.
    tail: u16,
}

const _: () = assert!(size_of::<Entry>() == size_of::<abi::io_uring_buf>());

impl Provided {
    /// The group under which a lane's pool is known to its ring.
    pub(crate) const GROUP: u16 = 0;

    /// `count` is a power of two.
    pub(crate) fn new(ring: &Ring, count: u16) -> io::Result<Self> {
        Self::in_group(ring, count, Self::GROUP)
    }

    /// The same under another group, for a ring with several.
    pub(crate) fn in_group(ring: &Ring, count: u16, group: u16) -> io::Result<Self> {
        debug_assert!(count.is_power_of_two());
        let entries = Mapping::new(usize::from(count) * size_of::<Entry>(), None)?;
        // SAFETY: plain integers, for which zero is a value.
        let mut register: abi::io_uring_buf_reg = unsafe { std::mem::zeroed() };
        register.ring_addr = entries.address() as u64;
        register.ring_entries = u32::from(count);
        register.bgid = group;
        // SAFETY: the structure is what this opcode asks for. The kernel pins the pages of the
        // entries it names for as long as it uses them.
        unsafe {
            ring.register(
                abi::io_uring_register_op::IORING_REGISTER_PBUF_RING as u32,
                (&raw const register).cast(),
                1,
            )?;
        }
        Ok(Self { entries, count, tail: 0 })
    }

    /// Gives the kernel a buffer, of which there are no more than `count`.
    pub(crate) fn put(&mut self, id: u16, address: *mut u8, length: usize) {
        // No more than `count` buffers exist, so the kernel has consumed whatever stood there.
        self.write(self.tail, id, address, length);
        self.set_tail(self.tail.wrapping_add(1));
    }

    /// How many buffers have ever been given, modulo 65,536. The next one's place.
    pub(crate) fn tail(&self) -> u16 {
        self.tail
    }

    /// Takes the newest `count` buffers back. Nobody may be receiving from this ring: then the
    /// kernel does not look at it, and finds the new tail when it does again.
    pub(crate) fn take_back(&mut self, count: u16) {
        self.set_tail(self.tail.wrapping_sub(count));
    }

    /// Puts another buffer in the place of one that the kernel has not consumed. Nobody may be
    /// receiving from this ring.
    pub(crate) fn replace(&mut self, place: u16, id: u16, address: *mut u8, length: usize) {
        self.write(place, id, address, length);
    }

    fn write(&mut self, place: u16, id: u16, address: *mut u8, length: usize) {
        let entries = self.entries.address().cast::<Entry>();
        // SAFETY: the slot is masked by the power-of-two count. Fields are written one by one
        // because the last one of slot 0 is the shared tail.
        unsafe {
            let entry = entries.add(usize::from(place & (self.count - 1)));
            (&raw mut (*entry).address).write(address as u64);
            (&raw mut (*entry).length).write(u32::try_from(length).unwrap_or(u32::MAX));
            (&raw mut (*entry).id).write(id);
        }
    }

    fn set_tail(&mut self, tail: u16) {
        self.tail = tail;
        let entries = self.entries.address().cast::<Entry>();
        // SAFETY: the tail lies in the first entry, and only we write to it. Release: whoever
        // sees it sees the entries before it.
        unsafe {
            (*(&raw const (*entries).tail).cast::<AtomicU16>()).store(tail, Ordering::Release);
        }
    }
}
