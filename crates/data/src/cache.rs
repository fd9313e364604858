//! Tokenised data, kept: the second start of a run with the same data, tokenizer, template and options reads ids and
//! labels instead of making them.
//!
//! In: a [`Key`] of everything that ids and labels depend on, by content. Out: [`Tokenised`], or the reason why there
//! is none. A file is written whole or not at all, and a damaged one is recognised by its check sum.

mod file;
mod key;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::conversation::Conversation;
use crate::dataset::DatasetReport;
use crate::error::DataError;
use crate::labels::Example;
use crate::pipeline::EncodeReport;
use crate::rows::RowProblem;
use crate::template::clock::Clock;

pub use key::{Key, KeyInputs};

/// The end of the names of its files.
const EXTENSION: &str = "sft-rows";
/// The file in `tokenized_path`.
const NAMED: &str = "tokenized.sft-rows";
/// What the folder of all caches may hold; the ones that were not used for longest go first.
const ROOM_BYTES: u64 = 20 << 30;

/// The rows of a run, ready to be trained on, and how they became that.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tokenised {
    /// Examples to train on.
    pub train: Vec<Example>,
    /// Examples to evaluate on: of each data set by itself, or of all.
    pub eval: Vec<(Option<String>, Vec<Example>)>,
    /// The evaluation rows as they were read.
    pub eval_rows: Vec<Conversation>,
    /// How the data sets were read.
    pub reports: Vec<DatasetReport>,
    /// Rows that were dropped as malformed.
    pub problems: Vec<RowProblem>,
    /// What became of the training rows.
    pub encoded: EncodeReport,
    /// What became of the evaluation rows.
    pub eval_encoded: EncodeReport,
}

/// Where tokenised data is looked for and written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file of this key in a folder of many; nothing is an error there.
    Folder(PathBuf),
    /// The folder that `tokenized_path` names; what is in it must fit.
    Named(PathBuf),
}

/// What looking for tokenised data came to.
#[derive(Debug)]
pub enum Found {
    /// It is there.
    Rows(Box<Tokenised>),
    /// There is none yet.
    Nothing,
    /// What is there cannot be used, for this reason, and is to be made anew.
    Unusable(String),
}

impl Place {
    /// The folder of the user for such things, if the environment names one.
    pub fn of_user() -> Option<Self> {
        let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = of("XDG_CACHE_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
        Some(Self::Folder(cache.join("sft").join("rows")))
    }

    /// The file of a key.
    pub fn file(&self, key: &Key) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(format!("{}.{EXTENSION}", key.digest())),
            Self::Named(folder) => folder.join(NAMED),
        }
    }

    /// Looks for the data of a key.
    ///
    /// # Errors
    /// `tokenized_path` holds data of another key, or something else.
    pub fn find(&self, key: &Key) -> Result<Found, DataError> {
        let path = self.file(key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self.nothing(),
            Err(source) if matches!(self, Self::Named(_)) => return Err(DataError::Io { path, source }),
            // The cache of a user saves time, and is never a reason to stop.
            Err(error) => return Ok(Found::Unusable(format!("{}: {error}", path.display()))),
        };
        let unusable = |reason: &str| Ok(Found::Unusable(format!("{}: {reason}", path.display())));
        let (made_of, rows) = match file::read(&bytes) {
            Ok(found) => found,
            Err(reason) => return unusable(&reason),
        };
        let differs = key.differs(&made_of.key);
        if !differs.is_empty() {
            let Self::Named(folder) = self else { return unusable("it is of other rows") };
            return Err(refused(folder, format!("was made of another {}", differs.join(", of another "))));
        }
        if made_of.day.is_some_and(|day| day != Clock::today()) {
            return unusable("its texts state another date");
        }
        if let Ok(file) = fs::File::options().append(true).open(&path) {
            // When it was used last; a folder that cannot be written to is as good.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(Found::Rows(Box::new(rows)))
    }

    fn nothing(&self) -> Result<Found, DataError> {
        match self {
            Self::Named(folder) if folder.join("dataset_dict.json").exists() || folder.is_file() => {
                Err(refused(folder, "was written by another program".to_owned()))
            }
            _ => Ok(Found::Nothing),
        }
    }

    /// Keeps the rows of a key; `day` is the date before they were made.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, key: &Key, rows: &Tokenised, day: &str) -> Result<(), DataError> {
        if Clock::was_read() && day != Clock::today() {
            return Ok(()); // Made around midnight: half of it states another date.
        }
        let path = self.file(key);
        let failed = |source| DataError::Io { path: path.clone(), source };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let day = Clock::was_read().then(|| day.to_owned());
        let bytes = file::written(&file::MadeOf { key: key.clone(), day }, rows);
        if matches!(self, Self::Folder(_)) {
            make_room(folder, ROOM_BYTES.saturating_sub(bytes.len() as u64));
        }
        // Of the same ending, so that one that a kill leaves behind is removed as others are.
        let partial = tempfile::Builder::new()
            .prefix(".partial-")
            .suffix(&format!(".{EXTENSION}"))
            .tempfile_in(folder)
            .map_err(failed)?;
        fs::write(partial.path(), &bytes).and_then(|()| partial.as_file().sync_all()).map_err(failed)?;
        partial.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn refused(folder: &Path, reason: String) -> DataError {
    DataError::Option {
        key: "tokenized_path",
        reason: format!("what `{}` holds {reason}", folder.display()),
        help: "name another folder, or set `overwrite_cache: true` to make it anew".to_owned(),
    }
}

/// Removes the files that were not used for longest until those left take at most `room` bytes.
fn make_room(folder: &Path, room: u64) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .filter(|entry| entry.path().extension().is_some_and(|end| end == EXTENSION))
        .filter_map(|entry| {
            let found = entry.metadata().ok()?;
            Some((found.modified().ok()?, found.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut taken: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in files {
        if taken <= room {
            break;
        }
        taken -= bytes;
        // A file that cannot be removed takes room and does no harm.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::example;

    fn key(template: &str) -> Key {
        Key::of_parts([
            ("data", "d"),
            ("tokenizer", "t"),
            ("template", template),
            ("options", "o"),
            ("program", "p"),
        ])
    }

    fn rows() -> Tokenised {
        let mut shared_end = example(&[1, 2, 3, 4], &[-100, 9, 3, -100]);
        shared_end.origin.line = 7;
        shared_end.weights = vec![1.0, 0.5, 0.5, 1.0];
        Tokenised {
            train: vec![example(&[5, 6], &[-100, 6]), shared_end, example(&[], &[])],
            eval: vec![(Some("a".to_owned()), vec![example(&[8], &[8])]), (None, Vec::new())],
            problems: vec![RowProblem { origin: example(&[], &[]).origin, reason: "no `output`".to_owned() }],
            encoded: EncodeReport { rows: 3, lengths: [(0, 2), (256, 1)].into(), ..EncodeReport::default() },
            ..Tokenised::default()
        }
    }

    #[test]
    fn what_is_kept_is_found() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for place in [Place::Folder(folder.path().join("a/b")), Place::Named(folder.path().join("n"))] {
            assert!(matches!(place.find(&key("x")), Ok(Found::Nothing)));
            place.keep(&key("x"), &rows(), &Clock::today()).expect("room");
            match place.find(&key("x")) {
                Ok(Found::Rows(found)) => assert_eq!(*found, rows()),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_damaged_file_is_made_anew_and_says_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = Place::Folder(folder.path().to_owned());
        place.keep(&key("x"), &rows(), &Clock::today()).expect("room");
        let file = place.file(&key("x"));
        let good = fs::read(&file).expect("it is there");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).expect("room");
            match place.find(&key("x")) {
                Ok(Found::Unusable(reason)) => assert!(reason.starts_with(&file.display().to_string())),
                other => panic!("byte {at}: {other:?}"),
            }
            fs::write(&file, &good[..at]).expect("room");
            assert!(matches!(place.find(&key("x")), Ok(Found::Unusable(_))), "cut at {at}");
        }
    }

    #[test]
    fn a_named_folder_must_hold_what_is_asked_for() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = Place::Named(folder.path().to_owned());
        place.keep(&key("x"), &rows(), &Clock::today()).expect("room");
        let error = place.find(&key("y")).expect_err("of another template").to_string();
        assert!(
            error.contains("`tokenized_path`") && error.contains("was made of another template"),
            "{error}"
        );
        let foreign = tempfile::tempdir().expect("a temporary folder");
        fs::write(foreign.path().join("dataset_dict.json"), "{}").expect("room");
        let error = Place::Named(foreign.path().to_owned()).find(&key("x")).expect_err("foreign").to_string();
        assert!(error.contains("was written by another program"), "{error}");
    }

    #[test]
    fn a_users_cache_that_cannot_be_read_costs_a_note_and_a_named_one_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("room");
        let found = Place::Folder(file.join("rows")).find(&key("x")).expect("no reason to stop");
        assert!(matches!(&found, Found::Unusable(why) if why.contains("file")), "{found:?}");
        Place::Named(file.join("rows")).find(&key("x")).expect_err("what was asked for by name");
    }

    #[test]
    fn room_is_made_by_what_was_not_used_for_longest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, age) in [("a", 30), ("b", 10), ("c", 20)] {
            let path = folder.path().join(format!("{name}.{EXTENSION}"));
            fs::write(&path, [0; 100]).expect("room");
            let used = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::options().append(true).open(&path).and_then(|f| f.set_modified(used)).expect("a time");
        }
        fs::write(folder.path().join("other"), [0; 100]).expect("room");
        make_room(folder.path(), 150);
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["b.sft-rows", "other"]);
    }
}
