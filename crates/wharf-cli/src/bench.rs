//! `wharf bench`: hands over to the benchmarks.
//!
//! They are a workspace of their own, `bench/` in the sources, because they bring all the rivals
//! along, which nobody should build who wants wharf. So this program knows nothing about scenarios:
//! it finds the sources, has cargo build the benchmarks' program there, and becomes that program,
//! which builds the rivals.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use serde::Deserialize;

/// What the benchmarks' program is called.
const PROGRAM: &str = "wharf-bench-harness";

/// Builds the benchmarks, and becomes their program.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    let Some(sources) = find() else {
        bail!(
            "the benchmarks are not part of this program, as they bring the rivals along. They are \
             in wharf's sources, in the folder bench: run `cargo run --release -p wharf-cli -- \
             bench` in a checkout, or this program somewhere below one"
        );
    };
    let program = build(&sources)?;
    become_it(Command::new(&program).args(arguments))
        .with_context(|| format!("cannot run {}", program.display()))
}

/// The benchmarks of the checkout that we are in; else of the one that this program lies in, or was
/// built from.
fn find() -> Option<PathBuf> {
    let here = env::current_dir().ok();
    let program = env::current_exe().ok();
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [here.as_deref(), program.as_deref(), Some(built)];
    let folders = places.into_iter().flatten().flat_map(Path::ancestors);
    folders.map(|it| it.join("bench")).find(|it| it.join("harness/Cargo.toml").is_file())
}

/// Builds the benchmarks' program, and says where it is. Cargo shows its own progress.
fn build(sources: &Path) -> anyhow::Result<PathBuf> {
    /// What cargo says about a program that it has built.
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--locked", "--package", PROGRAM])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(sources)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("the benchmarks have to be built, and cargo does not run")?;
    let lines = String::from_utf8_lossy(&output.stdout);
    let built = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .find(|it| it.file_stem().is_some_and(|it| it == PROGRAM));
    match built {
        Some(built) if output.status.success() => Ok(built),
        _ => bail!("the benchmarks in {} do not build; cargo says why", sources.display()),
    }
}

/// Replaces this process. Returns only when that fails.
#[cfg(unix)]
fn become_it(command: &mut Command) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

/// Runs the program, and ends as it ended.
#[cfg(not(unix))]
fn become_it(command: &mut Command) -> std::io::Result<()> {
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1));
}
