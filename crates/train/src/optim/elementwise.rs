//! Optimizers that treat every element alike: states beside the weights, and a rule of `sft_kernels::update`.

use sft_kernels::update::blocks::{self, Blocks};
use sft_kernels::update::{self, States, Update};
use sft_kernels::{DType, Device, Tensor};
use sft_model::parameter::{ForUpdate, Outline, Parameter};
use sft_model::weights::WeightFiles;

use super::groups::Grouped;
use super::state::{Slot, State};
use super::{Groups, Optimizer};

/// Bits of a state's element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// f32.
    B32,
    /// 8 bits in blocks of 256 for weights of at least so many elements, else f32.
    B8 {
        /// bitsandbytes' `min_8bit_size`.
        min_elements: usize,
    },
}

impl Bits {
    /// As bitsandbytes has it by default.
    pub const B8: Bits = Bits::B8 { min_elements: 4096 };

    fn are_8_for(self, elements: usize) -> bool {
        matches!(self, Bits::B8 { min_elements } if elements >= min_elements)
    }
}

/// What such an optimizer is: its states, and its rule in each step.
pub(super) trait Formula<const S: usize>: Send {
    type Rule: update::Rule<S>;
    /// Names of the states in checkpoints, with those of their scales in 8 bits.
    const KINDS: [[&'static str; 2]; S];

    /// The rule of the update number `step`, from 1.
    fn rule(&self, step: u64, grad_scale: f32) -> Self::Rule;
}

/// What is kept for a weight.
pub(super) fn layout<const S: usize>(
    kinds: &[[&'static str; 2]; S],
    bits: Bits,
    weight: &Outline,
) -> Vec<Slot> {
    let n = weight.elements();
    if !bits.are_8_for(n) {
        return kinds.iter().map(|[kind, _]| Slot::of(kind, &weight.shape)).collect();
    }
    let [codes, scales] = blocks::shapes(n);
    let pair = |[kind, scale]: &[&'static str; 2]| {
        [Slot { kind, dtype: DType::BF16, shape: vec![codes] }, Slot::of(scale, &[scales])]
    };
    kinds.iter().flat_map(pair).collect()
}

/// An optimizer with `S` states an element.
pub(super) struct Elementwise<F, const S: usize> {
    formula: F,
    bits: Bits,
    groups: Grouped,
    state: State,
    updates: u64,
}

impl<F: Formula<S>, const S: usize> Elementwise<F, S> {
    pub fn new(formula: F, bits: Bits, groups: Groups, parameters: &[&mut Parameter]) -> Self {
        let outlines: Vec<Outline> = parameters.iter().map(|p| p.outline()).collect();
        let state = State::new(parameters, |weight| layout(&F::KINDS, bits, weight));
        Self { formula, bits, groups: groups.group(&outlines), state, updates: 0 }
    }
}

impl<F: Formula<S>, const S: usize> Optimizer for Elementwise<F, S> {
    fn update(
        &mut self,
        dev: &Device,
        parameters: &mut [&mut Parameter],
        learning_rate: f64,
        grad_scale: f32,
    ) {
        assert_eq!(parameters.len(), self.state.len(), "the parameters that the state was made for");
        self.updates += 1;
        let rule = self.formula.rule(self.updates, grad_scale);
        let weights = parameters.iter_mut().zip(self.state.iter_mut()).zip(&self.groups.of);
        let updates = weights.filter_map(|((parameter, tensors), group)| {
            let elements = parameter.elements();
            let ForUpdate { weight: p, gradient: g } = parameter.for_update()?;
            let states = states(tensors, self.bits.are_8_for(elements).then_some(elements));
            Some(Update { g, p, states, group: *group })
        });
        update::update_all(dev, &rule, &self.groups.at(learning_rate), updates);
    }

    fn state(&self) -> Vec<(String, &Tensor)> {
        self.state.named()
    }

    fn restore(&mut self, files: &WeightFiles, updates: u64) -> Result<(), String> {
        self.updates = updates;
        self.state.restore(files)
    }
}

/// The tensors of a weight as states: of so many elements in 8 bits, or f32.
pub(super) fn states<'a, const S: usize>(
    tensors: Vec<&'a mut Tensor>,
    in_blocks_of: Option<usize>,
) -> States<'a, S> {
    let mut tensors = tensors.into_iter().map(Tensor::view_mut);
    let mut next = || tensors.next().expect("a weight has the tensors that were laid out for it");
    match in_blocks_of {
        None => States::Whole(std::array::from_fn(|_| next())),
        Some(elements) => {
            States::Blocks(std::array::from_fn(|_| Blocks { codes: next(), absmax: next(), elements }))
        }
    }
}
