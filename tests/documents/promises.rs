//! Every promise of docs/SEMANTICS.md and docs/SECURITY.md names a test that exists.

use std::path::Path;

const HEADING: &str = "| promise | shown by |";

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["docs/SEMANTICS.md", "docs/SECURITY.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let promises = promises(&text);
        assert!(
            promises.len() > 10,
            "{document} has {} promises",
            promises.len()
        );
        for (promise, shown_by) in promises {
            let tests: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
            assert!(!tests.is_empty(), "{document}: nothing shows {promise:?}");
            for test in tests {
                check(root, test).unwrap_or_else(|why| {
                    panic!("{document}: {promise:?} is shown by `{test}`, but {why}")
                });
            }
        }
    }
}

/// The rows of the tables of promises: what is promised, and what shows it.
fn promises(text: &str) -> Vec<(&str, &str)> {
    let mut rows = Vec::new();
    let mut lines = text.lines();
    while lines.any(|line| line == HEADING) {
        let table = lines
            .by_ref()
            .skip(1)
            .take_while(|line| line.starts_with('|'));
        rows.extend(table.map(|line| line.trim_matches('|').rsplit_once('|').unwrap()));
    }
    rows
}

/// `FILE`, or `FILE::TEST`, where TEST is a function with `#[test]` or a test that `proptest!`
/// makes.
fn check(root: &Path, test: &str) -> Result<(), String> {
    let (file, name) = test
        .split_once("::")
        .map_or((test, None), |(file, name)| (file, Some(name)));
    let path = root.join(file);
    let Some(name) = name else {
        return path
            .exists()
            .then_some(())
            .ok_or_else(|| format!("there is no {file}"));
    };
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{file} cannot be read: {e}"))?;
    let (before, _) = text
        .split_once(&format!("fn {name}("))
        .ok_or_else(|| format!("{file} has no such test"))?;
    // Between the attribute and the function there may be other attributes and comments.
    let attributes = before
        .lines()
        .rev()
        .skip_while(|line| line.trim().is_empty());
    let is_test = attributes
        .take_while(|line| {
            line.trim_start().starts_with("#[") || line.trim_start().starts_with("//")
        })
        .any(|line| line.trim() == "#[test]");
    is_test
        .then_some(())
        .ok_or_else(|| format!("{file}::{name} is not a test"))
}
