//! Attention against its definition, transformers, finite differences, and itself on other devices and rows.

use serde_json::Value;

use super::reference::{self, Inputs};
use super::*;
use crate::testing::{Random, assert_close, devices, gpu, gradcheck, to_f64};
use crate::{CpuOptions, DType, Isa, Tensor};

/// A problem: rows by their numbers of queries and keys, heads, constants.
#[derive(Clone, Copy)]
struct Case<'a> {
    rows: &'a [(u32, u32)],
    heads: [usize; 3],
    params: AttentionParams<'a>,
}

const PLAIN: AttentionParams<'_> = AttentionParams::scaled(0.3);
const WINDOW: AttentionParams<'_> = AttentionParams { window: Some(70), ..PLAIN };
const SOFTCAP: AttentionParams<'_> = AttentionParams { softcap: Some(1.25), ..PLAIN };
const SLOPES: AttentionParams<'_> =
    AttentionParams { slopes: Some(&[0.5, 0.25, 0.125, 0.0625, 0.7, 0.35]), ..PLAIN };
const SOFTCAP_WINDOW: AttentionParams<'_> = AttentionParams { window: Some(70), ..SOFTCAP };
const STEEP: AttentionParams<'_> = AttentionParams { slopes: Some(&[0.3, 1.5, 0.1, 1e-3]), ..WINDOW };

/// Shapes around the edges of tiles, blocks, vectors, chunks and parts.
const CASES: [Case<'_>; 14] = [
    Case { rows: &[(1, 1)], heads: [1, 1, 1], params: PLAIN },
    Case { rows: &[(3, 3), (1, 1), (0, 0), (9, 9)], heads: [2, 1, 5], params: PLAIN },
    Case { rows: &[(64, 64), (65, 65)], heads: [1, 1, 64], params: PLAIN },
    Case { rows: &[(131, 131), (40, 40)], heads: [6, 2, 16], params: WINDOW },
    Case { rows: &[(150, 150)], heads: [7, 1, 64], params: PLAIN },
    Case { rows: &[(33, 33), (77, 77)], heads: [4, 4, 33], params: SOFTCAP },
    Case { rows: &[(20, 20)], heads: [3, 3, 96], params: AttentionParams { window: Some(1), ..PLAIN } },
    Case { rows: &[(5, 150), (1, 70)], heads: [4, 2, 8], params: WINDOW },
    Case { rows: &[(1, 2500), (2, 1100)], heads: [4, 2, 16], params: PLAIN },
    Case { rows: &[(130, 300)], heads: [2, 2, 128], params: SOFTCAP },
    Case { rows: &[(131, 131), (40, 40)], heads: [6, 2, 16], params: SLOPES },
    Case { rows: &[(5, 150), (1, 2500)], heads: [4, 4, 8], params: STEEP },
    Case { rows: &[(1100, 1150), (3, 3)], heads: [2, 1, 16], params: PLAIN },
    Case { rows: &[(520, 1300)], heads: [2, 2, 8], params: WINDOW },
];

/// Shapes around the edges of the tiles of GPUs: widths with kernels of their own and between them, groups, rows.
const GPU_CASES: [Case<'_>; 14] = [
    Case { rows: &[(1, 1), (17, 17), (64, 64), (65, 65), (200, 200)], heads: [2, 1, 64], params: PLAIN },
    Case { rows: &[(200, 200), (1, 1), (129, 129)], heads: [4, 1, 128], params: PLAIN },
    Case { rows: &[(65, 65), (150, 150)], heads: [2, 2, 256], params: PLAIN },
    Case { rows: &[(140, 140), (17, 17)], heads: [7, 1, 96], params: WINDOW },
    Case { rows: &[(64, 64), (30, 130)], heads: [2, 1, 80], params: PLAIN },
    Case { rows: &[(17, 300), (1, 65)], heads: [4, 2, 128], params: WINDOW },
    Case { rows: &[(260, 260)], heads: [2, 1, 128], params: WINDOW },
    Case { rows: &[(65, 65), (70, 200)], heads: [2, 1, 256], params: SOFTCAP_WINDOW },
    Case { rows: &[(150, 150), (0, 3)], heads: [4, 4, 64], params: SLOPES_OF_FOUR },
    Case { rows: &[(200, 200)], heads: [4, 2, 96], params: STEEP },
    Case { rows: &[(65, 65)], heads: [2, 1, 136], params: SOFTCAP },
    Case { rows: &[(40, 41)], heads: [2, 1, 300], params: WINDOW },
    Case { rows: &[(400, 650), (0, 3), (129, 129)], heads: [2, 1, 128], params: PLAIN },
    Case { rows: &[(450, 450)], heads: [2, 1, 64], params: WINDOW },
];

struct Offsets {
    q: Vec<u32>,
    k: Vec<u32>,
}

impl Offsets {
    fn of(rows: &[(u32, u32)]) -> Self {
        let mut offsets = Self { q: vec![0], k: vec![0] };
        for (q, k) in rows {
            offsets.q.push(offsets.q.last().unwrap() + q);
            offsets.k.push(offsets.k.last().unwrap() + k);
        }
        offsets
    }

    fn rows(&self) -> RowOffsets<'_> {
        RowOffsets { q: &self.q, k: &self.k }
    }
}

impl Case<'_> {
    fn heads(&self) -> Heads {
        let [query, key, width] = self.heads;
        Heads { query, key, width }
    }

    /// Random q, k, v and dout.
    fn inputs(&self, seed: u64, dtype: DType) -> [Tensor; 4] {
        let tokens = |which: fn(&(u32, u32)) -> u32| self.rows.iter().map(which).sum::<u32>() as usize;
        let [query, key, width] = self.heads;
        let (q, k) = ([tokens(|r| r.0), query, width], [tokens(|r| r.1), key, width]);
        let mut random = Random::new(seed);
        [q, k, k, q].map(|shape| random.tensor(dtype, &shape))
    }
}

/// out, lse, dq, dk, dv on a device, of inputs anywhere.
fn compute(
    dev: &Device,
    params: &AttentionParams<'_>,
    rows: RowOffsets<'_>,
    inputs: &[Tensor; 4],
) -> [Tensor; 5] {
    let [q, k, v, dout] = &inputs.each_ref().map(|x| x.to_host().on(dev));
    let like = |x: &Tensor| dev.zeros(x.dtype(), x.shape());
    let statistics = || dev.zeros(DType::F32, &q.shape()[..2]);
    let (mut out, mut lse, mut delta) = (like(q), statistics(), statistics());
    let io =
        Forward { q: q.view(), k: k.view(), v: v.view(), out: out.view_mut(), lse: Some(lse.view_mut()) };
    forward(dev, params, rows, io);
    let (mut dq, mut dk, mut dv) = (like(q), like(k), like(v));
    let io = Backward {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        out: out.view(),
        dout: dout.view(),
        lse: lse.view(),
        delta: delta.view_mut(),
        dq: dq.view_mut(),
        dk: dk.view_mut(),
        dv: dv.view_mut(),
    };
    backward(dev, params, rows, io);
    [out, lse, dq, dk, dv]
}

const NAMES: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];

/// The same by the definition.
fn expected(case: &Case<'_>, inputs: &[Tensor; 4]) -> [Vec<f64>; 5] {
    let offsets = Offsets::of(case.rows);
    let [q, k, v, dout] = inputs.each_ref().map(to_f64);
    let x = Inputs { q: &q, k: &k, v: &v };
    let (out, lse) = reference::forward(&case.params, offsets.rows(), case.heads(), &x);
    let (dq, dk, dv) = reference::backward(&case.params, offsets.rows(), case.heads(), &x, &dout);
    [out, lse, dq, dk, dv]
}

fn device(threads: usize, isa: Isa) -> Device {
    Device::cpu(CpuOptions { threads: Some(threads), isa: Some(isa) }).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u8> {
    tensor.to_host().view().bytes().to_vec()
}

const SLOPES_OF_FOUR: AttentionParams<'_> =
    AttentionParams { slopes: Some(&[0.5, 0.25, 0.125, 0.0625]), ..PLAIN };

#[test]
fn gradcheck_of_the_reference() {
    for params in [PLAIN, AttentionParams { window: Some(2), ..SOFTCAP }, SLOPES_OF_FOUR] {
        let case = Case { rows: &[(3, 3), (2, 4)], heads: [4, 2, 3], params };
        let offsets = Offsets::of(case.rows);
        let (rows, heads) = (offsets.rows(), case.heads());
        let [q, k, v, dout] = case.inputs(1, DType::F32).each_ref().map(to_f64);
        let x = Inputs { q: &q, k: &k, v: &v };
        let (dq, dk, dv) = reference::backward(&params, rows, heads, &x, &dout);
        let loss = |x: &Inputs<'_, f64>| {
            let (out, _) = reference::forward(&params, rows, heads, x);
            out.iter().zip(&dout).map(|(out, dout)| out * dout).sum()
        };
        gradcheck(|q| loss(&Inputs { q, ..x }), &q, &dq);
        gradcheck(|k| loss(&Inputs { k, ..x }), &k, &dk);
        gradcheck(|v| loss(&Inputs { v, ..x }), &v, &dv);
    }
}

#[test]
fn matches_torch() {
    let golden = include_str!("../../goldens/attention.json");
    let cases: Vec<Value> = serde_json::from_str(golden).unwrap();
    for case in &cases {
        let values = |name: &str| -> Vec<f64> { serde_json::from_value(case[name].clone()).unwrap() };
        let number = |name: &str| case[name].as_u64().unwrap() as usize;
        let rows: Vec<(u32, u32)> =
            values("q_len").iter().zip(values("k_len")).map(|(q, k)| (*q as u32, k as u32)).collect();
        let slopes: Option<Vec<f32>> =
            case["slopes"].as_array().map(|all| all.iter().map(|s| s.as_f64().unwrap() as f32).collect());
        let params = AttentionParams {
            slopes: slopes.as_deref(),
            scale: case["scale"].as_f64().unwrap() as f32,
            window: case["window"].as_u64().map(|w| w as usize),
            softcap: case["softcap"].as_f64().map(|c| c as f32),
        };
        let heads = Heads { query: number("heads"), key: number("key_heads"), width: number("width") };
        let offsets = Offsets::of(&rows);
        let (q, k, v) = (values("q"), values("k"), values("v"));
        let x = Inputs { q: &q, k: &k, v: &v };
        let (out, lse) = reference::forward(&params, offsets.rows(), heads, &x);
        let (dq, dk, dv) = reference::backward(&params, offsets.rows(), heads, &x, &values("dout"));
        for (name, found) in NAMES.into_iter().zip([out, lse, dq, dk, dv]) {
            assert_close(&format!("{} of {}", name, case["name"]), &found, &values(name), 1e-11);
        }
    }
}

#[test]
fn device_matches_reference() {
    for dtype in [DType::F32, DType::BF16] {
        for (i, case) in CASES.iter().chain(&GPU_CASES).enumerate() {
            let inputs = case.inputs(i as u64, dtype);
            let expected = expected(case, &inputs);
            let offsets = Offsets::of(case.rows);
            for dev in devices() {
                let found = compute(&dev, &case.params, offsets.rows(), &inputs);
                for ((name, found), expected) in NAMES.into_iter().zip(&found).zip(&expected) {
                    let what = format!("case {i}, {dtype:?}, {}, {name}", dev.isa());
                    // Rounding p and ds to bf16 in sums of up to a few hundred terms.
                    let tolerance = match (dtype, name) {
                        (DType::F32, _) => 3e-6,
                        (_, "lse") => 1e-5,
                        _ => 1.5e-2,
                    };
                    assert_close(&what, &to_f64(found), expected, tolerance);
                    let square = |x: &f64| x * x;
                    let size = expected.iter().map(square).sum::<f64>().sqrt();
                    let differences = to_f64(found).into_iter().zip(expected).map(|(a, b)| (a - b).powi(2));
                    let distance = differences.sum::<f64>().sqrt();
                    let limit = 1e-2 * size.max(0.1 * (expected.len() as f64).sqrt());
                    assert!(distance <= limit, "{what}: {distance} apart, of {size}");
                }
            }
        }
    }
}

/// As much work as fills a card, several times over for each block: too much for the reference, and for an emulated card.
#[test]
fn a_gpu_that_is_full_computes_what_a_cpu_does_and_always_the_same() {
    let Some(gpu) = gpu().filter(|dev| dev.name() != "Emulated GPU") else { return };
    let cpu = Device::cpu(CpuOptions::default()).unwrap();
    for (heads, params) in [
        ([32, 8, 128], PLAIN),
        ([28, 4, 128], AttentionParams { window: Some(700), ..PLAIN }),
        ([16, 8, 64], PLAIN),
    ] {
        let params = AttentionParams { scale: 0.5, ..params };
        let case = Case { rows: &[(2048, 2048), (1, 1), (900, 1100), (777, 777)], heads, params };
        let inputs = case.inputs(11, DType::BF16);
        let offsets = Offsets::of(case.rows);
        let expected = compute(&cpu, &params, offsets.rows(), &inputs);
        let found = compute(&gpu, &params, offsets.rows(), &inputs);
        for ((name, found), expected) in NAMES.into_iter().zip(&found).zip(&expected) {
            let (found, expected) = (to_f64(found), to_f64(expected));
            let square = |x: f64| x * x;
            let size: f64 = expected.iter().map(|x| square(*x)).sum();
            let distance: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
            assert!(distance <= 1e-4 * size, "{heads:?}, {name}: {distance} apart, of {size}");
        }
        for _ in 0..4 {
            let again = compute(&gpu, &params, offsets.rows(), &inputs);
            for ((name, found), again) in NAMES.into_iter().zip(&found).zip(&again) {
                assert!(bits(found) == bits(again), "{heads:?}, {name}");
            }
        }
    }
}

#[test]
fn edges_no_token_at_all() {
    for dev in devices() {
        for rows in [&[][..], &[(0, 0)], &[(0, 0), (0, 0)]] {
            let case = Case { rows, heads: [2, 1, 4], params: PLAIN };
            compute(&dev, &PLAIN, Offsets::of(rows).rows(), &case.inputs(0, DType::F32));
        }
    }
}

#[test]
fn edges_keys_without_queries_have_no_gradient() {
    let case = Case { rows: &[(0, 5), (2, 2)], heads: [2, 1, 4], params: PLAIN };
    let inputs = case.inputs(0, DType::F32);
    for dev in [device(1, Isa::best())].into_iter().chain(gpu()) {
        let found = compute(&dev, &PLAIN, Offsets::of(case.rows).rows(), &inputs);
        for gradient in &found[3..] {
            assert!(to_f64(gradient)[..5 * 4].iter().all(|x| *x == 0.0));
        }
    }
}

#[test]
fn edges_large_magnitudes() {
    // Scores of ±1e4: the largest takes all. The weights of backward are as exact as lse in f32: 1e4 · 2⁻²⁴.
    for dev in devices() {
        let q = Tensor::from_slice(&[1e2f32, 1e2, 1e2], &[3, 1, 1]);
        let k = Tensor::from_slice(&[1e2f32, -1e2, 2e2], &[3, 1, 1]);
        let v = Tensor::from_slice(&[1f32, 2.0, 3.0], &[3, 1, 1]);
        let dout = Tensor::from_slice(&[1f32, 1.0, 1.0], &[3, 1, 1]);
        let params = AttentionParams::scaled(1.0);
        let rows = RowOffsets { q: &[0, 3], k: &[0, 3] };
        let [out, lse, dq, dk, dv] = compute(&dev, &params, rows, &[q, k, v, dout]);
        assert_eq!(out.to_f32_vec(), [1.0, 1.0, 3.0]);
        assert_close("lse", &to_f64(&lse), &[1e4, 1e4, 2e4], 1e-6);
        assert_close("dv", &to_f64(&dv), &[2.0, 0.0, 1.0], 1e-3);
        assert_eq!([dq.to_f32_vec(), dk.to_f32_vec()], [[0.0; 3]; 2]);
    }
}

#[test]
fn edges_a_nan_stays_in_its_row_and_is_not_lost() {
    for dev in devices() {
        let case = Case { rows: &[(3, 3), (3, 3)], heads: [1, 1, 2], params: PLAIN };
        let mut inputs = case.inputs(0, DType::F32);
        inputs[1].view_mut().as_mut_slice::<f32>()[0] = f32::NAN;
        let [out, ..] = compute(&dev, &PLAIN, Offsets::of(case.rows).rows(), &inputs);
        let nan: Vec<bool> = out.to_f32_vec().iter().map(|x| x.is_nan()).collect();
        assert_eq!(nan, [[true; 6], [false; 6]].concat(), "{}", dev.isa());
    }
}

#[test]
fn window_holds_exactly_as_many_keys_as_it_says() {
    // With zero queries all weights are equal: the output is the mean of the values that are seen.
    let params = AttentionParams { window: Some(3), ..PLAIN };
    let n = 200;
    let zeros = || Tensor::zeros(DType::F32, &[n, 1, 1]);
    let v: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let rows = [0, n as u32];
    let rows = RowOffsets { q: &rows, k: &rows };
    for dev in devices() {
        let inputs = [zeros(), zeros(), Tensor::from_slice(&v, &[n, 1, 1]), zeros()];
        let [out, ..] = compute(&dev, &params, rows, &inputs);
        let means: Vec<f64> = (0..n).map(|i| if i == 0 { 0.0 } else { (i as f64 - 1.0).max(0.5) }).collect();
        assert_close("means", &to_f64(&out), &means, 1e-6);
    }
}

#[test]
fn without_lse_the_output_is_the_same() {
    let case = CASES[8];
    let inputs = case.inputs(3, DType::BF16);
    let offsets = Offsets::of(case.rows);
    for dev in [device(1, Isa::best())].into_iter().chain(gpu()) {
        let [expected, ..] = compute(&dev, &case.params, offsets.rows(), &inputs);
        let [q, k, v, _] = inputs.each_ref().map(|x| x.to_host().on(&dev));
        let mut out = dev.zeros(DType::BF16, q.shape());
        let io = Forward { q: q.view(), k: k.view(), v: v.view(), out: out.view_mut(), lse: None };
        forward(&dev, &case.params, offsets.rows(), io);
        assert_eq!(bits(&out), bits(&expected));
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("not run: one core");
        return;
    }
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let (one, two) = (device(1, isa), device(2, isa));
        for (dtype, case) in [DType::F32, DType::BF16].into_iter().flat_map(|d| CASES.map(|case| (d, case))) {
            let inputs = case.inputs(7, dtype);
            let offsets = Offsets::of(case.rows);
            let [a, b] = [&one, &two].map(|dev| compute(dev, &case.params, offsets.rows(), &inputs));
            for ((name, a), b) in NAMES.into_iter().zip(&a).zip(&b) {
                assert!(bits(a) == bits(b), "{isa}, {dtype:?}, {name}");
            }
        }
    }
}

#[test]
fn a_row_alone_equals_the_row_in_a_pack() {
    let lens = [(17, 17), (200, 200), (1, 1), (90, 90)];
    let cpus = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(|isa| device(1, isa));
    for dev in cpus.chain(gpu()) {
        for (dtype, heads) in
            [(DType::F32, [6, 2, 24]), (DType::BF16, [6, 2, 24]), (DType::BF16, [2, 1, 128])]
        {
            let case = Case { rows: &lens, heads, params: WINDOW };
            let inputs = case.inputs(5, dtype);
            let offsets = Offsets::of(&lens);
            let packed = compute(&dev, &case.params, offsets.rows(), &inputs);
            for (r, len) in lens.into_iter().enumerate() {
                let at = offsets.q[r] as usize..offsets.q[r + 1] as usize;
                let row = |x: &Tensor| {
                    let mut own = Tensor::zeros(dtype, x.view().rows(at.clone()).shape());
                    own.view_mut().copy_from(x.view().rows(at.clone()));
                    own
                };
                let inputs = inputs.each_ref().map(row);
                let alone = compute(&dev, &case.params, Offsets::of(&[len]).rows(), &inputs);
                for ((name, alone), packed) in NAMES.into_iter().zip(&alone).zip(&packed) {
                    let packed = packed.to_host();
                    let packed = packed.view().rows(at.clone()).bytes();
                    assert!(bits(alone) == packed, "{}, {dtype:?}, row {r}, {name}", dev.isa());
                }
            }
        }
    }
}
