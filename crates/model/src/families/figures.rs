//! What `sft parity` measured of each family: `parity.csv` is its `--csv`, read where a page shows it.

use sft_kernels::DType;

const MEASURED: &str = include_str!("parity.csv");

/// Largest differences over the cases of a family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    pub cases: usize,
    pub logits: f64,
    pub loss: f64,
    pub gradient: f64,
    /// Of the losses of training all weights, or adapters.
    pub training: f64,
}

/// Of the cases `model_type` and `model_type__switch`; `None` if there is none.
pub(super) fn of(model_type: &str, dtype: DType) -> Option<Figures> {
    let lines = MEASURED.lines().filter_map(|line| {
        let mut cells = line.split(',');
        let case = cells.next()?.split("__").next()?;
        let is_of_it = case == model_type && cells.next()? == dtype.name();
        // An empty cell is what the case has not; anything else that is no number must not look like a good one.
        let value = |cell: &str| if cell.is_empty() { 0.0 } else { cell.parse().unwrap_or(f64::INFINITY) };
        is_of_it.then(|| cells.map(value).collect::<Vec<f64>>())
    });
    let largest = |all: Figures, one: Figures| Figures {
        cases: all.cases + one.cases,
        logits: all.logits.max(one.logits),
        loss: all.loss.max(one.loss),
        gradient: all.gradient.max(one.gradient),
        training: all.training.max(one.training),
    };
    let figures = lines.filter_map(|values| match values[..] {
        [logits, loss, gradient, ref training @ ..] => {
            let training = training.iter().copied().fold(0.0, f64::max);
            Some(Figures { cases: 1, logits, loss, gradient, training })
        }
        _ => None,
    });
    figures.reduce(largest)
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cases: _, logits, loss, gradient, training } = self;
        write!(f, "{logits:.0e} · {loss:.0e} · {gradient:.0e} · {training:.0e}")
    }
}
