//! Values of a quantised weight, from its codes.

use std::marker::PhantomData;

use super::{Codes, NESTED_BLOCK, Scales};
use crate::Element;
use crate::isa::per_isa;
use crate::matmul::vector::Vector;

/// A weight's codes as products on a CPU read them.
#[derive(Clone, Copy)]
pub(crate) struct Decoder<'a> {
    /// Elements of a row.
    pub columns: usize,
    pub kind: Kind<'a>,
}

/// Codes of one kind.
#[derive(Clone, Copy)]
pub(crate) enum Kind<'a> {
    FourBit {
        bytes: &'a [u8],
        table: &'a [f32; 16],
        block_bits: u32,
        scales: BlockScales<'a>,
        zeros: Option<&'a [f32]>,
    },
    Fp8 {
        bytes: &'a [u8],
        scales: &'a [f32],
        tile: [usize; 2],
    },
    Int8 {
        bytes: &'a [u8],
        scales: &'a [f32],
    },
}

/// Scales of blocks.
#[derive(Clone, Copy)]
pub(crate) enum BlockScales<'a> {
    Plain(&'a [f32]),
    Nested { codes: &'a [u8], map: &'a [f32; 256], absmax: &'a [f32], offset: f32 },
}

impl<'a> BlockScales<'a> {
    pub fn of(scales: &'a Scales) -> Self {
        match scales {
            Scales::Plain(scales) => BlockScales::Plain(scales.view().as_slice()),
            Scales::Nested(nested) => BlockScales::Nested {
                codes: nested.codes.as_slice(),
                map: nested.map.view().as_slice().try_into().expect("a map of 256 values, as was checked"),
                absmax: nested.absmax.view().as_slice(),
                offset: nested.offset,
            },
        }
    }

    #[inline(always)]
    pub fn get(self, block: usize) -> f32 {
        match self {
            BlockScales::Plain(scales) => scales[block],
            BlockScales::Nested { codes, map, absmax, offset } => {
                map[usize::from(codes[block])] * absmax[block / NESTED_BLOCK] + offset
            }
        }
    }
}

impl<'a> Kind<'a> {
    pub fn of(codes: &'a Codes) -> Self {
        match codes {
            Codes::Int8 { bytes, scales } => {
                Kind::Int8 { bytes: bytes.as_slice(), scales: scales.view().as_slice() }
            }
            Codes::Fp8 { bytes, scales, tile } => {
                Kind::Fp8 { bytes: bytes.as_slice(), scales: scales.view().as_slice(), tile: *tile }
            }
            Codes::FourBit { kind, bytes, block, scales, zeros } => Kind::FourBit {
                bytes: bytes.as_slice(),
                table: kind.table(),
                block_bits: block.trailing_zeros(),
                scales: BlockScales::of(scales),
                zeros: zeros.as_ref().map(|zeros| zeros.view().as_slice()),
            },
        }
    }
}

/// 1/127, which int8's scales are divided by: bitsandbytes' constant.
const PER_INT8: f32 = 7.874_016e-3;

/// The code of element `i`.
#[inline(always)]
fn code(bytes: &[u8], i: usize) -> usize {
    let byte = bytes[i / 2];
    usize::from(if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
}

/// Values that are decoded at a time.
const AT_ONCE: usize = 64;

per_isa! {
    /// Whole rows from `first` on, as many as `to` holds, with registers of `V`: those of the instruction set.
    pub(crate) fn decode_rows<V: Vector, E: Element>(
        decoder: Decoder<'_>,
        first: usize,
        to: &mut [E],
        _registers: PhantomData<V>,
    ) {
        let mut values = [0.0; AT_ONCE];
        for (row, to) in (first..).zip(to.chunks_exact_mut(decoder.columns)) {
            for (i, to) in to.chunks_mut(AT_ONCE).enumerate() {
                let values = &mut values[..to.len()];
                // SAFETY: this is compiled for the instruction set that `V` is of, and the device has it.
                unsafe { decoder.decode::<V>(row, i * AT_ONCE, values) };
                to.iter_mut().zip(values).for_each(|(to, x)| *to = E::from_f32(*x));
            }
        }
    }
}

impl Decoder<'_> {
    /// Elements of a row from column `first` on, with registers of `V`.
    ///
    /// # Panics
    /// If they are not inside of the row.
    ///
    /// # Safety
    /// That of [`Vector`].
    #[inline(always)]
    pub unsafe fn decode<V: Vector>(self, row: usize, first: usize, to: &mut [f32]) {
        assert!(first + to.len() <= self.columns, "a range of a row");
        let at = row * self.columns + first;
        match self.kind {
            Kind::Int8 { bytes, scales } => {
                let (bytes, scale) = (&bytes[at..at + to.len()], scales[row]);
                let whole = to.len() / V::LANES * V::LANES;
                for i in (0..whole).step_by(V::LANES) {
                    // SAFETY: the caller's promise, and `LANES` bytes and values from `i` on.
                    unsafe {
                        let zero = V::splat(0.0);
                        let x = V::load_i8(bytes.as_ptr().add(i).cast()).mul_add(V::splat(scale), zero);
                        x.mul_add(V::splat(PER_INT8), zero).store(to.as_mut_ptr().add(i));
                    }
                }
                int8_plainly(&bytes[whole..], scale, &mut to[whole..]);
            }
            Kind::Fp8 { bytes, scales, tile: [rows, columns] } => {
                let bytes = &bytes[at..at + to.len()];
                let scales = &scales[row / rows * self.columns.div_ceil(columns)..];
                let mut done = 0;
                while done < to.len() {
                    let tile = (first + done) / columns;
                    let here = ((tile + 1) * columns - first - done).min(to.len() - done);
                    fp8(&bytes[done..done + here], scales[tile], &mut to[done..done + here]);
                    done += here;
                }
            }
            Kind::FourBit { bytes, table, block_bits, scales, zeros } => {
                let mut done = 0;
                while done < to.len() {
                    let i = at + done;
                    let block = i >> block_bits;
                    let here = (((block + 1) << block_bits) - i).min(to.len() - done);
                    let (scale, to) = (scales.get(block), &mut to[done..done + here]);
                    let zero = zeros.map_or(0.0, |zeros| zeros[block]);
                    // A byte's second half alone comes first.
                    let odd = (i % 2).min(here);
                    four_bit_plainly(bytes, table, (zero, scale), i, &mut to[..odd]);
                    let whole = odd + (here - odd) / V::LANES * V::LANES;
                    let run = &bytes[(i + odd) / 2..(i + whole) / 2];
                    for (codes, to) in
                        run.chunks_exact(V::LANES / 2).zip(to[odd..].chunks_exact_mut(V::LANES))
                    {
                        // SAFETY: the caller's promise, and as many codes and values as a register has.
                        unsafe {
                            let x = V::nibbles(table, codes.as_ptr());
                            // Less zero it is exact.
                            let x = x.mul_add(V::splat(1.0), V::splat(-zero));
                            x.mul_add(V::splat(scale), V::splat(0.0)).store(to.as_mut_ptr());
                        }
                    }
                    four_bit_plainly(bytes, table, (zero, scale), i + whole, &mut to[whole..]);
                    done += here;
                }
            }
        }
    }
}

#[inline(always)]
fn int8_plainly(bytes: &[u8], scale: f32, to: &mut [f32]) {
    for (to, byte) in to.iter_mut().zip(bytes) {
        *to = f32::from(*byte as i8) * scale * PER_INT8;
    }
}

/// Elements from number `i` on, all of one block.
#[inline(always)]
fn four_bit_plainly(bytes: &[u8], table: &[f32; 16], (zero, scale): (f32, f32), i: usize, to: &mut [f32]) {
    for (i, to) in (i..).zip(to) {
        *to = (table[code(bytes, i)] - zero) * scale;
    }
}

/// Sign, four bits of exponent, three of fraction: moved to their places in f32 they are 2¹²⁰ too small, the exponent
/// being 120 less, and a product mends that for subnormal numbers too.
#[inline(always)]
fn fp8(bytes: &[u8], scale: f32, to: &mut [f32]) {
    const UP: f32 = f32::from_bits((120 + 127) << 23);
    for (to, byte) in to.iter_mut().zip(bytes) {
        let byte = u32::from(*byte);
        *to = f32::from_bits((byte & 0x80) << 24 | (byte & 0x7F) << 20) * UP * scale;
    }
}
