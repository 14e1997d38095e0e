//! Pipes: how instances and pairs are made, and what their calls mean.
//!
//! Only named pipes can be overlapped, so all are named. What the kernel gives of one is bytes,
//! whatever it was made for: of a message that did not fit, the rest comes next.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    os::windows::{
        fs::OpenOptionsExt,
        io::{FromRawHandle, OwnedHandle},
    },
    path::Path,
    process, ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use windows_sys::{
    Win32::{
        Foundation::{
            ERROR_INVALID_FUNCTION, ERROR_IO_PENDING, ERROR_MORE_DATA, ERROR_NO_DATA,
            ERROR_PIPE_BUSY, ERROR_PIPE_CONNECTED, HANDLE, INVALID_HANDLE_VALUE,
        },
        Storage::FileSystem::{
            FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, PIPE_ACCESS_DUPLEX,
            PIPE_ACCESS_INBOUND, PIPE_ACCESS_OUTBOUND, ReadFile, SECURITY_IDENTIFICATION,
            WriteFile,
        },
        System::{
            IO::OVERLAPPED,
            Pipes::{
                ConnectNamedPipe, CreateNamedPipeW, DisconnectNamedPipe, PIPE_ACCEPT_REMOTE_CLIENTS,
                PIPE_READMODE_BYTE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_BYTE, PIPE_WAIT,
            },
        },
    },
};

use super::{OwnedDescriptor, RawDescriptor};
use crate::sys::OwnedFile;

/// How many bytes may be in a pipe of a pair, each way.
const ROOM: u32 = 64 << 10;
/// The most bytes that one call is given.
const MAX_BYTES: usize = 1 << 30;

/// How an instance of a named pipe is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instance {
    /// PIPE_ACCESS_...
    pub(crate) access: u32,
    /// It fails if there is one of the name already.
    pub(crate) first: bool,
    /// Clients on other machines may connect.
    pub(crate) remote: bool,
    /// How many there may be at once; 255 for any number.
    pub(crate) most: u8,
    /// How many bytes may be in it, each way.
    pub(crate) room: u32,
}

impl Instance {
    pub(crate) const DUPLEX: Self =
        Self { access: PIPE_ACCESS_DUPLEX, first: false, remote: false, most: 255, room: ROOM };

    /// Makes it; clients may connect from here on.
    pub(crate) fn create(&self, name: &Path) -> io::Result<OwnedHandle> {
        let name = wide(name)?;
        let first = if self.first { FILE_FLAG_FIRST_PIPE_INSTANCE } else { 0 };
        let remote =
            if self.remote { PIPE_ACCEPT_REMOTE_CLIENTS } else { PIPE_REJECT_REMOTE_CLIENTS };
        // SAFETY: the name ends with a zero, and lives across the call.
        let pipe = unsafe {
            CreateNamedPipeW(
                name.as_ptr(),
                self.access | FILE_FLAG_OVERLAPPED | first,
                PIPE_TYPE_BYTE | PIPE_READMODE_BYTE | PIPE_WAIT | remote,
                u32::from(self.most),
                self.room,
                self.room,
                0,
                ptr::null(),
            )
        };
        if pipe == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: new, and nobody else's.
        Ok(unsafe { OwnedHandle::from_raw_handle(pipe) })
    }
}

/// A name as the system reads it.
fn wide(name: &Path) -> io::Result<Vec<u16>> {
    use std::os::windows::ffi::OsStrExt;
    let mut wide: Vec<u16> = name.as_os_str().encode_wide().collect();
    if wide.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    wide.push(0);
    Ok(wide)
}

/// Connects to a pipe that somebody serves. Its server may know who we are, and not act for us.
pub(crate) fn open(name: &Path) -> io::Result<OwnedHandle> {
    let mut options = File::options();
    options.read(true).write(true).share_mode(0);
    options.custom_flags(FILE_FLAG_OVERLAPPED).security_qos_flags(SECURITY_IDENTIFICATION);
    Ok(options.open(name)?.into())
}

/// A pipe: an end for a port, which is read from if `reads`, and the other end, which waits as a
/// child expects it of its standard streams.
pub(crate) fn pair(reads: bool) -> io::Result<(OwnedDescriptor, OwnedFile)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let access = if reads { PIPE_ACCESS_INBOUND } else { PIPE_ACCESS_OUTBOUND };
    let instance = Instance { access, first: true, most: 1, ..Instance::DUPLEX };
    // Somebody may have one of the name, or may have been faster to connect: then another one.
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..10 {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let random = RandomState::new().hash_one(number);
        let name = format!(r"\\.\pipe\wharf-{}-{number}-{random:016x}", process::id());
        let name = Path::new(&name);
        let made = instance.create(name).and_then(|ours| {
            let mut options = File::options();
            options.read(!reads).write(reads).share_mode(0);
            options.security_qos_flags(SECURITY_IDENTIFICATION);
            Ok((ours.into(), options.open(name)?.into()))
        });
        match made {
            Ok(pair) => return Ok(pair),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether a code says that all instances of a pipe are taken.
pub(crate) fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_PIPE_BUSY.cast_signed())
}

fn handle(pipe: RawDescriptor) -> HANDLE {
    ptr::with_exposed_provenance_mut(pipe)
}

/// Whether a call was accepted, from what it returned.
fn begun(accepted: i32) -> io::Result<()> {
    if accepted != 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error().map(i32::cast_unsigned) {
        // The second is a warning, that a message has more: its packet comes as well.
        Some(ERROR_IO_PENDING | ERROR_MORE_DATA) => Ok(()),
        _ => Err(error),
    }
}

/// Starts to wait for a client. False: there is one already, and no packet comes.
///
/// # Safety
///
/// The overlapped structure stays where it is, untouched, until the packet.
pub(super) unsafe fn connect(pipe: RawDescriptor, overlapped: *mut OVERLAPPED) -> io::Result<bool> {
    // SAFETY: the caller's promise.
    let Err(error) = begun(unsafe { ConnectNamedPipe(handle(pipe), overlapped) }) else {
        return Ok(true);
    };
    match error.raw_os_error().map(i32::cast_unsigned) {
        // The second was there and has gone: what it has sent can be received.
        Some(ERROR_PIPE_CONNECTED | ERROR_NO_DATA) => Ok(false),
        // An end that does not serve.
        Some(ERROR_INVALID_FUNCTION) => Err(io::ErrorKind::InvalidInput.into()),
        _ => Err(error),
    }
}

/// Takes an instance from its client, who cannot receive what is left any more.
pub(super) fn disconnect(pipe: RawDescriptor) -> io::Result<()> {
    // SAFETY: handles are numbers for the kernel; one that is no instance is refused.
    let done = unsafe { DisconnectNamedPipe(handle(pipe)) };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts to read; with a length of zero, to wait until there is something.
///
/// # Safety
///
/// The buffer and the overlapped structure stay where they are, untouched, until the packet.
pub(super) unsafe fn read(
    pipe: RawDescriptor,
    buffer: *mut u8,
    length: usize,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let length = u32::try_from(length.min(MAX_BYTES)).unwrap_or(0);
    // SAFETY: the caller's promise.
    begun(unsafe { ReadFile(handle(pipe), buffer, length, ptr::null_mut(), overlapped) })
}

/// Starts to write.
///
/// # Safety
///
/// As for `read`.
pub(super) unsafe fn write(
    pipe: RawDescriptor,
    buffer: *const u8,
    length: usize,
    overlapped: *mut OVERLAPPED,
) -> io::Result<()> {
    let length = u32::try_from(length.min(MAX_BYTES)).unwrap_or(0);
    // SAFETY: the caller's promise.
    begun(unsafe { WriteFile(handle(pipe), buffer, length, ptr::null_mut(), overlapped) })
}
