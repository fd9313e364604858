//! Which weights of a decoder are quantised, and how these lie in files.
//!
//! Quantised here are all linear layers that stay as they are, but for the head: transformers' rule for bitsandbytes.
//! Embeddings, norms, routers that are no linear layers, and experts that lie in one tensor keep their type. Of a
//! checkpoint that is quantised already those weights are that its files have so.

mod bitsandbytes;
mod fp8;
mod int4;
pub(crate) mod mxfp4;

use std::fmt;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};
use sft_kernels::quantized::{Codes, FourBit, QuantizedWeight, Scales, Scheme};
use sft_kernels::{DType, Tensor};

use crate::weights::{StoredTensor, WeightFiles};

/// The types in which a decoder is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Of activations and of frozen weights.
    pub compute: DType,
    /// Of the linear layers that stay as they are; `None` for the compute dtype.
    pub quantization: Option<Quantization>,
}

impl From<DType> for Precision {
    fn from(compute: DType) -> Self {
        Self { compute, quantization: None }
    }
}

/// How frozen linear layers are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// While they are read.
    Made(Scheme),
    /// As the checkpoint has them.
    Found(Found),
}

/// How a checkpoint has its linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// As bitsandbytes writes them.
    BitsAndBytes(Scheme),
    /// Integers of 4 bits, as GPTQ's tools write them.
    Gptq {
        /// Inputs that share a scale.
        group: usize,
        /// What is added to a stored zero.
        added: u8,
        /// Whether groups may be of inputs that are no neighbours (`desc_act`): such are decoded while they are read.
        shuffled: bool,
    },
    /// The same, as AWQ's write them.
    Awq {
        /// Inputs that share a scale.
        group: usize,
    },
    /// Floats of 8 bits.
    Fp8 {
        /// Rows and columns that share a scale; `None` for rows, or for all.
        tile: Option<[usize; 2]>,
    },
}

impl Quantization {
    /// Whether weights are decoded while they are read.
    pub(crate) fn is_decoded(self) -> bool {
        matches!(self, Quantization::Found(Found::Gptq { shuffled: true, .. }))
    }

    /// Bytes of a weight [out, in] that is kept in codes.
    pub fn bytes(self, shape: [usize; 2]) -> usize {
        let elements = shape[0].saturating_mul(shape[1]);
        match self {
            Quantization::Made(scheme) | Quantization::Found(Found::BitsAndBytes(scheme)) => {
                scheme.bytes(shape)
            }
            // A scale and a zero, f32, for each group.
            Quantization::Found(Found::Gptq { group, .. } | Found::Awq { group }) => {
                (elements.div_ceil(2)).saturating_add(elements.div_ceil(group.max(1)).saturating_mul(8))
            }
            Quantization::Found(Found::Fp8 { tile }) => {
                let [rows, columns] = tile.unwrap_or([1, shape[1]]);
                let tiles = shape[0].div_ceil(rows.max(1)).saturating_mul(shape[1].div_ceil(columns.max(1)));
                elements.saturating_add(tiles.saturating_mul(4))
            }
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quantization::Made(scheme) | Quantization::Found(Found::BitsAndBytes(scheme)) => scheme.fmt(f),
            Quantization::Found(Found::Gptq { shuffled: true, .. }) => {
                f.write_str("int4 (GPTQ with desc_act, decoded)")
            }
            Quantization::Found(Found::Gptq { .. }) => f.write_str("int4 (GPTQ)"),
            Quantization::Found(Found::Awq { .. }) => f.write_str("int4 (AWQ)"),
            Quantization::Found(Found::Fp8 { .. }) => f.write_str("fp8"),
        }
    }
}

/// How a checkpoint has its linear layers, by its `config.json`; `None` for one whose linear layers are not quantised, or are
/// decoded while they are read.
///
/// # Errors
/// A way of quantising that is not read, and why.
pub fn of_checkpoint(config: &Map<String, Value>) -> Result<Option<Found>, String> {
    let Some(quantization) = config.get("quantization_config") else { return Ok(None) };
    let method = quantization.get("quant_method").and_then(Value::as_str);
    let flag = |key: &str| quantization.get(key).and_then(Value::as_bool).unwrap_or(false);
    let is_of_bits = flag("load_in_4bit") || flag("load_in_8bit");
    Ok(Some(match method {
        // Files before 2023 name no method.
        None | Some("bitsandbytes") if is_of_bits => Found::BitsAndBytes(bitsandbytes::scheme(quantization)?),
        Some("gptq") => int4::gptq(quantization)?,
        Some("awq") => int4::awq(quantization)?,
        Some("fp8" | "fbgemm_fp8") => fp8::found(quantization)?,
        // Of experts alone, whose weights are then in 16 bits.
        Some("mxfp4") => return Ok(None),
        _ => {
            return Err(format!(
                "the weights are quantized by {} (`quantization_config`), and only bitsandbytes, GPTQ, AWQ, FP8 \
                 and MXFP4 are read: take the release in bfloat16, and set `quantization_bit` for QLoRA",
                method.unwrap_or("an unnamed method")
            ));
        }
    }))
}

/// What `config.json` says of a checkpoint that is written with such weights; nothing where they are written decoded.
pub(crate) fn config_of(scheme: Option<Scheme>, compute: DType) -> Option<Value> {
    scheme.map(|scheme| bitsandbytes::config_of(scheme, compute))
}

/// The scheme of a weight, if it is one of those that are made and written here.
pub(crate) fn scheme_of(weight: &QuantizedWeight) -> Option<Scheme> {
    match weight.codes() {
        Codes::Fp8 { .. } | Codes::FourBit { kind: FourBit::Int4, .. } => None,
        Codes::Int8 { .. } => Some(Scheme::Int8),
        Codes::FourBit { kind, scales, .. } => {
            Some(Scheme::FourBit { kind: *kind, double: matches!(scales, Scales::Nested(_)) })
        }
    }
}

/// The tensors that a quantised weight is in files: bitsandbytes' codes as they are, others decoded.
pub(crate) fn in_files<'a>(name: &str, weight: &'a QuantizedWeight) -> Vec<(String, StoredTensor<'a>)> {
    bitsandbytes::in_files(name, weight).unwrap_or_else(|| {
        let dtype = match weight.dtype() {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
        };
        let bytes = weight.to_tensor().view().bytes().to_vec();
        vec![(name.to_owned(), StoredTensor::raw(dtype, weight.shape().to_vec(), bytes.into()))]
    })
}

/// A weight of the files.
pub(crate) enum Read {
    /// As it is there.
    Codes(Box<QuantizedWeight>),
    /// What it stands for, [out, in], f32.
    Decoded(Tensor),
}

/// A weight from the files, whose values products round to `compute`; `None` if it is not quantised there.
///
/// # Errors
/// One line: what is missing, or does not fit.
pub(crate) fn read(
    files: &WeightFiles,
    found: Found,
    (name, shape): (&str, [usize; 2]),
    compute: DType,
) -> Option<Result<Read, String>> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    Some(match found {
        Found::BitsAndBytes(_) => {
            let there = bitsandbytes::is_there(files, name);
            there
                .then(|| bitsandbytes::read(files, name, shape, compute))?
                .map(|weight| Read::Codes(Box::new(weight)))
        }
        Found::Gptq { group, added, shuffled } => int4::is_there(files, stem)
            .then(|| int4::read_gptq(files, stem, shape, (group, added, shuffled)))?
            .and_then(|weight| match weight {
                int4::Gptq::Codes(codes) => of_codes(name, shape, *codes, compute),
                int4::Gptq::Decoded(values) => Ok(Read::Decoded(Tensor::from_slice(&values, &shape))),
            }),
        Found::Awq { group } => int4::is_there(files, stem)
            .then(|| int4::read_awq(files, stem, shape, group))?
            .and_then(|codes| of_codes(name, shape, codes, compute)),
        Found::Fp8 { tile } => {
            fp8::read(files, name, shape, tile)?.and_then(|codes| of_codes(name, shape, codes, compute))
        }
    })
}

fn of_codes(name: &str, shape: [usize; 2], codes: Codes, compute: DType) -> Result<Read, String> {
    let weight = QuantizedWeight::from_codes(shape, codes, compute);
    weight.map(|weight| Read::Codes(Box::new(weight))).map_err(|problem| format!("{name}: {problem}"))
}
