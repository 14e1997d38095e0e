//! Datagrams: received, sent, with addresses, in batches, cut off, coalesced.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use wharf::{
    ErrorKind, Refused,
    rio::{Direction, Options, Region},
};

use super::support::*;

/// Would catch: bytes at the wrong place, a lost context, a wrong length.
#[test]
fn datagrams_are_received_in_order() {
    run(|| {
        let region = Region::new(8, 256).unwrap();
        let mut queue = polled(8);
        let (socket, address) = socket(&mut queue, 8, 0);
        receives(&mut queue, socket, &region, 0..8);
        let peer = peer();
        for number in 0..8_u8 {
            peer.send_to(&vec![number; 1 + usize::from(number) * 20], address).unwrap();
        }
        for number in 0..8_u8 {
            let done = next(&mut queue);
            assert_eq!((done.socket, done.direction), (socket, Direction::Receive));
            assert_eq!(done.context, u64::from(number));
            assert_eq!(done.bytes().unwrap(), 1 + usize::from(number) * 20);
            assert_eq!(&done.slice[..], vec![number; 1 + usize::from(number) * 20]);
            assert_eq!((done.address(), done.truncated(), done.segment_size()), (None, None, None));
        }
        nothing(&mut queue);
    });
}

/// Would catch: a receive that is lost when the kernel has run out of posted ones, or one that is
/// never armed again.
#[test]
fn receiving_goes_on_when_receives_are_posted_again() {
    run(|| {
        const DATAGRAMS: u32 = 5_000;
        let region = Region::new(7, 64).unwrap();
        let mut queue = polled(7);
        let (socket, address) = socket(&mut queue, 7, 0);
        receives(&mut queue, socket, &region, 0..7);
        let peer = peer();
        let mut received = 0;
        for number in 0..DATAGRAMS {
            peer.send_to(&number.to_le_bytes(), address).unwrap();
            if number % 20 != 19 {
                continue;
            }
            while received <= number {
                let done = next(&mut queue);
                assert_eq!(&done.slice[..], received.to_le_bytes());
                received += 1;
                queue.receive(socket, done.slice).unwrap();
            }
        }
    });
}

/// Would catch: a datagram that fills several slices, or a length beyond the slice.
#[test]
fn a_datagram_that_does_not_fit_is_cut_off_and_reported() {
    for addresses in [false, true] {
        run(move || {
            let region = Region::new(2, 100).unwrap();
            let mut queue = polled(2);
            let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = ours.local_addr().unwrap();
            let options = if addresses { Options::new().addresses() } else { Options::new() };
            let socket = queue.udp_socket(ours, quota(2, 0), options).unwrap();
            receives(&mut queue, socket, &region, 0..2);
            let peer = peer();
            peer.send_to(&[7; 3000], address).unwrap();
            peer.send_to(&[8; 100], address).unwrap();
            let done = next(&mut queue);
            // Windows does not tell by how much.
            let whole = if cfg!(windows) { 101 } else { 3000 };
            assert_eq!((done.bytes().unwrap(), done.truncated()), (100, Some(whole)));
            assert_eq!(&done.slice[..], [7; 100]);
            let done = next(&mut queue);
            assert_eq!((done.bytes().unwrap(), done.truncated()), (100, None));
            assert_eq!(&done.slice[..], [8; 100]);
        });
    }
}

/// Would catch: an empty datagram taken for an end, a slice handed out that the kernel still has,
/// a request that never completes.
#[test]
fn empty_datagrams_are_datagrams() {
    for addresses in [false, true] {
        run(move || {
            let region = Region::new(16, 64).unwrap();
            let mut queue = polled(16);
            let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = ours.local_addr().unwrap();
            let options = if addresses { Options::new().addresses() } else { Options::new() };
            let socket = queue.udp_socket(ours, quota(16, 0), options).unwrap();
            receives(&mut queue, socket, &region, 0..16);
            let peer = peer();
            let sent = [3, 0, 0, 5, 0, 1, 2, 0, 0, 0, 9, 8, 0, 1, 0, 0];
            for length in sent {
                peer.send_to(&vec![length; usize::from(length)], address).unwrap();
            }
            let done = take(&mut queue, sent.len());
            let mut contexts = HashSet::new();
            for (done, length) in done.iter().zip(sent) {
                assert_eq!(done.bytes().unwrap(), usize::from(length));
                assert_eq!(&done.slice[..], vec![length; usize::from(length)]);
                assert_eq!(done.datagrams().count(), 1);
                assert!(contexts.insert(done.context), "two with one context");
            }
            assert_eq!(region.in_use(), 16);
            drop(done);
            assert_eq!(region.in_use(), 0);
            nothing(&mut queue);
        });
    }
}

/// Would catch: an address read from the wrong place.
#[test]
fn addresses_are_told_where_they_are_asked_for() {
    for host in ["127.0.0.1", "[::1]"] {
        run(move || {
            let Ok(peer) = UdpSocket::bind(format!("{host}:0")) else {
                return skip("addresses_are_told_where_they_are_asked_for", "no IPv6 here");
            };
            let region = Region::new(4, 512).unwrap();
            let mut queue = polled(4);
            let ours = UdpSocket::bind(format!("{host}:0")).unwrap();
            let address = ours.local_addr().unwrap();
            let options = Options::new().addresses().local_addresses();
            let socket = queue.udp_socket(ours, quota(4, 0), options).unwrap();
            receives(&mut queue, socket, &region, 0..4);
            peer.send_to(b"hello", address).unwrap();
            let done = next(&mut queue);
            assert_eq!(&done.slice[..], b"hello");
            assert_eq!(done.address(), Some(peer.local_addr().unwrap()));
            assert_eq!(done.local_address(), Some(address.ip()));
        });
    }
}

/// Would catch: headers that do not fit where both families' are told, or a mapped address where
/// nobody has asked for one.
#[test]
fn a_socket_of_both_families_tells_addresses() {
    const NAME: &str = "a_socket_of_both_families_tells_addresses";
    run(|| {
        let Ok(ours) = UdpSocket::bind("[::]:0") else { return skip(NAME, "no IPv6 here") };
        if cfg!(windows) {
            // There it is one of IPv6 alone, unless it says otherwise before it is bound.
            return skip(NAME, "the standard library makes no such socket");
        }
        let region = Region::new(8, 64).unwrap();
        let mut queue = polled(8);
        let port = ours.local_addr().unwrap().port();
        let options = Options::new().addresses().local_addresses();
        let socket = match queue.udp_socket(ours, quota(4, 4), options.coalesce()) {
            Ok(socket) => socket,
            Err(Refused { error, value: ours }) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                skip(NAME, "in part: datagrams are not coalesced here");
                queue.udp_socket(ours, quota(4, 4), options).unwrap()
            }
        };
        for host in ["127.0.0.1", "::1"] {
            let host: IpAddr = host.parse().unwrap();
            let peer = UdpSocket::bind((host, 0)).unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            queue.receive(socket, region.slices().next().unwrap()).unwrap();
            peer.send_to(b"question", (host, port)).unwrap();
            let done = next(&mut queue);
            assert_eq!(done.local_address(), Some(host));
            let to = done.address().unwrap();
            assert_eq!(
                (to.ip().to_canonical(), to.port()),
                (host, peer.local_addr().unwrap().port())
            );
            // Both forms will do for an answer.
            for to in [to, peer.local_addr().unwrap()] {
                let answer = filled(&region, b"answer");
                queue.start(socket).to(to).from(host).send(answer).unwrap();
                assert_eq!(next(&mut queue).bytes().unwrap(), 6);
                let mut room = [0; 16];
                assert_eq!(peer.recv_from(&mut room).unwrap(), (6, (host, port).into()));
            }
        }
    });
}

/// Would catch: a local address that is the socket's and not the datagram's.
#[test]
fn the_local_address_is_the_one_that_was_sent_to() {
    run(|| {
        let name = "the_local_address_is_the_one_that_was_sent_to";
        let unmarked = not_shown_by_wine(name, "in part: Wine sends without the source");
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(8);
        let ours = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = ours.local_addr().unwrap().port();
        let options = Options::new().addresses().local_addresses();
        let socket = queue.udp_socket(ours, quota(4, 4), options).unwrap();
        let peer = peer();
        for last in [1, 2, 3] {
            let wanted = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
            queue.receive(socket, region.slices().next().unwrap()).unwrap();
            peer.send_to(b"question", (wanted, port)).unwrap();
            let done = next(&mut queue);
            assert_eq!(done.local_address(), Some(wanted));
            // The answer comes from where the question went to.
            let (to, from) = (done.address().unwrap(), done.local_address().unwrap());
            queue.start(socket).to(to).from(from).send(done.slice).unwrap();
            assert_eq!(next(&mut queue).bytes().unwrap(), 8);
            let mut answer = [0; 16];
            let (bytes, whence) = peer.recv_from(&mut answer).unwrap();
            assert_eq!(&answer[..bytes], b"question");
            if !unmarked {
                assert_eq!(whence, (wanted, port).into());
            }
        }
    });
}

#[test]
fn datagrams_are_sent() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(4);
        let (socket, address) = socket(&mut queue, 0, 4);
        let peer = peer();
        let to = peer.local_addr().unwrap();
        queue.send_to(socket, filled(&region, b"one"), to).unwrap();
        queue.start(socket).to(to).context(5).send(filled(&region, b"")).unwrap();
        let mut room = [0; 16];
        assert_eq!(peer.recv_from(&mut room).unwrap(), (3, address));
        assert_eq!(peer.recv_from(&mut room).unwrap(), (0, address));
        let done = take(&mut queue, 2);
        assert!(done.iter().all(|done| done.direction == Direction::Send));
        assert_eq!((done[0].bytes().unwrap(), &done[0].slice[..]), (3, &b"one"[..]));
        assert_eq!((done[1].bytes().unwrap(), done[1].context), (0, 5));
    });
}

/// Would catch: a send that is lost or sent twice where it is deferred.
#[test]
fn deferred_sends_go_with_the_commit() {
    run(|| {
        // More than the submission queue takes at once.
        const SENDS: u16 = 700;
        let region = Region::new(SENDS.into(), 8).unwrap();
        let mut queue = polled(SENDS.into());
        let (socket, _) = socket(&mut queue, 0, SENDS.into());
        let peer = peer();
        socket2::SockRef::from(&peer).set_recv_buffer_size(4 << 20).unwrap();
        let to = peer.local_addr().unwrap();
        for (number, mut slice) in (0..SENDS).zip(region.slices()) {
            slice.copy_from(&number.to_le_bytes()).unwrap();
            queue.start(socket).to(to).context(number.into()).deferred().send(slice).unwrap();
        }
        // They count while they are deferred.
        let refused = queue.send_to(socket, filled(&Region::new(1, 1).unwrap(), b"x"), to);
        assert_eq!(refused.unwrap_err().error.kind(), ErrorKind::QueueFull);
        queue.commit(socket).unwrap();
        let mut seen = HashSet::new();
        for _ in 0..SENDS {
            let mut room = [0; 8];
            assert_eq!(peer.recv(&mut room).unwrap(), 2);
            assert!(seen.insert(u16::from_le_bytes([room[0], room[1]])));
        }
        let contexts: HashSet<_> =
            take(&mut queue, SENDS.into()).iter().map(|done| done.context).collect();
        assert_eq!(contexts.len(), usize::from(SENDS));
    });
}

/// Would catch: a slice that is written to while it is sent, or sent from the wrong place.
#[test]
fn slices_go_round_as_echoes() {
    run(|| {
        let region = Region::new(4, 128).unwrap();
        let mut queue = polled(8);
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        let socket = queue.udp_socket(ours, quota(4, 4), Options::new().addresses()).unwrap();
        receives(&mut queue, socket, &region, 0..4);
        let peer = peer();
        for round in 0..200_u8 {
            let message: Vec<u8> =
                (0..120).map(|at| at ^ round).take(usize::from(round) % 120).collect();
            peer.send_to(&message, address).unwrap();
            let done = next(&mut queue);
            let to = done.address().unwrap();
            queue.send_to(socket, done.slice, to).unwrap();
            let mut room = [0; 256];
            let bytes = peer.recv(&mut room).unwrap();
            assert_eq!(&room[..bytes], message);
            let done = next(&mut queue);
            assert_eq!(done.direction, Direction::Send);
            queue.receive(socket, done.slice).unwrap();
        }
    });
}

/// Would catch: boundaries that are lost where datagrams are divided or put together.
#[test]
fn segments_keep_their_boundaries() {
    run(|| {
        let region = Region::new(4, 65_535).unwrap();
        let mut queue = polled(8);
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        let socket = match queue.udp_socket(ours, quota(2, 2), Options::new().coalesce()) {
            Ok(socket) => socket,
            Err(Refused { error, value: ours }) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                let name = "segments_keep_their_boundaries";
                skip(name, "in part: datagrams are not coalesced here");
                queue.udp_socket(ours, quota(2, 2), Options::new()).unwrap()
            }
        };
        receives(&mut queue, socket, &region, 0..2);
        // 10 datagrams of 100 bytes and one of 37.
        let bytes: Vec<u8> = (0..=10).flat_map(|number| [number; 100]).take(1037).collect();
        let slice = filled(&region, &bytes);
        queue.start(socket).to(address).segments(100).send(slice).unwrap();
        let (mut received, mut sizes) = (Vec::new(), Vec::new());
        while received.len() < bytes.len() {
            let done = next(&mut queue);
            if done.direction == Direction::Send {
                assert_eq!(done.bytes().unwrap(), bytes.len());
                continue;
            }
            done.bytes().unwrap();
            for datagram in done.datagrams() {
                sizes.push(datagram.len());
                received.extend_from_slice(datagram);
            }
            queue.receive(socket, done.slice).unwrap();
        }
        assert_eq!(received, bytes);
        assert_eq!(sizes, [[100; 10].as_slice(), &[37]].concat());
    });
}

/// Would catch: a receive loop that an ICMP error ends, or one that reports it as a datagram.
#[test]
fn an_icmp_error_does_not_end_receiving() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(8);
        let nobody = peer();
        let there = nobody.local_addr().unwrap();
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        ours.connect(there).unwrap();
        drop(nobody);
        let socket = queue.udp_socket(ours, quota(2, 2), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..2);
        for _ in 0..5 {
            // Nobody listens: an error comes back, and may be told to the next send.
            queue.send(socket, filled(&region, b"anybody?")).unwrap();
            assert_eq!(next(&mut queue).direction, Direction::Send);
        }
        nothing(&mut queue);
        let name = "an_icmp_error_does_not_end_receiving";
        if not_shown_by_wine(name, "in part: Wine wakes no receive after that") {
            return;
        }
        let somebody = UdpSocket::bind(there).unwrap();
        somebody.send_to(b"yes", address).unwrap();
        let done = next(&mut queue);
        assert_eq!((done.direction, &done.slice[..]), (Direction::Receive, &b"yes"[..]));
    });
}

/// Would catch: the same for rarer errors: a router's that finds our header wrong (EPROTO).
#[test]
fn a_rarer_icmp_error_does_not_end_receiving() {
    const NAME: &str = "a_rarer_icmp_error_does_not_end_receiving";
    let router = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::RAW,
        Some(socket2::Protocol::ICMPV4),
    );
    let Ok(router) = router else {
        return skip(NAME, "only root may send ICMP messages of its own");
    };
    if not_shown_by_wine(NAME, "Wine tells of it as of an invalid argument") {
        return;
    }
    run(move || {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(8);
        let peer = peer();
        let there = peer.local_addr().unwrap();
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        ours.connect(there).unwrap();
        let socket = queue.udp_socket(ours, quota(2, 0), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..2);
        nothing(&mut queue);
        // "Parameter problem", about a datagram from us to the peer.
        let mut message = vec![12, 0, 0, 0, 0, 0, 0, 0];
        message.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
        message.extend(address.port().to_be_bytes());
        message.extend(there.port().to_be_bytes());
        message.extend([0, 8, 0, 0]);
        let sum: u32 =
            message.chunks(2).map(|it| u32::from(u16::from_be_bytes([it[0], it[1]]))).sum();
        let sum = u16::try_from(0xffff - sum % 0xffff).unwrap();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        router.send_to(&message, &"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        nothing(&mut queue);
        peer.send_to(b"yes", address).unwrap();
        let done = next(&mut queue);
        assert_eq!(done.bytes().unwrap(), 3);
        assert_eq!((done.direction, &done.slice[..]), (Direction::Receive, &b"yes"[..]));
    });
}

/// Would catch: sockets of one queue that get each other's datagrams.
#[test]
fn several_sockets_share_a_queue() {
    run(|| {
        let region = Region::new(64, 64).unwrap();
        let mut queue = polled(64);
        let sockets: Vec<_> = (0..8).map(|_| socket(&mut queue, 8, 0)).collect();
        let mut slices = region.slices();
        for _ in 0..8 {
            for (socket, _) in &sockets {
                queue.receive(*socket, slices.next().unwrap()).unwrap();
            }
        }
        let peer = peer();
        for round in 0..8_u8 {
            for (number, (_, address)) in (0..8_u8).zip(&sockets) {
                peer.send_to(&[number, round], address).unwrap();
            }
        }
        let mut rounds = [0; 8];
        for done in take(&mut queue, 64) {
            let number = usize::from(done.slice[0]);
            assert_eq!(done.socket, sockets[number].0);
            assert_eq!(done.slice[1], rounds[number]);
            rounds[number] += 1;
        }
    });
}

/// Would catch: a loss that nobody is told of, or memory that grows with a flood.
#[test]
fn a_flood_is_dropped_by_the_system_and_counted() {
    run(|| {
        let region = Region::new(4, 64).unwrap();
        let mut queue = polled(4);
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&ours).set_recv_buffer_size(4096).unwrap();
        let address = ours.local_addr().unwrap();
        let socket = queue.udp_socket(ours, quota(4, 0), Options::new()).unwrap();
        receives(&mut queue, socket, &region, 0..4);
        let peer = peer();
        const SENT: u64 = 2_000;
        for _ in 0..SENT {
            peer.send_to(&[0; 32], address).unwrap();
        }
        let mut received = 0;
        while let Some(done) = queue.dequeue().unwrap() {
            received += 1;
            queue.receive(socket, done.slice).unwrap();
        }
        assert!(received >= 4);
        if let Some(dropped) = queue.dropped(socket) {
            assert_eq!(received + dropped, SENT);
        }
    });
}
