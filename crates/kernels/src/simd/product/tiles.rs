//! Products in the registers of AMX: blocks of 32 rows, or of the 16 that are left, by 32 columns.

use super::{Checked, Size};
use crate::amx::{ROW, RUN, SIDE, Steps, Tiles, add_products, load_sums, store_sums};

/// Rows, columns and steps that a product is made of.
pub(crate) const BLOCK: [usize; 3] = [SIDE, 2 * SIDE, RUN];

/// The whole product.
pub(super) fn multiply(_: &Tiles, product: Checked<'_>) {
    let Checked { size: Size { rows, columns, steps }, a, b, c } = product;
    assert!([rows, columns, steps].iter().zip(BLOCK).all(|(size, block)| size.is_multiple_of(block)));
    assert_eq!(a.step, 1, "tiles read whole rows");
    let bytes = |words: usize| words * size_of::<f32>();
    for i in (0..rows).step_by(2 * SIDE) {
        for j in (0..columns).step_by(2 * SIDE) {
            let low = a.words.as_ptr().wrapping_add(i * a.row).cast::<u8>();
            let steps = Steps {
                low,
                high: low.wrapping_add(SIDE * bytes(a.row)),
                row: bytes(a.row),
                step: ROW,
                columns: b.words.as_ptr().wrapping_add(j).cast(),
                word: bytes(b.step),
                left: steps / RUN,
            };
            let sums = c.values.as_mut_ptr().wrapping_add(i * c.row + j);
            // SAFETY: the registers are held, and a checked product's factors and result reach as far as its size.
            unsafe {
                if i + SIDE < rows {
                    load_sums::<true>(sums, bytes(c.row), c.accumulate);
                    add_products::<true>(steps);
                    store_sums::<true>(sums, bytes(c.row));
                } else {
                    load_sums::<false>(sums, bytes(c.row), c.accumulate);
                    add_products::<false>(steps);
                    store_sums::<false>(sums, bytes(c.row));
                }
            }
        }
    }
}
