//! What the tests share.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use wharf::rio::{Completion, CompletionQueue, Polled, Quota, Region, RequestQueue};

/// Only a hang takes longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to happen.
pub(crate) const MOMENT: Duration = Duration::from_millis(60);

/// Runs a test, and ends it if it hangs.
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
pub(crate) fn join<T>(thread: thread::JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(crate) fn quota(receives: usize, sends: usize) -> Quota {
    Quota { receives, sends }
}

pub(crate) fn polled(capacity: usize) -> CompletionQueue<Polled> {
    crate::builder(capacity).polled().expect("a queue")
}

/// A UDP socket of the standard library's that does not wait for ever.
pub(crate) fn peer() -> UdpSocket {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

pub(crate) fn socket<N>(
    queue: &mut CompletionQueue<N>,
    receives: usize,
    sends: usize,
) -> (RequestQueue, SocketAddr) {
    let socket = queue.udp("127.0.0.1:0", quota(receives, sends)).unwrap();
    let address = queue.local_addr(socket).unwrap();
    (socket, address)
}

/// A connection: ours, and the peer's.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_nodelay(true).unwrap();
    (listener.accept().unwrap().0, peer)
}

/// The next completion.
#[track_caller]
pub(crate) fn next<N>(queue: &mut CompletionQueue<N>) -> Completion {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = queue.dequeue().expect("a queue that works") {
            return done;
        }
        assert!(Instant::now() < deadline, "nothing completes");
        thread::yield_now();
    }
}

/// That many completions.
#[track_caller]
pub(crate) fn take<N>(queue: &mut CompletionQueue<N>, count: usize) -> Vec<Completion> {
    (0..count).map(|_| next(queue)).collect()
}

/// Nothing completes.
#[track_caller]
pub(crate) fn nothing<N>(queue: &mut CompletionQueue<N>) {
    let deadline = Instant::now() + MOMENT;
    while Instant::now() < deadline {
        let done = queue.dequeue().expect("a queue that works");
        assert!(done.is_none(), "{done:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Starts receives with slices of a region, numbered by their contexts from `first`.
#[track_caller]
pub(crate) fn receives<N>(
    queue: &mut CompletionQueue<N>,
    socket: RequestQueue,
    region: &Region,
    contexts: std::ops::Range<u64>,
) {
    let mut slices = region.slices();
    for context in contexts {
        let slice = slices.next().expect("enough slices");
        queue.start(socket).context(context).receive(slice).unwrap();
    }
}

/// A slice that holds these bytes.
#[track_caller]
pub(crate) fn filled(region: &Region, bytes: &[u8]) -> wharf::rio::Slice {
    let mut slice = region.slices().next().expect("a slice");
    slice.copy_from(bytes).unwrap();
    slice
}

/// Says that a test did not run, where the harness does not swallow it.
pub(crate) fn skip(name: &str, reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIP {name}: {reason}");
}

/// Whether this is Wine, which cannot show what a test (or the rest of it) is about: then that is
/// skipped.
pub(crate) fn not_shown_by_wine(name: &str, reason: &str) -> bool {
    let features = wharf::probe().unwrap_or_default();
    let wine = features.iter().any(|it| it.name.contains("Wine") && !it.present);
    if wine {
        skip(name, reason);
    }
    wine
}

/// A test that gives something up for good runs in a process of its own. True in that one.
#[cfg(unix)]
pub(crate) fn in_child(module: &str, test: &str) -> bool {
    const CHILD: &str = "WHARF_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let path = format!("{}::{test}", module.split_once("::").map_or(module, |(_, rest)| rest));
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &path, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{told}");
    false
}
