//! Labels (stage 6 of the walk): tokens with spans + supervision policy → [`Example`].

use crate::conversation::Origin;

/// The label of a token that is not trained: torch's and Hugging Face's `ignore_index`.
pub const IGNORE_INDEX: i32 = -100;

/// A row ready for training, in Hugging Face's alignment: `labels[t]` belongs to `input_ids[t]`.
/// The shift by one token is made in [`crate::pack`] and nowhere else.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, `[N]`.
    pub input_ids: Vec<u32>,
    /// The id where the token is trained, else [`IGNORE_INDEX`], `[N]`.
    pub labels: Vec<i32>,
    /// The row it was made of (the first, where several were joined).
    pub origin: Origin,
}

impl Example {
    /// Number of tokens, N.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Tokens that count in the loss: labels that are not ignored, the first token apart, which no
    /// token predicts.
    pub fn supervised(&self) -> usize {
        let predicted = self.labels.iter().skip(1);
        predicted.filter(|&&label| label != IGNORE_INDEX).count()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn origin() -> Origin {
        Origin {
            dataset: "made_up".into(),
            file: std::sync::Arc::new("made_up.json".into()),
            line: 1,
            row: 0,
        }
    }

    pub(crate) fn example(input_ids: &[u32], labels: &[i32]) -> Example {
        Example {
            input_ids: input_ids.to_vec(),
            labels: labels.to_vec(),
            origin: origin(),
        }
    }
}
