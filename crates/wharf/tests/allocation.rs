//! In the steady state an operation allocates nothing. A program of its own, because it counts
//! every allocation of the thread that does all the work here.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use wharf::{Buf, Builder, Driver, Op, OpenOptions, Packet, Port, Stream, Wait};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(address, layout) };
    }
}

/// How many allocations a piece of work makes.
fn allocations(mut work: impl FnMut()) -> usize {
    // The first rounds fill what is kept for the later ones.
    (0..200).for_each(|_| work());
    let before = ALLOCATIONS.get();
    (0..1000).for_each(|_| work());
    ALLOCATIONS.get() - before
}

/// Every driver of this system, and its ways round what a kernel may lack.
fn builders() -> Vec<Builder> {
    let mut builders = vec![Builder::new(), Builder::new().pretend_old_kernel()];
    if cfg!(target_os = "linux") {
        builders.push(Builder::new().driver(Driver::Epoll));
    }
    builders
}

fn next(port: &Port<(), u64>) -> Packet<(), u64> {
    match port.wait_for(Duration::from_secs(20)) {
        Wait::Packet(packet) => packet,
        other => panic!("no packet but {other:?}"),
    }
}

/// One receive and one send, with the buffer that goes round.
fn echo(port: &Port<(), u64>, stream: &Stream<(), u64>, mut peer: &TcpStream, buf: Buf) -> Buf {
    let start = stream.start().context(1).deadline(Duration::from_secs(20));
    start.recv(buf).unwrap();
    peer.write_all(b"ping").unwrap();
    let Op::Recv { stream, buf } = next(port).op else { panic!("not a receive") };
    stream.send(buf).unwrap();
    let Op::Send { mut buf, .. } = next(port).op else { panic!("not a send") };
    let mut pong = [0; 4];
    peer.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"ping");
    if buf.as_mut().is_none() {
        buf = Buf::pooled();
    }
    buf
}

/// Would catch: a block, a queue entry or a buffer that is made anew for every operation.
#[test]
fn operations_allocate_nothing_in_the_steady_state() {
    for builder in builders() {
        let port: Port<(), u64> = builder.concurrency(1).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_nodelay(true).unwrap();
        let stream = port.associate(listener.accept().unwrap().0, ()).unwrap();

        let mut buf = Some(Buf::with_capacity(64));
        let own = || buf = Some(echo(&port, &stream, &peer, buf.take().unwrap_or_default()));
        assert_eq!(allocations(own), 0, "with a buffer of the program's");

        let pooled = || drop(echo(&port, &stream, &peer, Buf::pooled()));
        assert_eq!(allocations(pooled), 0, "with buffers of the pool");

        let post = || {
            (0..8).for_each(|id| port.post(id).unwrap());
            (0..8).for_each(|_| drop(next(&port)));
        };
        assert_eq!(allocations(post), 0, "posting");

        // Several in flight: their blocks are kept as well.
        let several = || {
            for id in 0..8 {
                stream.start().context(id).send("x").unwrap();
            }
            (0..8).for_each(|_| drop(next(&port)));
            (&peer).read_exact(&mut [0; 8]).unwrap();
        };
        assert_eq!(allocations(several), 0, "eight sends at once");

        // A repeated receive.
        stream.recv_each().unwrap();
        let each = || {
            (&peer).write_all(b"ping").unwrap();
            assert!(next(&port).more);
        };
        assert_eq!(allocations(each), 0, "a repeated receive");
        stream.cancel_all();
        drop(next(&port));

        // Datagrams, with their addresses.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let socket = port.associate_datagram(socket, ()).unwrap();
        let datagrams = || {
            socket.send_to("ping", to).unwrap();
            drop(next(&port));
            socket.recv_from(Buf::pooled()).unwrap();
            let Op::RecvDatagram { buf, message, .. } = next(&port).op else {
                panic!("no datagram")
            };
            assert!(&*buf == b"ping" && message.from().is_some());
        };
        assert_eq!(allocations(datagrams), 0, "datagrams");

        // Reads and writes of a file.
        let path = std::env::temp_dir().join(format!("wharf-allocation-{}", std::process::id()));
        let options = OpenOptions::new().read(true).write(true).create(true);
        let file = port.open(&path, options, ()).unwrap();
        let mut buf = Some(Buf::with_capacity(64));
        let files = || {
            file.write_at("ping", 0).unwrap();
            drop(next(&port));
            file.read_at(buf.take().unwrap_or_default(), 0).unwrap();
            let Op::Read { buf: read, .. } = next(&port).op else { panic!("not a read") };
            buf = Some(read);
        };
        assert_eq!(allocations(files), 0, "a file");
        std::fs::remove_file(path).unwrap();
    }
}

/// The same for UDP, with marks.
#[test]
fn datagrams_allocate_nothing_in_the_steady_state() {
    for builder in builders() {
        let port: Port<(), u64> = builder.concurrency(1).build().unwrap();
        let socket = port.bind_udp("127.0.0.1:0", ()).unwrap();
        let to = socket.local_addr().unwrap();
        let marked = wharf::Envelope::to(to).hop_limit(3);
        let single = || {
            socket.send_to("ping", marked).unwrap();
            drop(next(&port));
            socket.recv(Buf::pooled()).unwrap();
            let Op::RecvFrom { buf, received, .. } = next(&port).op else { panic!("no datagram") };
            assert!(&*buf == b"ping" && received.is_some_and(|received| received.from == to));
        };
        assert_eq!(allocations(single), 0, "single receives");
        socket.recv_each().unwrap();
        let each = || {
            socket.send_to("ping", to).unwrap();
            for _ in 0..2 {
                drop(next(&port));
            }
        };
        assert_eq!(allocations(each), 0, "a repeated receive");
    }
}
