//! Times attention, forward and backward, at the shapes of small models.
//!
//! `cargo bench -p sft-kernels --bench attention -- [float32]` prints the median of nine runs in
//! milliseconds, and GFLOP/s where a pair of positions counts 4·D FLOP a head in forward and 10·D in backward.
//! Only pairs that causality allows are counted.

use std::time::Instant;

use sft_kernels::attention::{self, AttentionParams, Backward, Forward, RowOffsets};
use sft_kernels::{CpuOptions, DType, Device, DeviceError, Tensor};

const RUNS: usize = 9;

struct Shape {
    rows: usize,
    queries: usize,
    keys: usize,
    heads: [usize; 3],
}

fn main() -> Result<(), DeviceError> {
    let dev = Device::cpu(CpuOptions::default())?;
    let dtype = if std::env::args().any(|arg| arg == "float32") { DType::F32 } else { DType::BF16 };
    println!("{} threads, {}, {}", dev.threads(), dev.isa(), dtype.name());
    println!("rows  queries  keys  H/K/D      forward ms GFLOP/s    backward ms GFLOP/s");
    for heads in [[14, 2, 64], [9, 3, 64], [32, 8, 128]] {
        for (rows, length) in [(1, 1024), (8, 128), (1, 4096)] {
            time(&dev, dtype, Shape { rows, queries: length, keys: length, heads });
        }
        time(&dev, dtype, Shape { rows: 1, queries: 1, keys: 8192, heads });
    }
    Ok(())
}

/// Small values without order, the same in every run.
fn values(dtype: DType, shape: [usize; 3]) -> Tensor {
    let mut state = 1u32;
    let random = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / 2f32.powi(31) - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(random).collect();
    Tensor::from_slice(&values, &shape).to_dtype(dtype)
}

fn median_ms(mut f: impl FnMut()) -> f64 {
    f();
    let mut runs = [0.0; RUNS];
    for run in &mut runs {
        let start = Instant::now();
        f();
        *run = start.elapsed().as_secs_f64() * 1e3;
    }
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

fn time(dev: &Device, dtype: DType, shape: Shape) {
    let Shape { rows, queries, keys, heads: [h, k_heads, d] } = shape;
    let params = AttentionParams::scaled(1.0 / (d as f32).sqrt());
    let offsets = |len: usize| -> Vec<u32> { (0..=rows).map(|r| (r * len) as u32).collect() };
    let (q_offsets, k_offsets) = (offsets(queries), offsets(keys));
    let offsets = RowOffsets { q: &q_offsets, k: &k_offsets };
    let (q_shape, k_shape) = ([rows * queries, h, d], [rows * keys, k_heads, d]);
    let [q, dout] = [q_shape; 2].map(|shape| values(dtype, shape));
    let [k, v] = [k_shape; 2].map(|shape| values(dtype, shape));
    let statistics = || Tensor::zeros(DType::F32, &[rows * queries, h]);
    let (mut out, mut lse, mut delta) = (Tensor::zeros(dtype, &q_shape), statistics(), statistics());
    let forward_ms = median_ms(|| {
        let (q, k, v) = (q.view(), k.view(), v.view());
        let io = Forward { q, k, v, out: out.view_mut(), lse: Some(lse.view_mut()) };
        attention::forward(dev, &params, offsets, io);
    });
    // Query i of a row sees keys − queries + i + 1 keys.
    let pairs = rows * (queries * (keys - queries) + queries * (queries + 1) / 2) * h * d;
    let gflops = |flop: usize, ms: f64| (flop * pairs) as f64 / ms / 1e6;
    let heads = format!("{h}/{k_heads}/{d}");
    print!("{rows:>4} {queries:>8} {keys:>5}  {heads:<9} {forward_ms:>11.3} {:>7.0}", gflops(4, forward_ms));
    if queries < keys {
        let bytes = 2 * k.elements() * dtype.bytes();
        println!("    {:.1} GB/s of keys and values", bytes as f64 / forward_ms / 1e6);
        return;
    }
    let (mut dq, mut dk, mut dv) =
        (Tensor::zeros(dtype, &q_shape), Tensor::zeros(dtype, &k_shape), Tensor::zeros(dtype, &k_shape));
    let backward_ms = median_ms(|| {
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
        attention::backward(dev, &params, offsets, io);
    });
    println!(" {backward_ms:>14.3} {:>7.0}", gflops(10, backward_ms));
}
