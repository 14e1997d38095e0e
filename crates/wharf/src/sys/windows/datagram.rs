//! What datagrams are sent and received with: bytes and an address.

use std::mem::zeroed;

use socket2::{SockAddr, SockAddrStorage};
use windows_sys::Win32::Networking::WinSock as ws;

use super::{Slice, descriptor::OwnedDescriptor};

/// What a datagram that is sent or received consists of beside its bytes, at a fixed address that
/// the caller owns.
#[doc(alias = "WSAMSG")]
pub struct Message {
    pub(super) slice: Slice,
    /// Where it goes, or where it came from.
    pub(super) address: ws::SOCKADDR_STORAGE,
    pub(super) address_length: i32,
    pub(super) truncated: bool,
}

// SAFETY: the pointer in the slice leads to what its user has promised for as long as it is used;
// it is nobody else's business in between.
unsafe impl Send for Message {}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("bytes", &self.slice.length()).finish_non_exhaustive()
    }
}

impl Default for Message {
    fn default() -> Self {
        Self::new()
    }
}

impl Message {
    /// A message without bytes or address.
    #[must_use]
    pub const fn new() -> Self {
        // SAFETY: plain numbers, for which zero is a value.
        let address = unsafe { zeroed() };
        let slice = Slice::new(std::ptr::null_mut(), 0);
        Self { slice, address, address_length: 0, truncated: false }
    }

    /// Makes it one again as [`Self::new`] does.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// So many bytes are to be sent from there, or received to there. They must stay valid as long
    /// as the operation.
    ///
    /// # Panics
    ///
    /// If these are 4 GiB or more.
    pub fn set_bytes(&mut self, address: *mut u8, length: usize) {
        self.slice = Slice::new(address, length);
        self.truncated = false;
    }

    /// Addresses it, on a socket that is not connected.
    pub(crate) fn set_address(&mut self, address: &SockAddr) {
        let length = address.len().min(ADDRESS_MAX);
        // SAFETY: so many bytes lie there, and have room here.
        unsafe {
            let to = (&raw mut self.address).cast::<u8>();
            let bytes = usize::try_from(length).unwrap_or(0);
            to.copy_from_nonoverlapping(address.as_ptr().cast(), bytes);
        }
        self.address_length = length;
    }

    /// Descriptors do not travel here: there are none.
    pub(crate) fn set_descriptors(&mut self, descriptors: &[OwnedDescriptor]) {
        debug_assert!(descriptors.is_empty());
    }

    pub(crate) fn make_room(&mut self, descriptors: usize) {
        debug_assert_eq!(descriptors, 0);
    }

    /// None came.
    ///
    /// # Safety
    ///
    /// None is needed here.
    #[expect(clippy::unused_self, reason = "elsewhere they are in it")]
    pub(crate) unsafe fn take_descriptors(&mut self) -> Vec<OwnedDescriptor> {
        Vec::new()
    }

    /// Whether what was received was longer than the room for it, and the rest is lost.
    #[must_use]
    #[doc(alias = "WSAEMSGSIZE")]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Where what was received came from.
    pub(crate) fn address(&self) -> Option<SockAddr> {
        if self.address_length <= 0 || self.address.ss_family == ws::AF_UNSPEC {
            return None;
        }
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: both are as large as any address, and Winsock has written one here.
        unsafe {
            let to = (&raw mut storage).cast::<u8>();
            let bytes = usize::try_from(ADDRESS_MAX).unwrap_or(0);
            to.copy_from_nonoverlapping((&raw const self.address).cast(), bytes);
            Some(SockAddr::new(storage, self.address_length.min(ADDRESS_MAX)))
        }
    }
}

/// Bytes of the longest address.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is 128")]
pub(super) const ADDRESS_MAX: i32 = size_of::<ws::SOCKADDR_STORAGE>() as i32;
