//! The port with types: keys, contexts, packets, owners.

use std::{
    cell::Cell,
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use slab::Slab;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    block::{Block, HandleShared, Payload},
    buf::Buf,
    datagram::{Ancillary, Datagram},
    driver::Driver,
    error::{Error, ErrorKind, Refused, Result},
    file::File,
    raw::{
        self, Completion, Operation, Taking, Wait,
        port::{Setup, deadline, left},
    },
    stats::Stats,
    sync::lock,
    sys::{self, OwnedDescriptor, OwnedSocket},
    tcp::{Incoming, Listener, Stream, streams},
    transmit::Transmit,
    udp::{self, IcmpError, Received, UdpSocket},
    workers::Workers,
};

/// How long dropping a port waits for operations that the kernel does not let go.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Builds a port that is not like [`Port::new`]'s.
///
/// ```
/// let port: wharf::Port<u32> = wharf::Builder::new().concurrency(2).pool(64, 16 << 10).build()?;
/// assert_eq!(port.stats().concurrency, 2);
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    setup: Setup,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A port as [`Port::new`]`(0)` makes it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            setup: Setup {
                driver: Driver::Auto,
                concurrency: 0,
                submissions: 512,
                pool_count: 4096,
                pool_size: 8 << 10,
                datagram_pool_count: 512,
                datagram_pool_size: udp::BUFFER,
                queue_limit: 1024,
                post_limit: 1 << 20,
                without_provided_buffers: false,
                without_cooperative: false,
                without_offload: false,
                watch: true,
            },
        }
    }

    /// The facility of the system that is to carry the port, instead of the best one there is.
    #[must_use]
    pub fn driver(mut self, driver: Driver) -> Self {
        self.setup.driver = driver;
        self
    }

    /// The concurrency value: how many workers may run at once. 0, the default: as many as there
    /// are processors for this process, its affinity and its control group's quota counted. At
    /// most 1,024.
    #[must_use]
    pub fn concurrency(mut self, workers: usize) -> Self {
        self.setup.concurrency = workers;
        self
    }

    /// The pool of each running slot: how many buffers, rounded up to a power of two of at most
    /// 32,768, and how many bytes in each. By default at most 4,096 of 8 KiB. A pool begins with
    /// 32 buffers and grows by one whenever a receive finds none: it has as many as were ever
    /// needed at the same time. At its full size receives wait until a buffer comes back.
    #[must_use]
    pub fn pool(mut self, buffers: usize, bytes: usize) -> Self {
        let buffers = buffers.clamp(1, 32_768).next_power_of_two();
        self.setup.pool_count = u16::try_from(buffers).unwrap_or(32_768);
        self.setup.pool_size = bytes.clamp(1, 1 << 30);
        self
    }

    /// The same for datagrams: by default at most 512 of 65,600 bytes, so that any datagram fits,
    /// and as many as the system gives at once. Memory that no datagram has needed is not touched.
    #[must_use]
    pub fn datagram_pool(mut self, buffers: usize, bytes: usize) -> Self {
        let buffers = buffers.clamp(1, 32_768).next_power_of_two();
        self.setup.datagram_pool_count = u16::try_from(buffers).unwrap_or(32_768);
        self.setup.datagram_pool_size = bytes.clamp(1, 1 << 30);
        self
    }

    /// The entries of each running slot's submission queue, rounded up to a power of two; its
    /// completion queue has eight times as many. By default 512. This bounds how many submissions
    /// share a system call, not how many operations are in flight. Where too little memory may be
    /// locked the queues are made smaller.
    #[must_use]
    pub fn ring_entries(mut self, entries: u32) -> Self {
        self.setup.submissions = entries.clamp(8, 4096).next_power_of_two();
        self
    }

    /// How many operations may wait behind another in one direction of a handle, and how many of
    /// a file may be in flight, in each running slot. By default 1,024; one more is refused with
    /// `QueueFull`.
    #[must_use]
    pub fn queue_limit(mut self, operations: u32) -> Self {
        self.setup.queue_limit = operations;
        self
    }

    /// How many posted packets may wait. By default 1,048,576; one more is refused with
    /// `QueueFull`.
    #[must_use]
    pub fn post_limit(mut self, packets: usize) -> Self {
        self.setup.post_limit = packets;
        self
    }

    /// Whether undeclared blocks are watched for. By default they are.
    #[must_use]
    pub fn watch(mut self, on: bool) -> Self {
        self.setup.watch = on;
        self
    }

    /// Does without what kernels before Linux 5.19 do not have, even where it is there: for
    /// tests of the ways round it.
    #[must_use]
    pub fn pretend_old_kernel(mut self) -> Self {
        self.setup.without_provided_buffers = true;
        self.setup.without_cooperative = true;
        self.setup.without_offload = true;
        self
    }

    /// Makes the port.
    ///
    /// # Errors
    ///
    /// Where io_uring is refused, or memory or descriptors for it are short; the error names the
    /// remedy.
    pub fn build<K, M>(self) -> Result<Port<K, M>>
    where
        K: Send + Sync + 'static,
        M: Send + 'static,
    {
        let raw = self.build_raw()?;
        // SAFETY: only blocks of this port are kept in it, idle ones, which hold nothing of the
        // user's; and only blocks are started on its handles.
        unsafe {
            raw.shared().set_hooks(raw::port::Hooks {
                free: Block::<K, M>::free,
                has_sent: Block::<K, M>::has_sent,
            });
        }
        let shared = Arc::new(PortShared {
            raw,
            handles: Mutex::new(Slab::new()),
            notifiers: Mutex::new(Vec::new()),
        });
        Ok(Port { owner: Arc::new(Owner { shared }) })
    }

    /// Makes a port of the raw layer.
    ///
    /// # Errors
    ///
    /// As for [`Self::build`].
    pub fn build_raw(self) -> Result<raw::Port> {
        raw::Port::with(self.setup)
    }
}

/// A port as its handles share it.
pub(crate) struct PortShared<K: 'static, M: 'static> {
    pub(crate) raw: raw::Port,
    pub(crate) handles: Mutex<Slab<Weak<HandleShared<K, M>>>>,
    /// What posts values when something happens: to be closed with the port.
    pub(crate) notifiers: Mutex<Vec<Weak<raw::Notifier>>>,
}

impl<K, M> fmt::Debug for PortShared<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("stats", &self.raw.stats()).finish()
    }
}

/// A completion port: one queue of packets for any number of sockets, taken by a few threads of
/// which no more run at once than the concurrency value says.
///
/// `K` is the per-handle data, the *completion key*: every handle is associated under one, and
/// every packet of its operations leads back to it. `M` is the per-operation data: an operation
/// may carry one ([`Start::context`](crate::Start::context)), and [`Port::post`] posts one.
///
/// Clones are the same port. When the last is dropped, or at [`Port::close`], waits end with
/// [`Wait::Closed`]. The last one dropped also cancels everything in flight and waits for it, so
/// that every buffer is freed when the kernel is done with it and not before; should the kernel
/// keep one for more than five seconds, its memory is leaked, and that is logged.
///
/// # Which worker gets a packet
///
/// Packets leave in the order in which they came, each to one worker. A posted packet releases
/// the worker that began to wait last. An operation's packet goes to the worker in whose running
/// slot it was started, if that one waits or runs, so that a connection stays where it is in the
/// processor's cache; idle workers take what piles up elsewhere.
///
/// # When operations reach the kernel
///
/// What a worker starts is submitted together with its next wait, in one system call; also when it
/// declares a block, when another worker notices that it is stuck, and after 256 packets at the
/// latest. On threads that are no workers, operations are submitted as they are started. So a
/// worker must not start something and then wait for its effect by other means than a packet,
/// unless it does so within [`Port::blocking`].
///
/// # Blocking
///
/// A worker that blocks holds one of the running slots. [`Port::blocking`] gives it to another
/// worker at once. Where a handler blocks without saying so, another worker notices within about
/// a millisecond, if packets wait, and takes the slot (within 6 ms, where workers wait for
/// processors because others use them, too); there must be more workers than the concurrency value
/// for that, twice as many being the classic advice. While blocks keep coming it notices within
/// 0.2 ms. A worker that has lost its slot runs on when it wakes up, so that more
/// run than the limit until one of them waits.
#[doc(alias = "CreateIoCompletionPort")]
pub struct Port<K: 'static, M: 'static = ()> {
    owner: Arc<Owner<K, M>>,
}

struct Owner<K: 'static, M: 'static> {
    shared: Arc<PortShared<K, M>>,
}

impl<K, M> Clone for Port<K, M> {
    fn clone(&self) -> Self {
        Self { owner: self.owner.clone() }
    }
}

impl<K, M> fmt::Debug for Port<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.owner.shared.fmt(f)
    }
}

/// What a worker takes from a port: an operation that is over, or a posted value.
#[derive(Debug)]
#[non_exhaustive]
#[doc(alias = "OVERLAPPED_ENTRY")]
pub struct Packet<K: 'static, M: 'static = ()> {
    /// Which operation, with its handle and its buffer.
    pub op: Op<K, M>,
    /// How many bytes were moved, or what the operation failed with.
    pub result: Result<usize>,
    /// How many bytes were moved, also by an operation that then failed.
    pub bytes: usize,
    /// What [`Start::context`](crate::Start::context) gave the operation.
    pub context: Option<M>,
    /// The operation goes on, and gives more packets.
    pub more: bool,
    /// On a handle in serial mode: lets the next packet of the handle out when it is dropped.
    pub turn: Turn<K, M>,
}

impl<K, M> Packet<K, M> {
    /// How many bytes were moved.
    ///
    /// # Errors
    ///
    /// What the operation failed with.
    pub fn bytes(&self) -> Result<usize> {
        self.result
    }
}

/// Which operation a packet is of. Operations that failed look the same: [`Packet::result`] says
/// so, and the buffer is there all the same.
#[derive(Debug)]
#[non_exhaustive]
pub enum Op<K: 'static, M: 'static = ()> {
    /// A connection was accepted.
    #[doc(alias = "AcceptEx")]
    Accept {
        /// Who listens.
        listener: Listener<K, M>,
        /// The connection; none if the accept failed.
        incoming: Option<Incoming<K, M>>,
        /// The first data, or the unused buffer, of an accept that was given one.
        first: Option<Buf>,
    },
    /// A connect is over.
    #[doc(alias = "ConnectEx")]
    Connect {
        /// The connection. If the connect failed it may be tried again.
        stream: Stream<K, M>,
    },
    /// A receive is over. Zero bytes: the peer has ended its direction, or a receive without room
    /// has found something to receive.
    #[doc(alias = "WSARecv")]
    Recv {
        /// The connection.
        stream: Stream<K, M>,
        /// The buffer, holding what was received.
        buf: Buf,
    },
    /// A send is over: everything has been given to the kernel, or the result says why not and
    /// [`Packet::bytes`](Packet#structfield.bytes) how much has.
    #[doc(alias = "WSASend")]
    Send {
        /// The connection.
        stream: Stream<K, M>,
        /// The buffer, as it was.
        buf: Buf,
    },
    /// The same for a vectored send.
    SendVectored {
        /// The connection.
        stream: Stream<K, M>,
        /// The buffers, as they were.
        bufs: Vec<Buf>,
    },
    /// A direction, or both, have been shut down, after every send that was started before.
    #[doc(alias = "DisconnectEx")]
    Shutdown {
        /// The connection.
        stream: Stream<K, M>,
    },
    /// A part of a file has been given to the kernel, or the result says why not and
    /// [`Packet::bytes`](Packet#structfield.bytes) how much of it, head and tail counted.
    #[doc(alias = "TransmitFile")]
    Transmit {
        /// The connection.
        stream: Stream<K, M>,
        /// What was sent.
        transmit: Transmit,
    },
    /// A receive of bytes and descriptors is over. Zero bytes: the peer has ended its direction.
    #[doc(alias = "SCM_RIGHTS")]
    RecvMessage {
        /// The connection.
        stream: Stream<K, M>,
        /// The buffer, holding what was received.
        buf: Buf,
        /// What came along.
        message: Ancillary,
    },
    /// A datagram was received over a Unix socket.
    RecvDatagram {
        /// The socket.
        socket: Datagram<K, M>,
        /// The buffer, holding the datagram.
        buf: Buf,
        /// Where it came from, and what came along.
        message: Ancillary,
    },
    /// A datagram has been given to the kernel.
    SendDatagram {
        /// The socket.
        socket: Datagram<K, M>,
        /// The buffer, as it was.
        buf: Buf,
    },
    /// A read is over. Less than fits into the buffer: the file ends there. Zero bytes: it ends
    /// before.
    #[doc(alias = "ReadFile")]
    Read {
        /// The file.
        file: File<K, M>,
        /// The buffer, holding what was read.
        buf: Buf,
    },
    /// The same for a vectored read.
    #[doc(alias = "ReadFileScatter")]
    ReadVectored {
        /// The file.
        file: File<K, M>,
        /// The buffers, filled one after the other.
        bufs: Vec<Buf>,
    },
    /// A write is over: all has been written, or the result says why not and
    /// [`Packet::bytes`](Packet#structfield.bytes) how much has.
    #[doc(alias = "WriteFile")]
    Write {
        /// The file.
        file: File<K, M>,
        /// The buffer, as it was.
        buf: Buf,
    },
    /// The same for a vectored write.
    #[doc(alias = "WriteFileGather")]
    WriteVectored {
        /// The file.
        file: File<K, M>,
        /// The buffers, as they were.
        bufs: Vec<Buf>,
    },
    /// What was written is on the disk.
    #[doc(alias = "FlushFileBuffers")]
    Sync {
        /// The file.
        file: File<K, M>,
    },
    /// The disk has room for a part of a file.
    Allocate {
        /// The file.
        file: File<K, M>,
    },
    /// A file has its new size.
    #[doc(alias = "SetEndOfFile")]
    SetLen {
        /// The file.
        file: File<K, M>,
    },
    /// A receive of a datagram is over.
    #[doc(alias = "WSARecvFrom")]
    RecvFrom {
        /// The socket.
        socket: UdpSocket<K, M>,
        /// The buffer, holding the datagram, or several: see [`Received::datagrams`].
        buf: Buf,
        /// Who sent it, and what else is known of it. None if the receive failed, or was one
        /// without room and has found something to receive.
        received: Option<Received>,
    },
    /// A send of a datagram, or of several, is over: the kernel has it.
    #[doc(alias = "WSASendTo")]
    SendTo {
        /// The socket.
        socket: UdpSocket<K, M>,
        /// The buffer, as it was.
        buf: Buf,
    },
    /// What the network says of a datagram that was sent earlier.
    Icmp {
        /// The socket.
        socket: UdpSocket<K, M>,
        /// What it says. None if there is no more to come, and the result says why.
        error: Option<IcmpError>,
    },
    /// A value that was posted, or that a completion queue of Registered I/O was given to say that
    /// it has something.
    #[doc(alias = "PostQueuedCompletionStatus")]
    Posted(M),
}

/// See [`Packet::turn`].
#[derive(Debug)]
pub struct Turn<K: 'static, M: 'static>(Option<Arc<HandleShared<K, M>>>);

impl<K, M> Drop for Turn<K, M> {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.raw.release();
        }
    }
}

impl<K, M> Port<K, M>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    /// A port on which at most `concurrency` workers run at once; 0: as many as there are
    /// processors for this process.
    ///
    /// # Errors
    ///
    /// As for [`Builder::build`].
    pub fn new(concurrency: usize) -> Result<Self> {
        Builder::new().concurrency(concurrency).build()
    }

    pub(crate) fn shared(&self) -> &Arc<PortShared<K, M>> {
        &self.owner.shared
    }

    // ---- Handles ------------------------------------------------------------------------

    /// Listens on an address, with a backlog of 4,096. The address may be reused at once after
    /// the program has ended, and by nobody before (SO_REUSEADDR; on Windows
    /// SO_EXCLUSIVEADDRUSE), and connections send small messages without delay (TCP_NODELAY).
    ///
    /// # Errors
    ///
    /// If the address is not usable, in use, or not this machine's.
    pub fn listen(&self, address: impl ToSocketAddrs, key: K) -> Result<Listener<K, M>> {
        const NAME: &str = "give an address and a port, such as 127.0.0.1:7000, or a known host";
        let mut last = Error::of(ErrorKind::InvalidInput, "listen").with_remedy(NAME);
        for address in address.to_socket_addrs().map_err(|_| last)? {
            match bind(address) {
                Ok(socket) => {
                    return HandleShared::new(
                        self.shared(),
                        OwnedSocket::from(socket),
                        key,
                        streams,
                    )
                    .map(Listener::from_shared)
                    .map_err(Error::from);
                }
                Err(error) => last = Error::of_address(&error, "listen"),
            }
        }
        Err(last)
    }

    /// Starts to connect to an address. The packet is an [`Op::Connect`]; receives and sends may
    /// be started after it. Small messages are sent without delay (TCP_NODELAY).
    ///
    /// # Errors
    ///
    /// If the socket cannot be made.
    pub fn connect(&self, address: SocketAddr, key: K) -> Result<Stream<K, M>> {
        let stream = self.socket_for(address, key)?;
        stream.connect(address)?;
        Ok(stream)
    }

    /// The same, with first data to send as soon as the connection stands: an [`Op::Send`] packet
    /// follows the one of the connect, and fails if that has.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made; the buffer comes back.
    pub fn connect_with(
        &self,
        address: SocketAddr,
        key: K,
        first: impl Into<Buf>,
    ) -> Result<Stream<K, M>, Refused<Buf>> {
        let first = first.into();
        let stream = match self.connect(address, key) {
            Ok(stream) => stream,
            Err(error) => return Err(Refused { error, value: first }),
        };
        stream.send(first)?;
        Ok(stream)
    }

    /// Listens on a path of this machine, with a backlog of 4,096. Whoever stops listening removes
    /// what is left at the path.
    ///
    /// # Errors
    ///
    /// `AddressInUse` if something is there already, `InvalidInput` if the path is too long (about
    /// 100 bytes), `NotFound` if its folder does not exist.
    #[cfg(unix)]
    pub fn listen_unix(&self, path: impl AsRef<std::path::Path>, key: K) -> Result<Listener<K, M>> {
        let listen = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            socket.listen(4096)?;
            Ok(socket)
        };
        let socket = listen().map_err(|error: io::Error| Error::from_io(&error, "listen"))?;
        Ok(self.associate_listener(socket, key)?)
    }

    /// Starts to connect to a path of this machine. The packet is an [`Op::Connect`].
    ///
    /// # Errors
    ///
    /// If the socket cannot be made, or `InvalidInput` if the path is too long.
    #[cfg(unix)]
    pub fn connect_unix(&self, path: impl AsRef<std::path::Path>, key: K) -> Result<Stream<K, M>> {
        let failed = |error| Error::from_io(&error, "connect");
        let address = SockAddr::unix(path).map_err(failed)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        let stream = self.associate(socket, key)?;
        stream.start().connect_to(address)?;
        Ok(stream)
    }

    fn socket_for(&self, address: SocketAddr, key: K) -> Result<Stream<K, M>> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)
            .and_then(|socket| socket.set_tcp_nodelay(true).map(|()| socket))
            .map_err(|error| Error::from_io(&error, "connect"))?;
        Ok(Stream::from_shared(HandleShared::new(
            self.shared(),
            OwnedSocket::from(socket),
            key,
            streams,
        )?))
    }

    /// Associates a connected (or not yet connected) stream socket: a `std::net::TcpStream`, a
    /// `std::os::unix::net::UnixStream`, a `socket2::Socket`, or any other descriptor of one. Or
    /// what else bytes are received from or sent to in order: an end of a pipe, a FIFO, a
    /// terminal, the `ChildStdin` and `ChildStdout` of a process. On Windows it has to be opened
    /// for overlapped operations, as named pipes may be and anonymous ones are not:
    /// [`Self::pipe_from`] and [`Self::pipe_to`] make some.
    ///
    /// A pipe has one direction, and ends when the last clone of its [`Stream`] is dropped: it
    /// cannot be shut down. A program that writes to pipes must ignore SIGPIPE, as Rust's do. What
    /// is shared with other processes, like the terminal, is switched between blocking and not
    /// (O_NONBLOCK) for all of them.
    ///
    /// # Errors
    ///
    /// `Associated` if the socket belongs to a port already (for pipes this is not noticed),
    /// `InvalidInput` for a file (see [`File::associate`]), `Closed` if the port is closed. The
    /// descriptor comes back.
    pub fn associate(
        &self,
        socket: impl Into<OwnedDescriptor>,
        key: K,
    ) -> Result<Stream<K, M>, Refused<OwnedDescriptor>> {
        HandleShared::new(self.shared(), socket.into(), key, streams).map(Stream::from_shared)
    }

    /// Associates a listening socket: a `std::net::TcpListener`, a `socket2::Socket`.
    ///
    /// # Errors
    ///
    /// As for [`Self::associate`].
    pub fn associate_listener(
        &self,
        socket: impl Into<OwnedSocket>,
        key: K,
    ) -> Result<Listener<K, M>, Refused<OwnedSocket>> {
        HandleShared::new(self.shared(), socket.into(), key, streams).map(Listener::from_shared)
    }

    // ---- Packets ------------------------------------------------------------------------

    /// Waits for a packet. The thread becomes one of the port's workers until it exits, waits on
    /// another port, or the port closes.
    #[doc(alias = "GetQueuedCompletionStatus")]
    pub fn wait(&self) -> Wait<Packet<K, M>> {
        self.wait_until(None)
    }

    /// Waits for a packet at most for so long; with zero it polls.
    #[doc(alias = "GetQueuedCompletionStatus")]
    pub fn wait_for(&self, timeout: Duration) -> Wait<Packet<K, M>> {
        self.wait_until(Some(timeout))
    }

    fn wait_until(&self, timeout: Option<Duration>) -> Wait<Packet<K, M>> {
        let shared = self.shared();
        let deadline = deadline(timeout);
        let mut timeout = timeout;
        loop {
            let kept = Cell::new(None);
            let retain = |operation| keep(operation, &kept);
            let mut taking = Taking::new(&retain);
            match shared.raw.take(timeout, &mut taking) {
                Wait::Packet(()) => {}
                Wait::TimedOut => return Wait::TimedOut,
                Wait::Closed => return Wait::Closed,
                Wait::Broken(error) => return Wait::Broken(error),
            }
            let silent = shared.is_silent(&taking.completion);
            if !silent {
                return shared.packet(&mut taking.completion, kept.take());
            }
            drop(shared.packet(&mut taking.completion, kept.take()));
            // Wait on, for as long as is left.
            timeout = left(deadline).or(timeout);
        }
    }

    /// Waits for a packet, and takes as many more as are there, at most `most` in all, to the end
    /// of `packets`. The whole batch counts as one running worker: a large one is cheap, and holds
    /// up the packets in it behind the first. Returns how many were taken.
    #[doc(alias = "GetQueuedCompletionStatusEx")]
    pub fn wait_many(
        &self,
        packets: &mut Vec<Packet<K, M>>,
        most: usize,
        timeout: Option<Duration>,
    ) -> Wait<usize> {
        let first = match self.wait_until(timeout) {
            Wait::Packet(packet) => packet,
            Wait::TimedOut => return Wait::TimedOut,
            Wait::Closed => return Wait::Closed,
            Wait::Broken(error) => return Wait::Broken(error),
        };
        packets.push(first);
        let mut count = 1;
        let shared = self.shared();
        while count < most {
            let kept = Cell::new(None);
            let retain = |operation| keep(operation, &kept);
            let mut taking = Taking::new(&retain);
            if !shared.raw.take_more(&mut taking) {
                break;
            }
            let silent = shared.is_silent(&taking.completion);
            let packet = shared.packet(&mut taking.completion, kept.take());
            if let (false, Wait::Packet(packet)) = (silent, packet) {
                packets.push(packet);
                count += 1;
            }
        }
        Wait::Packet(count)
    }

    /// Posts a value: some worker takes it as [`Op::Posted`]. It is never dropped on the way,
    /// unless the port closes.
    ///
    /// # Errors
    ///
    /// `Closed`, `QueueFull` (see [`Builder::post_limit`]) or `OutOfMemory`; the value comes back.
    #[doc(alias = "PostQueuedCompletionStatus")]
    pub fn post(&self, value: M) -> Result<(), Refused<M>> {
        self.shared().post(value)
    }

    /// Runs something that may block (a lock, a file, a query) while another worker has this
    /// one's running slot. On a thread that is no worker of this port it just runs.
    pub fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        self.shared().raw.blocking(work)
    }

    /// A number of worker threads, to run a handler on.
    pub fn workers(&self, threads: usize) -> Workers<'_, K, M> {
        Workers::new(self, threads)
    }

    /// Closes the port: every wait returns [`Wait::Closed`], and nothing more can be started or
    /// posted. A worker that has a packet keeps it. What is in flight is cancelled, has no packet,
    /// and is given back when the last clone of the port is dropped, or before.
    pub fn close(&self) {
        self.owner.shared.close();
    }

    /// Whether the port is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared().raw.is_closed()
    }

    /// What the port counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared().raw.stats()
    }

    /// The facility of the system that carries the port: never [`Driver::Auto`].
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.shared().raw.driver()
    }

    /// Why the port is carried by epoll although the choice was left to wharf: how io_uring is
    /// refused here, and what can be done about it.
    #[must_use]
    pub fn fallback(&self) -> Option<Error> {
        self.shared().raw.fallback()
    }

    /// How many handles belong to the port.
    #[must_use]
    pub fn handles(&self) -> usize {
        lock(&self.shared().handles).len()
    }

    /// The handles' keys and connections may be needed after the packets: visits every stream.
    pub fn each_stream(&self, mut visit: impl FnMut(&Stream<K, M>)) {
        for handle in self.shared().live_handles() {
            visit(&Stream::from_shared(handle));
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    sys::claim_address(&socket)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(4096)?;
    Ok(socket)
}

/// Keeps the handle of an operation that goes on: once it has been submitted again, its block may
/// be finished by another worker and be gone.
fn keep<K, M>(operation: *mut Operation, kept: &Cell<Option<Arc<HandleShared<K, M>>>>) {
    // SAFETY: every operation of this port is a block's header, and this one is in flight with
    // nothing outstanding. Only the handle's count is touched.
    let handle = unsafe { &(*operation.cast::<Block<K, M>>()).handle };
    kept.set(handle.clone());
}

impl<K, M> PortShared<K, M> {
    /// Every handle that is still alive.
    fn live_handles(&self) -> Vec<Arc<HandleShared<K, M>>> {
        lock(&self.handles).iter().filter_map(|(_, handle)| handle.upgrade()).collect()
    }

    pub(crate) fn post(&self, value: M) -> Result<(), Refused<M>> {
        let block = self.take_block();
        // SAFETY: the block is ours alone until it is posted.
        let fields = unsafe { &mut *block };
        fields.payload = Payload::Posted;
        fields.context = Some(value);
        match self.raw.post(0, 0, block.cast()) {
            Ok(()) => Ok(()),
            Err(error) => {
                // SAFETY: it was not posted, so it is ours still.
                let value = unsafe { &mut *block }.context.take();
                // SAFETY: as above, and taken from this port.
                unsafe { self.put_block(block) };
                let Some(value) = value else { unreachable!("put in above") };
                Err(Refused { error, value })
            }
        }
    }

    fn close(&self) {
        self.raw.close();
        for handle in self.live_handles() {
            handle.close();
            // Nobody handles packets any more, and gives turns back.
            handle.raw.set_serial(false);
        }
        for notifier in lock(&self.notifiers).drain(..).filter_map(|it| it.upgrade()) {
            self.disappoint(&notifier);
        }
    }

    /// Whether nobody is told of a completion: that was asked for, or closing has cancelled it.
    /// Who comes to take that was about to learn that the port is closed, and learns just that.
    fn is_silent(&self, completion: &Completion) -> bool {
        completion.silent || completion.status == -sys::CANCELLED && self.raw.is_closed()
    }

    /// Makes a packet of a completion: takes its block apart, unless it goes on. Packets are large:
    /// the most frequent are made in place. An operation that has none is gone with what is made.
    fn packet(
        &self,
        completion: &mut Completion,
        kept: Option<Arc<HandleShared<K, M>>>,
    ) -> Wait<Packet<K, M>> {
        let Completion { bytes, status, more, operation, .. } = *completion;
        if more {
            // The block is in flight again: nothing of it may be touched. Only these go on.
            let Some(handle) = kept else { unreachable!("kept when it went on") };
            let payload = repeated(completion);
            let end = ended(completion, &payload, &handle);
            return packet_of(completion, handle, payload, end, None);
        }
        let block = operation.cast::<Block<K, M>>();
        // SAFETY: its last completion gives the block to us.
        let fields = unsafe { &mut *block };
        let Some(handle) = fields.handle.take() else {
            // SAFETY: as above.
            return unsafe { self.posted(completion) };
        };
        let context = fields.context.take();
        let (result, turn) = ended(completion, &fields.payload, &handle);
        let has_sent = fields.operation.is_second();
        match &mut fields.payload {
            Payload::Recv(buf, _) | Payload::Exchange(buf, _) if has_sent => {
                // SAFETY: this is the operation's last completion, which says what was written.
                let buf = unsafe { filled(buf, completion) };
                // SAFETY: the block is ours, and was taken from this port.
                unsafe { self.put_block(block) };
                let op = Op::Recv { stream: Stream::from_shared(handle), buf };
                Wait::Packet(Packet { op, result, bytes, context, more, turn })
            }
            Payload::Read(buf, _) => {
                // SAFETY: as above.
                let buf = unsafe { filled(buf, completion) };
                // SAFETY: as above.
                unsafe { self.put_block(block) };
                let op = Op::Read { file: File::from_shared(handle), buf };
                Wait::Packet(Packet { op, result, bytes, context, more, turn })
            }
            Payload::Send(buf) | Payload::Exchange(buf, _) => {
                let buf = std::mem::take(buf);
                // SAFETY: as above.
                unsafe { self.put_block(block) };
                let op = Op::Send { stream: Stream::from_shared(handle), buf };
                Wait::Packet(Packet { op, result, bytes, context, more, turn })
            }
            payload => {
                let mut payload = std::mem::replace(payload, Payload::Idle);
                // SAFETY: as above.
                unsafe { payload.settle(bytes, status) };
                // SAFETY: as above.
                unsafe { self.put_block(block) };
                packet_of(completion, handle, payload, (result, turn), context)
            }
        }
    }

    /// The packet of what was posted, or of a notification.
    ///
    /// # Safety
    ///
    /// The completion's operation is a block without a handle, and the caller's.
    unsafe fn posted(&self, completion: &Completion) -> Wait<Packet<K, M>> {
        let Completion { bytes, status, more, operation, .. } = *completion;
        let block = operation.cast::<Block<K, M>>();
        // SAFETY: the caller's promise.
        let fields = unsafe { &mut *block };
        let Some(value) = fields.context.take() else { unreachable!("posted with a value") };
        let result = match status {
            0 => Ok(bytes),
            _ => Err(Error::from_status(status, fields.payload.name())),
        };
        fields.payload = Payload::Idle;
        // SAFETY: as above; it was taken from this port.
        unsafe { self.put_block(block) };
        let (op, turn) = (Op::Posted(value), Turn(None));
        Wait::Packet(Packet { op, result, bytes, context: None, more, turn })
    }
}

/// How an operation has ended, and the turn that its packet has.
#[inline]
fn ended<K, M>(
    completion: &Completion,
    payload: &Payload,
    handle: &Arc<HandleShared<K, M>>,
) -> (Result<usize>, Turn<K, M>) {
    let result = match completion.status {
        0 => Ok(completion.bytes),
        status => Err(payload.error(status, &handle.raw)),
    };
    (result, Turn(completion.serial.then(|| handle.clone())))
}

/// The buffer with what was received or read: one of the pool's, or the operation's own.
///
/// # Safety
///
/// As many bytes as the completion says have been written from the start of its own room on, if
/// there is none of the pool's.
#[inline]
unsafe fn filled(buf: &mut Buf, completion: &mut Completion) -> Buf {
    let mut own = std::mem::take(buf);
    if let Some(pooled) = completion.buffer.take() {
        return Buf::from(pooled);
    }
    // SAFETY: the caller's promise.
    unsafe { own.set_filled(completion.bytes) };
    own
}

/// The packet of an operation on a handle, from what was in its block.
fn packet_of<K, M>(
    completion: &mut Completion,
    handle: Arc<HandleShared<K, M>>,
    payload: Payload,
    (result, turn): (Result<usize>, Turn<K, M>),
    context: Option<M>,
) -> Wait<Packet<K, M>> {
    let Completion { bytes, more, .. } = *completion;
    let buffer = completion.buffer.take();
    let (stream, file) = (Stream::from_shared, File::from_shared);
    let op = match payload {
        Payload::RecvEach => {
            let buf = buffer.map_or_else(Buf::pooled, Buf::from);
            Op::Recv { stream: stream(handle), buf }
        }
        Payload::SendVectored(vectored) => {
            Op::SendVectored { stream: stream(handle), bufs: vectored.bufs }
        }
        Payload::Transmit(transmit) => Op::Transmit { stream: stream(handle), transmit },
        Payload::RecvMessage(buf, parcel) => {
            let buf = buffer.map_or(buf, Buf::from);
            let datagram = parcel.is_datagram();
            let message = Ancillary::new(parcel);
            if datagram {
                Op::RecvDatagram { socket: Datagram::from_shared(handle), buf, message }
            } else {
                Op::RecvMessage { stream: stream(handle), buf, message }
            }
        }
        Payload::SendMessage(buf, parcel) if parcel.is_datagram() => {
            Op::SendDatagram { socket: Datagram::from_shared(handle), buf }
        }
        Payload::SendMessage(buf, _) => Op::Send { stream: stream(handle), buf },
        Payload::Accept { .. } => accept(handle, completion.accepted.take(), None),
        Payload::AcceptFirst(buf) => accept(handle, completion.accepted.take(), Some(buf)),
        Payload::Connect(_) => Op::Connect { stream: stream(handle) },
        #[cfg(windows)]
        Payload::ServePipe => Op::Connect { stream: stream(handle) },
        #[cfg(windows)]
        Payload::Disconnect(_) => Op::Shutdown { stream: stream(handle) },
        Payload::Shutdown(_) => Op::Shutdown { stream: stream(handle) },
        Payload::ReadVectored(vectored, _) => {
            Op::ReadVectored { file: file(handle), bufs: vectored.bufs }
        }
        Payload::Write(buf, _) => Op::Write { file: file(handle), buf },
        Payload::WriteVectored(vectored, _) => {
            Op::WriteVectored { file: file(handle), bufs: vectored.bufs }
        }
        Payload::Sync { .. } => Op::Sync { file: file(handle) },
        Payload::Allocate { .. } => Op::Allocate { file: file(handle) },
        Payload::Truncate(_) => Op::SetLen { file: file(handle) },
        Payload::Udp(work) => work.into_op(handle, buffer, completion.told),
        #[cfg(target_os = "linux")]
        Payload::Notified(_) => unreachable!("never a handle of the port's"),
        Payload::Idle | Payload::Posted => unreachable!("never started on a handle"),
        Payload::Recv(..) | Payload::Read(..) | Payload::Send(_) | Payload::Exchange(..) => {
            unreachable!("made in place")
        }
    };
    Wait::Packet(Packet { op, result, bytes, context, more, turn })
}

/// What an operation works with that goes on after this completion.
fn repeated(completion: &Completion) -> Payload {
    if let Some(told) = completion.told {
        return Payload::Udp(udp::Work::of(told));
    }
    match completion.accepted {
        Some(_) => Payload::Accept { repeat: true },
        None => Payload::RecvEach,
    }
}

fn accept<K, M>(
    handle: Arc<HandleShared<K, M>>,
    accepted: Option<OwnedSocket>,
    first: Option<Buf>,
) -> Op<K, M> {
    let port = handle.port.clone();
    let incoming = accepted.map(|fd| Incoming::new(fd, port));
    Op::Accept { listener: Listener::from_shared(handle), incoming, first }
}

impl<K, M> Drop for Owner<K, M> {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.close();
        let left = shared.raw.drain(DRAIN_PATIENCE, &mut |completion| {
            // Dropping the packet frees the buffer and lets the handle go. What goes on comes
            // again.
            if !completion.more {
                drop(shared.packet(completion, None));
            }
        });
        if left > 0 {
            log::error!("the kernel still holds {left} operations: their memory is leaked");
            // The rings and pools they use must stay as well.
            std::mem::forget(shared.clone());
        }
    }
}
