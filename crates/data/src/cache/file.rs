//! The file of tokenised data: a mark, two JSON texts with their lengths, examples, a check sum.
//!
//! All numbers are little-endian. An example is its origin (data set and file as places in lists of the head), the
//! ids, the labels as runs of ignored and of learned tokens, the labels that are not their own token's id, and the
//! weights as runs of equal ones (none where all are 1). The check sum is BLAKE3 of all before it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Key, Tokenised};
use crate::conversation::{Conversation, Origin};
use crate::dataset::DatasetReport;
use crate::labels::{Example, IGNORE_INDEX};
use crate::pipeline::EncodeReport;
use crate::rows::RowProblem;

const MARK: &[u8] = b"sft-rows 2\n";
const SUM_BYTES: usize = blake3::OUT_LEN;

/// What rows were made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MadeOf {
    pub key: Key,
    /// The date that their texts state, if a template asked for it.
    pub day: Option<String>,
}

/// Everything but the examples.
#[derive(Serialize, Deserialize)]
struct Head {
    eval: Vec<Option<String>>,
    eval_rows: Vec<Conversation>,
    reports: Vec<DatasetReport>,
    problems: Vec<RowProblem>,
    encoded: EncodeReport,
    eval_encoded: EncodeReport,
    datasets: Vec<Arc<str>>,
    files: Vec<Arc<PathBuf>>,
}

/// The bytes of the file.
pub(super) fn written(made_of: &MadeOf, rows: &Tokenised) -> Vec<u8> {
    let all = || std::iter::once(&rows.train).chain(rows.eval.iter().map(|(_, examples)| examples));
    let (mut datasets, mut files) = (Places::default(), Places::default());
    let mut body = Vec::new();
    for examples in all() {
        put(&mut body, examples.len());
        for example in examples {
            put(&mut body, datasets.of(&example.origin.dataset));
            put(&mut body, files.of(&example.origin.file));
            body.extend(example.origin.line.to_le_bytes());
            body.extend(example.origin.row.to_le_bytes());
            put_example(&mut body, example);
        }
    }
    let head = Head {
        eval: rows.eval.iter().map(|(name, _)| name.clone()).collect(),
        eval_rows: rows.eval_rows.clone(),
        reports: rows.reports.clone(),
        problems: rows.problems.clone(),
        encoded: rows.encoded.clone(),
        eval_encoded: rows.eval_encoded.clone(),
        datasets: datasets.list,
        files: files.list,
    };
    let mut bytes = MARK.to_vec();
    for text in [serde_json::to_vec(made_of), serde_json::to_vec(&head)] {
        let text = text.expect("keys of these types are texts");
        put(&mut bytes, text.len());
        bytes.extend(text);
    }
    bytes.extend(body);
    let sum = blake3::Hasher::new().update_rayon(&bytes).finalize();
    bytes.extend(sum.as_bytes());
    bytes
}

/// What a file holds.
///
/// # Errors
/// Why it holds nothing that can be used.
pub(super) fn read(bytes: &[u8]) -> Result<(MadeOf, Tokenised), String> {
    let damaged = || "it is damaged".to_owned();
    let (content, sum) = bytes.split_last_chunk::<SUM_BYTES>().ok_or_else(damaged)?;
    if blake3::Hasher::new().update_rayon(content).finalize().as_bytes() != sum {
        return Err(damaged());
    }
    let content = content.strip_prefix(MARK).ok_or("it is of another version of the program")?;
    let mut reader = Reader { rest: content };
    let foreign = |error: serde_json::Error| format!("it is of another version of the program: {error}");
    let made_of: MadeOf = serde_json::from_slice(reader.text()?).map_err(foreign)?;
    let head: Head = serde_json::from_slice(reader.text()?).map_err(foreign)?;
    let train = reader.examples(&head)?;
    let mut eval = Vec::with_capacity(head.eval.len());
    for name in &head.eval {
        eval.push((name.clone(), reader.examples(&head)?));
    }
    let Head { eval_rows, reports, problems, encoded, eval_encoded, .. } = head;
    Ok((made_of, Tokenised { train, eval, eval_rows, reports, problems, encoded, eval_encoded }))
}

/// A number below 2^32: lengths of texts that fit in memory, tokens of a row, places in lists.
fn put(bytes: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("tokenised rows are far below four thousand million");
    bytes.extend(number.to_le_bytes());
}

fn put_example(bytes: &mut Vec<u8>, example: &Example) {
    put(bytes, example.len());
    example.input_ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    let is_learned = |label: &i32| *label != IGNORE_INDEX;
    // Runs begin with an ignored one, which may be empty.
    let mut runs = Vec::new();
    let mut learned = false;
    let mut from = 0;
    while from < example.labels.len() {
        let run = example.labels[from..].iter().take_while(|label| is_learned(label) == learned).count();
        runs.push(run);
        (from, learned) = (from + run, !learned);
    }
    put(bytes, runs.len());
    runs.into_iter().for_each(|run| put(bytes, run));
    let pairs = example.input_ids.iter().zip(&example.labels).enumerate();
    let others: Vec<_> =
        pairs.filter(|(_, (id, label))| is_learned(label) && **label != **id as i32).collect();
    put(bytes, others.len());
    for (at, (_, label)) in others {
        put(bytes, at);
        bytes.extend(label.to_le_bytes());
    }
    let weights = || example.weights.chunk_by(|a, b| a == b);
    put(bytes, weights().count());
    for run in weights() {
        put(bytes, run.len());
        bytes.extend(run[0].to_le_bytes());
    }
}

/// The different values met, and the place of each.
struct Places<T> {
    list: Vec<T>,
    places: HashMap<T, usize>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { list: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Places<T> {
    fn of(&mut self, value: &T) -> usize {
        // Neighbours are mostly of the same file.
        match self.places.get(value) {
            Some(place) => *place,
            None => {
                self.list.push(value.clone());
                self.places.insert(value.clone(), self.list.len() - 1);
                self.list.len() - 1
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("so many bytes were taken"))
    }

    fn number(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn text(&mut self) -> Result<&'a [u8], String> {
        let length = self.number()?;
        self.take(length)
    }

    fn examples(&mut self, head: &Head) -> Result<Vec<Example>, String> {
        let count = self.number()?;
        (0..count).map(|_| self.example(head)).collect()
    }

    fn example(&mut self, head: &Head) -> Result<Example, String> {
        let unknown = || "it names a file that it does not list".to_owned();
        let dataset = head.datasets.get(self.number()?).ok_or_else(unknown)?;
        let file = head.files.get(self.number()?).ok_or_else(unknown)?;
        let (line, row) = (u64::from_le_bytes(self.array()?), u64::from_le_bytes(self.array()?));
        let origin = Origin { dataset: Arc::clone(dataset), file: Arc::clone(file), line, row };
        let length = self.number()?;
        let ids = self.take(length * 4)?.as_chunks::<4>().0;
        let input_ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let mut labels = Vec::with_capacity(length);
        for run in 0..self.number()? {
            let to = labels.len() + self.number()?;
            let ids = input_ids.get(labels.len()..to).ok_or("its labels are longer than its rows")?;
            let is_learned = run % 2 == 1;
            labels.extend(ids.iter().map(|id| if is_learned { *id as i32 } else { IGNORE_INDEX }));
        }
        for _ in 0..self.number()? {
            let at = self.number()?;
            let label = i32::from_le_bytes(self.array()?);
            *labels.get_mut(at).ok_or("its labels are longer than its rows")? = label;
        }
        let mut weights = Vec::new();
        for _ in 0..self.number()? {
            let to = weights.len() + self.number()?;
            let weight = f32::from_le_bytes(self.array()?);
            if to > length {
                return Err("its weights are more than its rows' tokens".to_owned());
            }
            weights.resize(to, weight);
        }
        match labels.len() == length && [0, length].contains(&weights.len()) {
            true => Ok(Example { input_ids, labels, weights, origin }),
            false => Err("its labels are shorter than its rows".to_owned()),
        }
    }
}
