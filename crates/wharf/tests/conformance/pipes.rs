//! Pipes, FIFOs, a child's standard streams, and sockets of this machine: streams like any other.

use std::{
    fs::File,
    io::{Read, Write},
    process::Stdio,
    thread,
    time::Duration,
};
#[cfg(unix)]
use std::{
    fs::OpenOptions,
    os::unix::net::{UnixListener, UnixStream},
};

use wharf::{Buf, ErrorKind};

#[cfg(unix)]
use super::files::Folder;
use super::support::*;

/// A pipe that is received from, and its other end.
fn from(port: &Port, key: u32) -> (Stream, File) {
    let (stream, other) = port.pipe_from(key).unwrap();
    (stream, other.into())
}

/// A pipe that is sent to, and its other end.
fn to(port: &Port, key: u32) -> (Stream, File) {
    let (stream, other) = port.pipe_to(key).unwrap();
    (stream, other.into())
}

/// Would catch: a request that a pipe does not know, a part that is lost, or an end that is not
/// told.
#[test]
fn pipes_are_received_from() {
    run(|| {
        let port = port(1);
        let (stream, mut writer) = from(&port, 7);
        assert_eq!(*stream.key(), 7);
        assert_eq!(stream.peer_addr().unwrap_err().kind(), ErrorKind::Unsupported);
        for buf in [Buf::with_capacity(16), Buf::pooled(), Buf::from(vec![0; 9])] {
            let kind = format!("{buf:?}");
            stream.recv(buf).unwrap();
            assert!(poll(&port).is_none(), "{kind}");
            writer.write_all(b"hello").unwrap();
            let packet = next(&port);
            assert_eq!(packet.result, Ok(5), "{kind}");
            assert_eq!(&received(packet)[..], b"hello", "{kind}");
        }
        // Exactly so many, which come in parts.
        stream.recv_exact(Buf::with_capacity(10), 10).unwrap();
        for part in [&b"0123"[..], b"456", b"789"] {
            assert!(poll(&port).is_none());
            writer.write_all(part).unwrap();
        }
        assert_eq!(&received(next(&port))[..], b"0123456789");
        // Only word of there being something.
        stream.recv(Vec::new()).unwrap();
        assert!(poll(&port).is_none());
        writer.write_all(b"x").unwrap();
        assert_eq!(next(&port).result, Ok(0));
        // Again and again.
        stream.recv_each().unwrap();
        assert_eq!(&received(next(&port))[..], b"x");
        writer.write_all(b"y").unwrap();
        let packet = next(&port);
        assert!(packet.more);
        assert_eq!(&received(packet)[..], b"y");
        drop(writer);
        let packet = next(&port);
        assert_eq!((packet.result, packet.more), (Ok(0), false));
        stream.recv(Buf::pooled()).unwrap();
        assert_eq!(next(&port).result, Ok(0), "at the end");
    });
}

/// Would catch: writes to a pipe that are cut where it is full, overtake each other, or do not end
/// it.
#[test]
fn pipes_are_sent_to() {
    run(|| {
        let port = port(1);
        let (stream, mut reader) = to(&port, 1);
        // Several times what a pipe holds.
        let large = pattern(0, 1 << 20);
        let expected = [&large[..], b"one two three", &large[..100]].concat();
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        stream.send(large.clone()).unwrap();
        stream.send_vectored(vec!["one ".into(), "".into(), "two three".into()]).unwrap();
        stream.start().send_now(large[..100].to_vec()).unwrap();
        drop(stream);
        let sizes: Vec<_> = (0..3).map(|_| next(&port).result).collect();
        assert_eq!(sizes, [Ok(1 << 20), Ok(13), Ok(100)]);
        assert_eq!(join(reading).unwrap(), expected);
    });
}

/// Would catch: a pipe nobody reads any more that ends the program, or an error nobody can read.
#[test]
fn a_pipe_that_is_read_by_nobody_is_broken() {
    run(|| {
        let port = port(1);
        let (stream, mut reader) = to(&port, 1);
        stream.send(vec![1; 1 << 20]).unwrap();
        assert!(poll(&port).is_none());
        reader.read_exact(&mut [0; 5000]).unwrap();
        drop(reader);
        let packet = next(&port);
        assert_eq!(packet.result.unwrap_err().kind(), ErrorKind::BrokenPipe);
        // Windows does not tell how much of it was taken.
        assert!(cfg!(windows) || packet.bytes > 0, "{}", packet.bytes);
        assert!(packet.bytes < 1 << 20, "{}", packet.bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let error = next(&port).result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("last clone"), "{error}");
    });
}

/// Would catch: an operation on a pipe that cannot be ended, or takes data although it was.
#[test]
fn operations_on_pipes_end_early() {
    run(|| {
        let port = port(1);
        let (stream, mut writer) = from(&port, 1);
        for buf in [Buf::with_capacity(9), Buf::pooled(), Buf::from(Vec::new())] {
            let kind = format!("{buf:?}");
            let id = stream.start().recv(buf).unwrap();
            assert!(poll(&port).is_none(), "{kind}");
            assert!(stream.cancel(id), "{kind}");
            assert!(next(&port).result.unwrap_err().is_cancelled(), "{kind}");
        }
        stream.start().deadline(Duration::from_millis(5)).recv(Buf::with_capacity(9)).unwrap();
        assert!(next(&port).result.unwrap_err().is_timed_out());
        writer.write_all(b"all here").unwrap();
        stream.recv(Buf::with_capacity(20)).unwrap();
        assert_eq!(&received(next(&port))[..], b"all here");

        let (full, _reader) = to(&port, 1);
        full.send(vec![1; 1 << 20]).unwrap();
        full.send("behind it").unwrap();
        assert!(poll(&port).is_none());
        full.close();
        for _ in 0..2 {
            assert!(next(&port).result.unwrap_err().is_cancelled());
        }
        assert!(full.send("x").unwrap_err().error.is_closed());
    });
}

/// Would catch: an end of a pipe made elsewhere that is refused, or on Windows one that would make
/// its workers wait.
#[test]
fn pipes_made_elsewhere_are_associated() {
    run(|| {
        let port = port(1);
        let (reader, mut writer) = std::io::pipe().unwrap();
        let associated = port.associate(reader, 1);
        if cfg!(windows) {
            let error = associated.unwrap_err().error;
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("pipe_from"), "{error}");
            return;
        }
        let stream = associated.unwrap();
        stream.recv(Buf::pooled()).unwrap();
        writer.write_all(b"hello").unwrap();
        assert_eq!(&received(next(&port))[..], b"hello");
    });
}

/// Would catch: a FIFO that is taken for something else.
#[cfg(unix)]
#[test]
fn fifos_are_pipes() {
    run(|| {
        let folder = Folder::new();
        let path = folder.path("fifo");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name lives across the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        // Open for both, so that neither open waits for the other.
        let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let port = port(1);
        let reader = port.associate(File::open(&path).unwrap(), 1).unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        let writer = port.associate(writer, 2).unwrap();
        drop(both);
        reader.recv(Buf::pooled()).unwrap();
        writer.send("through the fifo").unwrap();
        drop(writer);
        let mut all = Vec::new();
        loop {
            if let Op::Recv { buf, .. } = next(&port).op {
                if buf.is_empty() {
                    break;
                }
                all.extend_from_slice(&buf);
                drop(buf);
                reader.recv(Buf::pooled()).unwrap();
            }
        }
        assert_eq!(all, b"through the fifo");
    });
}

/// Would catch: a child that cannot be written to and read from at the same time, or that does not
/// learn of the end of its input.
#[test]
fn a_child_is_talked_to() {
    if std::env::var_os("WHARF_TEST_CAT").is_some() {
        return cat();
    }
    run(|| {
        let port = port(1);
        let mut child = this_program();
        let (_, module) = module_path!().split_once("::").unwrap();
        let test = format!("{module}::a_child_is_talked_to");
        child.args(["--exact", &test, "--nocapture", "--test-threads=1"]);
        child.env("WHARF_TEST_CAT", "yes").stdin(Stdio::piped()).stdout(Stdio::piped());
        // Those that the standard library makes.
        let mut child = child.spawn().unwrap();
        let stdin = port.associate(child.stdin.take().unwrap(), 1).unwrap();
        let stdout = port.associate(child.stdout.take().unwrap(), 2).unwrap();
        talk(&port, stdin, stdout);
        assert!(child.wait().unwrap().success());
        // And those of the port.
        let (stdin, theirs) = port.pipe_to(1).unwrap();
        let (stdout, too) = port.pipe_from(2).unwrap();
        let mut command = this_program();
        command.args(["--exact", &test, "--nocapture", "--test-threads=1"]);
        command.env("WHARF_TEST_CAT", "yes").stdin(theirs).stdout(too);
        let mut child = command.spawn().unwrap();
        // It holds the child's ends, which would keep the pipes from ending.
        drop(command);
        talk(&port, stdin, stdout);
        assert!(child.wait().unwrap().success());
    });
}

/// Writes what it reads, after a sign that tells it from what the test harness says.
fn cat() {
    let mut out = std::io::stdout();
    out.write_all(SIGN).unwrap();
    let mut all = Vec::new();
    std::io::stdin().read_to_end(&mut all).unwrap();
    out.write_all(&all).unwrap();
    out.flush().unwrap();
    std::process::exit(0);
}

const SIGN: &[u8] = b"from here on it is what was read:";

/// Says something to a child that says the same.
fn talk(port: &Port, stdin: Stream, stdout: Stream) {
    // More than both pipes hold: it has to be read while it is written.
    let said = pattern(0, 3 << 20);
    stdin.send(said.clone()).unwrap();
    drop(stdin);
    stdout.recv_each().unwrap();
    let mut heard = Vec::new();
    loop {
        let packet = next(port);
        match (packet.op, packet.result) {
            (Op::Send { .. }, result) => assert_eq!(result, Ok(said.len())),
            (Op::Recv { .. }, Ok(0)) => break,
            (Op::Recv { buf, .. }, Ok(_)) => heard.extend_from_slice(&buf),
            other => panic!("{other:?}"),
        }
    }
    let at = heard.windows(SIGN.len()).position(|part| part == SIGN).expect("the child's sign");
    assert!(heard[at + SIGN.len()..] == said);
}

/// Would catch: a socket of this machine that cannot be listened on or connected to by its path.
#[cfg(unix)]
#[test]
fn unix_sockets_are_listened_on_and_connected() {
    run(|| {
        let folder = Folder::new();
        let path = folder.path("socket");
        let port = port(1);
        let listener = port.listen_unix(&path, 1).unwrap();
        listener.accept_one().unwrap();
        let stream = port.connect_unix(&path, 2).unwrap();
        let mut served = None;
        let mut connected = false;
        while served.is_none() || !connected {
            let packet = next(&port);
            assert!(packet.result.is_ok(), "{:?}", packet.result);
            match packet.op {
                Op::Accept { incoming, .. } => served = incoming,
                Op::Connect { .. } => connected = true,
                other => panic!("{other:?}"),
            }
        }
        let served = served.unwrap().associate(3).unwrap();
        served.recv(Buf::pooled()).unwrap();
        stream.send("hello").unwrap();
        let mut heard = None;
        while heard.is_none() {
            if let Op::Recv { buf, .. } = next(&port).op {
                heard = Some(buf.to_vec());
            }
        }
        assert_eq!(heard.as_deref(), Some(&b"hello"[..]));

        // A path that is taken, and one on which nobody listens.
        assert_eq!(port.listen_unix(&path, 1).unwrap_err().kind(), ErrorKind::AddressInUse);
        let alone = port.connect_unix(folder.path("nobody"), 1).unwrap();
        let error = loop {
            let packet = next(&port);
            if matches!(packet.op, Op::Connect { .. }) {
                break packet.result.unwrap_err();
            }
        };
        assert_eq!(error.kind(), ErrorKind::NotFound);
        drop(alone);
        let long = folder.path(&"x".repeat(200));
        assert_eq!(port.connect_unix(&long, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(port.listen_unix(&long, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

/// Would catch: sockets of the standard library's that are refused.
#[cfg(unix)]
#[test]
fn unix_sockets_made_elsewhere_are_associated() {
    run(|| {
        let folder = Folder::new();
        let path = folder.path("socket");
        let port = port(1);
        let listener = UnixListener::bind(&path).unwrap();
        let listener = port.associate_listener(listener, 1).unwrap();
        listener.accept_one().unwrap();
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let Op::Accept { incoming: Some(incoming), .. } = next(&port).op else { panic!() };
        let stream = incoming.associate(2).unwrap();
        stream.send("hello").unwrap();
        assert!(matches!(next(&port).op, Op::Send { .. }));
        let mut heard = [0; 5];
        peer.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        // The same through a duplicate is the same socket.
        let twin = peer.try_clone().unwrap();
        let _peer = port.associate(peer, 3).unwrap();
        let refused = port.associate(twin, 3).unwrap_err();
        assert_eq!(refused.error.kind(), ErrorKind::Associated);
    });
}
