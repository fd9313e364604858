//! What the page of models says of methods: with every family each of them trains.

mod small;

use serde_json::Value;
use sft_kernels::quantized::{FourBit, Scheme};
use sft_kernels::{CpuOptions, DType, Device, View};
use sft_model::loading::{self, Source};
use sft_model::method::{LoraInit, LoraOptions, Method, OftBlocks, OftOptions, Targets, expert_targets};
use sft_model::parameter::Stored;
use sft_model::pass::Batch;
use sft_model::quantization::{Precision, Quantization};
use sft_model::spec::DecoderSpec;
use sft_model::workspace::{Purpose, Recomputed, Workspace};
use sft_model::{ModelError, families};

/// With every token going to all experts: a choice that changes makes a loss jump.
fn spec(keys: Value) -> DecoderSpec {
    let mut spec = families::read_spec(small::folder(keys).path()).unwrap();
    for moe in spec.layers.iter_mut().filter_map(|layer| layer.moe.as_mut()) {
        (moe.rule.top_k, moe.rule.groups) = (moe.experts, None);
    }
    spec
}

fn lora(use_dora: bool, init: LoraInit) -> Method {
    Method::Lora(lora_options(use_dora, init))
}

fn lora_options(use_dora: bool, init: LoraInit) -> LoraOptions {
    LoraOptions {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        targets: Targets::All,
        target_parameters: Vec::new(),
        use_rslora: false,
        use_dora,
        init,
        modules_to_save: Vec::new(),
    }
}

fn oft() -> Method {
    Method::Oft(OftOptions {
        blocks: OftBlocks::Size(5),
        dropout: 0.0,
        targets: Targets::All,
        modules_to_save: Vec::new(),
    })
}

/// The loss before and after a small step against the gradient.
fn step(
    dev: &Device,
    spec: &DecoderSpec,
    method: &Method,
    precision: impl Into<Precision>,
) -> Result<(f64, f64), ModelError> {
    let mut decoder = loading::load(dev, spec, &Source::Random { seed: 3 }, method, precision, 3)?;
    let purpose = Purpose::Training(Recomputed::Blocks(0));
    let mut work = Workspace::new(dev, spec, decoder.adapters(), decoder.compute, 8, purpose);
    let batch = Batch {
        input_ids: &[3, 1, 4, 1, 5, 9, 2, 6],
        position_ids: &[0, 1, 2, 3, 4, 0, 1, 2],
        cu_seqlens: &[0, 5, 8],
        shared: None,
        targets: &[1, -100, 1, 5, 9, 2, 6, 5],
        weights: &[],
    };
    decoder.loss_and_gradients(dev, batch, 1.0, None, &mut work)?;
    let before = decoder.evaluate(dev, batch, &mut work)?.nll;
    let gradients: Vec<Vec<f32>> =
        decoder.trained_mut().iter().map(|p| p.gradient().unwrap().to_f32_vec()).collect();
    let square: f32 = gradients.iter().flatten().map(|g| g * g).sum();
    for (parameter, gradient) in decoder.trained_mut().into_iter().zip(&gradients) {
        let mut values = parameter.value().to_f32_vec();
        // As far as the loss would fall by a thousandth, were it straight.
        values.iter_mut().zip(gradient).for_each(|(w, g)| *w -= 1e-3 * before as f32 * g / square);
        let shape = parameter.value().shape().to_vec();
        parameter.set(View::of(&values, &shape));
    }
    Ok((before, decoder.evaluate(dev, batch, &mut work)?.nll))
}

#[test]
fn every_family_trains_with_every_method() {
    let dev = Device::cpu(CpuOptions::default()).unwrap();
    let made = |scheme| Precision { compute: DType::F32, quantization: Some(Quantization::Made(scheme)) };
    let nf4 = made(Scheme::FourBit { kind: FourBit::Nf4, double: true });
    let plain = Precision::from(DType::F32);
    for family in families::supported() {
        let spec = spec(small::keys(family));
        let freeze = Method::freeze(&spec, 1, &[], &[]).unwrap();
        let pissa = lora(false, LoraInit::Pissa { iterations: None });
        for (what, method, precision) in [
            ("full", Method::Full, plain),
            ("freeze", freeze, plain),
            ("lora", lora(false, LoraInit::Random), plain),
            ("pissa", pissa, plain),
            ("qlora nf4", lora(false, LoraInit::Random), nf4),
            ("qlora int8", lora(false, LoraInit::Random), made(Scheme::Int8)),
        ] {
            let (before, after) =
                step(&dev, &spec, &method, precision).unwrap_or_else(|e| panic!("{family} {what}: {e}"));
            let share = (before - after) / before;
            assert!((2e-4..2e-3).contains(&share), "{family} {what}: from {before} to {after}");
        }
        for (what, precision) in [("oft", plain), ("qoft nf4", nf4)] {
            let oft = step(&dev, &spec, &oft(), precision);
            assert_eq!(oft.is_err(), spec.linear_weights == Stored::Transposed, "{family} {what}: {oft:?}");
            if let Ok((before, after)) = oft {
                let share = (before - after) / before;
                assert!((2e-4..2e-3).contains(&share), "{family} {what}: from {before} to {after}");
            }
        }
        if let Ok(target_parameters) = expert_targets(&spec) {
            let options = lora_options(false, LoraInit::Random);
            let experts = Method::Lora(LoraOptions { target_parameters, ..options });
            let (before, after) = step(&dev, &spec, &experts, plain).unwrap();
            let share = (before - after) / before;
            assert!((2e-4..2e-3).contains(&share), "{family} experts: from {before} to {after}");
        }
        let dora = step(&dev, &spec, &lora(true, LoraInit::Random), plain);
        let is_adapted = families::all().iter().any(|f| f.model_type == family && f.adapts_routers());
        assert_eq!(dora.is_err(), is_adapted, "{family} dora: {dora:?}");
        if let Ok((before, after)) = dora {
            assert!(after < before, "{family} dora: from {before} to {after}");
        }
    }
}
