//! What files need of the system: overlapped calls, and the ones that have to be waited for.

use std::{
    ffi::c_void,
    fs, io,
    mem::ManuallyDrop,
    os::windows::{
        fs::OpenOptionsExt,
        io::{AsRawHandle, FromRawHandle},
    },
    ptr,
    sync::Arc,
    thread,
    time::Duration,
};

use windows_sys::{
    Wdk::Storage::FileSystem::{
        FILE_MODE_INFORMATION, FILE_NO_INTERMEDIATE_BUFFERING, FileModeInformation,
        NtQueryInformationFile,
    },
    Win32::{
        Foundation::{ERROR_HANDLE_EOF, ERROR_INVALID_PARAMETER, ERROR_IO_PENDING, HANDLE},
        Storage::FileSystem::{
            FILE_ALLOCATION_INFO, FILE_FLAG_NO_BUFFERING, FILE_FLAG_OVERLAPPED,
            FileAllocationInfo, FlushFileBuffers, ReadFile, SetFileInformationByHandle, WriteFile,
        },
        System::{
            IO::{IO_STATUS_BLOCK, OVERLAPPED, OVERLAPPED_0_0},
            Threading::{PTP_CALLBACK_INSTANCE, TrySubmitThreadpoolCallback},
        },
    },
};

use super::{FAILED, RawDescriptor, port::CompletionPort};
use crate::raw::Operation;

/// No device asks for more.
const USUAL_ALIGNMENT: usize = 4096;

/// The most bytes that one call is given.
const MAX_BYTES: usize = 1 << 30;

/// What a file is asked for that no call does without waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chore {
    Sync,
    Allocate { offset: u64, length: u64 },
    Truncate { length: u64 },
}

fn handle(file: RawDescriptor) -> HANDLE {
    ptr::with_exposed_provenance_mut(file)
}

/// A file of the standard library's, to ask it something.
fn lent(file: RawDescriptor) -> ManuallyDrop<fs::File> {
    // SAFETY: the handle is open, and is not closed by this.
    ManuallyDrop::new(unsafe { fs::File::from_raw_handle(handle(file).cast()) })
}

/// The handle of a file of the standard library's.
pub(crate) fn raw(file: &fs::File) -> RawDescriptor {
    file.as_raw_handle().expose_provenance()
}

/// Whether it is a handle at all. What is closed has an error of its own here.
pub(crate) fn is_open(_file: RawDescriptor) -> bool {
    false
}

/// Size, times and so on.
pub(crate) fn metadata(file: RawDescriptor) -> io::Result<fs::Metadata> {
    lent(file).metadata()
}

/// Adds what a port needs, and direct I/O if it is asked for.
pub(crate) fn prepare(options: &mut fs::OpenOptions, direct: bool) {
    let direct = if direct { FILE_FLAG_NO_BUFFERING } else { 0 };
    options.custom_flags(FILE_FLAG_OVERLAPPED | direct);
}

/// Whether a file was opened for direct I/O.
pub(crate) fn is_direct(file: RawDescriptor) -> bool {
    let mut mode = FILE_MODE_INFORMATION::default();
    let mut status = IO_STATUS_BLOCK::default();
    // SAFETY: both structures live across the call; the mode is what this class gives.
    let result = unsafe {
        NtQueryInformationFile(
            handle(file),
            &raw mut status,
            (&raw mut mode).cast(),
            size_of_val(&mode) as u32,
            FileModeInformation,
        )
    };
    result == 0 && mode.Mode & FILE_NO_INTERMEDIATE_BUFFERING != 0
}

/// What positions, lengths and addresses must be multiples of.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere the system is asked")]
pub(crate) fn alignment(file: RawDescriptor) -> io::Result<usize> {
    Ok(if is_direct(file) { USUAL_ALIGNMENT } else { 1 })
}

/// Whether a call was accepted, from what it returned. False: it is over, at the end of the file.
fn begun(accepted: i32) -> io::Result<bool> {
    if accepted != 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error().map(i32::cast_unsigned) {
        Some(ERROR_IO_PENDING) => Ok(true),
        Some(ERROR_HANDLE_EOF) => Ok(false),
        _ => Err(error),
    }
}

/// Says where in the file a call works.
pub(super) fn set_offset(overlapped: &mut OVERLAPPED, offset: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the number")]
    let (low, high) = (offset as u32, (offset >> 32) as u32);
    overlapped.Anonymous.Anonymous = OVERLAPPED_0_0 { Offset: low, OffsetHigh: high };
}

/// Starts to read. False: nothing is there.
///
/// # Safety
///
/// The buffer and the overlapped structure stay where they are, untouched, until the packet.
pub(crate) unsafe fn read(
    file: RawDescriptor,
    buffer: *mut u8,
    length: usize,
    offset: u64,
    overlapped: *mut OVERLAPPED,
) -> io::Result<bool> {
    let length = u32::try_from(length.min(MAX_BYTES)).unwrap_or(0);
    // SAFETY: the caller's promise.
    unsafe {
        set_offset(&mut *overlapped, offset);
        begun(ReadFile(handle(file), buffer, length, ptr::null_mut(), overlapped))
    }
}

/// Starts to write, to the end where the offset is all ones.
///
/// # Safety
///
/// As for `read`.
pub(crate) unsafe fn write(
    file: RawDescriptor,
    buffer: *const u8,
    length: usize,
    offset: u64,
    overlapped: *mut OVERLAPPED,
) -> io::Result<bool> {
    let length = u32::try_from(length.min(MAX_BYTES)).unwrap_or(0);
    // SAFETY: the caller's promise.
    unsafe {
        set_offset(&mut *overlapped, offset);
        begun(WriteFile(handle(file), buffer, length, ptr::null_mut(), overlapped))
    }
}

/// Has something done on a thread of the system's pool. Its packet brings the error's code, or 0,
/// as its number of bytes.
pub(crate) fn start(
    port: &Arc<CompletionPort>,
    key: usize,
    operation: *mut Operation,
    file: RawDescriptor,
    chore: Chore,
) -> io::Result<()> {
    let job = Box::into_raw(Box::new(Job { port: port.clone(), key, operation, file, chore }));
    // SAFETY: the job is the callback's from here on, which takes it once.
    if unsafe { TrySubmitThreadpoolCallback(Some(run), job.cast(), ptr::null()) } != 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // SAFETY: it was not accepted, so it is still ours; made above.
    drop(unsafe { Box::from_raw(job) });
    Err(error)
}

struct Job {
    port: Arc<CompletionPort>,
    key: usize,
    operation: *mut Operation,
    file: RawDescriptor,
    chore: Chore,
}

unsafe extern "system" fn run(_instance: PTP_CALLBACK_INSTANCE, job: *mut c_void) {
    // SAFETY: made by `start`, and given to one callback.
    let job = unsafe { Box::from_raw(job.cast::<Job>()) };
    let code = match job.chore.perform(job.file) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(FAILED).cast_unsigned(),
    };
    while job.port.post(code, job.key, job.operation).is_err() {
        // There is no memory for a packet: there will be.
        thread::sleep(Duration::from_millis(10));
    }
}

impl Chore {
    /// The operation holds the file open.
    fn perform(self, file: RawDescriptor) -> io::Result<()> {
        match self {
            // SAFETY: an open handle.
            Self::Sync => done(unsafe { FlushFileBuffers(handle(file)) }),
            Self::Truncate { length } => lent(file).set_len(length),
            Self::Allocate { length: 0, .. } => {
                Err(io::Error::from_raw_os_error(ERROR_INVALID_PARAMETER.cast_signed()))
            }
            Self::Allocate { offset, length } => {
                let end = offset + length;
                let size = metadata(file)?.len();
                if end > size {
                    let room = FILE_ALLOCATION_INFO { AllocationSize: end.cast_signed() };
                    // SAFETY: the structure is what this class asks for, and lives across the call.
                    done(unsafe {
                        SetFileInformationByHandle(
                            handle(file),
                            FileAllocationInfo,
                            (&raw const room).cast(),
                            size_of_val(&room) as u32,
                        )
                    })?;
                    lent(file).set_len(end)?;
                }
                Ok(())
            }
        }
    }
}

fn done(succeeded: i32) -> io::Result<()> {
    if succeeded == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
