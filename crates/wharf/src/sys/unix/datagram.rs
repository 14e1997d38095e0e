//! What sendmsg and recvmsg work with: bytes, an address, and descriptors that travel along.

use std::{
    mem::{offset_of, size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd},
};

use socket2::{SockAddr, SockAddrStorage};

use super::{OwnedDescriptor, RawDescriptor, Slice};

/// What a message that is sent or received consists of beside its bytes, at a fixed address that
/// the caller owns.
#[doc(alias = "WSAMSG")]
#[doc(alias = "msghdr")]
pub struct Message {
    header: libc::msghdr,
    slice: Slice,
    /// Where it goes, or where it came from.
    address: libc::sockaddr_storage,
    address_length: libc::socklen_t,
    /// Control messages, or room for them, at an address that is right for them.
    control: Vec<u64>,
    control_length: usize,
}

// SAFETY: the pointers in the header lead into the message itself, or to what its user has
// promised for as long as it is used; it is nobody else's business in between.
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
    /// The most descriptors that can travel with one message (SCM_MAX_FD).
    pub const MAX_DESCRIPTORS: usize = 253;

    /// A message without bytes, address or descriptors.
    #[must_use]
    pub const fn new() -> Self {
        // SAFETY: plain integers and pointers, for which zero is a value.
        let (header, address) = unsafe { (zeroed(), zeroed()) };
        let slice = Slice::new(std::ptr::null_mut(), 0);
        Self { header, slice, address, address_length: 0, control: Vec::new(), control_length: 0 }
    }

    /// Makes it one again as [`Self::new`] does.
    pub fn clear(&mut self) {
        self.set_bytes(std::ptr::null_mut(), 0);
        self.address_length = 0;
        self.make_room(0);
    }

    /// So many bytes are to be sent from there, or received to there. They must stay valid as long
    /// as the operation.
    pub fn set_bytes(&mut self, address: *mut u8, length: usize) {
        self.slice = Slice::new(address, length);
    }

    /// Addresses it, on a socket that is not connected.
    pub(crate) fn set_address(&mut self, address: &SockAddr) {
        let length = address.len().min(ADDRESS_MAX);
        // SAFETY: so many bytes lie there, and have room here.
        unsafe {
            let to = (&raw mut self.address).cast::<u8>();
            to.copy_from_nonoverlapping(address.as_ptr().cast(), length as usize);
        }
        self.address_length = length;
    }

    /// Lets descriptors travel along. They must stay open as long as the operation.
    pub(crate) fn set_descriptors(&mut self, descriptors: &[OwnedDescriptor]) {
        self.make_room(descriptors.len());
        if descriptors.is_empty() {
            return;
        }
        let data = size_of_val(descriptors);
        // SAFETY: there is room for the header and so many descriptors after it.
        unsafe {
            let header = self.control.as_mut_ptr().cast::<libc::cmsghdr>();
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = HEADER + data;
            let first = header.cast::<u8>().add(HEADER).cast::<RawDescriptor>();
            for (at, descriptor) in descriptors.iter().enumerate() {
                first.add(at).write(descriptor.as_raw_fd());
            }
        }
    }

    /// Makes room for so many descriptors to come.
    pub(crate) fn make_room(&mut self, descriptors: usize) {
        let bytes = match descriptors {
            0 => 0,
            _ => (HEADER + descriptors * size_of::<RawDescriptor>()).next_multiple_of(8),
        };
        self.control.clear();
        self.control.resize(bytes / 8, 0);
        self.control_length = bytes;
    }

    /// What the system is given for the next try.
    pub(crate) fn prepare(&mut self, receives: bool) -> *mut libc::msghdr {
        let named = receives || self.address_length > 0;
        let length = if receives {
            ADDRESS_MAX
        } else {
            self.address_length
        };
        let address = &raw mut self.address;
        self.header.msg_name = if named { address.cast() } else { std::ptr::null_mut() };
        self.header.msg_namelen = length;
        self.header.msg_iov = (&raw mut self.slice).cast();
        self.header.msg_iovlen = 1;
        self.header.msg_control = match self.control_length {
            0 => std::ptr::null_mut(),
            _ => self.control.as_mut_ptr().cast(),
        };
        self.header.msg_controllen = self.control_length as _;
        self.header.msg_flags = 0;
        &raw mut self.header
    }

    /// The same, to receive into a buffer of the pool.
    pub(crate) fn prepare_into(&mut self, buffer: *mut u8, length: usize) -> *mut libc::msghdr {
        self.slice = Slice::new(buffer, length);
        self.prepare(true)
    }

    /// Moves past bytes that have been sent, and whatever travelled with them. Returns whether any
    /// are left: of a datagram, never.
    pub(crate) fn advance(&mut self, bytes: usize) -> bool {
        self.slice.skip(bytes.min(self.slice.length()));
        self.control_length = 0;
        self.slice.length() > 0
    }

    /// Whether what was received was longer than the room for it, and the rest is lost.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.header.msg_flags & libc::MSG_TRUNC != 0
    }

    /// Whether more descriptors came than there was room for.
    #[must_use]
    pub fn has_lost_descriptors(&self) -> bool {
        self.header.msg_flags & libc::MSG_CTRUNC != 0
    }

    /// Where what was received came from.
    pub(crate) fn address(&self) -> Option<SockAddr> {
        let length = self.header.msg_namelen;
        if length == 0 {
            return None;
        }
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: both are as large as any address, and the system has written one here.
        unsafe {
            let to = (&raw mut storage).cast::<u8>();
            to.copy_from_nonoverlapping((&raw const self.address).cast(), ADDRESS_MAX as usize);
            Some(SockAddr::new(storage, length.min(ADDRESS_MAX)))
        }
    }

    /// Takes the descriptors that came along. Once for each receive that succeeded: they belong to
    /// whoever takes them.
    ///
    /// # Safety
    ///
    /// The last operation with this message was a receive that succeeded, and its descriptors have
    /// not been taken before.
    pub(crate) unsafe fn take_descriptors(&mut self) -> Vec<OwnedDescriptor> {
        let mut taken = Vec::new();
        let end = self.header.msg_controllen.min(self.control_length);
        self.header.msg_controllen = 0;
        let start = self.control.as_ptr().cast::<u8>();
        let mut at = 0;
        while at + HEADER <= end {
            // SAFETY: a whole header lies there; it may have been written to any address.
            let header = unsafe { start.add(at).cast::<libc::cmsghdr>().read_unaligned() };
            let length = header.cmsg_len;
            if length < HEADER || at + length > end {
                break;
            }
            if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                for from in (at + HEADER..at + length).step_by(size_of::<RawDescriptor>()) {
                    // SAFETY: inside what the system has written: the descriptors that it has
                    // made for us, which nobody has taken (the caller's promise).
                    taken.push(unsafe {
                        let raw = start.add(from).cast::<RawDescriptor>().read_unaligned();
                        OwnedDescriptor::from_raw_fd(raw)
                    });
                }
            }
            at += length.next_multiple_of(size_of::<usize>());
        }
        taken
    }
}

/// Bytes of the longest address.
#[expect(clippy::cast_possible_truncation, reason = "it is 128")]
const ADDRESS_MAX: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// Bytes of a control message before its data.
const HEADER: usize = size_of::<libc::cmsghdr>().next_multiple_of(size_of::<usize>());

const _: () = assert!(offset_of!(libc::cmsghdr, cmsg_len) == 0);
// Descriptors are laid out without gaps, and so are the owners of them.
const _: () = assert!(size_of::<OwnedDescriptor>() == size_of::<RawDescriptor>());
