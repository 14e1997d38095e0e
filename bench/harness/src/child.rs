//! Child processes that do not outlive their owner, and the signal that says to stop.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Failure;

/// How long a child may take to end after it was asked to.
const GRACE: Duration = Duration::from_millis(500);

/// How often a waiting harness looks whether it should stop.
const TICK: Duration = Duration::from_millis(10);

/// How much of what a child says on stderr is kept.
const STDERR_MAX: usize = 4096;

/// Whether the user wants the harness to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Watches for Ctrl-C and for termination.
    pub fn watch() -> Result<Self, Failure> {
        let stop = Self::default();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second time it does not wait for anything. The kernel ends the children then.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop.0))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.asked() { Err(Failure("interrupted".to_owned())) } else { Ok(()) }
    }
}

/// A running child. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Arc<Mutex<String>>,
    stop: Stop,
}

impl Running {
    /// Starts a command.
    pub fn start(mut command: Command, stop: &Stop) -> Result<Self, Failure> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take().expect("it is piped");
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody may be listening any more; the pipe is to be emptied all the same.
                sender.send(line).ok();
            }
        });
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("it is piped");
        thread::spawn({
            let said = Arc::clone(&said);
            move || keep(stderr, &said)
        });
        Ok(Self { child, lines, said, stop: stop.clone() })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of stdout.
    pub fn line(&mut self, timeout: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            self.stop.check()?;
            match self.lines.recv_timeout(TICK) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    return Err(self.ended(status));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(Failure(format!("nothing within {} s", timeout.as_secs())));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits until the child has ended, and done what it was to do.
    pub fn finish(&mut self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            self.stop.check()?;
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { Err(self.ended(status)) };
            }
            if Instant::now() >= deadline {
                return Err(Failure(format!("not done within {} s", timeout.as_secs())));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Asks the child to end, and does not wait for that.
    pub fn ask_to_end(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends the child a signal, if it is still there.
    pub fn signal(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It is our child and not waited for: the id cannot be another's. A failure means that
            // it has ended in this moment.
            kill(self.pid(), signal).ok();
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Why the child is no longer there, if it is not.
    pub fn death(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok()??;
        Some(self.ended(status))
    }

    fn ended(&self, status: ExitStatus) -> Failure {
        // Whatever it said last is on its way through the pipe.
        thread::sleep(TICK);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.trim() {
            "" => Failure(format!("ended with {status}")),
            said => Failure(said.lines().last().unwrap_or(said).to_owned()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ask_to_end();
        let deadline = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                self.child.kill().ok();
                self.child.wait().ok();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Keeps the beginning of what a child says, and reads the rest so that it does not get stuck.
fn keep(mut stderr: ChildStderr, said: &Mutex<String>) {
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut bytes) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < STDERR_MAX {
            said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
}
