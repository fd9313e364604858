//! Keys about generation: how the next token is picked, by `sft chat` and wherever a run answers rows.

macro_rules! generation_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "Generation" {
        /// Draw the next token by its probability; false takes the most likely one.
        do_sample: bool { default: true, read_by: "infer::sample" }
        /// Divides the logits before drawing; 0 is the same as `do_sample: false`.
        temperature: f64 { default: 0.95, range: Range::at_least(0.0), read_by: "infer::sample" }
        /// Draw from the most likely tokens that together have this probability.
        top_p: f64 { default: 0.7, range: Range::above_to(0.0, 1.0), read_by: "infer::sample" }
        /// Draw from so many of the most likely tokens; 0 is all.
        top_k: usize { default: 50, read_by: "infer::sample" }
        /// Longest answer in tokens; 0 lets `max_length` decide.
        max_new_tokens: usize { default: 1024, read_by: "infer::generate" }
        /// Longest prompt and answer together, read when `max_new_tokens` is 0.
        max_length: usize { default: 1024, range: Range::at_least(1.0), read_by: "infer::generate" }
        /// Above 1, tokens already present become less likely.
        repetition_penalty: f64 { default: 1.0, range: Range::above(0.0), read_by: "infer::sample" }
        /// Leave special tokens out of the answer.
        skip_special_tokens: bool { default: true, read_by: "infer::generate" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] =
    &[(&["length_penalty"], "read only by beam search, which is not built")];

pub(super) const NOT_YET: &[super::NotYetKey] = &[
    ("eval_num_beams", "1", "leave it out: answers are drawn token by token (`do_sample`)"),
    ("num_beams", "1", "leave it out: answers are drawn token by token (`do_sample`)"),
    ("task", "null", "leave it out: LLaMA-Factory's own `eval` command is gone too"),
    ("task_dir", "evaluation", "leave it out: LLaMA-Factory's own `eval` command is gone too"),
    ("batch_size", "null", "use `per_device_train_batch_size`, `per_device_eval_batch_size`"),
    ("lang", "en", "leave it out: LLaMA-Factory's own `eval` command is gone too"),
    ("n_shot", "5", "leave it out: LLaMA-Factory's own `eval` command is gone too"),
    ("save_dir", "null", "use `output_dir`"),
    ("download_mode", "reuse_dataset_if_exists", "leave it out: nothing is downloaded"),
];
