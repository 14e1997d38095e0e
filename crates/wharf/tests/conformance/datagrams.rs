//! Datagram sockets.

use std::{net::UdpSocket, time::Duration};

use wharf::{Address, Ancillary, Buf, ErrorKind};

use super::support::*;

type Datagram = wharf::Datagram<u32, Token>;

#[track_caller]
fn datagram(packet: Packet) -> (Buf, Ancillary) {
    assert!(packet.result.is_ok(), "{:?}", packet.result);
    match packet.op {
        Op::RecvDatagram { buf, message, .. } => (buf, message),
        other => panic!("not a datagram: {other:?}"),
    }
}

/// Would catch: a kind of buffer that is not filled, a sender that is not told, or a datagram that
/// is joined with the next.
#[test]
fn datagrams_come_one_by_one_with_their_senders() {
    run(|| {
        let port = port(1);
        let socket = port.associate_datagram(UdpSocket::bind("127.0.0.1:0").unwrap(), 7).unwrap();
        assert_eq!(*socket.key(), 7);
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let from = client.local_addr().unwrap();
        let bufs =
            || [Buf::with_capacity(16), Buf::pooled(), Buf::from(vec![9; 30]), Buf::aligned(16, 8)];
        for buf in bufs() {
            let kind = format!("{buf:?}");
            socket.recv_from(buf).unwrap();
            assert!(poll(&port).is_none(), "{kind}");
            client.send_to(b"hello", address).unwrap();
            let (buf, message) = datagram(next(&port));
            assert_eq!(&buf[..], b"hello", "{kind}");
            assert!(!message.is_truncated(), "{kind}");
            let sender = message.from().unwrap();
            assert_eq!(sender.as_socket(), Some(from), "{kind}");
            // And back with it.
            socket.send_to(buf, sender).unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(5), "{kind}");
            assert!(matches!(packet.op, Op::SendDatagram { .. }), "{kind}");
            let mut echo = [0; 9];
            assert_eq!(client.recv(&mut echo).unwrap(), 5, "{kind}");
            assert_eq!(&echo[..5], b"hello", "{kind}");
        }
        // Several in flight keep their order, and an empty one is one too.
        let said: Vec<_> = (0..20).map(|number| vec![number; usize::from(number)]).collect();
        for _ in &said {
            socket.recv_from(Buf::with_capacity(20)).unwrap();
        }
        for one in &said {
            client.send_to(one, address).unwrap();
        }
        let heard: Vec<_> = said.iter().map(|_| datagram(next(&port)).0.to_vec()).collect();
        assert_eq!(heard, said);
    });
}

/// Would catch: a datagram that is cut without a word.
#[test]
fn datagrams_that_are_cut_say_so() {
    run(|| {
        let port = build(crate::builder().concurrency(1).pool(4, 4096));
        let socket = port.associate_datagram(UdpSocket::bind("127.0.0.1:0").unwrap(), 7).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (buf, room) in [(Buf::from(vec![0; 10]), 10), (Buf::pooled(), 4096)] {
            for length in [room - 1, room, room + 1, 3 * room] {
                let buf = if room == 10 { Buf::from(vec![0; 10]) } else { Buf::pooled() };
                socket.recv_from(buf).unwrap();
                client.send_to(&pattern(0, length), address).unwrap();
                let (buf, message) = datagram(next(&port));
                assert_eq!(message.is_truncated(), length > room, "{length} into {room}");
                assert_eq!(buf[..], pattern(0, length.min(room)));
            }
            drop(buf);
        }
    });
}

/// Would catch: a failed send without an error, or a socket that does not work any more after one.
#[test]
fn datagrams_that_cannot_be_sent_fail_alone() {
    run(|| {
        let port = port(1);
        let socket = port.associate_datagram(UdpSocket::bind("127.0.0.1:0").unwrap(), 7).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = || Address::from(peer.local_addr().unwrap());
        socket.send_to(vec![1; 70_000], to()).unwrap();
        let packet = next(&port);
        assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::InvalidInput);
        let Op::SendDatagram { buf, .. } = packet.op else { panic!("{:?}", packet.op) };
        assert_eq!(buf.len(), 70_000);
        socket.send("without an address").unwrap();
        assert!(next(&port).result.is_err());
        socket.send_to("fits", to()).unwrap();
        assert_eq!(next(&port).result, Ok(4));
        let mut heard = [0; 9];
        assert_eq!(peer.recv(&mut heard).unwrap(), 4);
        // Buffers and kinds that will not do.
        for buf in [Buf::with_capacity(0), Buf::from("static")] {
            let kind = socket.recv_from(buf).unwrap_err().error.kind();
            assert_eq!(kind, ErrorKind::InvalidInput);
        }
        #[cfg(unix)]
        {
            let (reader, _writer) = std::io::pipe().unwrap();
            let refused = port.associate_datagram(reader, 1).unwrap_err();
            assert_eq!(refused.error.kind(), ErrorKind::InvalidInput);
        }
        // Operations end early.
        let id = socket.start().recv_from(Buf::pooled()).unwrap();
        socket.start().deadline(PATIENCE).recv_from(Buf::with_capacity(9)).unwrap();
        assert!(poll(&port).is_none());
        assert!(socket.cancel(id));
        assert!(next(&port).result.unwrap_err().is_cancelled());
        socket.close();
        assert!(next(&port).result.unwrap_err().is_cancelled());
        assert!(socket.recv_from(vec![0; 3]).unwrap_err().error.is_closed());
    });
}

/// Would catch: an ICMP error that ends more than the operation that it meets.
#[test]
fn nobody_there_is_an_error_of_one_operation() {
    run(|| {
        let port = port(1);
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        let socket: Datagram = port.associate_datagram(socket, 7).unwrap();
        socket.recv_from(Buf::with_capacity(10)).unwrap();
        socket.send("anybody there?").unwrap();
        let mut refused = 0;
        for _ in 0..2 {
            if let Err(error) = next(&port).result {
                let reset = cfg!(windows) && error.is_connection_reset();
                assert!(error.is_connection_refused() || reset, "{error}");
                refused += 1;
            }
        }
        assert_eq!(refused, 1);
        socket.start().deadline(Duration::from_millis(5)).recv_from(vec![0; 10]).unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
    });
}
