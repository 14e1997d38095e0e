//! An alarm that one thread listens for and any thread may put off.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The bit of a time that says that it is the second timer's.
const OTHER: u64 = 1;

/// Two timers, of which one is set at a time, and a bell that wakes whoever listens before it goes
/// off.
///
/// A timer that is put off is first taken back, for which the processor's own timer is set anew,
/// and then set, for which it is set again. On a virtual machine each of that leads out of it,
/// and costs 5 µs for what is no longer in the cache. So the other timer is set first, which is
/// later than the first one and so changes nothing yet.
#[derive(Debug)]
pub(crate) struct Alarm {
    timers: [OwnedFd; 2],
    bell: Arc<Bell>,
    /// When it goes off, by its own clock; the lowest bit says which timer does. 0: it is not set.
    due: AtomicU64,
    heard: AtomicBool,
    epoch: Instant,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let timer = || {
            let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
            // SAFETY: takes no pointers.
            let timer = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
            if timer < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(timer) })
        };
        Ok(Self {
            timers: [timer()?, timer()?],
            bell: Arc::new(Bell::new()?),
            due: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            epoch: Instant::now(),
        })
    }

    /// The time by its clock, in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// What its clock shows at that time.
    pub(crate) fn at(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// When it goes off. None: it is not set, or nobody would hear it.
    #[inline]
    pub(crate) fn due(&self) -> Option<u64> {
        let due = self.due.load(Ordering::Relaxed);
        (due != 0 && self.is_heard()).then_some(due)
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.heard.load(Ordering::SeqCst)
    }

    /// Sets it.
    pub(crate) fn set(&self, after: Duration) {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        let due = self.now().saturating_add(after) & !OTHER;
        self.due.store(due, Ordering::SeqCst);
        self.start(due);
    }

    /// It does not go off.
    pub(crate) fn unset(&self) {
        self.due.store(0, Ordering::SeqCst);
        [0, 1].into_iter().for_each(|timer| self.settle(timer, 0));
    }

    pub(crate) fn is_set(&self) -> bool {
        self.due.load(Ordering::SeqCst) != 0
    }

    /// Lets it go off later than `due`, which [`Self::due`] has said. False: somebody else has
    /// changed that meanwhile.
    ///
    /// Whoever is late with the system calls can only make it go off earlier than the others know.
    pub(crate) fn put_off(&self, due: u64, later: u64) -> bool {
        let order = Ordering::SeqCst;
        let later = (later & !OTHER) | (!due & OTHER);
        let first = self.due.compare_exchange(due, later, order, order).is_ok();
        if first {
            self.start(later);
            self.settle(due & OTHER, 0);
            // The timer that has been taken back may be in use again.
            let due = self.due.load(order);
            if due != later && due != 0 {
                self.start(due);
            }
        }
        first
    }

    /// Sets the timer that is to go off then.
    fn start(&self, due: u64) {
        self.settle(due & OTHER, due.saturating_sub(self.now()).max(1));
    }

    /// Sets a timer; 0: takes it back.
    fn settle(&self, timer: u64, after: u64) {
        let timer = &self.timers[usize::from(timer == OTHER)];
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let after = Duration::from_nanos(after);
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: after.subsec_nanos().cast_signed().into(),
        };
        let time = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: the time lives across the call, and the former one is not asked for.
        let set = unsafe {
            libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const time, std::ptr::null_mut())
        };
        debug_assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    /// Listens for it, unless somebody does.
    pub(crate) fn listen(&self) -> Option<Ear<'_>> {
        (!self.heard.swap(true, Ordering::SeqCst)).then(|| Ear(self))
    }

    /// Wakes whoever listens.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }
}

/// Wakes whoever listens, or comes to listen.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn ring(&self) {
        let one = 1u64;
        // It fails only if it has rung 2⁶⁴ times and nobody has listened.
        // SAFETY: eight bytes are read from a number that lives across the call.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    fn silence(&self) {
        let mut times = 0u64;
        // SAFETY: eight bytes are written to a number that lives across the call.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut times).cast(), 8) };
    }
}

/// The right to listen.
pub(crate) struct Ear<'a>(&'a Alarm);

impl Ear<'_> {
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.0.bell
    }

    /// Sleeps until the alarm goes off, the bell rings, or the time is over. True: the alarm has
    /// gone off, and is not set any more.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let [one, other] = &self.0.timers;
        let mut all = [one, other, &self.0.bell.0].map(|fd| poll(fd.as_raw_fd()));
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().cast_signed().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the structures and the time live across the call.
        unsafe { libc::ppoll(all.as_mut_ptr(), 3, timeout, std::ptr::null()) };
        let [timers @ .., bell] = all;
        if bell.revents != 0 {
            self.0.bell.silence();
        }
        let mut off = false;
        for timer in timers.iter().filter(|timer| timer.revents != 0) {
            let mut times = 0u64;
            // SAFETY: eight bytes are written to a number that lives across the call.
            let read = unsafe { libc::read(timer.fd, (&raw mut times).cast(), 8) };
            // It may have been put off at the last moment.
            off |= read == 8;
        }
        if off {
            self.0.due.store(0, Ordering::SeqCst);
        }
        off
    }
}

impl Drop for Ear<'_> {
    fn drop(&mut self) {
        self.0.heard.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Would catch: a second who may listen because a third was refused. Of two, one would sleep
    /// through the bell.
    #[test]
    fn one_at_a_time_listens() {
        let alarm = Alarm::new().unwrap();
        let ear = alarm.listen().unwrap();
        for _ in 0..2 {
            assert!(alarm.listen().is_none());
            assert!(alarm.is_heard());
        }
        drop(ear);
        assert!(alarm.listen().is_some());
    }

    /// Would catch: an alarm that stays unset although it has been set, because somebody who put it
    /// off was late to take the other timer back.
    #[test]
    fn it_goes_off_whoever_puts_it_off_meanwhile() {
        let alarm = Alarm::new().unwrap();
        let ear = alarm.listen().unwrap();
        for _ in 0..50 {
            alarm.set(Duration::from_micros(300));
            let end = alarm.now() + 1_000_000;
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while alarm.now() < end {
                            let Some(due) = alarm.due() else { return };
                            alarm.put_off(due, alarm.now() + 300_000);
                        }
                    });
                }
            });
            let late = Some(Duration::from_secs(20));
            assert!(!alarm.is_set() || ear.wait(late) || ear.wait(late), "it does not go off");
            while ear.wait(Some(Duration::from_micros(400))) {}
        }
    }

    /// Would catch: an alarm that is taken for a bell, or the other way round; one that is off and
    /// counts as set; one that goes off at the time from which it was put off.
    #[test]
    fn it_goes_off_once_and_not_before_its_time() {
        let alarm = Alarm::new().unwrap();
        let ear = alarm.listen().unwrap();
        alarm.ring();
        assert!(!ear.wait(None), "that was the bell");
        alarm.set(Duration::from_millis(1));
        let due = alarm.due().unwrap();
        let later = due + 20_000_000;
        assert!(alarm.put_off(due, later));
        assert!(!alarm.put_off(due, later + 2), "somebody else has");
        let due = alarm.due().unwrap();
        assert!(due.abs_diff(later) <= 1);
        assert!(alarm.put_off(due, later + 2_000_000));
        while !ear.wait(None) {}
        assert!(alarm.now() >= later + 2_000_000 - 1);
        assert!(!alarm.is_set());
        assert!(!ear.wait(Some(Duration::from_millis(1))), "it goes off once");
    }
}
