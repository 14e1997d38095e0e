//! Descriptors that travel with messages.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
};

use wharf::{Address, Ancillary, Buf, ErrorKind};

use super::{files::Folder, needs::*, support::*};

type Datagram = wharf::Datagram<u32, Token>;

#[track_caller]
fn datagram(packet: Packet) -> (Buf, Ancillary) {
    assert!(packet.result.is_ok(), "{:?}", packet.result);
    match packet.op {
        Op::RecvDatagram { buf, message, .. } => (buf, message),
        other => panic!("not a datagram: {other:?}"),
    }
}

#[track_caller]
fn message(packet: Packet) -> (Buf, Ancillary) {
    assert!(packet.result.is_ok(), "{:?}", packet.result);
    match packet.op {
        Op::RecvMessage { buf, message, .. } => (buf, message),
        other => panic!("not a message: {other:?}"),
    }
}

/// A file with some content, as a descriptor to send.
fn file(folder: &Folder, content: &str) -> OwnedFd {
    let path = folder.path(content);
    fs::write(&path, content).unwrap();
    fs::File::open(path).unwrap().into()
}

fn content(descriptor: OwnedFd) -> String {
    let mut text = String::new();
    let mut file = fs::File::from(descriptor);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// How many descriptors this process has of files in a folder.
fn descriptors(folder: &Folder) -> usize {
    let all = fs::read_dir("/proc/self/fd").expect("known").flatten();
    let targets = all.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.starts_with(folder.path(""))).count()
}

/// Would catch: descriptors that do not arrive, arrive twice, or with other bytes; ends that are
/// not told.
#[test]
fn descriptors_travel_over_a_stream() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sender = port.associate(ours, 1).unwrap();
        let receiver = port.associate(theirs, 2).unwrap();
        for buf in [Buf::with_capacity(20), Buf::pooled()] {
            let sent = vec![file(&folder, "one"), file(&folder, "two")];
            sender.send_with_descriptors("two files", sent).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(9));
            assert!(matches!(packet.op, Op::Send { .. }));
            receiver.recv_with_descriptors(buf, 5).unwrap();
            let (buf, mut message) = message(next(&port));
            assert_eq!(&buf[..], b"two files");
            assert!(!message.has_lost_descriptors() && !message.is_truncated());
            let texts: Vec<_> = message.take_descriptors().into_iter().map(content).collect();
            assert_eq!(texts, ["one", "two"]);
            assert!(message.take_descriptors().is_empty());
        }
        assert_eq!(descriptors(&folder), 0, "one is left open");
        // In order with what has none, and with more than the socket holds at once.
        let large = pattern(0, 3 << 20);
        sender.send("before ").unwrap();
        sender.send_with_descriptors(large.clone(), vec![file(&folder, "three")]).unwrap();
        sender.send(" after").unwrap();
        let expected = [b"before ", &large[..], b" after"].concat();
        let (mut heard, mut texts) = (Vec::new(), Vec::new());
        receiver.recv_with_descriptors(Buf::pooled(), 1).unwrap();
        while heard.len() < expected.len() {
            let packet = next(&port);
            if let Op::RecvMessage { buf, mut message, .. } = packet.op {
                heard.extend_from_slice(&buf);
                texts.extend(message.take_descriptors().into_iter().map(content));
                drop(buf);
                receiver.recv_with_descriptors(Buf::pooled(), 1).unwrap();
            } else {
                assert!(packet.result.is_ok());
            }
        }
        assert_eq!(heard, expected);
        assert_eq!(texts, ["three"]);
        drop(sender);
        loop {
            if let Op::RecvMessage { buf, message, .. } = next(&port).op {
                assert!(buf.is_empty());
                assert!(message.from().is_none());
                break;
            }
        }
    });
}

/// Would catch: descriptors that nobody takes and that stay open, or ones lost without a word.
#[test]
fn descriptors_that_nobody_takes_are_closed() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sender = port.associate(ours, 1).unwrap();
        let receiver = port.associate(theirs, 2).unwrap();
        let send = |count: usize| {
            let files = (0..count).map(|_| file(&folder, "some")).collect();
            sender.send_with_descriptors("x", files).unwrap();
            assert!(next(&port).result.is_ok());
        };
        // Dropped with the packet.
        send(3);
        receiver.recv_with_descriptors(vec![0; 9], 3).unwrap();
        drop(next(&port));
        assert_eq!(descriptors(&folder), 0);
        // More than there is room for.
        let test = "descriptors_that_nobody_takes_are_closed";
        if !lacks_in_part(Need::LostDescriptors, test) {
            send(4);
            receiver.recv_with_descriptors(vec![0; 9], 2).unwrap();
            let (_, mut message) = message(next(&port));
            assert!(message.has_lost_descriptors());
            assert_eq!(message.take_descriptors().len(), 2);
        }
        // Ancillary by those who do not ask for them.
        send(1);
        receiver.recv(vec![0; 9]).unwrap();
        assert!(matches!(next(&port).op, Op::Recv { .. }));
        assert_eq!(descriptors(&folder), 0);
        // Without a packet.
        send(2);
        receiver.start().silent().recv_with_descriptors(vec![0; 9], 2).unwrap();
        until("it is over", || {
            assert!(poll(&port).is_none());
            port.stats().in_flight == 0
        });
        assert_eq!(descriptors(&folder), 0);
        // Refused, or never sent.
        let files = || vec![file(&folder, "some")];
        let refused = sender.send_with_descriptors("", files()).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.1.len()), (ErrorKind::InvalidInput, 1));
        drop(refused);
        let many = (0..254).map(|_| file(&folder, "some")).collect();
        let refused = sender.send_with_descriptors("x", many).unwrap_err();
        assert_eq!((refused.error.kind(), refused.value.1.len()), (ErrorKind::InvalidInput, 254));
        assert!(receiver.recv_with_descriptors(vec![0; 9], 254).is_err());
        drop(refused);
        sender.send(vec![1; 4 << 20]).unwrap();
        sender.send_with_descriptors("x", files()).unwrap();
        sender.close();
        assert!(sender.send_with_descriptors("x", files()).unwrap_err().error.is_closed());
        for _ in 0..2 {
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
        assert_eq!(descriptors(&folder), 0);
        // One that has come, and whose packet nobody takes before the port goes.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sender = port.associate(ours, 1).unwrap();
        let receiver = port.associate(theirs, 2).unwrap();
        sender.send_with_descriptors("x", files()).unwrap();
        assert!(next(&port).result.is_ok());
        receiver.recv_with_descriptors(vec![0; 9], 2).unwrap();
        drop(port);
        assert_eq!(descriptors(&folder), 0);
    });
}

/// Would catch: addresses of this machine's sockets that are not told or not reached.
#[test]
fn datagrams_of_this_machine_carry_descriptors() {
    run(|| {
        let folder = Folder::new();
        let port = port(1);
        let path = folder.path("server");
        let server: Datagram =
            port.associate_datagram(UnixDatagram::bind(&path).unwrap(), 1).unwrap();
        assert_eq!(server.local_addr().unwrap().as_path(), Some(&*path));
        let client_path = folder.path("client");
        let client = UnixDatagram::bind(&client_path).unwrap();
        let client: Datagram = port.associate_datagram(client, 2).unwrap();
        let to = Address::unix(&path).unwrap();
        server.recv_with_descriptors(vec![0; 20], 1).unwrap();
        client.send_with_descriptors("a file", Some(to), vec![file(&folder, "it")]).unwrap();
        let mut heard = None;
        for _ in 0..2 {
            let packet = next(&port);
            assert!(packet.result.is_ok(), "{:?}", packet.result);
            if let Op::RecvDatagram { buf, message, socket } = packet.op {
                assert_eq!(*socket.key(), 1);
                heard = Some((buf, message));
            }
        }
        let (buf, mut message) = heard.unwrap();
        assert_eq!(&buf[..], b"a file");
        assert_eq!(message.from().unwrap().as_path(), Some(&*client_path));
        let texts: Vec<_> = message.take_descriptors().into_iter().map(content).collect();
        assert_eq!(texts, ["it"]);
        // To nobody, and without a name.
        client.send_to("x", Address::unix(folder.path("nobody")).unwrap()).unwrap();
        assert_eq!(next(&port).result.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(Address::unix("x".repeat(200)).is_err());
        let (one, other) = UnixDatagram::pair().unwrap();
        let one = port.associate_datagram(one, 3).unwrap();
        other.send(b"from nobody").unwrap();
        one.recv_from(Buf::pooled()).unwrap();
        let (buf, message) = datagram(next(&port));
        assert_eq!(&buf[..], b"from nobody");
        assert!(message.from().is_none_or(|from| from.as_path().is_none()));
        one.send("back").unwrap();
        assert!(next(&port).result.is_ok());
        let mut back = [0; 9];
        assert_eq!(other.recv(&mut back).unwrap(), 4);
    });
}

/// Would catch: a server of the standard library's that cannot pass a connection on.
#[test]
fn a_connection_is_passed_on() {
    run(|| {
        let port = port(1);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sender = port.associate(ours, 1).unwrap();
        let receiver = port.associate(theirs, 2).unwrap();
        let (passed, mut peer) = sockets();
        sender.send_with_descriptors("take it", vec![passed.into()]).unwrap();
        assert!(next(&port).result.is_ok());
        receiver.recv_with_descriptors(vec![0; 20], 1).unwrap();
        let (_, mut message) = message(next(&port));
        let connection = message.take_descriptors().pop().unwrap();
        let stream = port.associate(connection, 3).unwrap();
        stream.recv(Buf::pooled()).unwrap();
        peer.write_all(b"still there").unwrap();
        let Op::Recv { buf, .. } = next(&port).op else { panic!() };
        assert_eq!(&buf[..], b"still there");
    });
}
