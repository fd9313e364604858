use super::*;
use crate::Tensor;
use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

fn smaller(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|x| 0.3 * x).collect()
}

#[test]
fn gradcheck_of_inputs_and_rotations() {
    let sizes @ [n, k, b] = [3, 2, 4];
    let mut random = Random::new(1);
    let [x, dy] = [0; 2].map(|_| random.f64s(n * k * b));
    let q = smaller(random.f64s(k * skew_elements(b)));
    let [dx, dq] = reference::backward(&q, &x, &dy, sizes);
    let inner = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
    gradcheck(|x| inner(reference::forward(&q, x, sizes, &[])), &x, &dx);
    gradcheck(|q| inner(reference::forward(q, &x, sizes, &[])), &q, &dq);
}

/// y, dx and dq on a device; dx and dq are added to ones.
fn run(
    dev: &Device,
    [q, x, dy]: [&Tensor; 3],
    [n, k, b]: [usize; 3],
    dropped: Option<Dropped>,
) -> [Vec<f64>; 3] {
    let rotations = Rotations { skew: q.view(), size: b, dropped };
    let mut work = [0; 6].map(|_| dev.zeros(DType::F32, &[k, b, b]));
    let (mut r, mut dr) = (dev.zeros(DType::F32, &[k, b, b]), dev.zeros(DType::F32, &[k, b, b]));
    let [first, second, ..] = work.each_mut().map(Tensor::view_mut);
    matrices(dev, rotations, [first, second], r.view_mut());
    let ones = |dtype, shape: &[usize]| {
        let ones = vec![1.0f32; shape.iter().product()];
        Tensor::from_slice(&ones, shape).to_dtype(dtype).on(dev)
    };
    let mut y = dev.zeros(x.dtype(), &[n, k * b]);
    let mut dx = ones(x.dtype(), &[n, k * b]);
    let mut dq = ones(DType::F32, q.shape());
    forward(dev, x.view(), (r.view(), b), y.view_mut());
    backward_input(dev, dy.view(), (r.view(), b), dx.view_mut(), true);
    backward_matrices(dev, x.view(), dy.view(), (dr.view_mut(), b));
    backward_skew(dev, rotations, dr.view_mut(), work.each_mut().map(Tensor::view_mut), dq.view_mut());
    [y, dx, dq].map(|tensor| to_f64(&tensor))
}

fn matches_reference(dev: &Device, dtype: DType, sizes @ [n, k, b]: [usize; 3]) {
    let mut random = Random::new((100 * n + 10 * k + b) as u64);
    let q: Vec<f32> =
        smaller(random.f64s(k * skew_elements(b))).iter().map(|q| *q as f32 / b as f32).collect();
    let q = Tensor::from_slice(&q, &[k, skew_elements(b)]).on(dev);
    let [x, dy] = [0; 2].map(|_| random.tensor(dtype, &[n, k * b]).on(dev));
    let [y, dx, dq] = run(dev, [&q, &x, &dy], sizes, None);
    let [q, x, dy] = [&q, &x, &dy].map(to_f64);
    let [of_dx, of_dq] =
        reference::backward(&q, &x, &dy, sizes).map(|g| g.into_iter().map(|g| g + 1.0).collect::<Vec<_>>());
    let name = format!("{dtype:?} {sizes:?}");
    let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
    assert_close(&format!("y of {name}"), &y, &reference::forward(&q, &x, sizes, &[]), tolerance);
    assert_close(&format!("dx of {name}"), &dx, &of_dx, tolerance);
    assert_close(&format!("dq of {name}"), &dq, &of_dq, 2e-5);
}

#[test]
fn device_matches_reference() {
    for dev in devices() {
        for dtype in [DType::F32, DType::BF16] {
            for sizes in [[5, 3, 4], [1, 2, 7], [70, 2, 32], [130, 3, 24], [9, 1, 50]] {
                matches_reference(&dev, dtype, sizes);
            }
        }
    }
}

#[test]
fn edges_no_row_and_the_smallest_blocks() {
    for dev in devices() {
        matches_reference(&dev, DType::F32, [0, 2, 8]);
        matches_reference(&dev, DType::F32, [3, 1, 2]);
    }
}

/// By PEFT 0.18's `OFTRotationModule`: `goldens/oft.py`.
#[test]
fn matches_torch() {
    #[derive(serde::Deserialize)]
    struct Golden {
        sizes: [usize; 3],
        q: Vec<f32>,
        x: Vec<f32>,
        dy: Vec<f32>,
        y: Vec<f64>,
        dx: Vec<f64>,
        dq: Vec<f64>,
    }
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../goldens/oft.json")).unwrap();
    assert!(!goldens.is_empty());
    for dev in devices() {
        for golden in &goldens {
            let [n, k, b] = golden.sizes;
            let q = Tensor::from_slice(&golden.q, &[k, skew_elements(b)]).on(&dev);
            let [x, dy] =
                [&golden.x, &golden.dy].map(|values| Tensor::from_slice(values, &[n, k * b]).on(&dev));
            let [y, dx, dq] = run(&dev, [&q, &x, &dy], golden.sizes, None);
            let less_one = |values: Vec<f64>| values.into_iter().map(|v| v - 1.0).collect::<Vec<_>>();
            assert_close("y", &y, &golden.y, 1e-6);
            assert_close("dx", &less_one(dx), &golden.dx, 1e-6);
            assert_close("dq", &less_one(dq), &golden.dq, 1e-6);
        }
    }
}

#[test]
fn dropped_blocks_stay_as_they_are_and_learn_nothing() {
    let sizes @ [n, k, b] = [4, 8, 4];
    assert_eq!(Dropped::choose(5, 0.9, 1), None);
    assert_eq!(Dropped::choose(5, 0.1, k), None, "less than one block");
    let dropped = Dropped::choose(5, 0.4, k).unwrap();
    let chosen: Vec<usize> = (0..k).filter(|block| dropped.has(*block)).collect();
    assert_eq!(chosen.len(), 3);
    assert_ne!(Dropped::choose(6, 0.4, k), Some(dropped));
    for dev in devices() {
        let mut random = Random::new(3);
        let q: Vec<f32> = smaller(random.f64s(k * skew_elements(b))).iter().map(|q| *q as f32).collect();
        let q = Tensor::from_slice(&q, &[k, skew_elements(b)]).on(&dev);
        let [x, dy] = [0; 2].map(|_| random.tensor(DType::F32, &[n, k * b]).on(&dev));
        let [y, _, dq] = run(&dev, [&q, &x, &dy], sizes, Some(dropped));
        let [q, x] = [&q, &x].map(to_f64);
        assert_close("y", &y, &reference::forward(&q, &x, sizes, &chosen), 1e-5);
        for (block, dq) in dq.chunks(skew_elements(b)).enumerate() {
            assert_eq!(dq.iter().all(|dq| *dq == 1.0), chosen.contains(&block), "{block}: {dq:?}");
        }
    }
}
