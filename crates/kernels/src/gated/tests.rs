use super::*;
use crate::DType;
use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

const ALL: [Activation; 8] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Relu2,
    Activation::Sigmoid,
    Activation::Identity,
    Activation::ClampedSwish,
];

const CLAMPED: [[f64; 4]; 3] = [
    [0.43798554575797516, 55.99962502642654, 1.201906791935106e-05, -0.4228978829664106],
    [1.0990273899567677, 0.0, 1.912099705459455e-05, -0.533889803278167],
    [0.35038843660638014, 0.0, 0.0, 0.8457957659328212],
];

#[test]
fn gradcheck_of_the_reference() {
    for act in ALL {
        let mut random = Random::new(3);
        let (g, u, dy) = (random.f64s(9), random.f64s(9), random.f64s(9));
        let (dg, du) = reference::backward(act, &g, &u, &dy);
        let loss = |g: &[f64], u: &[f64]| -> f64 {
            reference::forward(act, g, u).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        gradcheck(|g| loss(g, &u), &g, &dg);
        gradcheck(|u| loss(&g, u), &u, &du);
    }
}

#[test]
fn matches_torch() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../goldens/gated.json")).unwrap();
    let x: Vec<f64> = serde_json::from_value(golden["x"].clone()).unwrap();
    for (act, name) in
        ALL.into_iter().zip(["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "sigmoid", "linear"])
    {
        assert_eq!(name.parse::<Activation>(), Ok(act));
        let y: Vec<f64> = x.iter().map(|x| reference::activation(act, *x)).collect();
        let expected: Vec<f64> = serde_json::from_value(golden[name].clone()).unwrap();
        assert_close(name, &y, &expected, 1e-12);
    }
}

#[test]
fn gpt_oss_clamps_gate_and_up() {
    // GptOssExperts._apply_gate of transformers 5.6 and its gradients for a gradient of 1, in float64.
    let (g, u) = ([0.5, 8.0, -9.0, 1.0], [0.25, 7.5, -8.0, -1.5]);
    let (dg, du) = reference::backward(Activation::ClampedSwish, &g, &u, &[1.0; 4]);
    let y = reference::forward(Activation::ClampedSwish, &g, &u);
    for (what, found, expected) in [("y", y, CLAMPED[0]), ("dg", dg, CLAMPED[1]), ("du", du, CLAMPED[2])] {
        assert_close(what, &found, &expected, 1e-12);
    }
    for dev in devices() {
        let tensor = |x: &[f64]| {
            crate::Tensor::from_slice(&x.iter().map(|x| *x as f32).collect::<Vec<_>>(), &[4, 1]).on(&dev)
        };
        let (mut g, mut u, mut dy) = (tensor(&g), tensor(&u), tensor(&[1.0; 4]));
        let mut y = dev.zeros(DType::F32, &[4, 1]);
        forward(&dev, Activation::ClampedSwish, g.view(), u.view(), y.view_mut());
        assert_close("y", &to_f64(&y), &CLAMPED[0], 1e-6);
        backward(&dev, Activation::ClampedSwish, dy.view_mut(), g.view_mut(), u.view_mut(), false);
        assert_eq!(to_f64(&dy), [1.0; 4], "dy stays");
        assert_close("dg", &to_f64(&g), &CLAMPED[1], 1e-6);
        assert_close("du", &to_f64(&u), &CLAMPED[2], 1e-6);
    }
}

#[test]
fn device_matches_reference() {
    for dev in devices() {
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::BF16, 1e-2)] {
            for (act, n) in ALL.into_iter().zip([CHUNK + 77, 9, 5, 7, CHUNK + 3, 700, 601, 11]) {
                let mut random = Random::new(5);
                let mut tensor = || random.tensor(dtype, &[n, 1]).on(&dev);
                let (mut g, mut u, mut dy) = (tensor(), tensor(), tensor());
                let mut y = dev.zeros(dtype, &[n, 1]);
                let (gs, us) = (to_f64(&g), to_f64(&u));
                forward(&dev, act, g.view(), u.view(), y.view_mut());
                assert_close("y", &to_f64(&y), &reference::forward(act, &gs, &us), tolerance);
                let (dg, du) = reference::backward(act, &gs, &us, &to_f64(&dy));
                backward(&dev, act, dy.view_mut(), g.view_mut(), u.view_mut(), true);
                assert_eq!(to_f64(&dy), to_f64(&y), "y once more");
                assert_close("dg", &to_f64(&g), &dg, tolerance);
                assert_close("du", &to_f64(&u), &du, tolerance);
            }
        }
    }
}

#[test]
fn edges_large_magnitudes_saturate() {
    for dev in devices() {
        for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let [mut g, mut u] =
                [[200.0f32, -200.0], [1.0; 2]].map(|x| crate::Tensor::from_slice(&x, &[2, 1]).on(&dev));
            let mut dy = crate::Tensor::from_slice(&[1.0f32; 2], &[2, 1]).on(&dev);
            let mut y = dev.zeros(DType::F32, &[2, 1]);
            forward(&dev, act, g.view(), u.view(), y.view_mut());
            assert_eq!(y.to_f32_vec().iter().map(|y| y.abs()).collect::<Vec<_>>(), [200.0, 0.0]);
            backward(&dev, act, dy.view_mut(), g.view_mut(), u.view_mut(), true);
            assert_eq!(g.to_f32_vec().iter().map(|y| y.abs()).collect::<Vec<_>>(), [1.0, 0.0]);
        }
    }
}

#[test]
fn erf_is_within_4e_7_of_the_definition() {
    for i in -600..=600 {
        let x = f64::from(i) / 100.0;
        // erf(x) = 2Φ(√2·x) − 1, and gelu(x) = x·Φ(x).
        let root = std::f64::consts::SQRT_2 * x;
        let truth =
            if i == 0 { 0.0 } else { 2.0 * reference::activation(Activation::Gelu, root) / root - 1.0 };
        assert!((f64::from(erf(x as f32)) - truth).abs() < 4e-7, "{x}: {} and not {truth}", erf(x as f32));
    }
}
