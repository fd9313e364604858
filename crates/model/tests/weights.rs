//! Tokens that count more or less than others: the loss is Σ w·nll / Σ w, and so are its gradients.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sft_kernels::{CpuOptions, DType, Device};
use sft_model::head::LossSums;
use sft_model::method::Method;
use sft_model::workspace::{Purpose, Recomputed, Workspace};
use sft_model::{Batch, Decoder};

const IDS: [u32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];
const TARGETS: [i32; 8] = [1, -100, 1, 5, 9, 2, -100, 5];
const WEIGHTS: [f32; 8] = [0.25, 7.0, 1.0, 2.0, 0.5, 1e-3, 1.0, 3.0];

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/llama")
}

/// Sums and all gradients of scale · Σ w·nll.
fn gradients(targets: &[i32], weights: &[f32], scale: f32) -> (LossSums, Vec<(String, Vec<f32>)>) {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let mut decoder = Decoder::read(&dev, &case(), &Method::Full, DType::F32, 0).unwrap();
    let purpose = Purpose::Training(Recomputed::Blocks(0));
    let (spec, adapters) = (decoder.spec.clone(), decoder.adapters().clone());
    let mut work = Workspace::new(&dev, &spec, &adapters, DType::F32, 8, purpose);
    let batch = Batch {
        input_ids: &IDS,
        position_ids: &[0, 1, 2, 3, 4, 0, 1, 2],
        cu_seqlens: &[0, 5, 8],
        shared: None,
        targets,
        weights,
    };
    decoder.loss_and_gradients(&dev, batch, scale, None, &mut work).unwrap();
    let trained = decoder.trained_mut();
    let of = trained.iter().map(|p| (p.name().to_owned(), p.gradient().unwrap().to_f32_vec())).collect();
    let sums = work.loss_sums(&dev);
    let evaluated = decoder.evaluate(&dev, batch, &mut work).unwrap();
    assert_eq!((evaluated.nll, evaluated.weight), (sums.nll, sums.weight), "evaluation counts the same");
    (sums, of)
}

#[test]
fn loss_and_gradients_are_torchs() {
    let golden: Value = serde_json::from_str(include_str!("../goldens/weights.json")).unwrap();
    assert_eq!(golden["weights"].as_array().unwrap().len(), WEIGHTS.len());
    let weight: f64 = golden["weight"].as_f64().unwrap();
    let (sums, gradients) = gradients(&TARGETS, &WEIGHTS, (1.0 / weight) as f32);
    assert!((sums.weight - weight).abs() < 1e-6, "{} and not {weight}", sums.weight);
    assert_eq!(sums.supervised, 6);
    let loss = golden["loss"].as_f64().unwrap();
    assert!((sums.mean() / loss - 1.0).abs() < 1e-6, "{} and not {loss}", sums.mean());
    let expected = golden["gradients"].as_object().unwrap();
    assert_eq!(expected.len(), gradients.len());
    for (name, gradient) in gradients {
        let found = gradient.iter().map(|g| f64::from(*g));
        let length = found.clone().map(|g| g * g).sum::<f64>().sqrt();
        let product: f64 = found.enumerate().map(|(i, g)| g * (i as f64 + 1.0).cos()).sum();
        let of = |at: usize| expected[&name][at].as_f64().unwrap();
        let tolerance = 1e-5 * of(0) + 1e-7;
        assert!((length - of(0)).abs() < tolerance, "{name}: {length} and not {}", of(0));
        assert!((product - of(1)).abs() < 10.0 * tolerance, "{name}: {product} and not {}", of(1));
    }
}

#[test]
fn a_weighted_sum_is_the_sum_of_its_tokens_alone() {
    let (together, of_all) = gradients(&TARGETS, &WEIGHTS, 0.5);
    let mut nll = 0.0;
    let mut sums: Vec<Vec<f64>> = of_all.iter().map(|(_, g)| vec![0.0; g.len()]).collect();
    for at in (0..8).filter(|at| TARGETS[*at] >= 0) {
        let mut alone = [-100; 8];
        alone[at] = TARGETS[at];
        let (of_one, gradients) = gradients(&alone, &[], 0.5);
        assert_eq!((of_one.weight, of_one.supervised), (1.0, 1));
        nll += f64::from(WEIGHTS[at]) * of_one.nll;
        for (sum, (_, gradient)) in sums.iter_mut().zip(gradients) {
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += f64::from(WEIGHTS[at]) * f64::from(g));
        }
    }
    assert!((together.nll / nll - 1.0).abs() < 1e-6);
    for (sum, (name, gradient)) in sums.iter().zip(&of_all) {
        let largest = sum.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        for (found, expected) in gradient.iter().zip(sum) {
            assert!(
                (f64::from(*found) - expected).abs() < 2e-5 * largest,
                "{name}: {found} and not {expected}"
            );
        }
    }
}

#[test]
fn weights_of_one_change_no_bit() {
    let (plain, ones) = (gradients(&TARGETS, &[], 0.25), gradients(&TARGETS, &[1.0; 8], 0.25));
    assert_eq!(plain, ones);
}
