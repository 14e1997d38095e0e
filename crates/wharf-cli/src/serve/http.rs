//! HTTP/1.1, as far as a server of files needs it: what a request asks for, and how answers begin.
//! No I/O.

use std::{
    fmt::Write,
    fs::Metadata,
    mem::MaybeUninit,
    time::{Duration, SystemTime},
};

/// The longest head of a request.
pub(super) const HEAD_MAX: usize = 16 << 10;
/// The most headers in it.
const HEADERS_MAX: usize = 100;
/// Of more ranges at once the whole file is sent.
const RANGES_MAX: usize = 16;

/// What was found at the beginning of what a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The head is not complete.
    Partial,
    /// A request, and how many bytes its head has.
    Request(Request, usize),
    /// Something that has no answer but this, after which the connection is closed.
    Bad(Status),
}

/// What a client asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The path of the target, encoded, without its query.
    pub(super) path: String,
    pub(super) keep_alive: bool,
    range: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
    if_modified_since: Option<SystemTime>,
    if_unmodified_since: Option<SystemTime>,
    if_range: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Method {
    #[default]
    Get,
    Head,
    Other,
}

/// The states of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 200,
    PartialContent = 206,
    MovedPermanently = 301,
    NotModified = 304,
    BadRequest = 400,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    PreconditionFailed = 412,
    RangeNotSatisfiable = 416,
    HeadTooLarge = 431,
    ServerError = 500,
    Unavailable = 503,
    VersionNotSupported = 505,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::PartialContent => "Partial Content",
            Self::MovedPermanently => "Moved Permanently",
            Self::NotModified => "Not Modified",
            Self::BadRequest => "Bad Request",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::PreconditionFailed => "Precondition Failed",
            Self::RangeNotSatisfiable => "Range Not Satisfiable",
            Self::HeadTooLarge => "Request Header Fields Too Large",
            Self::ServerError => "Internal Server Error",
            Self::Unavailable => "Service Unavailable",
            Self::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// Looks for a request at the beginning of what has come.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut found = httparse::Request::new(&mut []);
    let length = match found.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(Status::HeadTooLarge),
        Err(httparse::Error::Version) => return Parsed::Bad(Status::VersionNotSupported),
        Err(_) => return Parsed::Bad(Status::BadRequest),
    };
    match read(&found) {
        Some(request) => Parsed::Request(request, length),
        None => Parsed::Bad(Status::BadRequest),
    }
}

/// Takes what matters out of a head. None: it contradicts itself or the protocol.
fn read(found: &httparse::Request<'_, '_>) -> Option<Request> {
    let is_new = found.version == Some(1);
    let mut request = Request {
        method: match found.method {
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            _ => Method::Other,
        },
        path: path(found.path?)?.to_owned(),
        keep_alive: is_new,
        ..Request::default()
    };
    let (mut hosts, mut length, mut encoded) = (0, None, false);
    for header in &*found.headers {
        let name = header.name;
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // Anything else than text says nothing to us.
        let Ok(value) = str::from_utf8(header.value) else { continue };
        let value = value.trim();
        if is("host") {
            hosts += 1;
        } else if is("connection") {
            for token in value.split(',').map(str::trim) {
                if token.eq_ignore_ascii_case("close") {
                    request.keep_alive = false;
                } else if token.eq_ignore_ascii_case("keep-alive") && !is_new {
                    request.keep_alive = true;
                }
            }
        } else if is("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            if !digits || length.as_ref().is_some_and(|length| length != value) {
                return None;
            }
            length = Some(value.to_owned());
        } else if is("transfer-encoding") {
            encoded = true;
        } else if is("range") {
            request.range = Some(value.to_owned());
        } else if is("if-match") {
            append(&mut request.if_match, value);
        } else if is("if-none-match") {
            append(&mut request.if_none_match, value);
        } else if is("if-modified-since") {
            request.if_modified_since = httpdate::parse_http_date(value).ok();
        } else if is("if-unmodified-since") {
            request.if_unmodified_since = httpdate::parse_http_date(value).ok();
        } else if is("if-range") {
            request.if_range = Some(value.to_owned());
        }
    }
    if (is_new && hosts != 1) || hosts > 1 || (encoded && length.is_some()) {
        return None;
    }
    // What follows the head would be taken for the next request.
    let has_body = encoded || length.is_some_and(|length| length.bytes().any(|it| it != b'0'));
    request.keep_alive &= !has_body;
    Some(request)
}

/// Several headers of one name are one list.
fn append(list: &mut Option<String>, value: &str) {
    match list {
        Some(list) => {
            list.push(',');
            list.push_str(value);
        }
        None => *list = Some(value.to_owned()),
    }
}

/// The path of a request's target.
fn path(target: &str) -> Option<&str> {
    let path = if target.starts_with('/') {
        target
    } else {
        // A client that takes us for a proxy.
        let scheme = target.get(..7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let rest = &target[7..];
        rest.find('/').map_or("/", |slash| &rest[slash..])
    };
    path.split(['?', '#']).next()
}

/// What is known of a file's version.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) length: u64,
    /// In whole seconds, as HTTP tells them.
    modified: SystemTime,
    tag: String,
}

impl Version {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            length: metadata.len(),
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
            tag: format!("\"{:x}-{:x}\"", since.as_nanos(), metadata.len()),
        }
    }
}

/// A part of a file: where it begins, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) from: u64,
    pub(super) length: u64,
}

/// What is sent of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    Whole,
    One(Part),
    Several(Vec<Part>),
    /// Nothing but this.
    No(Status),
}

impl Request {
    /// What this request wants of a file in this version (RFC 9110, 13.2.2).
    pub(super) fn select(&self, version: &Version) -> Selection {
        let matches = |list: &str, weakly| {
            list.split(',').map(str::trim).any(|tag| {
                let tag = if weakly { tag.strip_prefix("W/").unwrap_or(tag) } else { tag };
                tag == "*" || tag == version.tag
            })
        };
        match (&self.if_match, self.if_unmodified_since) {
            (Some(list), _) if !matches(list, false) => {
                return Selection::No(Status::PreconditionFailed);
            }
            (None, Some(date)) if version.modified > date => {
                return Selection::No(Status::PreconditionFailed);
            }
            _ => {}
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(list), _) if matches(list, true) => return Selection::No(Status::NotModified),
            (None, Some(date)) if version.modified <= date => {
                return Selection::No(Status::NotModified);
            }
            _ => {}
        }
        let current = self.if_range.as_ref().is_none_or(|validator| {
            *validator == version.tag
                || httpdate::parse_http_date(validator).is_ok_and(|date| date == version.modified)
        });
        match &self.range {
            Some(range) if current && self.method == Method::Get => ranges(range, version.length),
            _ => Selection::Whole,
        }
    }
}

/// What a Range header asks for. What is not understood is as if it was not there.
fn ranges(text: &str, length: u64) -> Selection {
    let Some(list) = text.strip_prefix("bytes=") else { return Selection::Whole };
    let mut parts = Vec::new();
    let mut count = 0;
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        count += 1;
        let Some((from, to)) = range.split_once('-') else { return Selection::Whole };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // One that is too large for a number is too large for a file.
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        let part = match (number(from), number(to)) {
            (Some(from), Some(to)) if from > to => return Selection::Whole,
            (Some(from), to) if to.is_some() || to_is_open(range) => {
                let end = to.map_or(length, |to| to.saturating_add(1).min(length));
                Part { from, length: end.saturating_sub(from) }
            }
            (None, Some(last)) if from.is_empty() => {
                let last = last.min(length);
                Part { from: length - last, length: last }
            }
            _ => return Selection::Whole,
        };
        if part.length > 0 {
            parts.push(part);
        }
    }
    match parts.len() {
        _ if count == 0 || count > RANGES_MAX => Selection::Whole,
        0 => Selection::No(Status::RangeNotSatisfiable),
        1 => Selection::One(parts[0]),
        _ => Selection::Several(parts),
    }
}

fn to_is_open(range: &str) -> bool {
    range.ends_with('-')
}

/// The head of an answer, as it grows.
#[derive(Debug)]
pub(super) struct Head(String);

impl Head {
    pub(super) fn new(status: Status, keep_alive: bool) -> Self {
        let mut head = Self(String::with_capacity(320));
        let _ = write!(
            head.0,
            "HTTP/1.1 {} {}\r\nServer: wharf\r\nDate: {}\r\nConnection: {}\r\n",
            status as u16,
            status.text(),
            httpdate::HttpDate::from(SystemTime::now()),
            if keep_alive { "keep-alive" } else { "close" },
        );
        head
    }

    pub(super) fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let _ = write!(self.0, "{name}: {value}\r\n");
        self
    }

    /// What tells versions of a file apart.
    pub(super) fn with_version(self, version: &Version) -> Self {
        self.with("Last-Modified", httpdate::HttpDate::from(version.modified))
            .with("ETag", &version.tag)
            .with("Accept-Ranges", "bytes")
    }

    pub(super) fn with_type(self, kind: &str) -> Self {
        let charset = if kind.starts_with("text/") { "; charset=utf-8" } else { "" };
        self.with("Content-Type", format_args!("{kind}{charset}"))
    }

    /// The end of the head.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.push_str("\r\n");
        self.0.into_bytes()
    }
}

/// A whole answer without a file.
pub(super) fn plain(
    status: Status,
    keep_alive: bool,
    with_body: bool,
    more: &[(&str, &str)],
) -> Vec<u8> {
    let mut head = Head::new(status, keep_alive);
    for (name, value) in more {
        head = head.with(name, value);
    }
    if status == Status::NotModified {
        return head.end();
    }
    let body = format!("{} {}\n", status as u16, status.text());
    let head = head.with_type("text/plain").with("Content-Length", body.len());
    let mut answer = head.end();
    if with_body {
        answer.extend_from_slice(body.as_bytes());
    }
    answer
}

/// The value of a Content-Range header.
pub(super) fn content_range(part: Part, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.from, part.from + part.length - 1)
}

/// What stands before each of several parts, and after the last.
pub(super) const BOUNDARY: &str = "wharf-d7e1a4c09b5f";

/// The beginning of one of several parts.
pub(super) fn part_head(kind: &str, part: Part, length: u64) -> String {
    let range = content_range(part, length);
    format!("\r\n--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Range: {range}\r\n\r\n")
}

/// What follows the last.
pub(super) fn parts_end() -> String {
    format!("\r\n--{BOUNDARY}--\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        match parse(text.replace('\n', "\r\n").as_bytes()) {
            Parsed::Request(request, length) => {
                assert_eq!(length, text.replace('\n', "\r\n").len());
                request
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    fn bad(text: &str) -> Status {
        match parse(text.replace('\n', "\r\n").as_bytes()) {
            Parsed::Bad(status) => status,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Would catch: a target or a connection that is misunderstood.
    #[test]
    fn requests_are_understood() {
        let plain = request("GET /a/b?c#d HTTP/1.1\nHost: x\n\n");
        assert_eq!(
            (plain.path.as_str(), plain.method, plain.keep_alive),
            ("/a/b", Method::Get, true)
        );
        assert_eq!(request("HEAD http://x:80/y HTTP/1.1\nHost: x\n\n").path, "/y");
        assert_eq!(request("GET HTTP://x HTTP/1.1\nhost: x\n\n").path, "/");
        assert_eq!(request("PUT / HTTP/1.1\nHost: x\n\n").method, Method::Other);
        for (head, keep_alive) in [
            ("GET / HTTP/1.1\nHost: x\nConnection: close\n\n", false),
            ("GET / HTTP/1.1\nHost: x\nConnection: x, Close\n\n", false),
            ("GET / HTTP/1.0\n\n", false),
            ("GET / HTTP/1.0\nConnection: keep-alive\n\n", true),
            ("POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\n", false),
            ("POST / HTTP/1.1\nHost: x\nContent-Length: 0\n\n", true),
            ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n", false),
        ] {
            assert_eq!(request(head).keep_alive, keep_alive, "{head}");
        }
    }

    /// Would catch: a request that two servers on the way would understand differently.
    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.1\nHost: x\nHost: y\n\n",
            "GET * HTTP/1.1\nHost: x\n\n",
            "GET x HTTP/1.1\nHost: x\n\n",
            "GET ftp://x/ HTTP/1.1\nHost: x\n\n",
            "GET / HTTP/1.1\nHost : x\n\n",
            "GET / HTTP/1.1\nHost: x\n folded\n\n",
            "POST / HTTP/1.1\nHost: x\nContent-Length: 3\nContent-Length: 4\n\n",
            "POST / HTTP/1.1\nHost: x\nContent-Length: +3\n\n",
            "POST / HTTP/1.1\nHost: x\nContent-Length: 3\nTransfer-Encoding: chunked\n\n",
            "\u{1}\u{2}\n\n",
        ] {
            assert_eq!(bad(text), Status::BadRequest, "{text:?}");
        }
        assert_eq!(bad("GET / HTTP/2.0\n\n"), Status::VersionNotSupported);
        let long = format!("GET / HTTP/1.1\nHost: {}", "x".repeat(HEAD_MAX));
        assert_eq!(bad(&long), Status::HeadTooLarge);
        let many = format!("GET / HTTP/1.1\nHost: x\n{}\n", "A: b\n".repeat(HEADERS_MAX));
        assert_eq!(bad(&many), Status::HeadTooLarge);
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: x\r\n"), Parsed::Partial);
        assert_eq!(parse(b""), Parsed::Partial);
    }

    /// Would catch: a byte too many or too few.
    #[test]
    fn ranges_are_understood() {
        let one = |from, length| Selection::One(Part { from, length });
        for (text, expected) in [
            ("bytes=0-0", one(0, 1)),
            ("bytes=2-4", one(2, 3)),
            ("bytes=5-", one(5, 5)),
            ("bytes=-3", one(7, 3)),
            ("bytes=-30", one(0, 10)),
            ("bytes=8-20", one(8, 2)),
            ("bytes=0-99999999999999999999", one(0, 10)),
            ("bytes=10-", Selection::No(Status::RangeNotSatisfiable)),
            ("bytes=10-12,-0", Selection::No(Status::RangeNotSatisfiable)),
            ("bytes=99999999999999999999-", Selection::No(Status::RangeNotSatisfiable)),
            ("bytes=10-12, 3-3", one(3, 1)),
            ("bytes=4-2", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=1-+2", Selection::Whole),
            ("bytes=1", Selection::Whole),
            ("lines=1-2", Selection::Whole),
        ] {
            assert_eq!(ranges(text, 10), expected, "{text}");
        }
        let parts = vec![Part { from: 0, length: 2 }, Part { from: 9, length: 1 }];
        assert_eq!(ranges("bytes=0-1,-1", 10), Selection::Several(parts));
        let many = format!("bytes={}", "0-1,".repeat(RANGES_MAX + 1));
        assert_eq!(ranges(&many, 10), Selection::Whole);
        assert_eq!(ranges("bytes=0-", 0), Selection::No(Status::RangeNotSatisfiable));
    }

    /// Would catch: a condition that is turned round, or asked in the wrong order.
    #[test]
    fn conditions_are_understood() {
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let version = Version { length: 10, modified: date, tag: "\"t\"".to_owned() };
        let ask = |headers: &str| {
            request(&format!("GET / HTTP/1.1\nHost: x\n{headers}\n")).select(&version)
        };
        let at = |seconds: i64| {
            let shift = Duration::from_secs(seconds.unsigned_abs());
            let date = if seconds < 0 { date - shift } else { date + shift };
            httpdate::fmt_http_date(date)
        };
        let none = Selection::No(Status::NotModified);
        let failed = Selection::No(Status::PreconditionFailed);
        assert_eq!(ask(""), Selection::Whole);
        assert_eq!(ask("If-None-Match: \"x\", W/\"t\"\n"), none);
        assert_eq!(ask("If-None-Match: \"x\"\nIf-None-Match: \"t\"\n"), none);
        assert_eq!(ask("If-None-Match: *\n"), none);
        assert_eq!(ask("If-None-Match: \"x\"\n"), Selection::Whole);
        assert_eq!(ask(&format!("If-Modified-Since: {}\n", at(0))), none);
        assert_eq!(ask(&format!("If-Modified-Since: {}\n", at(-1))), Selection::Whole);
        assert_eq!(ask("If-Modified-Since: nonsense\n"), Selection::Whole);
        let both = format!("If-None-Match: \"x\"\nIf-Modified-Since: {}\n", at(0));
        assert_eq!(ask(&both), Selection::Whole);
        assert_eq!(ask("If-Match: \"x\"\n"), failed);
        assert_eq!(ask("If-Match: W/\"t\"\n"), failed);
        assert_eq!(ask("If-Match: \"t\"\n"), Selection::Whole);
        assert_eq!(ask(&format!("If-Unmodified-Since: {}\n", at(-1))), failed);
        assert_eq!(ask(&format!("If-Unmodified-Since: {}\n", at(0))), Selection::Whole);
        let one = Selection::One(Part { from: 1, length: 2 });
        assert_eq!(ask("Range: bytes=1-2\nIf-Range: \"t\"\n"), one);
        assert_eq!(ask(&format!("Range: bytes=1-2\nIf-Range: {}\n", at(0))), one);
        assert_eq!(ask("Range: bytes=1-2\nIf-Range: \"x\"\n"), Selection::Whole);
        assert_eq!(ask("Range: bytes=1-2\nIf-Range: W/\"t\"\n"), Selection::Whole);
    }
}
