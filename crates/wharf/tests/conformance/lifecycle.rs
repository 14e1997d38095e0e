//! Every state of an operation, met by everything that can happen to it: whatever it is, the
//! operation gives one packet or is freed with its port, and each buffer and context goes once.

use std::fs::File;
use std::{
    io::{self, Write},
    net::TcpStream,
    sync::mpsc,
    thread,
    time::Duration,
};

#[cfg(unix)]
use wharf::Transmit;
use wharf::{Buf, Wait};

use super::support::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Recv,
    RecvExact,
    Pooled,
    Each,
    Send,
    Vectored,
    /// An exchange that sends.
    Exchange,
    /// One that has sent, and receives.
    Answer,
    /// A receive without room.
    Readable,
    /// A receive with a deadline that does not pass.
    Timed,
    /// A receive without a packet.
    Silent,
    /// A file; what Wine makes of one whose peer goes is said elsewhere.
    #[cfg(unix)]
    Transmit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Over and taken apart: the handle has only memory that was used before.
    Idle,
    /// Behind another of its direction.
    Queued,
    /// In the kernel.
    Submitted,
    /// Waiting for a buffer of the pool.
    Starved,
    /// Over, its packet not taken.
    Completed,
    /// Its packet is in somebody's hands.
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    DropHandle,
    CloseHandle,
    DropPort,
    ClosePort,
    Cancel,
    PeerResets,
    PeerEnds,
    WorkerPanics,
    WorkerExits,
}

const KINDS: &[Kind] = &[
    Kind::Recv,
    Kind::RecvExact,
    Kind::Pooled,
    Kind::Each,
    Kind::Send,
    Kind::Vectored,
    Kind::Exchange,
    Kind::Answer,
    Kind::Readable,
    Kind::Timed,
    Kind::Silent,
    #[cfg(unix)]
    Kind::Transmit,
];
const STATES: [State; 6] =
    [State::Idle, State::Queued, State::Submitted, State::Starved, State::Completed, State::Taken];

const BUFFERS: usize = 2;
const POOLED: usize = 512;
/// The operation the table is about.
const SUBJECT: u64 = 1;
/// One that stands before it.
const OTHER: u64 = 2;

/// What carries the connections.
#[derive(Clone, Copy, Debug)]
enum Link {
    Tcp,
    #[cfg(windows)]
    NamedPipe,
}

const LINKS: &[Link] = &[
    Link::Tcp,
    #[cfg(windows)]
    Link::NamedPipe,
];

/// The other end of a connection.
#[derive(Debug)]
enum Peer {
    Tcp(TcpStream),
    #[cfg(windows)]
    NamedPipe(File),
}

impl Link {
    fn pair(self, port: &Port) -> (Stream, Peer) {
        match self {
            Self::Tcp => {
                let (stream, peer) = pair(port);
                (stream, Peer::Tcp(peer))
            }
            #[cfg(windows)]
            Self::NamedPipe => {
                let server = wharf::PipeServer::new(super::named_pipes::name());
                let stream = port.serve_pipe(&server, 1).expect("served");
                let peer = File::options().read(true).write(true).open(server.name());
                assert!(next(port).result.is_ok());
                (stream, Peer::NamedPipe(peer.expect("connected")))
            }
        }
    }
}

impl Peer {
    fn say(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(peer) => Write::write_all(&mut { peer }, bytes),
            #[cfg(windows)]
            Self::NamedPipe(peer) => Write::write_all(&mut { peer }, bytes),
        }
    }

    fn reset(self) {
        match self {
            Self::Tcp(peer) => reset(peer),
            // It knows no other end.
            #[cfg(windows)]
            Self::NamedPipe(peer) => drop(peer),
        }
    }
}

/// A connection with an operation in the wanted state, and what is needed to let it go on.
struct Scene {
    port: Option<Port>,
    stream: Option<Stream>,
    peer: Option<Peer>,
    tally: Tally,
    size: Size,
    /// Packets in somebody's hands.
    held: Vec<Packet>,
}

impl Kind {
    fn can_be(self, state: State) -> bool {
        match state {
            State::Starved => matches!(self, Self::Pooled | Self::Each | Self::Exchange),
            State::Queued | State::Submitted => true,
            _ => self != Self::Silent,
        }
    }

    fn start(self, scene: &Scene, id: u64, bytes: usize) {
        let stream = scene.stream.as_ref().expect("a stream");
        let start = stream.start().context(scene.tally.token(id));
        let data = || scene.tally.bytes(vec![1; bytes]);
        let started = match self {
            Self::Recv => start.recv(scene.size.vec()).is_ok(),
            Self::RecvExact => start.recv_exact(scene.size.vec(), 100).is_ok(),
            Self::Pooled => start.recv(Buf::pooled()).is_ok(),
            Self::Each => start.recv_each().is_ok(),
            Self::Send => start.send(data()).is_ok(),
            Self::Exchange => start.exchange(data()).is_ok(),
            Self::Answer => {
                let mut own = scene.size.vec().into_vec();
                own.push(1);
                start.exchange_exact(own, 100).is_ok()
            }
            Self::Vectored => start.send_vectored(vec![data(), data(), data()]).is_ok(),
            Self::Readable => start.recv(Vec::new()).is_ok(),
            Self::Timed => start.deadline(PATIENCE * 2).recv(scene.size.vec()).is_ok(),
            Self::Silent => start.silent().recv(scene.size.vec()).is_ok(),
            #[cfg(unix)]
            Self::Transmit => {
                let folder = super::files::Folder::new();
                let path = folder.path("file");
                let file = File::create_new(&path).and_then(|file| {
                    file.set_len(bytes as u64)?;
                    File::open(&path)
                });
                let transmit = Transmit::new(file.expect("a file"));
                start.transmit(transmit.head(data()).tail(data())).is_ok()
            }
        };
        assert!(started, "{self:?} was refused");
    }
}

impl Scene {
    /// Brings an operation into a state. Called on a thread that is bound to the port, or not.
    fn set(port: &Port, link: Link, kind: Kind, state: State) -> Self {
        let (stream, peer) = link.pair(port);
        let mut scene = Self {
            port: None,
            stream: Some(stream),
            peer: Some(peer),
            tally: Tally::default(),
            size: Size::new(),
            held: Vec::new(),
        };
        let write = |scene: &Self| {
            scene.peer.as_ref().expect("a peer").say(&[7; 100]).expect("written");
        };
        // More than the sockets hold, if it is to stay.
        let large = 8 << 20;
        match state {
            State::Idle => {
                kind.start(&scene, SUBJECT, 100);
                write(&scene);
                let packet = next(port);
                if packet.more {
                    drop(packet);
                    scene.stream.as_ref().map(Stream::cancel_all);
                    drop(next(port));
                }
            }
            State::Queued => {
                kind.start(&scene, OTHER, large);
                kind.start(&scene, SUBJECT, large);
                flush(port);
            }
            State::Submitted => {
                kind.start(&scene, SUBJECT, large);
                flush(port);
            }
            State::Starved => {
                let (other, busy) = link.pair(port);
                for _ in 0..BUFFERS {
                    other.recv(Buf::pooled()).expect("started");
                    busy.say(b"x").expect("written");
                    scene.held.push(next(port));
                }
                write(&scene);
                kind.start(&scene, SUBJECT, 0);
                until("it waits for a buffer", || {
                    assert!(poll(port).is_none());
                    port.stats().buffers_exhausted > 0
                });
            }
            State::Completed => {
                kind.start(&scene, SUBJECT, 100);
                write(&scene);
                // Submitted without taking its packet: by a thread that is no worker, with
                // something of its own.
                let (other, _peer) = pair(port);
                join(thread::spawn(move || other.start().silent().send("-").map(drop)))
                    .expect("started");
                until("it is over", || port.stats().queued > 0);
            }
            State::Taken => {
                kind.start(&scene, SUBJECT, 100);
                write(&scene);
                scene.held.push(next(port));
            }
        }
        scene
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::DropHandle => self.stream = None,
            Event::CloseHandle => self.stream.as_ref().expect("a stream").close(),
            Event::DropPort => self.port = None,
            Event::ClosePort => self.port.as_ref().expect("a port").close(),
            Event::Cancel => {
                self.stream.as_ref().expect("a stream").cancel_all();
            }
            Event::PeerResets => self.peer.take().expect("a peer").reset(),
            Event::PeerEnds => self.peer = None,
            Event::WorkerPanics | Event::WorkerExits => {}
        }
    }

    /// Lets everything come to its end, and counts.
    fn end(mut self, kind: Kind, state: State, event: Event) {
        let row = format!("{kind:?} {state:?} {event:?}");
        let mut last_packets = [0; 3];
        let mut count = |packet: &Packet| {
            let id = packet.context.as_ref().map_or(0, |token| token.id);
            if !packet.more {
                last_packets[usize::try_from(id).unwrap_or(0)] += 1;
            }
        };
        self.held.iter().for_each(&mut count);
        self.held.clear();
        // What is still in flight ends with the peer.
        self.peer = None;
        if let Some(port) = &self.port
            && event != Event::ClosePort
        {
            until(&format!("{row} is over"), || {
                while let Some(packet) = poll(port) {
                    count(&packet);
                }
                port.stats().in_flight == 0
            });
            assert!(poll(port).is_none(), "{row}: a packet too many");
            let expected = match (state, event) {
                (State::Idle, _) => None,
                _ if kind == Kind::Silent => Some([0, 0]),
                // The worker took its packet with it.
                (State::Taken, Event::WorkerPanics | Event::WorkerExits) if kind != Kind::Each => {
                    Some([0, 0])
                }
                (State::Queued, _) => Some([1, 1]),
                _ => Some([1, 0]),
            };
            if let Some(expected) = expected {
                assert_eq!(last_packets[1..], expected, "{row}: last packets");
            }
        }
        self.port = None;
        self.stream = None;
        assert_eq!(self.tally.made(), self.tally.dropped(), "{row}: made and dropped");
        assert_eq!(self.size.alive(), 0, "{row}: buffers alive");
    }
}

/// Submits what this thread has started, and expects no packet.
fn flush(port: &Port) {
    assert!(poll(port).is_none(), "a packet too early");
}

fn fresh() -> Port {
    build(crate::builder().concurrency(1).pool(BUFFERS, POOLED))
}

/// All kinds in all states that they can be in.
fn rows() -> impl Iterator<Item = (Link, Kind, State)> {
    let kinds = LINKS.iter().flat_map(|link| KINDS.iter().map(|kind| (*link, *kind)));
    let rows = kinds.flat_map(|(link, kind)| STATES.map(|state| (link, kind, state)));
    rows.filter(|(_, kind, state)| kind.can_be(*state))
}

fn each_row(event: Event) {
    run(move || {
        for (link, kind, state) in rows() {
            let port = fresh();
            let mut scene = Scene::set(&port, link, kind, state);
            scene.port = Some(port);
            scene.happen(event);
            scene.end(kind, state, event);
        }
    });
}

/// The same with a worker that ends after it has brought the operation into its state.
fn each_row_of_a_worker(event: Event) {
    run(move || {
        for (link, kind, state) in rows() {
            let port = fresh();
            let (sender, scenes) = mpsc::channel();
            let worker = {
                let port = port.clone();
                thread::spawn(move || {
                    // Bound, with a place of its own.
                    flush(&port);
                    let mut scene = Scene::set(&port, link, kind, state);
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

/// A test of the table for each event, made of `each_row` and `each_row_of_a_worker`.
macro_rules! test_each_event {
    () => {
        /// Would catch: an operation that goes with its handle, or a handle that never goes.
        #[test]
        fn a_handle_is_dropped() {
            each_row(Event::DropHandle);
        }

        /// Would catch: an operation that a closed handle forgets.
        #[test]
        fn a_handle_is_closed() {
            each_row(Event::CloseHandle);
        }

        /// Would catch: a port that leaks what is in flight, frees it under the kernel, or waits
        /// for ever.
        #[test]
        fn a_port_is_dropped() {
            each_row(Event::DropPort);
        }

        /// Would catch: the same where the port is closed first.
        #[test]
        fn a_port_is_closed() {
            each_row(Event::ClosePort);
        }

        /// Would catch: a cancellation that loses an operation in one of its states.
        #[test]
        fn everything_is_cancelled() {
            each_row(Event::Cancel);
        }

        /// Would catch: a reset that an operation in one of its states does not survive.
        #[test]
        fn the_peer_resets() {
            each_row(Event::PeerResets);
        }

        /// Would catch: the same for an orderly end.
        #[test]
        fn the_peer_ends() {
            each_row(Event::PeerEnds);
        }

        /// Would catch: operations that go down with the worker that panicked.
        #[test]
        fn a_worker_panics() {
            each_row_of_a_worker(Event::WorkerPanics);
        }

        /// Would catch: operations that die with their thread.
        #[test]
        fn a_worker_exits() {
            each_row_of_a_worker(Event::WorkerExits);
        }
    };
}
pub(super) use test_each_event;

test_each_event!();

/// Would catch: two events at once, in either order, from other threads than the one that started
/// the operation.
#[test]
fn events_meet() {
    run(|| {
        let mut random = Random::new(Random::seed("events_meet"));
        for _ in 0..300 {
            let kind = KINDS[random.below(KINDS.len())];
            let port = fresh();
            let link = LINKS[random.below(LINKS.len())];
            let scene = Scene::set(&port, link, kind, State::Submitted);
            let Scene { stream, peer, tally, size, .. } = scene;
            let (stream, peer) = (stream.expect("a stream"), peer.expect("a peer"));
            let delays: Vec<_> = (0..4).map(|_| random.below(120)).collect();
            let pause = |place: usize| {
                let pause = u64::try_from(delays[place]).unwrap_or(0);
                thread::sleep(Duration::from_micros(pause));
            };
            thread::scope(|scope| {
                scope.spawn(|| {
                    pause(0);
                    stream.cancel_all();
                });
                scope.spawn(|| {
                    pause(1);
                    stream.close();
                });
                scope.spawn(|| {
                    pause(2);
                    let _ = peer.say(b"x");
                });
                scope.spawn(|| {
                    while let Wait::Packet(packet) = port.wait() {
                        drop(packet);
                    }
                });
                pause(3);
                until("it is over", || port.stats().in_flight == 0);
                port.close();
            });
            drop((port, stream));
            tally.assert_even();
            assert_eq!(size.alive(), 0);
        }
    });
}
