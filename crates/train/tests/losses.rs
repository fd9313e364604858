//! Training with each loss goes as with the function that the loss comes from: `goldens/make_losses.py`.

use std::collections::BTreeMap;
use std::path::Path;

use sft_kernels::objective::Loss;
use sft_kernels::{CpuOptions, Device};
use sft_train::parity::curve;

#[test]
fn six_steps_with_each_loss_are_those_of_llama_factory_and_transformers() {
    let golden: BTreeMap<String, Vec<f64>> =
        serde_json::from_str(include_str!("../goldens/losses.json")).unwrap();
    let losses = [
        ("smoothed 0.1", Loss::Smoothed { factor: 0.1 }),
        ("dft", Loss::Dft),
        ("eaft 1.0", Loss::Eaft { alpha: 1.0 }),
        ("asft 0.5", Loss::Asft { alpha: 0.5 }),
    ];
    assert!(golden.keys().eq(["asft 0.5", "dft", "eaft 1.0", "smoothed 0.1"]), "each is checked");
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity/llama");
    for (name, loss) in losses {
        let expected = &golden[name];
        let found = curve(&dev, &case, loss, expected.len()).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-4, "{name}: {found} and not {expected}");
        }
    }
}
