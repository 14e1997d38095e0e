//! `launch`: puts itself onto the given CPUs, asks to be killed when the harness dies, and becomes
//! the given program.
//!
//! It is a process of its own because all of this has to happen between fork and exec, where a
//! program with threads may do next to nothing; here there is only one thread, and no unsafe code.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::Failure;

/// The command that runs `program` on `cpus` (all, when none is named), for as long as this process
/// lives.
#[must_use]
pub fn command(harness: &Path, cpus: &[usize], program: impl AsRef<OsStr>) -> Command {
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    let mut command = Command::new(harness);
    command.arg("launch").arg(std::process::id().to_string()).arg(cpus.join(",")).arg(program);
    // A Ctrl-C goes to the whole process group; the harness wants to decide what it ends.
    command.process_group(0);
    command
}

/// `launch PARENT [CPU[,CPU...]] PROGRAM [ARG...]`; the CPUs may be an empty argument.
pub fn run(args: &[OsString]) -> Result<(), Failure> {
    let [parent, cpus, program, rest @ ..] = args else {
        return Err(Failure("launch: started by the harness only".to_owned()));
    };
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().to_string().as_str() != parent {
        return Err(Failure("launch: the harness is gone already".to_owned()));
    }
    if !cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in cpus.to_string_lossy().split(',') {
            set.set(cpu.parse()?)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set)?;
    }
    let error = Command::new(program).args(rest).exec();
    Err(Failure(format!("cannot run {}: {error}", program.to_string_lossy())))
}
