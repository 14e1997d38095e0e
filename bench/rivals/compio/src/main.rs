//! Echo on compio: a dispatcher for each thread starts the runtime there, and serves the accepted
//! connections, as in compio's `dispatcher` example. They are accepted by a plain thread: compio's
//! own streams stay on one thread, unless every descriptor is made to count atomically.

#![forbid(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;

use compio::BufResult;
use compio::dispatcher::Dispatcher;
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use compio::net::TcpStream;
use rival_common::{BUFFER, Handler, Options, Service, deal, listen, ready};

fn main() -> io::Result<()> {
    let options = Options::parse("compio");
    // "Optimize performance for most cases, especially compio is a single thread runtime", and the
    // flag that its documentation says goes with it.
    let mut proactor = ProactorBuilder::new();
    proactor.single_issuer(true).coop_taskrun(true).taskrun_flag(true);
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
