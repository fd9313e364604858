//! Which runs end with the same bits: whatever the number of threads and with or without recomputation on every instruction
//! set; from one instruction set to another that is not promised, since sums are made in other orders.

use std::collections::BTreeMap;

use crate::place::{Place, digest, text};

#[test]
fn every_instruction_set_ends_with_the_same_bits_on_one_thread_and_two_with_and_without_recomputation() {
    let place = Place::new("max_steps: 3\nsave_strategy: 'no'\ngradient_accumulation_steps: 6\n");
    let mut by_set = BTreeMap::new();
    for set in ["portable", "neon", "avx2", "avx512", "avx512bf16", "amx"] {
        for bf16 in ["false", "true"] {
            let bf16 = format!("bf16={bf16}");
            let mut digests = Vec::new();
            for (threads, kept) in [("threads=1", "true"), ("threads=2", "true"), ("threads=1", "false")] {
                let kept = format!("disable_gradient_checkpointing={kept}");
                let keys = [threads, bf16.as_str(), kept.as_str(), "overwrite_output_dir=true"];
                let run = place.train("out", &keys).env("SFT_CPU", set).output().unwrap();
                if text(&run).contains("this CPU has none of it") || text(&run).contains("more threads than")
                {
                    continue;
                }
                assert!(run.status.success(), "{set} {keys:?}: {}", text(&run));
                digests.push(digest(&run));
            }
            assert!(digests.windows(2).all(|two| two[0] == two[1]), "{set} {bf16}: {digests:?}");
            if let Some(first) = digests.pop() {
                by_set.insert(format!("{set} {bf16}"), first[..12].to_owned());
            }
        }
    }
    assert!(by_set.len() >= 2, "{by_set:?}");
    println!("digests by instruction set, not promised to be equal: {by_set:?}");
}
