//! Speed of matrix products by shape and instruction set, against what the machine can do.
//!
//! `cargo bench -p sft-kernels --bench matmul -- [ISA] [bfloat16|float32] [cold] [WORD]`: one instruction set instead of all,
//! one type instead of both, and only the shapes whose name contains a word. Times are the best and the median of several runs;
//! the limits are measured here and now: a loop on registers alone, and copying memory. `cold` takes other matrices in
//! every run, so that they come from memory as they do in a step.

use std::time::Instant;

use sft_kernels::limits::Limits;
use sft_kernels::matmul::Matmul;
use sft_kernels::{CpuOptions, DType, Device, Isa, Tensor};

/// Which of a linear layer's products.
#[derive(Clone, Copy, PartialEq)]
enum Product {
    /// `y = x·Wᵀ`, sizes are tokens, out, in.
    XWt,
    /// `dx = dy·W`, sizes are tokens, in, out.
    DyW,
    /// `dW += dyᵀ·x`, sizes are out, in, tokens.
    DytX,
}

const SHAPES: &[(&str, Product, [usize; 3])] = &[
    ("0.5b q_proj", Product::XWt, [1024, 896, 896]),
    ("0.5b k_proj", Product::XWt, [1024, 128, 896]),
    ("0.5b up_proj", Product::XWt, [1024, 4864, 896]),
    ("0.5b up_proj 512", Product::XWt, [512, 4864, 896]),
    ("0.5b up_proj 4096", Product::XWt, [4096, 4864, 896]),
    ("0.5b up_proj dx", Product::DyW, [1024, 896, 4864]),
    ("0.5b up_proj dw", Product::DytX, [4864, 896, 1024]),
    ("0.5b down_proj", Product::XWt, [1024, 896, 4864]),
    ("0.5b down_proj dx", Product::DyW, [1024, 4864, 896]),
    ("0.5b head", Product::XWt, [256, 151_936, 896]),
    ("0.5b head dx", Product::DyW, [440, 896, 151_936]),
    ("135m q_proj", Product::XWt, [2048, 576, 576]),
    ("135m k_proj", Product::XWt, [2048, 192, 576]),
    ("135m up_proj", Product::XWt, [2048, 1536, 576]),
    ("135m down_proj", Product::XWt, [2048, 576, 1536]),
    ("135m up_proj dx", Product::DyW, [2048, 576, 1536]),
    ("135m k_proj dx", Product::DyW, [2048, 576, 192]),
    ("135m down_proj dw", Product::DytX, [576, 1536, 2048]),
    ("135m head", Product::XWt, [256, 49_152, 576]),
    ("135m head dx", Product::DyW, [1360, 576, 49_152]),
    ("135m full up_proj", Product::XWt, [2048, 1536, 576]),
    ("135m full up_proj dx", Product::DyW, [2048, 576, 1536]),
    ("135m full up_proj dw", Product::DytX, [1536, 576, 2048]),
    ("135m full q_proj dw", Product::DytX, [576, 576, 2048]),
    ("135m full head", Product::XWt, [1360, 49_152, 576]),
    ("135m full head dx", Product::DyW, [1360, 576, 49_152]),
    ("135m full head dw", Product::DytX, [49_152, 576, 1360]),
    ("square", Product::XWt, [2048, 2048, 2048]),
    ("large square", Product::XWt, [4096, 4096, 4096]),
    ("lora x·Aᵀ", Product::XWt, [1024, 8, 896]),
    ("lora wide x·Aᵀ", Product::XWt, [1024, 8, 4864]),
    ("lora r64 x·Aᵀ", Product::XWt, [1024, 64, 896]),
    ("lora xa·Bᵀ", Product::XWt, [1024, 4864, 8]),
    ("lora dxa = dy·B", Product::DyW, [1024, 8, 4864]),
    ("lora dx += dxa·A", Product::DyW, [1024, 896, 8]),
    ("lora dA = dxaᵀ·x", Product::DytX, [8, 896, 1024]),
    ("lora dB = dyᵀ·xa", Product::DytX, [4864, 8, 1024]),
    ("decode up_proj 1", Product::XWt, [1, 4864, 896]),
    ("decode k_proj 1", Product::XWt, [1, 128, 896]),
    ("decode up_proj 8", Product::XWt, [8, 4864, 896]),
    ("decode down_proj 8", Product::XWt, [8, 896, 4864]),
    ("decode head 1", Product::XWt, [1, 151_936, 896]),
    ("decode head 4", Product::XWt, [4, 151_936, 896]),
    ("decode head 8", Product::XWt, [8, 151_936, 896]),
    ("decode head 16", Product::XWt, [16, 151_936, 896]),
];

/// Types of A, B and C where others are `dtype`: of full tuning (`full` in the name) weights and their gradients are
/// `f32`.
fn types(name: &str, product: Product, dtype: DType) -> [DType; 3] {
    let f32_if = |wide: bool| if wide { DType::F32 } else { dtype };
    let (full, weight_gradient) = (name.contains("full"), product == Product::DytX);
    [dtype, f32_if(full && !weight_gradient), f32_if(full && weight_gradient)]
}

/// Bytes of matrices that a cache does not hold.
const COLD: usize = 256 << 20;

/// Seconds of one product, best and median; from memory if `cold`.
fn time(dev: &Device, product: Product, [m, n, k]: [usize; 3], types: [DType; 3], cold: bool) -> (f64, f64) {
    let noise = |shape: [usize; 2], dtype: DType| {
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| ((i * 7919) % 17) as f32 - 8.0).collect();
        Tensor::from_slice(&values, &shape).to_dtype(dtype)
    };
    let sets = if cold {
        COLD.div_ceil(m * k * types[0].bytes() + n * k * types[1].bytes() + m * n * types[2].bytes())
    } else {
        1
    };
    let mut sets: Vec<[Tensor; 3]> = (0..sets)
        .map(|_| {
            let a = noise(if product == Product::DytX { [k, m] } else { [m, k] }, types[0]);
            let b = noise(if product == Product::XWt { [n, k] } else { [k, n] }, types[1]);
            [a, b, Tensor::zeros(types[2], &[m, n])]
        })
        .collect();
    let count = sets.len();
    let mut seconds = Vec::new();
    let begin = Instant::now();
    while seconds.len() < 5 || (begin.elapsed().as_secs_f64() < 0.7 && seconds.len() < 200) {
        let [a, b, c] = &mut sets[seconds.len() % count];
        let args = match product {
            Product::XWt => Matmul::x_wt(a.view(), b.view(), c.view_mut()),
            Product::DyW => Matmul::dy_w(a.view(), b.view(), c.view_mut()),
            Product::DytX => Matmul::dyt_x(a.view(), b.view(), c.view_mut()).accumulate(),
        };
        let start = Instant::now();
        args.run(dev);
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    (seconds[0], seconds[seconds.len() / 2])
}

fn main() {
    let (mut isa, mut only, mut cold, mut word) = (None::<Isa>, None, false, String::new());
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match (argument.parse(), argument.as_str()) {
            (Ok(name), _) => isa = Some(name),
            (_, "bfloat16") => only = Some(DType::BF16),
            (_, "float32") => only = Some(DType::F32),
            (_, "cold") => cold = true,
            _ => word = argument,
        }
    }
    let chosen = Isa::ALL.into_iter().rev().filter(|i| isa.is_none_or(|isa| isa == *i));
    for isa in chosen.filter(|isa| isa.is_available()) {
        let dev = Device::cpu(CpuOptions { threads: None, isa: Some(isa) }).expect("it is available");
        let limits = Limits::measure(&dev);
        let (f32_peak, bf16_peak, bandwidth) = (limits.f32_flops, limits.bf16_flops, limits.copy_bytes);
        println!(
            "\n{isa}, {} threads: at most {:.0} GFLOP/s in float32, {:.0} in bfloat16, {:.1} GB/s copied",
            dev.threads(),
            f32_peak / 1e9,
            bf16_peak / 1e9,
            bandwidth / 1e9
        );
        println!(
            "{:<22}{:>20}{:>10}{:>10}{:>10}{:>10}{:>8}{:>8}",
            "product", "M×N×K", "type", "best ms", "median", "GFLOP/s", "% peak", "GB/s"
        );
        for (name, product, size @ [m, n, k]) in SHAPES {
            if !name.contains(&word) {
                continue;
            }
            for (dtype, peak) in [(DType::BF16, bf16_peak), (DType::F32, f32_peak)] {
                if only.is_some_and(|only| only != dtype) {
                    continue;
                }
                let types = types(name, *product, dtype);
                let (best, median) = dev.install(|| time(&dev, *product, *size, types, cold));
                let flops = 2.0 * (m * n * k) as f64;
                let passes = [m * k, n * k, m * n * (1 + usize::from(*product == Product::DytX))];
                let moved: usize = passes.iter().zip(types).map(|(n, dtype)| n * dtype.bytes()).sum();
                println!(
                    "{name:<22}{:>20}{:>10}{:>10.3}{:>10.3}{:>10.0}{:>8.0}{:>8.1}",
                    format!("{m}×{n}×{k}"),
                    dtype.name(),
                    best * 1e3,
                    median * 1e3,
                    flops / best / 1e9,
                    100.0 * flops / best / peak,
                    moved as f64 / best / 1e9
                );
            }
        }
    }
}
