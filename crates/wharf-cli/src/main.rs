//! The wharf program: a server to try things on, a load generator, and a doctor.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod copy;
mod doctor;
mod load;
mod output;
mod serve;
mod system;

use std::{io, process::ExitCode};

use clap::Parser;

use crate::cli::{Cli, Command, Protocol};

fn main() -> ExitCode {
    // Wrong usage ends here, with 2.
    let cli = Cli::parse();
    let filter = env_logger::Env::new().filter_or("WHARF_LOG", "warn");
    env_logger::Builder::from_env(filter).format_timestamp_micros().init();

    let outcome = match cli.command {
        Command::Serve(options) => serve::run(&options).map(|()| true),
        Command::Load { protocol: Protocol::Tcp(options) } => load::run(&options),
        Command::Load { protocol: Protocol::Udp(options) } => load::udp::run(&options),
        Command::Copy(options) => copy::run(&options).map(|()| true),
        Command::Bench { arguments } => bench::run(&arguments).map(|()| true),
        Command::Doctor(options) => doctor::run(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Whoever read our output has gone: there is nobody to tell.
            let unheard = error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
            if !unheard {
                output::note(&format!("wharf: {error:#}"));
            }
            ExitCode::FAILURE
        }
    }
}
