//! Start-up of the bare loops: a thread for each, which gets its connections dealt out by the
//! thread that accepts them.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Options, Service, deal, listen, ready};

/// A thread's new connections, and the bell that says that there are some.
#[derive(Debug)]
pub struct Inbox {
    bell: EventFd,
    streams: Mutex<Vec<TcpStream>>,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { bell, streams: Mutex::default() })
    }

    fn push(&self, stream: TcpStream) -> io::Result<()> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        self.bell.write(1)?;
        Ok(())
    }

    /// Readable when there are new connections.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes what has come since the last time, and stops the bell.
    #[must_use]
    pub fn take(&self) -> Vec<TcpStream> {
        // It may have been read already, for an earlier ring of the bell.
        self.bell.read().ok();
        std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs a loop in each of the threads, and accepts for them, for ever. A loop that fails ends the
/// process.
pub fn run_loops(options: Options, run: fn(&Inbox, Service) -> io::Result<()>) -> io::Result<()> {
    let inboxes: Vec<_> = (0..options.threads)
        .map(|_| {
            let inbox = Arc::new(Inbox::new()?);
            let own = Arc::clone(&inbox);
            thread::spawn(move || {
                if let Err(error) = run(&own, options.service) {
                    eprintln!("a worker failed: {error}");
                    std::process::exit(1);
                }
            });
            Ok(inbox)
        })
        .collect::<io::Result<_>>()?;
    let listener = listen(options.tcp, false)?;
    ready(listener.local_addr()?)?;
    deal(&listener, &inboxes, |inbox, stream| inbox.push(stream))
}
