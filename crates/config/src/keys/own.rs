//! Keys that LLaMA-Factory does not have.

macro_rules! own_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "sft's own" {
        /// Number format of the weights and of what flows between the layers while training.
        compute_dtype: ComputeDtype {
            auto: "`bfloat16` with `bf16`, else `float32`" = |c| match c.bf16 || c.pure_bf16 {
                true => ComputeDtype::Bfloat16,
                false => ComputeDtype::Float32,
            },
            read_by: "train::run",
        }
        /// The device that computes: the processor, or an NVIDIA GPU. `sft doctor` shows what is there.
        device: Device {
            auto: "`cpu` with `use_cpu`, else `auto`" = |c| if c.use_cpu { Device::Cpu } else { Device::Auto },
            read_by: "kernels",
        }
        /// Threads; null is one per core. Results do not depend on it.
        threads: Option<usize> { range: Range::at_least(1.0), read_by: "kernels, data" }
        /// Malformed rows that are dropped before the run stops: a count, or a fraction of all rows.
        /// Each one is shown with file and line. (LLaMA-Factory drops any number in silence.)
        max_malformed: Amount { default: Amount::Fraction(0.01), read_by: "data::dataset" }
        /// SQLite file in which `sft train` keeps a record of every run, for `sft runs`; null is the one that the variable
        /// SFT_LEDGER names, or `$XDG_DATA_HOME/sft/runs.sqlite` (`~/.local/share`), and `off` keeps none.
        ledger: Option<String> { read_by: "runs::ledger" }
        /// A step whose loss or gradient is NaN or infinite: stop before its update, or skip it and count it in the log.
        /// Either way the first op and its layer, and the rows, are named.
        on_non_finite: OnNonFinite { read_by: "train::run" }
        /// Answer so many evaluation rows before and after training and print the answers side by side, with the
        /// share that is exactly as expected; all are in the run's `held_out_answers.jsonl`. Answers are the most
        /// likely tokens, at most `max_new_tokens`.
        show_answers: usize { read_by: "cli::answers" }
        /// `sft export`: write so many more blocks, spread evenly among those of the model, which add nothing until they
        /// are trained (LLaMA-Pro). `use_llama_pro` with `freeze_trainable_layers` set to the same number trains them.
        num_expand: usize { read_by: "model::expansion" }
    } } };
}
