//! Quotas, the room of the completion queue, and calls that make no sense: each is refused with a
//! remedy, the slice comes back, and the rest goes on.

use std::{collections::HashMap, net::UdpSocket};

use proptest::prelude::*;
use wharf::{
    Error, ErrorKind,
    rio::{CompletionQueue, Direction, Options, Polled, Region, RequestQueue},
};

use super::support::*;

/// An error of this kind, which says what to do.
#[track_caller]
fn assert_error(error: &Error, kind: ErrorKind) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains("; "), "no remedy: {error}");
}

#[test]
fn a_full_quota_refuses_and_gives_the_slice_back() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(4);
        let (socket, address) = socket(&mut queue, 2, 1);
        receives(&mut queue, socket, &region, 0..2);
        let refused = queue.receive(socket, filled(&region, b"mine")).unwrap_err();
        assert_error(&refused.error, ErrorKind::QueueFull);
        assert_eq!(&refused.value[..], b"mine");
        // A completion that has not been dequeued still counts.
        peer().send_to(b"a", address).unwrap();
        std::thread::sleep(MOMENT);
        let refused = queue.receive(socket, refused.value).unwrap_err();
        assert_error(&refused.error, ErrorKind::QueueFull);
        next(&mut queue);
        queue.receive(socket, refused.value).unwrap();
        // Sends have their own.
        let to = peer().local_addr().unwrap();
        queue.start(socket).to(to).deferred().send(filled(&region, b"1")).unwrap();
        let refused = queue.send_to(socket, filled(&region, b"2"), to).unwrap_err();
        assert_error(&refused.error, ErrorKind::QueueFull);
        queue.commit(socket).unwrap();
        assert_eq!(next(&mut queue).direction, Direction::Send);
        queue.send_to(socket, refused.value, to).unwrap();
    });
}

#[test]
fn quotas_are_reserved_in_the_completion_queue() {
    let mut queue = polled(10);
    assert_eq!((queue.capacity(), queue.room()), (10, 10));
    let first = queue.udp("127.0.0.1:0", quota(4, 2)).unwrap();
    assert_eq!(queue.room(), 4);
    let error = queue.udp("127.0.0.1:0", quota(3, 2)).unwrap_err();
    assert_error(&error, ErrorKind::QueueFull);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let refused = queue.udp_socket(socket, quota(usize::MAX, 2), Options::new()).unwrap_err();
    assert_error(&refused.error, ErrorKind::QueueFull);
    assert_eq!(refused.value.local_addr().unwrap(), address, "the socket comes back");
    let second = queue.udp("127.0.0.1:0", quota(3, 1)).unwrap();
    assert_eq!(queue.room(), 0);
    queue.close(first).unwrap();
    assert_eq!(queue.room(), 6);
    assert_error(&queue.set_quota(second, quota(8, 3)).unwrap_err(), ErrorKind::QueueFull);
    queue.set_quota(second, quota(8, 2)).unwrap();
    assert_eq!(queue.room(), 0);
    queue.set_quota(second, quota(1, 0)).unwrap();
    assert_eq!(queue.room(), 9);
}

#[test]
fn a_quota_of_nothing_is_refused() {
    let mut queue = polled(4);
    assert_error(&queue.udp("127.0.0.1:0", quota(0, 0)).unwrap_err(), ErrorKind::InvalidInput);
    let (stream, _peer) = connection();
    let refused = queue.tcp_stream(stream, quota(0, 0)).unwrap_err();
    assert_error(&refused.error, ErrorKind::InvalidInput);
    assert_eq!(queue.room(), 4);
}

#[test]
fn a_queue_has_room_for_something_and_not_for_everything() {
    for capacity in [0, usize::MAX] {
        let error = crate::builder(capacity).polled().unwrap_err();
        assert_error(&error, ErrorKind::InvalidInput);
        let error = crate::builder(capacity).event().unwrap_err();
        assert_error(&error, ErrorKind::InvalidInput);
    }
}

/// Would catch: a resize that lets reserved room go, or counts it wrongly.
#[test]
fn resizing_never_goes_below_what_is_reserved() {
    run(|| {
        let region = Region::new(300, 16).unwrap();
        let mut queue = polled(8);
        let (socket, address) = socket(&mut queue, 8, 0);
        assert_error(&queue.resize(7).unwrap_err(), ErrorKind::Busy);
        assert_error(&queue.resize(0).unwrap_err(), ErrorKind::InvalidInput);
        queue.resize(300).unwrap();
        assert_eq!((queue.capacity(), queue.room()), (300, 292));
        queue.set_quota(socket, quota(300, 0)).unwrap();
        receives(&mut queue, socket, &region, 0..300);
        assert_error(&queue.set_quota(socket, quota(299, 0)).unwrap_err(), ErrorKind::Busy);
        // More than the queue was made for: nothing is lost.
        let peer = peer();
        for number in 0..300_u32 {
            peer.send_to(&number.to_le_bytes(), address).unwrap();
            if number % 50 == 49 {
                for expected in number - 49..=number {
                    assert_eq!(&next(&mut queue).slice[..], expected.to_le_bytes());
                }
            }
        }
        queue.set_quota(socket, quota(8, 0)).unwrap();
        queue.resize(8).unwrap();
    });
}

/// Would catch: completions that get lost once there are more than the kernel's queue takes.
#[test]
fn completions_beyond_the_first_capacity_are_kept() {
    run(|| {
        const RECEIVES: u64 = 3_000;
        let region = Region::new(3_000, 16).unwrap();
        let mut queue = polled(1);
        queue.resize(3_000).unwrap();
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&ours).set_recv_buffer_size(4 << 20).unwrap();
        let address = ours.local_addr().unwrap();
        let socket = queue.udp_socket(ours, quota(3_000, 0), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..RECEIVES);
        // So that all are armed, and fill up while nobody looks.
        queue.commit(socket).unwrap();
        let peer = peer();
        for number in 0..RECEIVES {
            peer.send_to(&number.to_le_bytes(), address).unwrap();
        }
        for number in 0..RECEIVES {
            let done = next(&mut queue);
            assert_eq!((done.context, &done.slice[..]), (number, &number.to_le_bytes()[..]));
        }
    });
}

#[test]
fn what_cannot_be_sent_so_is_refused() {
    run(|| {
        let region = Region::new(16, 70_000).unwrap();
        let mut queue = polled(16);
        let (socket, _) = socket(&mut queue, 2, 2);
        let (stream, _peer) = connection();
        let stream = queue.tcp_stream(stream, quota(2, 2)).unwrap();
        let to = peer().local_addr().unwrap();
        let v6 = "[::1]:9".parse().unwrap();
        let sized = |bytes| {
            let mut slice = region.slices().next().unwrap();
            slice.set_len(bytes).unwrap();
            slice
        };
        let refused = [
            queue.send_to(socket, sized(65_508), to),
            queue.start(socket).to(to).segments(0).send(sized(10)),
            queue.start(socket).to(to).segments(10).send(sized(641)),
            queue.send_to(socket, sized(10), v6),
            queue.start(socket).to(to).from(v6.ip()).send(sized(10)),
            queue.start(socket).to(to).wait_all().send(sized(10)),
            queue.start(socket).wait_all().receive(sized(10)),
            queue.start(socket).to(to).receive(sized(10)),
            queue.send_to(stream, sized(10), to),
            queue.start(stream).segments(5).send(sized(10)),
        ];
        for refused in refused {
            let refused = refused.unwrap_err();
            assert_error(&refused.error, ErrorKind::InvalidInput);
            assert!(refused.value.len() >= 10, "the slice comes back as it was");
        }
        assert_eq!(region.in_use(), 0);
        // Nothing of it counts.
        for _ in 0..2 {
            queue.send_to(socket, sized(10), to).unwrap();
        }
        assert!(take(&mut queue, 2).iter().all(|done| done.bytes().unwrap() == 10));
    });
}

/// Would catch: a send without an address that is thought to have been sent.
#[test]
fn a_send_to_nowhere_fails() {
    run(|| {
        let region = Region::new(1, 16).unwrap();
        let mut queue = polled(2);
        let (socket, _) = socket(&mut queue, 0, 1);
        queue.send(socket, filled(&region, b"lost")).unwrap();
        let done = next(&mut queue);
        assert!(done.bytes().is_err());
        assert_eq!(&done.slice[..], b"lost");
    });
}

#[test]
fn an_address_in_use_is_said_to_be() {
    let taken = peer();
    let error = polled(4).udp(taken.local_addr().unwrap(), quota(1, 0)).unwrap_err();
    assert_error(&error, ErrorKind::AddressInUse);
}

#[test]
fn regions_refuse_what_makes_no_sense() {
    for (slices, bytes) in [(0, 10), (10, 0), (10, usize::MAX), (usize::MAX, 10)] {
        assert_error(&Region::new(slices, bytes).unwrap_err(), ErrorKind::InvalidInput);
    }
    for alignment in [usize::MAX, (1 << 30) + 1] {
        assert_error(&Region::aligned(1, 10, alignment).unwrap_err(), ErrorKind::InvalidInput);
    }
    let region = Region::new(3, 10).unwrap();
    assert_error(&region.slice(3).unwrap_err(), ErrorKind::InvalidInput);
    let mut slice = region.slice(1).unwrap();
    assert_error(&region.slice(1).unwrap_err(), ErrorKind::Busy);
    assert_error(&slice.set_len(11).unwrap_err(), ErrorKind::InvalidInput);
    assert_error(&slice.copy_from(&[1; 11]).unwrap_err(), ErrorKind::InvalidInput);
    slice.copy_from(&[1; 10]).unwrap();
    assert_eq!(region.slices().map(|slice| slice.index()).collect::<Vec<_>>(), [0, 2]);
    let refused = region.deregister().unwrap_err();
    assert_error(&refused.error, ErrorKind::Busy);
    drop(slice);
    refused.value.deregister().unwrap();
}

/// Would catch: neighbours that overlap, and slices that are not where they were asked for.
#[test]
fn slices_do_not_touch_each_other() {
    let sizes = [1, 63, 64, 100, 1920, 4096];
    let alignments = [0, 1, 300, 512, 4096, 1 << 16];
    for (bytes, alignment) in sizes.into_iter().flat_map(|it| alignments.map(|other| (it, other))) {
        let region = Region::aligned(9, bytes, alignment).unwrap();
        let unit = alignment.next_power_of_two();
        assert!(region.slices().all(|slice| slice.as_ptr().addr() % unit == 0), "{alignment}");
        let mut slices: Vec<_> = region.slices().collect();
        for (number, slice) in (1..).zip(&mut slices) {
            assert_eq!(slice.room(), vec![0; bytes]);
            slice.room().fill(number);
        }
        for (number, slice) in (1..).zip(&mut slices) {
            assert_eq!(slice.room(), vec![number; bytes]);
        }
    }
}

/// Would catch: a closed request queue that still takes something, or its number mistaken for the
/// next one's.
#[test]
fn a_request_queue_is_not_used_after_it_is_closed() {
    run(|| {
        let region = Region::new(4, 16).unwrap();
        let mut queue = polled(8);
        let mut other = polled(8);
        let (old, _) = socket(&mut queue, 2, 2);
        queue.close(old).unwrap();
        let (new, _) = socket(&mut queue, 2, 2);
        assert_ne!(old, new);
        let (strange, _) = socket(&mut other, 2, 2);
        for closed in [old, strange] {
            let refused = queue.receive(closed, filled(&region, b"back")).unwrap_err();
            assert_error(&refused.error, ErrorKind::Closed);
            assert_eq!(&refused.value[..], b"back");
            let refused = queue.send(closed, refused.value).unwrap_err();
            assert_error(&refused.error, ErrorKind::Closed);
            assert_error(&queue.commit(closed).unwrap_err(), ErrorKind::Closed);
            assert_error(&queue.close(closed).unwrap_err(), ErrorKind::Closed);
            assert_error(&queue.local_addr(closed).unwrap_err(), ErrorKind::Closed);
            let error = queue.set_quota(closed, quota(1, 1)).unwrap_err();
            assert_error(&error, ErrorKind::Closed);
            assert_eq!(queue.dropped(closed), None);
        }
        queue.receive(new, region.slice(0).unwrap()).unwrap();
    });
}

// ---- Against a model --------------------------------------------------------------------------

/// Something a program may do with one of three sockets.
#[derive(Clone, Debug)]
enum Step {
    Open {
        receives: usize,
        sends: usize,
    },
    Close(usize),
    SetQuota {
        which: usize,
        receives: usize,
        sends: usize,
    },
    Resize(usize),
    Receive(usize),
    /// A send that goes nowhere in particular.
    Send {
        which: usize,
        deferred: bool,
    },
    Commit(usize),
    /// Somebody sends a socket a datagram, if it has a receive outstanding for it.
    Arrive(usize),
    /// Takes so many of the completions that there must be.
    Dequeue(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..3_usize;
    let size = || 0..6_usize;
    prop_oneof![
        2 => (size(), size()).prop_map(|(receives, sends)| Step::Open { receives, sends }),
        1 => which.clone().prop_map(Step::Close),
        1 => (which.clone(), size(), size())
            .prop_map(|(which, receives, sends)| Step::SetQuota { which, receives, sends }),
        1 => (0..24_usize).prop_map(Step::Resize),
        6 => which.clone().prop_map(Step::Receive),
        4 => (which.clone(), any::<bool>())
            .prop_map(|(which, deferred)| Step::Send { which, deferred }),
        2 => which.clone().prop_map(Step::Commit),
        5 => which.prop_map(Step::Arrive),
        5 => (1..5_usize).prop_map(Step::Dequeue),
    ]
}

/// A request queue as the model sees it.
#[derive(Debug)]
struct Model {
    receives_max: usize,
    sends_max: usize,
    /// Outstanding, what has completed and was not dequeued included.
    receives: usize,
    sends: usize,
    /// Receives for which something has arrived, and sends that are on their way: they complete.
    arrived: usize,
    deferred: usize,
    open: bool,
}

impl Model {
    fn reserved(&self) -> usize {
        if self.open || self.receives + self.sends > 0 {
            self.receives_max + self.sends_max
        } else {
            0
        }
    }

    /// How many completions must come.
    fn due(&self) -> usize {
        if self.open {
            self.arrived + self.sends - self.deferred
        } else {
            self.receives + self.sends
        }
    }
}

struct World {
    queue: CompletionQueue<Polled>,
    capacity: usize,
    names: Vec<RequestQueue>,
    models: HashMap<RequestQueue, Model>,
    region: Region,
    peer: UdpSocket,
}

impl World {
    fn reserved(&self) -> usize {
        self.models.values().map(Model::reserved).sum()
    }

    fn pick(&self, which: usize) -> Option<RequestQueue> {
        self.names.get(self.names.len().wrapping_sub(1 + which)).copied()
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Open { receives, sends } => {
                let room = self.capacity - self.reserved();
                assert_eq!(self.queue.room(), room);
                let result = self.queue.udp("127.0.0.1:0", quota(receives, sends));
                match receives + sends {
                    0 => assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput),
                    total if total > room => {
                        assert_eq!(result.unwrap_err().kind(), ErrorKind::QueueFull);
                    }
                    _ => {
                        let name = result.unwrap();
                        let (receives_max, sends_max) = (receives, sends);
                        let model = Model {
                            receives_max,
                            sends_max,
                            receives: 0,
                            sends: 0,
                            arrived: 0,
                            deferred: 0,
                            open: true,
                        };
                        assert!(self.models.insert(name, model).is_none(), "a name is used twice");
                        self.names.push(name);
                    }
                }
            }
            Step::Close(which) => {
                let Some(name) = self.pick(which) else { return };
                let model = self.models.get_mut(&name).unwrap();
                assert_eq!(self.queue.close(name).is_ok(), model.open);
                model.open = false;
            }
            Step::SetQuota { which, receives, sends } => {
                let Some(name) = self.pick(which) else { return };
                let room = self.capacity - self.reserved();
                let model = self.models.get_mut(&name).unwrap();
                let expected = match receives + sends {
                    _ if !model.open => Err(ErrorKind::Closed),
                    _ if model.receives > receives || model.sends > sends => Err(ErrorKind::Busy),
                    0 => Err(ErrorKind::InvalidInput),
                    total if total > room + model.reserved() => Err(ErrorKind::QueueFull),
                    _ => Ok(()),
                };
                let result = self.queue.set_quota(name, quota(receives, sends));
                assert_eq!(result.map_err(|error| error.kind()), expected);
                if expected.is_ok() {
                    (model.receives_max, model.sends_max) = (receives, sends);
                }
            }
            Step::Resize(capacity) => {
                let expected = match capacity {
                    0 => Err(ErrorKind::InvalidInput),
                    _ if capacity < self.reserved() => Err(ErrorKind::Busy),
                    _ => Ok(()),
                };
                let result = self.queue.resize(capacity);
                assert_eq!(result.map_err(|error| error.kind()), expected);
                if expected.is_ok() {
                    self.capacity = capacity;
                }
            }
            Step::Receive(which) => {
                let Some(name) = self.pick(which) else { return };
                let model = self.models.get_mut(&name).unwrap();
                let slice = self.region.slices().next().unwrap();
                let result = self.queue.receive(name, slice);
                let expected = match () {
                    () if !model.open => Err(ErrorKind::Closed),
                    () if model.receives >= model.receives_max => Err(ErrorKind::QueueFull),
                    () => Ok(()),
                };
                assert_eq!(result.map_err(|refused| refused.error.kind()), expected);
                model.receives += usize::from(expected.is_ok());
            }
            Step::Send { which, deferred } => {
                let Some(name) = self.pick(which) else { return };
                let model = self.models.get_mut(&name).unwrap();
                let to = self.peer.local_addr().unwrap();
                let start = self.queue.start(name).to(to);
                let start = if deferred { start.deferred() } else { start };
                let result = start.send(filled(&self.region, b"x"));
                let expected = match () {
                    () if !model.open => Err(ErrorKind::Closed),
                    () if model.sends >= model.sends_max => Err(ErrorKind::QueueFull),
                    () => Ok(()),
                };
                assert_eq!(result.map_err(|refused| refused.error.kind()), expected);
                if expected.is_ok() {
                    model.sends += 1;
                    model.deferred += usize::from(deferred);
                }
            }
            Step::Commit(which) => {
                let Some(name) = self.pick(which) else { return };
                let model = self.models.get_mut(&name).unwrap();
                assert_eq!(self.queue.commit(name).is_ok(), model.open);
                if model.open {
                    model.deferred = 0;
                }
            }
            Step::Arrive(which) => {
                let Some(name) = self.pick(which) else { return };
                let model = self.models.get_mut(&name).unwrap();
                if model.open && model.arrived < model.receives {
                    let address = self.queue.local_addr(name).unwrap();
                    self.peer.send_to(b"datagram", address).unwrap();
                    model.arrived += 1;
                }
            }
            Step::Dequeue(most) => {
                let due: usize = self.models.values().map(Model::due).sum();
                for _ in 0..most.min(due) {
                    self.dequeue();
                }
            }
        }
        let out: usize = self.models.values().map(|model| model.receives + model.sends).sum();
        assert_eq!(self.region.in_use(), out, "a slice is out for each outstanding request");
        assert_eq!(self.queue.room(), self.capacity - self.reserved());
    }

    fn dequeue(&mut self) {
        let done = next(&mut self.queue);
        let model = self.models.get_mut(&done.socket).expect("a known name");
        match done.direction {
            Direction::Receive => {
                assert!(model.receives > 0);
                model.receives -= 1;
                model.arrived = model.arrived.saturating_sub(usize::from(done.bytes().is_ok()));
            }
            Direction::Send => {
                assert!(model.sends > 0);
                model.sends -= 1;
                // A deferred send may begin before its commit.
                model.deferred = model.deferred.min(model.sends);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Would catch: a quota that is not given back, given back twice, or not reserved; a slice that
    /// is lost; a completion that does not come.
    #[test]
    fn quotas_behave_as_the_model_does(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World {
            queue: polled(16),
            capacity: 16,
            names: Vec::new(),
            models: HashMap::new(),
            region: Region::new(64, 16).unwrap(),
            peer: peer(),
        };
        for step in steps {
            world.apply(step);
        }
        let World { queue, region, .. } = world;
        drop(queue);
        prop_assert_eq!(region.in_use(), 0);
    }
}
