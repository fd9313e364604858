//! Checkpoints of GPTQ and AWQ: integers of 4 bits with a scale and a zero for each group of inputs.
//!
//! > w\[o, i\] = (code\[o, i\] − zero\[⌊i / group⌋, o\])·scale\[⌊i / group⌋, o\]
//!
//! | tensor | GPTQ | AWQ |
//! |---|---|---|
//! | `….qweight` i32 | [in / 8, out], eight inputs of an output in a word | [in, out / 8], eight outputs of an input |
//! | `….qzeros` i32 | [in / group, out / 8], eight outputs in order; one less than the zero (v1) | the same, in AWQ's order |
//! | `….scales` f16 | [in / group, out] | the same |
//! | `….g_idx` i32 | [in]: the group of each input | |
//!
//! Where `g_idx` is not ⌊i / group⌋ (`desc_act`), a group is of inputs that are no neighbours; no code that products read is
//! so, and such a weight is decoded while it is read.
//!
//! The first of eight is in the lowest bits. AWQ's words hold the outputs 0, 2, 4, 6, 1, 3, 5, 7.

use safetensors::tensor::Dtype;
use serde_json::Value;
use sft_kernels::Tensor;
use sft_kernels::quantized::{Bytes, Codes, FourBit, Scales};

use super::Found;
use crate::weights::WeightFiles;

/// Numbers of a word.
const TOGETHER: usize = 8;
/// The place in an AWQ word of each of eight outputs.
const AWQ_PLACES: [usize; TOGETHER] = [0, 4, 1, 5, 2, 6, 3, 7];
/// The same of GPTQ.
const PLACES: [usize; TOGETHER] = [0, 1, 2, 3, 4, 5, 6, 7];

fn number(quantization: &Value, keys: &[&str]) -> Option<i64> {
    keys.iter().find_map(|key| quantization.get(*key)?.as_i64())
}

fn group(quantization: &Value, tool: &str) -> Result<usize, String> {
    let bits = number(quantization, &["bits", "w_bit"]).unwrap_or(4);
    if bits != 4 {
        return Err(format!("the weights are in {bits} bits of {tool}, and only 4 are read"));
    }
    let group = number(quantization, &["group_size", "q_group_size"]).unwrap_or(128);
    match usize::try_from(group) {
        Ok(group) if group.is_power_of_two() && group >= TOGETHER => Ok(group),
        _ => Err(format!("`group_size` of {tool} is {group}, and a power of two from 8 on is expected")),
    }
}

pub(super) fn gptq(quantization: &Value) -> Result<Found, String> {
    // `checkpoint_format` is the older name of `format`.
    let mut added = None;
    for key in ["checkpoint_format", "format"] {
        let found = match quantization.get(key).and_then(Value::as_str) {
            None => continue,
            Some("gptq") => 1,
            Some("gptq_v2") => 0,
            Some(other) => return Err(format!("`{key}` is `{other}`, and `gptq` and `gptq_v2` are read")),
        };
        if *added.get_or_insert(found) != found {
            return Err("`checkpoint_format` and `format` are not the same".into());
        }
    }
    let added = added.unwrap_or(1);
    let shuffled = quantization.get("desc_act").and_then(Value::as_bool).unwrap_or(false);
    Ok(Found::Gptq { group: group(quantization, "GPTQ")?, added, shuffled })
}

pub(super) fn awq(quantization: &Value) -> Result<Found, String> {
    let version = quantization.get("version").and_then(Value::as_str).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(format!("`version` of AWQ is `{version}`, and only `gemm` is read"));
    }
    Ok(Found::Awq { group: group(quantization, "AWQ")? })
}

pub(super) fn is_there(files: &WeightFiles, stem: &str) -> bool {
    files.contains(&format!("{stem}.qweight"))
}

/// A tensor of words of this shape.
fn words(files: &WeightFiles, name: &str, shape: [usize; 2]) -> Result<Vec<u32>, String> {
    let (bytes, found) = files.raw(name, Dtype::I32)?;
    if found != shape {
        return Err(format!("{name}: found shape {found:?}, expected {shape:?}"));
    }
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

/// Zeros and scales [out, groups], as blocks of rows follow each other.
fn groups(
    files: &WeightFiles,
    stem: &str,
    [outputs, inputs]: [usize; 2],
    (group, added, places): (usize, u8, [usize; TOGETHER]),
) -> Result<(Tensor, Tensor), String> {
    if !inputs.is_multiple_of(group) || !outputs.is_multiple_of(TOGETHER) {
        return Err(format!(
            "{stem}: {outputs} outputs of {inputs} inputs are no whole words, or groups of {group}"
        ));
    }
    let groups = inputs / group;
    let zeros = words(files, &format!("{stem}.qzeros"), [groups, outputs / TOGETHER])?;
    let scales = files.tensor(&format!("{stem}.scales"), &[groups, outputs])?.to_f32_vec();
    let of_block = |block: usize| (block / groups, block % groups);
    let zero = |block: usize| {
        let (output, group) = of_block(block);
        let word = zeros[group * (outputs / TOGETHER) + output / TOGETHER];
        let stored = (word >> (4 * places[output % TOGETHER])) as u8 & 15;
        // As GPTQ's tools have it: 15 and 1 are 0.
        f32::from((stored + added) & 15)
    };
    let scale = |block: usize| {
        let (output, group) = of_block(block);
        scales[group * outputs + output]
    };
    let all = |value: &dyn Fn(usize) -> f32| {
        let values: Vec<f32> = (0..outputs * groups).map(value).collect();
        Tensor::from_slice(&values, &[values.len()])
    };
    Ok((all(&zero), all(&scale)))
}

/// Codes [out, in], two of a byte.
fn packed([outputs, inputs]: [usize; 2], code: impl Fn(usize, usize) -> u8) -> Bytes {
    let pair = |i: usize| {
        let (output, input) = (2 * i / inputs, 2 * i % inputs);
        code(output, input) << 4 | code(output, input + 1)
    };
    Bytes::of(&(0..outputs * inputs / 2).map(pair).collect::<Vec<u8>>())
}

fn int4(bytes: Bytes, group: usize, (zeros, scales): (Tensor, Tensor)) -> Codes {
    Codes::FourBit {
        kind: FourBit::Int4,
        bytes,
        block: group,
        scales: Scales::Plain(scales),
        zeros: Some(zeros),
    }
}

/// A weight of GPTQ.
pub(super) enum Gptq {
    /// Groups are of neighbours.
    Codes(Box<Codes>),
    /// They are not: values [out, in].
    Decoded(Vec<f32>),
}

/// The group of each input; `None` if groups are of neighbours.
fn order(
    files: &WeightFiles,
    stem: &str,
    (inputs, group): (usize, usize),
    shuffled: bool,
) -> Result<Option<Vec<usize>>, String> {
    let name = format!("{stem}.g_idx");
    if !files.contains(&name) {
        return if shuffled { Err(format!("{name}: missing, and `desc_act` is true")) } else { Ok(None) };
    }
    let (bytes, shape) = files.raw(&name, Dtype::I32)?;
    if shape != [inputs] {
        return Err(format!("{name}: found shape {shape:?}, expected [{inputs}]"));
    }
    let (of_inputs, _) = bytes.as_chunks::<4>();
    let order: Vec<usize> = of_inputs.iter().map(|g| u32::from_le_bytes(*g) as usize).collect();
    if let Some(input) = order.iter().position(|g| *g >= inputs / group) {
        return Err(format!("{name}: input {input} is of group {}, of {}", order[input], inputs / group));
    }
    let in_order = order.iter().enumerate().all(|(i, g)| *g == i / group);
    match (in_order, shuffled) {
        (true, _) => Ok(None),
        (false, true) => Ok(Some(order)),
        (false, false) => Err(format!("{name}: groups are not of neighbours, and `desc_act` is not true")),
    }
}

pub(super) fn read_gptq(
    files: &WeightFiles,
    stem: &str,
    shape: [usize; 2],
    (group, added, shuffled): (usize, u8, bool),
) -> Result<Gptq, String> {
    let [outputs, inputs] = shape;
    let of_groups = groups(files, stem, shape, (group, added, PLACES))?;
    let order = order(files, stem, (inputs, group), shuffled)?;
    let words = words(files, &format!("{stem}.qweight"), [inputs / TOGETHER, outputs])?;
    let code = |output: usize, input: usize| {
        let word = words[input / TOGETHER * outputs + output];
        (word >> (4 * (input % TOGETHER))) as u8 & 15
    };
    let Some(order) = order else {
        return Ok(Gptq::Codes(Box::new(int4(packed(shape, code), group, of_groups))));
    };
    let (zeros, scales) = (of_groups.0.to_f32_vec(), of_groups.1.to_f32_vec());
    let value = |at: usize| {
        let (output, input) = (at / inputs, at % inputs);
        let of = output * (inputs / group) + order[input];
        (f32::from(code(output, input)) - zeros[of]) * scales[of]
    };
    Ok(Gptq::Decoded((0..outputs * inputs).map(value).collect()))
}

pub(super) fn read_awq(
    files: &WeightFiles,
    stem: &str,
    shape: [usize; 2],
    group: usize,
) -> Result<Codes, String> {
    let [outputs, inputs] = shape;
    let of_groups = groups(files, stem, shape, (group, 0, AWQ_PLACES))?;
    let across = outputs / TOGETHER;
    let words = words(files, &format!("{stem}.qweight"), [inputs, across])?;
    let code = |output: usize, input: usize| {
        let word = words[input * across + output / TOGETHER];
        (word >> (4 * AWQ_PLACES[output % TOGETHER])) as u8 & 15
    };
    Ok(int4(packed(shape, code), group, of_groups))
}
