//! `total_flos` is what transformers' trainer would have written.

use sft_config::{Purpose, load_text};
use sft_train::Job;

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../quickstart");

fn flops_per_token(method: &str) -> f64 {
    let text = format!(
        "model_name_or_path: {QUICKSTART}/base\ndataset_dir: {QUICKSTART}/data\ndataset: quickstart_train\n\
         max_samples: 2\noutput_dir: unused\nfinetuning_type: {method}\nlora_rank: 8\nlora_target: all\n"
    );
    let config = load_text(&text, "test.yaml", &[], Purpose::Train).unwrap();
    Job::prepare(config).unwrap().flops_per_token()
}

/// Expected: 6 × `model.num_parameters(exclude_embeddings=True)` of transformers 5.6, with PEFT 0.18's adapter.
#[test]
fn a_token_costs_six_operations_for_each_weight_outside_of_the_embedding() {
    assert_eq!(flops_per_token("full"), 6.0 * 1_574_848.0);
    assert_eq!(flops_per_token("lora"), 6.0 * 1_683_392.0);
}
