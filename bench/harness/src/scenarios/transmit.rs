use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::candidate::{Candidate, Start};
use crate::child::{Running, Stop};
use crate::launch;
use crate::load::{Meter, Metered, random, seeded};
use crate::metric::{CPU_NS, ENTRIES, Metric, P50_US, P99_US, PEAK_MIB, RATE, SWITCHES};
use crate::run::Bench;
use crate::scenario::{Needs, Parameter, Point, Sample, Scenario};

pub(crate) const SCENARIO: &dyn Scenario = &Files;

/// How often a file is fetched and compared while wrk is at work.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// How long a server may take for an answer, and wrk for its last words.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest head of an answer.
const HEAD_MAX: usize = 4096;

/// What wrk does at its end: it tells what it has counted, in one line.
const SCRIPT: &str = r#"
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"micros":%d,"requests":%d,"bytes":%d,"errors":%d,"p50_us":%d,"p99_us":%d}\n',
        summary.duration, summary.requests, summary.bytes,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"#;

static MIB: Metric = Metric::more("mib", "MiB/s", "what wrk received per second, heads included");

struct Files;

#[derive(Serialize, Deserialize)]
struct Job {
    target: SocketAddr,
    /// The server's process.
    server: u32,
    threads: usize,
    connections: usize,
    size: usize,
    script: PathBuf,
    warm_up_ms: u64,
    window_ms: u64,
}

/// What wrk says at its end.
#[derive(Serialize, Deserialize)]
struct Wrk {
    micros: u64,
    requests: u64,
    bytes: u64,
    errors: u64,
    p50_us: f64,
    p99_us: f64,
}

#[derive(Serialize, Deserialize)]
struct Fetched {
    wrk: Wrk,
    /// Answers within the window.
    answers: f64,
    /// And since the server was started.
    ever: f64,
    metered: Metered,
}

impl Scenario for Files {
    fn name(&self) -> &'static str {
        "transmit"
    }

    fn place(&self) -> u32 {
        85
    }

    fn about(&self) -> &'static str {
        "a file over HTTP/1.1, under wrk; beside nginx"
    }

    fn definition(&self) -> &'static str {
        "
wrk of Debian (apt-get install wrk) asks for a file of `size` bytes over HTTP/1.1 on `connections`
connections that are kept, the next time when the answer is complete (a closed loop). The file
lies in the folder for temporary files and in the page cache. wharf is `wharf serve --files`;
nginx is Debian's (apt-get install nginx-light), with a worker for each CPU and what its
documentation advises: see bench/rivals/nginx. Server and wrk share the CPUs, and wrk has a thread
for each.

One operation is an answer, head and body. What wrk had received of answers at its end that were
not complete counts as the part of an operation that it is: operations are bytes received by the
bytes of an answer. CPU time is that of all the server's processes, from before wrk begins to
connect until it has ended; there is a shorter run of wrk before, which is not counted. Latencies
are as wrk reports them. It must not report an error, and every 50 ms another connection fetches
the file, before and after too, and compares all of it."
    }

    fn service(&self) -> &'static str {
        "files"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let size = Parameter::other(
            "size",
            "bytes in the file",
            "# B",
            &[4096, 1024, 65_536, 1_048_576, 10_485_760],
            &[4096, 1_048_576],
        );
        vec![size, Parameter::connections(&[50], &[50]), Parameter::cpus(&[1, 2], &[1])]
    }

    fn needs(&self, point: &Point) -> Needs {
        // A server may have the file open for each connection.
        Needs { cpus: point.get("cpus"), descriptors: 2 * point.get("connections") }
    }

    fn metrics(&self) -> Vec<&'static Metric> {
        vec![&CPU_NS, &RATE, &MIB, &P50_US, &P99_US, &SWITCHES, &ENTRIES, &PEAK_MIB]
    }

    fn plots(&self) -> &'static [(&'static str, &'static str)] {
        &[("size", "mib")]
    }

    fn window(
        &self,
        bench: &Bench,
        point: &Point,
        candidate: &Candidate,
    ) -> Result<Sample, Failure> {
        if let Some(failure) = &candidate.failure {
            return Err(failure.clone());
        }
        look_for_wrk()?;
        let (cpus, size) = (point.get("cpus"), point.get("size"));
        let folder = std::env::temp_dir().join("wharf-bench-transmit");
        let files = folder.join("files");
        fs::create_dir_all(&files)?;
        put(&files.join(size.to_string()), &content(size))?;
        let script = folder.join("wrk.lua");
        put(&script, SCRIPT.as_bytes())?;
        let start = Start {
            cpus: &bench.cpus[..cpus],
            wharf_workers: bench.method.wharf_workers,
            size: 64,
        };
        let more = [
            "--files",
            files.to_str().ok_or_else(|| {
                Failure(format!("the folder for temporary files, {}, is no text", folder.display()))
            })?,
        ];
        let mut server = candidate.serve(&bench.places, start, &more, &bench.stop)?;
        let job = Job {
            target: server.addr,
            server: server.running.id(),
            threads: cpus,
            connections: point.get("connections").max(cpus),
            size,
            script,
            warm_up_ms: bench.method.warm_up_ms,
            window_ms: bench.method.window_ms,
        };
        let answer = bench.generate(self, &mut server, &bench.cpus[..cpus], &job)?;
        let fetched: Fetched = serde_json::from_str(&answer)?;
        let Fetched { wrk, answers, ever, metered } = fetched;
        if wrk.errors > 0 {
            return Err(Failure(format!("wrk reports {} errors", wrk.errors)));
        }
        if wrk.requests == 0 {
            return Err(Failure("no answer within the window".to_owned()));
        }
        let mut sample = metered.sample(answers.round() as u64);
        sample.put_entries(server.end(), ever.round() as u64);
        sample.put(&MIB, wrk.bytes as f64 / 1.048_576 / wrk.micros as f64);
        sample.put(&P50_US, wrk.p50_us);
        sample.put(&P99_US, wrk.p99_us);
        Ok(sample)
    }

    fn load(&self, job: &str) -> Result<String, Failure> {
        let job: Job = serde_json::from_str(job)?;
        let mut checker = Checker::new(job.target, job.size)?;
        let (warm_up, checked_before) = fetch(&job, job.warm_up_ms, &mut checker)?;
        let meter = Meter::start(job.server)?;
        let (wrk, checked) = fetch(&job, job.window_ms, &mut checker)?;
        let mut metered = meter.stop()?;
        checker.check()?;
        // wrk knows best when it began and stopped.
        metered.seconds = wrk.micros as f64 / 1e6;
        let answer = checker.answer as f64;
        let answers = wrk.bytes as f64 / answer + checked as f64;
        let before = warm_up.bytes as f64 / answer + checked_before as f64;
        let fetched = Fetched { wrk, answers, ever: before + answers, metered };
        Ok(serde_json::to_string(&fetched)?)
    }
}

fn look_for_wrk() -> Result<(), Failure> {
    let mut wrk = Command::new("wrk");
    let tried = wrk.arg("-v").stdin(Stdio::null()).output();
    tried.map(drop).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Failure("wrk is not installed (Debian: apt-get install wrk)".to_owned())
        }
        _ => Failure(format!("cannot run wrk: {error}")),
    })
}

/// The bytes of a file: always the same, and nowhere twice.
fn content(size: usize) -> Vec<u8> {
    let mut state = seeded(size as u64);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&random(&mut state).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Writes a file, unless it is there; reads it in any case, so that the page cache has it.
fn put(path: &Path, content: &[u8]) -> Result<(), Failure> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    Ok(fs::write(path, content)?)
}

/// Has wrk fetch the file for so long, and looks after the answers meanwhile. Returns what wrk has
/// counted, and how many answers were looked at.
fn fetch(job: &Job, milliseconds: u64, checker: &mut Checker) -> Result<(Wrk, u64), Failure> {
    let length = Duration::from_millis(milliseconds);
    let mut command = launch::command(&std::env::current_exe()?, &[], "wrk");
    command.args(["-t", &job.threads.to_string(), "-c", &job.connections.to_string()]);
    // It is asked to stop earlier, as it knows whole seconds only.
    command.args(["-d", &(length.as_secs() + 2).to_string(), "-s"]).arg(&job.script);
    command.arg(format!("http://{}/{}", job.target, job.size));
    let begin = Instant::now();
    let mut wrk = Running::start(command, &Stop::default())?;
    let mut checked = 0;
    while begin.elapsed() < length {
        checker.check()?;
        checked += 1;
        sleep(CHECK_EVERY.min(length.saturating_sub(begin.elapsed())));
    }
    wrk.signal(Signal::SIGINT);
    let mut line = String::new();
    while !line.starts_with('{') {
        line = wrk.line(PATIENCE).map_err(|reason| Failure(format!("wrk: {reason}")))?;
    }
    Ok((serde_json::from_str(&line)?, checked))
}

/// Fetches the file, and compares it with what was put there.
struct Checker {
    stream: TcpStream,
    request: String,
    expected: Vec<u8>,
    received: Vec<u8>,
    /// Bytes of the last answer, with its head.
    answer: usize,
}

impl Checker {
    fn new(target: SocketAddr, size: usize) -> Result<Self, Failure> {
        let stream = TcpStream::connect(target)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            request: format!("GET /{size} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
            expected: content(size),
            received: vec![0; HEAD_MAX + size],
            answer: 0,
        })
    }

    fn check(&mut self) -> Result<(), Failure> {
        let wrong = |what: &str| Failure(format!("a wrong answer: {what}"));
        self.stream.write_all(self.request.as_bytes())?;
        let (mut received, mut body_at) = (0, None);
        while body_at.is_none_or(|it| received < it + self.expected.len()) {
            let count = match self.stream.read(&mut self.received[received..]) {
                Ok(0) => return Err(wrong("it ends too early")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure(format!("no answer: {error}"))),
            };
            received += count;
            if body_at.is_none() {
                let there = &self.received[..received];
                body_at = there.windows(4).position(|it| it == b"\r\n\r\n").map(|it| it + 4);
                let length = format!("\r\ncontent-length: {}\r\n", self.expected.len());
                match body_at.map(|it| String::from_utf8_lossy(&there[..it]).to_lowercase()) {
                    Some(head) if !head.starts_with("http/1.1 200 ") => {
                        return Err(wrong(head.lines().next().unwrap_or_default()));
                    }
                    Some(head) if !head.contains(&length) => {
                        return Err(wrong("it has another length than the file"));
                    }
                    None if received > HEAD_MAX => return Err(wrong("its head does not end")),
                    _ => {}
                }
            }
        }
        let body = &self.received[body_at.unwrap_or(0)..received];
        if body != self.expected {
            return Err(wrong("it is not what is in the file"));
        }
        self.answer = received;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What is said of an answer to a request for a file of eight bytes.
    fn verdict(answer: Vec<u8>) -> Result<usize, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let target = listener.local_addr().expect("bound");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the checker");
            let mut request = [0; 512];
            let count = stream.read(&mut request).expect("a request");
            assert!(request[..count].starts_with(b"GET /8 HTTP/1.1\r\n"));
            // In two parts, as the network may have it.
            let (head, rest) = answer.split_at(answer.len() / 3);
            stream.write_all(head).expect("the checker");
            stream.write_all(rest).expect("the checker");
        });
        let mut checker = Checker::new(target, 8).expect("a server");
        let checked = checker.check().map(|()| checker.answer);
        server.join().expect("it does not panic");
        checked
    }

    #[test]
    fn only_the_whole_file_is_a_right_answer() {
        let answer = |head: &str, body: &[u8]| [head.as_bytes(), b"\r\n\r\n", body].concat();
        let good = answer("HTTP/1.1 200 OK\r\nContent-Length: 8", &content(8));
        assert_eq!(verdict(good.clone()), Ok(good.len()));
        let refused = answer("HTTP/1.1 404 Not Found\r\nContent-Length: 8", &content(8));
        let short = answer("HTTP/1.1 200 OK\r\nContent-Length: 7", &content(7));
        let long = answer("HTTP/1.1 200 OK\r\nContent-Length: 8", &content(16));
        let mut other = good.clone();
        *other.last_mut().expect("a body") ^= 1;
        for wrong in [refused, short, long, other, good[..good.len() - 1].to_vec()] {
            let said = verdict(wrong).expect_err("it is wrong");
            assert!(said.0.starts_with("a wrong answer"), "{said}");
        }
    }

    #[test]
    fn files_of_another_size_have_another_content() {
        assert_eq!(content(5).len(), 5);
        assert_ne!(content(8), content(16)[..8]);
    }
}
