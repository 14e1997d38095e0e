//! The conformance suite on epoll.

#![cfg(target_os = "linux")]

mod conformance;

fn builder() -> wharf::Builder {
    wharf::Builder::new().driver(wharf::Driver::Epoll)
}

mod calls {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use wharf::{Buf, Now, Op, Port, Stream, Wait};

    fn connection(port: &Port<u32>) -> (Stream<u32>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_nodelay(true).unwrap();
        (port.associate(listener.accept().unwrap().0, 1).unwrap(), peer)
    }

    fn next(port: &Port<u32>) -> Op<u32> {
        match port.wait() {
            Wait::Packet(packet) => packet.op,
            other => panic!("{other:?}"),
        }
    }

    /// Would catch: calls that are made and not counted, and calls nobody needs: to find out that
    /// nothing has come, to register a socket again, to be told of a packet that is known.
    #[test]
    fn an_echo_takes_three_system_calls_and_they_are_counted() {
        const ECHOES: u64 = 100;
        for sends_now in [false, true] {
            let port = crate::builder().concurrency(1).build::<u32, ()>().unwrap();
            let (stream, mut peer) = connection(&port);
            let mut echo = || {
                stream.recv(Buf::pooled()).unwrap();
                peer.write_all(&[7; 64]).unwrap();
                let Op::Recv { buf, .. } = next(&port) else { panic!("a receive was started") };
                if sends_now {
                    let now = stream.start().send_now(buf).unwrap();
                    assert!(matches!(now, Now::Completed { bytes: 64, .. }));
                } else {
                    stream.send(buf).unwrap();
                    assert!(matches!(next(&port), Op::Send { .. }));
                }
                peer.read_exact(&mut [0; 64]).unwrap();
            };
            // The first one registers the socket.
            echo();
            let before = port.stats().kernel_entries;
            (0..ECHOES).for_each(|_| echo());
            let calls = port.stats().kernel_entries - before;
            // epoll_wait, recvfrom, sendto; and the look that `stats` takes.
            assert_eq!(calls, 3 * ECHOES + 1, "sends_now: {sends_now}");
        }
    }
}
