//! The registry of families: its page in docs, and that nothing else knows their names.

use std::path::{Path, PathBuf};
use std::{env, fs};

use sft_model::families;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_page_of_models_in_docs_is_the_printed_one() {
    let (path, printed) = (root().join("docs/models.md"), families::page());
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &printed).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == printed, "docs/models.md is stale: run UPDATE_DOCS=1 cargo test -p sft-model");
}

#[test]
fn the_example_of_a_family_in_docs_is_its_file() {
    let page = fs::read_to_string(root().join("docs/families.md")).unwrap();
    let file = fs::read_to_string(root().join("crates/model/src/families/internlm2.rs")).unwrap();
    assert!(page.contains(&format!("```rust\n{file}```")), "docs/families.md shows another internlm2.rs");
}

/// The families' files: the registry and what several share are apart.
const SHARED: &[&str] = &["mod.rs", "registry.rs", "wrappers.rs", "page.rs", "figures.rs", "experts.rs"];

#[test]
fn a_family_is_a_small_file() {
    let mut lines = Vec::new();
    for entry in fs::read_dir(root().join("crates/model/src/families")).unwrap() {
        let path = entry.unwrap().path();
        if !SHARED.iter().any(|name| path.ends_with(name)) {
            lines.push(fs::read_to_string(path).unwrap().lines().count());
        }
    }
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    assert!(median < 80, "the median family has {median} lines");
}

#[test]
fn families_are_sorted_and_stand_once() {
    let names: Vec<_> = families::supported().collect();
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
}

/// Files whose words are names of conversation templates and of their ways to call tools, some of which are called as a
/// family is.
const TEMPLATE_NAMES: &[&str] =
    &["crates/data/src/template/named/files.rs", "crates/data/src/template/tools.rs"];

/// Every Rust file below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_family_is_named_outside_its_file_and_the_registry() {
    let mut files = Vec::new();
    for crates in fs::read_dir(root().join("crates")).unwrap() {
        sources(&crates.unwrap().path().join("src"), &mut files);
    }
    let own = root().join("crates/model/src/families");
    let allowed: Vec<PathBuf> = TEMPLATE_NAMES.iter().map(|name| root().join(name)).collect();
    let is_test = |path: &Path| path.file_name().is_some_and(|name| name == "tests.rs");
    files.retain(|path| !path.starts_with(&own) && !allowed.contains(path) && !is_test(path));
    assert!(files.len() > 100, "{} files are not all", files.len());
    let mut named = Vec::new();
    for path in files {
        // Tests stand last in a file, and may take a family as an example.
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let found = families::supported().filter(|family| code.contains(&format!("\"{family}\"")));
        named.extend(found.map(|family| format!("{}: {family}", path.display())));
    }
    assert!(
        named.is_empty(),
        "families are named outside of crates/model/src/families:\n{}",
        named.join("\n")
    );
}
