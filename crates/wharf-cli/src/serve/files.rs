//! The service of files: requests come in, files go out.
//!
//! Like with the other services, a connection either receives or sends: the next request is looked
//! at when the answer to the last one has been sent.

use std::{
    fs::File,
    io, mem,
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use wharf::{Buf, ErrorKind, Result, Start, Stream, Transmit};

use super::{
    http::{self, Head, Method, Parsed, Part, Request, Selection, Status, Version},
    service::{Key, Totals},
    site::{Found, Site},
};
use crate::system;

/// How long a connection is kept that is over for us, so that its peer reads the last answer
/// before it learns of the end, and how much is read meanwhile.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 10;
/// The most bytes of a file that one operation sends: where the system cannot tell peers that take
/// nothing from those that take it slowly, every operation has to be over in a time.
const PIECE_MAX: Option<u64> = if system::LIMITS_SENDS { None } else { Some(256 << 10) };

/// Answers requests with files.
#[derive(Debug)]
pub(super) struct Files {
    site: Site,
    totals: Arc<Totals>,
    /// How long a peer may take to take what it gets.
    patience: Duration,
}

/// What has been exchanged on a connection.
#[derive(Debug)]
pub(super) struct Exchange {
    state: Mutex<State>,
    /// A request is being answered.
    answering: AtomicBool,
    /// When it began to wait for a request, in milliseconds since the first connection's clock.
    since: AtomicU64,
}

/// Only the worker that has the connection's packet needs it.
#[derive(Debug, Default)]
struct State {
    /// What has come and was not looked at.
    pending: Vec<u8>,
    /// What of the answer is to be sent after what is being sent, the next one last.
    rest: Vec<Piece>,
    /// The answer is the last one.
    last: bool,
    /// The last answer has been sent: so much may still be read.
    lingering: Option<usize>,
}

/// A part of a file, with what is sent before and after it.
#[derive(Debug)]
struct Piece {
    file: Arc<File>,
    head: Vec<u8>,
    part: Part,
    tail: Vec<u8>,
}

/// Where a connection stands after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoesOn,
    /// It has come to its end.
    Ended,
}

fn now() -> u64 {
    static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(BEGIN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            answering: AtomicBool::new(false),
            since: AtomicU64::new(now()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is still to be sent.
    pub(super) fn owes(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Whether it has waited for a request, or the rest of one, for longer than this.
    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        let waited = now().saturating_sub(self.since.load(Ordering::Relaxed));
        !self.owes() && u128::from(waited) > time.as_millis()
    }

    fn waits(&self) {
        self.since.store(now(), Ordering::Relaxed);
        self.answering.store(false, Ordering::Relaxed);
    }
}

impl Files {
    pub(super) fn new(site: Site, totals: Arc<Totals>, patience: Duration) -> Self {
        Self { site, totals, patience }
    }

    /// How everything that is sent is started.
    fn start<'a>(&self, stream: &'a Stream<Key>) -> Start<'a, Stream<Key>, ()> {
        let start = stream.start();
        if system::LIMITS_SENDS { start } else { start.deadline(self.patience) }
    }

    /// Something has come, or the end.
    pub(super) fn received(
        &self,
        stream: &Stream<Key>,
        exchange: &Exchange,
        buf: Buf,
        result: Result<usize>,
    ) -> Result<Then> {
        let mut state = exchange.lock();
        if let Some(left) = state.lingering {
            return match (result, left.checked_sub(buf.len())) {
                (Ok(1..), Some(left)) => {
                    state.lingering = Some(left);
                    stream.start().deadline(LINGER).recv(buf)?;
                    Ok(Then::GoesOn)
                }
                _ => Ok(Then::Ended),
            };
        }
        if result? == 0 {
            return Ok(Then::Ended);
        }
        if state.pending.is_empty() {
            self.look(stream, exchange, &mut state, &buf)?;
        } else {
            state.pending.extend_from_slice(&buf);
            let pending = mem::take(&mut state.pending);
            self.look(stream, exchange, &mut state, &pending)?;
        }
        Ok(Then::GoesOn)
    }

    /// A part of an answer has been sent.
    pub(super) fn sent(
        &self,
        stream: &Stream<Key>,
        exchange: &Exchange,
        result: Result<usize>,
    ) -> Result<Then> {
        let mut state = exchange.lock();
        if let Err(error) = result {
            // What is behind it must not be taken for what is missing.
            stream.close();
            return Err(error);
        }
        if let Some(piece) = state.rest.pop() {
            self.transmit(stream, &mut state, piece)?;
            return Ok(Then::GoesOn);
        }
        exchange.waits();
        if state.last {
            state.lingering = Some(LINGER_BYTES);
            state.pending = Vec::new();
            stream.start().silent().shutdown(Shutdown::Write)?;
            stream.start().deadline(LINGER).recv(Buf::pooled())?;
            return Ok(Then::GoesOn);
        }
        let pending = mem::take(&mut state.pending);
        if pending.is_empty() {
            stream.recv(Buf::pooled())?;
        } else {
            self.look(stream, exchange, &mut state, &pending)?;
        }
        Ok(Then::GoesOn)
    }

    /// Answers the request at the beginning of what has come, or waits for the rest of it.
    fn look(
        &self,
        stream: &Stream<Key>,
        exchange: &Exchange,
        state: &mut State,
        bytes: &[u8],
    ) -> Result<()> {
        match http::parse(bytes) {
            Parsed::Partial => {
                state.pending = bytes.to_vec();
                stream.recv(Buf::pooled())?;
            }
            Parsed::Bad(status) => {
                log::debug!("no request: {status:?}");
                exchange.answering.store(true, Ordering::Relaxed);
                state.last = true;
                self.start(stream).send(http::plain(status, false, true, &[]))?;
            }
            Parsed::Request(mut request, length) => {
                state.pending = bytes[length..].to_vec();
                exchange.answering.store(true, Ordering::Relaxed);
                request.keep_alive &= !self.totals.is_draining();
                state.last = !request.keep_alive;
                self.totals.count_request();
                self.answer(stream, state, &request)?;
            }
        }
        Ok(())
    }

    fn answer(&self, stream: &Stream<Key>, state: &mut State, request: &Request) -> Result<()> {
        let plain = |status, more: &[(&str, &str)]| {
            http::plain(status, request.keep_alive, request.method != Method::Head, more)
        };
        if request.method == Method::Other {
            let answer = plain(Status::MethodNotAllowed, &[("Allow", "GET, HEAD")]);
            self.start(stream).send(answer)?;
            return Ok(());
        }
        let answer = match self.site.find(&request.path) {
            Ok(Found::File { file, metadata, kind }) => {
                let version = Version::of(&metadata);
                return self.send(stream, state, request, file, &version, kind);
            }
            Ok(Found::Folder) => {
                let location = format!("{}/", request.path);
                plain(Status::MovedPermanently, &[("Location", &location)])
            }
            Ok(Found::Nothing) => plain(Status::NotFound, &[]),
            Ok(Found::Forbidden) => plain(Status::Forbidden, &[]),
            Err(error) => {
                log::warn!("{}: {error}", request.path);
                plain(trouble(&error), &[])
            }
        };
        self.start(stream).send(answer)?;
        Ok(())
    }

    fn send(
        &self,
        stream: &Stream<Key>,
        state: &mut State,
        request: &Request,
        file: File,
        version: &Version,
        kind: &str,
    ) -> Result<()> {
        let keep_alive = request.keep_alive;
        let length = version.length;
        let begin = |status| Head::new(status, keep_alive).with_version(version);
        let (head, part) = match request.select(version) {
            Selection::Whole => {
                let head = begin(Status::Ok).with_type(kind).with("Content-Length", length);
                (head, Part { from: 0, length })
            }
            Selection::One(part) => {
                let head = begin(Status::PartialContent)
                    .with_type(kind)
                    .with("Content-Length", part.length)
                    .with("Content-Range", http::content_range(part, length));
                (head, part)
            }
            Selection::Several(parts) => {
                state.rest = several(file, kind, length, &parts, begin);
                let Some(first) = state.rest.pop() else { return Ok(()) };
                return self.transmit(stream, state, first);
            }
            Selection::No(Status::NotModified) => {
                self.start(stream).send(begin(Status::NotModified).end())?;
                return Ok(());
            }
            Selection::No(status) => {
                let range = format!("bytes */{length}");
                let more = [("Content-Range", range.as_str())];
                let more = if status == Status::RangeNotSatisfiable { &more[..] } else { &[] };
                let with_body = request.method != Method::Head;
                self.start(stream).send(http::plain(status, keep_alive, with_body, more))?;
                return Ok(());
            }
        };
        if request.method == Method::Head || part.length == 0 {
            self.start(stream).send(head.end())?;
            return Ok(());
        }
        let (file, tail) = (Arc::new(file), Vec::new());
        self.transmit(stream, state, Piece { file, head: head.end(), part, tail })
    }

    /// Sends as much of a piece as one operation may.
    fn transmit(&self, stream: &Stream<Key>, state: &mut State, piece: Piece) -> Result<()> {
        let Piece { file, head, part: Part { from, length }, tail } = piece;
        let now = PIECE_MAX.map_or(length, |most| length.min(most));
        let mut transmit = Transmit::new(file.clone()).head(head).part(from, now);
        if now < length {
            let part = Part { from: from + now, length: length - now };
            state.rest.push(Piece { file, head: Vec::new(), part, tail });
        } else if !tail.is_empty() {
            transmit = transmit.tail(tail);
        }
        self.start(stream).transmit(transmit).map_err(|refused| refused.error)?;
        Ok(())
    }
}

/// Several parts of a file, each with a head of its own: the first one last.
fn several(
    file: File,
    kind: &str,
    length: u64,
    parts: &[Part],
    begin: impl FnOnce(Status) -> Head,
) -> Vec<Piece> {
    let heads: Vec<_> = parts.iter().map(|&part| http::part_head(kind, part, length)).collect();
    let end = http::parts_end();
    let content = heads.iter().map(|head| head.len() as u64).sum::<u64>()
        + parts.iter().map(|part| part.length).sum::<u64>()
        + end.len() as u64;
    let mut head = begin(Status::PartialContent)
        .with("Content-Type", format_args!("multipart/byteranges; boundary={}", http::BOUNDARY))
        .with("Content-Length", content)
        .end();
    let file = Arc::new(file);
    let piece = |(&part, part_head): (&Part, String)| {
        head.extend_from_slice(part_head.as_bytes());
        Piece { file: file.clone(), head: mem::take(&mut head), part, tail: Vec::new() }
    };
    let mut pieces: Vec<_> = parts.iter().zip(heads).map(piece).collect();
    if let Some(last) = pieces.last_mut() {
        last.tail = end.into_bytes();
    }
    pieces.reverse();
    pieces
}

/// What a client is told of trouble that is not its own.
fn trouble(error: &io::Error) -> Status {
    let code = error.raw_os_error().map(io::Error::from_raw_os_error);
    match code.map(|error| wharf::Error::from(error).kind()) {
        Some(ErrorKind::OutOfDescriptors | ErrorKind::OutOfMemory) => Status::Unavailable,
        _ => Status::ServerError,
    }
}
