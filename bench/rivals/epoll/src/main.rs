//! Echo on a bare epoll loop per thread: edge-triggered, one registration per connection for its
//! whole life, and no second read when the first one came back short. The best loop of its kind,
//! without any runtime around it.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rival_common::{BUFFER, Handler, Inbox, Options, Service, run_loops};

/// How many events are taken at once.
const BATCH: usize = 256;

/// The mark of the descriptor that says that there are new connections.
const BELL: u64 = u64::MAX;

fn main() -> io::Result<()> {
    run_loops(Options::parse("nix"), run)
}

fn run(inbox: &Inbox, service: Service) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(inbox.bell(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, BELL))?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    let mut events = [EpollEvent::empty(); BATCH];
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data() == BELL {
                for stream in inbox.take() {
                    stream.set_nonblocking(true)?;
                    add(&epoll, &mut connections, &mut free, stream)?;
                }
                continue;
            }
            let index = usize::try_from(event.data()).expect("an index that we made");
            let Some(connection) = connections[index].as_mut() else { continue };
            if !matches!(connection.serve(event.events(), &mut buffer, service), Ok(true)) {
                // Closing the descriptor removes it from the epoll set. A connection that broke is
                // over; there is nobody to tell.
                connections[index] = None;
                free.push(index);
            }
        }
    }
}

fn add(
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
    free: &mut Vec<usize>,
    stream: TcpStream,
) -> io::Result<()> {
    let index = free.pop().unwrap_or_else(|| {
        connections.push(None);
        connections.len() - 1
    });
    let interest =
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    epoll.add(&stream, EpollEvent::new(interest, index as u64))?;
    connections[index] =
        Some(Connection { stream, unsent: Vec::new(), message: Vec::new(), unread: false });
    Ok(())
}

struct Connection {
    stream: TcpStream,
    /// What the socket had no room for. Nothing is read while there is any.
    unsent: Vec<u8>,
    /// The beginning of a message, for services that know messages.
    message: Vec<u8>,
    /// There may be more to read, and no event will say so again.
    unread: bool,
}

impl Connection {
    /// Does what there is to do. Says whether the connection goes on.
    fn serve(
        &mut self,
        events: EpollFlags,
        buffer: &mut [u8],
        service: Service,
    ) -> io::Result<bool> {
        let ending = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let over = events.intersects(ending);
        self.unread |= over || events.contains(EpollFlags::EPOLLIN);
        if !self.unsent.is_empty() && !self.flush()? {
            return Ok(true);
        }
        while self.unread {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unread = false;
                    break;
                }
                Err(error) => return Err(error),
            };
            // A short read has emptied the socket, and whatever comes later brings a new event.
            // Only the end of the stream may have come with an event that we hold already.
            self.unread = over || count == buffer.len();
            match service {
                Service::Echo => self.send(&buffer[..count])?,
                Service::Messages { size, handler } => {
                    self.messages(&buffer[..count], size, handler)?;
                }
            }
            if !self.unsent.is_empty() {
                break;
            }
        }
        Ok(true)
    }

    fn messages(&mut self, mut bytes: &[u8], size: usize, handler: Handler) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.message.is_empty() && bytes.len() >= size {
                let (message, rest) = bytes.split_at(size);
                handler.handle(message);
                self.send(message)?;
                bytes = rest;
                continue;
            }
            let (more, rest) = bytes.split_at(bytes.len().min(size - self.message.len()));
            self.message.extend_from_slice(more);
            bytes = rest;
            if self.message.len() == size {
                let message = std::mem::take(&mut self.message);
                handler.handle(&message);
                self.send(&message)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = if self.unsent.is_empty() { self.write(bytes)? } else { 0 };
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Sends what was left over. Says whether all of it went.
    fn flush(&mut self) -> io::Result<bool> {
        let unsent = std::mem::take(&mut self.unsent);
        let sent = self.write(&unsent)?;
        self.unsent = unsent;
        self.unsent.drain(..sent);
        Ok(self.unsent.is_empty())
    }

    /// Writes until there is no room. Says how much went.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}
