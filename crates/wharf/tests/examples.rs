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
    let own = changed(&here.join("examples").join(name).with_extension("rs"));
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
