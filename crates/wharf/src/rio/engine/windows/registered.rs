//! The Registered I/O of Windows: a completion queue of the system's, and what is outstanding on
//! it.
//!
//! The system knows a request by a number. What belongs to it, its slice above all, stays here
//! until its completion has been dequeued; if that never comes, for ever.

use std::io;

use slab::Slab;

use super::super::{Direction, Request, Route};
use crate::sys::{
    BorrowedSocket, CompletionPort,
    rio::{ADDRESS, Buffer, DEFER, DONT_NOTIFY, Functions, Outcome, Queue, RequestQueue, WAIT_ALL},
};

/// The key of packets that say that there is a completion.
pub(super) const KEY: usize = 1;

/// How many completions are taken at once.
const BATCH: usize = 64;

/// See the module's page.
pub(super) struct Registered {
    functions: &'static Functions,
    /// From the first socket on that was made for it.
    queue: Option<Queue>,
    /// How many completions it has room for: as many as its request queues have requests.
    size: u32,
    notifies: bool,
    pending: Slab<Pending>,
}

/// A request that the system has.
pub(super) struct Pending {
    pub(super) index: u16,
    pub(super) direction: Direction,
    pub(super) request: Request,
    /// Of a send: where it goes, and how much of it has gone.
    pub(super) route: Route,
    pub(super) sent: usize,
    /// Sends of no bytes, which a stream does not know: they complete after this one.
    pub(super) followers: Vec<Request>,
}

/// What a socket has of it.
pub(super) struct Lines {
    queue: RequestQueue,
    /// How many receives and how many sends there may be, and are.
    most: [u32; 2],
    now: [u32; 2],
    /// The newest send, while there is one.
    newest: usize,
    /// There are receives that have not begun.
    pub(super) idle: bool,
}

/// What became of a request that is over.
pub(super) struct Done {
    pub(super) pending: Pending,
    pub(super) status: i32,
    pub(super) bytes: usize,
}

impl Registered {
    pub(super) fn new(functions: &'static Functions, notifies: bool) -> Self {
        Self { functions, queue: None, size: 0, notifies, pending: Slab::new() }
    }

    /// Makes room for so many more completions.
    fn reserve(&mut self, port: &CompletionPort, more: u32) -> io::Result<&Queue> {
        let size = self.size.checked_add(more).ok_or(io::ErrorKind::OutOfMemory)?;
        let queue = match self.queue.take() {
            Some(queue) => {
                let resized = queue.resize(size);
                let queue = self.queue.insert(queue);
                resized?;
                queue
            }
            None => {
                let notify = self.notifies.then_some((port, KEY));
                self.queue.insert(Queue::new(self.functions, size, notify)?)
            }
        };
        self.size = size;
        Ok(queue)
    }

    /// Gives up room for so many.
    fn release(&mut self, less: u32) {
        let size = self.size - less;
        // Should that fail, there is more room than is needed.
        if let Some(queue) = &self.queue
            && size > 0
            && queue.resize(size).is_ok()
        {
            self.size = size;
        }
    }

    /// Makes a request queue for a socket.
    pub(super) fn open(
        &mut self,
        port: &CompletionPort,
        socket: BorrowedSocket<'_>,
        [receives, sends]: [usize; 2],
    ) -> io::Result<Lines> {
        let most = [receives, sends].map(|it| u32::try_from(it.max(1)).unwrap_or(u32::MAX));
        let room = most[0].checked_add(most[1]).ok_or(io::ErrorKind::OutOfMemory)?;
        let opened = self.reserve(port, room)?.open(socket, most);
        let queue = opened.inspect_err(|_| self.release(room))?;
        Ok(Lines { queue, most, now: [0; 2], newest: 0, idle: false })
    }

    /// A socket is over, and its request queue with it.
    pub(super) fn closed(&mut self, lines: &Lines) {
        self.release(lines.most[0] + lines.most[1]);
    }

    /// Makes sure that there is room for one more request of a direction. (How many there may be is
    /// checked above the engine; here only the system's queues grow with that.)
    fn grow(&mut self, port: &CompletionPort, lines: &mut Lines, at: usize) -> io::Result<()> {
        if lines.now[at] < lines.most[at] {
            return Ok(());
        }
        let more = lines.most[at];
        self.reserve(port, more)?;
        let mut most = lines.most;
        most[at] += more;
        // SAFETY: the socket is open, as we have its lines, and whoever calls has the lock.
        let resized = unsafe { self.functions.resize(lines.queue, most) };
        resized.inspect_err(|_| self.release(more))?;
        lines.most = most;
        Ok(())
    }

    /// Starts a receive. It begins with the next [`Self::commit`]. If it is refused, it comes back.
    pub(super) fn receive(
        &mut self,
        port: &CompletionPort,
        lines: &mut Lines,
        pending: Pending,
        addresses: bool,
    ) -> Result<(), (Pending, io::Error)> {
        let Some(data) = pending.request.slice.registered() else {
            return Err((pending, io::ErrorKind::OutOfMemory.into()));
        };
        if let Err(error) = self.grow(port, lines, 0) {
            return Err((pending, error));
        }
        let flags = pending.request.flags;
        let flags = DEFER
            | if flags.is_quiet() { DONT_NOTIFY } else { 0 }
            | if flags.is_whole() { WAIT_ALL } else { 0 };
        let from = addresses.then(|| Pending::address(data));
        let context = self.pending.insert(pending);
        // SAFETY: the socket is open, and whoever calls has the lock. The slice, headroom and all,
        // is with the request, which is out of reach until its completion.
        let started = unsafe {
            self.functions.receive(lines.queue, &data, from.as_ref(), flags, context)
        };
        if let Err(error) = started {
            return Err((self.pending.remove(context), error));
        }
        lines.now[0] += 1;
        lines.idle = true;
        Ok(())
    }

    /// Starts a send of so many bytes, from where it has come to. If it is refused, it comes back.
    pub(super) fn send(
        &mut self,
        port: &CompletionPort,
        lines: &mut Lines,
        mut pending: Pending,
        bytes: usize,
        deferred: bool,
    ) -> Result<(), (Pending, io::Error)> {
        let Some(whole) = pending.request.slice.registered() else {
            return Err((pending, io::ErrorKind::OutOfMemory.into()));
        };
        if let Err(error) = self.grow(port, lines, 1) {
            return Err((pending, error));
        }
        let number = |it: usize| u32::try_from(it).unwrap_or(u32::MAX);
        let data = Buffer {
            Offset: whole.Offset + number(pending.sent),
            Length: number(bytes),
            ..whole
        };
        let to = pending.route.to.map(|to| {
            pending.request.slice.write_name(to);
            Pending::address(whole)
        });
        let data = (bytes > 0).then_some(data);
        let flags = if pending.request.flags.is_quiet() { DONT_NOTIFY } else { 0 };
        let flags = flags | if deferred { DEFER } else { 0 };
        let context = self.pending.insert(pending);
        // SAFETY: as in `receive`; no more is sent than the slice holds.
        let started = unsafe {
            let data = data.as_ref();
            self.functions.send(lines.queue, data, to.as_ref(), flags, context)
        };
        if let Err(error) = started {
            return Err((self.pending.remove(context), error));
        }
        lines.now[1] += 1;
        lines.newest = context;
        Ok(())
    }

    /// Lets a send of no bytes complete after those before it. If there are none, it comes back.
    pub(super) fn follow(&mut self, lines: &Lines, request: Request) -> Option<Request> {
        match self.pending.get_mut(lines.newest) {
            Some(newest) if lines.now[1] > 0 => {
                newest.followers.push(request);
                None
            }
            _ => Some(request),
        }
    }

    /// Lets receives begin that were started.
    pub(super) fn commit_receives(&mut self, lines: &mut Lines) -> io::Result<()> {
        if !lines.idle {
            return Ok(());
        }
        // SAFETY: the socket is open, as we have its lines, and whoever calls has the lock.
        unsafe { self.functions.commit_receives(lines.queue) }?;
        lines.idle = false;
        Ok(())
    }

    /// Lets sends begin that were deferred.
    pub(super) fn commit_sends(&mut self, lines: &Lines) -> io::Result<()> {
        // SAFETY: the socket is open, as we have its lines, and whoever calls has the lock.
        unsafe { self.functions.commit_sends(lines.queue) }
    }

    /// Takes completions. True: there may be more.
    pub(super) fn dequeue(&mut self, done: &mut Vec<Done>) -> io::Result<bool> {
        let Some(queue) = &self.queue else { return Ok(false) };
        let mut outcomes = [Outcome::default(); BATCH];
        let count = queue.dequeue(&mut outcomes)?;
        for outcome in &outcomes[..count] {
            let context = usize::try_from(outcome.RequestContext).unwrap_or(usize::MAX);
            if let Some(pending) = self.pending.try_remove(context) {
                let bytes = usize::try_from(outcome.BytesTransferred).unwrap_or(0);
                done.push(Done { pending, status: outcome.Status, bytes });
            }
        }
        Ok(count == BATCH)
    }

    /// Asks for a packet when there is a completion that notifies.
    pub(super) fn notify(&self) -> io::Result<()> {
        self.queue.as_ref().map_or(Ok(()), Queue::notify)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // What the system has not given back it may still write to.
        if !self.pending.is_empty() {
            std::mem::forget(std::mem::take(&mut self.pending));
        }
    }
}

impl Lines {
    /// A request is over.
    pub(super) fn over(&mut self, direction: Direction) {
        self.now[usize::from(direction == Direction::Send)] -= 1;
    }
}

impl Pending {
    /// Where the address lies that belongs to some bytes: at the start of their headroom.
    fn address(data: Buffer) -> Buffer {
        let room = u32::try_from(crate::rio::region::HEADROOM).unwrap_or(0);
        Buffer { Offset: data.Offset - room, Length: ADDRESS, ..data }
    }
}
