//! Which files a data set is made of: a file, or a folder of one type with all that is below it.

use std::fs;
use std::path::{Path, PathBuf};

use super::compressed;
use crate::error::{DataError, nearby};

/// Files that describe a data set and hold none of its rows: Hugging Face's `datasets` passes over them too.
const DESCRIPTIONS: [&str; 6] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "LICENSE"];
/// What `Dataset.save_to_disk` writes beside the files of several splits, each in a folder of its own.
const SAVED_SPLITS: &str = "dataset_dict.json";
/// How deep folders may lie in each other.
const DEPTH: usize = 8;

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
    /// `.arrow`.
    Arrow,
    /// `.txt`: one text a line.
    Text,
}

impl FileKind {
    const READ: &str = "json, jsonl, csv, tsv and txt files (as they are, or gz, zst, xz, bz2), parquet and arrow files are read";

    /// The kind that the name of `path` tells; the extension of a compressed file comes after that of its type.
    ///
    /// # Errors
    /// When files of that name are not read.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let extension = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let outer = extension(path);
        let is_compressed = compressed::EXTENSIONS.contains(&outer.as_str());
        let extension =
            if is_compressed { extension(Path::new(path.file_stem().unwrap_or_default())) } else { outer };
        let kind = match extension.as_str() {
            "json" => Self::Json,
            "jsonl" | "ndjson" => Self::JsonLines,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "parquet" => Self::Parquet,
            "arrow" => Self::Arrow,
            "txt" => Self::Text,
            _ => {
                let help = match extension.as_str() {
                    "zip" | "tgz" | "tar" | "7z" => "unpack the archive first",
                    _ => Self::READ,
                };
                let reason = match extension.as_str() {
                    "" => "the name has no extension that tells the type of the file".to_owned(),
                    extension => format!("files of type `.{extension}` are not read"),
                };
                return Err(DataError::FileType { path: path.to_owned(), reason, help: help.to_owned() });
            }
        };
        if is_compressed && matches!(kind, Self::Parquet | Self::Arrow) {
            return Err(DataError::FileType {
                path: path.to_owned(),
                reason: format!(
                    "a compressed `.{extension}` file cannot be read from its middle, as it has to be"
                ),
                help: "decompress the file first: what it holds is compressed anyway".to_owned(),
            });
        }
        Ok(kind)
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
    /// The file `path`, or the files of the folder `path` and of all folders below it.
    ///
    /// Hidden files and descriptions are passed over. With `split` only the files of a folder count whose
    /// names begin with it (`train-00000-of-00002.parquet`, `train.jsonl`), or that lie in a folder of that
    /// name, as data sets are laid out on hubs and by `save_to_disk`.
    ///
    /// # Errors
    /// When nothing is there, when a file is of a type that is not read, or when a folder mixes types.
    pub fn open(path: &Path, split: Option<&str>) -> Result<Self, DataError> {
        let files = match fs::metadata(path) {
            Ok(found) if found.is_dir() => files_of(path, split)?,
            Ok(found) if found.is_file() => vec![path.to_owned()],
            Ok(_) => {
                return Err(DataError::FileType {
                    path: path.to_owned(),
                    reason: "this is neither a file nor a folder: a data set is read more than once"
                        .to_owned(),
                    help: "write the rows into a file, and name that".to_owned(),
                });
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing(path));
            }
            Err(source) => {
                return Err(DataError::Io { path: path.to_owned(), source });
            }
        };
        Self::of(path, files)
    }

    /// These files, which are those of the data set at `path`; at least one.
    ///
    /// # Errors
    /// Files of a type that is not read, or of several types.
    pub fn of(path: &Path, files: Vec<PathBuf>) -> Result<Self, DataError> {
        let Some(first) = files.first() else {
            let (detail, help) = (String::new(), FileKind::READ.to_owned());
            return Err(DataError::EmptyFolder { path: path.to_owned(), detail, help });
        };
        let kind = FileKind::of(first)?;
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

/// The regular, visible files of a folder and of those below it by name; never empty.
fn files_of(folder: &Path, split: Option<&str>) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    collect(folder, DEPTH, &mut files)?;
    files.sort();
    let below = |file: &Path| file.strip_prefix(folder).unwrap_or(file).to_owned();
    let all: Vec<String> = files.iter().map(|file| below(file).to_string_lossy().into_owned()).collect();
    let split = split.or(folder.join(SAVED_SPLITS).is_file().then_some("train"));
    if let Some(split) = split {
        files.retain(|file| is_of_split(&below(file), split));
    }
    if files.is_empty() {
        let (detail, help) = match split {
            Some(split) if !all.is_empty() => (
                format!(" of the split `{split}`, only: {}", all[..all.len().min(8)].join(", ")),
                format!(
                    "files of a split are named `{split}-….parquet`, `{split}.jsonl` or `{split}/…`; change `split`, or leave it out to read all"
                ),
            ),
            _ => (String::new(), FileKind::READ.to_owned()),
        };
        return Err(DataError::EmptyFolder { path: folder.to_owned(), detail, help });
    }
    Ok(files)
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let unreadable = |source| DataError::Io { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = name_of(&path);
        if name.starts_with('.') || DESCRIPTIONS.contains(&name.as_str()) || name.ends_with(".md") {
            continue;
        }
        match path.is_dir() {
            true if depth > 0 => collect(&path, depth - 1, files)?,
            true => {
                return Err(DataError::FileType {
                    path,
                    reason: format!("the folder lies more than {DEPTH} folders deep"),
                    help: "name a folder nearer to the files".to_owned(),
                });
            }
            false if path.is_file() => files.push(path),
            false => {}
        }
    }
    Ok(())
}

/// Whether a file, by its path in the folder of the data set, belongs to a split.
pub(crate) fn is_of_split(file: &Path, split: &str) -> bool {
    let begins = |name: &str| name.strip_prefix(split).is_some_and(|rest| rest.starts_with(['-', '_', '.']));
    let mut folders = file.parent().into_iter().flat_map(Path::components);
    begins(&name_of(file)) || folders.any(|folder| folder.as_os_str() == split)
}

/// The error for a path that is not there, with what resembles it beside it.
fn missing(path: &Path) -> DataError {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    };
    let help = if path.is_symlink() {
        "this link names a file that is not there: mend it".to_owned()
    } else if folder.is_dir() {
        "check the name, and that relative names are meant from `dataset_dir`".to_owned()
    } else {
        format!("the folder `{}` does not exist either; check `dataset_dir`", folder.display())
    };
    let names: Vec<String> = fs::read_dir(folder)
        .map(|entries| {
            let there = entries.flatten().filter(|entry| entry.path().exists());
            there.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
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
    fn the_type_of_a_compressed_file_stands_before_its_end() {
        let kind = |name: &str| FileKind::of(Path::new(name)).map_err(|error| error.to_string());
        assert_eq!(kind("a.jsonl.gz"), Ok(FileKind::JsonLines));
        assert_eq!(kind("a.CSV.ZST"), Ok(FileKind::Csv));
        assert_eq!(kind("a.b.arrow"), Ok(FileKind::Arrow));
        for (name, part) in [
            ("a.gz", "no extension that tells the type"),
            ("a.parquet.gz", "decompress the file first"),
            ("a.tar.gz", "unpack the archive"),
            ("a.zip", "unpack the archive"),
        ] {
            assert!(kind(name).is_err_and(|error| error.contains(part)), "{name}");
        }
    }

    #[test]
    fn folders_below_count_and_descriptions_do_not() {
        let folder = folder(&["README.md", "dataset_dict.json"]);
        for (name, file) in [("train", "data-0.arrow"), ("train", "state.json"), ("test", "data-0.arrow")] {
            fs::create_dir_all(folder.path().join(name)).expect("room for the folder");
            fs::write(folder.path().join(name).join(file), "x").expect("room for the file");
        }
        let source = |split| Source::open(folder.path(), split).expect("files of one type");
        assert_eq!(source(None).files, [folder.path().join("train/data-0.arrow")], "several splits: train");
        assert_eq!(source(Some("test")).files, [folder.path().join("test/data-0.arrow")]);
        fs::remove_file(folder.path().join("dataset_dict.json")).expect("it is there");
        assert_eq!(source(None).files.len(), 2);
    }

    #[test]
    fn mixed_foreign_and_missing_files_are_refused_with_what_to_do() {
        let folder = folder(&["a.json", "b.csv", "c.zip"]);
        let error = |path: &Path| Source::open(path, None).expect_err("refused").to_string();
        assert!(error(folder.path()).contains("mixes types of files: `a.json` and `b.csv`"));
        assert!(error(&folder.path().join("c.zip")).contains("unpack the archive first"));
        assert!(error(&folder.path().join("aa.json")).contains("did you mean `a.json`?"));
        assert!(error(&folder.path().join("no/a.json")).contains("does not exist either"));
    }
}
