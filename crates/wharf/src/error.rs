//! Errors: a portable kind, the system's own code, and what to do about it.

use std::{fmt, io};

use crate::sys::kind_of;

/// What went wrong, in terms that mean the same on every platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operation was cancelled.
    #[doc(alias = "ERROR_OPERATION_ABORTED")]
    Cancelled,
    /// The operation's deadline passed.
    TimedOut,
    /// The handle or the port is closed.
    Closed,
    /// The handle belongs to a port already.
    Associated,
    /// As many operations or packets wait as may.
    QueueFull,
    /// The operation is in flight already.
    Busy,
    /// No memory.
    OutOfMemory,
    /// No descriptors.
    OutOfDescriptors,
    /// The call makes no sense as it is.
    InvalidInput,
    /// The peer reset the connection.
    ConnectionReset,
    /// Nobody listens there, or an ICMP error said so.
    ConnectionRefused,
    /// The connection is gone.
    BrokenPipe,
    /// The address is in use.
    AddressInUse,
    /// The address is not one of this machine's.
    AddressNotAvailable,
    /// The system does not let this process do it.
    PermissionDenied,
    /// There is no such file.
    #[doc(alias = "ERROR_FILE_NOT_FOUND")]
    NotFound,
    /// The file exists already.
    #[doc(alias = "ERROR_FILE_EXISTS")]
    AlreadyExists,
    /// It is a directory.
    IsADirectory,
    /// A file ended before it should have.
    #[doc(alias = "ERROR_HANDLE_EOF")]
    UnexpectedEnd,
    /// The disk is full, or the quota used up, or the file as large as files may be.
    #[doc(alias = "ERROR_DISK_FULL")]
    StorageFull,
    /// The system cannot do it.
    Unsupported,
    /// The port was made before a fork, and this is the child.
    Forked,
    /// Anything else: see the system's code.
    Other,
}

/// An error of a port, a handle or an operation.
///
/// The text is for people and may change; programs ask [`Self::kind`] or one of the predicates,
/// and [`Self::raw_os_error`] for the system's own code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    code: Option<i32>,
    action: &'static str,
    remedy: &'static str,
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn of(kind: ErrorKind, action: &'static str) -> Self {
        Self { kind, code: None, action, remedy: remedy(kind) }
    }

    pub(crate) fn as_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn with_remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = remedy;
        self
    }

    pub(crate) fn from_io(error: &io::Error, action: &'static str) -> Self {
        let Some(code) = error.raw_os_error() else {
            let kind = match error.kind() {
                io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
                io::ErrorKind::Unsupported => ErrorKind::Unsupported,
                io::ErrorKind::OutOfMemory => ErrorKind::OutOfMemory,
                _ => ErrorKind::Other,
            };
            return Self::of(kind, action);
        };
        Self { code: Some(code), ..Self::of(kind_of(code), action) }
    }

    /// A socket could not be bound to its address.
    pub(crate) fn of_address(error: &io::Error, action: &'static str) -> Self {
        let error = Self::from_io(error, action);
        match error.kind {
            ErrorKind::PermissionDenied => error.with_remedy(
                "choose another port; on Linux, those below 1024 need CAP_NET_BIND_SERVICE",
            ),
            _ => error,
        }
    }

    /// From the status of a completion: a negative errno.
    pub(crate) fn from_status(status: i32, action: &'static str) -> Self {
        Self::from_io(&io::Error::from_raw_os_error(-status), action)
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The system's code, an errno on Linux, where the system was asked.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.code
    }

    /// Whether the operation was cancelled: asked for, or because its handle or port closed.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind == ErrorKind::Cancelled
    }

    /// Whether the operation's deadline passed.
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.kind == ErrorKind::TimedOut
    }

    /// Whether the handle or the port was closed before the operation could start.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.kind == ErrorKind::Closed
    }

    /// Whether the peer ended the connection by force.
    #[must_use]
    pub fn is_connection_reset(&self) -> bool {
        self.kind == ErrorKind::ConnectionReset
    }

    /// Whether nobody listens at the address.
    #[must_use]
    pub fn is_connection_refused(&self) -> bool {
        self.kind == ErrorKind::ConnectionRefused
    }
}

fn remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Associated => "a handle belongs to one port until it is closed",
        ErrorKind::QueueFull => {
            "wait for packets before starting more, or raise the limit in the builder"
        }
        ErrorKind::OutOfDescriptors => {
            "raise RLIMIT_NOFILE (ulimit -n), or serve fewer connections"
        }
        ErrorKind::AddressInUse => "choose another port, or end the program that has this one",
        ErrorKind::ConnectionRefused => "start the server, or use the address of one that runs",
        ErrorKind::AddressNotAvailable => "use an address of this machine (ip addr lists them)",
        ErrorKind::IsADirectory => "give the name of a file",
        ErrorKind::UnexpectedEnd => "somebody has cut it, or less of it was to be had",
        ErrorKind::StorageFull => "make room on the disk, or raise the limit that is reached",
        ErrorKind::Forked => "make a new port in the child",
        ErrorKind::Busy => "wait for the packet of the operation first",
        _ => "",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.action)?;
        match (self.kind, self.code) {
            (ErrorKind::Other | ErrorKind::OutOfMemory, Some(code)) => {
                write!(f, "{}", io::Error::from_raw_os_error(code))?;
            }
            (kind, code) => {
                let text = match kind {
                    ErrorKind::Cancelled => "cancelled",
                    ErrorKind::TimedOut => "the deadline passed",
                    ErrorKind::Closed => "closed",
                    ErrorKind::Associated => "the handle belongs to a port already",
                    ErrorKind::QueueFull => "too many wait already",
                    ErrorKind::Busy => "the operation is in flight already",
                    ErrorKind::OutOfMemory => "no memory",
                    ErrorKind::OutOfDescriptors => "no descriptors left",
                    ErrorKind::InvalidInput => "invalid",
                    ErrorKind::ConnectionReset => "the peer reset the connection",
                    ErrorKind::ConnectionRefused => "connection refused",
                    ErrorKind::BrokenPipe => "the connection is gone",
                    ErrorKind::AddressInUse => "the address is in use",
                    ErrorKind::AddressNotAvailable => "the address is not available",
                    ErrorKind::PermissionDenied => "not permitted",
                    ErrorKind::NotFound => "there is no such file",
                    ErrorKind::AlreadyExists => "it exists already",
                    ErrorKind::IsADirectory => "it is a directory",
                    ErrorKind::UnexpectedEnd => "the file ended too early",
                    ErrorKind::StorageFull => "no room left",
                    ErrorKind::Unsupported => "not supported",
                    ErrorKind::Forked => "the port belongs to the process before the fork",
                    ErrorKind::Other => "failed",
                };
                f.write_str(text)?;
                if let Some(code) = code {
                    write!(f, " (os error {code})")?;
                }
            }
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.kind)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::TimedOut => io::ErrorKind::TimedOut,
            ErrorKind::OutOfMemory => io::ErrorKind::OutOfMemory,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::ConnectionReset => io::ErrorKind::ConnectionReset,
            ErrorKind::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            ErrorKind::BrokenPipe => io::ErrorKind::BrokenPipe,
            ErrorKind::AddressInUse => io::ErrorKind::AddrInUse,
            ErrorKind::AddressNotAvailable => io::ErrorKind::AddrNotAvailable,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::AlreadyExists => io::ErrorKind::AlreadyExists,
            ErrorKind::IsADirectory => io::ErrorKind::IsADirectory,
            ErrorKind::UnexpectedEnd => io::ErrorKind::UnexpectedEof,
            ErrorKind::StorageFull => io::ErrorKind::StorageFull,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::QueueFull => io::ErrorKind::WouldBlock,
            ErrorKind::Busy => io::ErrorKind::ResourceBusy,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::from_io(&error, "system"),
        }
    }
}

/// Something that was not accepted, given back with the reason.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "what was refused, and why")]
pub struct Refused<T> {
    /// Why.
    pub error: Error,
    /// What the caller had handed in.
    pub value: T,
}

impl<T> From<Refused<T>> for Error {
    fn from(refused: Refused<T>) -> Self {
        refused.error
    }
}

impl<T> From<Refused<T>> for io::Error {
    fn from(refused: Refused<T>) -> Self {
        refused.error.into()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T: fmt::Debug> std::error::Error for Refused<T> {}

#[cfg(all(test, unix, not(loom)))]
mod tests {
    use super::*;

    /// Would catch: an address that is refused, and nobody says what to do about it.
    #[test]
    fn an_address_that_cannot_be_had_comes_with_a_remedy() {
        for (code, remedy) in [
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EADDRINUSE, "another port"),
            (libc::EADDRNOTAVAIL, "ip addr"),
            (libc::EMFILE, "ulimit -n"),
        ] {
            let error = Error::of_address(&io::Error::from_raw_os_error(code), "listen");
            assert_eq!(error.raw_os_error(), Some(code));
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}
