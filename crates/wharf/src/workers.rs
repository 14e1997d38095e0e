//! Worker threads in a loop over packets.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    error::{Error, Result},
    port::{Packet, Port},
    raw::Wait,
};

/// A number of threads that run a handler, packet by packet, until the port closes.
#[derive(Debug)]
#[must_use = "nothing runs yet"]
pub struct Workers<'a, K: 'static, M: 'static> {
    port: &'a Port<K, M>,
    threads: usize,
}

impl<'a, K, M> Workers<'a, K, M>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    pub(crate) fn new(port: &'a Port<K, M>, threads: usize) -> Self {
        Self { port, threads: threads.max(1) }
    }

    /// Runs the handler on every packet, until the port is closed. What a handler fails with is
    /// logged (at the level debug), and its packet dropped, which closes a connection on which
    /// nothing else is in flight: so `?` on a lost connection is the right way to end it. A
    /// handler that panics loses its packet in the same way; its worker goes on.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started, or the port breaks. The port is closed then.
    pub fn run<F>(self, handler: F) -> Result<()>
    where
        F: Fn(Packet<K, M>) -> Result<()> + Sync,
    {
        let handler = &handler;
        let port = self.port;
        std::thread::scope(|scope| {
            let mut workers = Vec::with_capacity(self.threads);
            let mut outcome = Ok(());
            for number in 0..self.threads {
                let builder = std::thread::Builder::new().name(format!("wharf-{number}"));
                match builder.spawn_scoped(scope, move || work(port, handler)) {
                    Ok(worker) => workers.push(worker),
                    Err(error) => {
                        outcome = Err(Error::from_io(&error, "start a worker"));
                        port.close();
                        break;
                    }
                }
            }
            for worker in workers {
                match worker.join() {
                    Ok(ended) => outcome = outcome.and(ended),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            outcome
        })
    }
}

fn work<K, M>(port: &Port<K, M>, handler: &impl Fn(Packet<K, M>) -> Result<()>) -> Result<()>
where
    K: Send + Sync + 'static,
    M: Send + 'static,
{
    loop {
        match port.wait() {
            Wait::Packet(packet) => {
                // The handler takes the packet with it when it unwinds, and what it shares with
                // other packets it has behind locks or atomics, being called by many threads.
                match catch_unwind(AssertUnwindSafe(|| handler(packet))) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => log::debug!("handler: {error}"),
                    Err(_) => log::error!("a handler panicked; its packet is dropped"),
                }
            }
            Wait::Closed => return Ok(()),
            Wait::TimedOut => {}
            Wait::Broken(error) => {
                port.close();
                return Err(error);
            }
        }
    }
}
