//! Echo on a bare io_uring loop per thread: multishot receives into a small ring of provided
//! buffers, sends from those same buffers, and one system call per turn that submits and waits. The
//! best loop of its kind, without any runtime around it.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use bench_bufring::{Completion, Ring, Taken};
use rival_common::{BUFFER, Inbox, Options, Service, run_loops};

/// How many requests one submission may hold.
const ENTRIES: u32 = 1024;

/// How many buffers a thread receives into. Few: they stay in the cache.
const BUFFERS: u16 = 256;

/// What a completion is about: the lowest two bits of its mark, below the connection's index.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const BELL: u64 = 2;

fn main() -> io::Result<()> {
    run_loops(Options::parse("io-uring"), Loop::run)
}

struct Connection {
    stream: TcpStream,
    receiving: bool,
    over: bool,
    /// What is to be sent, in order. The first one is being sent: two at once could overtake each
    /// other.
    outgoing: VecDeque<Outgoing>,
    /// The beginning of a message, for services that know messages.
    message: Vec<u8>,
}

enum Outgoing {
    Received(Taken),
    Message(Vec<u8>),
}

struct Loop {
    // First, so that it is dropped first: it may still be sending messages of the connections.
    ring: Ring,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Connections whose receive ended for want of buffers.
    starved: Vec<usize>,
    service: Service,
}

impl Loop {
    fn run(inbox: &Inbox, service: Service) -> io::Result<()> {
        let size = u32::try_from(BUFFER).expect("a small constant");
        let mut this = Self {
            ring: Ring::new(ENTRIES, BUFFERS, size)?,
            connections: Vec::new(),
            free: Vec::new(),
            starved: Vec::new(),
            service,
        };
        this.ring.watch(inbox.bell().as_raw_fd(), BELL)?;
        let mut completions = Vec::new();
        loop {
            this.ring.wait(None, &mut completions)?;
            for completion in completions.drain(..) {
                let index = usize::try_from(completion.mark >> 2).expect("an index that we made");
                match completion.mark & 3 {
                    RECEIVE => this.received(index, completion)?,
                    SEND => this.sent(index, completion.result)?,
                    _ => {
                        for stream in inbox.take() {
                            this.add(stream)?;
                        }
                        if !completion.more {
                            this.ring.watch(inbox.bell().as_raw_fd(), BELL)?;
                        }
                    }
                }
            }
            for index in std::mem::take(&mut this.starved) {
                this.receive(index)?;
            }
        }
    }

    fn add(&mut self, stream: TcpStream) -> io::Result<()> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[index] = Some(Connection {
            stream,
            receiving: false,
            over: false,
            outgoing: VecDeque::new(),
            message: Vec::new(),
        });
        self.receive(index)
    }

    fn receive(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        if connection.over || connection.receiving {
            return Ok(());
        }
        connection.receiving = true;
        self.ring.receive(connection.stream.as_raw_fd(), mark(index, RECEIVE))
    }

    fn received(&mut self, index: usize, completion: Completion) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else {
            unreachable!("a connection stays until its last completion");
        };
        connection.receiving = completion.more;
        match completion.buffer {
            Some(taken) if !taken.is_empty() && !connection.over => {
                let idle = connection.outgoing.is_empty();
                queue(&mut self.ring, connection, taken, self.service);
                if idle {
                    self.send_next(index)?;
                }
            }
            Some(taken) => {
                // An empty buffer comes with the end of the stream.
                connection.over |= completion.result <= 0;
                self.ring.give_back(taken);
            }
            None if completion.result == -libc::ENOBUFS => {}
            None => connection.over |= completion.result <= 0,
        }
        if !completion.more {
            self.starved.push(index);
        }
        self.close_if_over(index);
        Ok(())
    }

    fn sent(&mut self, index: usize, result: i32) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else {
            unreachable!("a connection stays until its last completion");
        };
        let outgoing = connection.outgoing.pop_front().expect("what was being sent");
        let wanted = match &outgoing {
            Outgoing::Received(taken) => taken.len(),
            Outgoing::Message(message) => message.len(),
        };
        self.discard(outgoing);
        if usize::try_from(result).ok() != Some(wanted) {
            self.break_off(index);
        }
        self.send_next(index)?;
        self.close_if_over(index);
        Ok(())
    }

    fn send_next(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = &self.connections[index] else { return Ok(()) };
        let fd = connection.stream.as_raw_fd();
        match connection.outgoing.front() {
            None => Ok(()),
            Some(Outgoing::Received(taken)) => self.ring.send_back(fd, taken, mark(index, SEND)),
            Some(Outgoing::Message(message)) => {
                // SAFETY: the message stays at the front of the queue, unchanged, until the send
                // has completed. Moving the vector does not move its bytes. When the loop ends
                // early, the ring is dropped before the connections.
                unsafe { self.ring.send(fd, message, mark(index, SEND), false) }
            }
        }
    }

    /// Stops a connection whose peer cannot be reached. Nothing of it is being sent.
    fn break_off(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        connection.over = true;
        // Ends the receive, if it is still going on.
        connection.stream.shutdown(std::net::Shutdown::Both).ok();
        for outgoing in std::mem::take(&mut connection.outgoing) {
            self.discard(outgoing);
        }
    }

    fn discard(&mut self, outgoing: Outgoing) {
        if let Outgoing::Received(taken) = outgoing {
            self.ring.give_back(taken);
        }
    }

    /// Forgets a connection once no more completions can come for it, so that its index is free.
    fn close_if_over(&mut self, index: usize) {
        let done = self.connections[index]
            .as_ref()
            .is_some_and(|it| it.over && !it.receiving && it.outgoing.is_empty());
        if done {
            self.connections[index] = None;
            self.free.push(index);
        }
    }
}

/// Turns what was received into what is to be sent.
fn queue(ring: &mut Ring, connection: &mut Connection, taken: Taken, service: Service) {
    let Service::Messages { size, handler } = service else {
        connection.outgoing.push_back(Outgoing::Received(taken));
        return;
    };
    let mut bytes = ring.bytes(&taken);
    if connection.message.is_empty() && bytes.len() == size {
        handler.handle(bytes);
        connection.outgoing.push_back(Outgoing::Received(taken));
        return;
    }
    while !bytes.is_empty() {
        let (more, rest) = bytes.split_at(bytes.len().min(size - connection.message.len()));
        connection.message.extend_from_slice(more);
        bytes = rest;
        if connection.message.len() == size {
            let message = std::mem::take(&mut connection.message);
            handler.handle(&message);
            connection.outgoing.push_back(Outgoing::Message(message));
        }
    }
    ring.give_back(taken);
}

fn mark(index: usize, kind: u64) -> u64 {
    (index as u64) << 2 | kind
}
