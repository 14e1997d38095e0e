//! Builds what is to be measured, when the sources are there: wharf itself, and each rival by
//! itself, so that one that does not build fails alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Failure;
use crate::child::Stop;

/// The sources of the benchmarks: a folder with the rivals in Rust (a crate each), one with those
/// in C and C++ (a file each), and wharf itself around it.
#[derive(Clone, Debug)]
pub struct Sources(PathBuf);

impl Sources {
    /// Around the harness's program, or where that was built.
    #[must_use]
    pub fn find(harness: &Path) -> Option<Self> {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let mut folders = harness.ancestors().chain(built);
        folders.find(|it| it.join("rivals/common").is_dir()).map(|it| Self(it.to_owned()))
    }

    /// The names of the rivals.
    #[must_use]
    pub fn rivals(&self) -> Vec<String> {
        let mut names = self.crates();
        names.extend(self.natives());
        names
    }

    fn crates(&self) -> Vec<String> {
        let mut names = names(&self.0.join("rivals"));
        names.retain(|it| it != "common");
        names
    }

    fn natives(&self) -> Vec<String> {
        let name = |file: String| {
            let (name, extension) = file.rsplit_once('.')?;
            matches!(extension, "c" | "cpp").then(|| name.to_owned())
        };
        names(&self.0.join("native")).into_iter().filter_map(name).collect()
    }

    /// Builds wharf's program, with its servers that are examples, and says where it is.
    pub fn wharf(&self) -> Result<PathBuf, Failure> {
        let root = self.0.parent().unwrap_or(&self.0);
        let packages = ["wharf-cli".to_owned(), "wharf".to_owned()];
        let targets = ["--bin", "wharf", "--example", "datagrams"];
        let (mut built, status) = cargo(root, &packages, &targets)?;
        let program = built.remove("wharf").filter(|_| built.contains_key("datagrams"));
        program.ok_or(status)
    }

    /// Builds those rivals that are wanted into a folder: the one where cargo puts the harness too.
    /// Returns those that failed.
    pub fn build(
        &self,
        folder: &Path,
        wanted: impl Fn(&str) -> bool,
        stop: &Stop,
    ) -> BTreeMap<String, Failure> {
        let mut failed = BTreeMap::new();
        let crates: Vec<_> = self.crates().into_iter().filter(|it| wanted(it)).collect();
        let packages: Vec<_> = crates.iter().map(|it| format!("rival-{it}")).collect();
        let built = if packages.is_empty() {
            Ok(BTreeMap::new())
        } else {
            cargo(&self.0, &packages, &[]).map(|(built, _)| built)
        };
        for (name, package) in crates.into_iter().zip(packages) {
            match &built {
                Ok(built) if built.contains_key(&package) => {}
                Err(failure) => drop(failed.insert(name, failure.clone())),
                // All were tried together, and what cargo said was shown. This one's reason once
                // more.
                Ok(_) if !stop.asked() => drop(failed.insert(name, self.reason(&package))),
                Ok(_) => {}
            }
        }
        for name in self.natives().into_iter().filter(|it| wanted(it)) {
            let mut command = Command::new(self.0.join("native/build.sh"));
            command.arg(&name).arg(folder);
            if let Err(failure) = quiet(&mut command) {
                failed.insert(name, failure);
            }
        }
        failed
    }

    fn reason(&self, package: &str) -> Failure {
        let mut command = Command::new(program());
        command.args(["build", "--release", "--locked", "--package", package]);
        match quiet(command.current_dir(&self.0)) {
            Ok(()) => Failure("does not build".to_owned()),
            Err(failure) => failure,
        }
    }
}

/// The names of what is in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(files) = folder.read_dir() else { return Vec::new() };
    let mut names: Vec<_> =
        files.filter_map(|it| it.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs a build, and shows nothing of it. A failure has the first error, or what was said last.
fn quiet(command: &mut Command) -> Result<(), Failure> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said
        .lines()
        .find(|line| line.starts_with("error"))
        .or_else(|| said.lines().rfind(|line| !line.trim().is_empty()))
        .unwrap_or("no reason was given");
    Err(Failure(format!("does not build: {reason}")))
}

/// Builds packages of a workspace; cargo shows its own progress. Returns where the programs are of
/// those that were built, and what to say of the others.
fn cargo(
    workspace: &Path,
    packages: &[String],
    targets: &[&str],
) -> Result<(BTreeMap<String, PathBuf>, Failure), Failure> {
    /// What cargo says about a program that it has built.
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let mut command = Command::new(program());
    command.args(["build", "--release", "--locked", "--keep-going"]);
    command.arg("--message-format=json-render-diagnostics");
    for package in packages {
        command.args(["--package", package]);
    }
    command.args(targets);
    let output = command
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure(format!("cannot run cargo: {error}")))?;
    let built = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|it| Some((it.target?.name, it.executable?)))
        .collect();
    Ok((built, Failure(format!("does not build: cargo ended with {}", output.status))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_are_what_has_sources() {
        let sources = Sources::find(Path::new("/nowhere")).expect("where this was built");
        let rivals = sources.rivals();
        for known in ["tokio", "epoll", "asio", "libuv"] {
            assert!(rivals.iter().any(|it| it == known), "{known} of {rivals:?}");
        }
        for none in ["common", "rival", "build"] {
            assert!(!rivals.iter().any(|it| it == none), "{none} of {rivals:?}");
        }
    }

    #[test]
    fn the_reason_of_a_failure_is_the_first_error() {
        let failure = |script: &str| quiet(Command::new("sh").args(["-c", script]));
        assert_eq!(failure("true"), Ok(()));
        let reason = failure("echo noise >&2; echo error: one >&2; echo error: two >&2; false");
        assert_eq!(reason, Err(Failure("does not build: error: one".to_owned())));
        let reason = failure("echo first >&2; echo last >&2; echo >&2; false");
        assert_eq!(reason, Err(Failure("does not build: last".to_owned())));
    }
}
