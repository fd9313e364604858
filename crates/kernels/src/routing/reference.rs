//! Routing as it is defined, in f64.

use super::{Rule, Scoring};

/// The chosen experts, best first, and their weights, of one token.
pub fn forward(rule: &Rule, z: &[f64], correction: &[f64]) -> (Vec<usize>, Vec<f64>) {
    let chosen = choice(rule, z, correction);
    let w = weights(rule, z, &chosen);
    (chosen, w)
}

fn scores(rule: &Rule, z: &[f64]) -> Vec<f64> {
    match rule.scoring {
        Scoring::Sigmoid => z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
        Scoring::Softmax => softmax(z),
        Scoring::SparseMixer { .. } => z.to_vec(),
    }
}

pub fn softmax(z: &[f64]) -> Vec<f64> {
    let sum: f64 = z.iter().map(|z| z.exp()).sum();
    z.iter().map(|z| z.exp() / sum).collect()
}

fn choice(rule: &Rule, z: &[f64], correction: &[f64]) -> Vec<usize> {
    let mut by = scores(rule, z);
    by.iter_mut().zip(correction).for_each(|(s, b)| *s += b);
    let mut allowed: Vec<usize> = (0..z.len()).collect();
    if let Some(groups) = rule.groups {
        let size = z.len() / groups.count;
        let worth = |group: usize| {
            let mut inside = by[group * size..(group + 1) * size].to_vec();
            inside.sort_by(|a, b| b.total_cmp(a));
            inside[..groups.best].iter().sum::<f64>()
        };
        let mut order: Vec<usize> = (0..groups.count).collect();
        order.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)));
        allowed.retain(|expert| order[..groups.chosen].contains(&(expert / size)));
    }
    allowed.sort_by(|a, b| by[*b].total_cmp(&by[*a]));
    allowed.truncate(rule.top_k);
    allowed
}

/// The weights of a given choice: what gradients are of.
pub fn weights(rule: &Rule, z: &[f64], chosen: &[usize]) -> Vec<f64> {
    let mut w: Vec<f64> = match rule.scoring {
        Scoring::SparseMixer { tolerance } => {
            let of = |j: usize| {
                let top = z[chosen[j]];
                let left = (0..z.len()).filter(|e| !chosen[..j].contains(e)).map(|e| z[e]);
                let near = left.filter(|z| (top - z) / z.abs().max(top) <= f64::from(tolerance));
                top.exp() / near.map(f64::exp).sum::<f64>()
            };
            (0..chosen.len()).map(of).collect()
        }
        _ => chosen.iter().map(|e| scores(rule, z)[*e]).collect(),
    };
    let sum = if rule.normalised { w.iter().sum() } else { 1.0 };
    w.iter_mut().for_each(|w| *w *= f64::from(rule.scale) / sum);
    w
}

/// dz of one token: the chain rule through [`weights`] by its definition, and of the balance.
pub fn backward(rule: &Rule, z: &[f64], chosen: &[usize], dw: &[f64], balance: &[f64]) -> Vec<f64> {
    let scale = f64::from(rule.scale);
    let mut dz = vec![0.0; z.len()];
    match rule.scoring {
        Scoring::SparseMixer { tolerance } => {
            for (j, best) in chosen.iter().enumerate() {
                let top = z[*best];
                let is_near = |e: &usize| {
                    !chosen[..j].contains(e) && (top - z[*e]) / z[*e].abs().max(top) <= f64::from(tolerance)
                };
                let near: Vec<usize> = (0..z.len()).filter(is_near).collect();
                let p = softmax(&near.iter().map(|e| z[*e]).collect::<Vec<_>>());
                let of_best = p[near.iter().position(|e| e == best).unwrap()];
                for (e, p) in near.iter().zip(&p) {
                    dz[*e] += scale * dw[j] * of_best * (f64::from(u8::from(e == best)) - p);
                }
            }
        }
        _ => {
            let s = scores(rule, z);
            let sum: f64 = if rule.normalised { chosen.iter().map(|e| s[*e]).sum() } else { 1.0 };
            let shared: f64 = chosen.iter().zip(dw).map(|(e, dw)| dw * s[*e] / sum).sum();
            let mut g = vec![0.0; z.len()];
            for (e, dw) in chosen.iter().zip(dw) {
                g[*e] = scale * (dw - if rule.normalised { shared } else { 0.0 }) / sum;
            }
            if rule.scoring == Scoring::Sigmoid {
                dz = g.iter().zip(&s).map(|(g, s)| g * s * (1.0 - s)).collect();
            } else {
                add_through_softmax(&s, &g, &mut dz);
            }
        }
    }
    add_through_softmax(&softmax(z), balance, &mut dz);
    dz
}

fn add_through_softmax(s: &[f64], g: &[f64], dz: &mut [f64]) {
    let mean: f64 = g.iter().zip(s).map(|(g, s)| g * s).sum();
    dz.iter_mut().zip(g.iter().zip(s)).for_each(|(dz, (g, s))| *dz += s * (g - mean));
}
