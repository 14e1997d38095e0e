//! A part of a file to a socket, as one operation.

use std::{fmt, fs, sync::Arc};

use crate::{
    block::{OpId, Payload, range},
    buf::Buf,
    error::{Error, Refused, Result},
    raw::{Slice, Transmission},
    start::Start,
    sys,
    tcp::Stream,
};

/// What [`Stream::transmit`] sends: a head, a part of a file, and a tail.
///
/// The packet brings it back, with its file and its buffers, and it can be sent again.
///
/// ```
/// use std::{fs, net::{TcpListener, TcpStream}, io::Read};
/// use wharf::{Port, Transmit, Wait};
///
/// # let path = std::env::temp_dir().join(format!("wharf-doc-transmit-{}", std::process::id()));
/// fs::write(&path, "a file's content")?;
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let mut peer = TcpStream::connect(listener.local_addr()?)?;
/// # let socket = listener.accept()?.0;
/// let port = Port::<()>::new(1)?;
/// let stream = port.associate(socket, ())?;
/// let file = fs::File::open(&path)?;
/// stream.transmit(Transmit::new(file).head("< ").part(2, 4).tail(" >")).map_err(|it| it.error)?;
///
/// let Wait::Packet(packet) = port.wait() else { panic!() };
/// assert_eq!(packet.bytes()?, 8);
/// let mut received = [0; 8];
/// peer.read_exact(&mut received)?;
/// assert_eq!(&received, b"< file >");
/// # fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "TRANSMIT_FILE_BUFFERS")]
pub struct Transmit(Box<Parts>);

struct Parts {
    file: Arc<fs::File>,
    offset: u64,
    length: Option<u64>,
    head: Buf,
    tail: Buf,
    transmission: Transmission,
}

impl fmt::Debug for Transmit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmit")
            .field("head", &self.0.head)
            .field("file", &self.0.file)
            .field("offset", &self.0.offset)
            .field("length", &self.0.length)
            .field("tail", &self.0.tail)
            .finish()
    }
}

impl Transmit {
    /// All of a file, from its start to where it ends when the operation is started. The file
    /// need not be associated with a port, and may be shared: its position is neither used nor
    /// moved.
    #[must_use]
    pub fn new(file: impl Into<Arc<fs::File>>) -> Self {
        let nothing = Slice::new(std::ptr::null_mut(), 0);
        let file = file.into();
        let transmission = Transmission::new(nothing, sys::file::raw(&file), 0, 0, nothing);
        let (head, tail) = (Buf::from(""), Buf::from(""));
        Self(Box::new(Parts { file, offset: 0, length: None, head, tail, transmission }))
    }

    /// Sends bytes before the file's.
    #[must_use]
    pub fn head(mut self, buf: impl Into<Buf>) -> Self {
        self.0.head = buf.into();
        self
    }

    /// Sends bytes after the file's.
    #[must_use]
    pub fn tail(mut self, buf: impl Into<Buf>) -> Self {
        self.0.tail = buf.into();
        self
    }

    /// Only so many bytes of the file, from a position on. If the file turns out to have less, the
    /// operation fails with [`UnexpectedEnd`](crate::ErrorKind::UnexpectedEnd), after what there
    /// is has been sent: a peer that was promised more must not take the next thing for it.
    #[must_use]
    pub fn part(mut self, offset: u64, length: u64) -> Self {
        self.0.offset = offset;
        self.0.length = Some(length);
        self
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<fs::File> {
        &self.0.file
    }

    /// Gives back the head and the tail, to use their buffers again.
    #[must_use]
    pub fn into_bufs(self) -> (Buf, Buf) {
        (self.0.head, self.0.tail)
    }

    /// Prepares the operation, which stays at this address as long as `self` is not changed.
    pub(crate) fn prepare(&mut self) -> Result<*mut Transmission> {
        let parts = &mut *self.0;
        let length = match parts.length {
            Some(length) => length,
            None => {
                let metadata = parts.file.metadata();
                let length = metadata.map_err(|error| Error::from_io(&error, "transmit"))?.len();
                length.saturating_sub(parts.offset)
            }
        };
        let offset = range("transmit", parts.offset, length)?;
        let slice = |buf: &Buf| Slice::new(buf.as_ptr().cast_mut(), buf.len());
        let (head, tail) = (slice(&parts.head), slice(&parts.tail));
        parts.transmission =
            Transmission::new(head, sys::file::raw(&parts.file), offset, length, tail);
        Ok(&raw mut parts.transmission)
    }
}

impl<K, M> Start<'_, Stream<K, M>, M> {
    /// See [`Stream::transmit`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn transmit(self, transmit: Transmit) -> Result<OpId, Refused<Transmit>> {
        let launched = self.handle.shared.launch(Payload::Transmit(transmit), self.extras);
        launched.map_err(|refused| {
            let Payload::Transmit(value) = refused.value else {
                unreachable!("what was handed in comes back")
            };
            Refused { error: refused.error, value }
        })
    }
}

impl<K, M> Stream<K, M> {
    /// Sends a head, a part of a file, and a tail, as one operation, in turn with other sends. The
    /// packet is an [`Op::Transmit`](crate::Op::Transmit), and says how many bytes were sent, all
    /// together. Nothing of the file is kept in the program's memory: the system passes its own
    /// pages on, or it goes through a few buffers of the port's, which a peer that does not read
    /// does not hold. What is changed in the file before the peer has it may arrive changed or not.
    ///
    /// # Errors
    ///
    /// `Closed`; `QueueFull`; `InvalidInput` for a part that ends beyond 2^63. What was to be sent
    /// comes back. What the file says when it is read (`IsADirectory`, say) comes with the packet.
    #[doc(alias = "TransmitFile")]
    #[doc(alias = "sendfile")]
    pub fn transmit(&self, transmit: Transmit) -> Result<(), Refused<Transmit>> {
        self.start().transmit(transmit).map(drop)
    }
}
