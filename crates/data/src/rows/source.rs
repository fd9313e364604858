//! Which files a data set is made of: a file, or a folder of one type.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{DataError, nearby};

/// How the rows of a file are written, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `.json`: an array of objects, one object a line, or objects one after the other.
    Json,
    /// `.jsonl`, `.ndjson`: one object a line.
    JsonLines,
    /// `.csv` with a header line.
    Csv,
    /// `.tsv` with a header line.
    Tsv,
    /// `.parquet`.
    Parquet,
    /// `.txt`: one text a line.
    Text,
}

impl FileKind {
    const READ: &str = "json, jsonl, csv, tsv, parquet and txt files are read";

    /// The kind that the name of `path` tells.
    ///
    /// # Errors
    /// When files of that name are not read.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let help = match extension.as_str() {
            "json" => return Ok(Self::Json),
            "jsonl" | "ndjson" => return Ok(Self::JsonLines),
            "csv" => return Ok(Self::Csv),
            "tsv" => return Ok(Self::Tsv),
            "parquet" => return Ok(Self::Parquet),
            "txt" => return Ok(Self::Text),
            "arrow" => {
                "arrow files are not read: save the data set as parquet (`Dataset.to_parquet` in Python)"
                    .to_owned()
            }
            "gz" | "zst" | "zip" | "bz2" | "xz" | "tgz" | "tar" => "decompress the file first".to_owned(),
            _ => Self::READ.to_owned(),
        };
        let reason = match extension.as_str() {
            "" => "the name has no extension that tells the type of the file".to_owned(),
            extension => format!("files of type `.{extension}` are not read"),
        };
        Err(DataError::FileType { path: path.to_owned(), reason, help })
    }
}

/// The files of a data set, all of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The files in the order in which they are read (a folder's sorted by name).
    pub files: Vec<PathBuf>,
    /// Their kind.
    pub kind: FileKind,
}

impl Source {
    /// The file `path`, or the files of the folder `path`.
    ///
    /// Hidden files are passed over. With `split` only the files of a folder whose names begin with
    /// it count (`train-00000-of-00002.parquet`, `train.jsonl`), as data sets are laid out on hubs.
    ///
    /// # Errors
    /// When nothing is there, when a file is of a type that is not read, or when a folder mixes types.
    pub fn open(path: &Path, split: Option<&str>) -> Result<Self, DataError> {
        let files = match fs::metadata(path) {
            Ok(found) if found.is_dir() => files_of(path, split)?,
            Ok(_) => vec![path.to_owned()],
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing(path));
            }
            Err(source) => {
                return Err(DataError::Io { path: path.to_owned(), source });
            }
        };
        let kind = FileKind::of(&files[0])?;
        for file in &files[1..] {
            if FileKind::of(file)? != kind {
                return Err(DataError::FileType {
                    path: path.to_owned(),
                    reason: format!(
                        "the folder mixes types of files: `{}` and `{}`",
                        name_of(&files[0]),
                        name_of(file)
                    ),
                    help: "keep files of one type in the folder, or name one file".to_owned(),
                });
            }
        }
        Ok(Self { files, kind })
    }
}

/// The regular, visible files of a folder by name; never empty.
fn files_of(folder: &Path, split: Option<&str>) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |source| DataError::Io { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() && !name_of(&path).starts_with('.') {
            files.push(path);
        }
    }
    files.sort();
    let all: Vec<String> = files.iter().map(|file| name_of(file)).collect();
    if let Some(split) = split {
        files.retain(|file| {
            name_of(file).strip_prefix(split).is_some_and(|rest| rest.starts_with(['-', '_', '.']))
        });
    }
    if files.is_empty() {
        let (detail, help) = match split {
            Some(split) if !all.is_empty() => (
                format!(" of the split `{split}`, only: {}", all[..all.len().min(8)].join(", ")),
                format!(
                    "files of a split are named `{split}-….parquet` or `{split}.jsonl`; change `split`, or leave it out to read all"
                ),
            ),
            _ => (String::new(), FileKind::READ.to_owned()),
        };
        return Err(DataError::EmptyFolder { path: folder.to_owned(), detail, help });
    }
    Ok(files)
}

/// The error for a path that is not there, with what resembles it beside it.
fn missing(path: &Path) -> DataError {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    };
    let help = if folder.is_dir() {
        "check the name, and that relative names are meant from `dataset_dir`".to_owned()
    } else {
        format!("the folder `{}` does not exist either; check `dataset_dir`", folder.display())
    };
    let names: Vec<String> = fs::read_dir(folder)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    DataError::MissingFile {
        path: path.to_owned(),
        nearby: nearby(&name_of(path), names.iter().map(String::as_str)),
        help,
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in names {
            fs::write(folder.path().join(name), "x").expect("room for the file");
        }
        folder
    }

    fn names(source: &Source) -> Vec<String> {
        source.files.iter().map(|file| name_of(file)).collect()
    }

    #[test]
    fn a_folder_is_its_visible_files_by_name() {
        let folder = folder(&["b.jsonl", "a.jsonl", ".hidden"]);
        let source = Source::open(folder.path(), None).expect("files of one type");
        assert_eq!(
            (names(&source), source.kind),
            (vec!["a.jsonl".to_owned(), "b.jsonl".to_owned()], FileKind::JsonLines)
        );
    }

    #[test]
    fn a_split_is_the_files_whose_names_begin_with_it() {
        let folder =
            folder(&["train-00001.parquet", "train-00000.parquet", "test-00000.parquet", "training.parquet"]);
        let source = Source::open(folder.path(), Some("train")).expect("files of the split");
        assert_eq!(names(&source), ["train-00000.parquet", "train-00001.parquet"]);
        let error = Source::open(folder.path(), Some("validation")).expect_err("no such split").to_string();
        assert!(error.contains("of the split `validation`, only: test-00000.parquet"), "{error}");
    }

    #[test]
    fn mixed_foreign_and_missing_files_are_refused_with_what_to_do() {
        let folder = folder(&["a.json", "b.csv", "c.arrow"]);
        let error = |path: &Path| Source::open(path, None).expect_err("refused").to_string();
        assert!(error(folder.path()).contains("mixes types of files: `a.json` and `b.csv`"));
        assert!(error(&folder.path().join("c.arrow")).contains("save the data set as parquet"));
        assert!(error(&folder.path().join("aa.json")).contains("did you mean `a.json`?"));
        assert!(error(&folder.path().join("no/a.json")).contains("does not exist either"));
    }
}
