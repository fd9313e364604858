//! Low-rank adapters of experts and of routers that are no linear layers, as PEFT stores them.
//!
//! In: the tensors of an adapter → out: A [E, R, in] and B [E, out, R] of the weight of all experts of a layer; and what
//! merging or carrying them comes to.
//!
//! PEFT has them in three forms. For weights with a matrix of each expert (`target_parameters`, transformers 5) there is
//! one linear layer of E·R results and one of R·E inputs; A is at the inputs since 0.19, before at the first dimension of
//! the weight, as it still is where a module does not say that its weights have rows for columns. For experts that are
//! linear layers of their own (`target_modules`, transformers 4) each has its A and B.

use std::collections::BTreeMap;

use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, View};

use super::fit::{Fitting, LayerTensors};
use super::{PREFIX, PeftAdapter, path_of};
use crate::experts::{ExpertLora, ExpertOutlines, Experts, nested};
use crate::method::{Carried, LayerAdapters, LowRank};
use crate::moe::Moe;
use crate::parameter::{Elsewhere, Outline, Parameter, Stored};
use crate::spec::{DecoderSpec, ExpertNames, RouterSpec};
use crate::weights::Turned;

/// The tensors of low-rank adapters of all experts, f32.
#[derive(Debug)]
pub(super) struct ExpertTensors {
    /// [E, R, in].
    pub a: Tensor,
    /// [E, out, R].
    pub b: Tensor,
    /// s.
    pub scale: f32,
}

impl PeftAdapter {
    /// Full names of the weights that carry adapters besides linear layers.
    pub(super) fn parameters(&self, spec: &DecoderSpec) -> Vec<String> {
        let mut found = Vec::new();
        for (i, layer) in spec.layers.iter().enumerate() {
            let Some(moe) = &layer.moe else { continue };
            let path = |name: &str| spec.names.in_block(i, name);
            for names in [moe.gate_up, moe.down] {
                let weight = path(names.weight);
                if self.config.targets_parameter(&weight) || self.of_each_expert(&weight, names).is_some() {
                    found.push(weight);
                }
            }
            let router = path(moe.router.name);
            found.extend(self.router_with_adapter(&moe.router, &router).map(|_| format!("{router}.weight")));
        }
        found
    }

    /// The name of the module that carries an adapter on a router that is no plain linear layer. Transformers 4 has such a
    /// layer there, perhaps of another name, which `target_modules` means.
    fn router_with_adapter(&self, spec: &RouterSpec, path: &str) -> Option<String> {
        if spec.is_linear || spec.ignores_adapters {
            return None;
        }
        if self.config.targets_parameter(&format!("{path}.weight")) {
            return Some(path.to_owned());
        }
        let weight = format!("{path}.weight");
        let names = spec.stored.iter().flat_map(|form| form.shapes(&weight, &[1, 1]));
        let modules = names.filter_map(|(name, _)| name.strip_suffix(".weight").map(str::to_owned));
        let is_there = |module: &String| self.tensors.contains(&format!("{PREFIX}{module}.lora_A.weight"));
        modules.chain([path.to_owned()]).find(|module| self.config.targets(module) && is_there(module))
    }

    /// The linear layers of each expert that make up the weight of this name, if they carry adapters: names with a `*`
    /// for the expert's number.
    fn of_each_expert(&self, weight: &str, names: ExpertNames) -> Option<Vec<String>> {
        let start = weight.strip_suffix(names.weight)?;
        let modules = |stored: &Stored| match stored {
            Stored::Elsewhere(Elsewhere { files, .. }) if files.iter().all(|file| file.contains('*')) => {
                let module = |file: &&str| format!("{start}{}", file.strip_suffix(".weight").unwrap_or(file));
                Some(files.iter().map(module).collect::<Vec<_>>())
            }
            _ => None,
        };
        let is_there =
            |module: &String| self.tensors.contains(&format!("{PREFIX}{}.lora_A.weight", of(module, 0)));
        let mut forms = names.stored.iter().filter_map(modules);
        forms.find(|modules| modules.iter().any(is_there))
    }
}

/// The name of an expert's module.
fn of(module: &str, expert: usize) -> String {
    module.replace('*', &expert.to_string())
}

impl Fitting<'_> {
    /// The tensors on a router that is no plain linear layer.
    pub fn router(&mut self, moe: &Moe) -> Option<(String, LayerTensors)> {
        let (path, shape) = (path_of(&moe.router), moe.router.weight.shape());
        let module = self.adapter.router_with_adapter(&moe.spec.router, path)?;
        let found = self.low_rank(&module, [shape[0], shape[1]])?;
        Some((path.to_owned(), found))
    }

    /// The tensors on the weights of a mixture's experts, by their names.
    pub fn experts_of(&mut self, moe: &Moe) -> BTreeMap<String, ExpertTensors> {
        let both = [(&moe.gate_up, moe.spec.gate_up), (&moe.down, moe.spec.down)];
        let targeted = both.map(|(experts, _)| self.adapter.config.targets_parameter(experts.weight.name()));
        let nested = nested(both.map(|(experts, _)| experts.weight.name()), targeted[1]);
        let mut found = BTreeMap::new();
        for (i, (experts, names)) in both.into_iter().enumerate() {
            let tensors = match self.adapter.of_each_expert(experts.weight.name(), names) {
                Some(modules) => self.each_expert(experts, &modules),
                None if targeted[i] => self.all_experts(experts, nested[i], moe.spec.adapters_swapped),
                None => None,
            };
            found.extend(tensors.map(|tensors| (experts.weight.name().to_owned(), tensors)));
        }
        found
    }

    /// A and B of all experts, each in one matrix.
    fn all_experts(&mut self, experts: &Experts, nested: bool, swapped: bool) -> Option<ExpertTensors> {
        let (config, tensors) = (&self.adapter.config, &self.adapter.tensors);
        let (name, (count, widths)) = (experts.weight.name(), experts.sizes());
        let (rank, scale) = (config.rank_of(name), config.scale_of(name, config.rank_of(name)));
        let swapped = if config.knows_inputs { swapped } else { !experts.transposed };
        let forms = [swapped, !swapped]
            .map(|swapped| ExpertOutlines::new(name, nested, swapped, (count, rank), widths));
        // Whoever wrote the file may have known better than its version says: transformers does.
        let fits = |ExpertOutlines { a, b }: &ExpertOutlines| {
            [a, b].iter().all(|outline| {
                let stored = outline.stored.shapes(&format!("{PREFIX}{}", outline.name), &outline.shape);
                stored.iter().all(|(name, shape)| tensors.shape(name) == Some(shape.as_slice()))
            })
        };
        let [first, second] = &forms;
        let ExpertOutlines { a, b } = if !fits(first) && fits(second) { second } else { first };
        let (a, b) = (self.take_stored(a), self.take_stored(b));
        Some(ExpertTensors { a: a?, b: b?, scale })
    }

    /// A and B of experts that are linear layers of their own, or two: one of the gate, and one of what it multiplies.
    /// Both are one of the sum of their ranks, with zeros where B of one meets rows of the other, and of the larger scale.
    fn each_expert(&mut self, experts: &Experts, modules: &[String]) -> Option<ExpertTensors> {
        let (config, (count, [outputs, inputs])) = (&self.adapter.config, experts.sizes());
        let ranks: Vec<usize> = modules.iter().map(|module| config.rank_of(&of(module, 0))).collect();
        let scales = modules.iter().zip(&ranks).map(|(module, rank)| config.scale_of(&of(module, 0), *rank));
        let (scales, rows) = (scales.collect::<Vec<f32>>(), outputs / modules.len());
        let parts = (0..count).flat_map(|expert| (0..modules.len()).map(move |part| (expert, part)));
        let tensors: Vec<_> = parts
            .map(|(expert, part)| {
                let (path, own) = (of(&modules[part], expert), ranks[part]);
                let a = self.take(format!("{PREFIX}{path}.lora_A.weight"), &[own, inputs]);
                let b = self.take(format!("{PREFIX}{path}.lora_B.weight"), &[rows, own]);
                (expert, part, a.zip(b))
            })
            .collect();
        // The files hold as much: what a configuration says of ranks has been compared with them.
        if tensors.iter().any(|(.., found)| found.is_none()) {
            return None;
        }
        let (rank, scale) = (ranks.iter().sum::<usize>(), scales.iter().copied().fold(0.0, f32::max));
        let (mut a, mut b) = (vec![0.0f32; count * rank * inputs], vec![0.0f32; count * outputs * rank]);
        for (expert, part, found) in tensors {
            let Some((of_a, of_b)) = found else { continue };
            let (own, first) = (ranks[part], ranks[..part].iter().sum::<usize>());
            a[(expert * rank + first) * inputs..][..own * inputs].copy_from_slice(&of_a.to_f32_vec());
            let factor = if scale > 0.0 { scales[part] / scale } else { 0.0 };
            for (row, values) in of_b.to_f32_vec().chunks(own).enumerate() {
                let to = &mut b[(expert * outputs + part * rows + row) * rank + first..][..own];
                to.iter_mut().zip(values).for_each(|(to, value)| *to = factor * value);
            }
        }
        Some(ExpertTensors {
            a: Tensor::from_slice(&a, &[count, rank, inputs]).on(self.dev),
            b: Tensor::from_slice(&b, &[count, outputs, rank]).on(self.dev),
            scale,
        })
    }

    /// A tensor as f32 in the form that it is used in, or a problem.
    fn take_stored(&mut self, outline: &Outline) -> Option<Tensor> {
        let name = format!("{PREFIX}{}", outline.name);
        let found = self.adapter.tensors.weight(&name, &outline.shape, outline.stored);
        self.placed.insert(name);
        let found = found.map(|tensor| tensor.to_dtype(DType::F32).on(self.dev));
        found.map_err(|problems| self.problems.extend(problems)).ok()
    }
}

impl ExpertTensors {
    /// W[e] + s·B[e]·A[e] of each expert, in the weight's type.
    pub fn merged(&self, dev: &Device, experts: &Experts) -> Tensor {
        let ((count, [outputs, _]), rank) = (experts.sizes(), self.a.shape()[1]);
        let mut merged = experts.weight.value().to_dtype(experts.weight.value().dtype());
        let turn = || Turned::new([count, outputs, rank], [0, 2, 1]).apply(&self.b.to_host()).on(dev);
        let turned = experts.transposed.then(turn);
        for expert in 0..count {
            let a = matrix_of(&self.a, expert);
            let to = merged.view_mut().into_rows(expert..expert + 1).reshape(&experts.weight.shape()[1..]);
            let product = match &turned {
                Some(turned) => Matmul::dyt_x(a, matrix_of(turned, expert), to),
                None => Matmul::new(matrix_of(&self.b, expert), a, to),
            };
            product.alpha(self.scale).accumulate().run(dev);
        }
        merged
    }
}

/// Matrix e of [E, …, …].
fn matrix_of(all: &Tensor, expert: usize) -> View<'_> {
    all.view().rows(expert..expert + 1).reshape(&all.shape()[1..])
}

/// Puts adapters on the experts of a mixture, trained or frozen in the compute dtype.
pub(super) fn attach(
    moe: &mut Moe,
    tensors: &mut BTreeMap<String, ExpertTensors>,
    compute: DType,
    trained: bool,
    carriers: &mut LayerAdapters,
) {
    let names = [moe.spec.gate_up.weight, moe.spec.down.weight];
    let both = [moe.gate_up.weight.name(), moe.down.weight.name()];
    let nested = nested(both, tensors.contains_key(both[1]));
    let swapped = moe.spec.adapters_swapped;
    for (i, experts) in [&mut moe.gate_up, &mut moe.down].into_iter().enumerate() {
        let name = experts.weight.name();
        let Some(ExpertTensors { a, b, scale }) = tensors.remove(name) else { continue };
        let (rank, (count, widths)) = (a.shape()[1], experts.sizes());
        let outlines = ExpertOutlines::new(name, nested[i], swapped, (count, rank), widths);
        let parameter = |outline: &Outline, value: Tensor| {
            let parameter = match trained {
                true => Parameter::trained(&outline.name, value, compute),
                false => Parameter::frozen(&outline.name, value.to_dtype(compute)),
            };
            parameter.stored(outline.stored)
        };
        let (a, b) = (parameter(&outlines.a, a), parameter(&outlines.b, b));
        experts.lora = Some(ExpertLora { a, b, scale });
        let carried = Carried::LowRank(LowRank { rank, outputs: 0, dora: false });
        carriers.carried.insert(names[i].to_owned(), carried);
    }
}
