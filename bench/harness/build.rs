//! Notes which compiler builds the harness (it belongs to the figures), and lists the scenarios:
//! each file in `src/scenarios` is one, so that adding one is adding a file.

use std::env::var_os;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCENARIOS: &str = "src/scenarios";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SCENARIOS}");
    let rustc = var_os("RUSTC").expect("cargo sets it");
    let output = Command::new(rustc).arg("--version").output().expect("cargo runs it too");
    println!("cargo::rustc-env=BENCH_RUSTC={}", String::from_utf8_lossy(&output.stdout).trim());

    let folder = PathBuf::from(var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let list = Path::new(&var_os("OUT_DIR").expect("cargo sets it")).join("scenarios.rs");
    fs::write(list, scenarios(&folder.join(SCENARIOS))).expect("cargo made the folder");
}

/// A module for each file, and a list of what they define.
fn scenarios(folder: &Path) -> String {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("it is part of the sources")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|it| it == "rs"))
        .collect();
    files.sort();
    let mut text = String::new();
    let mut list = String::new();
    for path in files {
        let name = path.file_stem().expect("it has an extension").to_string_lossy().into_owned();
        let _ = writeln!(text, "#[path = {path:?}]\nmod {name};");
        let _ = write!(list, "{name}::SCENARIO, ");
    }
    let _ = writeln!(text, "static FILES: &[&dyn Scenario] = &[{list}];");
    text
}
