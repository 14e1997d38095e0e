//! Sockets and files: two types with two ways to close them, and one way to belong to a port.

use std::{
    fs,
    io::{self, PipeReader, PipeWriter},
    net::{TcpListener, TcpStream, UdpSocket},
    os::windows::io::{
        AsHandle, AsRawHandle, AsRawSocket, AsSocket, BorrowedHandle, BorrowedSocket, OwnedHandle,
        OwnedSocket,
    },
    process::{ChildStderr, ChildStdin, ChildStdout},
};

use socket2::Socket;
use windows_sys::Win32::Storage::FileSystem::{FILE_TYPE_DISK, GetFileType};

use crate::sys::{Descriptor, Kind};

/// A socket or a file, as one thing.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "these are all there are")]
pub enum OwnedDescriptor {
    /// A socket, whatever its protocol.
    Socket(OwnedSocket),
    /// A file or an end of a pipe, opened with `FILE_FLAG_OVERLAPPED`.
    File(OwnedHandle),
}

/// The number of one: a SOCKET or a HANDLE.
pub(crate) type RawDescriptor = usize;

/// No descriptor.
pub(crate) const NO_DESCRIPTOR: RawDescriptor = usize::MAX;

impl OwnedDescriptor {
    pub(crate) fn as_socket(&self) -> BorrowedSocket<'_> {
        match self {
            Self::Socket(socket) => socket.as_socket(),
            Self::File(_) => unreachable!("asked of handles for sockets only"),
        }
    }

    pub(crate) fn as_handle(&self) -> BorrowedHandle<'_> {
        match self {
            Self::File(file) => file.as_handle(),
            Self::Socket(_) => unreachable!("asked of handles for files only"),
        }
    }
}

/// A descriptor as the system knows it.
pub(crate) fn raw(descriptor: &OwnedDescriptor) -> RawDescriptor {
    match descriptor {
        // A SOCKET is as wide as a pointer.
        OwnedDescriptor::Socket(socket) => socket.as_raw_socket() as usize,
        OwnedDescriptor::File(file) => file.as_raw_handle().addr(),
    }
}

impl Descriptor for OwnedDescriptor {
    fn back(descriptor: OwnedDescriptor) -> Self {
        descriptor
    }
}

impl Descriptor for OwnedSocket {
    fn back(descriptor: OwnedDescriptor) -> Self {
        match descriptor {
            OwnedDescriptor::Socket(socket) => socket,
            OwnedDescriptor::File(_) => unreachable!("it was made from a socket"),
        }
    }
}

impl Descriptor for OwnedHandle {
    fn back(descriptor: OwnedDescriptor) -> Self {
        match descriptor {
            OwnedDescriptor::File(file) => file,
            OwnedDescriptor::Socket(_) => unreachable!("it was made from a file"),
        }
    }
}

impl From<OwnedSocket> for OwnedDescriptor {
    fn from(socket: OwnedSocket) -> Self {
        Self::Socket(socket)
    }
}

impl From<OwnedHandle> for OwnedDescriptor {
    fn from(file: OwnedHandle) -> Self {
        Self::File(file)
    }
}

impl From<fs::File> for OwnedDescriptor {
    fn from(file: fs::File) -> Self {
        Self::File(file.into())
    }
}

impl From<Socket> for OwnedDescriptor {
    fn from(socket: Socket) -> Self {
        Self::Socket(socket.into())
    }
}

impl From<TcpStream> for OwnedDescriptor {
    fn from(socket: TcpStream) -> Self {
        Self::Socket(socket.into())
    }
}

impl From<TcpListener> for OwnedDescriptor {
    fn from(socket: TcpListener) -> Self {
        Self::Socket(socket.into())
    }
}

impl From<UdpSocket> for OwnedDescriptor {
    fn from(socket: UdpSocket) -> Self {
        Self::Socket(socket.into())
    }
}

/// What is no socket comes back.
impl TryFrom<OwnedDescriptor> for OwnedSocket {
    type Error = OwnedDescriptor;

    fn try_from(descriptor: OwnedDescriptor) -> Result<Self, OwnedDescriptor> {
        match descriptor {
            OwnedDescriptor::Socket(socket) => Ok(socket),
            other => Err(other),
        }
    }
}

/// What is a socket comes back.
impl TryFrom<OwnedDescriptor> for OwnedHandle {
    type Error = OwnedDescriptor;

    fn try_from(descriptor: OwnedDescriptor) -> Result<Self, OwnedDescriptor> {
        match descriptor {
            OwnedDescriptor::File(file) => Ok(file),
            other => Err(other),
        }
    }
}

macro_rules! from_pipes {
    ($($pipe:ty),*) => {
        $(impl From<$pipe> for OwnedDescriptor {
            fn from(pipe: $pipe) -> Self {
                Self::File(pipe.into())
            }
        })*
    };
}

from_pipes!(ChildStdin, ChildStdout, ChildStderr, PipeReader, PipeWriter);

/// What a descriptor leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity(Kind);

impl Identity {
    pub(crate) fn of(descriptor: &OwnedDescriptor) -> io::Result<Self> {
        let OwnedDescriptor::File(file) = descriptor else { return Ok(Self(Kind::Socket)) };
        // SAFETY: the handle is open.
        if unsafe { GetFileType(file.as_raw_handle()) } != FILE_TYPE_DISK {
            return Ok(Self(Kind::Pipe));
        }
        let directory = super::file::metadata(raw(descriptor))?.is_dir();
        Ok(Self(if directory { Kind::Directory } else { Kind::File }))
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }
}
