//! Checkpoints in floats of 8 bits (e4m3): a scale for each tile, each row, or for all.
//!
//! | tensor | type and shape | content |
//! |---|---|---|
//! | `….weight` | f8 e4m3 [out, in] | codes |
//! | `….weight_scale_inv` | f32 or bf16 [⌈out / rows⌉, ⌈in / columns⌉], or one number | what they are multiplied by |
//! | `….weight_scale` | f32 [out, 1], or one number | the same, of fbgemm |

use safetensors::tensor::Dtype;
use serde_json::Value;
use sft_kernels::Tensor;
use sft_kernels::quantized::{Bytes, Codes};

use super::Found;
use crate::weights::WeightFiles;

pub(super) fn found(quantization: &Value) -> Result<Found, String> {
    let format = quantization.get("fmt").and_then(Value::as_str).unwrap_or("e4m3");
    if format != "e4m3" {
        return Err(format!("the weights are in fp8 of format `{format}`, and only e4m3 is read"));
    }
    let sides = quantization.get("weight_block_size").and_then(Value::as_array);
    let sides: Option<Vec<usize>> =
        sides.map(|sides| sides.iter().filter_map(|side| usize::try_from(side.as_u64()?).ok()).collect());
    match sides.as_deref() {
        None => Ok(Found::Fp8 { tile: None }),
        Some([rows, columns]) if *rows > 0 && *columns > 0 => {
            Ok(Found::Fp8 { tile: Some([*rows, *columns]) })
        }
        Some(other) => {
            Err(format!("`weight_block_size` is {other:?}, and two numbers from 1 on are expected"))
        }
    }
}

/// The codes of a weight; `None` if it is not in fp8 in the files.
pub(super) fn read(
    files: &WeightFiles,
    name: &str,
    shape: [usize; 2],
    tile: Option<[usize; 2]>,
) -> Option<Result<Codes, String>> {
    let scales = ["_scale_inv", "_scale"].map(|end| format!("{name}{end}"));
    let scales = scales.into_iter().find(|scales| files.contains(scales))?;
    Some(codes(files, name, shape, tile, &scales))
}

fn codes(
    files: &WeightFiles,
    name: &str,
    shape: [usize; 2],
    tile: Option<[usize; 2]>,
    scales: &str,
) -> Result<Codes, String> {
    let (bytes, found) = files.raw(name, Dtype::F8_E4M3)?;
    if found != shape {
        return Err(format!("{name}: found shape {found:?}, expected {shape:?}"));
    }
    if bytes.iter().any(|code| code & 0x7F == 0x7F) {
        return Err(format!("{name}: a value that is not a number"));
    }
    let values = files.tensor(scales, files.shape(scales).unwrap_or_default())?.to_f32_vec();
    // Without tiles there is one scale, or one for each row.
    let tile = tile.unwrap_or(if values.len() == 1 { shape } else { [1, shape[1]] });
    Ok(Codes::Fp8 { bytes: Bytes::of(bytes), scales: Tensor::from_slice(&values, &[values.len()]), tile })
}
