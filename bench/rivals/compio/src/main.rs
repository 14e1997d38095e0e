//! compio. Echo: a dispatcher for each thread starts the runtime there, and serves the accepted
//! connections, as in compio's `dispatcher` example. They are accepted by a plain thread: compio's
//! own streams stay on one thread, unless every descriptor is made to count atomically. Datagrams:
//! one runtime, and its stream of what one request receives into its pool of buffers.

#![forbid(unsafe_code)]

use std::io;
use std::num::{NonZeroU16, NonZeroUsize};
use std::pin::pin;

use compio::BufResult;
use compio::dispatcher::Dispatcher;
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use compio::net::{TcpStream, UdpSocket};
use compio::runtime::RuntimeBuilder;
use futures_util::StreamExt;
use rival_common::count::{OUTSTANDING, ROOM};
use rival_common::{BUFFER, Datagrams, Handler, Options, Service, Task, deal, listen, ready};

fn main() -> io::Result<()> {
    let task = Task::parse("compio");
    // "Optimize performance for most cases, especially compio is a single thread runtime", and the
    // flag that its documentation says goes with it.
    let mut proactor = ProactorBuilder::new();
    proactor.single_issuer(true).coop_taskrun(true).taskrun_flag(true);
    match task {
        Task::Streams(options) => streams(options, &proactor),
        Task::Datagrams(datagrams) => {
            let buffers = u16::try_from(OUTSTANDING).ok().and_then(NonZeroU16::new);
            proactor.buffer_pool_size(buffers.expect("more than none"));
            // What it says about the sender is in front of each datagram.
            proactor.buffer_pool_buffer_len(ROOM);
            RuntimeBuilder::new().with_proactor(proactor).build()?.block_on(count(*datagrams))
        }
    }
}

fn streams(options: Options, proactor: &ProactorBuilder) -> io::Result<()> {
    // One dispatcher with several threads gives a connection to whichever of them comes first, and
    // now and then four in five to the same one.
    let dispatchers = (0..options.threads)
        .map(|_| {
            Dispatcher::builder()
                .worker_threads(NonZeroUsize::MIN)
                .proactor_builder(proactor.clone())
                .build()
        })
        .collect::<io::Result<Vec<_>>>()?;
    let listener = listen(options.tcp, false)?;
    ready(listener.local_addr()?)?;
    deal(&listener, &dispatchers, |dispatcher, stream| {
        let service = options.service;
        // A connection that breaks is over; there is nobody to tell.
        let serve = move || async move { serve(stream, service).await.ok() };
        match dispatcher.dispatch(serve) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("a worker of a dispatcher has panicked")),
        }
    })
}

async fn count(datagrams: Datagrams) -> io::Result<()> {
    let socket = UdpSocket::from_std(datagrams.bind()?)?;
    let tally = datagrams.counter.thread();
    loop {
        let mut received = pin!(socket.recv_from_multi());
        // It ends when all buffers are full.
        while let Some(received) = received.next().await {
            match received {
                Ok(received) => {
                    tally.notified();
                    if !tally.datagram(received.data()) {
                        return datagrams.report();
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
                Err(error) => return Err(error),
            }
        }
    }
}

async fn serve(stream: std::net::TcpStream, service: Service) -> io::Result<()> {
    let stream = TcpStream::from_std(stream)?;
    match service {
        Service::Echo => echo(stream).await,
        Service::Messages { size, handler } => messages(stream, size, handler).await,
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let BufResult(count, filled) = stream.read(buffer).await;
        if count? == 0 {
            return Ok(());
        }
        let BufResult(written, mut emptied) = stream.write_all(filled).await;
        written?;
        emptied.clear();
        buffer = emptied;
    }
}

async fn messages(mut stream: TcpStream, size: usize, handler: Handler) -> io::Result<()> {
    let mut message = Vec::with_capacity(size);
    loop {
        let BufResult(read, filled) = stream.read_exact(message).await;
        read?;
        handler.handle(&filled);
        let BufResult(written, mut emptied) = stream.write_all(filled).await;
        written?;
        emptied.clear();
        message = emptied;
    }
}
