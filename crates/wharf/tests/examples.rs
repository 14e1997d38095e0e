//! Runs the examples, and looks at what they print. `cargo test` builds them beside the tests.

#![cfg(all(target_os = "linux", not(loom)))]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

/// Only a hang takes longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command that runs an example. None, and a line that says so, where `cargo test` was told to
/// build only some targets and so has not built it.
fn example(name: &str) -> Option<Command> {
    let test = std::env::current_exe().expect("the system tells");
    let target = test.parent().and_then(Path::parent).expect("a target folder");
    let program = target.join("examples").join(name);
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = here.join("examples").join(name);
    let own =
        if source.is_dir() { Some(newest(&source)) } else { changed(&source.with_extension("rs")) };
    if changed(&program) < own.max(Some(newest(&here.join("src")))) {
        let _ = writeln!(
            std::io::stderr(),
            "SKIP example {name}: not built from today's source (cargo build -p wharf --examples)"
        );
        return None;
    }
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// When something in a folder was changed last.
fn newest(folder: &Path) -> SystemTime {
    let entries = folder.read_dir().expect("a folder of the crate").map_while(Result::ok);
    let times = entries.map(|entry| match entry.metadata().expect("it is there") {
        folder if folder.is_dir() => newest(&entry.path()),
        file => file.modified().expect("the system tells"),
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a program has ended by itself.
#[track_caller]
fn finish(mut command: Command) -> Output {
    let child = command.spawn().expect("it starts");
    let mut running = Running(child);
    let mut stdout = running.0.stdout.take().expect("a pipe");
    let mut stderr = running.0.stderr.take().expect("a pipe");
    let (done, over) = mpsc::channel();
    thread::spawn(move || {
        let mut output = (Vec::new(), Vec::new());
        let _ = stdout.read_to_end(&mut output.0);
        let _ = stderr.read_to_end(&mut output.1);
        let _ = done.send(output);
    });
    let (stdout, stderr) = over.recv_timeout(PATIENCE).expect("it ends");
    Output { status: running.0.wait().expect("it has ended"), stdout, stderr }
}

/// The lines a program prints until it ends, which it must do well.
#[track_caller]
fn lines(command: Command) -> Vec<String> {
    let Output { status, stdout, stderr } = finish(command);
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    assert_eq!(stderr, "");
    stdout.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_has(lines: &[String], line: &str) {
    assert!(lines.iter().any(|found| found == line), "no line {line:?} in {lines:#?}");
}

#[test]
fn echo_server_and_client() {
    let (Some(mut server), Some(mut client)) = (example("echo_server"), example("echo_client"))
    else {
        return;
    };
    let mut server = Running(server.arg("127.0.0.1:0").spawn().expect("it starts"));
    let stdout = BufReader::new(server.0.stdout.take().expect("a pipe"));
    let (said, says) = mpsc::channel();
    thread::spawn(move || {
        stdout.lines().map_while(Result::ok).for_each(|line| drop(said.send(line)));
    });
    let line = says.recv_timeout(PATIENCE).expect("it listens");
    let address = line.strip_prefix("listening tcp ").expect("the address");

    client.args([address, "5", "40"]);
    let lines = lines(client);
    assert!(lines[0].starts_with("5 connections: 200 echoes right, 0 wrong, in "), "{lines:?}");
    for _ in 0..5 {
        let line = says.recv_timeout(PATIENCE).expect("it says who is done");
        assert!(line.ends_with(" bytes echoed, in 40 messages"), "{line}");
    }
}

#[test]
fn echo_client_without_a_server() {
    let Some(mut client) = example("echo_client") else { return };
    // Bound, so that nobody else listens there, and not listening.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let address = nobody.local_addr().unwrap().as_socket().unwrap();
    client.arg(address.to_string());
    let output = finish(client);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("connection refused") && said.contains("is echo_server running?"));
}

#[test]
fn exit_packets() {
    let Some(command) = example("exit_packets") else { return };
    let lines = lines(command);
    let took = |line: &&String| line.ends_with(" tasks and one exit packet");
    assert_eq!(lines.iter().filter(took).count(), 4);
    assert_has(&lines, "200 tasks done: 17984 primes below 200000");
    assert_has(&lines, "left in the port: 0 packets");
}

#[test]
fn stopping() {
    let Some(command) = example("stopping") else { return };
    let lines = lines(command);
    for left in 0..8 {
        let done = "  a send of 2097152 bytes is done";
        assert_has(&lines, &format!("{done}, {left} operations in flight"));
    }
    assert_has(&lines, "  the peer has all: true");
    assert_has(&lines, "  waits say that the port is closed: true");
    assert_has(&lines, "  nothing more can be started: true");
    assert_has(&lines, "  the buffers are ours again: true");
}

#[test]
fn many_in_flight() {
    let Some(command) = example("many_in_flight") else { return };
    let lines = lines(command);
    assert_has(&lines, "12 sends started");
    let received: Vec<_> = lines.iter().filter(|line| line.starts_with("receive ")).collect();
    assert_eq!(received.len(), 12);
    for (line, number) in received.into_iter().zip(1..) {
        let start = format!("receive {number:2} got message {number} ");
        assert!(line.starts_with(&start), "{line}");
    }
    assert_has(&lines, "handled in the order of starting: true");
}

#[test]
fn blocking() {
    let Some(command) = example("blocking") else { return };
    let rows: Vec<Vec<String>> = lines(command)
        .iter()
        .skip(2)
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    let [alone, noticed, declared] = &rows[..] else { panic!("{rows:?}") };
    let number = |row: &Vec<String>, column: usize| row[column].parse::<u32>().unwrap();
    assert_eq!((alone[1].as_str(), number(alone, 2), number(alone, 3)), ("no", 0, 0));
    assert_eq!(noticed[1], "no");
    assert!(number(noticed, 2) > 0 && number(noticed, 3) > 0, "{rows:?}");
    assert_eq!(declared[1], "yes");
    assert!(number(declared, 2) > 0, "{rows:?}");
}

#[test]
fn udp_echo() {
    let Some(mut command) = example("udp_echo") else { return };
    let mut server = Running(command.arg("127.0.0.1:0").spawn().expect("it starts"));
    let mut out = BufReader::new(server.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    let address = line.strip_prefix("listening udp ").expect("where it listens").trim();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    client.connect(address).expect("an address");
    for text in ["one", "two", ""] {
        client.send(text.as_bytes()).expect("sent");
        let mut echo = [0; 9];
        let length = client.recv(&mut echo).expect("an echo");
        assert_eq!(&echo[..length], text.as_bytes());
    }
}

/// How many datagrams each design is sent.
const DATAGRAMS: usize = 20_000;

/// Would catch: a datagram that is lost, counted twice, or counted by nobody when threads end.
#[test]
fn each_design_counts_each_datagram_once() {
    for design in ["rio-polled", "rio-event", "rio-port", "blocking", "port"] {
        count_datagrams(design, 1, &[], 1);
    }
}

/// Would catch: a datagram that two threads count, or none.
#[test]
fn several_threads_count_each_datagram_once() {
    for design in ["rio-port-many", "port-many"] {
        for threads in [2, 5] {
            count_datagrams(design, threads, &[], 1);
        }
        count_datagrams(design, 3, &["--work", "2"], 1);
    }
}

/// Would catch: boundaries that are lost where datagrams come together.
#[test]
fn coalesced_datagrams_are_counted_one_by_one() {
    for design in ["rio-polled", "rio-event", "rio-port", "port"] {
        count_datagrams(design, 1, &["--coalesce"], 40);
    }
    for design in ["rio-port-many", "port-many"] {
        count_datagrams(design, 2, &["--coalesce"], 40);
    }
}

/// Sends numbered datagrams, `together` at a time, and looks at what the server has counted.
#[track_caller]
fn count_datagrams(design: &str, threads: u64, arguments: &[&str], together: usize) {
    use wharf::{Envelope, Port, Wait};

    const SIZE: u16 = 64;
    let Some(mut command) = example("datagrams") else { return };
    command.args([design, "--threads", &threads.to_string()]).args(arguments);
    command.args(["--numbers", &DATAGRAMS.to_string(), "--json"]);
    let mut server = Running(command.spawn().expect("it starts"));
    let mut out = BufReader::new(server.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    let target = line.strip_prefix("listening udp ").expect("where it listens").trim();
    let target: std::net::SocketAddr = target.parse().expect("an address");

    let port = Port::<()>::new(1).expect("a port");
    let sender = port.bind_udp("127.0.0.1:0", ()).expect("a socket");
    let envelope = Envelope::to(target).segments(if together > 1 { SIZE } else { 0 });
    let numbers: Vec<u64> = (0..DATAGRAMS as u64).collect();
    for (batch, numbers) in numbers.chunks(together).enumerate() {
        let mut bytes = vec![0; numbers.len() * usize::from(SIZE)];
        for (datagram, number) in bytes.chunks_mut(SIZE.into()).zip(numbers) {
            datagram[..8].copy_from_slice(&number.to_le_bytes());
        }
        sender.send_to(bytes, envelope).expect("started");
        let Wait::Packet(sent) = port.wait_for(PATIENCE) else { panic!("it is sent") };
        sent.bytes().expect("sent");
        if batch % 64 == 63 {
            // So that few are lost.
            until(|| waiting(target.port()).0 < 100_000);
        }
    }
    // What is sent has been queued or dropped. The end comes while many wait still.
    let (_, dropped) = waiting(target.port());
    let end = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    until(|| {
        // One that has ended already is what we want.
        let _ = end.send_to(b"end", target);
        server.0.try_wait().expect("it can be asked").is_some()
    });
    let mut report = String::new();
    out.read_to_string(&mut report).expect("text");
    let mut complaint = String::new();
    let mut errors = server.0.stderr.take().expect("a pipe");
    errors.read_to_string(&mut complaint).expect("text");
    let run = format!("{design}, {threads} threads, {arguments:?}");
    let status = server.0.wait().expect("it has ended");
    assert!(status.success(), "{run}: {complaint}");
    let field = |name: &str| {
        let (_, rest) = report.split_once(&format!("\"{name}\":")).expect("a field");
        let digits = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse::<u64>().expect("a number")
    };
    let sent = DATAGRAMS as u64 - dropped;
    assert!(sent > 0, "{run}: the system has dropped all of them");
    assert_eq!((field("datagrams"), field("twice")), (sent, 0), "{run}: {report}");
    assert_eq!(field("bytes"), sent * u64::from(SIZE), "{run}: {report}");
    // Each thread may take an end of its own.
    assert!((1..=sent + threads).contains(&field("notifications")), "{run}: {report}");
}

/// Bytes that wait in the system for the socket of this port, and how many datagrams it has thrown
/// away for want of room.
#[track_caller]
fn waiting(port: u16) -> (usize, u64) {
    let local = format!("0100007F:{port:04X}");
    let mut found = None;
    // The table may lack a line while others' sockets come and go.
    until(|| {
        let table = std::fs::read_to_string("/proc/net/udp").expect("the system tells");
        let mut lines = table.lines().map(|line| line.split_whitespace().map(str::to_owned));
        found = lines.find_map(|line| {
            let line: Vec<_> = line.collect();
            (line.get(1) == Some(&local)).then_some(line)
        });
        found.is_some()
    });
    let line = found.expect("it is bound");
    let (_, queued) = line[4].split_once(':').expect("two queues");
    let queued = usize::from_str_radix(queued, 16).expect("a number");
    (queued, line[12].parse().expect("a number"))
}

/// Waits until it is so.
#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "it happens");
        thread::sleep(Duration::from_millis(1));
    }
}
