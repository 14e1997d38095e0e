//! Registered memory, and the tokens for its parts.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex},
};

#[cfg(target_os = "linux")]
use crate::sys::Piece;
#[cfg(windows)]
use crate::sys::{
    control::{ADDRESS_ROOM, write_address},
    rio,
};
use crate::{
    error::{Error, ErrorKind, Refused, Result},
    sync::lock,
    sys::Mapping,
};

/// Room for an address of either family.
#[cfg(windows)]
const NAME: usize = rio::ADDRESS as usize;

/// Bytes before each slice that are the system's: there it puts what it has to say of a datagram
/// (where it is from, how it was coalesced). No user sees them.
pub(in crate::rio) const HEADROOM: usize = 192;

/// How much memory is registered in one piece, if a slice is not larger.
#[cfg(windows)]
const PIECE: usize = 1 << 30;
#[cfg(target_os = "linux")]
const PIECE: usize = Piece::BYTES_MAX;

/// The most bytes a slice may have.
const BYTES_MAX: usize = 1 << 30;

/// No page of any machine is smaller.
const PAGE: usize = 4096;

/// A large piece of memory, set up once, from which receives and sends take their slices, and reads
/// and writes of files.
///
/// A region is divided into slices of one size. A [`Slice`] is owned: one cannot be in use twice,
/// and cannot be touched while a request has it. Make few regions, and large ones: the memory is
/// there from the start (nothing faults later), and is freed when the region and all its slices
/// are gone, in whatever order.
///
/// # For files
///
/// A slice is a [`Buf`](crate::Buf), so that every handle of a [`Port`](crate::Port) takes one, and
/// [`Buf::into_slice`](crate::Buf::into_slice) gets it back from the packet. Where a
/// [`File`](crate::File) is read into one or written from one, io_uring has at hand the pages that
/// it would otherwise look up each time, which is what counts with direct I/O; for that,
/// [`Region::aligned`] makes slices.
///
/// Each of a port's running slots has the kernel lock the region (each GiB of it by itself) when it
/// first uses one of its slices for a file, until the region is gone; each counts against
/// RLIMIT_MEMLOCK. A region that is refused (by that limit, because a slot has 64 already, or by a
/// kernel before Linux 5.19) is memory like any other, as it is on other drivers and for sockets of
/// a port. Nothing fails for that.
///
/// ```
/// use wharf::{Op, OpenOptions, Port, Wait, rio::Region};
///
/// let port = Port::<()>::new(1)?;
/// # let directory = std::env::temp_dir();
/// # let path = directory.join(format!("wharf-doc-region-{}", std::process::id()));
/// # std::fs::write(&path, "hello").unwrap();
/// let file = port.open(&path, OpenOptions::new().read(true), ())?;
/// let region = Region::aligned(32, 65536, file.alignment()?)?;
/// file.read_at(region.slice(0)?, 0)?;
/// let Wait::Packet(packet) = port.wait() else { panic!() };
/// let Op::Read { buf, .. } = packet.op else { panic!() };
/// let slice = buf.into_slice().expect("what it was made from");
/// assert_eq!(&slice[..], b"hello");
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Its slices
///
/// ```
/// use wharf::rio::Region;
///
/// let region = Region::new(1024, 2048)?; // 1,024 slices of 2,048 bytes
/// let mut slice = region.slice(0)?;
/// slice.copy_from(b"hello")?;
/// assert_eq!(&slice[..], b"hello");
/// assert!(region.slice(0).is_err(), "it is out already");
/// assert_eq!(region.slices().count(), 1023);
/// # Ok::<(), wharf::Error>(())
/// ```
#[doc(alias = "RIO_BUFFERID")]
pub struct Region {
    shared: Arc<Shared>,
}

struct Shared {
    /// What the system's own Registered I/O calls it, once that has been asked. (First: it goes
    /// before the memory.)
    #[cfg(windows)]
    registration: std::sync::OnceLock<Option<rio::Registration>>,
    /// What rings may know it by. (Likewise.)
    #[cfg(target_os = "linux")]
    pieces: Box<[Piece]>,
    memory: Mapping,
    /// From its address to what the slices with their headroom take.
    #[cfg(windows)]
    padding: usize,
    /// From its address to the first slice.
    first: usize,
    /// Bytes in each slice.
    size: usize,
    /// Bytes from one slice to the next.
    stride: usize,
    out: Mutex<Out>,
}

/// Which slices are out.
struct Out {
    taken: Vec<bool>,
    count: usize,
}

impl Region {
    /// Makes a region of so many slices of so many bytes each.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it would have no slice, or none with a byte in it, or more than 4
    /// billion, or such of more than 1 GiB; `OutOfMemory` where there is not so much memory.
    #[doc(alias = "RIORegisterBuffer")]
    pub fn new(slices: usize, bytes: usize) -> Result<Self> {
        Self::aligned(slices, bytes, 1)
    }

    /// The same with slices whose addresses are multiples of `alignment`, which is rounded up to a
    /// power of two: what direct I/O asks for, see [`File::alignment`](crate::File::alignment).
    /// Each slice takes about so many bytes more than it has.
    ///
    /// # Errors
    ///
    /// As for [`Self::new`]; and `InvalidInput` for more than 1 GiB.
    ///
    /// ```
    /// let region = wharf::rio::Region::aligned(4, 8192, 4096)?;
    /// assert_eq!(region.slice(3)?.as_ptr().addr() % 4096, 0);
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[doc(alias = "FILE_FLAG_NO_BUFFERING")]
    pub fn aligned(slices: usize, bytes: usize, alignment: usize) -> Result<Self> {
        const ACTION: &str = "register a region";
        let wrong = Error::of(ErrorKind::InvalidInput, ACTION)
            .with_remedy("a region has at least one slice, of 1 byte to 1 GiB");
        if slices == 0 || bytes == 0 || bytes > BYTES_MAX || u32::try_from(slices).is_err() {
            return Err(wrong);
        }
        if alignment > BYTES_MAX {
            return Err(wrong.with_remedy("slices are aligned to 1 GiB at most"));
        }
        let alignment = alignment.next_power_of_two().max(64);
        let headroom = HEADROOM.next_multiple_of(alignment);
        let mut stride = (headroom + bytes).next_multiple_of(alignment);
        if alignment < PAGE {
            // An odd number of cache lines from slice to slice: with a power of two, the beginnings
            // of all slices would compete for a few places of the processor's cache.
            stride |= alignment;
        }
        // A mapping begins at a page.
        let spare = if alignment > PAGE { alignment } else { 0 };
        let total = stride.checked_mul(slices);
        let length = total.and_then(|total| total.checked_add(spare));
        let length = length.filter(|&it| isize::try_from(it).is_ok()).ok_or(wrong)?;
        let memory = Mapping::resident(length).map_err(|error| {
            let remedy = "make the region smaller, or give the process more memory";
            Error::from_io(&error, ACTION).with_remedy(remedy)
        })?;
        let padding = memory.address().addr().wrapping_neg() % alignment;
        #[cfg(target_os = "linux")]
        let pieces = {
            let in_piece = (PIECE / stride).max(1);
            let piece = |from: usize| {
                let bytes = in_piece.min(slices - from) * stride;
                // SAFETY: inside the mapping, which goes after the pieces: the padding is less than
                // what is spare.
                unsafe { Piece::new(memory.address().add(padding + from * stride), bytes) }
            };
            (0..slices).step_by(in_piece).map(piece).collect()
        };
        let out = Mutex::new(Out { taken: vec![false; slices], count: 0 });
        let shared = Shared {
            #[cfg(windows)]
            registration: std::sync::OnceLock::new(),
            #[cfg(target_os = "linux")]
            pieces,
            memory,
            #[cfg(windows)]
            padding,
            first: padding + headroom,
            size: bytes,
            stride,
            out,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Takes the slice with this number, from 0.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the region has no such slice, `Busy` if it is out already.
    pub fn slice(&self, index: usize) -> Result<Slice> {
        const ACTION: &str = "take a slice";
        let mut out = lock(&self.shared.out);
        let Some(taken) = out.taken.get_mut(index) else {
            return Err(Error::of(ErrorKind::InvalidInput, ACTION)
                .with_remedy("the region has fewer slices: they are numbered from 0"));
        };
        if std::mem::replace(taken, true) {
            return Err(Error::of(ErrorKind::Busy, ACTION)
                .with_remedy("it comes back to its region when it is dropped"));
        }
        out.count += 1;
        drop(out);
        Ok(Slice { region: self.shared.clone(), place: (index as u64) << 32 })
    }

    /// Takes slices, as many as are asked for, that are not out.
    pub fn slices(&self) -> impl Iterator<Item = Slice> {
        (0..self.slice_count()).filter_map(|index| self.slice(index).ok())
    }

    /// How many slices it has.
    #[must_use]
    pub fn slice_count(&self) -> usize {
        lock(&self.shared.out).taken.len()
    }

    /// How many slices are out: with a request, in a completion, or elsewhere in the program.
    #[must_use]
    pub fn in_use(&self) -> usize {
        lock(&self.shared.out).count
    }

    /// Bytes in each slice.
    #[must_use]
    pub fn slice_bytes(&self) -> usize {
        self.shared.size
    }

    /// Frees the memory, if no slice is out. (A region that is dropped while slices are out is
    /// freed with the last of them.)
    ///
    /// # Errors
    ///
    /// `Busy` if slices are out: the region comes back.
    #[doc(alias = "RIODeregisterBuffer")]
    pub fn deregister(self) -> Result<(), Refused<Self>> {
        match self.in_use() {
            0 => Ok(()),
            _ => {
                let error = Error::of(ErrorKind::Busy, "deregister a region")
                    .with_remedy("close the request queues that use it, and drop its slices");
                Err(Refused { error, value: self })
            }
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let out = lock(&self.shared.out);
        let (slices, bytes, out) = (out.taken.len(), self.shared.size, out.count);
        write!(f, "Region({slices} slices of {bytes} bytes, {out} out)")
    }
}

/// A part of a [`Region`], to receive into or to send from. Derefs to the bytes it holds.
///
/// A receive *replaces* what a slice holds, and may fill all of it. A send sends what it holds. So
/// one slice can go round: received into, sent, received into again. When it is dropped, it goes
/// back to its region.
#[doc(alias = "RIO_BUF")]
pub struct Slice {
    region: Arc<Shared>,
    /// Its number, and in the lower half how many bytes it holds. Two words move in registers;
    /// a third would make every move one of memory, and cost more than looking up the rest.
    place: u64,
}

impl Slice {
    /// How many bytes it has room for.
    #[must_use]
    #[inline]
    pub fn capacity(&self) -> usize {
        self.region.size
    }

    /// Its number within its region.
    #[must_use]
    #[inline]
    pub fn index(&self) -> usize {
        (self.place >> 32) as usize
    }

    #[inline]
    fn length(&self) -> usize {
        u32::try_from(self.place & u64::from(u32::MAX)).unwrap_or(0) as usize
    }

    /// `bytes` is no more than its capacity.
    #[inline]
    fn set_length(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.capacity());
        self.place = (self.place & !u64::from(u32::MAX)) | bytes as u64;
    }

    /// Lets it hold its first `bytes` bytes, whatever they are: what was there before, or zero.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it has not so much room; it is left as it was.
    pub fn set_len(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.capacity() {
            return Err(Error::of(ErrorKind::InvalidInput, "set the length of a slice")
                .with_remedy("a slice ends where the next one of its region begins"));
        }
        self.set_length(bytes);
        Ok(())
    }

    /// Lets it hold a copy of these bytes.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it has not so much room; it is left as it was.
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<()> {
        self.set_len(bytes.len())?;
        self.copy_from_slice(bytes);
        Ok(())
    }

    /// All its room, to write into. [`Self::set_len`] says afterwards how much of it counts.
    pub fn room(&mut self) -> &mut [u8] {
        // SAFETY: as for deref_mut.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.region.size) }
    }

    /// Where its bytes are. The headroom lies before.
    #[inline]
    pub(crate) fn start(&self) -> *mut u8 {
        let offset = self.index() * self.region.stride + self.region.first;
        debug_assert!(offset + self.region.size <= self.region.memory.length());
        // SAFETY: the index is one of the region's, so that the offset lies inside its mapping.
        unsafe { self.region.memory.address().add(offset) }
    }

    /// What rings may know its bytes by. It lives as long as the slice.
    #[cfg(target_os = "linux")]
    #[inline]
    pub(crate) fn piece(&self) -> *const Piece {
        match &*self.region.pieces {
            [all] => all,
            pieces => {
                let in_piece = (PIECE / self.region.stride).max(1);
                pieces.get(self.index() / in_piece).map_or(std::ptr::null(), std::ptr::from_ref)
            }
        }
    }

    /// By what the system's own Registered I/O knows where its bytes are. None: it does not take
    /// the region.
    #[cfg(windows)]
    pub(super) fn registered(&self) -> Option<rio::Buffer> {
        let Shared { registration, memory, padding, first, stride, .. } = &*self.region;
        let in_piece = (PIECE / stride).max(1);
        let registration = registration.get_or_init(|| {
            let piece = in_piece * stride;
            // SAFETY: the memory goes after the registration; and the region, to which that
            // belongs, is kept by every slice, which a request has until it is over.
            unsafe {
                let start = memory.address().add(*padding);
                rio::Registration::new(start, memory.length() - padding, piece)
            }
            .inspect_err(|error| log::error!("a region cannot be registered: {error}"))
            .ok()
        });
        Some(rio::Buffer {
            BufferId: registration.as_ref()?.piece(self.index() / in_piece)?,
            Offset: u32::try_from(self.index() % in_piece * stride + first - padding).ok()?,
            Length: u32::try_from(self.capacity()).ok()?,
        })
    }

    /// Writes an address to the start of the headroom, where the system's own Registered I/O is
    /// told to look for it.
    #[cfg(windows)]
    pub(super) fn write_name(&mut self, address: std::net::SocketAddr) {
        let mut name = [0; ADDRESS_ROOM];
        write_address(address, &mut name);
        self.headroom_mut(HEADROOM)[..NAME].copy_from_slice(&name[..NAME]);
    }

    /// The address that was written there.
    #[cfg(windows)]
    pub(super) fn name(&self) -> [u8; NAME] {
        let mut name = [0; NAME];
        name.copy_from_slice(&self.headroom(HEADROOM)[..NAME]);
        name
    }

    /// What the system has written into the last `bytes` bytes before the slice.
    pub(super) fn headroom(&self, bytes: usize) -> &[u8] {
        let bytes = bytes.min(HEADROOM);
        // SAFETY: there are HEADROOM bytes before the slice that belong to it, and they are
        // initialised (fresh mappings are zeroed). Nobody writes to them while we have the slice.
        unsafe { std::slice::from_raw_parts(self.start().sub(bytes), bytes) }
    }

    /// The last `bytes` bytes before the slice.
    pub(super) fn headroom_mut(&mut self, bytes: usize) -> &mut [u8] {
        let bytes = bytes.min(HEADROOM);
        // SAFETY: as for headroom; `&mut` says that nobody else looks.
        unsafe { std::slice::from_raw_parts_mut(self.start().sub(bytes), bytes) }
    }

    /// After a receive: how many bytes it holds now.
    #[inline]
    pub(crate) fn set_received(&mut self, bytes: usize) {
        self.set_length(bytes.min(self.capacity()));
    }
}

impl Deref for Slice {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: this part of the region is ours alone as long as we have the slice, the region
        // is kept by it, and all of its memory is initialised (fresh mappings are zeroed). The
        // kernel writes only to slices that a request owns, and a request's slice has no name:
        // see the page of `rio`.
        unsafe { std::slice::from_raw_parts(self.start(), self.length()) }
    }
}

impl DerefMut for Slice {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref; `&mut` says that nobody else looks.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.length()) }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, length, room) = (self.index(), self.length(), self.region.size);
        write!(f, "Slice({index}: {length} of {room} bytes)")
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let mut out = lock(&self.region.out);
        out.taken[self.index()] = false;
        out.count -= 1;
    }
}
