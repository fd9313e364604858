//! The largest singular values of a weight, with their vectors.
//!
//! > W ≈ U·diag(σ)·Vᵀ
//!
//! Subspace iteration (Halko, Martinsson & Tropp, 2011, algorithm 4.4): from random vectors Ω [C, Q], Q = orth(W·Ω) is
//! multiplied by W·Wᵀ and made orthonormal again as often as is asked for, and the small matrix Qᵀ·W is decomposed by
//! one-sided Jacobi rotations (Hestenes, 1958). Products with W are f32 ones where W is; thin matrices are f64 on the
//! host. Without a number of iterations more vectors than wanted are taken along, and iterations go on until W·v − σ·u
//! is as small as f32 resolves: what a full decomposition gives, at the cost of a few products.

use sft_kernels::matmul::Matmul;
use sft_kernels::{Device, Tensor, random};

/// Vectors taken along beside those that are wanted, at least, where the number of iterations is open.
const MORE_VECTORS: usize = 16;
/// Iterations between two looks at how far they have come, where their number is open.
const ROUND: usize = 6;
/// Such rounds at most: neighbours that are almost equal are told apart no further.
const MOST_ROUNDS: usize = 30;
/// Part of the largest singular value that counts as nothing.
const RESOLVED: f64 = 2e-6;
/// Sweeps of rotations at most; about ten are enough for f64.
const MOST_SWEEPS: usize = 40;

/// A decomposition of rank R, in f64.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// σ, the largest first: [R].
    pub values: Vec<f64>,
    /// Vectors u of W's rows: R of length out.
    pub left: Vec<Vec<f64>>,
    /// Vectors v of W's columns: R of length in.
    pub right: Vec<Vec<f64>>,
}

/// The `rank` largest singular values of `weight`, f32 [out, in] where `dev` computes, from random numbers of `key`;
/// with so many iterations, or as many as it takes.
///
/// A weight with fewer values than that gets zeros.
pub(crate) fn low_rank(
    dev: &Device,
    weight: &Tensor,
    rank: usize,
    iterations: Option<usize>,
    key: u64,
) -> LowRank {
    let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
    let most = outputs.min(inputs);
    // As many as torch's `svd_lowrank` takes for PEFT, or more, which makes the wanted ones settle sooner.
    let taken = if iterations.is_some() { rank } else { 2 * rank + MORE_VECTORS }.min(most);
    let draw = |i: usize| (0..inputs).map(|j| random::normal(key, (i * inputs + j) as u64)).collect();
    let start: Vec<Vec<f64>> = (0..taken).map(draw).collect();
    let mut q = orthonormal(times(dev, weight, &start));
    let mut rounds = iterations.map_or(MOST_ROUNDS, |_| 1);
    let mut found = loop {
        for _ in 0..iterations.unwrap_or(ROUND) {
            let z = transposed_times(dev, weight, &q);
            q = orthonormal(times(dev, weight, &orthonormal(z)));
        }
        let low = decompose(&q, transposed_times(dev, weight, &q), rank.min(taken));
        rounds -= 1;
        if rounds == 0 || taken == most || is_resolved(&low, &times(dev, weight, &low.right)) {
            break low;
        }
    };
    found.values.resize(rank, 0.0);
    found.left.resize(rank, vec![0.0; outputs]);
    found.right.resize(rank, vec![0.0; inputs]);
    found
}

/// Whether W·v is σ·u for every value.
fn is_resolved(low: &LowRank, products: &[Vec<f64>]) -> bool {
    let largest = low.values.first().copied().unwrap_or(0.0);
    low.values.iter().zip(&low.left).zip(products).all(|((value, left), product)| {
        let rest = product.iter().zip(left).map(|(p, u)| (p - value * u).powi(2)).sum::<f64>().sqrt();
        rest <= RESOLVED * largest
    })
}

/// The decomposition of Q·Qᵀ·W, `z` being (Qᵀ·W)ᵀ by columns: rows of Qᵀ·W.
fn decompose(q: &[Vec<f64>], mut z: Vec<Vec<f64>>, rank: usize) -> LowRank {
    let k = z.len();
    // Rows of z are turned in pairs until they are orthogonal: turns·z = diag(σ)·Vᵀ.
    let mut turns: Vec<Vec<f64>> =
        (0..k).map(|i| (0..k).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..MOST_SWEEPS {
        let mut largest = 0.0f64;
        for i in 0..k {
            for j in i + 1..k {
                let [a, b, c] = [dot(&z[i], &z[i]), dot(&z[j], &z[j]), dot(&z[i], &z[j])];
                let cosine = c.abs() / (a * b).sqrt().max(f64::MIN_POSITIVE);
                largest = largest.max(cosine);
                if cosine > 1e-15 {
                    let zeta = (b - a) / (2.0 * c);
                    let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                    let cos = 1.0 / (1.0 + t * t).sqrt();
                    for rows in [&mut z, &mut turns] {
                        turn(rows, (i, j), (cos, cos * t));
                    }
                }
            }
        }
        if largest < 1e-14 {
            break;
        }
    }
    let norms: Vec<f64> = z.iter().map(|row| dot(row, row).sqrt()).collect();
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]));
    order.truncate(rank);
    let unit = |i: &usize| z[*i].iter().map(|x| if norms[*i] > 0.0 { x / norms[*i] } else { 0.0 }).collect();
    let left = |i: &usize| {
        let mut u = vec![0.0; q.first().map_or(0, Vec::len)];
        for (turn, q) in turns[*i].iter().zip(q) {
            u.iter_mut().zip(q).for_each(|(u, q)| *u += turn * q);
        }
        u
    };
    LowRank {
        values: order.iter().map(|i| norms[*i]).collect(),
        left: order.iter().map(left).collect(),
        right: order.iter().map(unit).collect(),
    }
}

/// Rows i and j turned by an angle of this cosine and sine.
fn turn(rows: &mut [Vec<f64>], (i, j): (usize, usize), (cos, sin): (f64, f64)) {
    let (first, second) = rows.split_at_mut(j);
    for (a, b) in first[i].iter_mut().zip(&mut second[0]) {
        (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
    }
}

/// The vectors made orthonormal, those that add nothing zero: Gram and Schmidt's way, twice over.
fn orthonormal(mut vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for i in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(i);
        let v = &mut rest[0];
        let length = dot(v, v).sqrt();
        for _ in 0..2 {
            for u in &*before {
                let along = dot(u, v);
                v.iter_mut().zip(u).for_each(|(v, u)| *v -= along * u);
            }
        }
        let norm = dot(v, v).sqrt();
        let by = if norm > 1e-12 * length { 1.0 / norm } else { 0.0 };
        v.iter_mut().for_each(|v| *v *= by);
    }
    vectors
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// W·x for each of the vectors.
fn times(dev: &Device, weight: &Tensor, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (outputs, inputs, count) = (weight.shape()[0], weight.shape()[1], vectors.len());
    let x: Vec<f32> = vectors.iter().flatten().map(|x| *x as f32).collect();
    let x = Tensor::from_slice(&x, &[count, inputs]).on(dev);
    let mut y = dev.zeros(sft_kernels::DType::F32, &[count, outputs]);
    Matmul::x_wt(x.view(), weight.view(), y.view_mut()).run(dev);
    in_rows(&y)
}

/// Wᵀ·x for each of the vectors.
fn transposed_times(dev: &Device, weight: &Tensor, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (outputs, inputs, count) = (weight.shape()[0], weight.shape()[1], vectors.len());
    let x: Vec<f32> = vectors.iter().flatten().map(|x| *x as f32).collect();
    let x = Tensor::from_slice(&x, &[count, outputs]).on(dev);
    let mut y = dev.zeros(sft_kernels::DType::F32, &[count, inputs]);
    Matmul::dy_w(x.view(), weight.view(), y.view_mut()).run(dev);
    in_rows(&y)
}

fn in_rows(y: &Tensor) -> Vec<Vec<f64>> {
    let width = y.shape()[1].max(1);
    y.to_f32_vec().chunks(width).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use sft_kernels::CpuOptions;

    use super::*;

    /// A matrix with these singular values and random vectors.
    fn matrix([outputs, inputs]: [usize; 2], values: &[f64]) -> Vec<f64> {
        let basis = |key: u64, length: usize| {
            let draw = |i: u64| (0..length as u64).map(|j| random::normal(key + i, j)).collect();
            orthonormal((0..values.len() as u64).map(draw).collect())
        };
        let (u, v) = (basis(100, outputs), basis(200, inputs));
        let element =
            |i: usize, j: usize| values.iter().zip(u.iter().zip(&v)).map(|(s, (u, v))| s * u[i] * v[j]).sum();
        (0..outputs * inputs).map(|at| element(at / inputs, at % inputs)).collect()
    }

    /// Singular values and the part of a matrix that the first of them make up are found.
    fn finds(shape: [usize; 2], values: &[f64], rank: usize, iterations: Option<usize>, tolerance: f64) {
        let dev = Device::cpu(CpuOptions::default()).unwrap();
        let whole = matrix(shape, values);
        let f32s: Vec<f32> = whole.iter().map(|x| *x as f32).collect();
        let low = low_rank(&dev, &Tensor::from_slice(&f32s, &shape), rank, iterations, 5);
        for (found, expected) in low.values.iter().zip(values.iter().chain(std::iter::repeat(&0.0))) {
            assert!((found - expected).abs() < tolerance * values[0], "{found} and not {expected}");
        }
        let expected = matrix(shape, &values[..rank.min(values.len())]);
        let part = |at: usize| -> f64 {
            let (i, j) = (at / shape[1], at % shape[1]);
            (0..rank).map(|k| low.values[k] * low.left[k][i] * low.right[k][j]).sum()
        };
        for (at, expected) in expected.iter().enumerate() {
            assert!(
                (part(at) - expected).abs() < tolerance * values[0],
                "{at}: {} and not {expected}",
                part(at)
            );
        }
    }

    #[test]
    fn the_largest_values_of_wide_and_tall_matrices_are_found() {
        let values: Vec<f64> = (0..20).map(|i| 3.0 * 0.9f64.powi(i)).collect();
        finds([30, 50], &values, 4, None, 1e-5);
        finds([50, 30], &values, 8, None, 1e-5);
        finds([300, 200], &values, 2, None, 1e-5);
    }

    #[test]
    fn small_matrices_and_those_of_lower_rank_are_decomposed_whole() {
        finds([5, 7], &[2.0, 1.0, 0.5, 0.25, 0.125], 5, None, 1e-5);
        finds([5, 7], &[2.0, 1.0], 4, None, 1e-5);
        finds([1, 3], &[2.0], 1, None, 1e-5);
    }

    #[test]
    fn sixteen_iterations_are_near() {
        let values: Vec<f64> = (0..20).map(|i| 3.0 * 0.7f64.powi(i)).collect();
        finds([60, 40], &values, 4, Some(16), 1e-3);
    }
}
