//! A socket's requests, and the calls that do them.

use std::{
    collections::VecDeque,
    io,
    os::windows::io::{AsSocket, BorrowedSocket},
    ptr,
};

use windows_sys::Win32::{
    Foundation::{ERROR_MORE_DATA, NTSTATUS, RtlNtStatusToDosError},
    Networking::WinSock::{self as ws, WSABUF},
};

use super::{
    super::{Direction, Head, Request, Route, Traits},
    call::Call,
    registered::{Done, Lines, Pending},
    state::Desk,
};
use crate::{
    rio::completion::Completion,
    sys::{
        CANCELLED, DatagramHeader, FAILED, OwnedSocket, cuts_datagrams, socket,
        udp,
    },
    udp::Envelope,
};

/// How many errors that earlier datagrams have left behind are passed over in one go.
const ERRORS: usize = 16;
/// How many slices of a stream one call gets at most, and how many bytes.
const PARTS: usize = 16;
const BYTES: usize = 1 << 30;
/// How many calls are kept for the next ones.
const SPARE: usize = 1024;

pub(super) struct Socket {
    /// None: it is closed, and its calls have not all come back.
    pub(super) socket: Option<OwnedSocket>,
    index: u16,
    stream: bool,
    v6: bool,
    head: Head,
    /// Of a stream. Those of datagrams are with their calls.
    receives: VecDeque<Request>,
    /// How much of the first receive is filled.
    filled: usize,
    reading: bool,
    /// Those of a stream, and of datagrams those that are deferred.
    sends: VecDeque<(Request, Route)>,
    /// How many of them may begin: all before a commit.
    begun: usize,
    /// How much of the first send is sent.
    sent: usize,
    writing: bool,
    /// How many calls the kernel has.
    pub(super) calls: usize,
    closing: bool,
    /// What it has of the system's own Registered I/O: then that does all of its requests, and
    /// none of the above is used but `calls`.
    lines: Option<Lines>,
}

/// What became of a call at once.
type Begun = Result<(), (Box<Call>, i32)>;

impl Socket {
    /// Takes a socket in: its packets come to the desk's port.
    pub(super) fn new(
        desk: &mut Desk,
        index: u16,
        owned: OwnedSocket,
        traits: Traits,
    ) -> Result<Self, (io::Error, OwnedSocket)> {
        // The system's own tells no control messages.
        let plain = !(traits.coalesce || traits.local_addresses);
        let lines = match desk.registered.as_mut().filter(|_| plain) {
            Some(registered) => {
                let requests = [traits.receives, traits.sends];
                registered.open(&desk.port, owned.as_socket(), requests).inspect_err(|error| {
                    log::debug!("a socket that was made for overlapped calls only: {error}");
                })
            }
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        let lines = lines.ok();
        if lines.is_none()
            && let Err(error) = desk.port.associate(socket::raw(owned.as_socket()), 0)
        {
            return Err((error, owned));
        }
        if !traits.stream
            && let Err(error) = socket::pass_over_errors(owned.as_socket())
        {
            log::debug!("a socket is used as it is: {error}");
        }
        Ok(Self {
            socket: Some(owned),
            index,
            stream: traits.stream,
            v6: traits.v6,
            head: Head::new(&traits),
            receives: VecDeque::new(),
            filled: 0,
            reading: false,
            sends: VecDeque::new(),
            begun: 0,
            sent: 0,
            writing: false,
            calls: 0,
            closing: false,
            lines,
        })
    }

    /// Whether it is closed and the kernel has let go of it.
    pub(super) fn is_over(&self) -> bool {
        self.closing && self.calls == 0
    }

    /// Gives a call to the kernel. It comes back with its packet, or at once if it is refused.
    ///
    /// # Safety
    ///
    /// What the call is given beside its own parts (slices of a stream) stays as it is until then.
    unsafe fn start(
        &mut self,
        mut call: Box<Call>,
        make: impl FnOnce(BorrowedSocket<'_>, *mut Call) -> io::Result<()>,
    ) -> Begun {
        let Some(socket) = &self.socket else { return Err((call, CANCELLED)) };
        call.renew();
        let call = Box::into_raw(call);
        match make(socket.as_socket(), call) {
            Ok(()) => {
                self.calls += 1;
                Ok(())
            }
            Err(error) => {
                // SAFETY: a call that is refused has no packet: the kernel does not have the box.
                let call = unsafe { Box::from_raw(call) };
                Err((call, error.raw_os_error().unwrap_or(FAILED)))
            }
        }
    }

    /// A call is over.
    pub(super) fn over(
        &mut self,
        call: Box<Call>,
        status: NTSTATUS,
        bytes: usize,
        desk: &mut Desk,
    ) {
        self.calls -= 1;
        let code = match &self.socket {
            _ if status >= 0 => 0,
            // SAFETY: the call is over, and was made on this socket.
            Some(socket) => unsafe {
                socket::error_of(socket.as_socket(), call.overlapped(), status)
            },
            None => CANCELLED,
        };
        match (self.stream, call.direction) {
            (false, Direction::Receive) => self.datagram_came(call, code, bytes, desk),
            (false, Direction::Send) => self.datagram_went(call, code, bytes, desk),
            (true, Direction::Receive) => {
                self.reading = false;
                put_back(desk, call);
                self.bytes_came(code, bytes, desk);
            }
            (true, Direction::Send) => {
                self.writing = false;
                put_back(desk, call);
                self.bytes_went(code, bytes, desk);
            }
        }
    }

    fn done(
        &self,
        desk: &mut Desk,
        direction: Direction,
        request: Request,
        code: i32,
        bytes: usize,
    ) {
        desk.done.push_back(Completion::of(self.index, direction, request, -code, bytes));
    }

    // ---- Receiving --------------------------------------------------------------------------

    pub(super) fn receive(&mut self, request: Request, desk: &mut Desk) {
        if self.lines.is_some() {
            let pending = self.pending(Direction::Receive, request, Route::default());
            self.receive_registered(pending, desk);
        } else if self.stream {
            self.receives.push_back(request);
            self.read(desk);
        } else {
            let request = Some(request);
            let call = Call::new(&mut desk.spare, self.index, Direction::Receive, request);
            self.receive_datagram(call, desk);
        }
    }

    fn receive_datagram(&mut self, mut call: Box<Call>, desk: &mut Desk) {
        for _ in 0..ERRORS {
            let plain = self.head == Head::NONE;
            // SAFETY: all that the call is given is a part of it, the slice included, which nobody
            // else can name while the kernel has the call.
            let begun = unsafe {
                self.start(call, |socket, call| {
                    let Some(request) = &(*call).request else { return Err(nothing()) };
                    let (start, room) = (request.slice.start(), request.slice.capacity());
                    if plain {
                        let (room, flags) = (socket::slice(start, room), &raw mut (*call).flags);
                        socket::receive_datagram(socket, room, flags, call.cast())
                    } else {
                        let header = &raw mut (*call).header;
                        udp::receive(socket, header, start, room, call.cast())
                    }
                })
            };
            let Err((back, code)) = begun else { return };
            call = back;
            match code {
                _ if self.closing => return self.datagram_failed(call, CANCELLED, desk),
                ws::WSAEMSGSIZE => {
                    let room = call.request.as_ref().map_or(0, |it| it.slice.capacity());
                    return self.datagram_arrived(call, room, true, desk);
                }
                code if udp::is_of_an_earlier_send(code) => {}
                code => return self.datagram_failed(call, code, desk),
            }
        }
        self.datagram_failed(call, ws::WSAECONNRESET, desk);
    }

    fn datagram_came(&mut self, call: Box<Call>, code: i32, bytes: usize, desk: &mut Desk) {
        match code {
            0 => self.datagram_arrived(call, bytes, false, desk),
            ws::WSAEMSGSIZE => self.datagram_arrived(call, bytes, true, desk),
            _ if self.closing => self.datagram_failed(call, CANCELLED, desk),
            // Nobody asked for that: a thread is gone, and took its calls with it.
            CANCELLED => self.receive_datagram(call, desk),
            code if udp::is_of_an_earlier_send(code) => self.receive_datagram(call, desk),
            code => self.datagram_failed(call, code, desk),
        }
    }

    fn datagram_arrived(
        &mut self,
        mut call: Box<Call>,
        bytes: usize,
        cut: bool,
        desk: &mut Desk,
    ) {
        let Some(mut request) = call.request.take() else { return put_back(desk, call) };
        let mut cut = cut;
        if self.head != Head::NONE {
            call.header.came(bytes, cut);
            cut = call.header.is_truncated();
        }
        // By how much it is too large is not told.
        let whole = bytes + usize::from(cut);
        request.slice.set_received(bytes);
        self.head.write(&mut request.slice, call.header.written(), whole);
        let mut done = Completion::of(self.index, Direction::Receive, request, 0, bytes);
        done.whole = u32::try_from(whole).unwrap_or(u32::MAX);
        done.head = self.head;
        desk.done.push_back(done);
        put_back(desk, call);
    }

    fn datagram_failed(&mut self, mut call: Box<Call>, code: i32, desk: &mut Desk) {
        if let Some(mut request) = call.request.take() {
            request.slice.set_received(0);
            self.done(desk, Direction::Receive, request, code, 0);
        }
        put_back(desk, call);
    }

    /// Has a stream's bytes come into its first receives.
    fn read(&mut self, desk: &mut Desk) {
        if self.reading || self.receives.is_empty() {
            return;
        }
        let rooms = self.receives.iter().map(|it| (it.slice.start(), it.slice.capacity()));
        let (parts, count) = parts(rooms, self.filled);
        let call = Call::new(&mut desk.spare, self.index, Direction::Receive, None);
        // SAFETY: the parts are what is left of slices of our first receives, which nobody else
        // looks at, and which stay where they are until this call is over: no receive is ended
        // while `reading` says so.
        let begun = unsafe {
            self.start(call, |socket, call| {
                let flags = &raw mut (*call).flags;
                socket::receive_vectored(socket, &parts[..count], flags, call.cast())
            })
        };
        match begun {
            Ok(()) => self.reading = true,
            Err((call, code)) => {
                put_back(desk, call);
                self.end_receives(code, desk);
            }
        }
    }

    fn bytes_came(&mut self, code: i32, mut bytes: usize, desk: &mut Desk) {
        // The end is for all of them and for those to come.
        let over = code == 0 && bytes == 0;
        while bytes > 0
            && let Some(first) = self.receives.front()
        {
            let part = bytes.min(first.slice.capacity() - self.filled);
            self.filled += part;
            bytes -= part;
            if first.flags.is_whole() && self.filled < first.slice.capacity() {
                break;
            }
            self.end_receive(0, desk);
        }
        match code {
            _ if self.closing => self.end_receives(CANCELLED, desk),
            0 if over => self.end_receives(0, desk),
            // Nobody asked for that: a thread is gone, and took its calls with it.
            0 | CANCELLED => self.read(desk),
            code => self.end_receives(code, desk),
        }
    }

    /// Ends the first receive, which has got so much as it is filled.
    fn end_receive(&mut self, code: i32, desk: &mut Desk) {
        let Some(mut request) = self.receives.pop_front() else { return };
        let filled = std::mem::take(&mut self.filled);
        request.slice.set_received(filled);
        self.done(desk, Direction::Receive, request, code, filled);
    }

    fn end_receives(&mut self, code: i32, desk: &mut Desk) {
        while !self.receives.is_empty() {
            self.end_receive(code, desk);
        }
    }

    // ---- Sending ----------------------------------------------------------------------------

    pub(super) fn send(
        &mut self,
        request: Request,
        route: Route,
        deferred: bool,
        desk: &mut Desk,
    ) {
        if self.lines.is_some() {
            let pending = self.pending(Direction::Send, request, route);
            return self.send_registered(pending, deferred, desk);
        }
        self.sends.push_back((request, route));
        if !deferred {
            self.begin_sends(desk);
        }
    }

    pub(super) fn commit(&mut self, desk: &mut Desk) -> io::Result<()> {
        match (&self.lines, &mut desk.registered) {
            (Some(lines), Some(registered)) => registered.commit_sends(lines)?,
            _ => self.begin_sends(desk),
        }
        Ok(())
    }

    fn begin_sends(&mut self, desk: &mut Desk) {
        self.begun = self.sends.len();
        if self.stream {
            return self.write(desk);
        }
        self.begun = 0;
        for _ in 0..self.sends.len() {
            let Some((request, Route { to, from: source, segment })) = self.sends.pop_front()
            else {
                return;
            };
            let mut call =
                Call::new(&mut desk.spare, self.index, Direction::Send, Some(request));
            let segment = segment.unwrap_or(0);
            let envelope = Envelope { to, source, segment, ..Envelope::default() };
            call.header.address_to(&envelope, self.v6, cuts_datagrams());
            self.send_datagram(call, desk);
        }
    }

    fn send_datagram(&mut self, mut call: Box<Call>, desk: &mut Desk) {
        loop {
            // SAFETY: all that the call is given is a part of it, the slice included, which nobody
            // else can name while the kernel has the call; no more is sent than the slice holds.
            let begun = unsafe {
                self.start(call, |socket, call| {
                    let Some(request) = &(*call).request else { return Err(nothing()) };
                    let left = request.slice.len() - (*call).sent;
                    let rest = request.slice.start().add((*call).sent);
                    udp::send(socket, &raw mut (*call).header, rest, left, call.cast())
                })
            };
            let Err((mut back, code)) = begun else { return };
            if !may_try_again(&mut back.header, code) {
                return self.end_datagram(back, code, desk);
            }
            call = back;
        }
    }

    fn datagram_went(&mut self, mut call: Box<Call>, code: i32, bytes: usize, desk: &mut Desk) {
        call.sent += bytes;
        let left = call.request.as_ref().is_some_and(|it| call.sent < it.slice.len());
        match code {
            0 if left && !self.closing => self.send_datagram(call, desk),
            0 if !left => self.end_datagram(call, 0, desk),
            _ if self.closing => self.end_datagram(call, CANCELLED, desk),
            // Nobody asked for that: a thread is gone, and took its calls with it.
            CANCELLED => self.send_datagram(call, desk),
            code if may_try_again(&mut call.header, code) => self.send_datagram(call, desk),
            code => self.end_datagram(call, code, desk),
        }
    }

    fn end_datagram(&mut self, mut call: Box<Call>, code: i32, desk: &mut Desk) {
        if let Some(request) = call.request.take() {
            self.done(desk, Direction::Send, request, code, call.sent);
        }
        put_back(desk, call);
    }

    /// Has a stream's first sends go out, those that may begin.
    fn write(&mut self, desk: &mut Desk) {
        if self.writing || self.begun == 0 {
            return;
        }
        let rest = self.sends.iter().take(self.begun);
        let rest = rest.map(|(request, _)| (request.slice.start(), request.slice.len()));
        let (parts, count) = parts(rest, self.sent);
        let call = Call::new(&mut desk.spare, self.index, Direction::Send, None);
        // SAFETY: the parts are what is left of slices of our first sends, which stay where they
        // are until this call is over: no send is ended while `writing` says so.
        let begun = unsafe {
            self.start(call, |socket, call| socket::send(socket, &parts[..count], call.cast()))
        };
        match begun {
            Ok(()) => self.writing = true,
            Err((call, code)) => {
                put_back(desk, call);
                self.end_sends(code, desk);
            }
        }
    }

    fn bytes_went(&mut self, code: i32, mut bytes: usize, desk: &mut Desk) {
        while self.begun > 0
            && let Some((first, _)) = self.sends.front()
        {
            let rest = first.slice.len() - self.sent;
            if bytes < rest {
                self.sent += bytes;
                break;
            }
            // One of no bytes goes with those before it, if these have gone well.
            if bytes == 0 && code != 0 {
                break;
            }
            bytes -= rest;
            self.sent = first.slice.len();
            self.end_send(0, desk);
        }
        match code {
            _ if self.closing => self.end_sends(CANCELLED, desk),
            // Nobody asked for that: a thread is gone, and took its calls with it.
            0 | CANCELLED => self.write(desk),
            code => self.end_sends(code, desk),
        }
    }

    /// Ends the first send of a stream, of which so much is sent.
    fn end_send(&mut self, code: i32, desk: &mut Desk) {
        let Some((request, _)) = self.sends.pop_front() else { return };
        let sent = std::mem::take(&mut self.sent);
        self.begun = self.begun.saturating_sub(1);
        self.done(desk, Direction::Send, request, code, sent);
    }

    /// Ends those that have begun; at a close, all.
    fn end_sends(&mut self, code: i32, desk: &mut Desk) {
        while self.begun > 0 || (self.closing && !self.sends.is_empty()) {
            self.end_send(code, desk);
        }
    }

    // ---- By the system's own Registered I/O ------------------------------------------------

    fn pending(&self, direction: Direction, request: Request, route: Route) -> Pending {
        let (index, sent, followers) = (self.index, 0, Vec::new());
        Pending { index, direction, request, route, sent, followers }
    }

    fn receive_registered(&mut self, mut pending: Pending, desk: &mut Desk) {
        let addresses = self.head != Head::NONE;
        let mut code = CANCELLED;
        for _ in 0..ERRORS {
            let (Some(lines), Some(registered), false) =
                (&mut self.lines, &mut desk.registered, self.closing)
            else {
                break;
            };
            let idle = lines.idle;
            match registered.receive(&desk.port, lines, pending, addresses) {
                Ok(()) => {
                    self.calls += 1;
                    if !idle {
                        desk.idle.push(self.index);
                    }
                    return;
                }
                Err((back, error)) => {
                    pending = back;
                    code = error.raw_os_error().unwrap_or(ws::WSAENOBUFS);
                }
            }
            if self.stream || !udp::is_of_an_earlier_send(code) {
                break;
            }
        }
        self.end_registered(pending, code, 0, desk);
    }

    /// Lets receives begin that were started.
    pub(super) fn begin_receives(&mut self, desk: &mut Desk) {
        let (Some(lines), Some(registered), false) =
            (&mut self.lines, &mut desk.registered, self.closing)
        else {
            return;
        };
        // Should it fail, they begin with the next one.
        if let Err(error) = registered.commit_receives(lines) {
            log::warn!("receives could not be committed: {error}");
        }
    }

    fn send_registered(&mut self, pending: Pending, deferred: bool, desk: &mut Desk) {
        let (Some(lines), Some(registered), false) =
            (&mut self.lines, &mut desk.registered, self.closing)
        else {
            return self.end_registered(pending, CANCELLED, 0, desk);
        };
        if pending.route.from.is_some() {
            // It takes no such thing: a socket that tells local addresses does.
            return self.end_registered(pending, ws::WSAEOPNOTSUPP, 0, desk);
        }
        let left = pending.request.slice.len() - pending.sent;
        if self.stream && left == 0 {
            if let Some(request) = registered.follow(lines, pending.request) {
                self.done(desk, Direction::Send, request, 0, 0);
            }
            return;
        }
        let segment = pending.route.segment.map_or(left, usize::from);
        match registered.send(&desk.port, lines, pending, left.min(segment), deferred) {
            Ok(()) => self.calls += 1,
            Err((pending, error)) => {
                let code = error.raw_os_error().unwrap_or(ws::WSAENOBUFS);
                self.end_registered(pending, code, 0, desk);
            }
        }
    }

    /// A request is over, or a part of it.
    pub(super) fn over_registered(&mut self, done: Done, desk: &mut Desk) {
        let Done { mut pending, status, bytes } = done;
        self.calls -= 1;
        if let Some(lines) = &mut self.lines {
            lines.over(pending.direction);
        }
        let code = match code_of(status) {
            0 => 0,
            MORE_DATA | ws::WSAEMSGSIZE if pending.direction == Direction::Receive => {
                ws::WSAEMSGSIZE
            }
            _ if self.closing => CANCELLED,
            code => code,
        };
        match pending.direction {
            Direction::Receive
                if !(self.stream || self.closing)
                    && (code == CANCELLED || udp::is_of_an_earlier_send(code)) =>
            {
                self.receive_registered(pending, desk);
            }
            Direction::Receive => self.end_registered(pending, code, bytes, desk),
            Direction::Send => {
                pending.sent += bytes;
                let left = pending.sent < pending.request.slice.len();
                if code == 0 && left && !self.closing && !self.stream {
                    return self.send_registered(pending, false, desk);
                }
                let code = match code {
                    0 if left && self.closing => CANCELLED,
                    // The rest of a stream's could only follow what was sent meanwhile.
                    0 if left => FAILED,
                    code => code,
                };
                self.end_registered(pending, code, 0, desk);
            }
        }
    }

    /// Ends a request. `bytes` counts for receives.
    fn end_registered(&mut self, pending: Pending, code: i32, bytes: usize, desk: &mut Desk) {
        let Pending { direction, mut request, sent, followers, .. } = pending;
        if direction == Direction::Send {
            self.done(desk, direction, request, code, sent);
            for request in followers {
                self.done(desk, direction, request, code, 0);
            }
            return;
        }
        request.slice.set_received(bytes);
        let cut = code == ws::WSAEMSGSIZE && !self.stream;
        if self.stream || !(code == 0 || cut) {
            return self.done(desk, direction, request, code, bytes);
        }
        let whole = bytes + usize::from(cut);
        let name = request.slice.name();
        self.head.write(&mut request.slice, [&name, &[]], whole);
        let mut done = Completion::of(self.index, direction, request, 0, bytes);
        done.whole = u32::try_from(whole).unwrap_or(u32::MAX);
        done.head = self.head;
        desk.done.push_back(done);
    }

    // ---- Closing ----------------------------------------------------------------------------

    /// Gives everything up that has not been done.
    pub(super) fn close(&mut self, desk: &mut Desk) {
        if self.lines.is_some() {
            // So that the system has them all, and gives them all back.
            self.begin_receives(desk);
            if let Err(error) = self.commit(desk) {
                log::warn!("sends could not be committed: {error}");
            }
        }
        self.closing = true;
        if let Some(socket) = &self.socket
            && self.lines.is_none()
        {
            socket::cancel(socket.as_socket(), ptr::null());
        }
        // Its calls have been cancelled, or are now, and give their packets all the same.
        self.socket = None;
        if !self.reading {
            self.end_receives(CANCELLED, desk);
        }
        if !self.writing {
            self.end_sends(CANCELLED, desk);
        }
    }
}

impl Socket {
    /// It is over: what the desk has for it is no longer needed.
    pub(super) fn let_go(&self, desk: &mut Desk) {
        if let (Some(lines), Some(registered)) = (&self.lines, &mut desk.registered) {
            registered.closed(lines);
        }
    }
}

/// What the status of a completion of the system's own means: nobody says which codes it has.
fn code_of(status: i32) -> i32 {
    match status {
        // SAFETY: takes a number and gives one.
        ..0 => unsafe { RtlNtStatusToDosError(status) }.cast_signed(),
        code => code,
    }
}

/// How much of a datagram was too large is told to some by another code.
const MORE_DATA: i32 = ERROR_MORE_DATA.cast_signed();

/// The first slices of a stream, as much of them as one call gets, from within the first one on.
fn parts(
    slices: impl Iterator<Item = (*mut u8, usize)>,
    mut skipped: usize,
) -> ([WSABUF; PARTS], usize) {
    let mut parts = [WSABUF { len: 0, buf: ptr::null_mut() }; PARTS];
    let (mut count, mut bytes) = (0, 0);
    for (part, (start, length)) in parts.iter_mut().zip(slices) {
        let skip = std::mem::take(&mut skipped);
        *part = socket::slice(start.wrapping_add(skip), length - skip);
        count += 1;
        bytes += length;
        if bytes >= BYTES {
            break;
        }
    }
    (parts, count)
}

/// A call for datagrams that has none: there are no such.
fn nothing() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

/// Whether a send that has failed can be tried once more.
fn may_try_again(header: &mut DatagramHeader, code: i32) -> bool {
    match code {
        // What an earlier datagram has met on its way.
        code if udp::is_of_an_earlier_send(code) => header.may_try_again(),
        // It was to be cut by the system, and cannot be.
        ws::WSAEINVAL | ws::WSAEMSGSIZE | ws::WSAEOPNOTSUPP => header.give_up_offload(),
        _ => false,
    }
}

fn put_back(desk: &mut Desk, call: Box<Call>) {
    if desk.spare.len() < SPARE {
        desk.spare.push(call);
    }
}
