//! The same on a GPU, all weights in one launch for each kind of state: `update.cu`.

use super::blocks::{Blocks, table};
use super::{Constants, Factors, MOST_GROUPS, MOST_STATES, Rule, States, Update};
use crate::cuda::{Cuda, DevicePtr, Params, Source};
use crate::halves::MasterWeight;
use crate::tensor_table::TensorTable;
use crate::{Device, ViewMut};

pub(crate) static SOURCE: Source = Source::new(
    "update",
    concat!(
        include_str!("../halves.cuh"),
        include_str!("../tensor_table.cuh"),
        "\n#line 1 \"update.cu\"\n",
        include_str!("update.cu")
    ),
);

#[derive(Clone, Copy)]
#[repr(C)]
struct Launch {
    tensors: DevicePtr,
    /// Values of codes: of each state.
    tables: [DevicePtr; MOST_STATES],
    constants: Constants,
    factors: [Factors; MOST_GROUPS],
    count: u32,
}

// SAFETY: the struct of the kernel; the table has `count` rows of its struct, whose lengths were checked.
unsafe impl Params for Launch {}

pub(super) fn update_all<'a, R: Rule<S>, const S: usize>(
    (dev, cuda): (&Device, &Cuda),
    constants: &Constants,
    factors: &[Factors],
    updates: impl Iterator<Item = Update<'a, S>>,
) {
    let (mut whole, mut blocks) = (TensorTable::default(), TensorTable::default());
    for Update { g, mut p, states, group } in updates {
        let n = g.elements();
        let (p, low) = match &mut p {
            MasterWeight::Whole(p) => (p.device(), DevicePtr::NULL),
            MasterWeight::Halves { high, low } => (high.device(), low.device()),
        };
        let [g, p, low] = [g.device(), p, low].map(DevicePtr::address);
        let (values, scales, table) = match states {
            States::Whole(states) => {
                (of_each(states, |mut state: ViewMut<'_>| state.device()), [0; MOST_STATES], &mut whole)
            }
            States::Blocks(states) => {
                let mut scales = [0; MOST_STATES];
                let mut at = scales.iter_mut();
                let values = of_each(states, |Blocks { mut codes, mut absmax, .. }| {
                    if let Some(scale) = at.next() {
                        *scale = absmax.device().address();
                    }
                    codes.device()
                });
                (values, scales, &mut blocks)
            }
        };
        let [a, b, c] = values;
        let [x, y, z] = scales;
        table.push(n, [g, p, low, a, b, c, x, y, z, group as u64]);
    }
    let _timed = dev.pass(R::NAME, (3 + 2 * S) * (whole.bytes() + blocks.bytes()));
    let mut padded = [[0.0; 4]; MOST_GROUPS];
    padded[..factors.len()].copy_from_slice(factors);
    for (table, kernel, in_blocks) in [(whole, R::KERNEL, false), (blocks, R::KERNEL_OF_BLOCKS, true)] {
        if table.tensors() == 0 {
            continue;
        }
        let mut tables = [DevicePtr::NULL; MOST_STATES];
        if in_blocks {
            tables.iter_mut().zip(R::SIGNED).for_each(|(at, signed)| *at = cuda.values(self::table(signed)));
        }
        let params = Launch {
            tensors: cuda.indices(table.words()),
            tables,
            constants: *constants,
            factors: padded,
            count: table.tensors(),
        };
        cuda.launch(&SOURCE, kernel, &[], table.grid(), params);
    }
}

/// Addresses of the states, the rest 0.
fn of_each<T, const S: usize>(states: [T; S], mut address: impl FnMut(T) -> DevicePtr) -> [u64; MOST_STATES] {
    let mut addresses = [0; MOST_STATES];
    addresses.iter_mut().zip(states).for_each(|(at, state)| *at = address(state).address());
    addresses
}
