//! TCP: accepting, connecting, order, and peers that misbehave.

use std::{
    collections::HashSet,
    io::{ErrorKind as IoKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use wharf::{Buf, ErrorKind};

#[cfg(unix)]
use std::os::fd::AsRawFd;

use super::support::*;

fn listen(port: &Port) -> (Listener, SocketAddr) {
    let listener = port.listen("127.0.0.1:0", 100).expect("listening");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn client(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    client.set_write_timeout(Some(PATIENCE)).expect("a deadline");
    client
}

/// The connection and the first data of an accept that succeeded.
#[track_caller]
fn accepted(packet: Packet) -> (Stream, Option<Buf>) {
    assert!(packet.result.is_ok(), "{packet:?}");
    match packet.op {
        Op::Accept { listener, incoming: Some(incoming), first } => {
            assert_eq!(*listener.key(), 100);
            (incoming.associate(1).expect("associated"), first)
        }
        other => panic!("not accepted: {other:?}"),
    }
}

#[track_caller]
fn received(packet: Packet) -> Vec<u8> {
    match packet.op {
        Op::Recv { buf, .. } => buf.into_vec(),
        other => panic!("not a receive: {other:?}"),
    }
}

// ---- Accepting --------------------------------------------------------------------------------

/// Would catch: an accept that takes more than one, or none, or the wrong connection.
#[test]
fn one_accept_takes_one_connection() {
    run(|| {
        let port = port(1);
        let (listener, address) = listen(&port);
        listener.start().context(Token::from(5)).accept_one().unwrap();
        assert!(poll(&port).is_none());
        let (first, _second) = (client(address), client(address));
        let packet = next(&port);
        assert_eq!((packet.context.as_ref().map(|token| token.id), packet.more), (Some(5), false));
        let Op::Accept { incoming: Some(incoming), .. } = &packet.op else { panic!("{packet:?}") };
        assert_eq!(incoming.peer_addr().unwrap(), first.local_addr().unwrap());
        let (stream, _) = accepted(packet);
        assert_eq!(stream.peer_addr().unwrap(), first.local_addr().unwrap());
        assert_eq!(stream.local_addr().unwrap(), address);
        assert!(poll(&port).is_none(), "the second waits for the next accept");
        listener.accept_one().unwrap();
        accepted(next(&port));
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: accepts posted ahead that share a connection or lose one.
#[test]
fn many_accepts_wait_at_once() {
    run(|| {
        let port = port(1);
        let (listener, address) = listen(&port);
        for _ in 0..10 {
            listener.accept_one().unwrap();
        }
        assert!(poll(&port).is_none());
        let clients: Vec<_> = (0..10).map(|_| client(address)).collect();
        let accepted: HashSet<_> =
            (0..10).map(|_| accepted(next(&port)).0.peer_addr().unwrap()).collect();
        let expected = clients.iter().map(|client| client.local_addr().unwrap()).collect();
        assert_eq!(accepted, expected);
        assert!(poll(&port).is_none());
    });
}

/// Would catch: a repeated accept that stops, doubles, or says too early that it is over.
#[test]
fn a_repeated_accept_goes_on_until_it_is_cancelled() {
    run(|| {
        let port = port(2);
        let (listener, address) = listen(&port);
        listener.accept().unwrap();
        let pump = Pump::new(&port, 3);
        let connector =
            thread::spawn(move || (0..200).map(|_| client(address)).collect::<Vec<_>>());
        let mut seen = HashSet::new();
        let mut streams = Vec::new();
        for _ in 0..200 {
            let packet = pump.next();
            assert!(packet.more);
            let (stream, first) = accepted(packet);
            assert!(first.is_none());
            assert!(seen.insert(stream.peer_addr().unwrap()));
            streams.push(stream);
        }
        join(connector);
        assert_eq!((port.stats().in_flight, port.handles()), (1, 201));
        assert_eq!(listener.cancel_all(), 1);
        let packet = pump.next();
        assert!(packet.result.unwrap_err().is_cancelled() && !packet.more);
        assert!(matches!(packet.op, Op::Accept { incoming: None, .. }));
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: a closed listener that still accepts, or that leaves its address taken.
#[test]
fn a_closed_listener_lets_its_address_go() {
    run(|| {
        let port = port(1);
        let (listener, address) = listen(&port);
        assert_eq!(port.listen(address, 0).unwrap_err().kind(), ErrorKind::AddressInUse);
        listener.accept().unwrap();
        listener.accept_one().unwrap();
        listener.close();
        for _ in 0..2 {
            let packet = next(&port);
            assert!(packet.result.unwrap_err().is_cancelled());
        }
        drop(listener);
        let refused = TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), IoKind::ConnectionRefused);
        let again = port.listen(address, 0).unwrap();
        assert_eq!(again.local_addr().unwrap(), address);
    });
}

/// Would catch: addresses that are taken for good ones, or errors whose kind or code is lost.
#[test]
fn bad_addresses_are_refused() {
    run(|| {
        let port = port(1);
        // TEST-NET-1: nobody has it.
        let error = port.listen("192.0.2.1:0", 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddressNotAvailable);
        assert_eq!(error.raw_os_error(), Some(codes::ADDRESS_NOT_AVAILABLE));
        assert!(port.listen("not an address", 0).is_err());
        let none: &[SocketAddr] = &[];
        assert_eq!(port.listen(none, 0).unwrap_err().kind(), ErrorKind::InvalidInput);
        // Where several are given, the first that works is taken.
        let several: &[SocketAddr] =
            &["192.0.2.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
        let listener = port.listen(several, 0).unwrap();
        assert!(listener.local_addr().unwrap().ip().is_loopback());
        // An address that cannot be connected to at all.
        let stream = port.connect("255.255.255.255:1".parse().unwrap(), 0).unwrap();
        let packet = next(&port);
        assert!(packet.result.is_err() && packet.result.unwrap_err().raw_os_error().is_some());
        assert!(stream.peer_addr().is_err());
        assert_eq!((port.handles(), port.stats().in_flight), (2, 0));
    });
}

/// Would catch: IPv6 left out.
#[test]
fn ipv6_works_like_ipv4() {
    run(|| {
        if TcpListener::bind("[::1]:0").is_err() {
            return skip("ipv6_works_like_ipv4", "this machine has no IPv6 loopback");
        }
        let port = port(1);
        let listener = port.listen("[::1]:0", 100).unwrap();
        listener.accept_one().unwrap();
        let stream = port.connect_with(listener.local_addr().unwrap(), 7, "six").unwrap();
        let mut server = None;
        for _ in 0..3 {
            let packet = next(&port);
            match packet.op {
                Op::Accept { .. } => server = Some(accepted(packet).0),
                _ => assert!(packet.result.is_ok()),
            }
        }
        let server = server.unwrap();
        server.recv_exact(Vec::with_capacity(3), 3).unwrap();
        assert_eq!(received(next(&port)), b"six");
        assert_eq!(stream.local_addr().unwrap(), server.peer_addr().unwrap());
    });
}

/// Would catch: an accept with first data that comes without it, or loses some.
#[test]
fn an_accept_brings_the_first_data() {
    run(|| {
        let port = port(1);
        let (listener, address) = listen(&port);
        for number in 0..3 {
            let accept = listener.start().context(Token::from(number)).deadline(PATIENCE);
            accept.accept_first(Vec::with_capacity(4)).unwrap();
        }
        assert!(poll(&port).is_none());
        let mut client = client(address);
        assert!(poll(&port).is_none(), "no data yet");
        client.write_all(b"first data").unwrap();
        let packet = next(&port);
        assert_eq!((packet.result, packet.bytes), (Ok(4), 4));
        let (stream, first) = accepted(packet);
        assert_eq!(&first.unwrap()[..], b"firs");
        stream.recv(Vec::with_capacity(16)).unwrap();
        assert_eq!(received(next(&port)), b"t data");
        // A client that ends at once: an accept without data.
        drop(self::client(address));
        let packet = next(&port);
        assert_eq!(packet.result, Ok(0));
        let (_, first) = accepted(packet);
        assert!(first.unwrap().is_empty());
        // And one that resets.
        let rude = self::client(address);
        assert!(poll(&port).is_none());
        reset(rude);
        let packet = next(&port);
        match packet.result {
            Ok(bytes) => assert_eq!(bytes, 0),
            Err(error) => assert!(error.is_connection_reset()),
        }
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: silent connections that hold up those that speak, and are not closed in time.
#[test]
fn silent_connections_do_not_hold_up_others() {
    run(|| {
        const SILENT: usize = 50;
        let port = port(1);
        let (listener, address) = listen(&port);
        for _ in 0..SILENT + 1 {
            listener.accept_first(Vec::with_capacity(8), PATIENCE).unwrap();
        }
        assert!(poll(&port).is_none());
        let silent: Vec<_> = (0..SILENT).map(|_| client(address)).collect();
        let mut speaker = client(address);
        speaker.write_all(b"hello").unwrap();
        let (_, first) = accepted(next(&port));
        assert_eq!(&first.unwrap()[..], b"hello");
        assert!(poll(&port).is_none());
        assert_eq!(listener.cancel_all(), SILENT);
        for _ in 0..SILENT {
            let packet = next(&port);
            assert!(packet.result.unwrap_err().is_cancelled());
            let Op::Accept { incoming: None, first: Some(first), .. } = packet.op else {
                panic!("not a failed accept")
            };
            assert_eq!((first.len(), first.capacity()), (0, 8));
        }
        for mut client in silent {
            // The connection was closed with its accept.
            assert!(matches!(client.read(&mut [0; 8]), Ok(0)));
        }
    });
}

/// Would catch: a deadline that counts from the start of the accept, and not from the connection;
/// a silent connection that stays.
#[test]
fn a_silent_connection_is_closed_at_its_deadline() {
    run(|| {
        let port = port(1);
        let (listener, address) = listen(&port);
        listener.accept_first(Vec::with_capacity(8), Duration::from_millis(30)).unwrap();
        assert!(poll(&port).is_none());
        thread::sleep(Duration::from_millis(100));
        assert!(poll(&port).is_none(), "nobody has come yet");
        let mut client = client(address);
        let packet = next(&port);
        assert!(packet.result.unwrap_err().is_timed_out());
        assert!(matches!(packet.op, Op::Accept { incoming: None, first: Some(_), .. }));
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    });
}

/// Would catch: an accept that fails, spins or stops for good where there are no descriptors, or
/// loses the connections of that time.
#[cfg(unix)]
#[test]
fn accepting_goes_on_when_there_are_descriptors_again() {
    if !in_child(module_path!(), "accepting_goes_on_when_there_are_descriptors_again") {
        return;
    }
    const CLIENTS: usize = 8;
    for first_data in [false, true] {
        // The watch would take a descriptor now and then.
        let port = build(crate::builder().concurrency(1).watch(false));
        let (listener, address) = listen(&port);
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
        let pump = Pump::new(&port, 1);
        // Room for some more descriptors, and all of it taken but for three: the process may have
        // inherited one that is in the way.
        let highest = clients[CLIENTS - 1].as_raw_fd();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure lives across both calls. The limit is this process's own.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            let low =
                libc::rlimit { rlim_cur: libc::rlim_t::try_from(highest + 16).unwrap(), ..limit };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low), 0);
        }
        let mut taken: Vec<_> = std::iter::from_fn(|| clients[0].try_clone().ok()).collect();
        taken.truncate(taken.len() - 3);
        if first_data {
            for _ in 0..CLIENTS {
                listener.accept_first(Vec::with_capacity(8), PATIENCE).unwrap();
            }
        } else {
            listener.accept().unwrap();
        }
        for client in &clients {
            client.connect(&address.into()).unwrap();
            (&*client).write_all(b"x").unwrap();
        }
        let take = || {
            let packet = pump.next();
            let Op::Accept { incoming: Some(incoming), .. } = packet.op else {
                panic!("{packet:?}")
            };
            incoming
        };
        let mut held: Vec<_> = (0..3).map(|_| take()).collect();
        let mut seen: Vec<_> = held.iter().map(|held| held.peer_addr().unwrap()).collect();
        let before = port.stats().kernel_entries;
        thread::sleep(Duration::from_millis(200));
        assert!(pump.is_empty());
        let entries = port.stats().kernel_entries - before;
        assert!(entries < 5000, "it spins: {entries} entries");
        for _ in 3..CLIENTS {
            held.remove(0);
            let incoming = take();
            seen.push(incoming.peer_addr().unwrap());
            held.push(incoming);
        }
        let distinct: HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), CLIENTS, "each connection once");
        // SAFETY: as above.
        unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0) };
    }
    child_has_run();
}

/// Would catch: an accept in its pause that cannot be cancelled.
#[cfg(unix)]
#[test]
fn an_accept_that_pauses_can_be_cancelled() {
    if !in_child(module_path!(), "an_accept_that_pauses_can_be_cancelled") {
        return;
    }
    let port = port(1);
    let (listener, address) = listen(&port);
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let low = libc::rlimit {
        rlim_cur: libc::rlim_t::try_from(client.as_raw_fd() + 1).unwrap(),
        rlim_max: libc::rlim_t::try_from(client.as_raw_fd() + 1).unwrap(),
    };
    // SAFETY: the structure lives across the call.
    unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const low), 0) };
    client.connect(&address.into()).unwrap();
    listener.accept().unwrap();
    for _ in 0..20 {
        assert!(poll(&port).is_none());
        thread::sleep(Duration::from_millis(3));
    }
    assert_eq!(listener.cancel_all(), 1);
    assert!(next(&port).result.unwrap_err().is_cancelled());
    drop((listener, port));
    child_has_run();
}

// ---- Connecting -------------------------------------------------------------------------------

/// Would catch: a connect whose packet does not come, or comes before it stands.
#[test]
fn a_connect_gives_a_connection() {
    run(|| {
        let port = port(1);
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = peer.local_addr().unwrap();
        let stream = port.connect(address, 5).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result, Ok(0));
        let Op::Connect { stream: connected } = packet.op else { panic!("not a connect") };
        assert!(connected == stream && *connected.key() == 5);
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(SockRef::from(&stream).tcp_nodelay().unwrap());
        let (accepted, from) = peer.accept().unwrap();
        assert_eq!(from, stream.local_addr().unwrap());
        stream.send("over").unwrap();
        assert_eq!(next(&port).result, Ok(4));
        let mut text = [0; 4];
        (&accepted).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"over");
    });
}

/// Would catch: a refused connect that is not told apart, or whose stream is spoiled by it.
#[test]
fn a_refused_connect_can_be_tried_again() {
    if not_shown_by_wine(
        "a_refused_connect_can_be_tried_again",
        "in Wine the next connect fails, once",
    ) {
        return;
    }
    run(|| {
        let port = port(1);
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let stream = port.connect(address, 0).unwrap();
        let packet = next(&port);
        let error = packet.result.unwrap_err();
        assert!(error.is_connection_refused());
        assert_eq!(error.raw_os_error(), Some(codes::CONNECTION_REFUSED));
        assert!(matches!(packet.op, Op::Connect { .. }));
        stream.start().context(Token::from(2)).connect(address).unwrap();
        let packet = next(&port);
        assert!(packet.result.unwrap_err().is_connection_refused());
        assert_eq!(packet.context.unwrap().id, 2);
        let mut somebody = TcpListener::bind("127.0.0.1:0").unwrap();
        stream.connect(somebody.local_addr().unwrap()).unwrap();
        assert_eq!(next(&port).result, Ok(0));
        let (mut peer, _) = somebody.accept().unwrap();
        peer.write_all(b"welcome").unwrap();
        stream.recv(Buf::pooled()).unwrap();
        assert_eq!(received(next(&port)), b"welcome");
        // One that stands cannot be connected again.
        somebody = TcpListener::bind("127.0.0.1:0").unwrap();
        stream.connect(somebody.local_addr().unwrap()).unwrap();
        assert!(next(&port).result.is_err());
    });
}

/// Would catch: first data that overtakes the connect, gets lost, or keeps its buffer when the
/// connect fails.
#[test]
fn a_connect_brings_first_data_along() {
    run(|| {
        let tally = Tally::default();
        let port = port(1);
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = peer.local_addr().unwrap();
        let data = pattern(0, 3 << 20);
        let stream = port.connect_with(address, 0, tally.bytes(data.clone())).unwrap();
        let reader = thread::spawn(move || {
            let (mut peer, _) = peer.accept().unwrap();
            let mut got = vec![0; 3 << 20];
            peer.read_exact(&mut got).unwrap();
            got
        });
        assert!(matches!(next(&port).op, Op::Connect { .. }));
        let packet = next(&port);
        assert_eq!(packet.result, Ok(3 << 20));
        assert!(matches!(&packet.op, Op::Send { stream: sender, .. } if *sender == stream));
        assert!(join(reader) == data);
        drop(packet);

        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _stream = port.connect_with(nobody, 0, tally.bytes(vec![1; 5])).unwrap();
        assert!(next(&port).result.unwrap_err().is_connection_refused());
        let packet = next(&port);
        assert!(packet.result.is_err());
        let Op::Send { buf, .. } = packet.op else { panic!("not a send") };
        assert_eq!(&buf[..], [1; 5]);
        drop(buf);
        tally.assert_even();
    });
}

/// Would catch: a connect to a peer that does not answer that cannot be given up.
#[test]
fn a_connect_without_answer_can_be_given_up() {
    run(|| {
        let port = port(1);
        let (address, _keep) = full_listener();
        let stream = port.connect(address, 0).unwrap();
        assert!(poll(&port).is_none());
        assert_eq!(stream.cancel_all(), 1);
        assert!(next(&port).result.unwrap_err().is_cancelled());
        drop(stream);
        // With a deadline, on a stream that was made elsewhere.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let stream = port.associate(socket, 0).unwrap();
        stream.start().deadline(Duration::from_millis(20)).connect(address).unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        // And by closing.
        let stream = port.connect(address, 0).unwrap();
        assert!(poll(&port).is_none());
        stream.close();
        assert!(next(&port).result.unwrap_err().is_cancelled());
        assert_eq!(port.stats().in_flight, 0);
    });
}

/// Would catch: a connect that was given up and cannot be tried again, with the same peer or
/// another, because the kernel still goes on with the first.
#[test]
fn a_connect_that_was_given_up_can_be_tried_again() {
    if not_shown_by_wine(
        "a_connect_that_was_given_up_can_be_tried_again",
        "in Wine the socket cannot connect any more",
    ) {
        return;
    }
    run(|| {
        let port = port(1);
        let (silent, _keep) = full_listener();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let stream = port.associate(socket, 0).unwrap();
        stream.start().deadline(Duration::from_millis(20)).connect(silent).unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
        stream.connect(somebody.local_addr().unwrap()).unwrap();
        assert_eq!(next(&port).result, Ok(0));
        assert_eq!(stream.peer_addr().unwrap(), somebody.local_addr().unwrap());
    });
}

/// Would catch: a connect in flight that dies with the thread that started it.
#[test]
fn a_connect_survives_the_thread_that_started_it() {
    run(|| {
        let port = port(1);
        let (address, keep) = full_listener();
        let stream = {
            let port = port.clone();
            join(thread::spawn(move || port.connect(address, 0).unwrap()))
        };
        assert!(poll(&port).is_none());
        // Makes room: the kernel tries again after a second.
        let listener = &keep[0];
        let mut taken = Vec::new();
        listener.set_nonblocking(true).unwrap();
        let mut packet = None;
        until("it is connected", || {
            taken.extend(listener.accept().ok());
            packet = poll(&port);
            packet.is_some()
        });
        assert_eq!(packet.unwrap().result, Ok(0));
        assert_eq!(stream.peer_addr().unwrap(), address);
    });
}

// ---- Associating ------------------------------------------------------------------------------

/// Would catch: a kind of socket that cannot be used, and a nonblocking one whose operations fail
/// instead of waiting.
#[test]
fn sockets_made_elsewhere_are_associated() {
    run(|| {
        let port = port(1);
        for nonblocking in [false, true] {
            let (ours, mut peer) = sockets();
            ours.set_nonblocking(nonblocking).unwrap();
            let stream = port.associate(ours, 3).unwrap();
            stream.recv(Vec::with_capacity(8)).unwrap();
            assert!(poll(&port).is_none(), "it waits");
            peer.write_all(b"std").unwrap();
            assert_eq!(received(next(&port)), b"std");
            // More than the sockets hold, so that it has to wait too.
            stream.send(vec![1; 8 << 20]).unwrap();
            assert!(poll(&port).is_none());
            let reader = thread::spawn(move || peer.read_exact(&mut vec![0; 8 << 20]).unwrap());
            assert_eq!(next(&port).result, Ok(8 << 20));
            join(reader);

            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(nonblocking).unwrap();
            let address = listener.local_addr().unwrap();
            let listener = port.associate_listener(listener, 100).unwrap();
            listener.accept().unwrap();
            assert!(poll(&port).is_none(), "it waits");
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(nonblocking).unwrap();
            let connecting = port.associate(socket, 4).unwrap();
            connecting.connect(address).unwrap();
            let mut kinds = [0; 2];
            for _ in 0..2 {
                let packet = next(&port);
                match &packet.op {
                    Op::Accept { .. } => {
                        accepted(packet);
                        kinds[0] += 1;
                    }
                    Op::Connect { .. } => {
                        assert_eq!(packet.result, Ok(0));
                        kinds[1] += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(kinds, [1, 1]);
            listener.cancel_all();
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
    });
}

/// Would catch: a Unix socket, which is a stream socket too, that does not work.
#[cfg(unix)]
#[test]
fn unix_sockets_are_stream_sockets_too() {
    run(|| {
        let port = port(1);
        let (ours, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = port.associate(ours, 0).unwrap();
        stream.recv(Buf::pooled()).unwrap();
        stream.send("there").unwrap();
        assert_eq!(next(&port).result, Ok(5));
        peer.write_all(b"back").unwrap();
        assert_eq!(received(next(&port)), b"back");
        assert_eq!(stream.peer_addr().unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

/// Would catch: a connection that the system keeps for the port when nobody has it any more: for
/// good, or for as long as another one waits.
#[cfg(target_os = "linux")]
#[test]
fn a_connection_of_many_operations_is_let_go_like_any_other() {
    use std::os::{fd::AsRawFd, linux::fs::MetadataExt, unix::net::UnixStream};

    let connect = |port: &Port, rounds: usize| {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let entry = format!("/proc/self/fd/{}", ours.as_raw_fd());
        let inode = std::fs::metadata(entry).unwrap().st_ino().to_string();
        let stream = port.associate(ours, 0).unwrap();
        for _ in 0..rounds {
            peer.write_all(b"again").unwrap();
            stream.recv(Vec::with_capacity(8)).unwrap();
            assert_eq!(received(next(port)), b"again");
        }
        (stream, peer, inode)
    };
    let is_there = |inode: &str| {
        let sockets = std::fs::read_to_string("/proc/self/net/unix").unwrap();
        sockets.lines().any(|line| line.split_ascii_whitespace().any(|word| word == inode))
    };
    run(move || {
        let port = port(1);
        let (waiting, peer, _) = connect(&port, 100);
        waiting.recv(Vec::with_capacity(8)).unwrap();
        for rounds in [1, 63, 64, 65, 300] {
            let (stream, _peer, inode) = connect(&port, rounds);
            assert!(is_there(&inode));
            drop(stream);
            until("the connection is gone", || !is_there(&inode));
        }
        drop(peer);
        assert_eq!(received(next(&port)), b"");
    });
}

/// Would catch: a receive on a socket that is not connected that hangs, or one that ends the
/// port.
#[test]
fn a_socket_that_is_not_connected_fails() {
    run(|| {
        let port = port(1);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let stream = port.associate(socket, 0).unwrap();
        stream.recv(Vec::with_capacity(8)).unwrap();
        assert_eq!(next(&port).result.unwrap_err().raw_os_error(), Some(codes::NOT_CONNECTED));
        stream.send("x").unwrap();
        let kind = next(&port).result.unwrap_err().kind();
        // Wine calls that a reset.
        assert_eq!(
            kind,
            if is_wine() { ErrorKind::ConnectionReset } else { ErrorKind::BrokenPipe }
        );
        assert!(stream.peer_addr().is_err());
    });
}

// ---- Receiving and sending --------------------------------------------------------------------

/// Would catch: an exact receive that ends early, reads too much, or misses the end.
#[test]
fn an_exact_receive_gets_exactly_so_much() {
    run(|| {
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        stream.recv_exact(Vec::with_capacity(100), 10).unwrap();
        for part in [&b"abc"[..], b"defg", b"hijklm"] {
            assert!(poll(&port).is_none());
            peer.write_all(part).unwrap();
        }
        assert_eq!(received(next(&port)), b"abcdefghij");
        stream.recv_exact(Vec::with_capacity(100), 10).unwrap();
        assert!(poll(&port).is_none());
        drop(peer);
        let packet = next(&port);
        assert_eq!(packet.result, Ok(3));
        assert_eq!(received(packet), b"klm");
        stream.recv_exact(Vec::with_capacity(100), 10).unwrap();
        assert_eq!(next(&port).result, Ok(0));
    });
}

/// Would catch: a large exact receive that overruns its buffer or stops at a part.
#[test]
fn an_exact_receive_may_be_large() {
    run(|| {
        const BYTES: usize = 20 << 20;
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let (stream, mut peer) = pair(&port);
        stream.recv_exact(Vec::with_capacity(BYTES), BYTES).unwrap();
        peer.write_all(&pattern(3, BYTES)).unwrap();
        let packet = pump.next();
        assert_eq!(packet.result, Ok(BYTES));
        assert!(received(packet) == pattern(3, BYTES));
    });
}

/// Would catch: a large send that ends with a part, sends bytes twice, or out of order.
#[test]
fn a_large_send_is_sent_whole() {
    run(|| {
        const BYTES: usize = 20 << 20;
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let (stream, mut peer) = pair(&port);
        stream.send(pattern(1, BYTES)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::with_capacity(BYTES);
        peer.read_to_end(&mut got).unwrap();
        assert!(got == pattern(1, BYTES));
        assert_eq!(pump.next().result, Ok(BYTES));
        assert_eq!(pump.next().result, Ok(0));
    });
}

/// Would catch: slices of a vectored send that are left out, repeated, sent in the wrong order or
/// cut; empty ones that end it; buffers that come back changed.
#[test]
fn a_vectored_send_sends_every_slice() {
    run(|| {
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let (stream, mut peer) = pair(&port);
        let empty = || Buf::from(Vec::new());
        let cases: Vec<Vec<Vec<u8>>> = vec![
            vec![],
            vec![vec![]],
            vec![vec![], vec![], vec![]],
            vec![b"one".to_vec()],
            vec![vec![], b"a".to_vec(), vec![], vec![], b"bc".to_vec(), vec![]],
            (0..1024).map(|at| pattern(at, at % 5)).collect(),
            // More than the sockets hold: cut in the middle of slices.
            (0..40).map(|at| pattern(at * 300_000, 300_000 + at)).collect(),
        ];
        for case in cases {
            let bufs: Vec<_> = case
                .iter()
                .map(|data| if data.is_empty() { empty() } else { Buf::from(data.clone()) })
                .collect();
            let expected = case.concat();
            stream.send_vectored(bufs).unwrap();
            let mut got = vec![0; expected.len()];
            peer.read_exact(&mut got).unwrap();
            assert!(got == expected);
            let packet = pump.next();
            assert_eq!(packet.result, Ok(expected.len()));
            let Op::SendVectored { bufs, .. } = packet.op else { panic!("not vectored") };
            assert!(bufs.iter().map(|buf| buf.to_vec()).eq(case));
        }
        stream.close();
        assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0, "and nothing more");
    });
}

/// Would catch: receives that complete out of the order in which they were started, or share
/// bytes: 64 deep, 1 MiB in all.
#[test]
fn receives_complete_in_the_order_they_were_started() {
    run(|| {
        for workers in [0, 4] {
            const DEEP: usize = 64;
            const EACH: usize = 16 << 10;
            let port = port(2);
            let (stream, mut peer) = pair(&port);
            for number in 0..DEEP {
                let start = stream.start().context(Token::from(u64::try_from(number).unwrap()));
                start.recv_exact(Vec::with_capacity(EACH), EACH).unwrap();
            }
            let writer = thread::spawn(move || {
                for part in pattern(0, DEEP * EACH).chunks(10_007) {
                    peer.write_all(part).unwrap();
                }
                peer
            });
            let pump = (workers > 0).then(|| Pump::new(&port, workers));
            for number in 0..DEEP {
                let packet = pump.as_ref().map_or_else(|| next(&port), Pump::next);
                assert_eq!(packet.result, Ok(EACH));
                let place = usize::try_from(packet.context.as_ref().unwrap().id).unwrap();
                if workers == 0 {
                    assert_eq!(place, number, "the order of packets");
                }
                assert!(received(packet) == pattern(place * EACH, EACH));
            }
            join(writer);
        }
    });
}

/// Would catch: sends that interleave, or go out in another order than they were started in.
#[test]
fn sends_go_out_in_the_order_they_were_started() {
    run(|| {
        const DEEP: usize = 64;
        const EACH: usize = 16 << 10;
        let port = port(2);
        let (stream, mut peer) = pair(&port);
        SockRef::from(&stream).set_send_buffer_size(20_000).unwrap();
        for number in 0..DEEP {
            let start = stream.start().context(Token::from(u64::try_from(number).unwrap()));
            if number % 3 == 0 {
                let (head, tail) = (pattern(number * EACH, 100), EACH - 100);
                let tail = pattern(number * EACH + 100, tail);
                start.send_vectored(vec![head.into(), tail.into()]).unwrap();
            } else {
                start.send(pattern(number * EACH, EACH)).unwrap();
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            got
        });
        for number in 0..DEEP {
            let packet = next(&port);
            assert_eq!(packet.result, Ok(EACH));
            assert_eq!(packet.context.unwrap().id, u64::try_from(number).unwrap());
        }
        assert!(matches!(next(&port).op, Op::Shutdown { .. }));
        assert!(join(reader) == pattern(0, DEEP * EACH));
    });
}

/// Would catch: sends of several threads that interleave within one.
#[test]
fn sends_of_several_threads_do_not_interleave() {
    run(|| {
        let port = port(2);
        let pump = Pump::new(&port, 3);
        let (stream, mut peer) = pair(&port);
        SockRef::from(&stream).set_send_buffer_size(10_000).unwrap();
        let senders: Vec<_> = (0..4u8)
            .map(|number| {
                let stream = stream.clone();
                thread::spawn(move || {
                    for _ in 0..25 {
                        stream.send(vec![number; 9973]).unwrap();
                    }
                })
            })
            .collect();
        let mut counts = [0; 4];
        let mut message = vec![0; 9973];
        for _ in 0..100 {
            peer.read_exact(&mut message).unwrap();
            assert!(message.iter().all(|&byte| byte == message[0]), "interleaved");
            counts[usize::from(message[0])] += 1;
            assert_eq!(pump.next().result, Ok(9973));
        }
        assert_eq!(counts, [25; 4]);
        senders.into_iter().for_each(join);
    });
}

/// Would catch: a half-closed connection on which nothing can be sent any more, or whose end
/// comes too early.
#[test]
fn a_half_closed_connection_echoes_the_rest() {
    run(|| {
        const BYTES: usize = 3 << 20;
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let (stream, peer) = pair(&port);
        stream.recv_each().unwrap();
        let writer = thread::spawn({
            let mut peer = peer.try_clone().unwrap();
            move || {
                peer.write_all(&pattern(0, BYTES)).unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
            }
        });
        let reader = thread::spawn(move || {
            let (mut peer, mut got) = (peer, Vec::new());
            peer.read_to_end(&mut got).unwrap();
            got
        });
        let mut in_flight = 0;
        let mut ended = false;
        while !ended || in_flight > 0 {
            let packet = pump.next();
            let more = packet.more;
            match packet.op {
                Op::Recv { buf, .. } if more => {
                    stream.send(buf).unwrap();
                    in_flight += 1;
                }
                Op::Recv { .. } => {
                    assert_eq!(packet.result, Ok(0));
                    ended = true;
                }
                Op::Send { .. } => {
                    assert!(packet.result.is_ok());
                    in_flight -= 1;
                }
                other => panic!("{other:?}"),
            }
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(pump.next().op, Op::Shutdown { .. }));
        join(writer);
        assert!(join(reader) == pattern(0, BYTES));
    });
}

/// Would catch: a disconnect that overtakes sends, has no packet, or leaves a receive waiting.
#[cfg(windows)]
#[test]
fn a_connection_is_disconnected_after_its_sends() {
    run(|| {
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let data = pattern(5, 300_000);
        for reuse in [false, true] {
            let (stream, mut peer) = pair(&port);
            stream.recv(Buf::pooled()).unwrap();
            stream.start().silent().send(data.clone()).unwrap();
            stream.disconnect(reuse).unwrap();
            let reading = thread::spawn(move || {
                let mut all = Vec::new();
                peer.read_to_end(&mut all).map(|_| all)
            });
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let packet = pump.next();
                match packet.op {
                    Op::Recv { .. } => kinds.push("recv"),
                    Op::Shutdown { .. } => {
                        assert_eq!(packet.result, Ok(0));
                        kinds.push("disconnect");
                    }
                    other => panic!("{other:?}"),
                }
            }
            kinds.sort_unstable();
            assert_eq!(kinds, ["disconnect", "recv"]);
            assert!(join(reading).unwrap() == data);
        }
        // What is not connected cannot be disconnected.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None);
        let stream = port.associate(socket.unwrap(), 1).unwrap();
        stream.disconnect(false).unwrap();
        assert_eq!(pump.next().result.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// Would catch: a socket that was disconnected to be used again, and cannot be.
#[cfg(windows)]
#[test]
fn a_disconnected_socket_connects_again() {
    let why = "Wine does not make disconnected sockets usable again";
    if not_shown_by_wine("a_disconnected_socket_connects_again", why) {
        return;
    }
    run(|| {
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = port.connect(address, 1).unwrap();
        for round in 0..2_u8 {
            let packet = pump.next();
            assert!(matches!(packet.op, Op::Connect { .. }) && packet.result.is_ok());
            let (mut peer, _) = listener.accept().unwrap();
            stream.recv(Buf::pooled()).unwrap();
            peer.write_all(&[round]).unwrap();
            let Op::Recv { buf, .. } = pump.next().op else { panic!() };
            assert_eq!(&*buf, &[round]);
            // The peer ends first, so that nothing is kept for long.
            drop(peer);
            stream.disconnect(true).unwrap();
            assert_eq!(pump.next().result, Ok(0));
            if round == 0 {
                stream.connect(address).unwrap();
            }
        }
    });
}

/// Would catch: a shutdown that overtakes sends, or a direction that is closed with the other.
#[test]
fn shutting_down_comes_after_the_sends() {
    run(|| {
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let (stream, mut peer) = pair(&port);
        stream.send(vec![5; 8 << 20]).unwrap();
        stream.start().context(Token::from(1)).shutdown(Shutdown::Write).unwrap();
        stream.recv(Buf::pooled()).unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 8 << 20);
        assert!(matches!(pump.next().op, Op::Send { .. }));
        let packet = pump.next();
        assert!(matches!(packet.op, Op::Shutdown { .. }) && packet.context.unwrap().id == 1);
        // The other direction is open.
        peer.write_all(b"still").unwrap();
        assert_eq!(received(pump.next()), b"still");
        // Now that as well: a receive sees the end.
        stream.recv(Buf::pooled()).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        let packets = [pump.next(), pump.next()];
        assert!(packets.iter().all(|packet| packet.result == Ok(0)));
        // Once more is an error, or nothing: but it has its packet.
        stream.shutdown(Shutdown::Both).unwrap();
        assert!(matches!(pump.next().op, Op::Shutdown { .. }));
    });
}

/// Would catch: a closed connection whose peer does not learn of it, because the last receive is
/// still in the kernel, or a clone still there.
#[test]
fn the_peer_learns_that_a_connection_was_closed() {
    run(|| {
        let port = port(1);
        let pump = Pump::new(&port, 1);
        let (stream, mut peer) = pair(&port);
        let clone = stream.clone();
        stream.recv(Vec::with_capacity(8)).unwrap();
        stream.recv(Vec::with_capacity(8)).unwrap();
        stream.close();
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
        for _ in 0..2 {
            assert!(pump.next().result.unwrap_err().is_cancelled());
        }
        assert!(clone.recv(Vec::with_capacity(8)).unwrap_err().error.is_closed());
        clone.close();
        assert!(pump.is_empty());
        // The same by dropping, with nothing in flight.
        let (stream, mut peer) = pair(&port);
        drop(stream);
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
        // A handle that is dropped with an operation in flight stays until it is over.
        let (stream, mut peer) = pair(&port);
        stream.recv(Vec::with_capacity(8)).unwrap();
        drop(stream);
        peer.write_all(b"late").unwrap();
        let packet = pump.next();
        assert_eq!(packet.result, Ok(4));
        drop(packet);
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    });
}

/// Would catch: a reset that is taken for an end, one operation that does not hear of it, or a
/// peer's death that harms others.
#[test]
fn a_reset_ends_every_operation() {
    run(|| {
        let port = port(1);
        let (stream, peer) = pair(&port);
        let (other, mut other_peer) = pair(&port);
        other.recv(Vec::with_capacity(4)).unwrap();
        stream.start().context(Token::from(1)).recv(Vec::with_capacity(8)).unwrap();
        stream.start().context(Token::from(1)).send(vec![1; 16 << 20]).unwrap();
        stream.start().context(Token::from(1)).send("behind it").unwrap();
        assert!(poll(&port).is_none());
        reset(peer);
        for _ in 0..3 {
            let packet = next(&port);
            assert_eq!(packet.context.as_ref().map(|token| token.id), Some(1));
            match packet.result {
                Err(error) => {
                    let kind = error.kind();
                    assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
                }
                // The kernel tells one operation of the reset: after that a receive sees the end.
                Ok(bytes) => assert!(bytes == 0 && matches!(packet.op, Op::Recv { .. })),
            }
        }
        // Where nothing is being sent, it is the receive that hears of it.
        let (stream, peer) = pair(&port);
        stream.recv(Vec::with_capacity(8)).unwrap();
        assert!(poll(&port).is_none());
        reset(peer);
        assert!(next(&port).result.unwrap_err().is_connection_reset());
        other_peer.write_all(b"fine").unwrap();
        assert_eq!(received(next(&port)), b"fine");
    });
}

/// Would catch: connections that neither read nor send, and hold up those that do.
#[test]
fn lazy_peers_do_not_hold_up_others() {
    run(|| {
        let port = port(1);
        let lazy: Vec<_> = (0..20).map(|_| pair(&port)).collect();
        for (stream, _) in &lazy {
            stream.recv(Buf::pooled()).unwrap();
            stream.send(vec![1; 8 << 20]).unwrap();
        }
        let (stream, mut peer) = pair(&port);
        for _ in 0..100 {
            stream.recv(Buf::pooled()).unwrap();
            peer.write_all(b"ping").unwrap();
            let packet = next(&port);
            let Op::Recv { stream: from, buf } = packet.op else { panic!("not a receive") };
            assert!(from == stream);
            stream.send(buf).unwrap();
            assert_eq!(next(&port).result, Ok(4));
            let mut pong = [0; 4];
            peer.read_exact(&mut pong).unwrap();
            assert_eq!(&pong, b"ping");
        }
        assert_eq!(port.stats().in_flight, 40);
    });
}

/// Would catch: a descriptor that leaks, or one that is closed twice, over many connections.
#[test]
fn descriptors_are_closed_once() {
    if !in_child(module_path!(), "descriptors_are_closed_once") {
        return;
    }
    let round = || {
        let port = port(2);
        let (listener, address) = listen(&port);
        listener.accept().unwrap();
        let mut held = Vec::new();
        for number in 0..20 {
            let peer = client(address);
            // The packets of those that are closed come in between.
            let stream = loop {
                let packet = next(&port);
                if matches!(packet.op, Op::Accept { .. }) {
                    break accepted(packet).0;
                }
            };
            stream.recv(Buf::pooled()).unwrap();
            match number % 4 {
                0 => stream.close(),
                1 => reset(peer),
                2 => held.push((Some(stream), peer)),
                _ => held.push((None, peer)),
            }
        }
        // One that is accepted and not taken, one that is taken and not associated.
        let taken = [client(address), client(address)];
        let mut incoming = None;
        until("one of the two is there", || match poll(&port).map(|packet| packet.op) {
            Some(Op::Accept { incoming: Some(new), .. }) => {
                incoming = Some(new);
                true
            }
            _ => false,
        });
        until("so is the other", || port.stats().queued > 0 || poll(&port).is_some());
        drop((port, listener, held, taken, incoming));
    };
    join(thread::spawn(round));
    let before = open_descriptors();
    for _ in 0..3 {
        join(thread::spawn(round));
    }
    assert_eq!(open_descriptors(), before);
    child_has_run();
}

/// Would catch: options that do not reach the socket.
#[test]
fn options_are_set_through_the_descriptor() {
    run(|| {
        let port = port(1);
        let (stream, _peer) = pair(&port);
        SockRef::from(&stream).set_keepalive(true).unwrap();
        assert!(SockRef::from(&stream).keepalive().unwrap());
        let (listener, _) = listen(&port);
        assert_eq!(SockRef::from(&listener).reuse_address().unwrap(), cfg!(unix));
    });
}

/// Would catch: a cancellation that meets its operation while the kernel tries it again, is told
/// that there is no such operation, and is never asked for once more.
#[test]
fn a_send_that_is_cancelled_as_it_starts_comes_back() {
    run(|| {
        for buffer in [4096, 16384, 65536] {
            let port = port(1);
            let (stream, _peer) = pair(&port);
            SockRef::from(&stream).set_send_buffer_size(buffer).unwrap();
            stream.send(vec![1; 16 << 20]).unwrap();
            assert_eq!(stream.cancel_all(), 1);
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
    });
}
