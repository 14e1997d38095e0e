//! Buffers that operations own.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

#[cfg(target_os = "linux")]
use crate::sys::Piece;
use crate::{rio::Slice, sys::pool::Pool};

/// A buffer that an operation owns until its packet gives it back.
///
/// It is made from a `Vec<u8>`, a `Box<[u8]>`, a `&'static [u8]` or `&'static str`, `Bytes` or
/// `BytesMut`, or a [`Slice`] of registered memory, or aligned for direct I/O ([`Buf::aligned`]),
/// or it stands for one of the port's pool ([`Buf::pooled`]), which a receive takes when data is
/// there. It derefs to the bytes it holds.
///
/// A send or a write takes what the buffer holds. A receive or a read *replaces* what it holds: it
/// fills the buffer from its start, up to its capacity. So one buffer can go round: received into,
/// sent, received into again.
///
/// ```
/// use wharf::Buf;
///
/// let buf = Buf::from(b"to send".to_vec());
/// assert_eq!(&buf[3..], b"send");
/// let room = Buf::with_capacity(4096);
/// assert!(room.is_empty() && room.capacity() >= 4096);
/// ```
#[derive(Default)]
pub struct Buf(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Pool,
    Vec(Vec<u8>),
    Boxed {
        data: Box<[u8]>,
        filled: usize,
    },
    Static(&'static [u8]),
    Bytes(Bytes),
    BytesMut(BytesMut),
    Pooled(Pooled),
    Aligned(Aligned),
    Slice(Slice),
}

impl Buf {
    /// Stands for a buffer of the port's pool: a receive takes one when data is there, so an idle
    /// connection holds none. Its size is the builder's `pool`.
    #[must_use]
    pub const fn pooled() -> Self {
        Self(Kind::Pool)
    }

    /// An empty buffer with room for that many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Kind::Vec(Vec::with_capacity(bytes)))
    }

    /// So many zero bytes at an address that is a multiple of `alignment`, which is rounded up to a
    /// power of two: what direct I/O asks for, see [`File::alignment`](crate::File::alignment).
    ///
    /// ```
    /// let mut buf = wharf::Buf::aligned(8192, 4096);
    /// assert!(buf.len() == 8192 && buf.as_ptr().addr() % 4096 == 0);
    /// buf.as_mut().unwrap()[0] = 1;
    /// ```
    ///
    /// # Panics
    ///
    /// If no memory can have this size or alignment.
    #[must_use]
    #[doc(alias = "FILE_FLAG_NO_BUFFERING")]
    pub fn aligned(bytes: usize, alignment: usize) -> Self {
        Self(Kind::Aligned(Aligned::new(bytes, alignment)))
    }

    /// How many bytes a receive can put into it: 0 for what cannot be written to, and for one
    /// that has yet to come from the pool.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.0 {
            Kind::Vec(vec) => vec.capacity(),
            Kind::Boxed { data, .. } => data.len(),
            Kind::BytesMut(bytes) => bytes.capacity(),
            Kind::Pooled(pooled) => pooled.pool.size(),
            Kind::Aligned(aligned) => aligned.layout.size(),
            Kind::Slice(slice) => slice.capacity(),
            Kind::Pool | Kind::Static(_) | Kind::Bytes(_) => 0,
        }
    }

    /// Keeps the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        match &mut self.0 {
            Kind::Vec(vec) => vec.truncate(length),
            Kind::Boxed { filled, .. } => *filled = length.min(*filled),
            Kind::Static(data) => *data = &data[..length.min(data.len())],
            Kind::Bytes(bytes) => bytes.truncate(length),
            Kind::BytesMut(bytes) => bytes.truncate(length),
            Kind::Pooled(pooled) => pooled.length = pooled.length.min(length),
            Kind::Aligned(aligned) => aligned.filled = aligned.filled.min(length),
            Kind::Slice(slice) => slice.set_received(length.min(slice.len())),
            Kind::Pool => {}
        }
    }

    /// The bytes, to change them. None if they are shared or static.
    pub fn as_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Kind::Vec(vec) => Some(vec),
            Kind::Boxed { data, filled } => Some(&mut data[..*filled]),
            Kind::BytesMut(bytes) => Some(bytes),
            Kind::Pooled(pooled) => Some(pooled),
            Kind::Aligned(aligned) => Some(aligned),
            Kind::Slice(slice) => Some(slice),
            Kind::Pool | Kind::Static(_) | Kind::Bytes(_) => None,
        }
    }

    /// The bytes as a vector: the one it was made from, or a copy.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Kind::Vec(vec) => vec,
            Kind::Boxed { data, filled } => {
                let mut vec = data.into_vec();
                vec.truncate(filled);
                vec
            }
            Kind::BytesMut(bytes) => bytes.into(),
            Kind::Bytes(bytes) => bytes.into(),
            Kind::Static(data) => data.to_vec(),
            Kind::Pooled(pooled) => pooled.to_vec(),
            Kind::Aligned(aligned) => aligned.to_vec(),
            Kind::Slice(slice) => slice.to_vec(),
            Kind::Pool => Vec::new(),
        }
    }

    /// The slice of registered memory that it was made from, with the bytes it holds.
    ///
    /// # Errors
    ///
    /// The buffer comes back if it was made from something else.
    pub fn into_slice(self) -> Result<Slice, Self> {
        match self.0 {
            Kind::Slice(slice) => Ok(slice),
            kind => Err(Self(kind)),
        }
    }

    /// The bytes as `Bytes`: shared where that is possible, or a copy of a pooled, aligned or
    /// registered buffer.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Kind::Bytes(bytes) => bytes,
            Kind::BytesMut(bytes) => bytes.freeze(),
            Kind::Static(data) => Bytes::from_static(data),
            kind => Self(kind).into_vec().into(),
        }
    }

    /// Whether it stands for a buffer of the pool.
    pub(crate) fn wants_pool(&self) -> bool {
        matches!(self.0, Kind::Pool)
    }

    /// Whether it is a buffer of a pool.
    pub(crate) fn is_of_pool(&self) -> bool {
        matches!(self.0, Kind::Pooled(_))
    }

    /// Where a receive may write, and how much. None: it cannot.
    pub(crate) fn room(&mut self) -> Option<(*mut u8, usize)> {
        match &mut self.0 {
            Kind::Vec(vec) => Some((vec.as_mut_ptr(), vec.capacity())),
            Kind::Boxed { data, .. } => Some((data.as_mut_ptr(), data.len())),
            Kind::BytesMut(bytes) => Some((bytes.as_mut_ptr(), bytes.capacity())),
            Kind::Pooled(pooled) => Some((pooled.pool.address(pooled.id), pooled.pool.size())),
            Kind::Aligned(aligned) => Some((aligned.data.as_ptr(), aligned.layout.size())),
            Kind::Slice(slice) => Some((slice.start(), slice.capacity())),
            Kind::Pool | Kind::Static(_) | Kind::Bytes(_) => None,
        }
    }

    /// What rings may know its memory by; null if nothing. It lives as long as the buffer.
    #[cfg(target_os = "linux")]
    #[inline]
    pub(crate) fn piece(&self) -> *const Piece {
        match &self.0 {
            Kind::Slice(slice) => slice.piece(),
            _ => std::ptr::null(),
        }
    }

    /// Says how much a receive has put in.
    ///
    /// # Safety
    ///
    /// The first `bytes` bytes of the room are initialised.
    pub(crate) unsafe fn set_filled(&mut self, bytes: usize) {
        match &mut self.0 {
            // SAFETY: the caller's promise; `bytes` is no more than the capacity.
            Kind::Vec(vec) => unsafe { vec.set_len(bytes) },
            Kind::Boxed { filled, .. } => *filled = bytes,
            // SAFETY: as for the vector.
            Kind::BytesMut(buffer) => unsafe { buffer.set_len(bytes) },
            Kind::Pooled(pooled) => pooled.length = bytes,
            Kind::Aligned(aligned) => aligned.filled = bytes,
            Kind::Slice(slice) => slice.set_received(bytes),
            Kind::Pool | Kind::Static(_) | Kind::Bytes(_) => {}
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Kind::Vec(vec) => vec,
            Kind::Boxed { data, filled } => &data[..*filled],
            Kind::Static(data) => data,
            Kind::Bytes(bytes) => bytes,
            Kind::BytesMut(bytes) => bytes,
            Kind::Pooled(pooled) => pooled,
            Kind::Aligned(aligned) => aligned,
            Kind::Slice(slice) => slice,
            Kind::Pool => &[],
        }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Pool => "Pool",
            Kind::Vec(_) => "Vec",
            Kind::Boxed { .. } => "Box",
            Kind::Static(_) => "Static",
            Kind::Bytes(_) => "Bytes",
            Kind::BytesMut(_) => "BytesMut",
            Kind::Pooled(_) => "Pooled",
            Kind::Aligned(_) => "Aligned",
            Kind::Slice(_) => "Slice",
        };
        write!(f, "Buf::{kind}({} of {} bytes)", self.len(), self.capacity().max(self.len()))
    }
}

impl From<Vec<u8>> for Buf {
    fn from(vec: Vec<u8>) -> Self {
        Self(Kind::Vec(vec))
    }
}

impl From<Box<[u8]>> for Buf {
    fn from(data: Box<[u8]>) -> Self {
        let filled = data.len();
        Self(Kind::Boxed { data, filled })
    }
}

impl From<&'static [u8]> for Buf {
    fn from(data: &'static [u8]) -> Self {
        Self(Kind::Static(data))
    }
}

impl<const N: usize> From<&'static [u8; N]> for Buf {
    fn from(data: &'static [u8; N]) -> Self {
        Self(Kind::Static(data))
    }
}

impl From<&'static str> for Buf {
    fn from(text: &'static str) -> Self {
        Self(Kind::Static(text.as_bytes()))
    }
}

impl From<Bytes> for Buf {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Bytes(bytes))
    }
}

impl From<BytesMut> for Buf {
    fn from(bytes: BytesMut) -> Self {
        Self(Kind::BytesMut(bytes))
    }
}

/// Where the system can, files read into it and write from it without looking up its pages each
/// time: see [`rio::Region`](crate::rio::Region).
impl From<Slice> for Buf {
    fn from(slice: Slice) -> Self {
        Self(Kind::Slice(slice))
    }
}

impl From<Pooled> for Buf {
    fn from(pooled: Pooled) -> Self {
        Self(Kind::Pooled(pooled))
    }
}

/// A buffer of a port's pool, with the data a receive has put in. Dropping it gives it back.
pub struct Pooled {
    pool: Arc<Pool>,
    id: u16,
    length: usize,
}

impl Pooled {
    pub(crate) fn new(pool: Arc<Pool>, id: u32, length: usize) -> Self {
        let id = u16::try_from(id).unwrap_or(0);
        Self { pool, id, length }
    }
}

impl Deref for Pooled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer is ours until it is given back, the pool keeps it mapped, and the
        // first `length` bytes are initialised (all of them are: fresh mappings are zeroed).
        unsafe { std::slice::from_raw_parts(self.pool.address(self.id), self.length) }
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref; nobody else knows this buffer while we have it.
        unsafe { std::slice::from_raw_parts_mut(self.pool.address(self.id), self.length) }
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pooled({} of {} bytes)", self.length, self.pool.size())
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give_back(self.id);
    }
}

/// Memory at an aligned address, all of it initialised, of which the first `filled` bytes count.
struct Aligned {
    data: NonNull<u8>,
    layout: Layout,
    filled: usize,
}

// SAFETY: it owns its memory, as a box does.
unsafe impl Send for Aligned {}
// SAFETY: as for Send; what is shared can only be read.
unsafe impl Sync for Aligned {}

impl Aligned {
    fn new(bytes: usize, alignment: usize) -> Self {
        let layout = alignment.checked_next_power_of_two();
        let layout = layout.and_then(|power| Layout::from_size_align(bytes, power).ok());
        let Some(layout) = layout else { panic!("{bytes} bytes at {alignment}: too large") };
        let data = if bytes == 0 {
            // Any aligned address will do.
            std::ptr::without_provenance_mut(layout.align())
        } else {
            // SAFETY: the size is not zero.
            unsafe { alloc_zeroed(layout) }
        };
        let Some(data) = NonNull::new(data) else { handle_alloc_error(layout) };
        Self { data, layout, filled: bytes }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is ours and initialised, and `filled` is no more than its size.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.filled) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref, and borrowed for us alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.filled) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: allocated with this layout, and dropped once.
            unsafe { dealloc(self.data.as_ptr(), self.layout) };
        }
    }
}
