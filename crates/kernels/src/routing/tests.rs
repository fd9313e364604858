use super::*;
use crate::Tensor;
use crate::testing::{Random, assert_close, devices, gradcheck, to_f64};

const PLAIN: Rule = Rule { scoring: Scoring::Softmax, top_k: 2, groups: None, normalised: false, scale: 1.0 };

/// One rule of each kind, for 8 experts.
fn rules() -> Vec<Rule> {
    let sigmoid = Rule { scoring: Scoring::Sigmoid, normalised: true, scale: 2.5, ..PLAIN };
    vec![
        PLAIN,
        Rule { normalised: true, top_k: 3, ..PLAIN },
        sigmoid,
        Rule { groups: Some(Groups { count: 4, chosen: 2, best: 2 }), ..sigmoid },
        Rule { groups: Some(Groups { count: 2, chosen: 1, best: 1 }), scale: 16.0, ..PLAIN },
        Rule { scoring: Scoring::Sigmoid, top_k: 1, ..PLAIN },
        Rule { scoring: Scoring::SparseMixer { tolerance: 0.4 }, ..PLAIN },
    ]
}

#[test]
fn gradcheck_of_the_reference() {
    for (seed, rule) in rules().into_iter().enumerate() {
        let mut random = Random::new(seed as u64);
        let (z, dw, balance) = (random.f64s(8), random.f64s(rule.top_k), random.f64s(8));
        let (chosen, _) = reference::forward(&rule, &z, &[0.0; 8]);
        let dz = reference::backward(&rule, &z, &chosen, &dw, &balance);
        let loss = |z: &[f64]| -> f64 {
            let weighted =
                reference::weights(&rule, z, &chosen).iter().zip(&dw).map(|(w, dw)| w * dw).sum::<f64>();
            weighted + reference::softmax(z).iter().zip(&balance).map(|(p, b)| p * b).sum::<f64>()
        };
        gradcheck(loss, &z, &dz);
    }
}

#[test]
fn matches_torch() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../goldens/routing.json")).unwrap();
    let mut names = Vec::new();
    for case in golden.as_array().unwrap() {
        let list = |key: &str| -> Vec<f64> { serde_json::from_value(case[key].clone()).unwrap() };
        let number = |key: &str| case[key].as_f64().unwrap();
        let count = |key: &str| case[key].as_u64().unwrap() as usize;
        let scoring = match case["scoring"].as_str().unwrap() {
            "softmax" => Scoring::Softmax,
            "sigmoid" => Scoring::Sigmoid,
            _ => Scoring::SparseMixer { tolerance: number("tolerance") as f32 },
        };
        let groups = case.get("groups").map(|_| Groups {
            count: count("groups"),
            chosen: count("groups_chosen"),
            best: count("group_best"),
        });
        let rule = Rule {
            scoring,
            top_k: count("top_k"),
            groups,
            normalised: case["normalised"].as_bool().unwrap(),
            scale: number("scale") as f32,
        };
        let (z, b, dw) = (list("logits"), list("correction"), list("dweights"));
        let (index, weights, dz) = (list("index"), list("weights"), list("dlogits"));
        let (experts, k) = (b.len(), rule.top_k);
        for (t, z) in z.chunks(experts).enumerate() {
            let (chosen, w) = reference::forward(&rule, z, &b);
            let mut expected: Vec<(usize, f64, f64)> =
                (t * k..(t + 1) * k).map(|i| (index[i] as usize, weights[i], dw[i])).collect();
            // Without `sorted` torch leaves the order of the chosen open.
            expected.sort_by_key(|(e, ..)| chosen.iter().position(|c| c == e));
            assert_eq!(chosen, expected.iter().map(|(e, ..)| *e).collect::<Vec<_>>(), "{}", case["name"]);
            assert_close("weights", &w, &expected.iter().map(|(_, w, _)| *w).collect::<Vec<_>>(), 1e-12);
            let dw: Vec<f64> = expected.iter().map(|(.., dw)| *dw).collect();
            let found = reference::backward(&rule, z, &chosen, &dw, &vec![0.0; experts]);
            assert_close("dlogits", &found, &dz[t * experts..(t + 1) * experts], 1e-12);
        }
        names.push(case["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "phimoe", "llama4"]);
}

#[test]
fn device_matches_reference() {
    for dev in devices() {
        for (rule, (n, experts)) in
            rules().into_iter().flat_map(|rule| [(1, 8), (67, 8), (130, 96)].map(|s| (rule, s)))
        {
            let mut random = Random::new(9);
            let z = random.tensor(DType::F32, &[n, experts]);
            let b = Tensor::from_slice(
                &random.f64s(experts).iter().map(|b| *b as f32 * 0.3).collect::<Vec<_>>(),
                &[experts],
            );
            let dw = random.tensor(DType::F32, &[n, rule.top_k]);
            let balance: Vec<f32> = random.f64s(experts).iter().map(|b| *b as f32).collect();
            // SparseMixer's choice has no correction.
            let is_mixer = matches!(rule.scoring, Scoring::SparseMixer { .. });
            let (zs, bs) = (to_f64(&z), if is_mixer { vec![0.0; experts] } else { to_f64(&b) });
            let (z, b, dws) = (z.on(&dev), b.on(&dev), to_f64(&dw));
            let (mut w, mut dz) =
                (dev.zeros(DType::F32, &[n, rule.top_k]), dev.zeros(DType::F32, &[n, experts]));
            let mut index = vec![0; n * rule.top_k];
            let correction = (!is_mixer).then(|| b.view());
            forward(&dev, &rule, z.view(), correction, w.view_mut(), &mut index);
            let dw = dw.on(&dev);
            let io = Backward {
                logits: z.view(),
                index: &index,
                dweights: dw.view(),
                balance: Some(&balance),
                dlogits: dz.view_mut(),
            };
            backward(&dev, &rule, io);
            let (w, dz, balance) =
                (to_f64(&w), to_f64(&dz), balance.iter().map(|b| f64::from(*b)).collect::<Vec<_>>());
            for t in 0..n {
                let (z, slots) = (&zs[t * experts..(t + 1) * experts], t * rule.top_k..(t + 1) * rule.top_k);
                let (chosen, weights) = reference::forward(&rule, z, &bs);
                let found: Vec<usize> = index[slots.clone()].iter().map(|e| *e as usize).collect();
                assert_eq!(found, chosen, "{rule:?} token {t}");
                assert_close("weights", &w[slots.clone()], &weights, 2e-6);
                let expected = reference::backward(&rule, z, &chosen, &dws[slots], &balance);
                assert_close("dlogits", &dz[t * experts..(t + 1) * experts], &expected, 5e-6);
            }
        }
    }
}

#[test]
fn edges_no_token_ties_and_large_logits() {
    for dev in devices() {
        let mut none = dev.zeros(DType::F32, &[0, 2]);
        forward(&dev, &PLAIN, dev.zeros(DType::F32, &[0, 4]).view(), None, none.view_mut(), &mut []);
        // The first of equal ones, and no overflow.
        let z = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 1.0, -3e4, 3e4, 3e4, -3e4], &[2, 4]).on(&dev);
        let (mut w, mut index) = (dev.zeros(DType::F32, &[2, 2]), [9; 4]);
        forward(&dev, &PLAIN, z.view(), None, w.view_mut(), &mut index);
        assert_eq!((index, w.to_f32_vec()), ([0, 1, 1, 2], vec![0.25, 0.25, 0.5, 0.5]));
        // All experts, and NaN somewhere: an index stays inside.
        let all = Rule { top_k: 4, ..PLAIN };
        let z = Tensor::from_slice(&[0.0f32, f32::NAN, 0.0, 0.0, 4.0, 3.0, 2.0, 1.0], &[2, 4]).on(&dev);
        let (mut w, mut index) = (dev.zeros(DType::F32, &[2, 4]), [9; 8]);
        forward(&dev, &all, z.view(), None, w.view_mut(), &mut index);
        assert!(index[..4].iter().all(|e| *e < 4));
        assert_eq!(index[4..], [0, 1, 2, 3]);
        assert!(w.to_f32_vec()[0].is_nan());
    }
}
