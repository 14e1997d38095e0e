//! `load`: the load generator, a process of its own. What it does is the scenario's affair; most of
//! them exchange messages, see [`exchange`].

pub mod connect;
pub mod exchange;

use std::ffi::OsString;
use std::io::{self, Write};

use crate::{Failure, scenario};

/// `load SCENARIO JOB`, with the job as JSON; the answer too, in one line.
pub fn run(args: &[OsString]) -> Result<(), Failure> {
    let [name, job] = args else {
        return Err(Failure("load: started by the harness only".to_owned()));
    };
    let name = name.to_string_lossy();
    let scenario =
        scenario::find(&name).ok_or_else(|| Failure(format!("load: no scenario {name}")))?;
    let answer = scenario.load(&job.to_string_lossy())?;
    writeln!(io::stdout(), "{answer}")?;
    Ok(())
}

/// A step of xorshift. Neither state nor result are ever 0.
pub fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A state for [`random`] that differs in many bits from those of other seeds.
#[must_use]
pub fn seeded(seed: u64) -> u64 {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..4 {
        random(&mut state);
    }
    state
}
