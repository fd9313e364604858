//! Big lanes that lie along `k`: each is multiplied with all thin lanes while it is in registers.
//!
//! Values are widened to `f32`, or multiplied as pairs of `bf16` where the kernel does so and both sides are `bf16`.

#[cfg(target_arch = "x86_64")]
mod pairs;

use std::marker::PhantomData;
use std::ops::Range;

use super::{Big, Thin, load};
use crate::isa::{Isa, per_isa};
use crate::matmul::kernel::MicroKernel;
use crate::matmul::output::Output;
use crate::matmul::scratch::{self, Use};
use crate::matmul::vector::{Vector, prefetch_l2};
use crate::quantized::decode_rows;
use crate::{DType, Device, Element, with_dtype};

/// Bytes of the big operand in a task.
const TASK_BYTES: usize = 64 * 1024;
/// Thin lanes in a group; a last group of fewer is filled up to 1, 2, 4 or 8.
const GROUP: usize = 8;
/// Values of a lane in a register at most.
const MOST_VALUES: usize = 32;
/// Registers along `k` that one task packs of the thin operand.
const PACKED: usize = 32;

/// How values of a big lane meet those of thin ones.
///
/// # Safety
/// That of [`Vector`].
trait Meeting<S: Element>: Copy {
    /// Sums, a lane each.
    type Sum: Vector;
    /// What thin values are packed as.
    type Packed: Element;
    /// Some values of a lane, in a register.
    type Values: Copy;
    /// How many.
    const VALUES: usize;
    /// Zeros.
    unsafe fn zeros() -> Self::Values;
    /// Values of a big lane.
    unsafe fn big(from: *const S) -> Self::Values;
    /// Values of a thin one.
    unsafe fn thin(from: *const Self::Packed) -> Self::Values;
    /// `Σ x·y + plus` of each lane.
    unsafe fn add(x: Self::Values, y: Self::Values, plus: Self::Sum) -> Self::Sum;
    /// Sums of some big lanes, compiled for the instruction set.
    fn sum_part<E: Element>(isa: Isa, part: Part<'_, Self, S, E>);
}

/// Each value widened to `f32`.
#[derive(Clone, Copy)]
struct Widened<V>(PhantomData<V>);

impl<V: Vector, S: Element> Meeting<S> for Widened<V> {
    type Sum = V;
    type Packed = f32;
    type Values = V;
    const VALUES: usize = V::LANES;

    #[inline(always)]
    unsafe fn zeros() -> V {
        // SAFETY: the caller's promise is the same.
        unsafe { V::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn big(from: *const S) -> V {
        // SAFETY: the caller's promise is the same.
        unsafe { load(from) }
    }

    #[inline(always)]
    unsafe fn thin(from: *const f32) -> V {
        // SAFETY: the caller's promise is the same.
        unsafe { V::load(from) }
    }

    #[inline(always)]
    unsafe fn add(x: V, y: V, plus: V) -> V {
        // SAFETY: the caller's promise is the same.
        unsafe { x.mul_add(y, plus) }
    }

    fn sum_part<E: Element>(isa: Isa, part: Part<'_, Self, S, E>) {
        sum_widened(isa, part);
    }
}

pub(super) fn run<K: MicroKernel, S: Element, E: Element>(
    dev: &Device,
    product: Thin<'_>,
    lanes: Big<'_, S>,
    c: &Output<'_, E>,
) {
    let in_pairs = K::PAIRS && S::DTYPE == DType::BF16 && product.thin_is_bf16();
    #[cfg(not(target_arch = "x86_64"))]
    debug_assert!(!in_pairs, "no kernel here says so");
    #[cfg(target_arch = "x86_64")]
    if in_pairs {
        return run_with::<pairs::Pairs, S, E>(dev, K::ISA, product, lanes, c);
    }
    run_with::<Widened<K::Lanes>, S, E>(dev, K::ISA, product, lanes, c);
}

fn run_with<M: Meeting<S>, S: Element, E: Element>(
    dev: &Device,
    isa: Isa,
    product: Thin<'_>,
    lanes: Big<'_, S>,
    c: &Output<'_, E>,
) {
    let depth = product.big.depth();
    let (thin, big) = (product.thin.lanes(), product.big.lanes());
    let group = thin.next_power_of_two().min(GROUP);
    let padded = depth.next_multiple_of(M::VALUES);
    let groups = thin.div_ceil(group);
    scratch::with(Use::Thin, groups * group * padded, |packed: &mut [M::Packed]| {
        let view = product.thin_values();
        with_dtype!(view.dtype(), P => {
            let values = view.as_slice::<P>();
            for (g, packed) in packed.chunks_exact_mut(group * padded).enumerate() {
                dev.for_each_chunk(packed, PACKED * M::VALUES * group, |i, packed| {
                    let first = (g * group, i * PACKED * M::VALUES);
                    pack_group(isa, (product, first), values, (M::VALUES, group), packed);
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
                    let (lanes, meeting) = (first..last, PhantomData::<M>);
                    M::sum_part(isa, Part { lanes, group, product, values, depth, packed, t, c, meeting });
                }
            };
            match lanes {
                Big::Values(values) => sum(&values[first * depth..last * depth]),
                Big::Codes(codes) => {
                    scratch::with(Use::Decoded, (last - first) * depth, |values: &mut [S]| {
                        decode_rows(isa, codes, first, values, PhantomData::<M::Sum>);
                        sum(values);
                    });
                }
            }
        });
    });
}

/// One group of thin lanes, for some of the big ones.
struct Part<'a, M: Meeting<S>, S: Element, E> {
    lanes: Range<usize>,
    /// Thin lanes in the group, filled up.
    group: usize,
    product: Thin<'a>,
    /// Of the big lanes in the range.
    values: &'a [S],
    depth: usize,
    packed: &'a [M::Packed],
    /// First thin lane.
    t: usize,
    c: &'a Output<'a, E>,
    meeting: PhantomData<M>,
}

per_isa! {
    /// The thin lanes from a first one on, and from a first `k`: registers of consecutive `k` of each lane in turn, zero
    /// beyond.
    fn pack_group<P: Element, Q: Element>(
        from: (Thin<'_>, (usize, usize)),
        values: &[P],
        registers: (usize, usize),
        packed: &mut [Q],
    ) {
        let ((product, (first, first_k)), (width, group)) = (from, registers);
        let (lanes, depth) = (product.thin.lanes(), product.thin.depth());
        let (along, across) = if product.thin.along_k { (1, depth) } else { (lanes, 1) };
        packed.fill(Q::default());
        for t in 0..group.min(lanes - first) {
            let lane = &values[(first + t) * across..];
            for (i, registers) in packed.chunks_exact_mut(group * width).enumerate() {
                let k0 = first_k + i * width;
                let to = &mut registers[t * width..][..width.min(depth - k0)];
                for (to, from) in to.iter_mut().zip(lane[k0 * along..].iter().step_by(along)) {
                    *to = Q::from_f32(product.rounded(*from));
                }
            }
        }
    }

    fn sum_widened<V: Vector, S: Element, E: Element>(part: Part<'_, Widened<V>, S, E>) {
        part.run();
    }
}

impl<M: Meeting<S>, S: Element, E: Element> Part<'_, M, S, E> {
    #[inline(always)]
    fn run(self) {
        let many = M::Sum::REGISTERS >= 32;
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

impl<M: Meeting<S>, S: Element, E: Element> Part<'_, M, S, E> {
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
        let whole = self.depth / M::VALUES;
        assert!(self.packed.len() >= self.depth.div_ceil(M::VALUES) * T * M::VALUES);
        // SAFETY: `rows` holds `R` lanes of `depth` values and `packed` `T` registers for each register's worth of
        // depth, as asserted; the rest of a lane is copied to a register's worth of its own; this is compiled for
        // the kernel's instruction set and runs because the device has it.
        unsafe {
            let mut sums = [[M::Sum::splat(0.0); T]; R];
            let mut thin = self.packed.as_ptr();
            for k in 0..whole {
                let mut x = [M::zeros(); R];
                for (r, x) in x.iter_mut().enumerate() {
                    let at = rows.as_ptr().add(r * self.depth + k * M::VALUES);
                    // The same place among the lanes that come next.
                    prefetch_l2(at.wrapping_add(R * self.depth));
                    *x = M::big(at);
                }
                add_products::<M, S, R, T>(&mut sums, x, thin);
                thin = thin.add(T * M::VALUES);
            }
            if whole * M::VALUES < self.depth {
                let mut x = [M::zeros(); R];
                for (x, row) in x.iter_mut().zip(rows.chunks_exact(self.depth)) {
                    let mut rest = [S::default(); MOST_VALUES];
                    let from = &row[whole * M::VALUES..];
                    rest[..from.len()].copy_from_slice(from);
                    *x = M::big(rest.as_ptr());
                }
                add_products::<M, S, R, T>(&mut sums, x, thin);
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
unsafe fn add_products<M: Meeting<S>, S: Element, const R: usize, const T: usize>(
    sums: &mut [[M::Sum; T]; R],
    x: [M::Values; R],
    thin: *const M::Packed,
) {
    let mut y = [x[0]; T];
    for (t, y) in y.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *y = unsafe { M::thin(thin.add(t * M::VALUES)) };
    }
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sum, y) in sums.iter_mut().zip(y) {
            // SAFETY: the caller's promise.
            *sum = unsafe { M::add(x, y, *sum) };
        }
    }
}
