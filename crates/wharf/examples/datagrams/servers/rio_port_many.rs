//! Registered I/O through a port with several threads: the one that takes the packet takes a batch,
//! and asks for the next packet before it works on it, so that another can take the next batch.
//!
//! A completion queue has one owner at a time: the threads share it behind a mutex.

use std::{
    net::UdpSocket,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use wharf::{
    Builder, Port, Wait,
    rio::{CompletionQueue, Options, Quota, Region, RequestQueue, Through},
};

use super::count::{BATCH, Counter, Tally};

type Queue = CompletionQueue<Through<(), ()>>;

pub(super) fn serve(socket: UdpSocket, counter: &Counter) -> wharf::Result<()> {
    let options = counter.options();
    let receives = options.outstanding();
    let port: Port<()> = Builder::new().concurrency(options.threads).build()?;
    let region = Region::new(receives, options.room())?;
    let mut queue = CompletionQueue::through(&port, receives)?;
    let traits = if options.coalesce { Options::new().coalesce() } else { Options::new() };
    let socket = queue.udp_socket(socket, Quota { receives, sends: 0 }, traits)?;
    for slice in region.slices() {
        queue.receive(socket, slice)?;
    }
    queue.notify(())?;
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        let worker = || {
            // One that is over, for whatever reason, ends the others.
            let ended = work(&port, &queue, socket, &counter.thread());
            port.close();
            ended
        };
        let workers: Vec<_> = (0..options.threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })
}

fn work(
    port: &Port<()>,
    queue: &Mutex<Queue>,
    socket: RequestQueue,
    tally: &Tally<'_>,
) -> wharf::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        match port.wait() {
            Wait::Packet(packet) => packet.result?,
            Wait::Broken(error) => return Err(error),
            Wait::TimedOut | Wait::Closed => return Ok(()),
        };
        tally.notified();
        let mut held = lock(queue);
        held.dequeue_many(&mut batch, BATCH)?;
        match held.notify(()) {
            // The port is closed when another one has seen the end; this batch counts all the same.
            Err(refused) if !refused.error.is_closed() => return Err(refused.error),
            _ => drop(held),
        }
        for done in &batch {
            done.bytes()?;
            for datagram in done.datagrams() {
                if !tally.datagram(datagram) {
                    return Ok(());
                }
            }
        }
        let mut held = lock(queue);
        for done in batch.drain(..) {
            held.receive(socket, done.slice)?;
        }
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
