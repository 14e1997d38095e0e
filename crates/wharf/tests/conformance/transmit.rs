//! Files to sockets: every byte, in order, counted, whatever the peer and the file do.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestRunner};
use socket2::SockRef;
use wharf::{Buf, ErrorKind, Transmit};

use super::{files::Folder, support::*};

/// Reads all that comes, on a thread of its own.
fn read_all(mut peer: TcpStream) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // A reset ends it as well: what came before counts.
        if let Err(error) = peer.read_to_end(&mut all) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        all
    })
}

fn file(folder: &Folder, name: &str, content: &[u8]) -> Arc<fs::File> {
    fs::write(folder.path(name), content).unwrap();
    fs::File::open(folder.path(name)).unwrap().into()
}

#[track_caller]
fn transmitted(packet: Packet) -> Transmit {
    match packet.op {
        Op::Transmit { transmit, .. } => transmit,
        other => panic!("not a transmission: {other:?}"),
    }
}

/// Would catch: a byte that is lost, doubled or out of place, or a wrong total, for files below, at
/// and above the sizes of the buffers they go through.
#[test]
fn files_are_transmitted_whole() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        for length in [0, 1, 100, 16_383, 16_384, 16_385, 262_144, 262_145, 3_000_000] {
            let content = pattern(length, length);
            let file = file(&folder, "content", &content);
            let (stream, peer) = pair(&port);
            let reading = read_all(peer);
            let mut expected = Vec::new();
            for (head, tail) in [("", ""), ("head ", ""), ("", " tail"), ("head ", " tail")] {
                let transmit = Transmit::new(file.clone()).head(head).tail(tail);
                stream.transmit(transmit).unwrap();
                expected.extend([head.as_bytes(), &content, tail.as_bytes()].concat());
                let packet = next(&port);
                assert_eq!(packet.result, Ok(head.len() + length + tail.len()), "{length}");
                let (head_back, tail_back) = transmitted(packet).into_bufs();
                assert_eq!((&head_back[..], &tail_back[..]), (head.as_bytes(), tail.as_bytes()));
            }
            drop(stream);
            assert!(join(reading) == expected, "{length}");
        }
    });
}

/// Would catch: a position or a length that is not respected, and one that is kept from the last
/// time.
#[test]
fn parts_of_a_file_are_transmitted() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(0, 1_000_000);
        let file = file(&folder, "content", &content);
        let port = port(1);
        let (stream, peer) = pair(&port);
        let reading = read_all(peer);
        let mut transmit = Transmit::new(file);
        let mut expected = Vec::new();
        for (from, length) in [(0, 10), (999_990, 10), (17, 500_000), (1_000_000, 0), (5, 0)] {
            transmit = transmit.part(from as u64, length as u64);
            expected.extend_from_slice(&content[from..from + length]);
            stream.transmit(transmit).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(length));
            transmit = transmitted(packet);
        }
        drop(stream);
        assert!(join(reading) == expected);
    });
}

/// Would catch: bytes of a transmission among those of another send.
#[test]
fn transmissions_keep_their_place_among_sends() {
    run(|| {
        let folder = Folder::new();
        let small = pattern(3, 1000);
        let large = pattern(5, 2_000_000);
        let files = [file(&folder, "small", &small), file(&folder, "large", &large)];
        let port = port(2);
        let (stream, peer) = pair(&port);
        let mut expected = Vec::new();
        for round in 0..20 {
            let text = format!("round {round} ");
            expected.extend(text.as_bytes());
            stream.send(text.into_bytes()).unwrap();
            let transmit = Transmit::new(files[round % 2].clone()).head("<").tail(">");
            let content = if round % 2 == 0 { &small } else { &large };
            expected.extend([b"<", &content[..], b">"].concat());
            stream.transmit(transmit).unwrap();
            stream.send_vectored(vec!["a".into(), "b".into()]).unwrap();
            expected.extend(b"ab");
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let reading = read_all(peer);
        for _ in 0..61 {
            assert!(next(&port).result.is_ok());
        }
        assert!(join(reading) == expected);
    });
}

/// Would catch: transmissions that wait for ever for a buffer, or mix theirs up; slow peers that
/// hold up others.
#[test]
fn peers_that_do_not_read_hold_up_nobody() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(9, 8 << 20);
        let file = file(&folder, "content", &content);
        let port = port(1);
        // More of them than there are buffers, each with more than its socket holds.
        let slow: Vec<_> = (0..48).map(|_| pair(&port)).collect();
        for (id, (stream, _)) in (0..).zip(&slow) {
            let start = stream.start().context(Token::from(id));
            start.transmit(Transmit::new(file.clone())).unwrap();
        }
        let (stream, peer) = pair(&port);
        let reading = read_all(peer);
        stream.start().context(Token::from(99)).transmit(Transmit::new(file.clone())).unwrap();
        let packet = next(&port);
        assert_eq!(packet.context.map(|token| token.id), Some(99));
        assert_eq!(packet.result, Ok(8 << 20));
        drop(stream);
        drop(packet.op);
        assert!(join(reading) == content);
        // And now they read, all at once.
        let reading: Vec<_> = slow.into_iter().map(|(_, peer)| read_all(peer)).collect();
        for _ in &reading {
            assert_eq!(next(&port).result, Ok(8 << 20));
        }
        for peer in reading {
            assert!(join(peer) == content);
        }
    });
}

/// Would catch: a thread that is kept by a socket which takes less than it has room for, and data
/// that gets lost when it does.
#[cfg(target_os = "linux")]
#[test]
fn sockets_that_take_little_hold_up_nobody() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(4, 4 << 20);
        let file = file(&folder, "content", &content);
        let port = port(1);
        let slow: Vec<_> = (0..4)
            .map(|_| {
                let (stream, peer) = pair(&port);
                let socket = std::os::fd::AsFd::as_fd(&stream);
                let (descriptor, most) = (std::os::fd::AsRawFd::as_raw_fd(&socket), 1);
                // SAFETY: the number lives across the call.
                let set = unsafe {
                    libc::setsockopt(
                        descriptor,
                        libc::IPPROTO_TCP,
                        libc::TCP_NOTSENT_LOWAT,
                        (&raw const most).cast(),
                        4,
                    )
                };
                assert_eq!(set, 0);
                stream.transmit(Transmit::new(file.clone()).head("head").tail("tail")).unwrap();
                (stream, peer)
            })
            .collect();
        let (stream, peer) = pair(&port);
        let reading = read_all(peer);
        stream.start().context(Token::from(9)).transmit(Transmit::new(file.clone())).unwrap();
        let packet = next(&port);
        assert_eq!(packet.context.map(|token| token.id), Some(9));
        drop((stream, packet.op));
        assert!(join(reading) == content);
        let reading: Vec<_> = slow.into_iter().map(|(_, peer)| read_all(peer)).collect();
        for _ in &reading {
            assert_eq!(next(&port).result, Ok((4 << 20) + 8));
        }
        let expected = [b"head", &content[..], b"tail"].concat();
        for peer in reading {
            assert!(join(peer) == expected);
        }
    });
}

/// Would catch: a mechanism that only connections over TCP have.
#[cfg(unix)]
#[test]
fn files_are_transmitted_to_unix_sockets() {
    use std::os::unix::net::UnixStream;
    run(|| {
        let folder = Folder::new();
        let content = pattern(6, 3_000_001);
        let file = file(&folder, "content", &content);
        let port = port(1);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = port.associate(ours, 1).unwrap();
        for _ in 0..2 {
            let transmit = Transmit::new(file.clone()).head("head").tail("tail");
            stream.transmit(transmit).unwrap();
        }
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        for _ in 0..2 {
            assert_eq!(next(&port).result, Ok(3_000_009));
        }
        drop(stream);
        let expected = [b"head", &content[..], b"tail"].concat();
        assert!(join(reading) == expected.repeat(2));
    });
}

/// Would catch: a total that is not what the peer gets.
#[test]
fn transmissions_that_end_early_say_how_much_was_sent() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(1, 32 << 20);
        let file = file(&folder, "content", &content);
        let port = port(1);
        let transmit = || Transmit::new(file.clone()).head("head");
        let expected = [b"head", &content[..]].concat();
        for how in ["cancelled", "late", "closed"] {
            let (stream, peer) = pair(&port);
            let start = stream.start().context(Token::from(1));
            let start =
                if how == "late" { start.deadline(Duration::from_millis(300)) } else { start };
            let id = start.transmit(transmit()).unwrap();
            // One behind it.
            stream.start().context(Token::from(2)).transmit(transmit()).unwrap();
            // More than the head has gone out.
            peer.set_nonblocking(true).unwrap();
            until("it has begun", || {
                let early = poll(&port);
                assert!(early.is_none(), "{early:?}");
                peer.peek(&mut [0; 5]).is_ok_and(|length| length == 5)
            });
            peer.set_nonblocking(false).unwrap();
            match how {
                "cancelled" => assert!(stream.cancel(id)),
                "closed" => stream.close(),
                _ => {}
            }
            let mut sent = [0; 3];
            for _ in 0..2 {
                let packet = next(&port);
                let error = packet.result.unwrap_err();
                let number = packet.context.as_ref().map_or(0, |token| token.id);
                let late = how == "late" && number == 1;
                assert_eq!(error.is_timed_out(), late, "{how} {number}: {error}");
                assert_eq!(error.is_cancelled(), !late, "{how} {number}: {error}");
                sent[usize::try_from(number).unwrap()] = packet.bytes;
                // The second one has begun, unless the connection is closed.
                stream.cancel_all();
            }
            let [_, first, second] = sent;
            assert!(first > 4 && first < expected.len(), "{how}: {first}");
            assert!(second < expected.len() && (how != "closed" || second == 0), "{how}: {second}");
            drop(stream);
            let received = join(read_all(peer));
            assert_eq!(received.len(), first + second, "{how}");
            let (one, two) = received.split_at(first);
            assert!(*one == expected[..first] && *two == expected[..second], "{how}");
        }
    });
}

/// Would catch: a hang, or a success, when the connection is gone.
#[test]
fn transmissions_to_a_peer_that_is_gone_fail() {
    run(|| {
        let folder = Folder::new();
        let file = file(&folder, "content", &pattern(1, 32 << 20));
        let port = port(1);
        let (stream, peer) = pair(&port);
        stream.transmit(Transmit::new(file.clone())).unwrap();
        assert!(poll(&port).is_none());
        reset(peer);
        let packet = next(&port);
        let kind = packet.result.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind:?}");
        stream.transmit(Transmit::new(file)).unwrap();
        assert_eq!(next(&port).result.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// Would catch: a file that is shorter than was promised and that nobody hears of.
#[test]
fn a_file_that_ends_too_early_is_an_error() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(1, 1000);
        let short = file(&folder, "content", &content);
        let port = port(1);
        let (stream, peer) = pair(&port);
        stream.transmit(Transmit::new(short.clone()).head("head").part(500, 501)).unwrap();
        let packet = next(&port);
        let error = packet.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEnd);
        assert_eq!(packet.bytes, 504);
        drop(packet);
        // One of which nothing is there: nothing is sent, the head neither.
        stream.transmit(Transmit::new(short).head("head").part(1000, 1)).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::UnexpectedEnd);
        assert_eq!(packet.bytes, 0);
        drop(packet);
        // One that is cut while it is sent.
        let large = file(&folder, "large", &pattern(2, 32 << 20));
        stream.transmit(Transmit::new(large)).unwrap();
        assert!(poll(&port).is_none());
        fs::OpenOptions::new().write(true).open(folder.path("large")).unwrap().set_len(10).unwrap();
        let reading = read_all(peer);
        let packet = next(&port);
        assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::UnexpectedEnd);
        let sent = 504 + packet.bytes;
        drop((stream, packet.op));
        let received = join(reading);
        assert_eq!(received.len(), sent);
        assert!(received[..4] == *b"head" && received[4..504] == content[500..]);
    });
}

/// Would catch: an error without its kind, something that does not come back, or a connection that
/// does not work any more.
#[test]
fn transmissions_that_make_no_sense_fail_alone() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let (stream, mut peer) = pair(&port);
        let some = file(&folder, "some", b"content");
        for (offset, length) in [(1 << 63, 1), (u64::MAX, 1), (1, u64::MAX), (i64::MAX as u64, 1)] {
            let refused = stream
                .transmit(Transmit::new(some.clone()).head("head").part(offset, length))
                .unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
            assert_eq!(&refused.value.into_bufs().0[..], b"head");
        }
        let fails = |file: fs::File| {
            stream.transmit(Transmit::new(file).head("x").part(0, 1)).unwrap();
            let packet = next(&port);
            assert_eq!(packet.bytes, 0, "{packet:?}");
            packet.result.unwrap_err()
        };
        // On Windows a directory cannot be opened so.
        #[cfg(unix)]
        assert_eq!(fails(fs::File::open(folder.path("")).unwrap()).kind(), ErrorKind::IsADirectory);
        // Wine sends what may not be read.
        if !is_wine() {
            let options = fs::OpenOptions::new().write(true).clone();
            let error = fails(options.open(folder.path("some")).unwrap());
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("opened"), "{error}");
        }
        #[cfg(unix)]
        {
            let (_reader, writer) = std::io::pipe().unwrap();
            let pipe = port.associate(writer, 2).unwrap();
            pipe.transmit(Transmit::new(some.clone())).unwrap();
            let error = next(&port).result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("sockets"), "{error}");
        }
        // The connection is as it was.
        stream.transmit(Transmit::new(some.clone())).unwrap();
        assert_eq!(next(&port).result, Ok(7));
        let mut received = [0; 7];
        peer.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"content");
        stream.close();
        let refused = stream.transmit(Transmit::new(some)).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Closed);
    });
}

/// Would catch: a file that stays open or a buffer that is freed twice or never, whenever the port
/// goes.
#[test]
fn transmissions_are_freed_with_their_port() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(1, 16 << 20);
        for started in [false, true] {
            let tally = Tally::default();
            let file = file(&folder, "content", &content);
            let weak = Arc::downgrade(&file);
            let port = port(1);
            let connections: Vec<_> = (0..50).map(|_| pair(&port)).collect();
            for (stream, _) in &connections {
                for _ in 0..2 {
                    let transmit = Transmit::new(file.clone())
                        .head(tally.bytes(b"head".to_vec()))
                        .tail(tally.bytes(b"tail".to_vec()));
                    stream.start().context(tally.token(1)).transmit(transmit).unwrap();
                }
            }
            drop(file);
            if started {
                assert!(poll(&port).is_none());
            }
            drop(port);
            drop(connections);
            assert!(weak.upgrade().is_none());
            tally.assert_even();
        }
    });
}

/// Would catch: a file that is read from the disk, and not from the system's memory, in another
/// way than it should.
#[test]
fn files_that_are_not_in_memory_are_transmitted() {
    run(|| {
        let folder = Folder::new();
        let content = pattern(1, 6_000_001);
        let file = file(&folder, "content", &content);
        // Windows syncs only what may be written.
        #[cfg(unix)]
        file.sync_all().unwrap();
        #[cfg(target_os = "linux")]
        // SAFETY: it takes no pointers.
        unsafe {
            let descriptor = std::os::fd::AsRawFd::as_raw_fd(&*file);
            libc::posix_fadvise(descriptor, 0, 0, libc::POSIX_FADV_DONTNEED);
        }
        let port = port(1);
        let (stream, peer) = pair(&port);
        let reading = read_all(peer);
        stream.transmit(Transmit::new(file).head("head").tail("tail")).unwrap();
        assert_eq!(next(&port).result, Ok(6_000_009));
        drop(stream);
        assert!(join(reading) == [b"head", &content[..], b"tail"].concat());
    });
}

/// Would catch: what the examples above do not happen upon, with sockets that take little and peers
/// that read in their own rhythm.
#[test]
fn any_transmission_arrives() {
    let piece = || prop::collection::vec(any::<u8>(), 0..40_000);
    let one = (piece(), 0..300_000_usize, 0..300_000_usize, piece());
    let all = (prop::collection::vec(one, 1..5), 0..3_usize, 1000..100_000_usize);
    run(move || {
        let folder = Folder::new();
        let content = pattern(0, 600_000);
        let file = file(&folder, "content", &content);
        let port = port(2);
        let mut runner = TestRunner::new(ProptestConfig::with_cases(24));
        let outcome = runner.run(&all, |(transmissions, small, reads)| {
            let t = std::time::Instant::now();
            let (stream, mut peer) = pair(&port);
            if small > 0 {
                SockRef::from(&stream).set_send_buffer_size(4096 * small).expect("set");
                SockRef::from(&peer).set_recv_buffer_size(32 << 10).expect("set");
            }
            let reading = thread::spawn(move || {
                let (mut all, mut part) = (Vec::new(), vec![0; reads]);
                while let Ok(count) = peer.read(&mut part) {
                    if count == 0 {
                        break;
                    }
                    all.extend_from_slice(&part[..count]);
                    thread::yield_now();
                }
                all
            });
            let mut expected = Vec::new();
            let mut totals = Vec::new();
            for (head, from, length, tail) in transmissions {
                let part = &content[from..from + length];
                expected.extend([&head[..], part, &tail].concat());
                totals.push(Ok(head.len() + length + tail.len()));
                let transmit = Transmit::new(file.clone()).part(from as u64, length as u64);
                stream.transmit(transmit.head(head).tail(tail)).expect("started");
            }
            let sent: Vec<_> = totals.iter().map(|_| next(&port).result).collect();
            prop_assert_eq!(sent, totals);
            drop(stream);
            prop_assert!(join(reading) == expected);
            eprintln!("{small} {reads} {} {:?}", expected.len(), t.elapsed());
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// Would catch: a transmission that leaves its buffer behind, after which the next ones wait.
#[test]
fn a_port_transmits_again_and_again() {
    let reason = "Wine leaves a TransmitFile pending whose peer closes meanwhile";
    if not_shown_by_wine("a_port_transmits_again_and_again", reason) {
        return;
    }
    run(|| {
        let folder = Folder::new();
        let file = file(&folder, "content", &pattern(0, 300_000));
        let port = port(1);
        // More often than there are buffers of either size, ended in every way.
        for round in 0..100 {
            let (stream, mut peer) = pair(&port);
            let length = if round % 2 == 0 { 300_000 } else { 1000 };
            stream.transmit(Transmit::new(file.clone()).part(0, length)).unwrap();
            stream.transmit(Transmit::new(file.clone()).part(299_999, 2)).unwrap();
            match round % 3 {
                0 => drop(peer),
                1 => {
                    stream.cancel_all();
                }
                _ => {
                    let mut all = vec![0; usize::try_from(length).unwrap()];
                    let reading = thread::spawn(move || peer.read_exact(&mut all));
                    drop((next(&port), next(&port)));
                    let _ = join(reading);
                    continue;
                }
            }
            drop((next(&port), next(&port)));
        }
        let (stream, mut peer) = pair(&port);
        stream.transmit(Transmit::new(file).head(Buf::from("x")).part(0, 3)).unwrap();
        assert_eq!(next(&port).result, Ok(4));
        peer.write_all(b"-").unwrap();
        let mut all = [0; 4];
        peer.read_exact(&mut all).unwrap();
    });
}
