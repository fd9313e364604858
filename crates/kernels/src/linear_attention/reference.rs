//! The definition, in f64: token by token, as the formula stands; its gradient the same way back.

use super::Rule;

pub struct Case<'a> {
    pub rule: Rule,
    pub scales: [f64; 2],
    /// K, H, D, E.
    pub sizes: [usize; 4],
    pub starts: &'a [u32],
}

/// q, k, v, step, decay, skip.
pub type Values = [Vec<f64>; 6];

/// One token of a head.
struct Token {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    step: f64,
    alpha: f64,
}

impl Case<'_> {
    fn token(&self, x: &Values, t: usize, h: usize) -> Token {
        let [keys, heads, d, e] = self.sizes;
        let key = (t * keys + h / (heads / keys)) * d;
        let of = |x: &[f64], scale: f64| x[key..key + d].iter().map(|x| x * scale).collect();
        Token {
            q: of(&x[0], self.scales[0]),
            k: of(&x[1], self.scales[1]),
            v: x[2][(t * heads + h) * e..][..e].to_vec(),
            step: x[3][t * heads + h],
            alpha: x[4][t * heads + h].exp(),
        }
    }

    /// What the step multiplies.
    fn news(&self, token: &Token, state: &[f64]) -> Vec<f64> {
        let [.., e] = self.sizes;
        let known = |j: usize| -> f64 {
            let rows = state.iter().skip(j).step_by(e).zip(&token.k);
            token.alpha * rows.map(|(s, k)| s * k).sum::<f64>()
        };
        let is_delta = self.rule == Rule::Delta;
        (0..e).map(|j| token.v[j] - if is_delta { known(j) } else { 0.0 }).collect()
    }

    fn next(&self, token: &Token, state: &[f64]) -> Vec<f64> {
        let [.., e] = self.sizes;
        let new = self.news(token, state);
        let term = |i: usize| token.alpha * state[i] + token.k[i / e] * token.step * new[i % e];
        (0..state.len()).map(term).collect()
    }

    /// out, and the state behind the last row.
    pub fn forward(&self, x: &Values, state: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
        let [_, heads, d, e] = self.sizes;
        let (mut out, mut last) = (vec![0.0; x[2].len()], Vec::new());
        for h in 0..heads {
            for row in self.starts.windows(2) {
                let given = state.map(|state| state[h * d * e..(h + 1) * d * e].to_vec());
                let mut state = given.unwrap_or_else(|| vec![0.0; d * e]);
                for t in row[0] as usize..row[1] as usize {
                    let token = self.token(x, t, h);
                    state = self.next(&token, &state);
                    for j in 0..e {
                        let read: f64 = (0..d).map(|i| state[i * e + j] * token.q[i]).sum();
                        out[(t * heads + h) * e + j] = read + x[5][h] * token.v[j];
                    }
                }
                if row[1] == self.starts[self.starts.len() - 1] {
                    last.extend(state);
                }
            }
        }
        (out, last)
    }

    /// The gradients of all six.
    pub fn backward(&self, x: &Values, dout: &[f64]) -> Values {
        let [keys, heads, d, e] = self.sizes;
        let mut dx = [0, 1, 2, 3, 4, 5].map(|i| vec![0.0; x[i].len()]);
        for h in 0..heads {
            for row in self.starts.windows(2) {
                let tokens = row[0] as usize..row[1] as usize;
                let mut states = vec![vec![0.0; d * e]];
                for t in tokens.clone() {
                    states.push(self.next(&self.token(x, t, h), states.last().unwrap()));
                }
                let mut ds = vec![0.0; d * e];
                for t in tokens.rev() {
                    let (before, after) = (&states[t - row[0] as usize], &states[t + 1 - row[0] as usize]);
                    let token = self.token(x, t, h);
                    let (gate, key) = (t * heads + h, (t * keys + h / (heads / keys)) * d);
                    let dout = &dout[gate * e..][..e];
                    for i in 0..d {
                        for j in 0..e {
                            dx[0][key + i] += self.scales[0] * after[i * e + j] * dout[j];
                            ds[i * e + j] += token.q[i] * dout[j];
                        }
                    }
                    let new = self.news(&token, before);
                    let mut dalpha = 0.0;
                    for j in 0..e {
                        // Of what is added to the state's column j.
                        let column: f64 = (0..d).map(|i| ds[i * e + j] * token.k[i]).sum();
                        dx[2][gate * e + j] += x[5][h] * dout[j] + token.step * column;
                        dx[3][gate] += new[j] * column;
                        dx[5][h] += dout[j] * token.v[j];
                        let known: f64 = (0..d).map(|i| before[i * e + j] * token.k[i]).sum();
                        let dknown = if self.rule == Rule::Delta { -token.step * column } else { 0.0 };
                        for i in 0..d {
                            dx[1][key + i] += self.scales[1]
                                * (ds[i * e + j] * token.step * new[j]
                                    + dknown * token.alpha * before[i * e + j]);
                            dalpha += ds[i * e + j] * before[i * e + j];
                        }
                        dalpha += dknown * known;
                        for i in 0..d {
                            ds[i * e + j] = token.alpha * (ds[i * e + j] + dknown * token.k[i]);
                        }
                    }
                    dx[4][gate] += dalpha * token.alpha;
                }
            }
        }
        dx
    }
}
