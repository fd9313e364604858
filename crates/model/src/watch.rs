//! Where a pass first went wrong: what layers put out is looked at as it comes, and the first value that is NaN or
//! infinite is kept.
//!
//! In: the outputs of a pass with a [`Watch`] in it. Out: [`NonFinite`], the first of them. A step is watched only when
//! its loss or gradient has turned out not to be finite, by doing it a second time: weights, rows and dropout masks are
//! the same, so the same values come out, and steps that are well pay nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sft_kernels::{Device, View};

use crate::weights::first_non_finite;

/// The first value of a pass that is not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NonFinite {
    /// What put it out, with the block it is in: `model.layers.3 mlp.down_proj`.
    pub op: String,
    /// Whether it is a gradient.
    pub is_gradient: bool,
    /// The token of the micro-batch that it belongs to, where it belongs to one.
    pub token: Option<usize>,
}

/// Keeps the first value that is not finite.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    block: String,
    is_backward: bool,
    first: Option<NonFinite>,
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows is of this block (empty: of none).
    pub(crate) fn enter(&self, block: String, is_backward: bool) {
        let mut seen = self.seen();
        (seen.block, seen.is_backward) = (block, is_backward);
    }

    /// Looks at what `op` put out, and says which token each of its rows is of.
    pub(crate) fn see(
        &self,
        dev: &Device,
        op: &str,
        values: View<'_>,
        token_of: impl Fn(usize) -> Option<usize>,
    ) {
        let mut seen = self.seen();
        if seen.first.is_some() {
            return;
        }
        let Some(at) = first_non_finite(dev, values) else { return };
        let width = values.elements() / values.dim(0).max(1);
        let token = token_of(at / width.max(1));
        let op = match seen.block.is_empty() {
            true => op.to_owned(),
            false => format!("{} {op}", seen.block),
        };
        seen.first = Some(NonFinite { op, is_gradient: seen.is_backward, token });
    }

    /// The first one.
    pub(crate) fn into_first(self) -> Option<NonFinite> {
        self.seen.into_inner().unwrap_or_else(PoisonError::into_inner).first
    }
}
