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
        debug_assert!(count.is_power_of_two());
        let entries = Mapping::new(usize::from(count) * size_of::<Entry>(), None)?;
        // SAFETY: plain integers, for which zero is a value.
        let mut register: abi::io_uring_buf_reg = unsafe { std::mem::zeroed() };
        register.ring_addr = entries.address() as u64;
        register.ring_entries = u32::from(count);
        register.bgid = Self::GROUP;
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
        let entries = self.entries.address().cast::<Entry>();
        // SAFETY: the slot is masked by the power-of-two count, and free: no more than `count`
        // buffers exist, so the kernel has consumed whatever stood there. Fields are written one
        // by one because the last one of slot 0 is the shared tail.
        unsafe {
            let entry = entries.add(usize::from(self.tail & (self.count - 1)));
            (&raw mut (*entry).address).write(address as u64);
            (&raw mut (*entry).length).write(u32::try_from(length).unwrap_or(u32::MAX));
            (&raw mut (*entry).id).write(id);
            self.tail = self.tail.wrapping_add(1);
            (*(&raw const (*entries).tail).cast::<AtomicU16>())
                .store(self.tail, Ordering::Release);
        }
    }
}
