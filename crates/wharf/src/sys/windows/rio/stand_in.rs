//! A stand-in for the functions of Registered I/O, as no Wine has them: what the engine makes of
//! them is tested with it, not what they do on Windows.
//!
//! It keeps to what the documentation says of them, and panics where that says that something is
//! not allowed. What is asked of it is done by plain calls that do not wait, whenever completions
//! are dequeued, and by a thread while a notification is asked for.

use std::{
    collections::VecDeque,
    ffi::c_void,
    os::windows::io::{AsRawSocket, BorrowedSocket},
    ptr,
    sync::{Mutex, OnceLock},
    thread,
    time::Duration,
};

use slab::Slab;
use socket2::{SockRef, Socket, Type};
use windows_sys::{
    Win32::{
        Networking::WinSock as ws,
        System::IO::{OVERLAPPED, PostQueuedCompletionStatus},
    },
    core::{BOOL, PCSTR},
};

use super::{ADDRESS, Functions, INVALID_BUFFER};
use crate::sync::lock;

pub(super) fn functions() -> Functions {
    Functions {
        close_queue,
        create_queue,
        create_request_queue,
        dequeue,
        deregister,
        notify,
        receive,
        receive_ex,
        register,
        resize_queue,
        resize_request_queue,
        send,
        send_ex,
    }
}

#[derive(Default)]
struct World {
    queues: Slab<Queue>,
    lines: Slab<Lines>,
    buffers: Slab<(usize, u32)>,
}

struct Queue {
    size: u32,
    results: VecDeque<(ws::RIORESULT, Owner, bool)>,
    armed: bool,
    /// Of a port: its handle, the key, the overlapped structure.
    port: Option<[usize; 3]>,
}

/// A request queue, and whether it is for sends.
type Owner = (usize, usize);

struct Lines {
    queue: usize,
    socket: usize,
    /// None: it has been closed.
    twin: Option<Socket>,
    stream: bool,
    most: [u32; 2],
    /// What counts against that.
    now: [u32; 2],
    requests: [VecDeque<Request>; 2],
    /// How many of them may begin.
    begun: [usize; 2],
}

struct Request {
    buffer: isize,
    start: usize,
    length: usize,
    name: Option<usize>,
    flags: u32,
    context: u64,
    done: usize,
}

fn world() -> &'static Mutex<World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    WORLD.get_or_init(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_millis(1));
                let mut world = lock(world());
                let queues: Vec<_> = world.queues.iter().map(|(queue, _)| queue).collect();
                for queue in queues {
                    world.tell(queue);
                }
            }
        });
        Mutex::default()
    })
}

fn fails<T>(code: i32, value: T) -> T {
    // SAFETY: takes a number.
    unsafe { ws::WSASetLastError(code) };
    value
}

impl World {
    fn reserved(&self, queue: usize) -> u32 {
        let lines = self.lines.iter().filter(|(_, lines)| lines.queue == queue);
        lines.map(|(_, lines)| lines.most[0] + lines.most[1]).sum()
    }

    /// Does what can be done for a queue.
    fn work(&mut self, queue: usize) {
        let of_queue = self.lines.iter_mut().filter(|(_, lines)| lines.queue == queue);
        let results = &mut self.queues[queue].results;
        for (number, lines) in of_queue {
            if lines.is_closed() {
                lines.twin = None;
                for way in [0, 1] {
                    for request in lines.requests[way].drain(..) {
                        let aborted = request.result(ws::WSA_OPERATION_ABORTED);
                        results.push_back((aborted, (number, way), request.is_loud()));
                    }
                }
            }
            let Some(twin) = &lines.twin else { continue };
            for way in [0, 1] {
                while lines.begun[way] > 0
                    && let Some(first) = lines.requests[way].front_mut()
                    && let Some(status) = first.attempt(twin, lines.stream, way == 1)
                {
                    let result = (first.result(status), (number, way), first.is_loud());
                    results.push_back(result);
                    lines.requests[way].pop_front();
                    lines.begun[way] -= 1;
                    if lines.stream && status != 0 {
                        // All that are under way fail with it, which is told once.
                        for request in lines.requests[way].drain(..lines.begun[way]) {
                            let failed = request.result(status);
                            results.push_back((failed, (number, way), request.is_loud()));
                        }
                        lines.begun[way] = 0;
                    }
                }
            }
        }
        let queue = &self.queues[queue];
        assert!(queue.results.len() <= queue.size as usize, "the completion queue overflows");
        self.lines.retain(|_, lines| lines.twin.is_some() || lines.now != [0; 2]);
    }

    fn tell(&mut self, queue: usize) {
        if !self.queues[queue].armed {
            return;
        }
        self.work(queue);
        let queue = &mut self.queues[queue];
        if queue.results.iter().any(|(_, _, loud)| *loud)
            && let Some([port, key, overlapped]) = queue.port
        {
            queue.armed = false;
            let port = ptr::with_exposed_provenance_mut(port);
            let overlapped = ptr::with_exposed_provenance::<OVERLAPPED>(overlapped);
            // SAFETY: a handle is a number to the kernel, and the pointer is only handed on.
            unsafe { PostQueuedCompletionStatus(port, 0, key, overlapped.cast_mut()) };
        }
    }

    fn start(&mut self, id: ws::RIO_RQ, way: usize, request: Request) -> BOOL {
        let lines = &mut self.lines[id as usize - 1];
        if lines.now[way] >= lines.most[way] {
            return fails(ws::WSAENOBUFS, 0);
        }
        lines.now[way] += 1;
        let deferred = request.flags & ws::RIO_MSG_DEFER != 0;
        lines.requests[way].push_back(request);
        if !deferred {
            self.begin(id, way);
        }
        1
    }

    fn begin(&mut self, id: ws::RIO_RQ, way: usize) {
        let lines = &mut self.lines[id as usize - 1];
        lines.begun[way] = lines.requests[way].len();
        let queue = lines.queue;
        self.work(queue);
    }
}

impl Lines {
    /// Whether the socket's number is nobody's any more, or another one's.
    fn is_closed(&self) -> bool {
        let Some(twin) = &self.twin else { return false };
        // SAFETY: only asked for its addresses; a number that is no socket's is refused.
        let socket = unsafe { BorrowedSocket::borrow_raw(self.socket as _) };
        let now = SockRef::from(&socket);
        let both = |socket: &Socket| {
            (socket.local_addr().ok(), socket.peer_addr().ok().map(|it| it.as_socket()))
        };
        both(&now) != both(twin)
    }
}

impl Request {
    fn of(data: *const ws::RIO_BUF, count: u32, name: *const ws::RIO_BUF, flags: u32) -> Self {
        let world = lock(world());
        let place = |part: &ws::RIO_BUF| {
            let (start, length) = world.buffers[part.BufferId as usize - 1];
            assert!(part.Offset + part.Length <= length, "outside of the buffer");
            start + part.Offset as usize
        };
        let (buffer, start, length, name_at) = (0, 0, 0, None);
        let mut this = Self { buffer, start, length, name: name_at, flags, context: 0, done: 0 };
        // SAFETY: null, or what the caller describes.
        let (data, name) = unsafe { (data.as_ref(), name.as_ref()) };
        assert_eq!(data.is_some(), count == 1);
        if let Some(data) = data {
            assert!(data.Length > 0);
            (this.buffer, this.length) = (data.BufferId, data.Length as usize);
            this.start = place(data);
        }
        if let Some(name) = name {
            assert!(name.Length >= ADDRESS);
            this.buffer = name.BufferId;
            this.name = Some(place(name));
        }
        this
    }

    fn with(self, context: *const c_void) -> Self {
        Self { context: context.addr() as u64, ..self }
    }

    fn is_loud(&self) -> bool {
        self.flags & ws::RIO_MSG_DONT_NOTIFY == 0
    }

    fn result(&self, status: i32) -> ws::RIORESULT {
        ws::RIORESULT {
            Status: status,
            BytesTransferred: self.done as u32,
            SocketContext: 0,
            RequestContext: self.context,
        }
    }

    /// Tries to do it. None: it is not over.
    fn attempt(&mut self, twin: &Socket, stream: bool, sends: bool) -> Option<i32> {
        let socket = twin.as_raw_socket() as ws::SOCKET;
        loop {
            let start = ptr::with_exposed_provenance_mut::<u8>(self.start + self.done);
            let left = (self.length - self.done) as i32;
            let name = self.name.map_or(ptr::null_mut(), |name| {
                ptr::with_exposed_provenance_mut::<ws::SOCKADDR>(name)
            });
            let mut room = ADDRESS as i32;
            // SAFETY: the memory is registered, and stays as long as a request has it.
            let moved = unsafe {
                match (sends, name.is_null()) {
                    (true, true) => ws::send(socket, start, left, 0),
                    (true, false) => {
                        let four = (*name).sa_family == ws::AF_INET;
                        let length = if four { 16 } else { 28 };
                        ws::sendto(socket, start, left, 0, name, length)
                    }
                    (false, true) => ws::recv(socket, start, left, 0),
                    (false, false) => ws::recvfrom(socket, start, left, 0, name, &raw mut room),
                }
            };
            if moved < 0 {
                // SAFETY: takes nothing.
                return match unsafe { ws::WSAGetLastError() } {
                    ws::WSAEWOULDBLOCK => None,
                    error => {
                        if error == ws::WSAEMSGSIZE && !sends {
                            self.done = self.length;
                        }
                        Some(error)
                    }
                };
            }
            self.done += moved as usize;
            let whole = stream && (sends || self.flags & ws::RIO_MSG_WAITALL != 0);
            if !whole || moved == 0 || self.done == self.length {
                return Some(0);
            }
        }
    }
}

// ---- The functions ------------------------------------------------------------------------------

unsafe extern "system" fn register(start: PCSTR, length: u32) -> ws::RIO_BUFFERID {
    if length == 0 {
        return fails(ws::WSAEFAULT, INVALID_BUFFER);
    }
    lock(world()).buffers.insert((start.expose_provenance(), length)) as isize + 1
}

unsafe extern "system" fn deregister(id: ws::RIO_BUFFERID) {
    let mut world = lock(world());
    let mut requests = world.lines.iter().flat_map(|(_, lines)| lines.requests.iter().flatten());
    assert!(requests.all(|it| it.buffer != id), "deregistered under a request");
    world.buffers.remove(id as usize - 1);
}

unsafe extern "system" fn create_queue(
    size: u32,
    how: *const ws::RIO_NOTIFICATION_COMPLETION,
) -> ws::RIO_CQ {
    // SAFETY: null, or what the caller describes.
    let port = unsafe { how.as_ref() }.map(|how| {
        assert_eq!(how.Type, ws::RIO_IOCP_COMPLETION);
        // SAFETY: the type says that it is this one.
        let port = unsafe { how.Anonymous.Iocp };
        assert!(!port.Overlapped.is_null());
        let overlapped = port.Overlapped.expose_provenance();
        [port.IocpHandle.expose_provenance(), port.CompletionKey.addr(), overlapped]
    });
    if size == 0 || size > ws::RIO_MAX_CQ_SIZE {
        return fails(ws::WSAEINVAL, 0);
    }
    let queue = Queue { size, results: VecDeque::new(), armed: false, port };
    lock(world()).queues.insert(queue) as isize + 1
}

unsafe extern "system" fn resize_queue(id: ws::RIO_CQ, size: u32) -> BOOL {
    let mut world = lock(world());
    let queue = id as usize - 1;
    if size == 0 {
        return fails(ws::WSAEINVAL, 0);
    }
    if size < world.reserved(queue) {
        return fails(ws::WSAETOOMANYREFS, 0);
    }
    world.queues[queue].size = size;
    1
}

unsafe extern "system" fn close_queue(id: ws::RIO_CQ) {
    let mut world = lock(world());
    let queue = id as usize - 1;
    world.queues.remove(queue);
    let mut closed = world.lines.iter().filter(|(_, lines)| lines.queue == queue);
    assert!(closed.all(|(_, lines)| lines.now == [0; 2]), "what completes now is dropped");
    world.lines.retain(|_, lines| lines.queue != queue);
}

unsafe extern "system" fn create_request_queue(
    socket: ws::SOCKET,
    receives: u32,
    receive_buffers: u32,
    sends: u32,
    send_buffers: u32,
    receive_queue: ws::RIO_CQ,
    send_queue: ws::RIO_CQ,
    _context: *const c_void,
) -> ws::RIO_RQ {
    assert_eq!((receive_buffers, send_buffers, receive_queue), (1, 1, send_queue));
    let mut world = lock(world());
    let queue = receive_queue as usize - 1;
    if receives + sends == 0 || world.reserved(queue) + receives + sends > world.queues[queue].size
    {
        return fails(ws::WSAENOBUFS, 0);
    }
    // SAFETY: the caller's socket.
    let twin = SockRef::from(&unsafe { BorrowedSocket::borrow_raw(socket as _) }).try_clone();
    let Ok(twin) = twin else { return fails(ws::WSAEINVAL, 0) };
    twin.set_nonblocking(true).unwrap();
    let lines = Lines {
        queue,
        socket,
        stream: twin.r#type().unwrap() == Type::STREAM,
        twin: Some(twin),
        most: [receives, sends],
        now: [0; 2],
        requests: Default::default(),
        begun: [0; 2],
    };
    world.lines.insert(lines) as isize + 1
}

unsafe extern "system" fn resize_request_queue(
    id: ws::RIO_RQ,
    receives: u32,
    sends: u32,
) -> BOOL {
    let mut world = lock(world());
    let lines = &world.lines[id as usize - 1];
    let (queue, most, now) = (lines.queue, lines.most, lines.now);
    if receives < now[0] || sends < now[1] {
        return fails(ws::WSAETOOMANYREFS, 0);
    }
    let others = world.reserved(queue) - most[0] - most[1];
    if others + receives + sends > world.queues[queue].size {
        return fails(ws::WSAENOBUFS, 0);
    }
    world.lines[id as usize - 1].most = [receives, sends];
    1
}

unsafe extern "system" fn receive(
    id: ws::RIO_RQ,
    data: *const ws::RIO_BUF,
    count: u32,
    flags: u32,
    context: *const c_void,
) -> BOOL {
    // SAFETY: as the caller's.
    unsafe { start(id, 0, data, count, ptr::null(), flags, context) }
}

unsafe extern "system" fn receive_ex(
    id: ws::RIO_RQ,
    data: *const ws::RIO_BUF,
    count: u32,
    local: *const ws::RIO_BUF,
    remote: *const ws::RIO_BUF,
    control: *const ws::RIO_BUF,
    told: *const ws::RIO_BUF,
    flags: u32,
    context: *const c_void,
) -> BOOL {
    assert!(local.is_null() && control.is_null() && told.is_null());
    // SAFETY: as the caller's.
    unsafe { start(id, 0, data, count, remote, flags, context) }
}

unsafe extern "system" fn send(
    id: ws::RIO_RQ,
    data: *const ws::RIO_BUF,
    count: u32,
    flags: u32,
    context: *const c_void,
) -> BOOL {
    // SAFETY: as the caller's.
    unsafe { start(id, 1, data, count, ptr::null(), flags, context) }
}

unsafe extern "system" fn send_ex(
    id: ws::RIO_RQ,
    data: *const ws::RIO_BUF,
    count: u32,
    local: *const ws::RIO_BUF,
    remote: *const ws::RIO_BUF,
    control: *const ws::RIO_BUF,
    told: *const ws::RIO_BUF,
    flags: u32,
    context: *const c_void,
) -> BOOL {
    assert!(local.is_null() && control.is_null() && told.is_null());
    // SAFETY: as the caller's.
    unsafe { start(id, 1, data, count, remote, flags, context) }
}

unsafe fn start(
    id: ws::RIO_RQ,
    way: usize,
    data: *const ws::RIO_BUF,
    count: u32,
    name: *const ws::RIO_BUF,
    flags: u32,
    context: *const c_void,
) -> BOOL {
    if flags & ws::RIO_MSG_COMMIT_ONLY != 0 {
        assert!(flags == ws::RIO_MSG_COMMIT_ONLY && data.is_null() && context.is_null());
        let mut world = lock(world());
        world.begin(id, way);
        return 1;
    }
    let request = Request::of(data, count, name, flags).with(context);
    let mut world = lock(world());
    assert!(!world.lines[id as usize - 1].is_closed(), "the socket is closed");
    assert!(!world.lines[id as usize - 1].stream || request.length > 0);
    world.start(id, way, request)
}

unsafe extern "system" fn notify(id: ws::RIO_CQ) -> i32 {
    let mut world = lock(world());
    let queue = id as usize - 1;
    if std::mem::replace(&mut world.queues[queue].armed, true) {
        return ws::WSAEALREADY;
    }
    world.tell(queue);
    0
}

unsafe extern "system" fn dequeue(id: ws::RIO_CQ, results: *mut ws::RIORESULT, most: u32) -> u32 {
    let mut world = lock(world());
    let queue = id as usize - 1;
    world.work(queue);
    let mut count = 0;
    while count < most
        && let Some((result, (lines, way), _)) = world.queues[queue].results.pop_front()
    {
        world.lines[lines].now[way] -= 1;
        // SAFETY: there is room for so many.
        unsafe { results.add(count as usize).write(result) };
        count += 1;
    }
    count
}
