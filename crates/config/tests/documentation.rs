//! The printed documentation is the one in the repository.

use std::path::Path;
use std::{env, fs};

use sft_config::Language;

/// Compares, or with `UPDATE_DOCS=1` writes, a file of `docs/`.
fn same(name: &str, printed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().expect("docs/ has a parent")).unwrap();
        fs::write(&path, printed).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == printed, "docs/{name} is stale: run UPDATE_DOCS=1 cargo test -p sft-config");
}

#[test]
fn the_reference_in_docs_is_the_printed_one() {
    same("config.md", &sft_config::reference(Language::English));
    same("zh/config.md", &sft_config::reference(Language::Chinese));
}

#[test]
fn the_schema_in_docs_is_the_printed_one() {
    let schema = serde_json::to_string_pretty(&sft_config::json_schema()).unwrap();
    same("config.schema.json", &format!("{schema}\n"));
}

#[test]
fn no_key_stands_twice() {
    let page = sft_config::reference(Language::English);
    let names: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split(" | ").next().unwrap_or("").split(", "))
        .map(|name| name.trim_matches(['|', ' ', '`']))
        .collect();
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
}
