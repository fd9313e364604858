//! What the documents say of the repository: every path and every link in them leads somewhere.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders at the root whose files the documents name by their paths.
const FOLDERS: [&str; 5] = ["crates/", "docs/", "benchmarks/", "tools/", "configs/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The Markdown files of the root, of `docs` and of `benchmarks`.
fn documents() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/zh", "benchmarks", "benchmarks/gpu", "benchmarks/against_pytorch"];
    let files = folders.into_iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap().flatten());
    files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect()
}

/// Texts between two marks on one line.
fn between<'a>(text: &'a str, from: &'a str, to: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .flat_map(move |line| line.split(from).skip(1).filter_map(move |rest| Some(rest.split_once(to)?.0)))
}

#[test]
fn every_link_of_a_document_leads_to_a_file() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let links = between(&text, "](", ")").filter(|link| !link.contains("://") && !link.starts_with('#'));
        for link in links {
            let file = link.split('#').next().unwrap_or(link);
            if !document.parent().unwrap().join(file).exists() {
                missing.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_path_that_a_document_names_is_there() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for code in text.split('`').skip(1).step_by(2) {
            let path = code.split([' ', ':', ',']).next().unwrap_or(code);
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder));
            // `<name>`, `*` and `…` stand for something else.
            if is_path && !path.contains(['<', '*', '…', '$', '[']) && !root().join(path).exists() {
                missing.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
