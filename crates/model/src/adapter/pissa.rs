//! Adapters that begin as the largest singular values of their weights: PiSSA (Meng et al., 2024).
//!
//! > W = U·diag(σ)·Vᵀ, A₀ = √(σ/s)·Vᵀ and B₀ = U·√(σ/s) of the R largest, W ← W − s·B₀·A₀
//!
//! The weight beside the adapter is another than the model's, and belongs to the start of this one adapter. It is never
//! stored: whoever loads the adapter decomposes the model's weight again, as PEFT does where `init_lora_weights` names
//! PiSSA. What random vectors the decomposition begins with depends on the layer's name alone, so that a run that goes
//! on has the same bits. [`super::write_converted`] makes it an adapter of the model's own weights instead.

use sft_kernels::matmul::Matmul;
use sft_kernels::{DType, Device, Tensor, random};

use super::path_of;
use crate::ModelError;
use crate::decoder::Decoder;
use crate::dora;
use crate::linear::{Linear, Start};
use crate::method::{AdapterOptions, LoraInit, LoraOptions};
use crate::svd;
use crate::weights::first_non_finite;

/// Gives the fresh adapters of a decoder the start that the options ask for, once everything else is merged.
///
/// # Errors
/// A weight whose rest is not finite.
pub fn begin(dev: &Device, decoder: &mut Decoder, options: &AdapterOptions) -> Result<(), ModelError> {
    let AdapterOptions::Lora(LoraOptions { init: LoraInit::Pissa { iterations }, .. }) = *options else {
        return Ok(());
    };
    for linear in decoder.linears_mut() {
        let Some(lora) = &linear.lora else { continue };
        let (rank, scale) = (lora.a.shape()[0], lora.scale);
        let norms = lora.dora.is_some().then(|| dora::row_norms(&linear.weight));
        let start = take_start(dev, linear, (rank, scale), iterations)?;
        let Linear { weight, lora, .. } = linear;
        let Some(lora) = lora else { continue };
        lora.a.set(start.a.view());
        lora.b.set(start.b.view());
        lora.start = Some(Start { a: start.a.to_host(), b: start.b.to_host() });
        if let (Some(dora), Some(norms)) = (&mut lora.dora, norms) {
            dora.rebase(weight, &norms);
        }
    }
    Ok(())
}

/// Takes the start of an adapter of this rank and scale out of a layer's weight.
///
/// # Errors
/// A rest that is not finite; a quantised weight.
pub(super) fn take_start(
    dev: &Device,
    linear: &mut Linear,
    (rank, scale): (usize, f32),
    iterations: Option<usize>,
) -> Result<Start, ModelError> {
    let path = path_of(linear).to_owned();
    if linear.weight.as_quantized().is_some() {
        return Err(ModelError::Method {
            key: "pissa_init",
            reason: format!("{path} is quantised, and nothing is taken out of codes"),
            help: "begin with `sft export` of the model in bfloat16, or leave `pissa_init` out".into(),
        });
    }
    let mut weight = linear.weight.value().to_dtype(DType::F32);
    let key = random::key(random::name_part("pissa"), &[random::name_part(&path)]);
    let low = svd::low_rank(dev, &weight, rank, iterations, key);
    let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
    let root = |k: usize| (low.values[k] / f64::from(scale)).sqrt();
    let a: Vec<f32> =
        (0..rank).flat_map(|k| low.right[k].iter().map(move |v| (root(k) * v) as f32)).collect();
    let b: Vec<f32> = (0..outputs)
        .flat_map(|i| (0..rank).map(move |k| (i, k)))
        .map(|(i, k)| (root(k) * low.left[k][i]) as f32)
        .collect();
    let start = Start {
        a: Tensor::from_slice(&a, &[rank, inputs]).on(dev),
        b: Tensor::from_slice(&b, &[outputs, rank]).on(dev),
    };
    Matmul::new(start.b.view(), start.a.view(), weight.view_mut()).alpha(-scale).accumulate().run(dev);
    if let Some(element) = first_non_finite(dev, weight.view()) {
        let name = format!("{path}.weight without the start of its adapter");
        return Err(ModelError::NonFinite { folder: std::path::PathBuf::new(), name, element });
    }
    linear.weight = linear.weight.with_value(weight.to_dtype(linear.weight.value().dtype()));
    Ok(start)
}
