//! Values for each token of a micro-batch that the host computes: angles, weights of the loss.

use sft_kernels::{DType, Device, Tensor, View};

/// f32 values for each token, computed on the host for wherever ops run.
#[derive(Debug)]
pub(crate) struct Column {
    values: Tensor,
    /// A copy on the GPU, if that is where ops run.
    sent: Option<Tensor>,
}

impl Column {
    /// Room for `shape[0]` tokens.
    pub(crate) fn new(dev: &Device, shape: &[usize]) -> Self {
        let values = Tensor::zeros(DType::F32, shape);
        let sent = dev.zeros(DType::F32, shape);
        Self { values, sent: (!sent.is_on_host()).then_some(sent) }
    }

    /// Of the first `tokens` tokens, to fill; to be followed by [`Column::send`].
    pub(crate) fn values(&mut self, tokens: usize) -> &mut [f32] {
        self.values.head_mut(tokens).as_mut_slice()
    }

    /// Gives the first `tokens` to wherever ops run.
    pub(crate) fn send(&mut self, tokens: usize) {
        if let Some(sent) = &mut self.sent {
            sent.head_mut(tokens).copy_from(self.values.head(tokens));
        }
    }

    /// The first `tokens`, where ops run.
    pub(crate) fn view(&self, tokens: usize) -> View<'_> {
        self.sent.as_ref().unwrap_or(&self.values).head(tokens)
    }
}
