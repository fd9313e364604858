//! Shuffling a stream: a buffer that is shuffled when it is full, of which the first half then goes on.
//!
//! The order is that of Hugging Face's `IterableDataset.shuffle(buffer_size, seed)` (datasets 5.2) and its `set_epoch`.

use crate::shuffle::Pcg64;

/// The generator of a pass: the seed's own in the first.
pub(super) fn rng_of_epoch(seed: u64, epoch: u64) -> Pcg64 {
    let mut rng = Pcg64::new(seed);
    match epoch {
        0 => rng,
        epoch => Pcg64::new((rng.next_u64() >> 1).wrapping_sub(epoch)),
    }
}

/// The rows that wait.
pub(super) struct Buffer<T> {
    size: usize,
    rng: Pcg64,
    held: Vec<T>,
}

impl<T> Buffer<T> {
    /// A buffer of `size` rows from 1; `epoch` gives each pass another order.
    pub(super) fn new(size: usize, seed: u64, epoch: u64) -> Self {
        Self { size: size.max(1), rng: rng_of_epoch(seed, epoch), held: Vec::new() }
    }

    /// Takes a row; gives those that go on, mostly none.
    pub(super) fn push(&mut self, row: T) -> Vec<T> {
        self.held.push(row);
        if self.held.len() < self.size {
            return Vec::new();
        }
        let mut shuffled = self.shuffled();
        self.held = shuffled.split_off(shuffled.len() - self.size / 2);
        shuffled
    }

    /// What is left at the end.
    pub(super) fn finish(mut self) -> Vec<T> {
        self.shuffled()
    }

    /// Takes out what is held, in random order.
    fn shuffled(&mut self) -> Vec<T> {
        let mut held: Vec<Option<T>> = std::mem::take(&mut self.held).into_iter().map(Some).collect();
        self.rng.permutation(held.len()).into_iter().filter_map(|place| held[place].take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::mix::tests::GOLDENS;
    use super::*;

    #[test]
    fn a_stream_is_shuffled_as_one_of_hugging_face() {
        let goldens: Value = serde_json::from_str(GOLDENS).expect("the file of the test");
        for case in goldens["shuffles"].as_array().expect("cases") {
            let number = |key: &str| case[key].as_u64().expect("a number");
            let mut buffer = Buffer::new(number("buffer_size") as usize, number("seed"), 0);
            let mut order: Vec<u64> = (0..number("rows")).flat_map(|row| buffer.push(row)).collect();
            order.extend(buffer.finish());
            let expected: Vec<u64> = serde_json::from_value(case["order"].clone()).expect("numbers");
            assert_eq!(order[..expected.len()], expected, "{case}");
        }
    }

    #[test]
    fn every_pass_has_an_order_of_its_own_and_every_row_once() {
        let pass = |epoch| {
            let mut buffer = Buffer::new(7, 42, epoch);
            let mut order: Vec<u32> = (0..50).flat_map(|row| buffer.push(row)).collect();
            order.extend(buffer.finish());
            order
        };
        assert_ne!(pass(0), pass(1));
        assert_eq!(pass(1), pass(1));
        let mut sorted = pass(2);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..50));
    }
}
