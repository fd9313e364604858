//! A frozen model beside the one that is trained, whose logits a loss reads (stages 9 and 10 of the walk).
//!
//! In: a micro-batch → out: logits at its supervised positions, chunk by chunk as the head takes them, so that they
//! never exist whole.

use std::ops::Range;

use sft_kernels::{DType, Device, View};

use crate::ModelError;
use crate::decoder::Decoder;
use crate::head::{self, LogitParams};
use crate::method::Adapters;
use crate::pass::Batch;
use crate::spec::DecoderSpec;
use crate::workspace::{Capacity, Purpose, Workspace, WorkspaceBytes};

/// A frozen model with its buffers.
#[derive(Debug)]
pub struct Reference {
    decoder: Decoder,
    work: Workspace,
}

impl Reference {
    /// Room for as much as the workspace of the trained model has, whose chunks are its own then.
    pub fn new(dev: &Device, decoder: Decoder, capacity: Capacity) -> Self {
        let (adapters, compute) = (decoder.adapters(), decoder.compute);
        let work = Workspace::new(dev, &decoder.spec, adapters, compute, capacity, Purpose::Forward);
        Self { decoder, work }
    }

    /// What the buffers of [`Reference::new`] would take on a GPU or on the CPU, nothing allocated.
    pub fn plan(spec: &DecoderSpec, compute: DType, capacity: Capacity, on_card: bool) -> WorkspaceBytes {
        let adapters = Adapters::none(spec);
        Workspace::plan(spec, &adapters, compute, capacity, Purpose::Forward, on_card)
    }

    /// Computes all but the logits.
    pub(crate) fn forward(&mut self, dev: &Device, batch: Batch<'_>) -> Result<(), ModelError> {
        self.decoder.prepare_head(dev, batch, &mut self.work)
    }

    /// Logits of a chunk of the supervised positions of [`Reference::forward`].
    pub(crate) fn logits(&mut self, dev: &Device, part: Range<usize>) -> View<'_> {
        let (params, layers) = (LogitParams::of(&self.decoder.spec), self.decoder.head_layers());
        head::logits_of(dev, params, layers, part, self.work.head_mut())
    }
}
