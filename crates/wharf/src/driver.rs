//! What carries a port: which facility of the system, and why that one.

use std::sync::Once;

use crate::error::{Error, ErrorKind, Result};

/// The facility of the system that carries a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Driver {
    /// The best one that this machine allows: io_uring, or epoll where io_uring is refused; on
    /// Windows its completion ports, and for [`crate::rio`] its Registered I/O where that is. The
    /// environment variable `WHARF_DRIVER` (`auto`, `uring`, `epoll`, `iocp` or `rio`) decides
    /// otherwise.
    #[default]
    Auto,
    /// io_uring, or no port.
    Uring,
    /// epoll, also where io_uring is to be had. It takes about a tenth less processor time where
    /// one connection at a time is busy; with many, io_uring takes no more.
    Epoll,
    /// The completion ports of Windows.
    Iocp,
    /// The Registered I/O of Windows. It carries completion queues of [`crate::rio`], no ports.
    Rio,
}

/// What decides for [`Driver::Auto`].
const VARIABLE: &str = "WHARF_DRIVER";

impl Driver {
    /// Its name, as in `WHARF_DRIVER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
            Self::Iocp => "iocp",
            Self::Rio => "rio",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let drivers = [Self::Auto, Self::Uring, Self::Epoll, Self::Iocp, Self::Rio];
        drivers.into_iter().find(|driver| driver.name() == name)
    }

    /// Why it cannot be had on this system.
    pub(crate) fn elsewhere(self) -> Error {
        let error = Error::of(ErrorKind::Unsupported, self.name());
        error.with_remedy(match self {
            Self::Rio => "rio carries completion queues of wharf::rio on Windows, and no port",
            _ => "io_uring and epoll are Linux's, iocp is Windows'; auto takes what there is",
        })
    }

    /// The driver to use: what the program says, or else the person who runs it.
    pub(crate) fn wanted(self) -> Result<Self> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        match (self, name) {
            (Self::Auto, Some(name)) => {
                name.to_str().and_then(Self::named).ok_or_else(|| unknown(VARIABLE))
            }
            _ => Ok(self),
        }
    }
}

fn unknown(what: &'static str) -> Error {
    Error::of(ErrorKind::InvalidInput, what)
        .with_remedy("the drivers are auto, uring, epoll, iocp and rio")
}

/// From its name.
impl std::str::FromStr for Driver {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::named(name).ok_or_else(|| unknown("driver"))
    }
}

/// Which driver carries a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) driver: Driver,
    /// Why it is not the one that would have been better.
    pub(crate) refused: Option<Error>,
}

impl Choice {
    /// Says once per process that it is not the best one, and why.
    pub(crate) fn announce(&self) {
        static SAID: Once = Once::new();
        if let Some(refused) = &self.refused {
            SAID.call_once(|| {
                let driver = self.driver.name();
                log::warn!("using {driver}: {refused} ({VARIABLE}={driver} silences this)");
            });
        }
    }
}
