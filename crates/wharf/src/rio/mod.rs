//! Registered I/O: datagrams and streams with as few system calls as there can be.
//!
//! A [`Region`] is memory set up once. Its [`Slice`]s go into receives and sends that are started
//! on a *request queue*, one for each socket, and come back out of a [`CompletionQueue`]. Starting
//! a receive costs a few writes to memory. Looking for completions costs a few reads, and one
//! system call for everything that has come in since. The queue has one owner: nothing is locked
//! to start a request or to take a completion.
//!
//! ```
//! use wharf::rio::{CompletionQueue, Quota, Region};
//!
//! let region = Region::new(64, 2048)?;
//! let mut queue = CompletionQueue::polled(64)?;
//! let socket = queue.udp("127.0.0.1:0", Quota { receives: 64, sends: 0 })?;
//! for slice in region.slices() {
//!     queue.receive(socket, slice)?;
//! }
//! # let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
//! # let address = queue.local_addr(socket)?;
//! # client.send_to(b"hello", address)?;
//! # let mut count = 0;
//! loop {
//!     while let Some(done) = queue.dequeue()? {
//!         count += 1;
//!         queue.receive(socket, done.slice)?;
//!     }
//! #   if count > 0 { break }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Quotas
//!
//! A request queue is made with a [`Quota`]: how many of its receives and how many of its sends may
//! be outstanding. The completion queue reserves room for them, so that it cannot overflow. A
//! request counts from when it is started until its completion is *dequeued*: only there its slice
//! and its place in the quota come back.
//!
//! Receives are filled in the order in which they were started, one after the other, and so all of
//! them go through the processor's cache. Have as many outstanding as come at once, and not many
//! more: 16 of 64 KiB where datagrams are coalesced cost less than 64 of them.
//!
//! # Being notified
//!
//! A polled queue is looked at again and again. Another can be waited for: by an event
//! ([`CompletionQueue::event`], a descriptor to poll), or through a port
//! ([`CompletionQueue::through`]), where a packet says that there is something to dequeue. Either
//! way `notify` asks for it, once; after that, dequeue until there is nothing left, and ask again.
//! Requests started with [`Start::quiet`] do not notify.
//!
//! # What carries a queue
//!
//! On Linux io_uring, from 6.0 on. Where that is refused (many containers do) or older, plain calls
//! that do not wait and move many datagrams at once (recvmmsg, sendmmsg), and epoll.
//! [`CompletionQueue::driver`] says which it is, [`CompletionQueue::fallback`] why, and
//! [`Builder::driver`] decides. Everything here is true of both, but on plain calls
//!
//! - nothing moves while nobody calls, unless a notification is outstanding: what is received, and
//!   what is left of a send that the system did not take at once, waits for the next dequeue;
//! - a queue has a thread of its own from the first [`notify`](CompletionQueue::notify) on that
//!   could not be answered at once. It sleeps until a socket is ready. While a notification is
//!   outstanding, the queue's calls take what they work on back from it, by a lock;
//! - each look is a system call for each socket that may have something. With more than eight
//!   sockets, or notifications, epoll says which do.
//!
//! On Windows, the system's own Registered I/O where it has that ([`Driver::Rio`]), for sockets
//! that were made for it, as those of [`CompletionQueue::udp`] and [`bind_udp`] are. Others, and
//! all on systems without, have overlapped calls ([`Driver::Iocp`]): a system call for each
//! datagram that is received or sent, and one for up to 16 requests of a stream. A queue has a
//! thread of its own from the first `notify` on, as above; its calls take a lock; and by how much
//! a datagram was too large for its slice is not told. Only the overlapped calls have been tested
//! so far; of the system's own, what is made of it, with a stand-in for its functions.
//!
//! [`Driver::Iocp`]: crate::Driver::Iocp
//! [`Driver::Rio`]: crate::Driver::Rio
//!
//! # One owner
//!
//! A queue can be moved to another thread, and shared behind a mutex. It cannot be used from two
//! threads at once:
//!
//! ```compile_fail,E0596
//! # use wharf::rio::{CompletionQueue, Polled};
//! # fn share(queue: &CompletionQueue<Polled>) {
//! std::thread::scope(|scope| {
//!     scope.spawn(|| queue.dequeue()); // needs `&mut`
//!     scope.spawn(|| queue.dequeue());
//! });
//! # }
//! ```
//!
//! ```compile_fail,E0499
//! # use wharf::rio::{CompletionQueue, Polled, RequestQueue, Slice};
//! # fn share(queue: &mut CompletionQueue<Polled>, socket: RequestQueue, slice: Slice) {
//! std::thread::scope(|scope| {
//!     scope.spawn(|| queue.receive(socket, slice));
//!     scope.spawn(|| queue.dequeue()); // the other one has it
//! });
//! # }
//! ```
//!
//! Nor can a slice be used while a request has it, or be given to two:
//!
//! ```compile_fail,E0382
//! # use wharf::rio::{CompletionQueue, Polled, RequestQueue, Slice};
//! # fn twice(queue: &mut CompletionQueue<Polled>, socket: RequestQueue, slice: Slice) {
//! queue.receive(socket, slice).unwrap();
//! println!("{:?}", &slice[..]); // it has moved
//! # }
//! ```
//!
//! ```compile_fail,E0382
//! # use wharf::rio::{CompletionQueue, Polled, RequestQueue, Slice};
//! # fn twice(queue: &mut CompletionQueue<Polled>, socket: RequestQueue, slice: Slice) {
//! queue.receive(socket, slice).unwrap();
//! queue.send(socket, slice).unwrap();
//! # }
//! ```
//!
//! And there is nothing to dequeue from after a queue has been closed, which is to drop it:
//!
//! ```compile_fail,E0382
//! # use wharf::rio::{CompletionQueue, Polled};
//! # fn after(mut queue: CompletionQueue<Polled>) {
//! drop(queue);
//! let _ = queue.dequeue();
//! # }
//! ```
//!
//! # Safety of memory
//!
//! The kernel writes to a slice only while a request has it, and a request's slice has no name: it
//! is in the queue, which gives it to nobody before the kernel is done with it. A slice keeps its
//! region mapped. On plain calls the kernel knows a slice only during a call. On io_uring and on
//! Windows a queue that is dropped waits until the kernel has let go of every slice; if it will
//! not (for five seconds), or if the queue is forgotten, the slices and their region stay for
//! ever. So no order of dropping, no `mem::forget` and no panic lets the kernel write to memory
//! that is freed or in other use.

mod completion;
mod engine;
mod head;
mod notify;
mod queue;
mod region;
mod start;

pub use self::{
    completion::{Completion, Direction},
    notify::{Builder, Event, Polled, Through},
    queue::{CompletionQueue, Options, Quota, RequestQueue, bind_udp},
    region::{Region, Slice},
    start::Start,
};
