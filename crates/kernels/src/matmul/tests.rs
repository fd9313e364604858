use serde::Deserialize;

use super::{Matmul, PackedWeight, Reads, reference};
use crate::testing::{Random, cpus, devices};
use crate::{CpuOptions, DType, Device, Slab, Tensor};

/// One product to check.
#[derive(Debug, Clone, Copy)]
struct Case {
    size: Size,
    transposed: (bool, bool),
    types: (DType, DType, DType),
    bias: Option<DType>,
    alpha: f32,
    accumulate: bool,
    /// `K` of a second product.
    second: Option<usize>,
}

const PLAIN: Case = Case {
    size: (0, 0, 0),
    transposed: (false, true),
    types: (DType::F32, DType::F32, DType::F32),
    bias: None,
    alpha: 1.0,
    accumulate: false,
    second: None,
};
const TRANSPOSES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
const TYPES: [DType; 2] = [DType::F32, DType::BF16];

/// `(M, N, K)`.
type Size = (usize, usize, usize);

/// The tensors of a product.
struct Operands {
    a: Tensor,
    b: Tensor,
    c: Tensor,
    bias: Option<Tensor>,
    second: Option<(Tensor, Tensor)>,
}

impl Operands {
    fn on(self, dev: &Device) -> Self {
        let second = self.second.map(|(a, b)| (a.on(dev), b.on(dev)));
        let bias = self.bias.map(|bias| bias.on(dev));
        Self { a: self.a.on(dev), b: self.b.on(dev), c: self.c.on(dev), bias, second }
    }
}

impl Case {
    fn operands(&self) -> Operands {
        let (m, n, k) = self.size;
        let mut random = Random::new(1);
        let (a_shape, b_shape) = (
            |k: usize| if self.transposed.0 { [k, m] } else { [m, k] },
            |k: usize| if self.transposed.1 { [n, k] } else { [k, n] },
        );
        Operands {
            a: random.tensor(self.types.0, &a_shape(k)),
            b: random.tensor(self.types.1, &b_shape(k)),
            c: random.tensor(self.types.2, &[m, n]),
            bias: self.bias.map(|dtype| random.tensor(dtype, &[n])),
            second: self.second.map(|k| {
                (random.tensor(self.types.0, &a_shape(k)), random.tensor(self.types.1, &b_shape(k)))
            }),
        }
    }

    fn product<'a>(&self, operands: &'a mut Operands) -> Matmul<'a> {
        Matmul {
            a: operands.a.view(),
            a_transposed: self.transposed.0,
            b: operands.b.view().into(),
            b_transposed: self.transposed.1,
            c: operands.c.view_mut(),
            bias: operands.bias.as_ref().map(Tensor::view),
            alpha: self.alpha,
            accumulate: self.accumulate,
            second: operands.second.as_ref().map(|(a, b)| (a.view(), b.view())),
            packed: None,
        }
    }

    /// Runs it on `dev` and compares with the definition in `f64`.
    fn check(&self, dev: &Device) {
        let mut operands = self.operands();
        let expected: Vec<f64> = reference::product(&self.product(&mut operands));
        // What is in C before the last product is added is rounded: on a CPU the first product with the bias, on a GPU the
        // second.
        let first = reference::product::<f64>(&Matmul { second: None, ..self.product(&mut operands) });
        let before = match (&self.operands().second, dev.cuda()) {
            (None, _) => vec![0.0; first.len()],
            (Some(_), None) => first,
            (Some((a, b)), Some(_)) => {
                let (a, b) = (a.view(), b.view());
                reference::product(&Matmul {
                    a,
                    b: b.into(),
                    bias: None,
                    second: None,
                    ..self.product(&mut operands)
                })
            }
        };
        let mut operands = operands.on(dev);
        self.product(&mut operands).run(dev);
        // Values below 1: `k` roundings of a sum of about √k in `f32`, then one to `C`'s type.
        let last = if self.types.2 == DType::BF16 { 1.0 / 256.0 } else { 1.2e-7 };
        for (i, (got, expected)) in operands.c.to_f32_vec().iter().zip(&expected).enumerate() {
            let rounded = before[i].abs() + expected.abs();
            let allowed = 2.4e-7 * (self.size.2 as f64 + 4.0) + last * rounded;
            assert!(
                (f64::from(*got) - expected).abs() <= allowed,
                "{self:?} on {}: element {i} is {got} and not {expected}",
                dev.name()
            );
        }
    }

    /// The bytes of `C` after it ran.
    fn bytes(&self, dev: &Device) -> Vec<u8> {
        let mut operands = self.operands().on(dev);
        self.product(&mut operands).run(dev);
        operands.c.to_host().view().bytes().to_vec()
    }
}

/// Sizes that together take every way through the driver: thin either way, along and across `k`, one and
/// several passes, one and several shares of packed panels (which are small in tests).
const PATHS: [(Size, (bool, bool)); 8] = [
    ((3, 300, 130), (false, true)),
    ((9, 300, 130), (false, false)),
    ((300, 5, 130), (false, true)),
    ((300, 16, 130), (true, false)),
    ((40, 70, 2100), (false, true)),
    ((150, 210, 90), (true, false)),
    ((17, 600, 40), (false, false)),
    ((600, 17, 40), (true, true)),
];

#[test]
fn device_matches_reference_at_odd_sizes() {
    let sizes = [0, 1, 2, 3, 5, 7, 8, 9, 13, 15, 17, 31, 33, 47, 65];
    for dev in devices() {
        for (i, &m) in sizes.iter().enumerate() {
            for (j, &n) in sizes.iter().enumerate() {
                for (l, k) in [0, 1, 2, 7, 31, 33, 70].into_iter().enumerate() {
                    let pick = i + 3 * j + 5 * l;
                    let types = (TYPES[pick / 4 % 2], TYPES[pick / 8 % 2], TYPES[pick / 3 % 2]);
                    let transposed = TRANSPOSES[pick % 4];
                    Case { size: (m, n, k), transposed, types, ..PLAIN }.check(&dev);
                }
            }
        }
    }
}

#[test]
fn device_matches_reference_for_every_combination() {
    for dev in devices() {
        for (size, transposed, types, rest) in [(37, 70, 75), (3, 70, 75), (70, 6, 75)]
            .into_iter()
            .flat_map(|size| TRANSPOSES.map(|transposed| (size, transposed)))
            .flat_map(|(size, transposed)| (0..8).map(move |types| (size, transposed, types)))
            .flat_map(|(size, transposed, types)| (0..6).map(move |rest| (size, transposed, types, rest)))
        {
            Case {
                size,
                transposed,
                types: (TYPES[types % 2], TYPES[types / 2 % 2], TYPES[types / 4]),
                bias: [None, Some(DType::F32), Some(DType::BF16)][rest % 3],
                alpha: [1.0, -0.75][rest % 2],
                accumulate: rest >= 3,
                second: [None, Some(8), Some(5)][(types + rest) % 3],
            }
            .check(&dev);
        }
    }
}

#[test]
fn device_matches_reference_on_every_path() {
    for dev in devices() {
        for (size, transposed) in PATHS {
            for dtype in TYPES {
                for second in [None, Some(9)] {
                    let types = (dtype, dtype, DType::F32);
                    Case { size, transposed, types, second, ..PLAIN }.check(&dev);
                }
            }
        }
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    for one in cpus().into_iter().filter(|dev| dev.threads() == 1) {
        let Ok(two) = Device::cpu(CpuOptions { threads: Some(2), isa: Some(one.isa()) }) else {
            println!("not run: this machine has one core");
            return;
        };
        for (size, transposed) in PATHS {
            for dtype in TYPES {
                let case = Case {
                    size,
                    transposed,
                    types: (dtype, dtype, dtype),
                    accumulate: true,
                    second: Some(6),
                    ..PLAIN
                };
                assert!(case.bytes(&one) == case.bytes(&two), "{case:?} on {}", one.isa());
            }
        }
    }
}

#[test]
fn a_row_with_a_nan_or_an_infinity_spoils_no_other_row() {
    for dev in devices() {
        for (size @ (m, n, k), transposed) in PATHS {
            for (dtype, bad) in
                [(DType::F32, f32::NAN), (DType::BF16, f32::NAN), (DType::BF16, f32::INFINITY)]
            {
                let case = Case { size, transposed, types: (dtype, dtype, dtype), ..PLAIN };
                let mut operands = case.operands();
                let mut values = operands.a.to_f32_vec();
                values[if transposed.0 { (k - 1) * m + 1 } else { m.min(2) * k - 1 }] = bad;
                operands.a = Tensor::from_slice(&values, operands.a.shape()).to_dtype(dtype);
                let mut operands = operands.on(&dev);
                case.product(&mut operands).run(&dev);
                for (i, row) in operands.c.to_f32_vec().chunks(n).enumerate() {
                    let spoilt = row.iter().filter(|x| !x.is_finite()).count();
                    assert_eq!(spoilt, if i == 1 { n } else { 0 }, "{case:?} on {}, row {i}", dev.name());
                }
            }
        }
    }
}

#[test]
fn without_depth_c_is_the_bias_or_stays() {
    for dev in devices() {
        for size in [(3, 5, 0), (40, 50, 0)] {
            for (bias, accumulate) in [(None, false), (None, true), (Some(DType::F32), false)] {
                Case { size, bias, accumulate, ..PLAIN }.check(&dev);
            }
        }
    }
}

#[test]
fn large_magnitudes_overflow_only_when_c_is_too_narrow() {
    for dev in devices() {
        // 3.3895e38 is the largest bf16; four times its quarter rounds to it, and a little more to infinity.
        for (m, quarter, finite) in
            [(1, 8.4e37f32, true), (40, 8.4e37, true), (1, 8.6e37, false), (40, 8.6e37, false)]
        {
            let a = Tensor::from_slice(&vec![1.0f32; m * 4], &[m, 4]).to_dtype(DType::BF16).on(&dev);
            let b = Tensor::from_slice(&[quarter; 4 * 33], &[33, 4]).to_dtype(DType::BF16).on(&dev);
            let mut c = dev.zeros(DType::BF16, &[m, 33]);
            Matmul::x_wt(a.view(), b.view(), c.view_mut()).run(&dev);
            assert!(c.to_f32_vec().iter().all(|x| x.is_finite() == finite), "{quarter} on {}", dev.name());
        }
    }
}

/// The inputs of `matmul.json`: exact in every type, and so are sums of their products in `f32`.
fn grid(rows: usize, cols: usize, factor: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| ((i * factor + 11) % 101) as f32 / 64.0 - 50.0 / 64.0).collect()
}

#[test]
fn matches_torch() {
    #[derive(Deserialize)]
    struct Layer {
        y: Vec<f32>,
        dx: Vec<f32>,
        dw: Vec<f32>,
    }
    #[derive(Deserialize)]
    struct Golden {
        tokens: usize,
        inner: usize,
        outer: usize,
        float32: Layer,
        bfloat16: Layer,
    }
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../goldens/matmul.json")).unwrap();
    for dev in devices() {
        for golden in &goldens {
            let (n, i, o) = (golden.tokens, golden.inner, golden.outer);
            for (dtype, layer) in [(DType::F32, &golden.float32), (DType::BF16, &golden.bfloat16)] {
                let input = |rows, cols, factor| {
                    Tensor::from_slice(&grid(rows, cols, factor), &[rows, cols]).to_dtype(dtype).on(&dev)
                };
                let (x, w, dy) = (input(n, i, 37), input(o, i, 53), input(n, o, 71));
                let bias = input(1, o, 29);
                let biases = bias.to_f32_vec();
                let [mut y, mut dx, mut dw] = [[n, o], [n, i], [o, i]].map(|s| dev.zeros(dtype, &s));
                let bias = Some(bias.view().reshape(&[o]));
                Matmul::x_wt(x.view(), w.view(), y.view_mut()).bias(bias).run(&dev);
                Matmul::dy_w(dy.view(), w.view(), dx.view_mut()).run(&dev);
                Matmul::dyt_x(dy.view(), x.view(), dw.view_mut()).accumulate().run(&dev);
                for (name, got, expected) in
                    [("y", y, &layer.y), ("dx", dx, &layer.dx), ("dw", dw, &layer.dw)]
                {
                    let got: Vec<f32> = got.to_f32_vec().iter().map(|x| x * 4096.0).collect();
                    if dev.cuda().is_none() {
                        assert_eq!(&got, expected, "{name} in {} on {}", dtype.name(), dev.name());
                    }
                    // At odd sizes cuBLASLt adds the bias to a product that is rounded already.
                    let ulp = if dtype == DType::BF16 { 1.0 / 128.0 } else { 2e-7 };
                    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
                        let unbiased = if name == "y" { expected - 4096.0 * biases[at % o] } else { 0.0 };
                        let (difference, rounded) = ((got - expected).abs(), expected.abs() + unbiased.abs());
                        assert!(difference <= ulp * rounded, "{name}: {got} and not {expected}");
                    }
                }
            }
        }
    }
}

/// The layer is linear in `x` and in `w`, so central differences are exact at any distance.
#[test]
fn gradcheck() {
    let (n, i, o) = (3, 4, 5);
    let tensor = |values: &[f32], rows| Tensor::from_slice(values, &[rows, values.len() / rows]);
    let (x, w, dy) = (grid(n, i, 37), grid(o, i, 53), grid(n, o, 71));
    let loss = |x: &[f32], w: &[f32]| -> f64 {
        let mut y = Tensor::zeros(DType::F32, &[n, o]);
        let (x, w) = (tensor(x, n), tensor(w, o));
        let y: Vec<f64> = reference::product(&Matmul::x_wt(x.view(), w.view(), y.view_mut()));
        y.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum()
    };
    let differences = |values: &[f32], loss: &dyn Fn(&[f32]) -> f64| -> Vec<f64> {
        let moved = |i: usize, by: f32| {
            let mut values = values.to_vec();
            values[i] += by;
            loss(&values)
        };
        (0..values.len()).map(|i| moved(i, 0.5) - moved(i, -0.5)).collect()
    };
    let (tx, tw, tdy) = (tensor(&x, n), tensor(&w, o), tensor(&dy, n));
    let (mut dx, mut dw) = (Tensor::zeros(DType::F32, &[n, i]), Tensor::zeros(DType::F32, &[o, i]));
    let dx: Vec<f64> = reference::product(&Matmul::dy_w(tdy.view(), tw.view(), dx.view_mut()));
    let dw: Vec<f64> = reference::product(&Matmul::dyt_x(tdy.view(), tx.view(), dw.view_mut()));
    assert_eq!(dx, differences(&x, &|x| loss(x, &w)));
    assert_eq!(dw, differences(&w, &|w| loss(&x, w)));
}

#[test]
#[should_panic(expected = "op(A) is [2, 3] and op(B) is [4, 5]")]
fn shapes_that_do_not_fit_are_named() {
    let (a, b, mut c) = (
        Tensor::zeros(DType::F32, &[2, 3]),
        Tensor::zeros(DType::F32, &[5, 4]),
        Tensor::zeros(DType::F32, &[2, 5]),
    );
    Matmul::x_wt(a.view(), b.view(), c.view_mut()).run(&devices()[0]);
}

#[test]
fn a_weight_that_is_packed_before_gives_the_same_bits() {
    let cpu = Device::cpu(CpuOptions::default()).unwrap();
    let mut slab = Slab::on(&cpu);
    for dev in cpus() {
        for (size, reads) in
            [((70, 90, 75), Reads::XWt), ((33, 300, 260), Reads::DyW), ((40, 70, 2100), Reads::DyW)]
        {
            for (dtype, second) in [(DType::BF16, None), (DType::BF16, Some(6)), (DType::F32, Some(5))] {
                let (transposed, types) = ((false, reads == Reads::XWt), (dtype, dtype, DType::F32));
                let case = Case { size, transposed, types, second, ..PLAIN };
                let mut operands = case.operands();
                let packed = PackedWeight::pack(&dev, &mut slab, operands.b.view(), reads);
                case.product(&mut operands).packed(Some(&packed)).run(&dev);
                assert_eq!(operands.c.view().bytes(), case.bytes(&dev), "{case:?} on {}", dev.name());
            }
        }
    }
}
