//! Updates that treat every element alike (stage 12 of the walk): a rule is a formula, the driver does the rest.
//!
//! In: gradients (f32), trained weights (f32, whole or in halves), up to three states an element. Out: weights and states
//! overwritten. A state is f32, or in blocks of 8 bits ([`blocks`]). Memory-bound: an element costs its gradient, its
//! weight twice and every state twice.
//!
//! Rules are in [`rules`]; their constants are worked out in f64 once a step, the arithmetic of an element is f32 in the
//! order of the package that the rule comes from. Results depend on no number of threads: an element is read and written
//! by itself, a block of 8 bits by one task.

pub mod blocks;
mod on_cuda;
pub mod rules;

use half::bf16;

use crate::halves::{self, MasterWeight};
use crate::scratch::Disjoint;
use crate::{DType, Device, Isa, View, ViewMut};

pub use blocks::Blocks;
pub(crate) use on_cuda::SOURCE;

/// Elements that one task handles: a multiple of a block's.
const CHUNK: usize = 8192;

/// Most states that a rule keeps for an element.
pub const MOST_STATES: usize = 3;

/// What weights of one group share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Pull towards 0, as the rule has it.
    pub weight_decay: f64,
}

/// Most groups of one update.
pub const MOST_GROUPS: usize = 4;

/// Numbers of a rule that depend on the group.
pub type Factors = [f32; 4];

/// Numbers of a rule that all weights share.
pub type Constants = [f32; 12];

/// A formula for one element, with `S` states.
pub trait Rule<const S: usize>: Copy + Send + Sync {
    /// In profiles.
    const NAME: &'static str;
    /// The entry point in `update.cu`.
    const KERNEL: &'static str;
    /// The one for states in 8 bits, where there is one.
    const KERNEL_OF_BLOCKS: &'static str = "";
    /// Whether a state can be negative: which table of 8 bits holds it.
    const SIGNED: [bool; S];

    /// What depends on the group, worked out in f64.
    fn factors(&self, group: Group) -> Factors;

    /// What all weights share.
    fn constants(&self) -> Constants;

    /// The formula over slices of one length.
    fn apply(
        isa: Isa,
        constants: &Constants,
        factors: &Factors,
        g: &[f32],
        p: &mut [f32],
        states: [&mut [f32]; S],
    );
}

/// The states of a weight's elements.
#[derive(Debug)]
pub enum States<'a, const S: usize> {
    /// f32.
    Whole([ViewMut<'a>; S]),
    /// 8 bits an element and a scale a block.
    Blocks([Blocks<'a>; S]),
}

/// The update of one weight.
#[derive(Debug)]
pub struct Update<'a, const S: usize> {
    /// Its gradient, f32.
    pub g: View<'a>,
    /// The weight.
    pub p: MasterWeight<'a>,
    /// Its states.
    pub states: States<'a, S>,
    /// Its group.
    pub group: usize,
}

impl<const S: usize> Update<'_, S> {
    fn check(&self, groups: usize) {
        let n = self.g.elements();
        assert_eq!(self.p.elements(), n, "update: lengths");
        assert!(self.group < groups && groups <= MOST_GROUPS && S <= MOST_STATES, "update: groups");
        match &self.states {
            States::Whole(states) => states.iter().for_each(|state| {
                assert_eq!((state.elements(), state.dtype()), (n, DType::F32), "update: states");
            }),
            States::Blocks(states) => states.iter().for_each(|blocks| {
                assert_eq!(blocks.elements, n, "update: states");
                blocks.check();
            }),
        }
        assert_eq!(self.g.dtype(), DType::F32, "update: types");
        match &self.p {
            MasterWeight::Whole(p) => assert_eq!(p.dtype(), DType::F32, "update: types"),
            MasterWeight::Halves { high, low } => {
                assert_eq!([high.dtype(), low.dtype()], [DType::BF16; 2], "update: types of halves");
                assert_eq!(low.elements(), n, "update: lengths of halves");
            }
        }
    }
}

/// One update of every weight.
///
/// # Panics
/// If lengths differ or types are others; more than [`MOST_GROUPS`] groups.
pub fn update_all<'a, R: Rule<S>, const S: usize>(
    dev: &Device,
    rule: &R,
    groups: &[Group],
    updates: impl Iterator<Item = Update<'a, S>>,
) {
    let factors: Vec<Factors> = groups.iter().map(|group| rule.factors(*group)).collect();
    let constants = rule.constants();
    let updates = updates.inspect(|update| update.check(groups.len()));
    match dev.cuda() {
        Some(cuda) => on_cuda::update_all::<R, S>((dev, cuda), &constants, &factors, updates),
        None => updates.for_each(|update| {
            let factors = factors[update.group];
            update_on_cpu::<R, S>(dev, &constants, &factors, update);
        }),
    }
}

/// A weight of which tasks take chunks.
enum Chunks<'a> {
    Whole(Disjoint<'a, f32>),
    Halves { high: Disjoint<'a, bf16>, low: Disjoint<'a, bf16> },
}

/// States of which tasks take chunks.
enum StateChunks<'a, const S: usize> {
    Whole([Disjoint<'a, f32>; S]),
    Blocks([blocks::Parts<'a>; S]),
}

fn update_on_cpu<R: Rule<S>, const S: usize>(
    dev: &Device,
    constants: &Constants,
    factors: &Factors,
    update: Update<'_, S>,
) {
    let n = update.g.elements();
    let _timed = dev.pass(R::NAME, (3 + 2 * S) * update.g.byte_len());
    let g = update.g.as_slice::<f32>();
    let weight = match update.p {
        MasterWeight::Whole(p) => Chunks::Whole(Disjoint::of(p.as_mut_slice())),
        MasterWeight::Halves { high, low } => {
            Chunks::Halves { high: Disjoint::of(high.as_mut_slice()), low: Disjoint::of(low.as_mut_slice()) }
        }
    };
    let states = match update.states {
        States::Whole(states) => {
            StateChunks::Whole(states.map(|state| Disjoint::of(state.as_mut_slice::<f32>())))
        }
        States::Blocks(states) => {
            let mut signed = R::SIGNED.into_iter();
            StateChunks::Blocks(states.map(|blocks| blocks.parts(signed.next() == Some(true))))
        }
    };
    dev.for_each(n.div_ceil(CHUNK), |i| {
        let (start, len) = (i * CHUNK, CHUNK.min(n - i * CHUNK));
        let run = |p: &mut [f32]| {
            let (isa, g) = (dev.isa(), &g[start..start + len]);
            match &states {
                StateChunks::Whole(states) => {
                    // SAFETY: every chunk is taken by one task.
                    let states = states.each_ref().map(|state| unsafe { state.part(start, len) });
                    R::apply(isa, constants, factors, g, p, states);
                }
                StateChunks::Blocks(states) => {
                    let mut values = [[0.0; CHUNK]; S];
                    for (state, values) in states.iter().zip(&mut values) {
                        // SAFETY: as above; a chunk is of whole blocks.
                        unsafe { state.load(isa, start, &mut values[..len]) };
                    }
                    R::apply(
                        isa,
                        constants,
                        factors,
                        g,
                        p,
                        values.each_mut().map(|values| &mut values[..len]),
                    );
                    for (state, values) in states.iter().zip(&values) {
                        // SAFETY: as above.
                        unsafe { state.store(isa, start, &values[..len]) };
                    }
                }
            }
        };
        match &weight {
            // SAFETY: every chunk is taken by one task.
            Chunks::Whole(p) => run(unsafe { p.part(start, len) }),
            Chunks::Halves { high, low } => {
                // SAFETY: as above.
                let (high, low) = unsafe { (high.part(start, len), low.part(start, len)) };
                let mut whole = [0.0; CHUNK];
                let p = &mut whole[..len];
                halves::join_into(high, low, p);
                run(p);
                halves::split_into(p, high, low);
            }
        }
    });
}

#[cfg(test)]
mod tests;
