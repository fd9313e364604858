//! Big lanes that lie along `k`: each is multiplied with all thin lanes while it is in registers.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Big, Thin, load};
use crate::isa::per_isa;
use crate::matmul::kernel::MicroKernel;
use crate::matmul::output::Output;
use crate::matmul::scratch::{self, Use};
use crate::matmul::vector::{Vector, prefetch_l2};
use crate::quantized::decode_rows;
use crate::{Device, Element, with_dtype};

/// Bytes of the big operand in a task.
const TASK_BYTES: usize = 64 * 1024;
/// Thin lanes in a group; a last group of fewer is filled up to 1, 2, 4 or 8.
const GROUP: usize = 8;
/// Registers along `k` that one task packs of the thin operand.
const PACKED: usize = 32;

pub(super) fn run<K: MicroKernel, S: Element, E: Element>(
    dev: &Device,
    product: Thin<'_>,
    lanes: Big<'_, S>,
    c: &Output<'_, E>,
) {
    let depth = product.big.depth();
    let (thin, big) = (product.thin.lanes(), product.big.lanes());
    let group = thin.next_power_of_two().min(GROUP);
    let padded = depth.next_multiple_of(K::Lanes::LANES);
    let groups = thin.div_ceil(group);
    scratch::with(Use::Thin, groups * group * padded, |packed: &mut [f32]| {
        let view = product.thin_values();
        with_dtype!(view.dtype(), P => {
            let values = view.as_slice::<P>();
            for (g, packed) in packed.chunks_exact_mut(group * padded).enumerate() {
                dev.for_each_chunk(packed, PACKED * K::Lanes::LANES * group, |i, packed| {
                    let first = (g * group, i * PACKED * K::Lanes::LANES);
                    pack_group(K::ISA, (product, first), values, (K::Lanes::LANES, group), packed);
                });
            }
        });
        let packed = &*packed;
        let rows = TASK_BYTES.div_ceil(depth * size_of::<S>()).next_multiple_of(8);
        dev.for_each(big.div_ceil(rows), |task| {
            let first = task * rows;
            let last = big.min(first + rows);
            let sum = |values: &[S]| {
                for (g, packed) in packed.chunks_exact(group * padded).enumerate() {
                    let t = g * group;
                    let (lanes, vector) = (first..last, PhantomData::<K::Lanes>);
                    sum_part(K::ISA, Part { lanes, group, product, values, depth, packed, t, c, vector });
                }
            };
            match lanes {
                Big::Values(values) => sum(&values[first * depth..last * depth]),
                Big::Codes(codes) => {
                    scratch::with(Use::Decoded, (last - first) * depth, |values: &mut [S]| {
                        decode_rows(K::ISA, codes, first, values, PhantomData::<K::Lanes>);
                        sum(values);
                    });
                }
            }
        });
    });
}

/// One group of thin lanes, for some of the big ones.
struct Part<'a, V, S, E> {
    lanes: Range<usize>,
    /// Thin lanes in the group, filled up.
    group: usize,
    product: Thin<'a>,
    /// Of the big lanes in the range.
    values: &'a [S],
    depth: usize,
    packed: &'a [f32],
    /// First thin lane.
    t: usize,
    c: &'a Output<'a, E>,
    vector: PhantomData<V>,
}

per_isa! {
    /// The thin lanes from a first one on, and from a first `k`: registers of consecutive `k` of each lane in turn, zero
    /// beyond.
    fn pack_group<P: Element>(
        from: (Thin<'_>, (usize, usize)),
        values: &[P],
        registers: (usize, usize),
        packed: &mut [f32],
    ) {
        let ((product, (first, first_k)), (width, group)) = (from, registers);
        let (lanes, depth) = (product.thin.lanes(), product.thin.depth());
        let (along, across) = if product.thin.along_k { (1, depth) } else { (lanes, 1) };
        packed.fill(0.0);
        for t in 0..group.min(lanes - first) {
            let lane = &values[(first + t) * across..];
            for (i, registers) in packed.chunks_exact_mut(group * width).enumerate() {
                let k0 = first_k + i * width;
                let to = &mut registers[t * width..][..width.min(depth - k0)];
                for (to, from) in to.iter_mut().zip(lane[k0 * along..].iter().step_by(along)) {
                    *to = product.rounded(*from);
                }
            }
        }
    }

    fn sum_part<V: Vector, S: Element, E: Element>(part: Part<'_, V, S, E>) {
        part.run();
    }
}

impl<V: Vector, S: Element, E: Element> Part<'_, V, S, E> {
    #[inline(always)]
    fn run(self) {
        let many = V::REGISTERS >= 32;
        match self.group {
            1 => self.several::<4, 1>(),
            2 => self.several::<4, 2>(),
            4 if many => self.several::<4, 4>(),
            4 => self.several::<2, 4>(),
            _ if many => self.several::<2, GROUP>(),
            _ => self.several::<1, GROUP>(),
        }
    }
}

impl<V: Vector, S: Element, E: Element> Part<'_, V, S, E> {
    /// `R` big lanes at a time, then what is left one by one.
    #[inline(always)]
    fn several<const R: usize, const T: usize>(&self) {
        let lanes = self.lanes.clone();
        let whole = lanes.start + lanes.len() / R * R;
        for lane in (lanes.start..whole).step_by(R) {
            self.some::<R, T>(lane);
        }
        for lane in whole..lanes.end {
            self.some::<1, T>(lane);
        }
    }

    #[inline(always)]
    fn some<const R: usize, const T: usize>(&self, lane: usize) {
        let rows = &self.values[(lane - self.lanes.start) * self.depth..][..R * self.depth];
        let whole = self.depth / V::LANES;
        assert!(self.packed.len() >= self.depth.div_ceil(V::LANES) * T * V::LANES);
        // SAFETY: `rows` holds `R` lanes of `depth` values and `packed` `T` registers for each register's worth of
        // depth, as asserted; the rest of a lane is copied to a register's worth of its own; this is compiled for
        // the kernel's instruction set and runs because the device has it.
        unsafe {
            let mut sums = [[V::splat(0.0); T]; R];
            let mut thin = self.packed.as_ptr();
            for k in 0..whole {
                let mut x = [V::splat(0.0); R];
                for (r, x) in x.iter_mut().enumerate() {
                    let at = rows.as_ptr().add(r * self.depth + k * V::LANES);
                    // The same place among the lanes that come next.
                    prefetch_l2(at.wrapping_add(R * self.depth));
                    *x = load(at);
                }
                add_products(&mut sums, x, thin);
                thin = thin.add(T * V::LANES);
            }
            if whole * V::LANES < self.depth {
                let mut x = [V::splat(0.0); R];
                for (x, row) in x.iter_mut().zip(rows.chunks_exact(self.depth)) {
                    let mut rest = [S::default(); 16];
                    let from = &row[whole * V::LANES..];
                    rest[..from.len()].copy_from_slice(from);
                    *x = load(rest.as_ptr());
                }
                add_products(&mut sums, x, thin);
            }
            for (r, sums) in sums.iter().enumerate() {
                let mut totals = [0.0; T];
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = sum.sum();
                }
                self.product.store(self.c, lane + r, self.t, &totals);
            }
        }
    }
}

/// # Safety
/// That of [`Vector`]; `thin` holds `T` registers.
#[inline(always)]
unsafe fn add_products<V: Vector, const R: usize, const T: usize>(
    sums: &mut [[V; T]; R],
    x: [V; R],
    thin: *const f32,
) {
    let mut y = [x[0]; T];
    for (t, y) in y.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *y = unsafe { V::load(thin.add(t * V::LANES)) };
    }
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sum, y) in sums.iter_mut().zip(y) {
            // SAFETY: the caller's promise.
            *sum = unsafe { x.mul_add(y, *sum) };
        }
    }
}
