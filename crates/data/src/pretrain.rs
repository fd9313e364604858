//! Plain text (`stage: pt`), stages 4 to 6 in one: texts → [`Example`]s in which everything is trained.
//!
//! There is no template: a text and the end-of-sequence token after it. With `packing` (the default of
//! the stage) all texts are one stream, cut into blocks of `cutoff_len` tokens, as LLaMA-Factory does;
//! the last block is shorter and kept, where LLaMA-Factory drops what is left of every 1000 rows.

use rayon::prelude::*;

use crate::conversation::Conversation;
use crate::error::DataError;
use crate::labels::{Example, Reason};
use crate::pipeline::{EncodeReport, ExplainedToken};
use crate::proof::Proof;
use crate::rows::RowProblem;
use crate::tokenize::Tokenizer;

/// How texts become examples.
#[derive(Debug, Clone)]
pub struct Pretrain {
    tokenizer: Tokenizer,
    cutoff_len: usize,
    packing: bool,
    end: u32,
}

impl Pretrain {
    /// `template` matters in one case: with `llama3` a text ends with `<|end_of_text|>`, not with the
    /// token that ends a turn.
    ///
    /// # Errors
    /// No end-of-sequence token; a `cutoff_len` of 0.
    pub fn new(
        tokenizer: Tokenizer,
        template: Option<&str>,
        cutoff_len: usize,
        packing: bool,
    ) -> Result<Self, DataError> {
        let end_of_text = (template == Some("llama3")).then(|| tokenizer.token_id("<|end_of_text|>"));
        let Some(end) = end_of_text.flatten().or(tokenizer.eos_id()) else {
            return Err(DataError::Tokenizer {
                path: tokenizer.dir().to_owned(),
                reason: "no end-of-sequence token, so texts could not be told apart".into(),
                help: "set `eos_token` in tokenizer_config.json".into(),
            });
        };
        if cutoff_len == 0 {
            return Err(DataError::Option {
                key: "cutoff_len",
                reason: "is 0, must be at least 1".into(),
                help: "2048 is the default".into(),
            });
        }
        Ok(Self { tokenizer, cutoff_len, packing, end })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The examples of all texts: a text each, cut at `cutoff_len`, or blocks of all of them.
    pub fn encode_all(&self, rows: &[Conversation]) -> (Vec<Example>, EncodeReport) {
        let encoded: Vec<_> = rows.par_iter().map(|row| (row, self.ids(row))).collect();
        let mut report = EncodeReport { rows: rows.len(), ..EncodeReport::default() };
        let mut examples = Vec::new();
        let mut open = Block::default();
        for (row, ids) in encoded {
            let ids = match ids {
                Ok(ids) => ids,
                Err(problem) => {
                    report.refused.push(problem);
                    continue;
                }
            };
            if self.packing {
                examples.extend(open.fill(row, &ids, self));
            } else {
                let cut = ids.len().saturating_sub(self.cutoff_len);
                report.cut_tokens += cut;
                report.cut_rows += usize::from(cut > 0);
                report.cut_ends += usize::from(cut > 0);
                examples.push(example(row, ids[..ids.len() - cut].to_vec()));
            }
        }
        examples.extend(open.take(self));
        // A single token has nothing to predict.
        examples.retain(|example| example.supervised() > 0);
        examples.iter().for_each(|example| report.count(example));
        // Texts have no prompts: everything is trained and ends with the end-of-sequence token.
        report.proof = Proof {
            rows: report.rows,
            examples: report.examples,
            supervised: report.supervised,
            cut_rows: report.cut_rows,
            ..Proof::default()
        };
        (examples, report)
    }

    /// Every token that is trained of a text; with `packing`, of one that is joined with others and cut into blocks.
    ///
    /// # Errors
    /// The text cannot be encoded.
    pub fn explain(&self, row: &Conversation) -> Result<Vec<ExplainedToken>, RowProblem> {
        let ids = self.ids(row)?;
        let (last, kept) = (ids.len() - 1, if self.packing { ids.len() } else { self.cutoff_len });
        let shown = &ids[..kept.min(ids.len())];
        let explained =
            shown.iter().zip(self.tokenizer.texts_of(shown)).enumerate().map(|(i, (&id, text))| {
                ExplainedToken {
                    id,
                    text,
                    label: id as i32,
                    weight: 1.0,
                    reason: if i == last { Reason::End } else { Reason::Answer },
                }
            });
        Ok(explained.collect())
    }

    fn ids(&self, row: &Conversation) -> Result<Vec<u32>, RowProblem> {
        let text = row.messages.first().map_or("", |message| message.content.as_str());
        let mut ids = self
            .tokenizer
            .encode(text)
            .map_err(|error| RowProblem { origin: row.origin.clone(), reason: error.to_string() })?;
        ids.push(self.end);
        if let Some(bos) = self.bos().filter(|_| !self.packing) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn bos(&self) -> Option<u32> {
        self.tokenizer.bos_id().filter(|_| self.tokenizer.adds_bos())
    }
}

/// The block that is being filled, and the row it began with.
#[derive(Default)]
struct Block<'a> {
    first: Option<&'a Conversation>,
    ids: Vec<u32>,
}

impl<'a> Block<'a> {
    /// Adds the ids of a row; returns the blocks that are full now.
    fn fill(&mut self, row: &'a Conversation, mut ids: &[u32], stage: &Pretrain) -> Vec<Example> {
        let mut full = Vec::new();
        while !ids.is_empty() {
            self.first.get_or_insert(row);
            let (now, later) = ids.split_at(ids.len().min(stage.cutoff_len - self.ids.len()));
            self.ids.extend_from_slice(now);
            ids = later;
            if self.ids.len() == stage.cutoff_len {
                full.extend(self.take(stage));
            }
        }
        full
    }

    /// The block as it is. As in LLaMA-Factory its first token gives way to the beginning-of-sequence
    /// token, if the tokenizer adds one.
    fn take(&mut self, stage: &Pretrain) -> Option<Example> {
        let row = self.first.take()?;
        let mut ids = std::mem::take(&mut self.ids);
        if let (Some(bos), Some(first)) = (stage.bos(), ids.first_mut()) {
            *first = bos;
        }
        Some(example(row, ids))
    }
}

fn example(row: &Conversation, input_ids: Vec<u32>) -> Example {
    let labels = input_ids.iter().map(|&id| id as i32).collect();
    Example { input_ids, labels, weights: Vec::new(), origin: row.origin.clone() }
}
