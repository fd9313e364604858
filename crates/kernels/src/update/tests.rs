use super::rules::{AdEMAMix, AdamW, Average, Lion, Momentum, Replace, ScheduleFree, Sgd};
use super::*;
use crate::Tensor;
use crate::adamw::AdamWParams;
use crate::halves::Halves;
use crate::testing::{Random, assert_close, devices, to_f64};

const GROUPS: [Group; 2] =
    [Group { learning_rate: 0.01, weight_decay: 0.1 }, Group { learning_rate: 0.02, weight_decay: 0.0 }];
/// Of weights that begin and end inside of vectors, blocks and chunks.
const SIZES: [usize; 5] = [3, CHUNK, 1, 2 * CHUNK + 263, 256];

fn params(step: u64) -> AdamWParams {
    AdamWParams { learning_rate: 0.0, beta1: 0.9, beta2: 0.95, eps: 1e-8, step, grad_scale: 0.5 }
}

/// A weight with its states.
struct Weight {
    g: Tensor,
    whole: Tensor,
    halves: Halves,
    states: [Vec<Tensor>; 2],
    blocks: Vec<[Tensor; 2]>,
    in_blocks: Tensor,
}

impl Weight {
    fn new(dev: &Device, random: &mut Random, n: usize, states: usize) -> Self {
        let mut tensor = || random.tensor(DType::F32, &[n]);
        let (g, p) = (tensor(), tensor());
        let zeros = || (0..states).map(|_| dev.zeros(DType::F32, &[n])).collect();
        let [codes, scales] = blocks::shapes(n);
        let in_blocks =
            (0..states).map(|_| [dev.zeros(DType::BF16, &[codes]), dev.zeros(DType::F32, &[scales])]);
        Self {
            g: g.on(dev),
            halves: Halves::of(p.to_dtype(DType::F32).on(dev)),
            in_blocks: p.to_dtype(DType::F32).on(dev),
            whole: p.on(dev),
            states: [zeros(), zeros()],
            blocks: in_blocks.collect(),
        }
    }
}

fn states_of<const S: usize>(states: &mut [Tensor]) -> States<'_, S> {
    let views: Vec<ViewMut<'_>> = states.iter_mut().map(Tensor::view_mut).collect();
    States::Whole(views.try_into().unwrap())
}

fn blocks_of<const S: usize>(states: &mut [[Tensor; 2]], elements: usize) -> States<'_, S> {
    let blocks = states.iter_mut().map(|[codes, absmax]| Blocks {
        codes: codes.view_mut(),
        absmax: absmax.view_mut(),
        elements,
    });
    States::Blocks(blocks.collect::<Vec<_>>().try_into().unwrap())
}

/// Three updates of weights of all sizes, whole, in halves, and with states of 8 bits where the rule has them.
fn weights_after<R: Rule<S>, const S: usize>(dev: &Device, rule: impl Fn(u64) -> R) -> Vec<Weight> {
    let mut random = Random::new(5);
    let mut weights: Vec<Weight> = SIZES.iter().map(|n| Weight::new(dev, &mut random, *n, S)).collect();
    for step in 1..=3 {
        let updates = weights.iter_mut().enumerate().flat_map(|(i, weight)| {
            let (group, elements) = (i % 2, weight.g.elements());
            let [states, of_halves] = &mut weight.states;
            let update = |p, states| Update { g: weight.g.view(), p, states, group };
            let whole = update(MasterWeight::Whole(weight.whole.view_mut()), states_of(states));
            let halves = update(weight.halves.master(), states_of(of_halves));
            let blocks = (!R::KERNEL_OF_BLOCKS.is_empty()).then(|| {
                let p = MasterWeight::Whole(weight.in_blocks.view_mut());
                update(p, blocks_of(&mut weight.blocks, elements))
            });
            [whole, halves].into_iter().chain(blocks)
        });
        update_all(dev, &rule(step), &GROUPS, updates);
    }
    weights
}

/// Every device and every form of a weight comes to what the formula in f64 comes to.
fn check<R: Rule<S>, const S: usize>(
    rule: impl Fn(u64) -> R,
    formula: impl Fn(u64, Group, f64, &mut f64, &mut [f64; S]),
) {
    for dev in devices() {
        let mut random = Random::new(5);
        for (i, weight) in weights_after(&dev, &rule).iter().enumerate() {
            let mut draw = || to_f64(&random.tensor(DType::F32, &[SIZES[i]]));
            let (g, mut expected) = (draw(), draw());
            let mut states = vec![[0.0; S]; SIZES[i]];
            for step in 1..=3 {
                for ((g, p), states) in g.iter().zip(&mut expected).zip(&mut states) {
                    formula(step, GROUPS[i % 2], g * 0.5, p, states);
                }
            }
            assert_close(R::NAME, &to_f64(&weight.whole), &expected, 2e-6);
            assert_eq!(
                weight.halves.to_host().to_f32_vec(),
                weight.whole.to_f32_vec(),
                "{} in halves",
                R::NAME
            );
            if !R::KERNEL_OF_BLOCKS.is_empty() {
                // 8 bits keep about two digits of a state, and a sign can turn where it is small.
                let found = to_f64(&weight.in_blocks);
                let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let mean = off.sum::<f64>() / SIZES[i] as f64;
                assert!(mean < 2e-3, "{} in 8 bits: {mean} off", R::NAME);
            }
        }
    }
}

#[test]
fn sgd_is_its_formula() {
    check(
        |_| Sgd { grad_scale: 0.5 },
        |_, group, g, p, []| *p -= group.learning_rate * (g + group.weight_decay * *p),
    );
}

#[test]
fn momentum_is_its_formula() {
    for nesterov in [false, true] {
        check(
            |step| Momentum { grad_scale: 0.5, momentum: 0.9, dampening: 0.1, nesterov, step },
            |step, group, g, p, [m]| {
                let g = g + group.weight_decay * *p;
                *m = if step == 1 { g } else { 0.9 * *m + 0.9 * g };
                *p -= group.learning_rate * if nesterov { g + 0.9 * *m } else { *m };
            },
        );
    }
}

#[test]
fn adamw_is_its_formula() {
    check(
        |step| AdamW(params(step)),
        |step, group, g, p, [m, v]| {
            (*m, *v) = (0.9 * *m + 0.1 * g, 0.95 * *v + 0.05 * g * g);
            let [c1, c2] = [0.9f64, 0.95].map(|beta| 1.0 - beta.powi(step as i32));
            *p *= 1.0 - group.learning_rate * group.weight_decay;
            *p -= group.learning_rate * (*m / c1) / ((*v / c2).sqrt() + 1e-8);
        },
    );
}

#[test]
fn lion_is_its_formula() {
    check(
        |_| Lion { grad_scale: 0.5, beta1: 0.9, beta2: 0.99 },
        |_, group, g, p, [m]| {
            let direction = 0.9 * *m + 0.1 * g;
            *p *= 1.0 - group.learning_rate * group.weight_decay;
            *p -= group.learning_rate * if direction == 0.0 { 0.0 } else { direction.signum() };
            *m = 0.99 * *m + 0.01 * g;
        },
    );
}

#[test]
fn ademamix_is_its_formula() {
    check(
        |step| AdEMAMix { grad_scale: 0.5, betas: [0.9, 0.95, 0.99], alpha: 5.0, eps: 1e-8, step },
        |step, group, g, p, [fast, slow, v]| {
            (*fast, *slow) = (0.9 * *fast + 0.1 * g, 0.99 * *slow + 0.01 * g);
            *v = 0.95 * *v + 0.05 * g * g;
            let [c1, c2] = [0.9f64, 0.95].map(|beta| 1.0 - beta.powi(step as i32));
            *p *= 1.0 - group.learning_rate * group.weight_decay;
            *p -= group.learning_rate * (*fast / c1 + 5.0 * *slow) / ((*v / c2).sqrt() + 1e-8);
        },
    );
}

#[test]
fn schedule_free_is_its_formula() {
    check(
        |step| ScheduleFree {
            grad_scale: 0.5,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            share: 1.0 / step as f64,
            step,
        },
        |step, group, g, y, [z, v]| {
            *v = 0.95 * *v + 0.05 * g * g;
            let (lr, c) = (group.learning_rate, 1.0 / step as f64);
            let d = g / ((*v / (1.0 - 0.95f64.powi(step as i32))).sqrt() + 1e-8) + group.weight_decay * *y;
            *y += c * (*z - *y) + lr * (0.9 * (1.0 - c) - 1.0) * d;
            *z -= lr * d;
        },
    );
}

#[test]
fn the_average_takes_the_weights_place_and_gives_it_back() {
    for dev in devices() {
        let mut random = Random::new(7);
        let n = CHUNK + 5;
        let mut draw = || random.tensor(DType::F32, &[n]);
        let (y, z) = (draw(), draw().on(&dev));
        let (mut p, mut kept) = (Halves::of(y.to_dtype(DType::F32).on(&dev)), dev.zeros(DType::F32, &[n]));
        let states = States::Whole([kept.view_mut()]);
        let update = Update { g: z.view(), p: p.master(), states, group: 0 };
        update_all(&dev, &Average { beta1: 0.9 }, &GROUPS, std::iter::once(update));
        let pairs = to_f64(&y).into_iter().zip(to_f64(&z));
        let expected: Vec<f64> = pairs.map(|(y, z)| y + (1.0 - 1.0 / 0.9) * (z - y)).collect();
        assert_close("average", &to_f64(&p.to_host()), &expected, 1e-6);
        let update = Update { g: kept.view(), p: p.master(), states: States::Whole([]), group: 0 };
        update_all(&dev, &Replace, &GROUPS, std::iter::once(update));
        assert_eq!(p.to_host().to_f32_vec(), y.to_f32_vec());
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let after = |threads| {
        let dev = Device::cpu(crate::CpuOptions { threads: Some(threads), isa: None }).unwrap();
        let weights = weights_after(&dev, |step| AdamW(params(step)));
        weights.iter().map(|w| (w.whole.to_f32_vec(), w.in_blocks.to_f32_vec())).collect::<Vec<_>>()
    };
    assert_eq!(after(1), after(2));
}
