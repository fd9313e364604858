//! The leading singular vectors of a matrix, in f64.
//!
//! Those of the shorter side are eigenvectors of G·Gᵀ or Gᵀ·G: Householder's reflections make it tridiagonal, implicit QL
//! steps make that diagonal (Golub & Van Loan, Matrix Computations, 8.3). The other side follows: v = Gᵀ·u / ‖Gᵀ·u‖.
//! With k the shorter side and l the longer it takes l·k² operations for the product, and about 4·k³ for the rest.

/// Vectors by falling singular value.
pub(super) struct Leading {
    /// Of length `rows`.
    pub left: Vec<Vec<f64>>,
    /// Of length `columns`.
    pub right: Vec<Vec<f64>>,
}

/// The first `count` pairs of singular vectors of a matrix [rows, columns], `count` being at most its shorter side.
pub(super) fn leading(matrix: &[f32], rows: usize, columns: usize, count: usize) -> Leading {
    let is_wide = rows < columns;
    // The longer side as rows.
    let tall: Vec<f64> = match is_wide {
        true => (0..rows * columns).map(|i| f64::from(matrix[i % rows * columns + i / rows])).collect(),
        false => matrix.iter().map(|x| f64::from(*x)).collect(),
    };
    let short = rows.min(columns);
    let of_short = leading_eigenvectors(gram(&tall, short), short, count);
    let mut largest = 0.0f64;
    let of_long = of_short.iter().map(|vector| {
        let mut product: Vec<f64> = tall.chunks(short).map(|row| dot(row, vector)).collect();
        let norm = dot(&product, &product).sqrt();
        largest = largest.max(norm);
        // Where the matrix has no such rank there is no vector but of rounding.
        let is_there = norm > NOTHING * largest;
        product.iter_mut().for_each(|x| *x = if is_there { *x / norm } else { 0.0 });
        product
    });
    let of_long = of_long.collect();
    if is_wide {
        Leading { left: of_short, right: of_long }
    } else {
        Leading { left: of_long, right: of_short }
    }
}

/// A singular value of this part of the largest is rounding: f32 resolves no more.
const NOTHING: f64 = 1e-7;

/// Rows whose products are added to the Gram matrix together, so that they stay in the cache.
const ROWS: usize = 16;

/// Gᵀ·G of a matrix of rows of `n`.
fn gram(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut sum = vec![0.0; n * n];
    for rows in matrix.chunks(ROWS * n) {
        for (i, to) in sum.chunks_mut(n).enumerate() {
            for row in rows.chunks(n) {
                let factor = row[i];
                to[..=i].iter_mut().zip(row).for_each(|(to, x)| *to += factor * x);
            }
        }
    }
    for i in 0..n {
        for j in 0..i {
            sum[j * n + i] = sum[i * n + j];
        }
    }
    sum
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// Eigenvectors of a symmetric matrix [n, n] by falling eigenvalue.
fn leading_eigenvectors(mut matrix: Vec<f64>, n: usize, count: usize) -> Vec<Vec<f64>> {
    let (mut diagonal, mut beside, reflections) = tridiagonal(&mut matrix, n);
    // Row i of `vectors` is the eigenvector i of the tridiagonal matrix.
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    diagonalise(&mut diagonal, &mut beside, &mut vectors);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    let back = |i: &usize| {
        let mut vector = vectors[i * n..][..n].to_vec();
        for (at, v) in reflections.iter().enumerate().rev() {
            reflect(v, &mut vector[at + 1..]);
        }
        vector
    };
    order.iter().take(count).map(back).collect()
}

/// x ← x − 2·v·(v·x) for a v of length 1, or of zeros.
fn reflect(v: &[f64], x: &mut [f64]) {
    let twice = 2.0 * dot(v, x);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= twice * v);
}

/// Diagonal, what is beside it, and the reflections that made it so: the one number i acts on the elements after i.
fn tridiagonal(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let (mut beside, mut reflections) = (vec![0.0; n], Vec::new());
    for i in 0..n.saturating_sub(2) {
        let mut v: Vec<f64> = (i + 1..n).map(|j| a[j * n + i]).collect();
        let norm = dot(&v, &v).sqrt();
        // The side of the first element, so that nothing cancels.
        let alpha = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= alpha;
        let length = dot(&v, &v).sqrt();
        v.iter_mut().for_each(|x| *x = if length > 0.0 { *x / length } else { 0.0 });
        beside[i] = alpha;
        // A ← H·A·H on what is left: A − v·wᵀ − w·vᵀ with p = 2·A·v and w = p − v·(v·p).
        let rest = |j: usize| (i + 1 + j) * n + i + 1;
        let m = v.len();
        let mut w: Vec<f64> = (0..m).map(|j| 2.0 * dot(&a[rest(j)..][..m], &v)).collect();
        let share = dot(&v, &w);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= share * v);
        for j in 0..m {
            let (vj, wj) = (v[j], w[j]);
            let row = &mut a[rest(j)..][..m];
            row.iter_mut().zip(v.iter().zip(&w)).for_each(|(x, (v, w))| *x -= vj * w + wj * v);
        }
        reflections.push(v);
    }
    if n > 1 {
        beside[n - 2] = a[(n - 1) * n + n - 2];
    }
    ((0..n).map(|i| a[i * n + i]).collect(), beside, reflections)
}

/// Implicit QL steps: `diagonal` becomes the eigenvalues, rows of `vectors` turn along.
fn diagonalise(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64]) {
    let n = diagonal.len();
    for l in 0..n {
        // Each step about cubes what is left; the limit is never met by finite numbers.
        for _ in 0..64 {
            let small = |m: &usize| {
                let size = diagonal[*m].abs() + diagonal[*m + 1].abs();
                beside[*m].abs() <= f64::EPSILON * size
            };
            let m = (l..n - 1).find(small).unwrap_or(n - 1);
            if m == l {
                break;
            }
            // Wilkinson's shift.
            let half = (diagonal[l + 1] - diagonal[l]) / (2.0 * beside[l]);
            let root = half.hypot(1.0);
            let mut g = diagonal[m] - diagonal[l] + beside[l] / (half + root.copysign(half));
            let (mut sine, mut cosine, mut moved) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (l..m).rev() {
                let (f, b) = (sine * beside[i], cosine * beside[i]);
                let r = f.hypot(g);
                beside[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= moved;
                    beside[m] = 0.0;
                    split = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                g = diagonal[i + 1] - moved;
                let turned = (diagonal[i] - g) * sine + 2.0 * cosine * b;
                moved = sine * turned;
                diagonal[i + 1] = g + moved;
                g = cosine * turned - b;
                rotate(vectors, n, i, (sine, cosine));
            }
            if !split {
                diagonal[l] -= moved;
                beside[l] = g;
                beside[m] = 0.0;
            }
        }
    }
}

/// Turns rows i and i + 1.
fn rotate(vectors: &mut [f64], n: usize, i: usize, (sine, cosine): (f64, f64)) {
    let (first, second) = vectors[i * n..(i + 2) * n].split_at_mut(n);
    for (a, b) in first.iter_mut().zip(second) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        let key = sft_kernels::random::key(seed, &[]);
        (0..n as u64).map(|i| (sft_kernels::random::uniform(key, i) - 0.5) as f32).collect()
    }

    /// ‖Gᵀ·u − s·v‖ and ‖G·v − s·u‖ of every pair, and how far the vectors are from orthonormal ones.
    fn check(matrix: &[f32], rows: usize, columns: usize) -> Vec<f64> {
        let count = rows.min(columns);
        let Leading { left, right } = leading(matrix, rows, columns, count);
        let g = |i: usize, j: usize| f64::from(matrix[i * columns + j]);
        let mut values = Vec::new();
        for (u, v) in left.iter().zip(&right) {
            let gv: Vec<f64> = (0..rows).map(|i| (0..columns).map(|j| g(i, j) * v[j]).sum()).collect();
            let gu: Vec<f64> = (0..columns).map(|j| (0..rows).map(|i| g(i, j) * u[i]).sum()).collect();
            let s = dot(&gv, u);
            assert!(gv.iter().zip(u).all(|(a, b)| (a - s * b).abs() < 1e-7), "G·v = s·u, {rows}×{columns}");
            assert!(gu.iter().zip(v).all(|(a, b)| (a - s * b).abs() < 1e-7), "Gᵀ·u = s·v, {rows}×{columns}");
            values.push(s);
        }
        let short = if rows < columns { &left } else { &right };
        for (i, a) in short.iter().enumerate() {
            for (j, b) in short.iter().enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot(a, b) - expected).abs() < 1e-10, "vectors {i} and {j} of {rows}×{columns}");
            }
        }
        values
    }

    #[test]
    fn vectors_are_singular_and_their_values_fall() {
        for (rows, columns) in [(1, 1), (2, 1), (2, 2), (3, 7), (7, 3), (20, 20), (48, 16), (16, 40)] {
            let values = check(&numbers(9, rows * columns), rows, columns);
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1] - 1e-9), "{values:?}");
        }
    }

    #[test]
    fn special_matrices_have_their_values() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        };
        close(check(&[3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.0], 3, 3), &[3.0, 2.0, 0.0]);
        // Equal values, and a rank of one.
        close(check(&[0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], 3, 3), &[1.0, 1.0, 1.0]);
        close(check(&[1.0, 2.0, 2.0, 4.0, 3.0, 6.0], 3, 2), &[70f64.sqrt(), 0.0]);
        close(check(&[0.0; 12], 4, 3), &[0.0; 3]);
    }
}
