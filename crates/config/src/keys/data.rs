//! Keys about data: which rows, how they become text, which tokens are trained.

macro_rules! data_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "Data" {
        /// Chat template. `auto` is the model's own (`chat_template.jinja` or `tokenizer_config.json`);
        /// otherwise a name of LLaMA-Factory such as `qwen3_nothink`.
        template: String {
            auto: "`auto`, the model's own" = |_| "auto".to_string(),
            read_by: "data::template",
        }
        /// Data sets to train on: names in `dataset_info.json`, or paths of files or folders.
        dataset: Vec<String> { required: [Train, Data], read_by: "data::dataset" }
        /// Data sets to evaluate on, named like `dataset`.
        eval_dataset: Vec<String> { read_by: "data::dataset" }
        /// Folder that holds `dataset_info.json` and the files it names; `ONLINE` takes every name for one of a hub.
        dataset_dir: PathBuf { default: PathBuf::from("data"), read_by: "data::dataset_info" }
        /// Folder that keeps what is fetched from hubs; null is that of the hubs' own libraries (`HF_HOME`, `MODELSCOPE_CACHE`).
        cache_dir: Option<PathBuf> { read_by: "data::hub" }
        /// Token for Hugging Face's hub; null takes HF_TOKEN, or the one that `hf auth login` has left. It is never written down.
        hf_hub_token: Secret { read_by: "data::hub" }
        /// Token for ModelScope's hub; null takes MODELSCOPE_API_TOKEN. It is never written down.
        ms_hub_token: Secret { read_by: "data::hub" }
        /// Longest row in tokens; `over_length` says what becomes of a longer one.
        cutoff_len: usize { default: 2048, range: Range::at_least(1.0), read_by: "data::labels" }
        /// Rows longer than `cutoff_len`: cut (as LLaMA-Factory does), left out, parted between turns, or an
        /// error. Every one is counted and shown.
        over_length: OverLength { read_by: "data::pipeline" }
        /// Train on the prompt too, not only on the answers.
        train_on_prompt: bool { read_by: "data::labels" }
        /// Train on the last answer of a conversation only.
        mask_history: bool { read_by: "data::labels" }
        /// Use the first so many rows of each data set; null uses all.
        max_samples: Option<u64> { range: Range::at_least(1.0), read_by: "data::dataset" }
        /// Rows held out for evaluation: a count, or a fraction of all.
        val_size: Amount { read_by: "data::dataset" }
        /// Fill micro-batches up to `cutoff_len` with whole rows. Rows never see each other, packed or not.
        packing: bool {
            auto: "true with `neat_packing` or `stage: pt`, else false"
                = |c| c.neat_packing || c.stage == Stage::Pt,
            read_by: "data::pack",
        }
        /// The same as `packing`: here rows in a pack never see each other. Turns `packing` on.
        neat_packing: bool { read_by: "data::pack" }
        /// Compute what the rows of a micro-batch begin with in common, such as a system prompt, once. Losses and gradients
        /// are those of rows one by one, but for rounding. Nothing is shared where that would not be so: dropout, NEFTune, a
        /// balance loss among experts, layers that are not attention over the whole row. It takes memory for copies of keys and
        /// values.
        share_prefixes: bool { default: true, read_by: "data::prefixes" }
        /// System prompt of rows that have none; null leaves the template's own.
        default_system: Option<String> { read_by: "data::template" }
        /// Thinking models, where an answer has no thought: true trains an empty one, false and null put
        /// it into the prompt; false also removes the thoughts that answers have.
        enable_thinking: Option<bool> { default: Some(true), read_by: "data::template" }
        /// Thinking models: keep the thoughts of earlier turns too, not only the last one's.
        preserve_thinking: bool { read_by: "data::template" }
        /// How tools and their calls are written; null is the template's own way.
        tool_format: Option<String> { read_by: "data::template" }
        /// How several data sets become one: one after the other, or by turns until the first has ended, until all
        /// have ended once (shorter ones begin anew), or until all have ended with each row once.
        mix_strategy: MixStrategy { read_by: "data::dataset" }
        /// How likely each data set is to give the next row of an interleaved mix, in the order of their names; null
        /// takes them in turn. Evaluation sets are mixed the same way.
        interleave_probs: Probabilities { read_by: "data::dataset" }
        /// Evaluate each data set of `eval_dataset` by itself too, as `eval_NAME_loss` and so on beside the `eval_loss`
        /// of all of them.
        eval_on_each_dataset: bool { read_by: "data::dataset" }
        /// Read rows as they are trained, not all of them before: memory does not grow with the data. Needs `max_steps`.
        streaming: bool { read_by: "data::batches" }
        /// With `streaming`: rows that wait in the buffer that mixes their order.
        buffer_size: usize { default: 16384, range: Range::between(1.0, 4294967295.0), read_by: "data::dataset" }
        /// Make tokenised rows anew, whatever is kept of an earlier start.
        overwrite_cache: bool { read_by: "data::cache" }
        /// Folder that keeps the tokenised rows of this run: written if it is not there, read if it is. null keeps them
        /// in `$XDG_CACHE_HOME/sft/rows` where making them takes more than a second.
        tokenized_path: Option<PathBuf> { read_by: "data::cache" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] = &[
    (&["preprocessing_num_workers", "preprocessing_batch_size"], "rows are tokenised on all `threads`"),
    (&["data_shared_file_system"], "each machine reads its own files"),
    (&["ignore_pad_token_for_loss"], "batches hold no padding"),
    (&["media_dir"], "only text is trained on"),
];

pub(super) const NOT_YET: &[super::NotYetKey] = &[];
