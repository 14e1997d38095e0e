//! `wharf serve --files` as clients see it: by hand, byte by byte, and through curl and wget, which
//! nobody here wrote.

mod common;

#[cfg(unix)]
use std::os::unix::fs::symlink;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

#[cfg(unix)]
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::common::started;

/// Longer than anything here takes on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

/// A server, and the folder that it serves.
struct Server {
    folder: PathBuf,
    child: Option<Child>,
    address: SocketAddr,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wharf-files-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(folder.join("site/below")).unwrap();
        fs::write(folder.join("secret"), "secret").unwrap();
        let site = folder.join("site");
        fs::write(site.join("index.html"), "<p>index</p>").unwrap();
        fs::write(site.join("below/index.html"), "below").unwrap();
        fs::write(site.join("empty"), "").unwrap();
        fs::write(site.join("small.txt"), "0123456789").unwrap();
        fs::write(site.join("large.bin"), pattern(0, 5_000_000)).unwrap();
        fs::create_dir(site.join("bare")).unwrap();
        #[cfg(unix)]
        symlink("../secret", site.join("way-out")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wharf"));
        command
            .args(["serve", "--tcp", "127.0.0.1:0", "--json", "--files"])
            .arg(site)
            .args(arguments)
            .env_remove("WHARF_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = started(|| command.spawn());
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("a pipe");
        child.stdout = Some(out.into_inner());
        let address = line.strip_prefix("listening tcp ").expect("ready").trim();
        let address = address.parse().expect("an address");
        Self { folder, child: Some(child), address }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Client(BufReader::new(stream))
    }

    /// One request on a connection of its own.
    #[track_caller]
    fn get(&self, path: &str, headers: &str) -> Answer {
        self.connect().ask("GET", path, headers)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    #[cfg(unix)]
    fn term(&self) {
        let child = self.child.as_ref().expect("running");
        kill_process(Pid::from_child(child), Signal::TERM).expect("our own child");
    }

    /// Asks it to stop, and looks at what it says then. (On Windows nothing here can ask.)
    fn stop(self, look: impl FnOnce(Value)) {
        #[cfg(unix)]
        {
            self.term();
            look(self.ended());
        }
        #[cfg(windows)]
        drop((self, look));
    }

    /// Waits for the end and what is said then.
    #[cfg(unix)]
    fn ended(mut self) -> Value {
        let output = self.child.take().expect("running").wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        let out = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(out.lines().last().unwrap_or_default()).expect("a summary")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

impl Client {
    fn say(&mut self, text: &[u8]) {
        self.0.get_mut().write_all(text).expect("a connection");
    }

    #[track_caller]
    fn ask(&mut self, method: &str, path: &str, headers: &str) -> Answer {
        self.say(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        self.answer(method != "HEAD")
    }

    #[track_caller]
    fn answer(&mut self, with_body: bool) -> Answer {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no answer: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a head");
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None => break,
            }
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("Content-Length").map_or(0, |it| it.parse().expect("a length"));
        if with_body && status != 304 {
            answer.body = vec![0; length];
            self.0.read_exact(&mut answer.body).expect("a body");
        }
        answer
    }

    /// Whether the server has ended the connection, and nothing more came before.
    fn is_over(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

/// Would catch: a wrong byte, length or type, and a connection that is not kept.
#[test]
fn files_are_served() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for (path, content, kind) in [
        ("/small.txt", b"0123456789".to_vec(), "text/plain; charset=utf-8"),
        ("/", b"<p>index</p>".to_vec(), "text/html; charset=utf-8"),
        ("/below/?query", b"below".to_vec(), "text/html; charset=utf-8"),
        ("/empty", Vec::new(), "application/octet-stream"),
        ("/large.bin", pattern(0, 5_000_000), "application/octet-stream"),
        ("/%73mall.txt", b"0123456789".to_vec(), "text/plain; charset=utf-8"),
    ] {
        let answer = client.ask("GET", path, "");
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.body == content, "{path}");
        assert_eq!(answer.header("Content-Type"), Some(kind), "{path}");
        assert_eq!(answer.header("Connection"), Some("keep-alive"), "{path}");
        assert!(answer.header("Date").is_some() && answer.header("Last-Modified").is_some());
        let head = client.ask("HEAD", path, "");
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for name in ["Content-Length", "Content-Type", "ETag", "Last-Modified"] {
            assert_eq!(head.header(name), answer.header(name), "{path} {name}");
        }
    }
    let answer = client.ask("GET", "/below", "");
    assert_eq!((answer.status, answer.header("Location")), (301, Some("/below/")));
    drop(client);
    server.stop(|said| {
        assert_eq!((&said["requests"], &said["connections"]["failed"]), (&13.into(), &0.into()));
    });
}

/// Would catch: a part that is not the one that was asked for.
#[test]
fn parts_of_files_are_served() {
    let server = Server::start(&[]);
    let answer = server.get("/large.bin", "Range: bytes=1000000-2999999\r\n");
    assert_eq!(answer.status, 206);
    assert_eq!(answer.header("Content-Range"), Some("bytes 1000000-2999999/5000000"));
    assert!(answer.body == pattern(1_000_000, 2_000_000));
    for (range, content, said) in
        [("0-0", "0", "0-0"), ("7-", "789", "7-9"), ("-2", "89", "8-9"), ("5-99", "56789", "5-9")]
    {
        let answer = server.get("/small.txt", &format!("Range: bytes={range}\r\n"));
        assert_eq!((answer.status, &answer.body[..]), (206, content.as_bytes()), "{range}");
        assert_eq!(answer.header("Content-Range"), Some(&*format!("bytes {said}/10")));
    }
    let answer = server.get("/small.txt", "Range: bytes=10-\r\n");
    assert_eq!((answer.status, answer.header("Content-Range")), (416, Some("bytes */10")));
    assert_eq!(server.get("/small.txt", "Range: nonsense\r\n").body, b"0123456789");

    // Several at once, and the connection goes on behind them.
    let mut client = server.connect();
    let answer = client.ask("GET", "/small.txt", "Range: bytes=0-1,4-4,-3\r\n");
    assert_eq!(answer.status, 206);
    let kind = answer.header("Content-Type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = String::new();
    for (range, content) in [("0-1", "01"), ("4-4", "4"), ("7-9", "789")] {
        expected += &format!(
            "\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {range}/10\r\n\
             \r\n{content}"
        );
    }
    expected += &format!("\r\n--{boundary}--\r\n");
    assert_eq!(String::from_utf8(answer.body).unwrap(), expected);
    assert_eq!(client.ask("GET", "/below/", "").body, b"below");
}

/// Would catch: a file that is sent again, or one that is not though it has changed.
#[test]
fn what_has_not_changed_is_not_sent() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let first = client.ask("GET", "/small.txt", "");
    let (tag, date) = (first.header("ETag").unwrap(), first.header("Last-Modified").unwrap());
    for header in [format!("If-None-Match: {tag}"), format!("If-Modified-Since: {date}")] {
        let answer = client.ask("GET", "/small.txt", &format!("{header}\r\n"));
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{header}");
        assert_eq!(answer.header("ETag"), Some(tag));
    }
    let answer = client.ask("GET", "/small.txt", "If-Match: \"other\"\r\n");
    assert_eq!(answer.status, 412);
    let range = format!("Range: bytes=0-0\r\nIf-Range: {tag}\r\n");
    assert_eq!(client.ask("GET", "/small.txt", &range).body, b"0");
    fs::write(server.folder.join("site/small.txt"), "changed").unwrap();
    let answer = client.ask("GET", "/small.txt", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!((answer.status, &answer.body[..]), (200, &b"changed"[..]));
    assert_eq!(client.ask("GET", "/small.txt", &range).body, b"changed");
}

/// Would catch: something that is served although it should not, or a way out of the folder.
#[test]
fn what_is_not_there_is_not_served() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for path in [
        "/missing",
        "/bare/",
        "/small.txt/",
        "/../secret",
        "/%2e%2e/secret",
        "/below/..%2f..%2fsecret",
        "/way-out",
        "//secret",
        "/%00",
        "/..%5csecret",
        "/below%5c..%5c..%5csecret",
        "/small.txt::$DATA",
        "/C:/windows/win.ini",
        "/NUL",
    ] {
        let answer = client.ask("GET", path, "");
        assert_eq!((answer.status, &answer.body[..]), (404, &b"404 Not Found\n"[..]), "{path}");
        assert_eq!(client.ask("HEAD", path, "").status, 404, "{path}");
    }
    let answer = client.ask("DELETE", "/small.txt", "");
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")));
    assert_eq!(client.ask("GET", "/small.txt", "").status, 200);
}

/// Would catch: a request that is taken for another, or one that is never answered.
#[test]
fn what_is_no_request_ends_the_connection() {
    let server = Server::start(&[]);
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "b".repeat(40_000));
    for (text, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
        (&long, 431),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", 400),
    ] {
        let mut client = server.connect();
        client.say(text.as_bytes());
        let answer = client.answer(true);
        assert_eq!((answer.status, answer.header("Connection")), (status, Some("close")), "{text}");
        assert!(client.is_over(), "{text}");
    }
    // What follows a body is not a request.
    let mut client = server.connect();
    client.say(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nGET /small.txt HTTP/1.1\r\n",
    );
    assert_eq!(client.answer(true).status, 405);
    assert!(client.is_over());
}

/// Would catch: requests that are lost when they come in pieces, or several at once.
#[test]
fn requests_come_in_any_pieces() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    for piece in b"GET /small.txt HTTP/1.1\r\nHost: x\r\n\r\n".chunks(3) {
        client.say(piece);
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.answer(true).body, b"0123456789");
    let paths = ["/small.txt", "/large.bin", "/missing", "/", "/below", "/empty", "/below/"];
    let request = |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    client.say(paths.map(request).concat().as_bytes());
    let answers = paths.map(|_| client.answer(true));
    let seen = answers.each_ref().map(|answer| (answer.status, answer.body.len()));
    let expected =
        [(200, 10), (200, 5_000_000), (404, 14), (200, 12), (301, 22), (200, 0), (200, 5)];
    assert_eq!(seen, expected);
    assert!(answers[1].body == pattern(0, 5_000_000));
    // The peer has said all, and still gets its answers.
    client.say([request("/small.txt"), request("/")].concat().as_bytes());
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!((client.answer(true).status, client.answer(true).status), (200, 200));
    assert!(client.is_over());
    // By those who want no more.
    let mut client = server.connect();
    client.say(b"GET / HTTP/1.0\r\n\r\n");
    let answer = client.answer(true);
    assert_eq!((answer.status, answer.header("Connection")), (200, Some("close")));
    assert!(client.is_over());
}

/// Would catch: clients that keep connections for ever by saying nothing, or a byte now and then.
#[test]
fn idle_connections_are_closed() {
    let server = Server::start(&["--idle", "0.5"]);
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.say(b"GET / HT");
    let mut kept = server.connect();
    assert_eq!(kept.ask("GET", "/", "").status, 200);
    assert!(silent.is_over() && slow.is_over() && kept.is_over());
    server.stop(|said| assert_eq!(said["connections"]["finished"], 3));
}

/// Would catch: clients that take nothing and keep their connection, or whose answer is cut though
/// they take it slowly.
#[test]
fn clients_that_take_nothing_are_let_go() {
    // Windows counts the time for each piece, and Wine on a busy machine is slow.
    let server = Server::start(&["--idle", if cfg!(windows) { "3" } else { "1" }]);
    fs::write(server.folder.join("site/huge"), vec![7; 64 << 20]).unwrap();
    let mut stuck = server.connect();
    stuck.say(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut slow = server.connect();
    slow.say(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut total = 0;
    let mut part = vec![0; 1 << 20];
    // For longer than the limit, in pieces.
    while total < 64 << 20 {
        let read = slow.0.read(&mut part).expect("more");
        assert!(read > 0, "cut after {total}");
        total += read;
        thread::sleep(Duration::from_millis(if total < 24 << 20 { 60 } else { 0 }));
    }
    // The other one is gone without having been drained.
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut rest = Vec::new();
        stuck.0.get_mut().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        thread::sleep(Duration::from_secs(4));
        match stuck.0.read_to_end(&mut rest) {
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(_) => assert!(std::time::Instant::now() < deadline, "it is still served"),
        }
    }
}

/// Would catch: an answer that is cut by a drain, or an idle connection that holds it up.
#[cfg(unix)]
#[test]
fn a_drain_finishes_what_was_begun() {
    let server = Server::start(&["--drain", "30"]);
    fs::write(server.folder.join("site/huge"), pattern(0, 32 << 20)).unwrap();
    let mut idle = server.connect();
    assert_eq!(idle.ask("GET", "/", "").status, 200);
    let mut busy = server.connect();
    busy.say(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n");
    // It has begun.
    assert_eq!(busy.0.fill_buf().map(<[u8]>::is_empty).ok(), Some(false));
    server.term();
    assert!(idle.is_over());
    let answer = busy.answer(true);
    assert!(answer.body == pattern(0, 32 << 20));
    drop(busy);
    let said = server.ended();
    assert_eq!(
        (&said["connections"]["finished"], &said["connections"]["cut"]),
        (&2.into(), &0.into())
    );
}

/// Would catch: many clients that get each other's bytes.
#[test]
fn many_clients_are_served_at_once() {
    let server = Server::start(&[]);
    thread::scope(|scope| {
        for number in 0..40_usize {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                for round in 0..10 {
                    let from = (number * 100_003 + round * 7919) % 4_000_000;
                    let range = format!("Range: bytes={from}-{}\r\n", from + 499_999);
                    let answer = client.ask("GET", "/large.bin", &range);
                    assert!(answer.body == pattern(from, 500_000), "{number} {round}");
                }
            });
        }
    });
    server.stop(|said| assert_eq!(said["requests"], 400));
}

/// Whether a program is there; a test that needs it is skipped otherwise.
fn there_is(program: &str, test: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    if found.is_err() {
        let _ = writeln!(std::io::stderr(), "SKIP {test}: there is no {program}");
    }
    found.is_ok()
}

/// Would catch: what curl finds wrong.
#[test]
fn curl_is_content() {
    if !there_is("curl", "curl_is_content") {
        return;
    }
    let server = Server::start(&[]);
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*"]).args(arguments);
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let large = server.url("/large.bin");
    assert!(curl(&[&large]) == pattern(0, 5_000_000));
    assert!(curl(&["--range", "100-2000099", &large]) == pattern(100, 2_000_000));
    assert!(curl(&["--http1.0", &large]) == pattern(0, 5_000_000));
    let head = String::from_utf8(curl(&["--head", &large])).unwrap();
    assert!(head.contains("Content-Length: 5000000\r\n"), "{head}");
    assert_eq!(curl(&["--location", &server.url("/below")]), b"below");
    // Three on one connection.
    let small = server.url("/small.txt");
    let three = ["--write-out", "<%{num_connects}>", &small, &small, &small];
    assert_eq!(curl(&three), b"0123456789<1>0123456789<0>0123456789<0>");
    let status = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    for (path, expected) in [("/missing", "404"), ("/../secret", "404"), ("/way-out", "404")] {
        let url = server.url(path);
        let said = curl(&[&status[..], &["--path-as-is", &url]].concat());
        assert_eq!(String::from_utf8(said).unwrap(), expected, "{path}");
    }
    assert_eq!(curl(&[&status[..], &["--data", "body", &small]].concat()), b"405");
    let date = "Wed, 01 Jan 2098 00:00:00 GMT";
    assert_eq!(curl(&[&status[..], &["--time-cond", date, &small]].concat()), b"304");
    // What was cut goes on where it ended.
    let part = server.folder.join("part");
    fs::write(&part, pattern(0, 1_234_567)).unwrap();
    curl(&["--continue-at", "-", "--output", part.to_str().unwrap(), &large]);
    assert!(fs::read(&part).unwrap() == pattern(0, 5_000_000));
}

/// Would catch: what wget finds wrong.
#[test]
fn wget_is_content() {
    if !there_is("wget", "wget_is_content") {
        return;
    }
    let server = Server::start(&[]);
    let to = server.folder.join("got");
    fs::create_dir(&to).unwrap();
    let large = server.url("/large.bin");
    let wget = |arguments: &[&str]| {
        let mut command = Command::new("wget");
        command.args(["--quiet", "--no-proxy"]).args(arguments).current_dir(&to);
        command.status().expect("it runs")
    };
    assert!(wget(&[&large, &server.url("/small.txt"), &server.url("/below/")]).success());
    assert!(fs::read(to.join("large.bin")).unwrap() == pattern(0, 5_000_000));
    assert_eq!(fs::read(to.join("small.txt")).unwrap(), b"0123456789");
    assert_eq!(fs::read(to.join("index.html")).unwrap(), b"below");
    // The rest of a file, and one that has not changed.
    fs::write(to.join("large.bin"), pattern(0, 77)).unwrap();
    assert!(wget(&["--continue", &large]).success());
    assert!(fs::read(to.join("large.bin")).unwrap() == pattern(0, 5_000_000));
    assert!(wget(&["--timestamping", &server.url("/small.txt")]).success());
    assert_eq!(wget(&[&server.url("/missing")]).code(), Some(8));
}

/// A page that fetches files, and says what it makes of them.
#[cfg(unix)]
const PAGE: &str = r#"<!doctype html><title>page</title><p id="said"></p><script>
function bytes(path, range) {
    const request = new XMLHttpRequest();
    request.open("GET", path, false);
    request.overrideMimeType("text/plain; charset=x-user-defined");
    if (range) request.setRequestHeader("Range", range);
    request.send();
    let sum = 0;
    for (let at = 0; at < request.responseText.length; at++) {
        sum = (Math.imul(sum, 31) + (request.responseText.charCodeAt(at) & 255)) >>> 0;
    }
    return request.status + ":" + request.responseText.length + ":" + sum;
}
const said = [bytes("/large.bin"), bytes("/large.bin", "bytes=100-2000099"), bytes("/missing")];
document.getElementById("said").textContent = said.join(" ");
</script>"#;

/// Would catch: what a browser finds wrong.
#[cfg(unix)]
#[test]
fn a_browser_is_content() {
    let chromium = ["chromium", "chromium-browser", "google-chrome"];
    let tried =
        |it: &&&str| Command::new(it).arg("--version").stdout(Stdio::null()).status().is_ok();
    let Some(chromium) = chromium.iter().find(tried) else {
        let _ = writeln!(std::io::stderr(), "SKIP a_browser_is_content: there is no chromium");
        return;
    };
    let server = Server::start(&[]);
    fs::write(server.folder.join("site/page.html"), PAGE).unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
        .args(["--disable-component-update", "--no-proxy-server", "--dump-dom"])
        .arg(format!("--user-data-dir={}", server.folder.join("profile").display()))
        .arg(server.url("/page.html"))
        .output()
        .expect("it runs");
    let sum = |bytes: &[u8]| {
        bytes.iter().fold(0_u32, |sum, &it| sum.wrapping_mul(31).wrapping_add(it.into()))
    };
    let all = sum(&pattern(0, 5_000_000));
    let part = sum(&pattern(100, 2_000_000));
    let expected = format!("200:5000000:{all} 206:2000000:{part} 404:");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&expected), "{expected} is not in {output:?}");
}

/// Would catch: an answer that is not what wrk takes for one, on many connections at once.
#[cfg(unix)]
#[test]
fn wrk_is_content() {
    if !there_is("wrk", "wrk_is_content") {
        return;
    }
    let server = Server::start(&[]);
    for path in ["/small.txt", "/large.bin"] {
        let mut wrk = Command::new("wrk");
        let output = wrk.args(["-t2", "-c20", "-d1", &server.url(path)]).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("requests in"), "{output:?}");
        assert!(!text.contains("errors") && !text.contains("Non-2xx"), "{text}");
        let none = text.lines().any(|line| line.trim_start().starts_with("0 requests in"));
        assert!(!none, "{text}");
    }
    server.stop(|said| assert!(said["requests"].as_u64() > Some(2)));
}
