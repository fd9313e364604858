use super::reference::Conv;
use super::*;
use crate::Tensor;
use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

const PLAIN: Conv1dParams = Conv1dParams { scale: 1.0, silu: false };

#[test]
fn gradcheck_of_the_reference() {
    for (silu, starts) in [(false, [0, 7, 7]), (true, [0, 3, 7])] {
        let mut random = Random::new(2);
        let [x, w, b, dy] = [7 * 3, 3 * 4, 3, 7 * 3].map(|n| random.f64s(n));
        let params = Conv1dParams { scale: 0.7, silu };
        let loss = |x: &[f64], w: &[f64], b: &[f64]| -> f64 {
            let conv = Conv { params, channels: 3, w, b, starts: &starts, history: &[] };
            conv.forward(x).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let conv = Conv { params, channels: 3, w: &w, b: &b, starts: &starts, history: &[] };
        let [dx, dw, db] = conv.backward(&x, &dy);
        gradcheck(|x| loss(x, &w, &b), &x, &dx);
        gradcheck(|w| loss(&x, w, &b), &w, &dw);
        gradcheck(|b| loss(&x, &w, b), &b, &db);
    }
}

#[test]
fn matches_torch() {
    // torch.nn.functional.conv1d, padded in front, of rows of 5 and 2 tokens one by one, silu, and autograd.
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../goldens/conv1d.json")).unwrap();
    let list = |name: &str| -> Vec<f64> { serde_json::from_value(golden[name].clone()).unwrap() };
    let [x, w, b, dy] = ["x", "w", "b", "dy"].map(list);
    let params = Conv1dParams { scale: 1.0, silu: true };
    let conv = Conv { params, channels: 3, w: &w, b: &b, starts: &[0, 5, 7], history: &[] };
    assert_close("y", &conv.forward(&x), &list("y"), 1e-12);
    let [dx, dw, db] = conv.backward(&x, &dy);
    assert_close("dx", &dx, &list("dx"), 1e-12);
    assert_close("dw", &dw, &list("dw"), 1e-12);
    assert_close("db", &db, &list("db"), 1e-12);
}

#[test]
fn device_matches_reference() {
    let cases: [(usize, usize, &[u32], bool); 5] = [
        (1, 1, &[0, 1], false),
        (70, 3, &[0, 64, 64, 65, 133], true),
        (CHANNELS, 4, &[0, 2, 5, 300], true),
        (3 * CHANNELS + 9, 8, &[0, 5, 90], false),
        (8, 2, &[0, 600], true),
    ];
    for dev in devices() {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
            for (channels, taps, starts, silu) in cases {
                let mut random = Random::new(11);
                let n = starts[starts.len() - 1] as usize;
                let shapes = [vec![n, channels], vec![channels, 1, taps], vec![channels], vec![n, channels]];
                let [x, w, b, dy] = shapes.map(|shape| random.tensor(dtype, &shape).on(&dev));
                let params = Conv1dParams { scale: 0.5, silu };
                let (values, ws, bs) = (to_f64(&x), to_f64(&w), to_f64(&b));
                let conv = Conv { params, channels, w: &ws, b: &bs, starts, history: &[] };
                let of = Taps { w: w.view(), b: Some(b.view()) };
                let mut y = dev.zeros(dtype, &[n, channels]);
                forward(&dev, params, starts, (x.view(), None), of, y.view_mut());
                assert_close("y", &to_f64(&y), &conv.forward(&values), tolerance);

                let expected = conv.backward(&values, &to_f64(&dy));
                let [mut dz, mut dx] = [&dy, &dy].map(|dy| dy.to_dtype(dtype));
                let [mut dw, mut db] = [&w, &b].map(|w| dev.zeros(DType::F32, w.shape()));
                let (dw_out, db_out) = (Some(dw.view_mut()), Some(db.view_mut()));
                let io =
                    Backward { x: x.view(), dy: dz.view_mut(), dx: dx.view_mut(), dw: dw_out, db: db_out };
                backward(&dev, params, starts, of, io);
                for (name, found, expected) in
                    [("dx", &dx, &expected[0]), ("dw", &dw, &expected[1]), ("db", &db, &expected[2])]
                {
                    assert_close(name, &to_f64(found), expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_see_the_one_before_it() {
    for dev in devices() {
        let mut random = Random::new(3);
        let x = random.tensor(DType::F32, &[9, 5]).on(&dev);
        let w = random.tensor(DType::F32, &[5, 1, 4]).on(&dev);
        let taps = Taps { w: w.view(), b: None };
        let mut together = dev.zeros(DType::F32, &[9, 5]);
        forward(&dev, PLAIN, &[0, 4, 9], (x.view(), None), taps, together.view_mut());
        for (rows, starts) in [(0..4, [0, 4]), (4..9, [0, 5])] {
            let mut alone = dev.zeros(DType::F32, &[rows.len(), 5]);
            forward(&dev, PLAIN, &starts, (x.view().rows(rows.clone()), None), taps, alone.view_mut());
            assert_eq!(alone.to_f32_vec(), together.view().rows(rows).to_f32_vec());
        }
    }
}

#[test]
fn history_stands_for_the_tokens_before() {
    for dev in devices() {
        let mut random = Random::new(4);
        let x = random.tensor(DType::F32, &[10, 6]).on(&dev);
        let w = random.tensor(DType::F32, &[6, 1, 4]).on(&dev);
        let taps = Taps { w: w.view(), b: None };
        let mut whole = dev.zeros(DType::F32, &[10, 6]);
        forward(&dev, PLAIN, &[0, 10], (x.view(), None), taps, whole.view_mut());
        for first in [3, 9] {
            let mut rest = dev.zeros(DType::F32, &[10 - first, 6]);
            let history = Some(x.view().rows(first - 3..first));
            let starts = [0, 10 - first as u32];
            forward(&dev, PLAIN, &starts, (x.view().rows(first..10), history), taps, rest.view_mut());
            assert_eq!(rest.to_f32_vec(), whole.view().rows(first..10).to_f32_vec());
        }
    }
}

#[test]
fn edges_no_token_and_rows_shorter_than_the_taps() {
    for dev in devices() {
        let w = Tensor::from_slice(&[1.0f32, 2.0, 4.0], &[1, 3]).on(&dev);
        let taps = Taps { w: w.view(), b: None };
        let mut none = dev.zeros(DType::F32, &[0, 1]);
        let x = dev.zeros(DType::F32, &[0, 1]);
        forward(&dev, PLAIN, &[0], (x.view(), None), taps, none.view_mut());
        let x = Tensor::from_slice(&[1.0f32, 1.0, 1e30], &[3, 1]).on(&dev);
        let mut y = dev.zeros(DType::F32, &[3, 1]);
        forward(&dev, PLAIN, &[0, 1, 1, 2, 3], (x.view(), None), taps, y.view_mut());
        assert_eq!(y.to_f32_vec(), [4.0, 4.0, 4e30]);
    }
}
