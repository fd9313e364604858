//! Seeded permutations: the order of rows in an epoch, and which rows are held out.
//!
//! In: a number of rows and a seed. Out: every row index once, in an order that depends on nothing
//! else, so a cursor into an epoch is two numbers and the same on every platform.
//!
//! Two generators are written out, because two published orders are worth reproducing:
//! - [`permutation`]: the order in which Hugging Face's `Trainer` visits rows, that is
//!   `torch.randperm` with the seed `seed + epoch` (MT19937, Matsumoto & Nishimura 1998);
//! - [`Pcg64`]: NumPy's `default_rng(seed)` (PCG-XSL-RR-128/64, O'Neill 2014, seeded by
//!   `SeedSequence`), which `datasets.Dataset.train_test_split` uses for `val_size`.

/// The order of `n` rows in the epoch `epoch`: `torch.randperm(n)` with `manual_seed(seed + epoch)`.
///
/// Equal to torch for fewer than 214,748,364 rows (torch changes its method there).
pub fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut words = Mt19937::new(seed.wrapping_add(epoch));
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        let left = (n - i) as u64;
        // One 32-bit word is uniform enough while `left` is far below 2^32, as in torch.
        let word = if n < (u32::MAX / 20) as usize {
            u64::from(words.next_u32())
        } else {
            u64::from(words.next_u32()) << 32 | u64::from(words.next_u32())
        };
        order.swap(i, i + (word % left) as usize);
    }
    order
}

/// The Mersenne Twister of 32-bit words, as in torch's CPU generator (the seed's low 32 bits count).
#[derive(Debug)]
pub struct Mt19937 {
    state: [u32; Self::WORDS],
    next: usize,
}

impl Mt19937 {
    const WORDS: usize = 624;
    const SHIFT: usize = 397;

    /// The generator of `torch.manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0_u32; Self::WORDS];
        state[0] = seed as u32;
        for i in 1..Self::WORDS {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::WORDS }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == Self::WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..Self::WORDS {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::SHIFT) % Self::WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// NumPy's `default_rng(seed)`: the same seed gives the same numbers as NumPy 1.17 and later.
#[derive(Debug, Clone)]
pub struct Pcg64 {
    state: u128,
    increment: u128,
    /// Upper half of the last 64-bit word, kept for the next 32-bit draw.
    half: Option<u32>,
}

impl Pcg64 {
    const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

    /// The generator that `numpy.random.default_rng(seed)` makes.
    pub fn new(seed: u64) -> Self {
        let [a, b, c, d] = seed_sequence(seed);
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let mut rng = Self { state: 0, increment: join(c, d) << 1 | 1, half: None };
        rng.step();
        rng.state = rng.state.wrapping_add(join(a, b));
        rng.step();
        rng
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(Self::MULTIPLIER).wrapping_add(self.increment);
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// The next 32 random bits: the lower, then the upper half of a 64-bit word.
    pub fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let word = self.next_u64();
        self.half = Some((word >> 32) as u32);
        word as u32
    }

    /// A number in `0..=max`, each equally likely: words cut to the bits of `max` until one is not
    /// above it (NumPy's `random_interval`, the draw behind its shuffles).
    pub fn at_most(&mut self, max: u64) -> u64 {
        let mask = u64::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let word = match max {
                0 => 0,
                1..=0xffff_ffff => u64::from(self.next_u32()),
                _ => self.next_u64(),
            };
            if word & mask <= max {
                return word & mask;
            }
        }
    }

    /// A number from 0 up to 1: NumPy's `Generator.random()`.
    pub fn random(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `0..n` in random order: NumPy's `Generator.permutation(n)`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.at_most(i as u64) as usize);
        }
        order
    }
}

/// NumPy's `SeedSequence(seed).generate_state(4, uint64)` for a seed of at most 64 bits.
fn seed_sequence(seed: u64) -> [u64; 4] {
    const POOL: usize = 4;
    let fold = |x: u32| x ^ (x >> 16);
    let mut multiplier = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ multiplier;
        multiplier = multiplier.wrapping_mul(0x931e_8875);
        fold(value.wrapping_mul(multiplier))
    };
    let mut pool = [hash(seed as u32), hash((seed >> 32) as u32), hash(0), hash(0)];
    for from in 0..POOL {
        for to in 0..POOL {
            if from != to {
                let mixed = hash(pool[from]);
                pool[to] = fold(
                    0xca01_f9dd_u32.wrapping_mul(pool[to]).wrapping_sub(0x4973_f715_u32.wrapping_mul(mixed)),
                );
            }
        }
    }
    let mut multiplier = 0x8b51_f9dd_u32;
    let mut word = |i: usize| {
        let value = pool[i % POOL] ^ multiplier;
        multiplier = multiplier.wrapping_mul(0x58f3_8ded);
        u64::from(fold(value.wrapping_mul(multiplier)))
    };
    std::array::from_fn(|i| {
        let low = word(2 * i);
        low | word(2 * i + 1) << 32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Values printed by torch 2.11: `torch.randperm(n, generator=Generator().manual_seed(s))`.
    #[test]
    fn epoch_order_is_torch_randperm() {
        assert_eq!(permutation(10, 42, 0), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
        assert_eq!(permutation(1000, 42, 1)[..10], [588, 148, 223, 575, 689, 935, 932, 343, 601, 869]);
        assert_eq!(permutation(5, (1 << 40) + 3, 0), [1, 0, 3, 4, 2]);
    }

    // Values printed by numpy 2.4: `numpy.random.default_rng(seed).permutation(n)`.
    #[test]
    fn split_order_is_numpy_default_rng() {
        assert_eq!(Pcg64::new(42).permutation(10), [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
        assert_eq!(Pcg64::new(0).permutation(7), [2, 4, 3, 6, 5, 0, 1]);
        assert_eq!(Pcg64::new((1 << 40) + 3).permutation(5), [0, 2, 1, 3, 4]);
        assert_eq!(Pcg64::new(42).permutation(1000)[..8], [978, 933, 859, 916, 127, 608, 856, 260]);
    }

    #[test]
    fn every_row_appears_once() {
        for n in [0, 1, 2, 623, 624, 625, 5000] {
            for order in [permutation(n, 7, 3), Pcg64::new(7).permutation(n)] {
                let mut sorted = order;
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..n), "{n}");
            }
        }
    }

    #[test]
    fn bounds_of_a_draw_are_inclusive() {
        let mut rng = Pcg64::new(1);
        assert_eq!(rng.at_most(0), 0);
        let mut seen = [false; 3];
        for _ in 0..64 {
            seen[rng.at_most(2) as usize] = true;
        }
        assert_eq!(seen, [true; 3]);
        assert!(rng.at_most(1 << 40) <= 1 << 40);
    }
}
