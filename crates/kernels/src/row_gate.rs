//! A row multiplied by a number of its own that a gate makes (stages 9 and 11 of the walk): a shared expert's output.
//!
//! Formula: y[t] = σ(g[t])·x[t]. Derivative, with s = σ(g[t]):
//!
//! > dx[t] = s·dy[t], dg[t] = s·(1 − s)·⟨dy[t], x[t]⟩
//!
//! Storage f32 or bf16 (one type for all), arithmetic f32. Saved for backward: g and x, which are replaced by their
//! gradients. Memory-bound: 2 tensors forward, 3 backward.

use crate::isa::per_isa;
use crate::{Device, Element, View, ViewMut, with_dtype};

pub(crate) use on_cuda::SOURCE;

fn sigmoid(g: f32) -> f32 {
    1.0 / (1.0 + (-g).exp())
}

/// y[t] = σ(g[t])·x[t]; g is [N, 1], x and y are [N, C].
///
/// # Panics
/// If shapes or types do not fit.
pub fn forward(dev: &Device, g: View<'_>, x: View<'_>, y: ViewMut<'_>) {
    let _timed = dev.pass("row gate", 2 * x.byte_len());
    assert_eq!((x.shape(), x.dtype(), g.dtype()), (y.shape(), y.dtype(), y.dtype()), "row_gate: x, y and g");
    assert_eq!(g.elements(), x.dim(0), "row_gate: g");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::forward(cuda, g, x, y);
    }
    let c = x.dim(1);
    with_dtype!(y.dtype(), E => {
        let (g, x) = (g.as_slice::<E>(), x.as_slice::<E>());
        dev.for_each_chunk(y.as_mut_slice::<E>(), c, |t, y| {
            scaled(dev.isa(), sigmoid(g[t].to_f32()), &x[t * c..(t + 1) * c], y);
        });
    });
}

/// Replaces g by dg and x by dx.
///
/// # Panics
/// If shapes or types do not fit.
pub fn backward(dev: &Device, dy: View<'_>, g: ViewMut<'_>, x: ViewMut<'_>) {
    let _timed = dev.pass("row gate backward", 3 * dy.byte_len());
    assert_eq!(
        (x.shape(), x.dtype(), g.dtype()),
        (dy.shape(), dy.dtype(), dy.dtype()),
        "row_gate: x, dy and g"
    );
    assert_eq!(g.elements(), x.dim(0), "row_gate: g");
    if let Some(cuda) = dev.cuda() {
        return on_cuda::backward(cuda, dy, g, x);
    }
    let c = x.dim(1);
    with_dtype!(dy.dtype(), E => {
        let dy = dy.as_slice::<E>();
        dev.for_each_chunk_pair((g.as_mut_slice::<E>(), 1), (x.as_mut_slice::<E>(), c), |t, g, x| {
            let (dy, s) = (&dy[t * c..(t + 1) * c], sigmoid(g[0].to_f32()));
            g[0] = E::from_f32(s * (1.0 - s) * dot(dev.isa(), dy, x));
            scaled(dev.isa(), s, dy, x);
        });
    });
}

per_isa! {
    fn scaled<E: Element>(s: f32, x: &[E], y: &mut [E]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = E::from_f32(s * x.to_f32()));
    }

    fn dot<E: Element>(a: &[E], b: &[E]) -> f32 {
        // Sixteen sums at a time: one for each lane of a vector.
        let mut sums = [0.0f32; 16];
        for (a, b) in a.chunks(16).zip(b.chunks(16)) {
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a.to_f32() * b.to_f32());
        }
        sums.iter().sum()
    }
}

mod on_cuda {
    //! The same on a GPU: a block has one row.

    use crate::cuda::{Cuda, DevicePtr, Grid, Params, Source};
    use crate::{View, ViewMut};

    pub(crate) static SOURCE: Source = Source::new("row_gate", include_str!("row_gate.cu"));

    const THREADS: usize = 256;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct RowGate {
        g: DevicePtr,
        x: DevicePtr,
        y: DevicePtr,
        columns: u64,
    }
    // SAFETY: `RowGate` of row_gate.cu; shapes were checked.
    unsafe impl Params for RowGate {}

    fn grid(rows: usize, columns: usize) -> Grid {
        Grid::new(rows, columns.next_multiple_of(32).min(THREADS))
    }

    pub fn forward(cuda: &Cuda, g: View<'_>, x: View<'_>, mut y: ViewMut<'_>) {
        let params = RowGate { g: g.device(), x: x.device(), y: y.device(), columns: x.dim(1) as u64 };
        cuda.launch(&SOURCE, "row_gate_forward", &[x.dtype()], grid(x.dim(0), x.dim(1)), params);
    }

    pub fn backward(cuda: &Cuda, dy: View<'_>, mut g: ViewMut<'_>, mut x: ViewMut<'_>) {
        let params = RowGate { g: g.device(), x: x.device(), y: dy.device(), columns: dy.dim(1) as u64 };
        cuda.launch(&SOURCE, "row_gate_backward", &[dy.dtype()], grid(dy.dim(0), dy.dim(1)), params);
    }
}

#[cfg(test)]
mod reference {
    fn sigmoid(g: f64) -> f64 {
        1.0 / (1.0 + (-g).exp())
    }

    pub fn forward(g: &[f64], x: &[f64]) -> Vec<f64> {
        let c = x.len() / g.len();
        x.iter().enumerate().map(|(i, x)| sigmoid(g[i / c]) * x).collect()
    }

    /// (dg, dx).
    pub fn backward(g: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let c = x.len() / g.len();
        let of_row = |t: usize| {
            let (s, row) = (sigmoid(g[t]), t * c..(t + 1) * c);
            s * (1.0 - s) * dy[row.clone()].iter().zip(&x[row]).map(|(dy, x)| dy * x).sum::<f64>()
        };
        ((0..g.len()).map(of_row).collect(), forward(g, dy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

    #[test]
    fn gradcheck_of_the_reference() {
        let mut random = Random::new(1);
        let (g, x, dy) = (random.f64s(3), random.f64s(12), random.f64s(12));
        let (dg, dx) = reference::backward(&g, &x, &dy);
        let loss = |g: &[f64], x: &[f64]| -> f64 {
            reference::forward(g, x).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        gradcheck(|g| loss(g, &x), &g, &dg);
        gradcheck(|x| loss(&g, x), &x, &dx);
    }

    #[test]
    fn matches_torch() {
        // torch.sigmoid(g)[:, None] * x for g = [0.5, -2.0], x = [[1, 2], [3, -4]].
        let y = reference::forward(&[0.5, -2.0], &[1.0, 2.0, 3.0, -4.0]);
        let expected = [
            0.622_459_331_201_854_6,
            1.244_918_662_403_709_1,
            0.357_608_766_066_353_2,
            -0.476_811_688_088_470_9,
        ];
        assert_close("y", &y, &expected, 1e-14);
    }

    #[test]
    fn device_matches_reference() {
        for dev in devices() {
            for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 2e-2)] {
                for (n, c) in [(1, 1), (3, 7), (65, 72), (4, 1030)] {
                    let mut random = Random::new(2);
                    let mut tensor = |c| random.tensor(dtype, &[n, c]).on(&dev);
                    let (mut g, mut x, dy) = (tensor(1), tensor(c), tensor(c));
                    let (gs, xs, dys) = (to_f64(&g), to_f64(&x), to_f64(&dy));
                    let mut y = dev.zeros(dtype, &[n, c]);
                    forward(&dev, g.view(), x.view(), y.view_mut());
                    assert_close("y", &to_f64(&y), &reference::forward(&gs, &xs), tolerance);
                    backward(&dev, dy.view(), g.view_mut(), x.view_mut());
                    let (dg, dx) = reference::backward(&gs, &xs, &dys);
                    assert_close("dg", &to_f64(&g), &dg, tolerance);
                    assert_close("dx", &to_f64(&x), &dx, tolerance);
                }
            }
        }
    }

    #[test]
    fn edges_no_row_and_a_saturated_gate() {
        for dev in devices() {
            let mut none = dev.zeros(DType::F32, &[0, 3]);
            let g = dev.zeros(DType::F32, &[0, 1]);
            forward(&dev, g.view(), dev.zeros(DType::F32, &[0, 3]).view(), none.view_mut());
            let mut g = crate::Tensor::from_slice(&[200.0f32, -200.0], &[2, 1]).on(&dev);
            let mut x = crate::Tensor::from_slice(&[3.0f32, 3.0], &[2, 1]).on(&dev);
            let dy = crate::Tensor::from_slice(&[1.0f32, 1.0], &[2, 1]).on(&dev);
            backward(&dev, dy.view(), g.view_mut(), x.view_mut());
            assert_eq!((g.to_f32_vec(), x.to_f32_vec()), (vec![0.0; 2], vec![1.0, 0.0]));
        }
    }
}
