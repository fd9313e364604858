//! `split`: which files of a data set count, and which of their rows: `train`, `train[:10%]`, `train[5:]+test`.
//!
//! The syntax and its rounding are those of Hugging Face's `load_dataset(…, split=…)`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::rows::Source;

/// A part of `split`: the rows of one split, or a slice of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SplitPart {
    /// Only the files of a folder that belong to this split; `None`: all files.
    pub name: Option<String>,
    /// First row; counted from the end where it is negative.
    pub from: Option<Boundary>,
    /// The row after the last.
    pub to: Option<Boundary>,
    /// The files, where a hub or its data set's card says which they are.
    pub files: Option<Vec<PathBuf>>,
}

/// A place in the rows of a split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Boundary {
    /// So many rows from the beginning, or from the end where it is negative.
    Row(i64),
    /// So many hundredths of the rows.
    Percent(f64),
}

impl SplitPart {
    /// The files of the part, of the data set at `path`.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn source(&self, path: &Path) -> Result<Source, DataError> {
        match &self.files {
            Some(files) => Source::of(path, files.clone()),
            None => Source::open(path, self.name.as_deref()),
        }
    }

    /// Whether all rows count.
    pub fn is_whole(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// Whether the rows that count depend on how many there are.
    pub fn needs_total(&self) -> bool {
        let depends = |boundary: &Boundary| !matches!(boundary, Boundary::Row(0..));
        self.from.iter().chain(&self.to).any(depends)
    }

    /// The rows that count, of `total`.
    pub fn rows(&self, total: usize) -> Range<usize> {
        let from = self.from.map_or(0, |boundary| boundary.of(total));
        let to = self.to.map_or(total, |boundary| boundary.of(total));
        from..to.max(from)
    }
}

impl Boundary {
    fn of(self, total: usize) -> usize {
        let row = match self {
            Self::Row(row) => row,
            Self::Percent(share) => (share * total as f64 / 100.0).round_ties_even() as i64,
        };
        let from_start = if row < 0 { (total as i64).saturating_add(row) } else { row };
        usize::try_from(from_start).unwrap_or(0).min(total)
    }

    fn parse(text: &str) -> Option<Option<Self>> {
        let digits =
            |text: &str| text.trim_start_matches(['-', '+']).bytes().all(|byte| byte.is_ascii_digit());
        match text.trim() {
            "" => Some(None),
            text => match text.strip_suffix('%') {
                Some(share) => {
                    let share: f64 = share.trim().parse().ok().filter(|share: &f64| share.abs() <= 100.0)?;
                    Some(Some(Self::Percent(share)))
                }
                None if digits(text) => Some(Some(Self::Row(text.parse().ok()?))),
                None => None,
            },
        }
    }
}

/// The parts of a `split`.
///
/// # Errors
/// The part that is not understood.
pub(super) fn parse(split: &str) -> Result<Vec<SplitPart>, String> {
    let part = |text: &str| {
        let wrong = || format!("`{}` is no split", text.trim());
        let (name, slice) = match text.trim().split_once('[') {
            None => (text.trim(), None),
            Some((name, slice)) => (name.trim(), Some(slice.strip_suffix(']').ok_or_else(wrong)?)),
        };
        if name.is_empty() || name.contains([']', ':', '%']) {
            return Err(wrong());
        }
        let mut part = SplitPart { name: Some(name.to_owned()), ..SplitPart::default() };
        if let Some(slice) = slice {
            let (from, to) = slice.split_once(':').ok_or_else(wrong)?;
            (part.from, part.to) =
                (Boundary::parse(from).ok_or_else(wrong)?, Boundary::parse(to).ok_or_else(wrong)?);
        }
        Ok(part)
    };
    split.split('+').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rows printed by datasets 5.2: load_dataset("json", …, split=…) of ten rows.
    #[test]
    fn slices_are_those_of_load_dataset() {
        for (split, expected) in [
            ("train[:3]", 0..3),
            ("train[7:]", 7..10),
            ("train[2:5]", 2..5),
            ("train[-3:]", 7..10),
            ("train[:-7]", 0..3),
            ("train[:25%]", 0..2),
            ("train[25%:75%]", 2..8),
            ("train[-20%:]", 8..10),
            ("train[:15%]", 0..2),
            ("train[:35%]", 0..4),
            ("train[:20]", 0..10),
            ("train[-12:]", 0..10),
            ("train[5:2]", 5..5),
            ("train", 0..10),
        ] {
            let parts = parse(split).expect("a split");
            assert_eq!(parts.iter().map(|part| part.rows(10)).collect::<Vec<_>>(), [expected], "{split}");
        }
        let two = parse("train[:2]+test[1:3]").expect("two parts");
        assert_eq!(
            two.iter().map(|part| part.name.as_deref()).collect::<Vec<_>>(),
            [Some("train"), Some("test")]
        );
    }

    #[test]
    fn what_is_no_split_is_refused_with_its_words() {
        for split in ["train[50]", "train[:150%]", "train[:x]", "[1:2]", "train[", "train+", "train[1:2]]"] {
            assert!(parse(split).is_err_and(|reason| reason.ends_with("is no split")), "{split}");
        }
    }
}
