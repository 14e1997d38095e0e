//! Pipes: pairs for other threads and processes, and on Windows named ones.

use std::io;
#[cfg(windows)]
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    block::HandleShared,
    error::{Error, Result},
    port::Port,
    sys::{self, OwnedFile},
    tcp::{Stream, streams},
};
#[cfg(windows)]
use crate::{
    block::{Extras, Payload},
    error::ErrorKind,
    sys::pipe::{self, Instance},
};

/// Making pipes.
impl<K, M> Port<K, M>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    /// A pipe of which this port has the end that is received from. The other end is for a child
    /// process, as its standard output, or for a thread:
    ///
    /// ```
    /// use std::{fs::File, io::Write};
    /// use wharf::{Buf, Op, Port, Wait};
    ///
    /// let port = Port::<()>::new(1)?;
    /// let (stream, other) = port.pipe_from(())?;
    /// stream.recv(Buf::pooled())?;
    /// // For a child: Command::new(...).stdout(other)
    /// File::from(other).write_all(b"hello").unwrap();
    /// let Wait::Packet(packet) = port.wait() else { panic!() };
    /// let Op::Recv { buf, .. } = packet.op else { panic!() };
    /// assert_eq!(&*buf, b"hello");
    /// # Ok::<(), wharf::Error>(())
    /// ```
    ///
    /// The stream ends when the other end, and every copy of it that a child has, is closed.
    ///
    /// # Errors
    ///
    /// If the system has no descriptors or no memory for it, or `Closed` if the port is closed.
    #[doc(alias = "CreatePipe")]
    pub fn pipe_from(&self, key: K) -> Result<(Stream<K, M>, OwnedFile)> {
        self.pipe(true, key)
    }

    /// A pipe of which this port has the end that is sent to. The other end is for a child process,
    /// as its standard input, or for a thread; it reads to its end when the last clone of the
    /// [`Stream`] is gone.
    ///
    /// # Errors
    ///
    /// As for [`Self::pipe_from`].
    #[doc(alias = "CreatePipe")]
    pub fn pipe_to(&self, key: K) -> Result<(Stream<K, M>, OwnedFile)> {
        self.pipe(false, key)
    }

    fn pipe(&self, reads: bool, key: K) -> Result<(Stream<K, M>, OwnedFile)> {
        let failed = |error: io::Error| Error::from_io(&error, "pipe");
        let (ours, theirs) = sys::pipe(reads).map_err(failed)?;
        let shared = HandleShared::new(self.shared(), ours, key, streams)?;
        Ok((Stream::from_shared(shared), theirs))
    }

    /// Makes an instance of a named pipe and waits for a client: an [`Op::Connect`] packet says
    /// that one has connected to it, and its [`Stream`] is the connection with that client. Each
    /// instance is for one client: have as many waiting as clients may come at once, and make the
    /// next when a client has come.
    ///
    /// # Errors
    ///
    /// `AddressInUse` if somebody else serves the name, `QueueFull` if there are as many instances
    /// as [`PipeServer::instances`] says, `InvalidInput` for what is no name of a pipe.
    ///
    /// [`Op::Connect`]: crate::Op::Connect
    #[cfg(windows)]
    #[doc(alias = "CreateNamedPipe")]
    #[doc(alias = "ConnectNamedPipe")]
    pub fn serve_pipe(&self, server: &PipeServer, key: K) -> Result<Stream<K, M>> {
        let stream = Stream::from_shared(HandleShared::new(
            self.shared(),
            server.instance()?,
            key,
            streams,
        )?);
        stream.serve_pipe()?;
        Ok(stream)
    }

    /// Connects to a named pipe, at once and without a packet.
    ///
    /// # Errors
    ///
    /// `NotFound` if nobody serves it, `QueueFull` if all of its instances are taken: try again.
    #[cfg(windows)]
    #[doc(alias = "CreateFile")]
    pub fn connect_pipe(&self, name: impl AsRef<Path>, key: K) -> Result<Stream<K, M>> {
        let handle = pipe::open(check(name.as_ref(), "connect_pipe")?).map_err(|error| {
            let failed = Error::from_io(&error, "connect_pipe");
            if pipe::is_busy(&error) {
                return failed.with_remedy("all of its instances are taken: try again in a moment");
            }
            failed
        })?;
        Ok(Stream::from_shared(HandleShared::new(self.shared(), handle, key, streams)?))
    }
}

#[cfg(windows)]
impl<K, M> Stream<K, M> {
    /// Waits for the next client, on an instance of a named pipe that has been taken from the last
    /// one by [`Self::disconnect`]: an [`Op::Connect`](crate::Op::Connect) packet says that it has
    /// come.
    ///
    /// # Errors
    ///
    /// `Closed` or `QueueFull`.
    #[doc(alias = "ConnectNamedPipe")]
    pub fn serve_pipe(&self) -> Result<()> {
        let launched = self.shared.launch(Payload::ServePipe, Extras::default());
        launched.map(drop).map_err(|refused| refused.error)
    }
}

/// A named pipe that is served: its name, and how [`Port::serve_pipe`] makes its instances.
///
/// It is a stream of bytes in each direction. Its instances can be opened by whoever the system's
/// default lets do so: this user and administrators may read and write, others read.
///
/// ```
/// use wharf::{Buf, Op, PipeServer, Port, Wait};
///
/// let name = format!(r"\\.\pipe\wharf-doc-{}", std::process::id());
/// let server = PipeServer::new(&name);
/// let port = Port::<u32>::new(1)?;
/// port.serve_pipe(&server, 1)?;
/// let client = port.connect_pipe(&name, 2)?;
/// let Wait::Packet(packet) = port.wait() else { panic!() };
/// let Op::Connect { stream } = packet.op else { panic!() };
/// stream.recv(Buf::pooled())?;
/// client.start().silent().send("hello")?;
/// let Wait::Packet(packet) = port.wait() else { panic!() };
/// assert_eq!(packet.bytes()?, 5);
/// # Ok::<(), wharf::Error>(())
/// ```
#[cfg(windows)]
#[derive(Debug)]
pub struct PipeServer {
    name: PathBuf,
    instance: Instance,
    /// There has been one, so that the name is ours for as long as there is one.
    ours: AtomicBool,
}

#[cfg(windows)]
impl PipeServer {
    /// A pipe of this machine by its name, which begins with `\\.\pipe\`.
    #[must_use]
    pub fn new(name: impl AsRef<Path>) -> Self {
        Self {
            name: name.as_ref().to_owned(),
            instance: Instance::DUPLEX,
            ours: AtomicBool::new(false),
        }
    }

    /// How many instances there may be at once, from 1 to 254; otherwise, any number. The first
    /// instance decides.
    #[must_use]
    #[doc(alias = "PIPE_UNLIMITED_INSTANCES")]
    pub fn instances(mut self, most: u8) -> Self {
        self.instance.most = if most == 0 { 255 } else { most };
        self
    }

    /// Lets clients on other machines connect, too. Otherwise they are refused.
    #[must_use]
    #[doc(alias = "PIPE_REJECT_REMOTE_CLIENTS")]
    pub fn remote(mut self, allow: bool) -> Self {
        self.instance.remote = allow;
        self
    }

    /// How many bytes may be on their way in each direction before a send waits for the other end:
    /// 65,536 if nothing is said. The system may take more.
    #[must_use]
    pub fn buffer(mut self, bytes: u32) -> Self {
        self.instance.room = bytes;
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.name
    }

    fn instance(&self) -> Result<std::os::windows::io::OwnedHandle> {
        const ACTION: &str = "serve_pipe";
        let name = check(&self.name, ACTION)?;
        // Until one of ours is there, the name must be nobody else's.
        let first = !self.ours.load(Ordering::SeqCst);
        let made = Instance { first, ..self.instance }.create(name);
        let handle = made.map_err(|error| {
            let failed = Error::from_io(&error, ACTION);
            match failed.kind() {
                ErrorKind::PermissionDenied if first => failed
                    .as_kind(ErrorKind::AddressInUse)
                    .with_remedy("choose another name, or end the program that serves this one"),
                ErrorKind::QueueFull => {
                    failed.with_remedy("there are as many instances as there may be: end one first")
                }
                _ => failed,
            }
        })?;
        self.ours.store(true, Ordering::SeqCst);
        Ok(handle)
    }
}

/// The system would take other names for files.
#[cfg(windows)]
fn check<'a>(name: &'a Path, action: &'static str) -> Result<&'a Path> {
    let text = name.to_string_lossy();
    let mut parts = text.split('\\');
    let is_pipe = parts.next() == Some("")
        && parts.next() == Some("")
        && parts.next().is_some_and(|machine| !machine.is_empty())
        && parts.next().is_some_and(|part| part.eq_ignore_ascii_case("pipe"))
        && parts.next().is_some_and(|name| !name.is_empty());
    if is_pipe {
        return Ok(name);
    }
    Err(Error::of(ErrorKind::InvalidInput, action)
        .with_remedy(r"give the name of a pipe, such as \\.\pipe\name"))
}
