//! The README shows the example of the library's front page, which is run as a documentation test,
//! and shows it as it is.

#![cfg(not(loom))]

const README: &str = include_str!("../../../README.md");
const LIBRARY: &str = include_str!("../src/lib.rs");

/// The lines between the first two fences, where the first is `opening`.
fn block<'a>(lines: impl Iterator<Item = &'a str>, opening: &str) -> Vec<&'a str> {
    let from = lines.skip_while(|line| *line != opening).skip(1);
    from.take_while(|line| *line != "```").collect()
}

#[test]
fn the_readme_shows_the_tested_example() {
    let page = LIBRARY.lines().map_while(|line| line.strip_prefix("//!"));
    let page = page.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let tested = block(page, "```");
    // Lines that begin with a hash are run and not shown.
    let shown = tested.into_iter().filter(|line| *line != "#" && !line.starts_with("# "));
    let shown: Vec<_> = shown.collect();
    assert!(shown.len() > 10, "{shown:?}");
    assert_eq!(block(README.lines(), "```rust"), shown);
}
