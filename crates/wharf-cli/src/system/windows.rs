//! What the program asks of Windows.

use std::{
    io,
    process::{self, Command},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::doctor::Limit;

pub(crate) const NAME: &str = "Windows";

/// How soon it is noticed that nobody wants to know any more.
const TICK: Duration = Duration::from_millis(50);

/// Which release of the system this is.
pub(crate) fn release() -> String {
    let told = Command::new("cmd").args(["/c", "ver"]).output();
    let text = told.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned());
    text.unwrap_or_else(|error| format!("of unknown version ({error})"))
}

/// Nothing more is known of why there may be no port.
pub(crate) fn refusal_hint() -> &'static str {
    ""
}

/// The time, in place of the processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    BEGIN.get_or_init(Instant::now).elapsed()
}

/// There is no limit on sockets but memory.
pub(crate) fn raise_descriptors() -> Option<u64> {
    None
}

/// What may be short.
pub(crate) fn limits() -> Vec<Limit> {
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let (name, value) = ("processors", usable.to_string());
    vec![if usable == 1 {
        Limit::bad(name, value, "one worker runs at a time; more need a wider affinity")
    } else {
        let meaning = "so many workers run at once, unless the port asks for another number";
        Limit::good(name, value, meaning)
    }]
}

/// The system does not end a connection whose peer lives and takes nothing.
pub(crate) const LIMITS_SENDS: bool = false;

/// It does not do that.
pub(crate) fn limit_sends(_listener: &SockRef<'_>, _patience: Duration) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The wish of a person or the system that this program ends: Ctrl-C, or its window is closed.
#[derive(Debug)]
pub(crate) struct Ending {
    wishes: Receiver<()>,
    over: Handle,
}

/// Ends [`Ending::tell`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Handle(Arc<AtomicBool>);

impl Handle {
    pub(crate) fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Ending {
    /// From here on such a wish is noted, and ends nothing by itself.
    pub(crate) fn new() -> io::Result<Self> {
        let (wish, wishes) = mpsc::channel();
        let at_wish = move || {
            // Whoever does not want to know is about to end anyway.
            let _ = wish.send(());
        };
        ctrlc::set_handler(at_wish).map_err(io::Error::other)?;
        Ok(Self { wishes, over: Handle::default() })
    }

    /// Ends `tell`.
    pub(crate) fn handle(&self) -> Handle {
        self.over.clone()
    }

    /// Passes on each wish, until nobody wants to know.
    pub(crate) fn tell(self, to: &Sender<()>) {
        while !self.over.0.load(Ordering::Relaxed) {
            if self.wishes.recv_timeout(TICK).is_ok() && to.send(()).is_err() {
                return;
            }
        }
    }
}

/// Sets `stop` at every wish that this program ends.
pub(crate) fn stop(stop: Arc<AtomicBool>) -> io::Result<()> {
    ctrlc::set_handler(move || stop.store(true, Ordering::SeqCst)).map_err(io::Error::other)
}

/// Sets `stop` at the first wish that this program ends; at the second it does.
pub(crate) fn stop_first(stop: Arc<AtomicBool>) -> io::Result<()> {
    let at_wish = move || {
        if stop.swap(true, Ordering::SeqCst) {
            process::exit(1);
        }
    };
    ctrlc::set_handler(at_wish).map_err(io::Error::other)
}

/// Processors are not chosen here.
pub(crate) fn check_processors(_processors: &[usize]) -> anyhow::Result<()> {
    anyhow::bail!("processors cannot be chosen here")
}

/// Processors are not chosen here.
pub(crate) fn run_on(_processors: &[usize]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
