//! Named pipes of Windows: instances, clients, and how they end.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use wharf::{Buf, ErrorKind, PipeServer};

use super::support::*;

/// A name that nobody else has.
pub(super) fn name() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(r"\\.\pipe\wharf-test-{}-{number}", std::process::id())
}

/// A client and the instance that it is connected to.
fn pair(port: &Port, server: &PipeServer) -> (Stream, Stream) {
    let served = port.serve_pipe(server, 1).unwrap();
    let client = port.connect_pipe(server.name(), 2).unwrap();
    let packet = next(port);
    assert_eq!(packet.result, Ok(0));
    let Op::Connect { stream } = packet.op else { panic!("{:?}", packet.op) };
    assert!(stream == served);
    (served, client)
}

/// The next packet is a receive of these bytes.
#[track_caller]
fn hears(port: &Port, expected: &[u8]) {
    loop {
        let packet = next(port);
        if let Op::Recv { buf, .. } = packet.op {
            assert_eq!(packet.result, Ok(expected.len()));
            assert_eq!(&*buf, expected);
            return;
        }
        packet.result.unwrap();
    }
}

/// Would catch: a client that is not noticed, bytes that are lost on either way, an end that is not
/// told.
#[test]
fn a_named_pipe_is_a_stream_both_ways() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name());
        let (served, client) = pair(&port, &server);
        for buf in [Buf::with_capacity(16), Buf::pooled(), Buf::from(vec![0; 9])] {
            served.recv(buf).unwrap();
            assert!(poll(&port).is_none());
            client.start().silent().send("question").unwrap();
            hears(&port, b"question");
            client.recv_exact(Buf::with_capacity(9), 6).unwrap();
            served
                .start()
                .silent()
                .send_vectored(vec!["an".into(), "".into(), "swer".into()])
                .unwrap();
            hears(&port, b"answer");
        }
        // Both ways at once, more than the pipe holds.
        let large = pattern(3, 1 << 20);
        for (from, to) in [(&served, &client), (&client, &served)] {
            from.start().silent().send(large.clone()).unwrap();
            to.recv_exact(Buf::with_capacity(1 << 20), 1 << 20).unwrap();
        }
        hears(&port, &large);
        hears(&port, &large);
        // What was sent before the end comes before it.
        served.recv_each().unwrap();
        client.start().silent().send("last").unwrap();
        hears(&port, b"last");
        drop(client);
        hears(&port, b"");
        served.recv(Buf::with_capacity(1)).unwrap();
        hears(&port, b"");
        served.recv(Vec::new()).unwrap();
        hears(&port, b"");
        served.send("nobody").unwrap();
        assert_eq!(next(&port).result.unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

/// Would catch: a server whose end is not told to its clients.
#[test]
fn a_server_that_goes_is_noticed() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name());
        let (served, client) = pair(&port, &server);
        served.send("goodbye").unwrap();
        next(&port).result.unwrap();
        client.recv(Buf::pooled()).unwrap();
        hears(&port, b"goodbye");
        client.recv(Buf::pooled()).unwrap();
        assert!(poll(&port).is_none());
        drop(served);
        hears(&port, b"");
        let error = port.connect_pipe(server.name(), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

/// Would catch: a client that was there before anybody waited for it, or one that came and went,
/// and is lost.
#[test]
fn clients_may_be_faster_than_the_server() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name());
        let served = port.serve_pipe(&server, 1).unwrap();
        let client = std::fs::OpenOptions::new().write(true).open(server.name()).unwrap();
        use std::io::Write;
        (&client).write_all(b"hello").unwrap();
        drop(client);
        let packet = next(&port);
        assert!(matches!(packet.op, Op::Connect { .. }) && packet.result.is_ok());
        served.recv(Buf::pooled()).unwrap();
        hears(&port, b"hello");
        served.recv(Buf::pooled()).unwrap();
        hears(&port, b"");
    });
}

/// Would catch: clients that get each other's bytes, or an instance too many.
#[test]
fn each_client_has_an_instance() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name()).instances(3);
        let pairs: Vec<_> = (0..3).map(|_| pair(&port, &server)).collect();
        let error = port.serve_pipe(&server, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueueFull);
        assert!(error.to_string().contains("end one first"), "{error}");
        let error = port.connect_pipe(server.name(), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
        assert!(error.to_string().contains("try again"), "{error}");
        for (number, (_, client)) in pairs.iter().enumerate() {
            client.start().silent().send(vec![b'0' + u8::try_from(number).unwrap(); 10]).unwrap();
        }
        for (number, (served, _)) in pairs.iter().enumerate() {
            served.recv(Buf::with_capacity(100)).unwrap();
            hears(&port, &[b'0' + u8::try_from(number).unwrap(); 10]);
        }
        drop(pairs);
        // The place is free again.
        let (_served, _client) = pair(&port, &server);
    });
}

/// Would catch: a name that two programs serve.
#[test]
fn a_name_belongs_to_one_server() {
    run(|| {
        let port = port(1);
        let name = name();
        let server = PipeServer::new(&name);
        let _served = port.serve_pipe(&server, 1).unwrap();
        let _next = port.serve_pipe(&server, 1).unwrap();
        let why = "in part: Wine lets several servers have one name";
        if not_shown_by_wine("a_name_belongs_to_one_server", why) {
            return;
        }
        let error = port.serve_pipe(&PipeServer::new(&name), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddressInUse, "{error}");
        assert!(error.to_string().contains("another name"), "{error}");
    });
}

/// Would catch: a file that is opened in place of a pipe.
#[test]
fn names_that_are_no_pipes_are_refused() {
    run(|| {
        let port = port(1);
        for bad in
            ["", "name", r"C:\name", r"\\.\pipe\", r"\\.\name", r"\\.\C:\pipe", r"\pipe\name"]
        {
            let error = port.serve_pipe(&PipeServer::new(bad), 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
            let error = port.connect_pipe(bad, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
        let zero = format!("{}\0x", name());
        port.serve_pipe(&PipeServer::new(&zero), 1).unwrap_err();
        port.connect_pipe(&zero, 1).unwrap_err();
        let error = port.connect_pipe(name(), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

/// Would catch: a wait for a client that cannot be ended, or has no packet.
#[test]
fn waiting_for_a_client_ends_early() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name());
        for close in [false, true] {
            let served = port.serve_pipe(&server, 1).unwrap();
            assert!(poll(&port).is_none());
            if close {
                served.close();
            } else {
                assert_eq!(served.cancel_all(), 1);
            }
            let packet = next(&port);
            assert!(matches!(packet.op, Op::Connect { .. }));
            assert!(packet.result.unwrap_err().is_cancelled());
        }
        // With the port.
        port.serve_pipe(&server, 1).unwrap();
        drop(port);
    });
}

/// Would catch: an operation that a named pipe does not know and that does something else, or an
/// address that is asked of it.
#[test]
fn what_only_sockets_do_is_refused() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name());
        let (served, client) = pair(&port, &server);
        client.connect("127.0.0.1:1".parse().unwrap()).unwrap();
        assert_eq!(next(&port).result.unwrap_err().kind(), ErrorKind::InvalidInput);
        served.shutdown(std::net::Shutdown::Write).unwrap();
        let error = next(&port).result.unwrap_err();
        assert!(error.to_string().contains("last clone"), "{error}");
        assert!(format!("{served:?}").contains("None"));
        // It goes on.
        served.recv(Buf::pooled()).unwrap();
        client.start().deadline(Duration::from_secs(10)).send("still here").unwrap();
        hears(&port, b"still here");
    });
}

/// Would catch: an instance that cannot be used again, or whose last client keeps it.
#[test]
fn an_instance_is_served_again() {
    run(|| {
        let port = port(1);
        let server = PipeServer::new(name()).instances(1);
        let (served, mut client) = pair(&port, &server);
        for round in 0..3_u8 {
            served.recv(Buf::pooled()).unwrap();
            client.recv(Buf::pooled()).unwrap();
            assert!(poll(&port).is_none());
            // In line behind what is sent.
            served.start().silent().send("farewell").unwrap();
            hears(&port, b"farewell");
            client.recv(Buf::pooled()).unwrap();
            served.disconnect(false).unwrap();
            let mut ends = 0;
            for _ in 0..3 {
                let packet = next(&port);
                assert_eq!(packet.result, Ok(0));
                ends += i32::from(matches!(packet.op, Op::Recv { .. }));
            }
            assert_eq!(ends, 2);
            served.serve_pipe().unwrap();
            assert!(poll(&port).is_none());
            client = port.connect_pipe(server.name(), 3).unwrap();
            assert!(matches!(next(&port).op, Op::Connect { .. }));
            client.start().silent().send(vec![round; 9]).unwrap();
            served.recv(Buf::with_capacity(10)).unwrap();
            hears(&port, &[round; 9]);
        }
        // A client's end is not one that could be.
        client.disconnect(false).unwrap();
        assert!(next(&port).result.is_err());
    });
}

/// Would catch: many clients at once, on several workers, that lose bytes or packets.
#[test]
fn many_clients_are_echoed() {
    run(|| {
        const CLIENTS: usize = 20;
        const ROUNDS: usize = 50;
        let port = port(2);
        let server = PipeServer::new(name());
        let ended = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                port.serve_pipe(&server, 1).unwrap();
            }
            let name = server.name();
            for client in 0..CLIENTS {
                scope.spawn(move || {
                    use std::io::{Read, Write};
                    let mut pipe = loop {
                        match std::fs::OpenOptions::new().read(true).write(true).open(name) {
                            Ok(pipe) => break pipe,
                            // All are taken.
                            Err(_) => std::thread::sleep(Duration::from_millis(1)),
                        }
                    };
                    for round in 0..ROUNDS {
                        let said = pattern(client * 1000 + round, 3000);
                        pipe.write_all(&said).unwrap();
                        let mut heard = vec![0; said.len()];
                        pipe.read_exact(&mut heard).unwrap();
                        assert!(heard == said);
                    }
                });
            }
            port.workers(3)
                .run(|packet| {
                    let bytes = packet.result?;
                    match packet.op {
                        Op::Connect { stream } => {
                            port.serve_pipe(&server, 1)?;
                            stream.recv(Buf::pooled())?;
                        }
                        Op::Recv { stream, buf } if bytes > 0 => stream.send(buf)?,
                        Op::Send { stream, .. } => stream.recv(Buf::pooled())?,
                        _ => {
                            if ended.fetch_add(1, Ordering::SeqCst) + 1 == CLIENTS {
                                port.close();
                            }
                        }
                    }
                    Ok(())
                })
                .unwrap();
        });
        assert_eq!(ended.load(Ordering::SeqCst), CLIENTS);
    });
}

/// Would catch: the rest of a message that is lost, or a message that is never noticed.
#[test]
fn messages_are_received_as_bytes() {
    use std::os::windows::io::{FromRawHandle, OwnedHandle};
    use windows_sys::Win32::{
        Foundation::INVALID_HANDLE_VALUE,
        Storage::FileSystem::{FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX},
        System::Pipes::{CreateNamedPipeW, PIPE_READMODE_MESSAGE, PIPE_TYPE_MESSAGE},
    };
    run(|| {
        let port = port(1);
        let name = name();
        let wide: Vec<u16> = name.encode_utf16().chain([0]).collect();
        // SAFETY: the name ends with a zero, and the handle is new.
        let pipe = unsafe {
            let pipe = CreateNamedPipeW(
                wide.as_ptr(),
                PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED,
                PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE,
                1,
                4096,
                4096,
                0,
                std::ptr::null(),
            );
            assert_ne!(pipe, INVALID_HANDLE_VALUE);
            OwnedHandle::from_raw_handle(pipe)
        };
        let client = port.connect_pipe(&name, 2).unwrap();
        let served = port.associate(pipe, 1).unwrap();
        for early in [true, false] {
            let say = || client.start().silent().send("one message").unwrap();
            if early {
                say();
                assert!(poll(&port).is_none());
            }
            served.recv(Buf::with_capacity(4)).unwrap();
            if !early {
                say();
            }
            hears(&port, b"one ");
            served.recv(Vec::new()).unwrap();
            hears(&port, b"");
            served.recv(Buf::pooled()).unwrap();
            hears(&port, b"message");
            // And all in parts.
            say();
            served.recv_exact(Buf::with_capacity(11), 11).unwrap();
            hears(&port, b"one message");
        }
    });
}
