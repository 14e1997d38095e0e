//! The functions of Windows' Registered I/O, where the system has them.
//!
//! Nothing in here is synchronised: a completion queue, and the request queues whose completions it
//! holds, are used by one thread at a time.

#[cfg(test)]
mod stand_in;

use std::{
    io, mem,
    os::windows::io::{AsSocket, BorrowedSocket},
    ptr,
    sync::OnceLock,
};

use socket2::{Domain, Socket, Type};
use windows_sys::{
    Win32::{Foundation::HANDLE, Networking::WinSock as ws, System::IO::OVERLAPPED},
    core::GUID,
};

use super::{
    port::CompletionPort,
    socket::{Inner, last_error, raw},
};

pub(crate) use windows_sys::Win32::Networking::WinSock::{
    RIO_BUF as Buffer, RIO_MSG_DEFER as DEFER, RIO_MSG_DONT_NOTIFY as DONT_NOTIFY,
    RIO_MSG_WAITALL as WAIT_ALL, RIORESULT as Outcome,
};

/// What says that there is no such thing; of queues, that is 0.
const INVALID_BUFFER: ws::RIO_BUFFERID = 0xffff_ffff_u32 as ws::RIO_BUFFERID;

/// How many bytes an address takes (SOCKADDR_INET).
pub(crate) const ADDRESS: u32 = 28;

type F<T> = <T as Inner>::Function;

/// The functions, as the provider of sockets has given them.
#[derive(Clone, Copy)]
pub(crate) struct Functions {
    close_queue: F<ws::LPFN_RIOCLOSECOMPLETIONQUEUE>,
    create_queue: F<ws::LPFN_RIOCREATECOMPLETIONQUEUE>,
    create_request_queue: F<ws::LPFN_RIOCREATEREQUESTQUEUE>,
    dequeue: F<ws::LPFN_RIODEQUEUECOMPLETION>,
    deregister: F<ws::LPFN_RIODEREGISTERBUFFER>,
    notify: F<ws::LPFN_RIONOTIFY>,
    receive: F<ws::LPFN_RIORECEIVE>,
    receive_ex: F<ws::LPFN_RIORECEIVEEX>,
    register: F<ws::LPFN_RIOREGISTERBUFFER>,
    resize_queue: F<ws::LPFN_RIORESIZECOMPLETIONQUEUE>,
    resize_request_queue: F<ws::LPFN_RIORESIZEREQUESTQUEUE>,
    send: F<ws::LPFN_RIOSEND>,
    send_ex: F<ws::LPFN_RIOSENDEX>,
}

impl Functions {
    /// None: this system has none.
    pub(crate) fn get() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<Functions>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let functions = table().ok().and_then(|table| Self::of(&table));
            cfg_select! {
                test => { functions.or_else(|| Some(stand_in::functions())) }
                _ => { functions }
            }
        });
        found.as_ref()
    }

    fn of(table: &ws::RIO_EXTENSION_FUNCTION_TABLE) -> Option<Self> {
        Some(Self {
            close_queue: table.RIOCloseCompletionQueue?,
            create_queue: table.RIOCreateCompletionQueue?,
            create_request_queue: table.RIOCreateRequestQueue?,
            dequeue: table.RIODequeueCompletion?,
            deregister: table.RIODeregisterBuffer?,
            notify: table.RIONotify?,
            receive: table.RIOReceive?,
            receive_ex: table.RIOReceiveEx?,
            register: table.RIORegisterBuffer?,
            resize_queue: table.RIOResizeCompletionQueue?,
            resize_request_queue: table.RIOResizeRequestQueue?,
            send: table.RIOSend?,
            send_ex: table.RIOSendEx?,
        })
    }
}

fn table() -> io::Result<ws::RIO_EXTENSION_FUNCTION_TABLE> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let name = ws::WSAID_MULTIPLE_RIO;
    let mut table = ws::RIO_EXTENSION_FUNCTION_TABLE::default();
    table.cbSize = size_of_val(&table) as u32;
    let mut bytes = 0;
    // SAFETY: the name and the table live across the call.
    let result = unsafe {
        ws::WSAIoctl(
            raw(socket.as_socket()),
            ws::SIO_GET_MULTIPLE_EXTENSION_FUNCTION_POINTER,
            (&raw const name).cast(),
            size_of::<GUID>() as u32,
            (&raw mut table).cast(),
            table.cbSize,
            &raw mut bytes,
            ptr::null_mut(),
            None,
        )
    };
    if result == 0 { Ok(table) } else { Err(last_error()) }
}

fn succeeded(result: i32) -> io::Result<()> {
    if result != 0 { Ok(()) } else { Err(last_error()) }
}

// ---- Memory -----------------------------------------------------------------------------------

/// Memory that the system knows, piece by piece.
#[derive(Debug)]
pub(crate) struct Registration {
    pieces: Vec<ws::RIO_BUFFERID>,
    deregister: F<ws::LPFN_RIODEREGISTERBUFFER>,
}

impl Registration {
    /// Makes memory known.
    ///
    /// # Safety
    ///
    /// It is there, so many bytes from this address on, and stays for longer than this; and this
    /// for longer than any request with it.
    pub(crate) unsafe fn new(
        address: *mut u8,
        length: usize,
        piece: usize,
    ) -> io::Result<Self> {
        let functions = Functions::get().ok_or(io::ErrorKind::Unsupported)?;
        let mut made = Self { pieces: Vec::new(), deregister: functions.deregister };
        for offset in (0..length).step_by(piece) {
            let bytes = u32::try_from(piece.min(length - offset)).unwrap_or(u32::MAX);
            // SAFETY: the caller's promise.
            let id = unsafe { (functions.register)(address.add(offset), bytes) };
            if id == INVALID_BUFFER {
                return Err(last_error());
            }
            made.pieces.push(id);
        }
        Ok(made)
    }

    /// A piece's name.
    pub(crate) fn piece(&self, number: usize) -> Option<ws::RIO_BUFFERID> {
        self.pieces.get(number).copied()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for &id in &self.pieces {
            // SAFETY: registered once, deregistered once, and no request uses it: the promise of
            // who has made this.
            unsafe { (self.deregister)(id) };
        }
    }
}

// ---- Queues -----------------------------------------------------------------------------------

/// A completion queue.
pub(crate) struct Queue {
    id: ws::RIO_CQ,
    functions: &'static Functions,
}

/// A socket's request queue: it goes with its socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestQueue(ws::RIO_RQ);

/// What is wrong with a queue that is none any more.
fn corrupt() -> io::Error {
    io::Error::other("the system says that the completion queue is corrupt")
}

impl Queue {
    /// With room for so many completions. Where it is to notify, it posts packets with this key to
    /// a port, which outlives it.
    pub(crate) fn new(
        functions: &'static Functions,
        size: u32,
        notify: Option<(&CompletionPort, usize)>,
    ) -> io::Result<Self> {
        let how = notify.map(|(port, key)| {
            let mut how = ws::RIO_NOTIFICATION_COMPLETION {
                Type: ws::RIO_IOCP_COMPLETION,
                ..Default::default()
            };
            how.Anonymous.Iocp = ws::RIO_NOTIFICATION_COMPLETION_0_1 {
                IocpHandle: port.handle() as HANDLE,
                CompletionKey: ptr::without_provenance_mut(key),
                Overlapped: overlapped().cast(),
            };
            how
        });
        let how = how.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: what it is told lives across the call; the overlapped structure for ever.
        let id = unsafe { (functions.create_queue)(size, how) };
        if id == 0 { Err(last_error()) } else { Ok(Self { id, functions }) }
    }

    /// Changes how many completions there is room for.
    pub(crate) fn resize(&self, size: u32) -> io::Result<()> {
        // SAFETY: it is ours, and nobody else uses it now.
        succeeded(unsafe { (self.functions.resize_queue)(self.id, size) })
    }

    /// Makes a request queue for a socket, which must have been made for it.
    pub(crate) fn open(
        &self,
        socket: BorrowedSocket<'_>,
        [receives, sends]: [u32; 2],
    ) -> io::Result<RequestQueue> {
        // SAFETY: an open socket; the queue is ours, and takes what completes on it.
        let id = unsafe {
            let create = self.functions.create_request_queue;
            create(raw(socket), receives, 1, sends, 1, self.id, self.id, ptr::null())
        };
        if id == 0 { Err(last_error()) } else { Ok(RequestQueue(id)) }
    }

    /// Asks for a packet when there is a completion that notifies.
    pub(crate) fn notify(&self) -> io::Result<()> {
        // SAFETY: it is ours, and nobody else uses it now.
        match unsafe { (self.functions.notify)(self.id) } {
            // It has been asked for already.
            0 | ws::WSAEALREADY => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Takes completions. Returns how many.
    pub(crate) fn dequeue(&self, outcomes: &mut [Outcome]) -> io::Result<usize> {
        let most = u32::try_from(outcomes.len()).unwrap_or(u32::MAX);
        // SAFETY: it is ours, and nobody else uses it now; there is room for so many.
        match unsafe { (self.functions.dequeue)(self.id, outcomes.as_mut_ptr(), most) } {
            ws::RIO_CORRUPT_CQ => Err(corrupt()),
            count => Ok(usize::try_from(count).unwrap_or(0)),
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it is ours, and closed once. What completes from here on is dropped silently:
        // who has requests outstanding keeps their memory.
        unsafe { (self.functions.close_queue)(self.id) };
    }
}

impl Functions {
    /// Changes how many requests may be outstanding.
    ///
    /// # Safety
    ///
    /// The request queue's socket is open, and nobody else uses its queues now. (In all of these.)
    pub(crate) unsafe fn resize(
        &self,
        queue: RequestQueue,
        [receives, sends]: [u32; 2],
    ) -> io::Result<()> {
        // SAFETY: the caller's promise.
        succeeded(unsafe { (self.resize_request_queue)(queue.0, receives, sends) })
    }

    /// Starts a receive, which has a completion with this context if this succeeds.
    ///
    /// # Safety
    ///
    /// As for `resize`; and nobody touches the bytes, nor those for the address, until the
    /// completion is dequeued.
    pub(crate) unsafe fn receive(
        &self,
        queue: RequestQueue,
        data: &Buffer,
        from: Option<&Buffer>,
        flags: u32,
        context: usize,
    ) -> io::Result<()> {
        let context = ptr::without_provenance(context);
        // SAFETY: the caller's promise; what is described is copied.
        succeeded(unsafe {
            match from {
                None => (self.receive)(queue.0, data, 1, flags, context),
                Some(from) => {
                    let none = ptr::null();
                    (self.receive_ex)(queue.0, data, 1, none, from, none, none, flags, context)
                }
            }
        })
    }

    /// Starts a send, which has a completion with this context if this succeeds. A datagram may
    /// have no bytes.
    ///
    /// # Safety
    ///
    /// As for `receive`.
    pub(crate) unsafe fn send(
        &self,
        queue: RequestQueue,
        data: Option<&Buffer>,
        to: Option<&Buffer>,
        flags: u32,
        context: usize,
    ) -> io::Result<()> {
        let context = ptr::without_provenance(context);
        let (data, count) = (data.map_or(ptr::null(), ptr::from_ref), u32::from(data.is_some()));
        // SAFETY: the caller's promise; what is described is copied.
        succeeded(unsafe {
            match to {
                None => (self.send)(queue.0, data, count, flags, context),
                Some(to) => {
                    let none = ptr::null();
                    (self.send_ex)(queue.0, data, count, none, to, none, none, flags, context)
                }
            }
        })
    }

    /// Lets receives begin that were deferred.
    ///
    /// # Safety
    ///
    /// As for `resize`.
    pub(crate) unsafe fn commit_receives(&self, queue: RequestQueue) -> io::Result<()> {
        let none = ptr::null();
        // SAFETY: the caller's promise.
        succeeded(unsafe { (self.receive)(queue.0, none, 0, ws::RIO_MSG_COMMIT_ONLY, none.cast()) })
    }

    /// Lets sends begin that were deferred.
    ///
    /// # Safety
    ///
    /// As for `resize`.
    pub(crate) unsafe fn commit_sends(&self, queue: RequestQueue) -> io::Result<()> {
        let none = ptr::null();
        // SAFETY: the caller's promise.
        succeeded(unsafe { (self.send)(queue.0, none, 0, ws::RIO_MSG_COMMIT_ONLY, none.cast()) })
    }
}

/// What packets of notifications lead to: one for all, which is never freed.
fn overlapped() -> *mut OVERLAPPED {
    static ONE: OnceLock<usize> = OnceLock::new();
    let address = ONE.get_or_init(|| {
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let one = Box::new(unsafe { mem::zeroed::<OVERLAPPED>() });
        Box::into_raw(one).expose_provenance()
    });
    ptr::with_exposed_provenance_mut(*address)
}
