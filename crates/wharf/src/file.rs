//! Files: opening them, and how their operations are started.

use std::{fmt, fs, io, path::Path, sync::Arc};

use crate::{
    block::{HandleShared, OpId, Payload, Vectored},
    buf::Buf,
    error::{Error, ErrorKind, Refused, Result},
    port::Port,
    start::Start,
    sys::{self, Kind, OwnedFile},
};

/// A file, or a block device, that belongs to a port. Clones are the same file.
///
/// Every operation says at which position it works, as with the offset in an OVERLAPPED: there is
/// no current position. All operations in flight go to the system at once and are over in any
/// order, except for [`File::append`]: appends of one file are done in the order in which they
/// were started. Up to [`Builder::queue_limit`](crate::Builder::queue_limit) may be in flight, in
/// each of the port's running slots.
///
/// One file serves all workers: they share no memory of it on the way, as long as each starts its
/// operations from the packets that it takes. (The system itself notes with every read of an open
/// file where it was. To open it once for each worker saves two processors that, some 2 % of a read
/// from the page cache.) What matters more is who starts them: an operation's packet goes to the
/// worker in whose slot it was started, if that one waits or runs. So when many are to be in flight
/// on several processors, let each worker start its share.
///
/// An operation in flight holds a clone, and its packet brings it. The file is closed when the
/// last clone and the last operation on it are gone.
///
/// # Cancelling and deadlines
///
/// [`File::cancel`] and [`Start::deadline`] end what waits for its turn. What the disk has begun
/// cannot be called back: it completes as if nothing had been asked, and its packet comes then.
///
/// # Buffers
///
/// An operation owns its buffer, of any kind. One that is a slice of registered memory saves the
/// kernel work with each operation where the driver is io_uring: see
/// [`rio::Region`](crate::rio::Region#for-files).
///
/// ```
/// use wharf::{Buf, Op, OpenOptions, Port, Wait};
///
/// let port = Port::<()>::new(1)?;
/// # let directory = std::env::temp_dir();
/// # let path = directory.join(format!("wharf-doc-file-{}", std::process::id()));
/// let file = port.open(&path, OpenOptions::new().read(true).write(true).create(true), ())?;
/// file.write_at("completion ports", 0)?;
/// let Wait::Packet(written) = port.wait() else { panic!() };
/// assert_eq!(written.bytes()?, 16);
///
/// file.read_at(Buf::with_capacity(100), 11)?;
/// let Wait::Packet(read) = port.wait() else { panic!() };
/// let Op::Read { buf, .. } = read.op else { panic!() };
/// assert_eq!(&*buf, b"ports"); // less than fits: the end of the file
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct File<K: 'static, M: 'static = ()> {
    pub(crate) shared: Arc<HandleShared<K, M>>,
}

impl<K, M> Clone for File<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K, M> fmt::Debug for File<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("handle", &self.shared.raw.fd()).finish()
    }
}

/// Two clones of one file are equal.
impl<K, M> PartialEq for File<K, M> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.shared.whole(), other.shared.whole())
    }
}

impl<K, M> Eq for File<K, M> {}

/// How [`Port::open`] opens a file: those of [`std::fs::OpenOptions`], and direct I/O.
///
/// What only one system knows is set on the standard library's options, from which these are made:
///
/// ```
/// # #[cfg(unix)] {
/// use std::os::unix::fs::OpenOptionsExt;
///
/// let mut private = std::fs::OpenOptions::new();
/// private.write(true).create_new(true).mode(0o600);
/// # let port = wharf::Port::<()>::new(1)?;
/// # let path = std::env::temp_dir().join(format!("wharf-doc-private-{}", std::process::id()));
/// let file = port.open(&path, private, ())?;
/// # drop(file);
/// # std::fs::remove_file(path).unwrap();
/// # }
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "CreateFile")]
pub struct OpenOptions {
    options: fs::OpenOptions,
    direct: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl From<fs::OpenOptions> for OpenOptions {
    fn from(options: fs::OpenOptions) -> Self {
        Self { options, direct: false }
    }
}

impl OpenOptions {
    /// Nothing is set: at least reading, writing or appending has to be.
    #[must_use]
    pub fn new() -> Self {
        fs::OpenOptions::new().into()
    }

    /// To read from it.
    #[must_use]
    pub fn read(mut self, on: bool) -> Self {
        self.options.read(on);
        self
    }

    /// To write to it.
    #[must_use]
    pub fn write(mut self, on: bool) -> Self {
        self.options.write(on);
        self
    }

    /// To write to its end. Every write to it goes there, whatever position it names.
    #[must_use]
    pub fn append(mut self, on: bool) -> Self {
        self.options.append(on);
        self
    }

    /// Empties it.
    #[must_use]
    pub fn truncate(mut self, on: bool) -> Self {
        self.options.truncate(on);
        self
    }

    /// Makes it if there is none.
    #[must_use]
    pub fn create(mut self, on: bool) -> Self {
        self.options.create(on);
        self
    }

    /// Makes it, and fails if there is one.
    #[must_use]
    pub fn create_new(mut self, on: bool) -> Self {
        self.options.create_new(on);
        self
    }

    /// Reads and writes past the system's page cache. Positions, lengths and addresses of buffers
    /// must then be multiples of what [`File::alignment`] says; [`Buf::aligned`] makes such
    /// buffers, and [`rio::Region::aligned`](crate::rio::Region::aligned) many of them in
    /// registered memory.
    #[must_use]
    #[doc(alias = "FILE_FLAG_NO_BUFFERING")]
    #[doc(alias = "O_DIRECT")]
    pub fn direct(mut self, on: bool) -> Self {
        self.direct = on;
        self
    }

    fn open(&self, path: &Path) -> io::Result<fs::File> {
        let mut options = self.options.clone();
        sys::file::prepare(&mut options, self.direct);
        options.open(path)
    }
}

impl<K, M> Port<K, M>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    /// Opens a file. This is done at once, not by an operation with a packet, and may wait for the
    /// disk as on every system; a worker that opens files on a slow one does so within
    /// [`Port::blocking`].
    ///
    /// # Errors
    ///
    /// `NotFound`, `PermissionDenied`, `AlreadyExists`; `IsADirectory`; `InvalidInput` for options
    /// that make no sense together, or where the file system has no direct I/O; `OutOfDescriptors`;
    /// `Closed`.
    #[doc(alias = "CreateFile")]
    pub fn open(
        &self,
        path: impl AsRef<Path>,
        options: impl Into<OpenOptions>,
        key: K,
    ) -> Result<File<K, M>> {
        let options = options.into();
        let file = options.open(path.as_ref()).map_err(|error| {
            let built = Error::from_io(&error, "open");
            if options.direct && built.kind() == ErrorKind::InvalidInput {
                return built.with_remedy("this file system has no direct I/O: open it without");
            }
            built
        })?;
        Ok(File::associate(self, file, key)?)
    }
}

fn positioned(kind: Kind) -> Result<()> {
    match kind {
        Kind::File => Ok(()),
        Kind::Directory => Err(Error::of(ErrorKind::IsADirectory, "associate")),
        Kind::Socket | Kind::Pipe => Err(Error::of(ErrorKind::InvalidInput, "associate")
            .with_remedy("what has no positions is a stream: see Port::associate")),
    }
}

fn refused(refused: Refused<Payload>) -> Refused<Buf> {
    let Refused { error, value } = refused;
    let value = match value {
        Payload::Read(buf, _) | Payload::Write(buf, _) => buf,
        _ => Buf::default(),
    };
    Refused { error, value }
}

fn refused_vectored(refused: Refused<Payload>) -> Refused<Vec<Buf>> {
    let Refused { error, value } = refused;
    let value = match value {
        Payload::ReadVectored(vectored, _) | Payload::WriteVectored(vectored, _) => vectored.bufs,
        _ => Vec::new(),
    };
    Refused { error, value }
}

impl<K, M> Start<'_, File<K, M>, M> {
    /// See [`File::read_at`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read_at(self, buf: impl Into<Buf>, offset: u64) -> Result<OpId, Refused<Buf>> {
        let payload = Payload::Read(buf.into(), offset);
        self.handle.shared.launch_here(payload, self.extras).map_err(refused)
    }

    /// See [`File::read_vectored_at`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read_vectored_at(self, bufs: Vec<Buf>, offset: u64) -> Result<OpId, Refused<Vec<Buf>>> {
        let payload = Payload::ReadVectored(Box::new(Vectored::new(bufs)), offset);
        self.handle.shared.launch_here(payload, self.extras).map_err(refused_vectored)
    }

    /// See [`File::write_at`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write_at(self, buf: impl Into<Buf>, offset: u64) -> Result<OpId, Refused<Buf>> {
        self.write(buf.into(), Some(offset))
    }

    /// See [`File::write_vectored_at`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write_vectored_at(self, bufs: Vec<Buf>, offset: u64) -> Result<OpId, Refused<Vec<Buf>>> {
        self.write_vectored(bufs, Some(offset))
    }

    /// See [`File::append`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn append(self, buf: impl Into<Buf>) -> Result<OpId, Refused<Buf>> {
        self.write(buf.into(), None)
    }

    /// See [`File::append_vectored`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn append_vectored(self, bufs: Vec<Buf>) -> Result<OpId, Refused<Vec<Buf>>> {
        self.write_vectored(bufs, None)
    }

    /// See [`File::sync_all`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sync_all(self) -> Result<OpId> {
        self.plain(Payload::Sync { data_only: false })
    }

    /// See [`File::sync_data`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn sync_data(self) -> Result<OpId> {
        self.plain(Payload::Sync { data_only: true })
    }

    /// See [`File::allocate`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn allocate(self, offset: u64, length: u64) -> Result<OpId> {
        self.plain(Payload::Allocate { offset, length })
    }

    /// See [`File::set_len`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_len(self, length: u64) -> Result<OpId> {
        self.plain(Payload::Truncate(length))
    }

    fn write(self, buf: Buf, offset: Option<u64>) -> Result<OpId, Refused<Buf>> {
        let payload = Payload::Write(buf, offset);
        self.put(payload, offset).map_err(refused)
    }

    fn write_vectored(
        self,
        bufs: Vec<Buf>,
        offset: Option<u64>,
    ) -> Result<OpId, Refused<Vec<Buf>>> {
        let payload = Payload::WriteVectored(Box::new(Vectored::new(bufs)), offset);
        self.put(payload, offset).map_err(refused_vectored)
    }

    /// Appends have an order.
    fn put(self, payload: Payload, offset: Option<u64>) -> Result<OpId, Refused<Payload>> {
        let shared = &self.handle.shared;
        match offset {
            Some(_) => shared.launch_here(payload, self.extras),
            None => shared.launch_in_order(payload, self.extras),
        }
    }

    fn plain(self, payload: Payload) -> Result<OpId> {
        self.handle.shared.launch_here(payload, self.extras).map_err(|refused| refused.error)
    }
}

impl<K, M> File<K, M> {
    pub(crate) fn from_shared(shared: Arc<HandleShared<K, M>>) -> Self {
        Self { shared }
    }

    /// Associates a file of the standard library's, or any other descriptor of a file or a block
    /// device, with a port. It may belong to several, because its operations need no order.
    ///
    /// # Errors
    ///
    /// `IsADirectory`, `InvalidInput` for what has no positions (a pipe, a socket: see
    /// [`Port::associate`]), `Closed` if the port is closed. The descriptor comes back.
    #[doc(alias = "CreateIoCompletionPort")]
    pub fn associate(
        port: &Port<K, M>,
        file: impl Into<OwnedFile>,
        key: K,
    ) -> Result<Self, Refused<OwnedFile>>
    where
        K: Send + Sync,
        M: Send,
    {
        HandleShared::new(port.shared(), file.into(), key, positioned).map(Self::from_shared)
    }

    /// The per-handle data it was associated under.
    pub fn key(&self) -> &K {
        self.shared.key()
    }

    /// An operation with a context, a deadline, without a packet, or to be cancelled.
    pub fn start(&self) -> Start<'_, Self, M> {
        Start::of(self)
    }

    /// Reads from a position on, as much as fits into the buffer, whose contents are replaced; into
    /// one of the pool ([`Buf::pooled`]) at most the pool's size. The packet is an
    /// [`Op::Read`](crate::Op::Read). Less than fits is read only where the file ends, and zero
    /// bytes beyond its end.
    ///
    /// # Errors
    ///
    /// `Closed`; `QueueFull`; `InvalidInput` for a buffer that cannot be written to or has no room,
    /// or a position beyond 2^63. The buffer comes back.
    #[doc(alias = "ReadFile")]
    pub fn read_at(&self, buf: impl Into<Buf>, offset: u64) -> Result<(), Refused<Buf>> {
        self.start().read_at(buf, offset).map(drop)
    }

    /// Reads from a position on into several buffers, at most 1,024, one after the other. The
    /// packet is an [`Op::ReadVectored`](crate::Op::ReadVectored).
    ///
    /// # Errors
    ///
    /// As for [`Self::read_at`]; and `InvalidInput` for too many buffers, or one of the pool.
    #[doc(alias = "ReadFileScatter")]
    pub fn read_vectored_at(&self, bufs: Vec<Buf>, offset: u64) -> Result<(), Refused<Vec<Buf>>> {
        self.start().read_vectored_at(bufs, offset).map(drop)
    }

    /// Writes all bytes of a buffer at a position. The packet is an
    /// [`Op::Write`](crate::Op::Write); if it fails,
    /// [`Packet::bytes`](crate::Packet#structfield.bytes) says how many were written before.
    ///
    /// # Errors
    ///
    /// `Closed`; `QueueFull`; `InvalidInput` for a position beyond 2^63. The buffer comes back.
    #[doc(alias = "WriteFile")]
    pub fn write_at(&self, buf: impl Into<Buf>, offset: u64) -> Result<(), Refused<Buf>> {
        self.start().write_at(buf, offset).map(drop)
    }

    /// Writes all bytes of several buffers, at most 1,024, from a position on. The packet is an
    /// [`Op::WriteVectored`](crate::Op::WriteVectored).
    ///
    /// # Errors
    ///
    /// As for [`Self::write_at`]; and `InvalidInput` for too many buffers.
    #[doc(alias = "WriteFileGather")]
    pub fn write_vectored_at(&self, bufs: Vec<Buf>, offset: u64) -> Result<(), Refused<Vec<Buf>>> {
        self.start().write_vectored_at(bufs, offset).map(drop)
    }

    /// Writes all bytes of a buffer to where the file ends then. Appends are done in the order in
    /// which they were started. The packet is an [`Op::Write`](crate::Op::Write).
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`; the buffer comes back. The packet says `Unsupported` where the
    /// system appends only to files that were opened with [`OpenOptions::append`]: on epoll, before
    /// Linux 4.16 and under some emulators.
    #[doc(alias = "FILE_APPEND_DATA")]
    pub fn append(&self, buf: impl Into<Buf>) -> Result<(), Refused<Buf>> {
        self.start().append(buf).map(drop)
    }

    /// The same with several buffers, at most 1,024. The packet is an
    /// [`Op::WriteVectored`](crate::Op::WriteVectored).
    ///
    /// # Errors
    ///
    /// As for [`Self::append`]; and `InvalidInput` for too many buffers.
    pub fn append_vectored(&self, bufs: Vec<Buf>) -> Result<(), Refused<Vec<Buf>>> {
        self.start().append_vectored(bufs).map(drop)
    }

    /// Brings what has been written to the disk: all writes whose packets have come, not those in
    /// flight. The packet is an [`Op::Sync`](crate::Op::Sync).
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "FlushFileBuffers")]
    #[doc(alias = "fsync")]
    pub fn sync_all(&self) -> Result<()> {
        self.start().sync_all().map(drop)
    }

    /// The same without what is not needed to find the data again, its times for example.
    ///
    /// # Errors
    ///
    /// As for [`Self::sync_all`].
    #[doc(alias = "fdatasync")]
    pub fn sync_data(&self) -> Result<()> {
        self.start().sync_data().map(drop)
    }

    /// Makes sure that the disk has room for a part of the file, which grows if it is smaller. The
    /// packet is an [`Op::Allocate`](crate::Op::Allocate); it fails with `StorageFull`, or with
    /// `Unsupported` where the file system cannot.
    ///
    /// # Errors
    ///
    /// `Closed`; `QueueFull`; `InvalidInput` for a part that ends beyond 2^63.
    #[doc(alias = "fallocate")]
    pub fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.start().allocate(offset, length).map(drop)
    }

    /// Cuts the file to a size, or makes it grow to that by a hole. The packet is an
    /// [`Op::SetLen`](crate::Op::SetLen).
    ///
    /// # Errors
    ///
    /// `Closed`; `QueueFull`; `InvalidInput` for a size beyond 2^63.
    #[doc(alias = "SetEndOfFile")]
    #[doc(alias = "ftruncate")]
    pub fn set_len(&self, length: u64) -> Result<()> {
        self.start().set_len(length).map(drop)
    }

    /// Size, times, permissions and the like, asked for at once.
    ///
    /// # Errors
    ///
    /// What the system says.
    #[doc(alias = "GetFileInformationByHandle")]
    pub fn metadata(&self) -> Result<fs::Metadata> {
        let found = sys::file::metadata(self.shared.raw.fd());
        found.map_err(|error| Error::from_io(&error, "metadata"))
    }

    /// What positions, lengths and addresses of buffers must be multiples of, in bytes: 1, or for
    /// a file that was opened for direct I/O what the system tells (4,096 if it does not).
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn alignment(&self) -> Result<usize> {
        let found = sys::file::alignment(self.shared.raw.fd());
        found.map_err(|error| Error::from_io(&error, "alignment"))
    }

    /// Asks for one operation to be cancelled, from any thread; see [`File`]. True: it was in
    /// flight.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel(&self, id: OpId) -> bool {
        self.shared.cancel(id)
    }

    /// Asks for everything in flight on this file to be cancelled. Returns how many operations
    /// that were.
    #[doc(alias = "CancelIoEx")]
    pub fn cancel_all(&self) -> usize {
        self.shared.cancel_all()
    }

    /// Closes the file for all who hold it: nothing more can be started, and what is in flight is
    /// cancelled or completes. The descriptor itself is closed with the last clone.
    #[doc(alias = "CloseHandle")]
    pub fn close(&self) {
        self.shared.close();
    }
}
