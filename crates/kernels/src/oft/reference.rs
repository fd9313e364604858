//! The definition: plain loops over powers of each block's matrix.

/// Sizes: N, K and b.
pub type Sizes = [usize; 3];

/// [b, b] · [b, b].
fn times(a: &[f64], c: &[f64], b: usize) -> Vec<f64> {
    (0..b * b).map(|at| (0..b).map(|t| a[at / b * b + t] * c[t * b + at % b]).sum()).collect()
}

/// R_k from the upper triangle of Q_k.
pub fn matrix(q: &[f64], b: usize) -> Vec<f64> {
    let mut skew = vec![0.0; b * b];
    let pairs = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
    pairs.zip(q).for_each(|((i, j), q)| (skew[i * b + j], skew[j * b + i]) = (*q, -q));
    let second = times(&skew, &skew, b);
    let third = times(&second, &skew, b);
    let fourth = times(&third, &skew, b);
    let unit = |at: usize| f64::from(u8::from(at / b == at % b));
    (0..b * b).map(|at| unit(at) + 2.0 * (skew[at] + second[at] + third[at]) + fourth[at]).collect()
}

/// y; blocks that `dropped` names stay as they are.
pub fn forward(q: &[f64], x: &[f64], [n, k, b]: Sizes, dropped: &[usize]) -> Vec<f64> {
    let each = b * (b - 1) / 2;
    let mut y = vec![0.0; n * k * b];
    for block in 0..k {
        let zeros = vec![0.0; each];
        let q = if dropped.contains(&block) { &zeros } else { &q[block * each..][..each] };
        let r = matrix(q, b);
        for row in 0..n {
            let start = (row * k + block) * b;
            for j in 0..b {
                y[start + j] = (0..b).map(|i| x[start + i] * r[i * b + j]).sum();
            }
        }
    }
    y
}

/// dx and dq by the derivative of each term: d(Qᵖ) = Σ Qᵃ·dQ·Qᶜ, a + c = p − 1.
pub fn backward(q: &[f64], x: &[f64], dy: &[f64], [n, k, b]: Sizes) -> [Vec<f64>; 2] {
    let each = b * (b - 1) / 2;
    let (mut dx, mut dq) = (vec![0.0; n * k * b], Vec::new());
    for block in 0..k {
        let q = &q[block * each..][..each];
        let (r, mut dr) = (matrix(q, b), vec![0.0; b * b]);
        for row in 0..n {
            let start = (row * k + block) * b;
            for i in 0..b {
                dx[start + i] = (0..b).map(|j| dy[start + j] * r[i * b + j]).sum();
                (0..b).for_each(|j| dr[i * b + j] += x[start + i] * dy[start + j]);
            }
        }
        let mut minus = vec![0.0; b * b];
        let pairs = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
        pairs.zip(q).for_each(|((i, j), q)| (minus[i * b + j], minus[j * b + i]) = (-q, *q));
        let unit: Vec<f64> = (0..b * b).map(|at| f64::from(u8::from(at / b == at % b))).collect();
        let powers: Vec<Vec<f64>> =
            std::iter::successors(Some(unit), |p| Some(times(p, &minus, b))).take(4).collect();
        let mut sum = vec![0.0; b * b];
        for (p, factor) in [(1, 2.0), (2, 2.0), (3, 2.0), (4, 1.0)] {
            for a in 0..p {
                let term = times(&times(&powers[a], &dr, b), &powers[p - 1 - a], b);
                sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += factor * term);
            }
        }
        let pairs = (0..b).flat_map(|i| (i + 1..b).map(move |j| (i, j)));
        dq.extend(pairs.map(|(i, j)| sum[i * b + j] - sum[j * b + i]));
    }
    [dx, dq]
}
