//! The table of [`super::lifecycle`] for what is no operation of a connection: accepts, connects,
//! and receives of datagrams.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use wharf::Buf;

use super::{
    lifecycle::{Event, test_each_event},
    support::*,
};

type Datagrams = wharf::UdpSocket<u32, Token>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Accept,
    AcceptEach,
    AcceptFirst,
    Connect,
    Datagram,
    Pooled,
    Each,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Over and taken apart.
    Idle,
    /// Behind another of its direction.
    Queued,
    /// In the kernel.
    Submitted,
    /// The connection is there, and its first data is not.
    Halfway,
    /// Waiting for a buffer of the pool.
    Starved,
    /// Over, its packet not taken.
    Completed,
    /// Its packet is in somebody's hands.
    Taken,
}

const KINDS: [Kind; 7] = [
    Kind::Accept,
    Kind::AcceptEach,
    Kind::AcceptFirst,
    Kind::Connect,
    Kind::Datagram,
    Kind::Pooled,
    Kind::Each,
];
const STATES: [State; 7] = [
    State::Idle,
    State::Queued,
    State::Submitted,
    State::Halfway,
    State::Starved,
    State::Completed,
    State::Taken,
];

const BUFFERS: usize = 2;
const POOLED: usize = 2048;
/// The operation the table is about.
const SUBJECT: u64 = 1;
/// One that stands before it.
const OTHER: u64 = 2;

#[derive(Debug)]
enum Handle {
    Listener(Listener),
    Stream(Stream),
    Datagrams(Datagrams),
}

impl Handle {
    fn close(&self) {
        match self {
            Self::Listener(listener) => listener.close(),
            Self::Stream(stream) => stream.close(),
            Self::Datagrams(socket) => socket.close(),
        }
    }

    fn cancel_all(&self) {
        match self {
            Self::Listener(listener) => listener.cancel_all(),
            Self::Stream(stream) => stream.cancel_all(),
            Self::Datagrams(socket) => socket.cancel_all(),
        };
    }
}

/// A handle with an operation in the wanted state, and what is needed to let it go on.
struct Scene {
    port: Option<Port>,
    handle: Option<Handle>,
    /// Where the handle is, or where it connects to.
    address: SocketAddr,
    /// Those who have connected to it, or keep the backlog full of who is connected to.
    clients: Vec<Socket>,
    tally: Tally,
    size: Size,
    /// Packets in somebody's hands.
    held: Vec<Packet>,
}

impl Kind {
    fn can_be(self, state: State) -> bool {
        match state {
            State::Starved => matches!(self, Self::Pooled | Self::Each),
            State::Halfway => self == Self::AcceptFirst,
            State::Queued => self != Self::Connect,
            _ => true,
        }
    }

    fn repeats(self) -> bool {
        matches!(self, Self::AcceptEach | Self::Each)
    }
}

impl Scene {
    fn new(port: &Port, kind: Kind, state: State) -> Self {
        let any = "127.0.0.1:0";
        let mut clients = Vec::new();
        let (handle, address) = match kind {
            Kind::Accept | Kind::AcceptEach | Kind::AcceptFirst => {
                let listener = port.listen(any, 1).expect("listening");
                let address = listener.local_addr().expect("an address");
                (Handle::Listener(listener), address)
            }
            Kind::Connect => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                let stream = port.associate(TcpStream::from(socket), 1).expect("associated");
                let (address, full) = full_listener();
                clients = full;
                if state != State::Submitted {
                    // Where there is room.
                    let there = std::net::TcpListener::bind(any).expect("bound");
                    let address = there.local_addr().expect("an address");
                    clients = vec![Socket::from(there)];
                    (Handle::Stream(stream), address)
                } else {
                    (Handle::Stream(stream), address)
                }
            }
            Kind::Datagram | Kind::Pooled | Kind::Each => {
                let socket = port.bind_udp(any, 1).expect("bound");
                let address = socket.local_addr().expect("an address");
                (Handle::Datagrams(socket), address)
            }
        };
        Self {
            port: None,
            handle: Some(handle),
            address,
            clients,
            tally: Tally::default(),
            size: Size::new(),
            held: Vec::new(),
        }
    }

    fn start(&self, kind: Kind, id: u64) {
        let token = self.tally.token(id);
        let handle = self.handle.as_ref().expect("a handle");
        let started = match (handle, kind) {
            // It has no context.
            (Handle::Listener(listener), Kind::AcceptEach) => listener.accept().is_ok(),
            (Handle::Listener(listener), Kind::AcceptFirst) => {
                let start = listener.start().context(token).deadline(PATIENCE * 2);
                start.accept_first(self.size.vec()).is_ok()
            }
            (Handle::Listener(listener), _) => listener.start().context(token).accept_one().is_ok(),
            (Handle::Stream(stream), _) => {
                stream.start().context(token).connect(self.address).is_ok()
            }
            (Handle::Datagrams(socket), Kind::Datagram) => {
                socket.start().context(token).recv(self.size.vec()).is_ok()
            }
            (Handle::Datagrams(socket), Kind::Pooled) => {
                socket.start().context(token).recv(Buf::pooled()).is_ok()
            }
            (Handle::Datagrams(socket), _) => socket.start().context(token).recv_each().is_ok(),
        };
        assert!(started, "{kind:?} was refused");
    }

    /// Somebody comes, and says something or not: what the operation waits for.
    fn come(&mut self, speaks: bool) {
        match self.handle {
            Some(Handle::Stream(_)) => {}
            Some(Handle::Listener(_)) => self.connect(speaks),
            _ => self.send(),
        }
    }

    fn connect(&mut self, speaks: bool) {
        let client = TcpStream::connect(self.address).expect("connected");
        if speaks {
            std::io::Write::write_all(&mut &client, &[7; 100]).expect("written");
        }
        self.clients.push(client.into());
    }

    fn send(&self) {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bound");
        peer.send_to(&[7; 100], self.address).expect("sent");
    }

    /// Brings an operation into a state. Called on a thread that is bound to the port, or not.
    fn set(port: &Port, kind: Kind, state: State) -> Self {
        let mut scene = Self::new(port, kind, state);
        let flush = || assert!(poll(port).is_none(), "a packet too early");
        match state {
            State::Idle => {
                scene.start(kind, SUBJECT);
                scene.come(true);
                let packet = next(port);
                if packet.more {
                    drop(packet);
                    scene.handle.as_ref().expect("a handle").cancel_all();
                    drop(next(port));
                }
            }
            State::Queued => {
                scene.start(kind, OTHER);
                scene.start(kind, SUBJECT);
                flush();
            }
            State::Submitted => {
                scene.start(kind, SUBJECT);
                flush();
            }
            State::Halfway => {
                scene.start(kind, SUBJECT);
                flush();
                let before = open_descriptors();
                scene.come(false);
                // Our end and its own. Others open descriptors, too, and Windows takes a socket
                // for ours beforehand: so it may be early.
                until("it has a connection", || {
                    flush();
                    cfg!(windows) || open_descriptors() >= before + 2
                });
                for _ in 0..5 {
                    thread::sleep(Duration::from_millis(1));
                    flush();
                }
            }
            State::Starved => {
                let other = port.bind_udp("127.0.0.1:0", 1).expect("bound");
                let address = other.local_addr().expect("an address");
                for _ in 0..BUFFERS {
                    other.recv(Buf::pooled()).expect("started");
                    let peer = UdpSocket::bind("127.0.0.1:0").expect("bound");
                    peer.send_to(b"x", address).expect("sent");
                    scene.held.push(next(port));
                }
                scene.send();
                scene.start(kind, SUBJECT);
                until("it waits for a buffer", || {
                    flush();
                    port.stats().starving > 0
                });
            }
            State::Completed => {
                scene.start(kind, SUBJECT);
                scene.come(true);
                // Submitted without taking its packet: by a thread that is no worker, with
                // something of its own.
                let (other, _peer) = pair(port);
                join(thread::spawn(move || other.start().silent().send("-").map(drop)))
                    .expect("started");
                until("it is over", || port.stats().queued > 0);
            }
            State::Taken => {
                scene.start(kind, SUBJECT);
                scene.come(true);
                scene.held.push(next(port));
            }
        }
        scene
    }

    fn happen(&mut self, event: Event) {
        let handle = self.handle.as_ref().expect("a handle");
        match event {
            Event::DropHandle => self.handle = None,
            Event::CloseHandle => handle.close(),
            Event::DropPort => self.port = None,
            Event::ClosePort => self.port.as_ref().expect("a port").close(),
            Event::Cancel => handle.cancel_all(),
            Event::PeerResets | Event::PeerEnds => {
                if matches!(handle, Handle::Listener(_)) && self.clients.is_empty() {
                    self.connect(false);
                }
                for client in self.clients.drain(..) {
                    if event == Event::PeerResets && client.peer_addr().is_ok() {
                        reset(client.into());
                    }
                }
            }
            Event::WorkerPanics | Event::WorkerExits => {}
        }
    }

    /// Lets everything come to its end, and counts.
    fn end(mut self, kind: Kind, state: State, event: Event) {
        let row = format!("{kind:?} {state:?} {event:?}");
        let mut last_packets = 0;
        let mut count = |packet: &Packet| {
            let of_another = match &packet.op {
                // Those that use up the pool.
                Op::RecvFrom { .. } => packet.context.is_none(),
                _ => false,
            };
            last_packets += usize::from(!packet.more && !of_another);
        };
        self.held.iter().for_each(&mut count);
        self.held.clear();
        if let Some(port) = self.port.take()
            && event != Event::ClosePort
        {
            match &self.handle {
                Some(handle) => handle.cancel_all(),
                None if kind == Kind::Connect => self.clients.clear(),
                // What is still in flight holds the handle until somebody comes.
                None if port.stats().in_flight > 0 => {
                    self.clients.clear();
                    let times = if state == State::Queued { 2 } else { 1 };
                    (0..times).for_each(|_| match kind {
                        Kind::Accept | Kind::AcceptEach | Kind::AcceptFirst => self.connect(true),
                        _ => self.send(),
                    });
                }
                None => {}
            }
            until(&format!("{row} is over"), || {
                while let Some(packet) = poll(&port) {
                    count(&packet);
                    if packet.more && self.handle.is_none() {
                        match packet.op {
                            Op::Accept { listener, .. } => listener.cancel_all(),
                            Op::RecvFrom { socket, .. } => socket.cancel_all(),
                            other => panic!("{other:?}"),
                        };
                    }
                }
                port.stats().in_flight == 0
            });
            assert!(poll(&port).is_none(), "{row}: a packet too many");
            let expected = match (state, event) {
                (State::Idle, _) => 0,
                // The worker took its packet with it.
                (State::Taken, Event::WorkerPanics | Event::WorkerExits) if !kind.repeats() => 0,
                (State::Queued, _) => 2,
                _ => 1,
            };
            assert_eq!(last_packets, expected, "{row}: last packets");
        }
        drop(self.handle);
        assert_eq!(self.tally.made(), self.tally.dropped(), "{row}: made and dropped");
        assert_eq!(self.size.alive(), 0, "{row}: buffers alive");
    }
}

fn fresh() -> Port {
    build(crate::builder().concurrency(1).datagram_pool(BUFFERS, POOLED))
}

/// All kinds in all states that they can be in.
fn rows() -> impl Iterator<Item = (Kind, State)> {
    let rows = KINDS.into_iter().flat_map(|kind| STATES.map(|state| (kind, state)));
    rows.filter(|(kind, state)| kind.can_be(*state))
}

fn each_row(event: Event) {
    run(move || {
        for (kind, state) in rows() {
            let port = fresh();
            let mut scene = Scene::set(&port, kind, state);
            scene.port = Some(port);
            scene.happen(event);
            scene.end(kind, state, event);
        }
    });
}

/// The same with a worker that ends after it has brought the operation into its state.
fn each_row_of_a_worker(event: Event) {
    run(move || {
        for (kind, state) in rows() {
            let port = fresh();
            let (sender, scenes) = mpsc::channel();
            let worker = {
                let port = port.clone();
                thread::spawn(move || {
                    // Bound, with a place of its own.
                    assert!(poll(&port).is_none());
                    let mut scene = Scene::set(&port, kind, state);
                    let held = std::mem::take(&mut scene.held);
                    sender.send(scene).expect("somebody listens");
                    if event == Event::WorkerPanics {
                        std::panic::resume_unwind(Box::new("on purpose"));
                    }
                    drop(held);
                })
            };
            let scene = receive(&scenes);
            let _ = worker.join();
            Scene { port: Some(port), ..scene }.end(kind, state, event);
        }
    });
}

test_each_event!();
