use super::Matmul;
use super::reference;
use crate::{CpuOptions, DType, Device, Isa, Tensor};

/// Every instruction set that this machine has, with two threads where there are two cores.
fn devices() -> Vec<Device> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    let all = Isa::ALL.into_iter();
    all.filter(|isa| {
        if !isa.is_available() {
            println!("not run: this machine has no {isa}");
        }
        isa.is_available()
    })
    .map(|isa| device(isa, threads))
    .collect()
}

fn device(isa: Isa, threads: usize) -> Device {
    let options = CpuOptions { threads: Some(threads), isa: Some(isa) };
    Device::cpu(options).expect("the instruction set and the threads are there")
}

/// A tensor of numbers in −1..1 that depend on `seed`.
fn random(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(&values, shape).to_dtype(dtype)
}

/// One product to check.
#[derive(Debug, Clone, Copy)]
struct Case {
    size: (usize, usize, usize),
    transposed: (bool, bool),
    types: (DType, DType, DType),
    bias: Option<DType>,
    alpha: f32,
    accumulate: bool,
}

impl Case {
    fn tensors(&self) -> (Tensor, Tensor, Tensor, Option<Tensor>) {
        let (m, n, k) = self.size;
        let a = if self.transposed.0 { [k, m] } else { [m, k] };
        let b = if self.transposed.1 { [n, k] } else { [k, n] };
        (
            random(self.types.0, &a, 1),
            random(self.types.1, &b, 2),
            random(self.types.2, &[m, n], 3),
            self.bias.map(|dtype| random(dtype, &[n], 4)),
        )
    }

    fn args<'a>(&self, (a, b, c, bias): &'a mut (Tensor, Tensor, Tensor, Option<Tensor>)) -> Matmul<'a> {
        Matmul {
            a: a.view(),
            a_transposed: self.transposed.0,
            b: b.view(),
            b_transposed: self.transposed.1,
            c: c.view_mut(),
            bias: bias.as_ref().map(Tensor::view),
            alpha: self.alpha,
            accumulate: self.accumulate,
        }
    }

    /// Runs it on `dev` and compares with the definition in `f64`.
    fn check(&self, dev: &Device) {
        let mut tensors = self.tensors();
        let expected: Vec<f64> = reference::product(&self.args(&mut tensors));
        self.args(&mut tensors).run(dev);
        // Values below 1: `k` roundings of a sum of about √k in `f32`, then one to `C`'s type.
        let k = self.size.2 as f64;
        let last = if self.types.2 == DType::BF16 { 1.0 / 256.0 } else { 1.2e-7 };
        for (i, (got, expected)) in tensors.2.to_f32_vec().iter().zip(&expected).enumerate() {
            let allowed = 2.4e-7 * (k + 4.0) + last * expected.abs();
            let error = (f64::from(*got) - expected).abs();
            assert!(error <= allowed, "{self:?} on {}: element {i} is {got} and not {expected}", dev.isa());
        }
    }
}

const PLAIN: Case = Case {
    size: (0, 0, 0),
    transposed: (false, true),
    types: (DType::F32, DType::F32, DType::F32),
    bias: None,
    alpha: 1.0,
    accumulate: false,
};

const TRANSPOSES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
const TYPES: [DType; 2] = [DType::F32, DType::BF16];

#[test]
fn device_matches_reference_at_odd_sizes() {
    let sizes = [0, 1, 2, 3, 5, 7, 8, 9, 13, 15, 17, 31, 33, 47, 65];
    for dev in devices() {
        for (i, &m) in sizes.iter().enumerate() {
            for (j, &n) in sizes.iter().enumerate() {
                for (l, k) in [0, 1, 2, 7, 31, 33, 70].into_iter().enumerate() {
                    let pick = i + 3 * j + 5 * l;
                    let case = Case {
                        size: (m, n, k),
                        transposed: TRANSPOSES[pick % 4],
                        types: (TYPES[pick / 4 % 2], TYPES[pick / 8 % 2], TYPES[pick / 3 % 2]),
                        ..PLAIN
                    };
                    case.check(&dev);
                }
            }
        }
    }
}

#[test]
fn device_matches_reference_for_every_combination() {
    for dev in devices() {
        for size in [(37, 70, 45), (3, 70, 45), (70, 6, 45)] {
            for transposed in TRANSPOSES {
                for types in 0..8 {
                    for rest in 0..6 {
                        Case {
                            size,
                            transposed,
                            types: (TYPES[types % 2], TYPES[types / 2 % 2], TYPES[types / 4]),
                            bias: [None, Some(DType::F32), Some(DType::BF16)][rest % 3],
                            alpha: [1.0, -0.75][rest % 2],
                            accumulate: rest >= 3,
                        }
                        .check(&dev);
                    }
                }
            }
        }
    }
}
