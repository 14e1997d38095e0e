//! Sends in the kernel, and those behind them.

use std::{collections::VecDeque, ptr};

use linux_raw_sys::io_uring as abi;

use super::super::{Request, Route};
use crate::sys::{
    udp::control::{ADDRESS_ROOM, write_address},
    uring::Sqe,
};

/// The most slices one send on a stream takes along.
const FLIGHT_MAX: usize = 64;

/// Room for the control messages of a send.
const CONTROL_ROOM: usize = 96;

/// The sends of a socket.
#[derive(Debug)]
pub(super) enum Output {
    Datagrams(Datagrams),
    Stream(Stream),
}

/// Datagrams that are being sent, each on its own.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    #[expect(clippy::vec_box, reason = "the kernel knows their addresses")]
    slots: Vec<Box<Datagram>>,
    free: Vec<u32>,
}

/// One of them, at a fixed address.
struct Datagram {
    request: Option<Request>,
    /// It has an address or control messages.
    routed: bool,
    name: [u8; ADDRESS_ROOM],
    control: [u8; CONTROL_ROOM],
    part: libc::iovec,
    message: libc::msghdr,
}

// SAFETY: the pointers lead into the box they are in, or to the slice owned beside them.
unsafe impl Send for Datagram {}
// SAFETY: nothing is done with them through a shared reference.
unsafe impl Sync for Datagram {}

impl std::fmt::Debug for Datagram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.request.fmt(f)
    }
}

impl Datagrams {
    /// Keeps a request, and says in which slot.
    pub(super) fn put(&mut self, request: Request, route: Route) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::new(Datagram::empty()));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.slots[slot as usize].fill(request, route);
        slot
    }

    /// The submission for a slot, without its socket.
    pub(super) fn submission(&self, slot: u32) -> Sqe {
        self.slots[slot as usize].submission()
    }

    /// Whether a slot's completion shall not notify.
    pub(super) fn is_quiet(&self, slot: u32) -> bool {
        self.slots[slot as usize].request.as_ref().is_some_and(|it| it.flags.is_quiet())
    }

    /// Takes the request out of a slot, which nothing of is in the kernel any more.
    pub(super) fn take(&mut self, slot: u32) -> Option<Request> {
        let request = self.slots.get_mut(slot as usize)?.request.take()?;
        self.free.push(slot);
        Some(request)
    }
}

impl Datagram {
    fn empty() -> Self {
        Self {
            request: None,
            routed: false,
            name: [0; ADDRESS_ROOM],
            control: [0; CONTROL_ROOM],
            part: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            // SAFETY: plain integers and pointers, for which zero is a value.
            message: unsafe { std::mem::zeroed() },
        }
    }

    /// Where it lies when this is called, it has to stay until it has been sent.
    fn fill(&mut self, request: Request, route: Route) {
        let slice = &request.slice;
        self.part = libc::iovec { iov_base: slice.start().cast(), iov_len: slice.len() };
        let control = route.write(&mut self.control);
        let name = route.to.map_or(0, |to| write_address(to, &mut self.name));
        self.routed = name > 0 || control > 0;
        self.message.msg_iov = &raw mut self.part;
        self.message.msg_iovlen = 1;
        self.message.msg_name = match name {
            0 => ptr::null_mut(),
            _ => self.name.as_mut_ptr().cast(),
        };
        self.message.msg_namelen = u32::try_from(name).unwrap_or(0);
        self.message.msg_control = match control {
            0 => ptr::null_mut(),
            _ => self.control.as_mut_ptr().cast(),
        };
        self.message.msg_controllen = control as _;
        self.request = Some(request);
    }

    fn submission(&self) -> Sqe {
        if self.routed {
            return send_message(&self.message, 0);
        }
        Sqe {
            opcode: abi::io_uring_op::IORING_OP_SEND as u8,
            addr: self.part.iov_base as u64,
            len: u32::try_from(self.part.iov_len).unwrap_or(u32::MAX),
            op_flags: libc::MSG_NOSIGNAL.cast_unsigned(),
            ..Sqe::default()
        }
    }
}

fn send_message(message: &libc::msghdr, flags: i32) -> Sqe {
    Sqe {
        opcode: abi::io_uring_op::IORING_OP_SENDMSG as u8,
        addr: ptr::from_ref(message) as u64,
        len: 1,
        op_flags: (libc::MSG_NOSIGNAL | flags).cast_unsigned(),
        ..Sqe::default()
    }
}

/// Sends on a stream, in order.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) waiting: VecDeque<Request>,
    /// What one request sends, or what is left of it.
    flight: VecDeque<Request>,
    /// How much of the first of them has been sent before.
    sent: usize,
    /// The request is in the kernel.
    flying: bool,
    /// It shall come back, to take off again together with what waits.
    pub(super) recall: bool,
    memory: Option<Box<FlightMemory>>,
}

/// What the kernel reads of a flight, at a fixed address.
struct FlightMemory {
    parts: [libc::iovec; FLIGHT_MAX],
    message: libc::msghdr,
}

// SAFETY: the pointers lead into the box they are in, or to slices owned by the same stream.
unsafe impl Send for FlightMemory {}
// SAFETY: nothing is done with them through a shared reference.
unsafe impl Sync for FlightMemory {}

impl std::fmt::Debug for FlightMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlightMemory").field("parts", &self.message.msg_iovlen).finish()
    }
}

/// A send on a stream that is over.
pub(super) struct Sent {
    pub(super) request: Request,
    pub(super) status: i32,
    pub(super) bytes: usize,
}

impl Stream {
    /// Whether nothing that is being sent notifies.
    pub(super) fn is_quiet(&self) -> bool {
        self.flight.iter().all(|request| request.flags.is_quiet())
    }

    /// Whether something that notifies waits behind a flight that does not.
    pub(super) fn loud_waits(&self) -> bool {
        self.flying && self.is_quiet() && self.waiting.iter().any(|it| !it.flags.is_quiet())
    }

    /// Lets what waits join what is left of the last flight. The submission for all of it, without
    /// its socket; none if one is under way, or there is nothing to send.
    pub(super) fn take_off(&mut self) -> Option<Sqe> {
        if self.flying {
            return None;
        }
        while self.flight.len() < FLIGHT_MAX
            && let Some(request) = self.waiting.pop_front()
        {
            self.flight.push_back(request);
        }
        if self.flight.is_empty() {
            return None;
        }
        let memory = self.memory.get_or_insert_with(|| {
            let part = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
            // SAFETY: plain integers and pointers, for which zero is a value.
            let message = unsafe { std::mem::zeroed() };
            Box::new(FlightMemory { parts: [part; FLIGHT_MAX], message })
        });
        let mut sent = self.sent;
        for (part, request) in memory.parts.iter_mut().zip(&self.flight) {
            // SAFETY: no more has been sent of the first slice than it has.
            let start = unsafe { request.slice.start().add(sent) };
            *part = libc::iovec { iov_base: start.cast(), iov_len: request.slice.len() - sent };
            sent = 0;
        }
        memory.message.msg_iov = memory.parts.as_mut_ptr();
        memory.message.msg_iovlen = self.flight.len() as _;
        self.flying = true;
        // Without this flag, the kernel is content with a part.
        Some(send_message(&memory.message, libc::MSG_WAITALL))
    }

    /// Works out what a submission's result means, and hands out the sends that are over. With
    /// `again` an error is none, and the rest is to be sent.
    pub(super) fn land(&mut self, result: i32, again: bool, mut over: impl FnMut(Sent)) {
        self.flying = false;
        self.recall = false;
        let mut bytes = usize::try_from(result).unwrap_or(0);
        while result >= 0
            && let Some(first) = self.flight.front()
        {
            let length = first.slice.len();
            let rest = length - self.sent;
            if bytes < rest {
                self.sent += bytes;
                break;
            }
            bytes -= rest;
            self.sent = 0;
            if let Some(request) = self.flight.pop_front() {
                over(Sent { request, status: 0, bytes: length });
            }
        }
        if result < 0
            && !again
            && let Some(failed) = self.give_up_first(result)
        {
            over(failed);
        }
    }

    /// Gives up the first send, nothing of which is in the kernel.
    pub(super) fn give_up_first(&mut self, status: i32) -> Option<Sent> {
        let bytes = std::mem::take(&mut self.sent);
        let request = self.flight.pop_front().or_else(|| self.waiting.pop_front())?;
        Some(Sent { request, status, bytes })
    }
}
