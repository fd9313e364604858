use super::reference::{Case, Values};
use super::*;
use crate::Tensor;
use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

const RULES: [Rule; 2] = [Rule::Additive, Rule::Delta];

/// Inputs as models have them: keys that are short enough, steps between 0 and 1, decays below 0.
fn values(random: &mut Random, n: usize, [keys, heads, d, e]: [usize; 4]) -> Values {
    let mut list = |len: usize, map: fn(f64) -> f64| random.f64s(len).into_iter().map(map).collect();
    [
        list(n * keys * d, |x| x),
        list(n * keys * d, |x| x),
        list(n * heads * e, |x| x),
        list(n * heads, |x| 0.5 + 0.4 * x),
        list(n * heads, |x| -0.6 - 0.5 * x),
        list(heads, |x| x),
    ]
}

#[test]
fn gradcheck_of_the_reference() {
    for rule in RULES {
        let sizes = [2, 4, 3, 2];
        let case = Case { rule, scales: [0.7, 0.5], sizes, starts: &[0, 5, 8] };
        let mut random = Random::new(5);
        let x = values(&mut random, 8, sizes);
        let dout = random.f64s(x[2].len());
        let dx = case.backward(&x, &dout);
        for i in 0..6 {
            let loss = |values: &[f64]| -> f64 {
                let mut x = x.clone();
                x[i] = values.to_vec();
                case.forward(&x, None).0.iter().zip(&dout).map(|(o, d)| o * d).sum()
            };
            gradcheck(loss, &x[i], &dx[i]);
        }
    }
}

#[test]
fn matches_torch() {
    // transformers' torch_chunk_gated_delta_rule of rows one by one, and Mamba-2's recurrence, with autograd.
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../goldens/linear_attention.json")).unwrap();
    for (rule, name) in RULES.into_iter().zip(["state_space", "gated_delta_rule"]) {
        let list = |key: &str| -> Vec<f64> { serde_json::from_value(golden[name][key].clone()).unwrap() };
        let scales = list("scales");
        let case = Case { rule, scales: [scales[0], scales[1]], sizes: [2, 4, 8, 4], starts: &[0, 11, 16] };
        let names = ["q", "k", "v", "step", "decay", "skip"];
        let x = names.map(list);
        assert_close(name, &case.forward(&x, None).0, &list("out"), 1e-10);
        let dx = case.backward(&x, &list("dout"));
        for (dx, of) in dx.iter().zip(names) {
            assert_close(&format!("{name}: d{of}"), dx, &list(&format!("d{of}")), 1e-9);
        }
    }
}

/// The inputs as tensors, and as their rounded values.
fn tensors(dev: &Device, dtype: DType, n: usize, sizes: [usize; 4]) -> ([Tensor; 6], Values) {
    let [keys, heads, d, e] = sizes;
    let x = values(&mut Random::new(9), n, sizes);
    let shapes =
        [vec![n, keys, d], vec![n, keys, d], vec![n, heads, e], vec![n, heads], vec![n, heads], vec![heads]];
    let mut i = 0;
    let tensors = shapes.map(|shape| {
        let values: Vec<f32> = x[i].iter().map(|x| *x as f32).collect();
        let of = if i >= 3 { DType::F32 } else { dtype };
        i += 1;
        Tensor::from_slice(&values, &shape).to_dtype(of).on(dev)
    });
    let rounded = [0, 1, 2, 3, 4, 5].map(|i| to_f64(&tensors[i]));
    (tensors, rounded)
}

fn inputs(t: &[Tensor; 6]) -> Inputs<'_> {
    let [q, k, v, step, decay, skip] = t.each_ref().map(Tensor::view);
    Inputs { q, k, v, step, decay, skip: Some(skip) }
}

#[test]
fn device_matches_reference() {
    let cases: [([usize; 4], &[u32]); 6] = [
        ([1, 1, 1, 1], &[0, 1]),
        ([2, 4, 8, 8], &[0, 5, 5, 70, 139]),
        ([1, 20, 16, 8], &[0, 33]),
        ([2, 2, 64, 32], &[0, 64, 128, 150]),
        ([1, 3, 9, 40], &[0, 200]),
        ([1, 2, 160, 36], &[0, 3, 77]),
    ];
    for dev in devices() {
        for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 2e-2)] {
            for (rule, (sizes, starts)) in RULES.into_iter().flat_map(|rule| cases.map(|case| (rule, case))) {
                let n = starts[starts.len() - 1] as usize;
                let (x, values) = tensors(&dev, dtype, n, sizes);
                // Keys of length about 1, as the delta rule wants them.
                let k_scale = 1.2 / (sizes[2] as f32).sqrt();
                let params = LinearAttentionParams { rule, q_scale: 0.5, k_scale };
                let case = Case { rule, scales: [0.5, k_scale.into()], sizes, starts };
                let mut out = dev.zeros(dtype, &[n, sizes[1], sizes[3]]);
                forward(&dev, params, starts, inputs(&x), None, out.view_mut());
                assert_close("out", &to_f64(&out), &case.forward(&values, None).0, tolerance);

                let dout = Random::new(3).tensor(dtype, out.shape()).on(&dev);
                let expected = case.backward(&values, &to_f64(&dout));
                let mut dx = x.each_ref().map(|x| dev.zeros(x.dtype(), x.shape()));
                let mut dskip = dev.zeros(DType::F32, &[sizes[1]]);
                let of = Sizes::of(&inputs(&x), starts);
                let mut scratch = dev.zeros(DType::F32, &[of.scratch_len(dev.cuda().is_some())]);
                let [dq, dk, dv, dstep, ddecay, _] = dx.each_mut().map(Tensor::view_mut);
                let gradients = Gradients { dq, dk, dv, dstep, ddecay, dskip: Some(dskip.view_mut()) };
                backward(&dev, params, starts, inputs(&x), dout.view(), gradients, scratch.view_mut());
                dx[5] = dskip;
                for (i, name) in ["dq", "dk", "dv", "dstep", "ddecay", "dskip"].into_iter().enumerate() {
                    assert_close(
                        &format!("{name} {rule:?} {sizes:?}"),
                        &to_f64(&dx[i]),
                        &expected[i],
                        tolerance,
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_see_the_one_before_it() {
    for dev in devices() {
        for rule in RULES {
            let (x, _) = tensors(&dev, DType::F32, 90, [1, 2, 8, 8]);
            let params = LinearAttentionParams { rule, q_scale: 1.0, k_scale: 0.4 };
            let mut together = dev.zeros(DType::F32, &[90, 2, 8]);
            forward(&dev, params, &[0, 40, 90], inputs(&x), None, together.view_mut());
            for rows in [0..40, 40..90] {
                let mut alone = dev.zeros(DType::F32, &[rows.len(), 2, 8]);
                let part = |x: &Tensor| x.view().rows(rows.clone()).to_dtype(DType::F32).on(&dev);
                let mut parts = [0, 1, 2, 3, 4].map(|i| part(&x[i])).into_iter();
                let skip = x[5].view();
                let [q, k, v, step, decay] = [(); 5].map(|()| parts.next().unwrap());
                let io = Inputs {
                    q: q.view(),
                    k: k.view(),
                    v: v.view(),
                    step: step.view(),
                    decay: decay.view(),
                    skip: Some(skip),
                };
                forward(&dev, params, &[0, rows.len() as u32], io, None, alone.view_mut());
                let together = together.view().rows(rows).to_dtype(DType::F32);
                assert_close("alone", &to_f64(&alone), &to_f64(&together), 1e-6);
            }
        }
    }
}

#[test]
fn a_state_goes_on_where_the_row_was_left() {
    for dev in devices() {
        for rule in RULES {
            let (x, values) = tensors(&dev, DType::F32, 80, [1, 2, 8, 4]);
            let params = LinearAttentionParams { rule, q_scale: 1.0, k_scale: 0.4 };
            let k_scale = f64::from(0.4f32);
            let case = Case { rule, scales: [1.0, k_scale], sizes: [1, 2, 8, 4], starts: &[0, 80] };
            let (whole, last) = case.forward(&values, None);
            let mut state = dev.zeros(DType::F32, &[2, 8, 4]);
            let mut found = Vec::new();
            for rows in [0..70, 70..71, 71..80] {
                let parts = x.each_ref().map(|x| {
                    let rows = if x.shape().len() == 1 { 0..2 } else { rows.clone() };
                    x.view().rows(rows).to_dtype(DType::F32)
                });
                let mut out = dev.zeros(DType::F32, &[rows.len(), 2, 4]);
                let starts = [0, rows.len() as u32];
                forward(&dev, params, &starts, inputs(&parts), Some(state.view_mut()), out.view_mut());
                found.extend(to_f64(&out));
            }
            assert_close("out", &found, &whole, 2e-5);
            assert_close("state", &to_f64(&state), &last, 2e-5);
        }
    }
}

#[test]
fn edges_no_token_and_decays_that_forget_all() {
    for dev in devices() {
        for rule in RULES {
            let params = LinearAttentionParams { rule, q_scale: 1.0, k_scale: 0.4 };
            let (x, _) = tensors(&dev, DType::F32, 0, [1, 2, 8, 4]);
            let mut none = dev.zeros(DType::F32, &[0, 2, 4]);
            forward(&dev, params, &[0], inputs(&x), None, none.view_mut());

            let (mut x, mut values) = tensors(&dev, DType::F32, 20, [1, 2, 8, 4]);
            let decays = vec![-1e4f32; 40];
            values[4] = vec![-1e4; 40];
            x[4] = Tensor::from_slice(&decays, &[20, 2]).on(&dev);
            let case = Case { rule, scales: [1.0, f64::from(0.4f32)], sizes: [1, 2, 8, 4], starts: &[0, 20] };
            let mut out = dev.zeros(DType::F32, &[20, 2, 4]);
            forward(&dev, params, &[0, 20], inputs(&x), None, out.view_mut());
            assert_close("out", &to_f64(&out), &case.forward(&values, None).0, 1e-5);
        }
    }
}
