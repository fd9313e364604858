//! What the tests of all ops share: random values, comparisons, finite differences, the devices to test on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use crate::cuda::{Cuda, CudaError};
use crate::{CpuOptions, DType, Device, Isa, Tensor};

/// A small reproducible generator (64-bit LCG, upper bits).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Uniform in [-1, 1).
    pub fn f64(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn f64s(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.f64()).collect()
    }

    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = self.f64s(shape.iter().product()).iter().map(|x| *x as f32).collect();
        Tensor::from_slice(&values, shape).to_dtype(dtype)
    }
}

/// The values of a tensor, in f64.
pub fn to_f64(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f32_vec().into_iter().map(f64::from).collect()
}

/// Every difference is at most `tolerance` of the largest expected magnitude (or of 1, if that is smaller).
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let scale = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= tolerance * scale, "{what}[{i}]: {found} and not {expected}");
    }
}

/// `gradient` agrees with central differences of `f` at `x`.
pub fn gradcheck(f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    let h = 1e-5;
    let differences: Vec<f64> = (0..x.len())
        .map(|i| {
            let at = |delta: f64| {
                let mut x = x.to_vec();
                x[i] += delta;
                f(&x)
            };
            (at(h) - at(-h)) / (2.0 * h)
        })
        .collect();
    assert_close("gradient", gradient, &differences, 1e-7);
}

/// The CPU's devices, and a GPU if there is one. With `SFT_TEST_CUDA=only` the GPU alone: a run on an emulated one need
/// not repeat what another run does on the CPU.
pub fn devices() -> Vec<Device> {
    let cpus = if asked_for_gpu().is_some_and(|asked| asked == "only") { Vec::new() } else { cpus() };
    cpus.into_iter().chain(gpu()).collect()
}

/// A device for each instruction set of this machine, and one with two threads.
pub fn cpus() -> Vec<Device> {
    let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let one_thread = available.map(|isa| CpuOptions { threads: Some(1), isa: Some(isa) });
    let all_threads = CpuOptions { threads: None, isa: Some(Isa::best()) };
    one_thread.chain([all_threads]).map(|options| Device::cpu(options).unwrap()).collect()
}

/// The GPU of this machine, or an emulated one (see `emulator/`).
///
/// # Panics
/// If `SFT_TEST_CUDA` is set and there is none.
pub fn gpu() -> Option<Device> {
    static CARD: OnceLock<Result<Arc<Cuda>, CudaError>> = OnceLock::new();
    match CARD.get_or_init(|| Cuda::open(0)) {
        Ok(card) => {
            if card.properties().name == "Emulated GPU" {
                not_run("on a real GPU", "emulated");
            }
            Some(Device::on_card(Arc::clone(card), CpuOptions::default()).unwrap())
        }
        Err(error) if asked_for_gpu().is_some() => panic!("{error}"),
        Err(error) => {
            not_run("on a GPU", error);
            None
        }
    }
}

fn asked_for_gpu() -> Option<OsString> {
    std::env::var_os("SFT_TEST_CUDA")
}

/// Says once of each test what it did not do, past the harness, which shows nothing of a test that passes.
pub fn not_run(how: &str, why: impl Display) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let why = why.to_string();
    let line = format!("{test}: not run {how}: {}\n", why.lines().next().unwrap_or_default());
    if SAID.lock().unwrap().insert(line.clone()) {
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
