//! bitsandbytes' checkpoints, read and written.
//!
//! | tensor | type and shape | content |
//! |---|---|---|
//! | `….weight` | u8 [⌈out·in / 2⌉, 1] | codes of 4 bits |
//! | `….weight.absmax` | f32 [blocks], or u8 with double quantisation | scales |
//! | `….weight.quant_map` | f32 [16] | what codes stand for |
//! | `….weight.nested_absmax`, `….nested_quant_map` | f32 | of the scales |
//! | `….weight.quant_state.bitsandbytes__nf4` | u8: JSON | shape, block sizes, offset of the scales |
//! | `….weight`, `….SCB` | i8 [out, in], f32 [out] | in 8 bits: codes and scales |

use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};
use sft_kernels::DType;
use sft_kernels::quantized::{Bytes, Codes, FourBit, Nested, QuantizedWeight, Scales, Scheme};

use crate::weights::{StoredTensor, WeightFiles};

/// What `quantization_config` says of the weights.
///
/// # Errors
/// A type that is not read.
pub(super) fn scheme(quantization: &Value) -> Result<Scheme, String> {
    let flag = |key: &str| quantization.get(key).and_then(Value::as_bool).unwrap_or(false);
    if !flag("load_in_4bit") {
        return Ok(Scheme::Int8);
    }
    let name = quantization.get("bnb_4bit_quant_type").and_then(Value::as_str).unwrap_or("fp4");
    let kind = FourBit::ALL.into_iter().find(|kind| kind.name() == name);
    let kind = kind.ok_or_else(|| {
        format!("`bnb_4bit_quant_type` is `{name}`: bitsandbytes writes nf4 and fp4, and no other is read")
    })?;
    Ok(Scheme::FourBit { kind, double: flag("bnb_4bit_use_double_quant") })
}

/// What `config.json` says of a checkpoint that is written with such weights.
pub(super) fn config_of(scheme: Scheme, compute: DType) -> Value {
    let four_bit = match scheme {
        Scheme::FourBit { kind, double } => Some((kind, double)),
        Scheme::Int8 => None,
    };
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four_bit.is_some(),
        "load_in_8bit": four_bit.is_none(),
        "bnb_4bit_quant_type": four_bit.map_or("fp4", |(kind, _)| kind.name()),
        "bnb_4bit_use_double_quant": four_bit.is_some_and(|(_, double)| double),
        "bnb_4bit_compute_dtype": compute.name(),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": null,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
    })
}

fn state_name(name: &str, kind: FourBit) -> String {
    format!("{name}.quant_state.bitsandbytes__{}", kind.name())
}

/// The name of int8's scales.
fn row_scales(name: &str) -> String {
    format!("{}.SCB", name.strip_suffix(".weight").unwrap_or(name))
}

/// The tensors that a quantised weight is in files; `None` for codes that bitsandbytes does not know.
pub(super) fn in_files<'a>(
    name: &str,
    weight: &'a QuantizedWeight,
) -> Option<Vec<(String, StoredTensor<'a>)>> {
    let [outputs, inputs] = *weight.shape();
    Some(match weight.codes() {
        Codes::Fp8 { .. } | Codes::FourBit { kind: FourBit::Int4, .. } => return None,
        Codes::Int8 { bytes, scales } => vec![
            (name.to_owned(), StoredTensor::raw(Dtype::I8, vec![outputs, inputs], bytes.as_slice().into())),
            (row_scales(name), StoredTensor::raw(Dtype::F32, vec![outputs], scales.view().bytes().into())),
            (
                format!("{}_format", name),
                // Rows after each other.
                StoredTensor::raw(Dtype::U8, Vec::new(), vec![0].into()),
            ),
        ],
        Codes::FourBit { kind, bytes, block, scales, .. } => {
            let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            let mut state = json!({
                "quant_type": kind.name(),
                "blocksize": block,
                "dtype": weight.dtype().name(),
                "shape": [outputs, inputs],
            });
            let codes = bytes.as_slice();
            let mut tensors = vec![
                (name.to_owned(), StoredTensor::raw(Dtype::U8, vec![codes.len(), 1], codes.into())),
                (
                    format!("{name}.quant_map"),
                    StoredTensor::raw(Dtype::F32, vec![16], floats(kind.table()).into()),
                ),
            ];
            let absmax = format!("{name}.absmax");
            match scales {
                Scales::Plain(scales) => {
                    let bytes = scales.view().bytes().into();
                    tensors.push((absmax, StoredTensor::raw(Dtype::F32, scales.shape().to_vec(), bytes)));
                }
                Scales::Nested(nested) => {
                    let Nested { codes, map, absmax: of_scales, offset } = nested.as_ref();
                    let codes = codes.as_slice();
                    let shape = of_scales.shape().to_vec();
                    tensors.extend([
                        (absmax, StoredTensor::raw(Dtype::U8, vec![codes.len()], codes.into())),
                        (
                            format!("{name}.nested_absmax"),
                            StoredTensor::raw(Dtype::F32, shape, of_scales.view().bytes().into()),
                        ),
                        (
                            format!("{name}.nested_quant_map"),
                            StoredTensor::raw(Dtype::F32, vec![256], map.view().bytes().into()),
                        ),
                    ]);
                    state["nested_blocksize"] = 256.into();
                    state["nested_dtype"] = "float32".into();
                    state["nested_offset"] = f64::from(*offset).into();
                }
            }
            let state = state.to_string().into_bytes();
            let shape = vec![state.len()];
            tensors.push((state_name(name, *kind), StoredTensor::raw(Dtype::U8, shape, state.into())));
            tensors
        }
    })
}

/// Whether the weight of this name is quantised in the files.
pub(super) fn is_there(files: &WeightFiles, name: &str) -> bool {
    FourBit::ALL.into_iter().any(|kind| files.contains(&state_name(name, kind)))
        || files.contains(&row_scales(name))
}

/// A quantised weight from the files, whose values products round to `compute`.
///
/// # Errors
/// One line: what is missing, or does not fit.
pub(super) fn read(
    files: &WeightFiles,
    name: &str,
    shape: [usize; 2],
    compute: DType,
) -> Result<QuantizedWeight, String> {
    let raw = |name: &str, dtype: Dtype| files.raw(name, dtype);
    let floats = |name: &str| files.floats(name);
    let said = |problem: String| format!("{name}: {problem}");
    let codes = match FourBit::ALL.into_iter().find(|kind| files.contains(&state_name(name, *kind))) {
        None => {
            let (bytes, found) = raw(name, Dtype::I8)?;
            if found != shape {
                return Err(format!("{name}: found shape {found:?}, expected {shape:?}"));
            }
            let order = format!("{name}_format");
            if files.contains(&order) && raw(&order, Dtype::U8)?.0.iter().any(|order| *order != 0) {
                return Err(format!("{order}: codes in tiles of a kind of GPU, and only rows are read"));
            }
            Codes::Int8 { bytes: Bytes::of(bytes), scales: floats(&row_scales(name))? }
        }
        Some(kind) => {
            let (state, _) = raw(&state_name(name, kind), Dtype::U8)?;
            let state: State = serde_json::from_slice(state)
                .map_err(|error| format!("{}: {error}", state_name(name, kind)))?;
            if state.shape != shape {
                return Err(format!("{name}: found shape {:?}, expected {shape:?}", state.shape));
            }
            let map = floats(&format!("{name}.quant_map"))?;
            if map.to_f32_vec() != kind.table() {
                return Err(format!("{name}.quant_map: not what {} codes stand for", kind.name()));
            }
            let absmax = format!("{name}.absmax");
            let scales = if let Some(offset) = state.nested_offset {
                if state.nested_blocksize != Some(256) {
                    return Err(said("`nested_blocksize` is not 256".into()));
                }
                let map = floats(&format!("{name}.nested_quant_map"))?;
                let (codes, _) = raw(&absmax, Dtype::U8)?;
                let absmax = floats(&format!("{name}.nested_absmax"))?;
                let codes = Bytes::of(codes);
                Scales::Nested(Box::new(Nested { codes, map, absmax, offset: offset as f32 }))
            } else {
                Scales::Plain(floats(&absmax)?)
            };
            // `bnb_4bit_quant_storage`: the same bytes as elements of another type.
            let storage = [Dtype::BF16, Dtype::F16, Dtype::F32].into_iter();
            let other = storage.filter_map(|dtype| raw(name, dtype).ok()).next();
            let (bytes, _) = other.map_or_else(|| raw(name, Dtype::U8), Ok)?;
            Codes::FourBit { kind, bytes: Bytes::of(bytes), block: state.blocksize, scales, zeros: None }
        }
    };
    QuantizedWeight::from_codes(shape, codes, compute).map_err(said)
}

/// What bitsandbytes keeps beside the tensors.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}
