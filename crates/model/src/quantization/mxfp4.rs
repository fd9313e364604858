//! Checkpoints in MXFP4 (gpt-oss): floats of 4 bits (e2m1) with an exponent for 32 neighbours, for experts that lie in one
//! tensor. They are decoded while they are read, so that all that a model in 16 bits can do can be done with them.
//!
//! | tensor | type and shape | content |
//! |---|---|---|
//! | `….gate_up_proj_blocks` | u8 [E, out, in / 32, 16] | two codes in a byte, the first in the lower bits |
//! | `….gate_up_proj_scales` | u8 [E, out, in / 32] | 127 and the power of two that they are multiplied by |
//!
//! Codes and exponents: OCP Microscaling Formats 1.0, §5.3.3 and §5.4.1. The exponent 255 is no number.

use half::bf16;
use safetensors::tensor::Dtype;
use sft_kernels::{Device, Tensor};

use crate::weights::WeightFiles;

/// Values that share an exponent.
const BLOCK: usize = 32;
/// Magnitudes of the lower three bits of a code; the fourth is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// What is subtracted from a stored exponent, and the one that stands for no number.
const BIAS: i32 = 127;
const NOT_A_NUMBER: u8 = 255;

/// A weight of experts [E, in, out] in bf16, which holds every value; `None` if it is not in MXFP4 in the files.
pub(crate) fn read(
    dev: Option<&Device>,
    files: &WeightFiles,
    name: &str,
    shape: &[usize],
) -> Option<Result<Tensor, String>> {
    let (&[experts, inputs, outputs], blocks) = (shape, format!("{name}_blocks")) else { return None };
    if files.contains(name) || !files.contains(&blocks) {
        return None;
    }
    Some(decode(dev, files, name, [experts, inputs, outputs]))
}

fn decode(
    dev: Option<&Device>,
    files: &WeightFiles,
    name: &str,
    [experts, inputs, outputs]: [usize; 3],
) -> Result<Tensor, String> {
    let bytes = |end: &str, shape: &[usize]| {
        let name = format!("{name}_{end}");
        let (bytes, found) = files.raw(&name, Dtype::U8)?;
        if found == shape {
            Ok(bytes)
        } else {
            Err(format!("{name}: found shape {found:?}, expected {shape:?}"))
        }
    };
    let groups = inputs / BLOCK;
    if !inputs.is_multiple_of(BLOCK) {
        return Err(format!("{name}: {inputs} inputs are no whole blocks of {BLOCK}"));
    }
    let codes = bytes("blocks", &[experts, outputs, groups, BLOCK / 2])?;
    let exponents = bytes("scales", &[experts, outputs, groups])?;
    if let Some(at) = exponents.iter().position(|exponent| *exponent == NOT_A_NUMBER) {
        return Err(format!("{name}_scales: element {at} is no number"));
    }
    let of_expert = |expert: usize, values: &mut [bf16]| {
        for block in 0..outputs * groups {
            let (output, group) = (block / groups, block % groups);
            let at = expert * outputs * groups + block;
            let scale = 2.0f32.powi(i32::from(exponents[at]) - BIAS);
            for (i, pair) in codes[at * (BLOCK / 2)..][..BLOCK / 2].iter().enumerate() {
                let first = (group * BLOCK + 2 * i) * outputs + output;
                for (at, code) in [(first, pair & 15), (first + outputs, pair >> 4)] {
                    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                    values[at] = bf16::from_f32(sign * MAGNITUDES[usize::from(code & 7)] * scale);
                }
            }
        }
    };
    let (mut values, each) = (vec![bf16::ZERO; experts * inputs * outputs], inputs * outputs);
    match dev {
        Some(dev) => dev.for_each_chunk(&mut values, each, of_expert),
        None => values.chunks_mut(each.max(1)).enumerate().for_each(|(e, values)| of_expert(e, values)),
    }
    Ok(Tensor::from_slice(&values, &[experts, inputs, outputs]))
}
