use super::*;
use crate::Tensor;
use crate::rows;
use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

/// Choices of `n` tokens, k of `experts` each: some experts have none.
fn choices(n: usize, k: usize, experts: usize) -> (Vec<u32>, Grouping) {
    let mut random = Random::new(3);
    let mut index = Vec::new();
    for _ in 0..n {
        let first = ((random.f64() + 1.0) * 0.4 * experts as f64) as u32;
        index.extend((0..k as u32).map(|j| (first + 2 * j) % experts as u32));
    }
    let mut grouping = Grouping::default();
    grouping.sort(&index, experts, k);
    (index, grouping)
}

/// Slot by slot: y[t] += w·(x[t]·W[e]ᵀ + b[e]).
struct Reference<'a> {
    index: &'a [u32],
    k: usize,
    sizes: [usize; 2],
}

impl Reference<'_> {
    fn output(&self, slot: usize, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let [out, inputs] = self.sizes;
        let (token, e) = (slot / self.k, self.index[slot] as usize);
        let row = |o: usize| &weight[(e * out + o) * inputs..][..inputs];
        (0..out).map(|o| row(o).iter().zip(&x[token * inputs..]).map(|(w, x)| w * x).sum()).collect()
    }

    fn forward(&self, x: &[f64], weight: &[f64], w: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; x.len() / self.sizes[1] * self.sizes[0]];
        for slot in 0..self.index.len() {
            let of_token = &mut y[slot / self.k * self.sizes[0]..][..self.sizes[0]];
            of_token.iter_mut().zip(self.output(slot, x, weight)).for_each(|(y, o)| *y += w[slot] * o);
        }
        y
    }

    /// (dx, dW, dw).
    fn backward(&self, x: &[f64], weight: &[f64], w: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
        let [out, inputs] = self.sizes;
        let mut gradients = [vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; w.len()]];
        let [dx, dweight, dw] = &mut gradients;
        for slot in 0..self.index.len() {
            let (token, e) = (slot / self.k, self.index[slot] as usize);
            let dy = &dy[token * out..(token + 1) * out];
            dw[slot] = self.output(slot, x, weight).iter().zip(dy).map(|(o, dy)| o * dy).sum();
            for (o, i) in (0..out).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
                let at = (e * out + o) * inputs + i;
                dx[token * inputs + i] += w[slot] * dy[o] * weight[at];
                dweight[at] += w[slot] * dy[o] * x[token * inputs + i];
            }
        }
        gradients
    }
}

#[test]
fn gradcheck_of_the_reference() {
    let (index, _) = choices(3, 2, 5);
    let reference = Reference { index: &index, k: 2, sizes: [3, 2] };
    let mut random = Random::new(4);
    let (x, weight, w, dy) = (random.f64s(6), random.f64s(30), random.f64s(6), random.f64s(9));
    let [dx, dweight, dw] = reference.backward(&x, &weight, &w, &dy);
    let loss = |x: &[f64], weight: &[f64], w: &[f64]| -> f64 {
        reference.forward(x, weight, w).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
    };
    gradcheck(|x| loss(x, &weight, &w), &x, &dx);
    gradcheck(|weight| loss(&x, weight, &w), &weight, &dweight);
    gradcheck(|w| loss(&x, &weight, w), &w, &dw);
}

#[test]
fn matches_torch() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../goldens/experts.json")).unwrap();
    let list = |key: &str| -> Vec<f64> { serde_json::from_value(golden[key].clone()).unwrap() };
    let index: Vec<u32> = serde_json::from_value(golden["index"].clone()).unwrap();
    let reference = Reference { index: &index, k: 2, sizes: [4, 3] };
    let (x, weight, w, dy) = (list("x"), list("weight"), list("w"), list("dy"));
    assert_close("y", &reference.forward(&x, &weight, &w), &list("y"), 1e-12);
    let [dx, dweight, dw] = reference.backward(&x, &weight, &w, &dy);
    assert_close("dx", &dx, &list("dx"), 1e-12);
    assert_close("dW", &dweight, &list("dweight"), 1e-12);
    assert_close("dw", &dw, &list("dw"), 1e-12);
}

#[test]
fn rows_of_an_expert_keep_the_order_of_tokens() {
    let mut grouping = Grouping::default();
    grouping.sort(&[2, 0, 0, 2, 3, 2], 4, 2);
    assert_eq!(grouping.groups().collect::<Vec<_>>(), [(0, 0..2), (2, 2..5), (3, 5..6)]);
    assert_eq!((grouping.tokens(), grouping.rows()), (&[0, 1, 0, 1, 2, 2][..], &[2, 0, 1, 3, 5, 4][..]));
    assert_eq!([0, 1, 2, 3].map(|expert| grouping.count(expert)), [2, 0, 3, 1]);
}

/// The two products of a layer, weighted and summed by token, on a device.
fn compare(
    dev: &Device,
    (dtype, tolerance): (DType, f64),
    (n, k, experts): (usize, usize, usize),
    [out, inputs]: [usize; 2],
    transposed: bool,
) {
    let (index, grouping) = choices(n, k, experts);
    let mut random = Random::new(5);
    let x = random.tensor(dtype, &[n, inputs]);
    let weight = random.tensor(dtype, &[experts, out, inputs]);
    let (w, dy) = (random.tensor(DType::F32, &[n, k]), random.tensor(dtype, &[n, out]));
    let reference = Reference { index: &index, k, sizes: [out, inputs] };
    let [xs, weights, ws, dys] = [&x, &weight, &w, &dy].map(to_f64);
    let [dx, dweight, dw] = reference.backward(&xs, &weights, &ws, &dys);
    let turned = |values: &[f64]| -> Vec<f64> {
        let at = |e, i, o| values[(e * out + o) * inputs + i];
        (0..experts).flat_map(|e| (0..inputs).flat_map(move |i| (0..out).map(move |o| at(e, i, o)))).collect()
    };
    let stored = if transposed {
        let values: Vec<f32> = turned(&weights).iter().map(|x| *x as f32).collect();
        Tensor::from_slice(&values, &[experts, inputs, out]).to_dtype(dtype)
    } else {
        weight
    };
    let [x, stored, w, dy] = [x, stored, w, dy].map(|tensor| tensor.on(dev));
    let layer = ExpertWeights { weight: stored.view(), transposed, bias: None };
    let zeros = |dtype, shape: &[usize]| dev.zeros(dtype, shape);
    let (mut xs, mut o) = (zeros(dtype, &[n * k, inputs]), zeros(dtype, &[n * k, out]));
    rows::gather(dev, x.view(), grouping.tokens(), 1.0, xs.view_mut());
    layer.forward(dev, &grouping, xs.view(), o.view_mut(), None);
    let mut y = zeros(dtype, &[n, out]);
    combine(dev, &grouping, o.view(), Some(w.view()), y.view_mut(), false);
    assert_close("y", &to_f64(&y), &reference.forward(&to_f64(&x), &weights, &ws), tolerance);

    rows::gather(dev, dy.view(), grouping.tokens(), 1.0, o.view_mut());
    let (mut z, mut found) = (zeros(dtype, &[n * k, inputs]), zeros(DType::F32, &[n, k]));
    layer.backward_input(dev, &grouping, o.view(), z.view_mut(), None);
    weigh(dev, &grouping, xs.view(), z.view_mut(), w.view(), found.view_mut());
    assert_close("dw", &to_f64(&found), &dw, tolerance);
    let mut found = dy.zeros_beside(dtype, &[n, inputs]);
    combine(dev, &grouping, z.view(), None, found.view_mut(), true);
    assert_close("dx", &to_f64(&found), &dx, tolerance);
    scale(dev, &grouping, w.view(), o.view_mut());
    let mut found = zeros(DType::F32, stored.shape());
    layer.backward_weight(dev, &grouping, (xs.view(), o.view()), found.view_mut());
    assert_close("dW", &to_f64(&found), &if transposed { turned(&dweight) } else { dweight }, tolerance);
}

#[test]
fn device_matches_reference() {
    for dev in devices() {
        for accuracy in [(DType::F32, 5e-6), (DType::BF16, 2e-2)] {
            for transposed in [false, true] {
                compare(&dev, accuracy, (1, 1, 3), [1, 1], transposed);
                compare(&dev, accuracy, (5, 2, 4), [7, 3], transposed);
                compare(&dev, accuracy, (70, 3, 9), [40, 24], transposed);
            }
        }
        compare(&dev, (DType::F32, 5e-6), (3, 2, 4), [1032, 16], false);
    }
}

/// Of adapters, in the sums of all slots: the reference with W[e] + s·B[e]·A[e] for a weight, whose gradient dW gives
/// dA[e] = s·B[e]ᵀ·dW[e] and dB[e] = s·dW[e]·A[e]ᵀ.
fn compare_adapters(
    dev: &Device,
    (dtype, tolerance): (DType, f64),
    (n, k, experts): (usize, usize, usize),
    [out, inputs, rank]: [usize; 3],
    transposed: bool,
) {
    let (index, grouping) = choices(n, k, experts);
    let mut random = Random::new(6);
    let [x, dy] = [inputs, out].map(|width| random.tensor(dtype, &[n, width]));
    let weight = if transposed { [experts, inputs, out] } else { [experts, out, inputs] };
    let weight = random.tensor(dtype, &weight);
    let [a, b] = [[experts, rank, inputs], [experts, out, rank]].map(|shape| random.tensor(dtype, &shape));
    let scale = 0.625;
    let [xs, ws, as_, bs, dys] = [&x, &weight, &a, &b, &dy].map(to_f64);
    let all = || (0..experts).flat_map(|e| (0..out).flat_map(move |o| (0..inputs).map(move |i| (e, o, i))));
    let at_w = |(e, o, i): (usize, usize, usize)| match transposed {
        true => (e * inputs + i) * out + o,
        false => (e * out + o) * inputs + i,
    };
    let at_a = |e: usize, r: usize, i: usize| (e * rank + r) * inputs + i;
    let at_b = |e: usize, o: usize, r: usize| (e * out + o) * rank + r;
    let low_rank =
        |(e, o, i)| (0..rank).map(|r| bs[at_b(e, o, r)] * as_[at_a(e, r, i)]).sum::<f64>() * f64::from(scale);
    let sum: Vec<f64> = all().map(|at| ws[at_w(at)] + low_rank(at)).collect();
    let reference = Reference { index: &index, k, sizes: [out, inputs] };
    let ones = vec![1.0; n * k];
    let [dx, dweight, _] = reference.backward(&xs, &sum, &ones, &dys);
    let [mut da, mut db] = [&as_, &bs].map(|of| vec![0.0; of.len()]);
    for (at, dw) in all().zip(&dweight) {
        let ((e, o, i), dw) = (at, f64::from(scale) * dw);
        for r in 0..rank {
            da[at_a(e, r, i)] += dw * bs[at_b(e, o, r)];
            db[at_b(e, o, r)] += dw * as_[at_a(e, r, i)];
        }
    }

    let [x, weight, a, b, dy] = [x, weight, a, b, dy].map(|tensor| tensor.on(dev));
    let layer = ExpertWeights { weight: weight.view(), transposed, bias: None };
    let adapters = ExpertAdapters { a: a.view(), b: b.view(), scale };
    let zeros = |dtype, shape: &[usize]| dev.zeros(dtype, shape);
    let [mut of_x, mut of_y] = [inputs, out].map(|width| zeros(dtype, &[n * k, width]));
    let [mut xa, mut dxa] = [(); 2].map(|()| zeros(dtype, &[n * k, rank]));
    rows::gather(dev, x.view(), grouping.tokens(), 1.0, of_x.view_mut());
    adapters.down(dev, &grouping, of_x.view(), xa.view_mut());
    layer.forward(dev, &grouping, of_x.view(), of_y.view_mut(), Some((xa.view(), b.view())));
    let mut y = zeros(dtype, &[n, out]);
    combine(dev, &grouping, of_y.view(), None, y.view_mut(), false);
    assert_close("y", &to_f64(&y), &reference.forward(&xs, &sum, &ones), tolerance);

    rows::gather(dev, dy.view(), grouping.tokens(), 1.0, of_y.view_mut());
    let mut found = zeros(DType::F32, &[experts, out, rank]);
    let io = (of_y.view(), xa.view());
    adapters.backward_output(dev, &grouping, io, dxa.view_mut(), Some(found.view_mut()));
    assert_close("dB", &to_f64(&found), &db, tolerance);
    let mut found = zeros(DType::F32, &[experts, rank, inputs]);
    ExpertAdapters::backward_input(dev, &grouping, (of_x.view(), dxa.view()), found.view_mut());
    assert_close("dA", &to_f64(&found), &da, tolerance);
    layer.backward_input(dev, &grouping, of_y.view(), of_x.view_mut(), Some((dxa.view(), a.view())));
    let mut found = zeros(dtype, &[n, inputs]);
    combine(dev, &grouping, of_x.view(), None, found.view_mut(), false);
    assert_close("dx", &to_f64(&found), &dx, tolerance);
}

#[test]
fn adapters_are_a_change_of_each_experts_weight() {
    for dev in devices() {
        for accuracy in [(DType::F32, 5e-6), (DType::BF16, 2e-2)] {
            for transposed in [false, true] {
                compare_adapters(&dev, accuracy, (1, 1, 3), [1, 1, 1], transposed);
                compare_adapters(&dev, accuracy, (5, 2, 4), [7, 3, 2], transposed);
                compare_adapters(&dev, accuracy, (70, 3, 9), [40, 24, 8], transposed);
            }
        }
    }
}

#[test]
fn biases_are_those_of_each_rows_expert() {
    for dev in devices() {
        let (index, grouping) = choices(4, 2, 5);
        let x = dev.zeros(DType::F32, &[8, 2]);
        let weight = dev.zeros(DType::F32, &[5, 1, 2]);
        let bias = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0], &[5, 1]).on(&dev);
        let layer = ExpertWeights { weight: weight.view(), transposed: false, bias: Some(bias.view()) };
        let mut y = dev.zeros(DType::F32, &[8, 1]);
        layer.forward(&dev, &grouping, x.view(), y.view_mut(), None);
        let by_slot: Vec<f32> = grouping.rows().iter().map(|row| y.to_f32_vec()[*row as usize]).collect();
        assert_eq!(by_slot, index.iter().map(|e| *e as f32 + 1.0).collect::<Vec<_>>());
        let mut db = dev.zeros(DType::F32, &[5, 1]);
        ExpertWeights::backward_bias(&dev, &grouping, y.view(), db.view_mut());
        let expected: Vec<f32> = (0..5).map(|e| grouping.count(e) as f32 * (e as f32 + 1.0)).collect();
        assert_eq!(db.to_f32_vec(), expected);
        let mut dw = Tensor::from_slice(&[1.0f32; 8], &[4, 2]).on(&dev);
        weigh_bias(&dev, &grouping, bias.view(), y.view(), dw.view_mut());
        let expected = index.iter().map(|e| 1.0 + (*e as f32 + 1.0).powi(2));
        assert_eq!(dw.to_f32_vec(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn edges_no_token() {
    for dev in devices() {
        let grouping = {
            let mut grouping = Grouping::default();
            grouping.sort(&[], 3, 2);
            grouping
        };
        let (x, weight) = (dev.zeros(DType::F32, &[0, 2]), dev.zeros(DType::F32, &[3, 4, 2]));
        let mut y = dev.zeros(DType::F32, &[0, 4]);
        ExpertWeights { weight: weight.view(), transposed: false, bias: None }.forward(
            &dev,
            &grouping,
            x.view(),
            y.view_mut(),
            None,
        );
        combine(&dev, &grouping, y.view(), None, dev.zeros(DType::F32, &[0, 4]).view_mut(), false);
        assert_eq!(grouping.groups().count(), 0);
    }
}
