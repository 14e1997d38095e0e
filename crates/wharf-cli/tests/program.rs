//! The program as its users run it: by its command line, its output, its exit code and signals.
//! Nothing here depends on how fast the machine is.

#![cfg(unix)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longer than anything here takes on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn wharf(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharf"));
    command.args(arguments).env_remove("WHARF_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Does nothing to a child that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("our own child, not waited for");
    }

    /// Waits for the end, and takes what was printed. Only for children that print little.
    fn output(mut self) -> Output {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(mut out) = self.0.stdout.take() {
            out.read_to_end(&mut stdout).expect("a pipe");
        }
        if let Some(mut err) = self.0.stderr.take() {
            err.read_to_end(&mut stderr).expect("a pipe");
        }
        Output { status, stdout, stderr }
    }
}

fn run(arguments: &[&str]) -> Output {
    Running(wharf(arguments).spawn().expect("it starts")).output()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last line on stdout.
fn json(output: &Output) -> Value {
    let out = text(&output.stdout);
    let last = out.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

struct Server {
    running: Running,
    addr: SocketAddr,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut command = wharf(&["serve", "--tcp", "127.0.0.1:0", "--json"]);
        let mut running = Running(command.args(arguments).spawn().expect("it starts"));
        let out = running.0.stdout.take().expect("piped");
        let mut out = BufReader::new(out);
        let mut line = String::new();
        out.read_line(&mut line).expect("a pipe");
        let addr = line.strip_prefix("listening tcp ").and_then(|addr| addr.trim().parse().ok());
        // Nothing but the first line has been printed, so the reader holds nothing back.
        running.0.stdout = Some(out.into_inner());
        Self { addr: addr.unwrap_or_else(|| panic!("not an address: {line}")), running }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    /// A connection that is known to be served.
    fn connect_and_echo(&self) -> TcpStream {
        let mut stream = self.connect();
        let mut echo = [0; 2];
        stream.write_all(b"hi").expect("a connection");
        stream.read_exact(&mut echo).expect("an echo");
        assert_eq!(&echo, b"hi");
        stream
    }

    /// Asks it to stop, and returns what it says then.
    fn stop(self) -> Value {
        self.running.signal(Signal::TERM);
        self.ended()
    }

    fn ended(self) -> Value {
        let output = self.running.output();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        json(&output)
    }
}

fn load(server: &Server, arguments: &[&str]) -> Value {
    let target = server.addr.to_string();
    let mut all = vec!["load", "tcp", &target, "--json", "--seconds", "0.5"];
    all.extend(arguments);
    let output = run(&all);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert!(report["requests"].as_u64() > Some(0), "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    assert_eq!(report["mismatches"], 0, "{report}");
    for name in ["p50", "p99", "p999", "max"] {
        assert!(report["latency_us"][name].as_f64() > Some(0.0), "{name}: {report}");
    }
    report
}

#[test]
fn every_byte_comes_back_whatever_the_size_and_the_number() {
    let server = Server::start(&[]);
    let mut connections = 0;
    let mut bytes = 0;
    for (number, size, depth) in [
        (1, "1", "1"),
        (1, "64", "16"),
        (1, "1M", "2"),
        (50, "1", "32"),
        (50, "64", "1"),
        (50, "64K", "2"),
        (8, "1M", "1"),
        (400, "64", "1"),
        (300, "64K", "1"),
    ] {
        let report = load(
            &server,
            &["--verify", "--connections", &number.to_string(), "--size", size, "--depth", depth],
        );
        assert_eq!(report["connected"], number, "{report}");
        connections += number;
        bytes += report["bytes"].as_u64().expect("a number");
    }
    let summary = server.stop();
    assert_eq!(summary["connections"]["accepted"], connections);
    assert_eq!(summary["connections"]["finished"], connections, "{summary}");
    assert_eq!(summary["bytes_received"], bytes);
    assert_eq!(summary["bytes_sent"], bytes);
}

#[test]
fn several_threads_and_a_rate() {
    let server = Server::start(&["--concurrency", "1"]);
    let report = load(&server, &["--verify", "--threads", "2", "--rate", "2000"]);
    // All that were due in half a second, and no more.
    let done = report["requests"].as_u64().unwrap_or(0) + report["unsent"].as_u64().unwrap_or(0);
    assert!((900..=1010).contains(&done), "{report}");
    server.stop();
}

#[test]
fn blocking_messages_are_told_apart() {
    let server = Server::start(&["--service", "block", "--workers", "8"]);
    let report = load(&server, &["--verify", "--block-every", "10", "--block-ms", "20"]);
    let blocked = &report["latency_blocked_us"];
    assert!(blocked["count"].as_u64() > Some(0), "{report}");
    assert!(blocked["min"].as_f64() >= Some(20_000.0), "it sleeps that long: {report}");
    assert!(report["latency_us"]["count"].as_u64() > blocked["count"].as_u64(), "{report}");
    server.stop();
}

#[test]
fn work_takes_as_long_as_a_message_says() {
    let server = Server::start(&["--service", "work", "--size", "4"]);
    let mut stream = server.connect();
    let begin = Instant::now();
    // Two bytes, the least significant one first: 1 + 256 * 78 microseconds.
    stream.write_all(&[1, 78, 7, 8, 0, 0, 9, 10]).expect("it reads");
    let mut echo = [0; 8];
    stream.read_exact(&mut echo).expect("echoes");
    assert_eq!(echo, [1, 78, 7, 8, 0, 0, 9, 10]);
    assert!(begin.elapsed() >= Duration::from_micros(19_969), "{:?}", begin.elapsed());
    server.stop();
}

#[test]
fn discard_says_nothing() {
    let server = Server::start(&["--service", "discard"]);
    let mut stream = server.connect();
    stream.write_all(&[7; 100_000]).expect("it reads");
    stream.shutdown(Shutdown::Write).expect("a connection");
    assert_eq!(stream.read(&mut [0; 1]).expect("the end"), 0);
    let summary = server.stop();
    assert_eq!(summary["bytes_received"], 100_000);
    assert_eq!(summary["bytes_sent"], 0);
}

#[cfg(unix)]
#[test]
fn bench_hands_over_to_what_cargo_builds() {
    use std::{fs, os::unix::fs::PermissionsExt};

    let folder = std::env::temp_dir().join(format!("wharf-bench-front-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let script = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a script");
        path
    };
    let program = script("wharf-bench-harness", "echo \"$@\"; exit 7".to_owned());
    let built = format!("echo '{{\"executable\":{program:?}}}'");
    let cargo = script("cargo", built);
    let output = wharf(&["bench", "echo", "--quick", "--help"]).env("CARGO", cargo).output();
    let output = output.expect("it starts");
    assert_eq!(text(&output.stdout), "echo --quick --help\n");
    assert_eq!(output.status.code(), Some(7));

    let broken = script("cargo-broken", "exit 1".to_owned());
    let output = wharf(&["bench"]).env("CARGO", broken).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("do not build"), "{output:?}");
    fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn wrong_usage_is_two() {
    for wrong in [
        &[][..],
        &["serve"],
        &["serve", "--tcp", "7000"],
        &["serve", "--tcp", "127.0.0.1:0", "--service", "tea"],
        &["serve", "--tcp", "127.0.0.1:0", "--drain", "-1"],
        &["load", "tcp"],
        &["load", "sctp", "127.0.0.1:7000"],
        &["load", "tcp", "127.0.0.1:7000", "--size", "0"],
        &["load", "tcp", "127.0.0.1:7000", "--seconds", "0"],
        &["load", "tcp", "127.0.0.1:7000", "--block-every", "10"],
        &["doctor", "--what"],
    ] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?} {output:?}");
        assert!(!output.stderr.is_empty());
    }
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["load", "tcp", "--help"]).status.code(), Some(0));
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = taken.local_addr().expect("bound").to_string();
    let output = run(&["serve", "--tcp", &addr]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let err = text(&output.stderr);
    assert!(err.contains(&addr) && err.contains("in use"), "{err}");
}

#[test]
fn a_drain_ends_the_idle_and_serves_the_rest() {
    let server = Server::start(&["--drain", "100"]);
    let mut idle = server.connect_and_echo();
    // Sends more than all buffers on the way hold, and reads later.
    let mut busy = server.connect_and_echo();
    let data = vec![5; 32 << 20];
    let sender = thread::spawn({
        let mut busy = busy.try_clone().expect("a socket");
        let data = data.clone();
        move || {
            busy.write_all(&data).expect("it is served to its end");
            busy.shutdown(Shutdown::Write).expect("a connection");
        }
    });
    let mut first = [0; 1000];
    busy.read_exact(&mut first).expect("an echo");

    server.running.signal(Signal::TERM);
    assert_eq!(idle.read(&mut [0; 1]).expect("closed in order"), 0);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(server.addr).is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        thread::sleep(Duration::from_millis(5));
    }
    let mut echo = first.to_vec();
    busy.read_to_end(&mut echo).expect("an echo");
    assert!(echo == data, "all of it, {} bytes", echo.len());
    sender.join().expect("it has sent all");

    let summary = server.ended();
    assert_eq!(summary["connections"]["cut"], 0, "{summary}");
}

/// Connections whose echo nobody reads, which a drain cannot finish.
fn unread(server: &Server, number: usize) -> Vec<TcpStream> {
    let mut streams: Vec<_> = (0..number).map(|_| server.connect()).collect();
    for stream in &streams {
        stream.set_nonblocking(true).expect("a socket");
    }
    // Until nothing more goes through.
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(1) {
        for stream in &mut streams {
            if stream.write(&[9; 65_536]).is_ok() {
                last = Instant::now();
            }
        }
    }
    streams
}

#[test]
fn what_does_not_finish_is_cut() {
    let server = Server::start(&["--drain", "0.3"]);
    let stream = unread(&server, 1);
    let summary = server.stop();
    assert_eq!(summary["connections"]["cut"], 1, "{summary}");
    drop(stream);
}

#[test]
fn a_second_signal_stops_at_once() {
    let server = Server::start(&["--drain", "100000"]);
    let stream = unread(&server, 1);
    let idle = server.connect_and_echo();
    server.running.signal(Signal::INT);
    // The first has been heard when it closes what is idle.
    assert_eq!((&idle).read(&mut [0; 1]).expect("closed in order"), 0);
    server.running.signal(Signal::INT);
    let summary = server.ended();
    assert_eq!(summary["connections"]["cut"], 1, "{summary}");
    drop(stream);
}

#[test]
fn a_peer_that_does_not_read_takes_nothing_from_others() {
    // Fewer buffers than peers that do not read.
    let server = Server::start(&["--concurrency", "1", "--buffers", "2", "--drain", "0"]);
    let unread = unread(&server, 3);
    load(&server, &["--verify", "--connections", "5"]);
    for stream in unread {
        stream.set_nonblocking(false).expect("a socket");
        stream.shutdown(Shutdown::Write).expect("a connection");
        let mut echo = Vec::new();
        (&stream).read_to_end(&mut echo).expect("the whole echo");
        assert!(echo.len() >= 65_536 && echo.iter().all(|&byte| byte == 9));
    }
    let summary = server.stop();
    assert_eq!(summary["connections"]["failed"], 0, "{summary}");
}

#[test]
fn nor_does_it_in_a_drain() {
    let server = Server::start(&["--concurrency", "1", "--buffers", "2", "--drain", "100"]);
    let mut other = server.connect_and_echo();
    let mut unread: Vec<_> = (0..3).map(|_| server.connect_and_echo()).collect();
    for stream in &unread {
        stream.set_nonblocking(true).expect("a socket");
    }
    // Not for long: before the drain, too, the server takes its buffers back.
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(30) {
        for stream in &mut unread {
            if stream.write(&[9; 65_536]).is_ok() {
                last = Instant::now();
            }
        }
    }
    other.write_all(b"ho").expect("a connection");
    server.running.signal(Signal::TERM);
    let mut echo = [0; 2];
    other.read_exact(&mut echo).expect("an echo");
    assert_eq!(&echo, b"ho");
    assert_eq!(other.read(&mut echo).expect("closed in order"), 0);
    drop(unread);
    server.ended();
}

#[test]
fn nobody_there_is_one() {
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = free.local_addr().expect("bound").to_string();
    drop(free);
    let output = run(&["load", "tcp", &addr, "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let err = text(&output.stderr);
    assert!(err.contains(&addr) && err.contains("refused"), "{err}");
    assert!(err.contains("start the server"), "{err}");
}

/// Would catch: a load that gives up on echoes that are on their way.
#[test]
fn an_echo_that_comes_slowly_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = listener.local_addr().expect("bound").to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut message = [0; 3];
        stream.read_exact(&mut message).expect("a message");
        // Together longer than the load waits for anything to come.
        for byte in message {
            thread::sleep(Duration::from_millis(1500));
            stream.write_all(&[byte]).expect("it waits");
        }
    });
    let options = "--connections 1 --size 3 --seconds 0.1 --patience 3 --verify --json";
    let arguments: Vec<_> = ["load", "tcp", &addr].into_iter().chain(options.split(' ')).collect();
    let output = run(&arguments);
    server.join().expect("it waits");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert_eq!((&report["requests"], &report["errors"]), (&1.into(), &0.into()), "{report}");
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = listener.local_addr().expect("bound").to_string();
    let server = thread::spawn(move || {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.read_exact(&mut [0; 10]).expect("a message");
        }
    });
    let output = run(&["load", "tcp", &addr, "--connections", "3", "--seconds", "1000"]);
    server.join().expect("three connections");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("3 errors"), "{output:?}");
}

#[test]
fn patience_has_an_end() {
    let server = Server::start(&["--service", "discard"]);
    let addr = server.addr.to_string();
    let arguments = ["--connections", "2", "--seconds", "0.1", "--patience", "0.1"];
    let output = run(&[&["load", "tcp", &addr], &arguments[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let err = text(&output.stderr);
    assert!(err.contains("2 errors") && err.contains("--patience"), "{err}");
}

#[test]
fn a_wrong_echo_is_a_mismatch() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = listener.local_addr().expect("bound").to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut message = [0; 64];
        let mut number = 0;
        while stream.read_exact(&mut message).is_ok() {
            number += 1;
            if number == 2 {
                message[63] ^= 1;
            }
            if stream.write_all(&message).is_err() {
                break;
            }
        }
    });
    let arguments = ["--connections", "1", "--seconds", "0.3", "--verify", "--json"];
    let output = run(&[&["load", "tcp", &addr], &arguments[..]].concat());
    server.join().expect("no panic");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json(&output);
    assert_eq!((&report["mismatches"], &report["errors"]), (&1.into(), &0.into()), "{report}");
}

#[test]
fn a_load_that_is_interrupted_tells_what_it_measured() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let addr = listener.local_addr().expect("bound").to_string();
    let (told, tell) = mpsc::channel();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut message = [0; 64];
        while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {
            let _ = told.send(());
        }
    });
    let arguments = ["load", "tcp", &addr, "--connections", "1", "--seconds", "1000", "--json"];
    let load = Running(wharf(&arguments).spawn().expect("it starts"));
    for _ in 0..3 {
        tell.recv_timeout(PATIENCE).expect("messages come");
    }
    load.signal(Signal::INT);
    let output = load.output();
    server.join().expect("no panic");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // The third may have been on its way.
    assert!(json(&output)["requests"].as_u64() >= Some(2));
}

#[test]
fn the_doctor_tells_driver_reason_features_and_limits() {
    let output = run(&["doctor", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(if report["driver"].is_null() { 1 } else { 0 }));
    assert!(!report["reason"].as_str().expect("a text").is_empty());
    let registered = &report["registered_io"];
    assert_eq!(registered["driver"].is_null(), cfg!(windows), "{registered}");
    assert!(!registered["reason"].as_str().expect("a text").is_empty());
    let features = report["features"].as_array().expect("a list");
    assert!(!features.is_empty() || report["driver"] != "io_uring", "a port knows what it uses");
    for feature in features {
        assert!(feature["present"].is_boolean(), "{feature}");
        for text in ["name", "since", "gives"] {
            assert!(!feature[text].as_str().expect("a text").is_empty(), "{feature}");
        }
    }
    let limits = report["limits"].as_array().expect("a list");
    for name in ["RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "processors"] {
        assert!(limits.iter().any(|limit| limit["name"] == name), "{name}");
    }
    assert!(!run(&["doctor"]).stdout.is_empty());
}

// ---- Datagrams --------------------------------------------------------------------------------

/// A server of several kinds, and where each is served.
struct Kinds {
    running: Running,
    addresses: Vec<(String, SocketAddr)>,
}

impl Kinds {
    fn start(lines: usize, arguments: &[&str]) -> Self {
        let mut command = wharf(&["serve", "--json"]);
        let mut running = Running(command.args(arguments).spawn().expect("it starts"));
        let mut out = BufReader::new(running.0.stdout.take().expect("piped"));
        let addresses = (0..lines)
            .map(|_| {
                let mut line = String::new();
                out.read_line(&mut line).expect("a pipe");
                let words: Vec<_> = line.split_whitespace().collect();
                let ["listening", kind, address] = words[..] else {
                    let mut said = String::new();
                    let _ = running.0.stderr.take().map(|mut err| err.read_to_string(&mut said));
                    panic!("{line:?} {said}");
                };
                (kind.to_owned(), address.parse().expect("an address"))
            })
            .collect();
        // It has said no more than these lines so far.
        assert!(out.buffer().is_empty());
        running.0.stdout = Some(out.into_inner());
        Self { running, addresses }
    }

    fn address(&self, kind: &str) -> SocketAddr {
        self.addresses.iter().find(|(name, _)| name == kind).expect("it is served").1
    }

    fn stop(self) -> Value {
        self.running.signal(Signal::TERM);
        let output = self.running.output();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        json(&output)
    }
}

fn load_udp(target: SocketAddr, arguments: &[&str]) -> Value {
    let target = target.to_string();
    let mut all = vec!["load", "udp", &target, "--json", "--seconds", "0.5"];
    all.extend(arguments);
    let output = run(&all);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    json(&output)
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

/// A datagram socket on loopback that does not wait for ever.
fn datagrams() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket
}

#[test]
fn datagrams_come_back_and_are_counted() {
    for extra in [&[][..], &["--coalesce"]] {
        let server = Kinds::start(1, &[&["--udp", "127.0.0.1:0"], extra].concat());
        let target = server.address("udp");
        let (mut sent, mut received) = (0, 0);
        for arguments in [
            &["--size", "16", "--depth", "1"][..],
            &["--size", "64"],
            &["--size", "65507", "--depth", "2"],
            &["--size", "1000", "--gso", "--depth", "128"],
            &["--rate", "2000"],
            &["--rate", "2000", "--gso"],
        ] {
            let report = load_udp(target, arguments);
            assert_eq!(number(&report, "duplicates"), 0, "{report}");
            assert_eq!(number(&report, "errors"), 0, "{report}");
            assert_eq!(number(&report, "unknown"), 0, "{report}");
            let (out, back) = (number(&report, "sent"), number(&report, "received"));
            assert_eq!(number(&report, "lost"), out - back, "{report}");
            assert!(report["latency_us"]["p99"].as_f64() > Some(0.0), "{report}");
            sent += out;
            received += back;
        }
        let summary = server.stop();
        let socket = &summary["datagrams"][0];
        assert!((received..=sent).contains(&number(socket, "datagrams")), "{socket} of {sent}");
        assert_eq!(number(socket, "packets"), number(socket, "answered"), "{socket}");
        assert_eq!(number(socket, "truncated"), 0);
        assert_eq!(number(socket, "unanswered"), 0);
    }
}

#[test]
fn datagrams_are_thrown_away_and_counted() {
    let server = Kinds::start(
        1,
        &["--udp", "127.0.0.1:0", "--service", "discard", "--coalesce", "--receive-buffer", "4M"],
    );
    let target = server.address("udp");
    let mut sent = 0;
    for arguments in
        [&["--one-way", "--rate", "3000"][..], &["--one-way", "--rate", "3000", "--gso"]]
    {
        let report = load_udp(target, arguments);
        assert_eq!(number(&report, "received"), 0);
        assert_eq!(number(&report, "lost"), 0, "nobody can know");
        sent += number(&report, "sent");
    }
    let summary = server.stop();
    let socket = &summary["datagrams"][0];
    let (came, dropped) = (number(socket, "datagrams"), number(socket, "dropped"));
    // A drop may be of several that came together.
    assert!(came == sent || (dropped > 0 && came < sent), "{socket} of {sent}");
    assert_eq!(number(socket, "bytes"), came * 64);
    assert_eq!(number(socket, "answered"), 0);
}

#[test]
fn kinds_are_served_side_by_side_or_on_one_port() {
    let where_to = [
        "--tcp",
        "127.0.0.1:0",
        "--udp",
        "127.0.0.1:0",
        "--broadcast",
        "0.0.0.0:0",
        "--multicast",
        "239.77.8.1%lo:0",
    ];
    let tuned = ["--tune", "udp:workers=3,concurrency=1", "--tune", "multicast:cpus=0,workers=1"];
    for (extra, ports) in [(&tuned[..], 4), (&["--one-port"], 1)] {
        let server = Kinds::start(4, &[&where_to, extra].concat());
        let kinds: Vec<_> = server.addresses.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["tcp", "udp", "broadcast", "multicast"]);
        let mut stream = TcpStream::connect(server.address("tcp")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(b"tcp").expect("a connection");
        let mut echo = [0; 9];
        stream.read_exact(&mut echo[..3]).expect("an echo");
        drop(stream);
        let client = datagrams();
        let lo = std::net::Ipv4Addr::LOCALHOST;
        client.set_broadcast(true).expect("a socket");
        socket2::SockRef::from(&client).set_multicast_if_v4(&lo).expect("a socket");
        let everybody =
            SocketAddr::from(([127, 255, 255, 255], server.address("broadcast").port()));
        for (text, to) in [
            ("udp", server.address("udp")),
            ("everybody", everybody),
            ("group", server.address("multicast")),
        ] {
            client.send_to(text.as_bytes(), to).expect("it is sent");
            let (length, from) = client.recv_from(&mut echo).expect("an echo");
            assert_eq!(&echo[..length], text.as_bytes());
            assert_eq!((from.ip().is_loopback(), from.port()), (true, to.port()), "{text}");
        }
        let summary = server.stop();
        assert_eq!(number(&summary["connections"], "finished"), 1, "{summary}");
        for socket in summary["datagrams"].as_array().expect("a list") {
            assert_eq!(
                (number(socket, "datagrams"), number(socket, "answered")),
                (1, 1),
                "{socket}"
            );
        }
        let list = summary["ports"].as_array().expect("a list");
        assert_eq!(list.len(), ports, "{summary}");
        if ports == 4 {
            assert_eq!(list[1]["kinds"][0], "udp");
            assert_eq!((number(&list[1], "workers"), number(&list[1], "concurrency")), (3, 1));
            assert_eq!((number(&list[3], "workers"), number(&list[3], "concurrency")), (1, 1));
            assert_eq!(list[3]["cpus"][0], 0);
        } else {
            assert_eq!(list[0]["kinds"].as_array().map(Vec::len), Some(4));
        }
    }
}

#[test]
fn losses_and_duplicates_are_counted_by_number() {
    let server = datagrams();
    let target = server.local_addr().expect("an address");
    let echo = thread::spawn(move || {
        let (mut lost, mut doubled, mut late) = (0u64, 0u64, 0u64);
        let mut kept: Option<Vec<u8>> = None;
        let mut buffer = [0; 2000];
        loop {
            // The load says that it is over by an empty one, which the test sends.
            let (length, from) = server.recv_from(&mut buffer).expect("a datagram");
            if length == 0 {
                return (lost + u64::from(kept.is_some()), doubled, late);
            }
            let number = u64::from_le_bytes(buffer[..8].try_into().expect("eight bytes"));
            let answer = |bytes: &[u8]| {
                server.send_to(bytes, from).expect("sent");
            };
            match number % 10 {
                3 => lost += 1,
                5 => kept = Some(buffer[..length].to_vec()),
                6 => {
                    answer(&buffer[..length]);
                    if let Some(kept) = kept.take() {
                        answer(&kept);
                        late += 1;
                    }
                }
                8 => {
                    answer(&buffer[..length]);
                    answer(&buffer[..length]);
                    doubled += 1;
                }
                _ => answer(&buffer[..length]),
            }
            // Not one of ours.
            if number == 0 {
                answer(b"short");
            }
        }
    });
    let report = load_udp(target, &["--rate", "1000"]);
    datagrams().send_to(b"", target).expect("sent");
    let (lost, doubled, late) = echo.join().expect("no panic");
    assert_eq!(number(&report, "dropped"), 0);
    assert_eq!(number(&report, "lost"), lost, "{report}");
    assert_eq!(number(&report, "duplicates"), doubled, "{report}");
    assert_eq!(number(&report, "reordered"), late, "{report}");
    assert_eq!(number(&report, "unknown"), 1, "{report}");
    assert!(lost > 10 && doubled > 10 && late > 10, "{report}");
}

#[test]
fn bad_places_for_datagrams_are_refused_with_a_remedy() {
    let taken = datagrams();
    let taken = taken.local_addr().expect("an address").to_string();
    for (code, arguments, word) in [
        (2, &["serve"][..], "--udp"),
        (2, &["serve", "--udp", "7000"], "host and a port"),
        (2, &["serve", "--multicast", "10.0.0.1:7000"], "224.0.0.0"),
        (2, &["serve", "--udp", "127.0.0.1:0", "--tune", "udp:speed=1"], "workers=4"),
        (
            2,
            &["serve", "--udp", "127.0.0.1:0", "--one-port", "--tune", "udp:workers=1"],
            "one-port",
        ),
        (1, &["serve", "--udp", &taken], "choose another port"),
        (1, &["serve", "--udp", "192.0.2.99:0"], "ip addr"),
        (1, &["serve", "--multicast", "239.1.2.3%nosuch:0"], "ip link"),
        (1, &["serve", "--multicast", "239.1.2.3%999999:0"], "ip link"),
        (1, &["serve", "--broadcast", "[::1]:0"], "--multicast"),
        (1, &["serve", "--udp", "127.0.0.1:0", "--tune", "tcp:workers=1"], "--tcp"),
        (1, &["serve", "--udp", "127.0.0.1:0", "--tune", "udp:cpus=1000"], "processor 1000"),
        (2, &["load", "udp", "127.0.0.1:1", "--size", "8"], "16 to 65507"),
        (1, &["load", "udp", "127.0.0.1:1", "--seconds", "0.1"], "connection refused"),
    ] {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}
