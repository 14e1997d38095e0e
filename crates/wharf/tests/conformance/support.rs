//! What the tests share: ports and connections to test with, counters, and a deadline on
//! everything.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    panic::resume_unwind,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use wharf::{Buf, Wait};

pub(crate) type Port = wharf::Port<u32, Token>;
pub(crate) type Packet = wharf::Packet<u32, Token>;
pub(crate) type Op = wharf::Op<u32, Token>;
pub(crate) type Stream = wharf::Stream<u32, Token>;
pub(crate) type Listener = wharf::Listener<u32, Token>;

/// Only a hang takes longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on a thread of its own, so that it begins bound to no port, and ends it if it
/// hangs.
#[track_caller]
pub(crate) fn run(test: impl FnOnce() + Send + 'static) {
    let (done, over) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match over.recv_timeout(PATIENCE * 2) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test hangs"),
        _ => join(thread),
    }
}

/// Joins a thread and passes its panic on.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// The next of a channel.
#[track_caller]
pub(crate) fn receive<T>(channel: &Receiver<T>) -> T {
    channel.recv_timeout(PATIENCE).expect("nothing came")
}

/// Says that a test did not run, where the harness does not swallow it.
pub(crate) fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {name}: {reason}");
}

/// Whether this is Wine, and not a Windows.
pub(crate) fn is_wine() -> bool {
    let features = wharf::probe().unwrap_or_default();
    features.iter().any(|feature| feature.name.contains("Wine") && !feature.present)
}

/// Whether Wine runs this test, which cannot show what it is about: then the test is skipped.
pub(crate) fn not_shown_by_wine(name: &str, reason: &str) -> bool {
    let wine = is_wine();
    if wine {
        skip(name, reason);
    }
    wine
}

// ---- The system -----------------------------------------------------------------------------

cfg_select! {
    windows => {
        /// The system's own codes.
        pub(crate) mod codes {
            pub(crate) const ADDRESS_NOT_AVAILABLE: i32 = 10049;
            pub(crate) const CONNECTION_REFUSED: i32 = 10061;
            pub(crate) const NOT_CONNECTED: i32 = 10057;
            /// To look what is there: the port's sockets are nonblocking here.
            pub(crate) const PEEK: i32 = 2;
        }

        /// How many descriptors are open.
        pub(crate) fn open_descriptors() -> usize {
            use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};
            let mut count = 0;
            // SAFETY: the number lives across the call.
            let found = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) };
            assert_ne!(found, 0, "no count of handles");
            usize::try_from(count).unwrap_or(0)
        }
    }
    _ => {
        /// The system's own codes.
        pub(crate) mod codes {
            pub(crate) const ADDRESS_NOT_AVAILABLE: i32 = libc::EADDRNOTAVAIL;
            pub(crate) const CONNECTION_REFUSED: i32 = libc::ECONNREFUSED;
            pub(crate) const NOT_CONNECTED: i32 = libc::ENOTCONN;
            /// To look what is there.
            pub(crate) const PEEK: i32 = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        }

        /// How many descriptors are open.
        pub(crate) fn open_descriptors() -> usize {
            std::fs::read_dir("/proc/self/fd").expect("a list").count()
        }
    }
}

// ---- Ports ------------------------------------------------------------------------------------

pub(crate) fn port(concurrency: usize) -> Port {
    build(crate::builder().concurrency(concurrency))
}

pub(crate) fn build(builder: wharf::Builder) -> Port {
    builder.build().expect("a port")
}

/// The next packet.
#[track_caller]
pub(crate) fn next(port: &Port) -> Packet {
    match port.wait_for(PATIENCE) {
        Wait::Packet(packet) => packet,
        other => panic!("no packet but {other:?}"),
    }
}

/// The buffer of a receive, or of an exchange that has received.
pub(crate) fn received(packet: Packet) -> Buf {
    match packet.op {
        Op::Recv { buf, .. } => buf,
        other => panic!("not a receive: {other:?}"),
    }
}

/// The buffer of a send, or of an exchange that has not sent.
pub(crate) fn sent(packet: Packet) -> Buf {
    match packet.op {
        Op::Send { buf, .. } => buf,
        other => panic!("not a send: {other:?}"),
    }
}

/// What is there at once.
pub(crate) fn poll(port: &Port) -> Option<Packet> {
    match port.wait_for(Duration::ZERO) {
        Wait::Packet(packet) => Some(packet),
        Wait::TimedOut => None,
        other => panic!("{other:?}"),
    }
}

/// A worker that hands every packet on to the test, which itself stays unbound: what it starts
/// is submitted at once.
pub(crate) struct Pump {
    port: Option<Port>,
    pub(crate) packets: Receiver<Packet>,
    workers: Vec<JoinHandle<()>>,
}

impl Pump {
    pub(crate) fn new(port: &Port, workers: usize) -> Self {
        let (sender, packets) = mpsc::channel();
        let workers = (0..workers)
            .map(|_| {
                let (port, sender) = (port.clone(), sender.clone());
                thread::spawn(move || {
                    while let Wait::Packet(packet) = port.wait() {
                        if sender.send(packet).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        Self { port: Some(port.clone()), packets, workers }
    }

    #[track_caller]
    pub(crate) fn next(&self) -> Packet {
        receive(&self.packets)
    }

    /// Whether nothing more has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.try_recv().is_err()
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(port) = self.port.take() {
            port.close();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

// ---- Connections ------------------------------------------------------------------------------

/// A connection of which the port has one end.
pub(crate) fn pair(port: &Port) -> (Stream, TcpStream) {
    let (ours, peer) = sockets();
    (port.associate(ours, 1).expect("associated"), peer)
}

/// The two ends of a connection.
pub(crate) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let peer = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (ours, _) = listener.accept().expect("accepted");
    peer.set_nodelay(true).expect("no delay");
    peer.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    peer.set_write_timeout(Some(PATIENCE)).expect("a deadline");
    (ours, peer)
}

/// A listener whose backlog is full: who connects to it waits. The sockets keep it full.
pub(crate) fn full_listener() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    listener.bind(&any.into()).expect("bound");
    listener.listen(0).expect("listening");
    let address = listener.local_addr().expect("an address");
    let mut keep = vec![listener];
    // A backlog of 0 has room for one connection.
    for _ in 0..3 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.set_nonblocking(true).expect("nonblocking");
        let _ = client.connect(&address);
        keep.push(client);
    }
    (address.as_socket().expect("an internet address"), keep)
}

/// Ends a connection with a reset.
pub(crate) fn reset(peer: TcpStream) {
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(peer);
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

// ---- Counting ---------------------------------------------------------------------------------

/// Counts what was made and what was dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<[AtomicUsize; 2]>);

/// What a tally counts.
#[derive(Debug)]
struct Counted(Tally);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0[1].fetch_add(1, Ordering::SeqCst);
    }
}

/// The context of the tests' operations: a number, counted or not.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) id: u64,
    _counted: Option<Counted>,
}

impl From<u64> for Token {
    fn from(id: u64) -> Self {
        Self { id, _counted: None }
    }
}

impl Tally {
    fn counted(&self) -> Counted {
        self.0[0].fetch_add(1, Ordering::SeqCst);
        Counted(self.clone())
    }

    pub(crate) fn token(&self, id: u64) -> Token {
        Token { id, _counted: Some(self.counted()) }
    }

    /// A buffer to send, whose end is counted.
    pub(crate) fn bytes(&self, data: Vec<u8>) -> Buf {
        struct Owner(Vec<u8>, #[expect(dead_code, reason = "counts as it drops")] Counted);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Buf::from(Bytes::from_owner(Owner(data, self.counted())))
    }

    pub(crate) fn made(&self) -> usize {
        self.0[0].load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.0[1].load(Ordering::SeqCst)
    }

    /// Each was dropped once.
    #[track_caller]
    pub(crate) fn assert_even(&self) {
        assert_eq!(self.made(), self.dropped(), "made and dropped");
    }
}

/// Counts the allocations that are alive, by sizes nobody else asks for: so it can be seen whether
/// a buffer into which something is received is freed, and how often.
struct Watching;

const SIZES: usize = 512;
const SMALLEST: usize = 700_001;
static ALIVE: [AtomicIsize; SIZES] = [const { AtomicIsize::new(0) }; SIZES];

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn watched(layout: Layout) -> Option<&'static AtomicIsize> {
    ALIVE.get(layout.size().wrapping_sub(SMALLEST))
}

// SAFETY: all is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(alive) = watched(layout) {
            alive.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if let Some(alive) = watched(layout) {
            alive.fetch_sub(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(address, layout) };
    }
}

/// A size of buffer that is used here alone, and how many of it are alive.
pub(crate) struct Size(usize);

/// Sizes that have been used and are free again.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

impl Size {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let free = FREE.lock().expect("not poisoned").pop();
        let index = free.unwrap_or_else(|| NEXT.fetch_add(1, Ordering::SeqCst));
        assert!(index < SIZES, "raise SIZES");
        Self(index)
    }

    pub(crate) fn bytes(&self) -> usize {
        SMALLEST + self.0
    }

    pub(crate) fn vec(&self) -> Buf {
        Buf::with_capacity(self.bytes())
    }

    pub(crate) fn alive(&self) -> isize {
        ALIVE[self.0].load(Ordering::SeqCst)
    }
}

impl Drop for Size {
    fn drop(&mut self) {
        // One of which something is left is not used again.
        if self.alive() == 0 {
            FREE.lock().expect("not poisoned").push(self.0);
        }
    }
}

/// Numbers that look random, the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A seed, printed: from the environment, to repeat a run, or from the clock.
    pub(crate) fn seed(name: &str) -> u64 {
        let given = std::env::var("WHARF_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            static COUNT: AtomicU64 = AtomicU64::new(0);
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            u64::from(now.subsec_nanos()) << 8 | COUNT.fetch_add(1, Ordering::Relaxed)
        });
        println!("{name}: WHARF_TEST_SEED={seed}");
        seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 33) % u64::try_from(bound).unwrap_or(1)).unwrap_or(0)
    }
}

// ---- Other processes --------------------------------------------------------------------------

/// The command that runs this program once more. Where the system cannot, because it is built for
/// another processor, WHARF_TEST_RUNNER says what runs it: a program and its arguments.
pub(crate) fn this_program() -> Command {
    let program = std::env::current_exe().expect("the path of this program");
    let runner = std::env::var("WHARF_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(words).arg(program);
    command
}

const CHILD: &str = "WHARF_TEST_CHILD";
const RAN: &str = "the child has run";

/// Runs the rest of a test in a process of its own: true there. False here, once the other one
/// has succeeded. `module` and `name` are the test's.
#[track_caller]
pub(crate) fn in_child(module: &str, name: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let (_, module) = module.split_once("::").expect("a module below the crate's root");
    let output = this_program()
        .args(["--exact", &format!("{module}::{name}"), "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .output()
        .expect("a child");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.contains(RAN), "{}: {said}", output.status);
    false
}

/// What the child says at its end, as proof that it was not filtered out.
pub(crate) fn child_has_run() {
    println!("{RAN}");
}
