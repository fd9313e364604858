//! A state in 8 bits an element: blocks of 256 with a scale each, values of a table whose steps grow with the magnitude.
//!
//! Formula (Dettmers et al., 2022; bitsandbytes' "dynamic" map of 8 bits):
//!
//! > absmax = max |x| of the block;  code = the nearest entry to x·(1/absmax), the lower one of two;  x ≈ table[code]·absmax
//!
//! The nearest entry is what bitsandbytes' kernels for GPUs and its plain path take; its C++ path for CPUs looks values up
//! in a coarser table and is off by some entries near 0.
//!
//! Bytes: 1 an element and 4 a block, where f32 has 4 an element.

use std::sync::LazyLock;

use half::bf16;

use crate::isa::per_isa;
use crate::scratch::Disjoint;
use crate::{DType, Isa, ViewMut};

/// Elements of a block.
pub const BLOCK: usize = 256;

/// Entries of a table.
const ENTRIES: usize = 256;

/// Bits that stand for the magnitude's power of ten.
const EXPONENTS: i32 = 7;

/// An 8-bit state.
#[derive(Debug)]
pub struct Blocks<'a> {
    /// Two codes in each element, [⌈n/2⌉]; bf16 is only what says their width.
    pub codes: ViewMut<'a>,
    /// Of each block, f32: [⌈n/256⌉].
    pub absmax: ViewMut<'a>,
    /// n.
    pub elements: usize,
}

/// Shapes of the codes (bf16) and of the scales (f32) of `n` elements.
pub const fn shapes(n: usize) -> [usize; 2] {
    [n.div_ceil(2), n.div_ceil(BLOCK)]
}

/// Values that codes stand for, ascending: of signed states, and of those that are never negative.
pub fn table(signed: bool) -> &'static [f32; ENTRIES] {
    static TABLES: LazyLock<[[f32; ENTRIES]; 2]> = LazyLock::new(|| [make_table(false), make_table(true)]);
    &TABLES[usize::from(signed)]
}

/// For each power of ten from −6 to 0 twice as many values between a tenth of it and itself, 0, and 1.
fn make_table(signed: bool) -> [f32; ENTRIES] {
    let mut values = vec![0.0, 1.0];
    for i in 0..EXPONENTS {
        let steps = 1usize << (i + i32::from(!signed));
        let scale = 10f64.powi(i + 1 - EXPONENTS) as f32;
        let bounds = bounds(steps);
        for pair in bounds.windows(2) {
            let value = scale * ((pair[0] + pair[1]) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("2 · 127 or 254 values, with 0 and 1 they are 256")
}

/// `torch.linspace(0.1, 1, steps + 1)`: from both ends, with one rounding for product and sum.
fn bounds(steps: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / steps as f32;
    let at = |i: usize| match i < steps.div_ceil(2) {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((steps - i) as f32, end),
    };
    (0..=steps).map(at).collect()
}

impl<'a> Blocks<'a> {
    pub(super) fn check(&self) {
        let [codes, blocks] = shapes(self.elements);
        assert_eq!((self.codes.elements(), self.absmax.elements()), (codes, blocks), "8-bit state: lengths");
        assert_eq!(
            (self.codes.dtype(), self.absmax.dtype()),
            (DType::BF16, DType::F32),
            "8-bit state: types"
        );
    }

    /// For tasks that each take whole blocks.
    pub(super) fn parts(self, signed: bool) -> Parts<'a> {
        let codes = self.codes.as_mut_slice::<bf16>();
        let len = size_of_val(codes);
        // SAFETY: the same memory as bytes, of which every pattern is one; borrowed as long as the codes were.
        let codes = unsafe { std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast::<u8>(), len) };
        Parts {
            codes: Disjoint::of(codes),
            absmax: Disjoint::of(self.absmax.as_mut_slice()),
            table: table(signed),
        }
    }
}

/// A state of which tasks take blocks.
pub(super) struct Parts<'a> {
    codes: Disjoint<'a, u8>,
    absmax: Disjoint<'a, f32>,
    table: &'static [f32; ENTRIES],
}

impl Parts<'_> {
    /// The values from element `start` on.
    ///
    /// # Safety
    /// `start` is the first of a block, `values` end with a block or with the state, and no other task has a part of them.
    pub(super) unsafe fn load(&self, isa: Isa, start: usize, values: &mut [f32]) {
        // SAFETY: by contract.
        let (codes, absmax) = unsafe { self.of(start, values.len()) };
        load(isa, codes, absmax, self.table, values);
    }

    /// Overwrites the values from element `start` on.
    ///
    /// # Safety
    /// As [`Parts::load`].
    pub(super) unsafe fn store(&self, isa: Isa, start: usize, values: &[f32]) {
        // SAFETY: by contract.
        let (codes, absmax) = unsafe { self.of(start, values.len()) };
        store(isa, values, self.table, codes, absmax);
    }

    /// # Safety
    /// As [`Parts::load`].
    #[expect(clippy::mut_from_ref, reason = "disjoint parts, by contract")]
    unsafe fn of(&self, start: usize, len: usize) -> (&mut [u8], &mut [f32]) {
        // SAFETY: by contract.
        unsafe { (self.codes.part(start, len), self.absmax.part(start / BLOCK, len.div_ceil(BLOCK))) }
    }
}

per_isa! {
    fn load(codes: &[u8], absmax: &[f32], table: &[f32; ENTRIES], values: &mut [f32]) {
        for ((values, codes), absmax) in values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(absmax) {
            values.iter_mut().zip(codes).for_each(|(value, code)| *value = table[usize::from(*code)] * absmax);
        }
    }

    fn store(values: &[f32], table: &[f32; ENTRIES], codes: &mut [u8], absmax: &mut [f32]) {
        for ((values, codes), absmax) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(absmax) {
            *absmax = values.iter().fold(0.0f32, |most, x| if x.abs() > most { x.abs() } else { most });
            let factor = if *absmax > 0.0 { 1.0 / *absmax } else { 0.0 };
            codes.iter_mut().zip(values).for_each(|(code, x)| *code = nearest(table, x * factor));
        }
    }
}

/// The entry that is nearest to x, the lower one of two.
#[inline(always)]
fn nearest(table: &[f32; ENTRIES], x: f32) -> u8 {
    let mut below = 0usize;
    let mut half = ENTRIES / 2;
    while half > 0 {
        // The indices add up to 255 at most.
        let next = (below + half) & (ENTRIES - 1);
        below = if table[next] <= x { next } else { below };
        half /= 2;
    }
    let above = (below + 1).min(ENTRIES - 1);
    let is_above = table[above] - x < x - table[below];
    (below + usize::from(is_above)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("../../goldens/blocks.json")).unwrap()
    }

    fn read<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> T {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn tables_are_those_of_bitsandbytes() {
        for (name, signed) in [("signed", true), ("unsigned", false)] {
            let bits: Vec<u32> = read(&golden()[name]["table"]);
            let found: Vec<u32> = table(signed).iter().map(|x| x.to_bits()).collect();
            assert_eq!(found, bits, "{name}");
        }
    }

    #[test]
    fn codes_and_scales_are_those_of_bitsandbytes() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (name, signed) in [("signed", true), ("unsigned", false)] {
                let golden = &golden()[name];
                let values: Vec<u32> = read(&golden["values"]);
                let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
                let (codes, absmax): (Vec<u8>, Vec<u32>) = (read(&golden["codes"]), read(&golden["absmax"]));
                let (mut found, mut scales) = (vec![0; values.len()], vec![0.0; absmax.len()]);
                store(isa, &values, table(signed), &mut found, &mut scales);
                assert_eq!(found, codes, "{name} on {isa}");
                assert_eq!(scales.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), absmax, "{name} on {isa}");
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zeros() {
        for signed in [true, false] {
            let (mut codes, mut absmax, mut values) = ([0; 3], [1.0], [1.0f32; 3]);
            store(Isa::best(), &[0.0; 3], table(signed), &mut codes, &mut absmax);
            load(Isa::best(), &codes, &absmax, table(signed), &mut values);
            assert_eq!(values, [0.0; 3]);
        }
    }
}
