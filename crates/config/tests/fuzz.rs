//! Configurations put together of good ones and of what breaks parsers, the same at every run: none may panic.
//!
//! `SFT_FUZZ_INPUTS=1000000 cargo test --release -p sft-config --test fuzz -- --nocapture` tries more.

use std::time::{Duration, Instant};

use sft_config::{Purpose, load_text};

const SEEDS: [&str; 3] = [
    "model_name_or_path: m\ndataset: a,b\noutput_dir: o\nlearning_rate: 1.0e-4\nnum_train_epochs: 3\nbf16: true\n",
    "model_name_or_path: m\ndataset: [a, b]\noutput_dir: o\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr: 1e-6\nmix_strategy: interleave_over\ninterleave_probs: 0.5,0.5\n",
    "{\"model_name_or_path\": \"m\", \"dataset\": \"d\", \"output_dir\": \"o\", \"streaming\": true, \"max_steps\": 5, \"val_size\": 10}\n",
];
const WORDS: [&str; 30] = [
    ":",
    ": ",
    "\n",
    "  ",
    "\t",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "|",
    ">",
    "\"",
    "'",
    "#",
    "---\n",
    "...\n",
    "null",
    "~",
    "1e999",
    "-1",
    "0x1f",
    "99999999999999999999",
    "\u{feff}",
    "\0",
    "template: qwen\n",
];

/// A generator of numbers: 64 bits of state (Steele and others 2014).
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[test]
fn configurations_survive_any_text() {
    let inputs = std::env::var("SFT_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000_u64);
    let (mut rng, mut good, mut longest) = (SplitMix(42), 0, Duration::ZERO);
    for _ in 0..inputs {
        let mut text: Vec<char> = SEEDS[rng.below(SEEDS.len())].chars().collect();
        for _ in 0..=rng.below(3) {
            let at = rng.below(text.len() + 1);
            match rng.below(4) {
                0 => text.truncate(at),
                1 if at < text.len() => {
                    let to = at + rng.below(text.len() - at) + 1;
                    text.drain(at..to);
                }
                _ => {
                    let word = WORDS[rng.below(WORDS.len())].repeat(1 + rng.below(9) / 8 * 60);
                    text.splice(at..at, word.chars());
                }
            }
        }
        let text: String = text.into_iter().collect();
        let begun = Instant::now();
        match load_text(&text, "fuzz.yaml", &[], Purpose::Train) {
            Ok(config) => {
                let again = load_text(&config.resolved_yaml(), "again.yaml", &[], Purpose::Train);
                let again =
                    again.unwrap_or_else(|errors| panic!("{text:?} resolves to what is refused: {errors}"));
                assert_eq!(config.resolved_yaml(), again.resolved_yaml(), "{text:?}");
                good += 1;
            }
            Err(errors) => assert!(!errors.to_string().is_empty()),
        }
        longest = longest.max(begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(10), "{text:?}");
    }
    println!("configurations: {inputs} inputs, {good} of them good, longest {longest:.0?}");
    assert!(good > inputs / 100, "{good} of {inputs} are good: too few reach what lies behind the parser");
}
