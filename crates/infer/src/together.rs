//! Many prompts → their answers, several rows at a time. A row that ends makes room for the next prompt, which is read
//! before the others go on, but for what an earlier one began with too.

use std::ops::ControlFlow;

use sft_kernels::{Device, random};
use sft_model::Decoder;
use sft_model::workspace::Workspace;

use crate::InferError;
use crate::generate::{
    Context, Continuation, Generation, GenerationOptions, Generator, StopReason, has_one_rotation,
};
use crate::slots::{Slots, Told};

/// What is to be continued.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'p> {
    /// Its row: the answer is drawn with a seed of its own.
    pub row: usize,
    /// Its tokens.
    pub ids: &'p [u32],
}

/// A decoder that continues prompts, up to `rows` at a time.
#[derive(Debug)]
pub struct Together<'a> {
    dev: &'a Device,
    decoder: &'a Decoder,
    work: &'a mut Workspace,
    rows: usize,
}

impl<'a> Together<'a> {
    /// Up to `rows` rows at a time, as many as `work` has tokens at most.
    pub fn new(dev: &'a Device, decoder: &'a Decoder, work: &'a mut Workspace, rows: usize) -> Self {
        Self { dev, decoder, work, rows }
    }

    /// Continues every prompt. `stop` is asked before every token; `on_end` gets each row with its answer as it ends, or why
    /// it has none (no token, no room). Whether none was stopped.
    ///
    /// # Errors
    /// What is wrong with the model, whatever the row.
    pub fn generate(
        &mut self,
        prompts: &[Prompt<'_>],
        options: &GenerationOptions,
        mut stop: impl FnMut() -> bool,
        mut on_end: impl FnMut(usize, Result<Generation, InferError>),
    ) -> Result<bool, InferError> {
        let spec = &self.decoder.spec;
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let mut options = options.clone();
            options.sampling.seed = random::key(options.sampling.seed, &[prompt.row as u64]);
            match Continuation::new(Context::of(spec), prompt.ids, &options) {
                Ok(row) if has_one_rotation(spec, row.end) => together.push((*prompt, row)),
                Ok(_) => alone.push((*prompt, options)),
                Err(error) => on_end(prompt.row, Err(error)),
            }
        }
        if !self.generate_together(together, &mut stop, &mut on_end)? {
            return Ok(false);
        }
        // Rows whose positions depend on their length do not go on with others.
        let mut generator = None;
        for (Prompt { row, ids }, options) in alone {
            let generator = generator.get_or_insert_with(|| Generator::new(self.dev, self.decoder));
            let goes_on = |stop: bool| if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let generation = generator.generate(ids, &options, |_| goes_on(stop()))?;
            if generation.reason == StopReason::Cancelled {
                return Ok(false);
            }
            on_end(row, Ok(generation));
        }
        Ok(true)
    }

    fn generate_together(
        &mut self,
        waiting: Vec<(Prompt<'_>, Continuation)>,
        stop: &mut impl FnMut() -> bool,
        on_end: &mut impl FnMut(usize, Result<Generation, InferError>),
    ) -> Result<bool, InferError> {
        if waiting.is_empty() {
            return Ok(true);
        }
        let longest = waiting.iter().map(|(_, row)| row.end).max().unwrap_or(0);
        let size = (waiting.len().min(self.rows), longest);
        let mut rows = Slots::new(self.dev, self.decoder, self.work, size);
        let mut waiting = waiting.into_iter();
        let mut broken = None;
        loop {
            while rows.has_room() {
                let Some((Prompt { row, ids }, continuation)) = waiting.next() else { break };
                rows.begin(row as u64, ids, continuation);
            }
            if rows.is_empty() {
                return Ok(true);
            }
            let step = rows.step(
                usize::MAX,
                || !stop(),
                |row, told| match told {
                    Told::Read { .. } | Told::Token(_) => {}
                    Told::Ended(Ok(generation)) => on_end(row as usize, Ok(generation)),
                    Told::Ended(Err(error)) => broken = Some(error),
                },
            )?;
            match (broken.take(), step) {
                (Some(error), _) => return Err(error),
                (None, None) => return Ok(false),
                (None, Some(())) => {}
            }
        }
    }
}
