//! Products in which one side has few rows or columns: decoding, and the products of LoRA.
//!
//! The other side, the big one, is read from memory once and is not packed; what there is to gain beyond that
//! is small. `T` lanes of the thin operand meet `L` lanes of the big one; a lane is a row of `op(A)` or a column
//! of `op(B)`. If the big lanes lie along `k` ([`dot`]), sums run over registers of consecutive `k`; otherwise
//! ([`outer`]) each stored row of the big operand is scaled and added, a strip of lanes at a time.
//!
//! | product | thin | big | kernel |
//! |---|---|---|---|
//! | `y = x·Wᵀ` for a few tokens | `x` | `W`, stored `[out, in]` | `dot` |
//! | `xa = x·Aᵀ` | `A`, stored `[R, in]` | `x` | `dot` |
//! | `dxa = dy·B` | `B`, stored `[out, R]` | `dy` | `dot` |
//! | `dA = dxaᵀ·x` | `dxa`, stored `[N, R]` | `x` | `outer` |
//! | `dB = dyᵀ·xa` | `xa`, stored `[N, R]` | `dy` | `outer` |

mod dot;
mod outer;

use half::bf16;

use super::kernel::MicroKernel;
use super::output::Output;
use super::pack::{Operand, Stored};
use super::vector::Vector;
use crate::quantized::Decoder;
use crate::{DType, Device, Element, View, with_dtype};

/// Lanes of the thin operand at most. Beyond, packing both pays.
const THIN: usize = 16;
/// Values along `k` at least, for sums over registers of consecutive `k`.
const DEEP: usize = 64;

/// A product with a thin side.
#[derive(Clone, Copy)]
pub(super) struct Thin<'a> {
    thin: Operand<'a>,
    big: Operand<'a>,
    /// Whether the thin lanes are rows of `C`.
    thin_is_a: bool,
}

impl<'a> Thin<'a> {
    /// The product, if it is one of these.
    ///
    /// A kernel that multiplies whole runs of stored rows (tiles) reads rows of `A` no slower than they come from memory,
    /// and is left the products whose big operand they are.
    pub fn new<K: MicroKernel>(a: Operand<'a>, b: Operand<'a>) -> Option<Self> {
        let thin_is_a = a.lanes() <= b.lanes();
        if K::RUN > 1 && !thin_is_a && a.along_k {
            return None;
        }
        let (thin, big) = if thin_is_a { (a, b) } else { (b, a) };
        let suits = thin.lanes() <= THIN && (a.depth() >= DEEP || (!big.along_k && a.depth() > 0));
        let readable = match big.stored {
            // Read as it is, so it must need no rounding.
            Stored::Values(view) => !big.round || view.dtype() == DType::BF16,
            // Decoded row by row.
            Stored::Codes(_) => big.along_k,
        };
        // The thin operand's values are gathered lane by lane, where codes come in blocks along their rows.
        let gathered = matches!(thin.stored, Stored::Values(_));
        (suits && readable && gathered).then_some(Self { thin, big, thin_is_a })
    }

    /// Computes it with the lanes of kernel `K`.
    pub fn run<K: MicroKernel, E: Element>(self, dev: &Device, c: &Output<'_, E>) {
        match self.big.stored {
            Stored::Codes(codes) if self.big.round => dot::run::<K, bf16, E>(dev, self, Big::Codes(codes), c),
            Stored::Codes(codes) => dot::run::<K, f32, E>(dev, self, Big::Codes(codes), c),
            Stored::Values(view) => with_dtype!(view.dtype(), S => {
                let values = view.as_slice::<S>();
                if self.big.along_k {
                    dot::run::<K, S, E>(dev, self, Big::Values(values), c);
                } else {
                    outer::run::<K, S, E>(dev, self, values, c);
                }
            }),
        }
    }

    /// The thin operand's value as it is multiplied; zero beyond its lanes and its depth.
    #[inline(always)]
    fn value<P: Element>(self, values: &[P], lane: usize, k: usize) -> f32 {
        let (lanes, depth) = (self.thin.lanes(), self.thin.depth());
        if lane >= lanes || k >= depth {
            return 0.0;
        }
        self.rounded(values[if self.thin.along_k { lane * depth + k } else { k * lanes + lane }])
    }

    /// The thin operand's values as stored: what is thin is never quantised.
    fn thin_values(&self) -> View<'a> {
        let Stored::Values(view) = self.thin.stored else { unreachable!("a thin operand of codes") };
        view
    }

    /// Whether its thin values are `bf16` as they are multiplied.
    fn thin_is_bf16(&self) -> bool {
        self.thin.round || self.thin_values().dtype() == DType::BF16
    }

    /// One of the thin operand's values as it is multiplied.
    #[inline(always)]
    fn rounded<P: Element>(self, value: P) -> f32 {
        if self.thin.round {
            Element::to_f32(<bf16 as Element>::from_f32(value.to_f32()))
        } else {
            value.to_f32()
        }
    }

    /// Stores the sums of one big lane with the thin lanes from `t` on.
    ///
    /// # Safety
    /// No other thread touches these elements of `C` meanwhile.
    #[inline(always)]
    unsafe fn store<E: Element>(self, c: &Output<'_, E>, lane: usize, t: usize, sums: &[f32]) {
        let sums = &sums[..sums.len().min(self.thin.lanes() - t)];
        // SAFETY: the caller's promise is the same.
        unsafe {
            if self.thin_is_a {
                for (i, sum) in sums.iter().enumerate() {
                    c.store_row(t + i, lane, std::slice::from_ref(sum));
                }
            } else {
                c.store_row(lane, t, sums);
            }
        }
    }
}

/// The big operand, its lanes along `k`.
#[derive(Clone, Copy)]
enum Big<'a, S> {
    Values(&'a [S]),
    /// To be decoded, for each task its own lanes.
    Codes(Decoder<'a>),
}

/// `LANES` values of the big operand in `f32`.
///
/// # Safety
/// That of [`Vector`].
#[inline(always)]
unsafe fn load<V: Vector, S: Element>(from: *const S) -> V {
    // SAFETY: the caller's promise is the same, and `S` is one of two types.
    unsafe { if S::DTYPE == DType::BF16 { V::load_bf16(from.cast()) } else { V::load(from.cast()) } }
}
