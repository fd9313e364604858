//! From values to codes: bitsandbytes' rules, on all threads.

use half::f16;

use super::tables::{dynamic_map, middles};
use super::{BLOCK, Bytes, Codes, FourBit, NESTED_BLOCK, Nested, Scales, Scheme};
use crate::isa::per_isa;
use crate::{DType, Device, Element, Tensor, View, with_dtype};

/// A scale counts as at least this, so that its inverse is finite.
const LEAST_SCALE: f32 = 1e-38;
/// Blocks of a task.
const BLOCKS_AT_ONCE: usize = 1024;

/// Codes and scales of `weight`.
pub(super) fn codes(dev: &Device, weight: View<'_>, scheme: Scheme) -> Codes {
    if weight.dtype() == DType::F16 {
        return codes(dev, weight.to_dtype(DType::F32).view(), scheme);
    }
    with_dtype!(weight.dtype(), E => {
        let values = weight.as_slice::<E>();
        match scheme {
            Scheme::Int8 => int8(dev, values, weight.dim(0), weight.dim(1)),
            Scheme::FourBit { kind, double } => four_bit(dev, values, kind, double),
        }
    })
}

fn four_bit<E: Element>(dev: &Device, values: &[E], kind: FourBit, double: bool) -> Codes {
    let mut scales = Tensor::zeros(DType::F32, &[values.len().div_ceil(BLOCK)]);
    let mut bytes = Bytes::zeros(values.len().div_ceil(2));
    let ordered = Ordered::of(kind);
    let to_scales = (scales.view_mut().as_mut_slice::<f32>(), BLOCKS_AT_ONCE);
    let to_bytes = (bytes.as_mut_slice(), BLOCKS_AT_ONCE * BLOCK / 2);
    dev.for_each_chunk_pair(to_scales, to_bytes, |task, scales, bytes| {
        let first = task * BLOCKS_AT_ONCE * BLOCK;
        let values = &values[first..values.len().min(first + BLOCKS_AT_ONCE * BLOCK)];
        magnitudes(dev.isa(), values, BLOCK, scales);
        four_bit_codes(dev.isa(), values, scales, &ordered, bytes);
    });
    let scales = if double {
        Scales::Nested(Box::new(nested(scales.view().as_slice())))
    } else {
        Scales::Plain(scales)
    };
    Codes::FourBit { kind, bytes, block: BLOCK, scales, zeros: None }
}

/// A table in ascending order.
struct Ordered {
    middles: [f32; 15],
    /// The code of each place.
    codes: [u8; 16],
}

impl Ordered {
    fn of(kind: FourBit) -> Self {
        let table = kind.table();
        let mut codes: [u8; 16] = std::array::from_fn(|i| i as u8);
        // Stable: of fp4's two zeros the positive one is first, and what rounds to zero from above becomes the other.
        codes.sort_by(|a, b| {
            let value = |code: &u8| table[usize::from(*code)];
            value(a).partial_cmp(&value(b)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let ascending = codes.map(|code| table[usize::from(code)]);
        Self { middles: std::array::from_fn(|i| (ascending[i] + ascending[i + 1]) / 2.0), codes }
    }
}

per_isa! {
    /// The largest magnitude of each block.
    fn magnitudes<E: Element>(values: &[E], block: usize, scales: &mut [f32]) {
        for (scale, block) in scales.iter_mut().zip(values.chunks(block)) {
            *scale = block.iter().fold(0.0, |largest: f32, x| {
                let x = x.to_f32().abs();
                if x > largest { x } else { largest }
            });
        }
    }

    fn four_bit_codes<E: Element>(values: &[E], scales: &[f32], ordered: &Ordered, to: &mut [u8]) {
        for ((block, scale), to) in values.chunks(BLOCK).zip(scales).zip(to.chunks_mut(BLOCK / 2)) {
            let (mut scaled, mut places) = ([0.0_f32; BLOCK], [0_i32; BLOCK]);
            let (scale, is_whole) = (scale.max(LEAST_SCALE), block.len() == BLOCK);
            let inverse = 1.0 / scale;
            for (to, x) in scaled.iter_mut().zip(block) {
                // Of a last part of a block bitsandbytes divides.
                let x = if is_whole { x.to_f32() * inverse } else { x.to_f32() / scale };
                *to = x.clamp(-1.0, 1.0);
            }
            for middle in ordered.middles {
                for (place, x) in places.iter_mut().zip(&scaled) {
                    *place += i32::from(*x > middle);
                }
            }
            let code = |place: i32| ordered.codes[place as usize & 15];
            for (to, pair) in to.iter_mut().zip(places.chunks_exact(2)) {
                *to = code(pair[0]) << 4 | code(pair[1]);
            }
        }
    }

    fn int8_codes<E: Element>(values: &[E], scale: f32, to: &mut [u8]) {
        // As torch divides a number by a tensor.
        let factor = 1.0 / scale * 127.0;
        for (to, x) in to.iter_mut().zip(values) {
            let x = f16::from_f32(x.to_f32()).to_f32() * factor;
            *to = x.round_ties_even() as i8 as u8;
        }
    }
}

/// A scale for each row, the weight taken as f16 first, as bitsandbytes does.
fn int8<E: Element>(dev: &Device, values: &[E], rows: usize, columns: usize) -> Codes {
    let mut scales = Tensor::zeros(DType::F32, &[rows]);
    let mut bytes = Bytes::zeros(rows * columns);
    if columns > 0 {
        let (to_scales, to_bytes) = (scales.view_mut().as_mut_slice::<f32>(), bytes.as_mut_slice());
        dev.for_each_chunk_pair((to_scales, 1), (to_bytes, columns), |row, scale, bytes| {
            let values = &values[row * columns..(row + 1) * columns];
            magnitudes(dev.isa(), values, columns, scale);
            scale[0] = f16::from_f32(scale[0]).to_f32();
            int8_codes(dev.isa(), values, scale[0], bytes);
        });
    }
    Codes::Int8 { bytes, scales }
}

/// Scales in 8 bits. Their mean is summed in f64: torch's sum in f32 has another order on every machine.
pub(super) fn nested(scales: &[f32]) -> Nested {
    let mean = scales.iter().map(|x| f64::from(*x)).sum::<f64>() / scales.len().max(1) as f64;
    nested_around(scales, mean as f32)
}

/// The same with an offset that is given.
pub(super) fn nested_around(scales: &[f32], offset: f32) -> Nested {
    let map = dynamic_map();
    let middles = middles(&map);
    let mut codes = Bytes::zeros(scales.len());
    let mut absmax = Tensor::zeros(DType::F32, &[scales.len().div_ceil(NESTED_BLOCK)]);
    let blocks = scales.chunks(NESTED_BLOCK).zip(codes.as_mut_slice().chunks_mut(NESTED_BLOCK));
    for ((scales, codes), absmax) in blocks.zip(absmax.view_mut().as_mut_slice::<f32>()) {
        *absmax = scales.iter().map(|x| (x - offset).abs()).fold(0.0, f32::max);
        let inverse = 1.0 / absmax.max(LEAST_SCALE);
        for (code, x) in codes.iter_mut().zip(scales) {
            let x = ((x - offset) * inverse).clamp(-1.0, 1.0);
            *code = middles.partition_point(|middle| *middle < x) as u8;
        }
    }
    Nested { codes, map: Tensor::from_slice(&map, &[map.len()]), absmax, offset }
}
