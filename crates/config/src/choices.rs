//! The words that keys choose from: one enum per question.
//!
//! Each choice stands once, with the text written in a configuration. Words of LLaMA-Factory or
//! transformers that are not built are named too, each with what to do instead.

use serde_json::{Value as Json, json};

use crate::nearest::nearest;
use crate::source::{Content, Node};
use crate::value::{KeyType, Reject, scalar};

macro_rules! choices {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident {
            $( $(#[doc = $variant_doc:literal])+ $(#[$default:ident])? $variant:ident = $text:literal $(| $alias:literal)*, )+
        }
        $( not_yet { $( $($refused:literal)|+ => $help:literal, )+ } )?
    )*) => { $(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub enum $name {
            $( $(#[doc = $variant_doc])+ $(#[$default])? $variant, )+
        }

        impl $name {
            /// Every choice, in the order of the documentation.
            pub const ALL: &[$name] = &[$( $name::$variant ),+];

            /// The word written in a configuration.
            pub fn as_str(self) -> &'static str {
                match self { $( $name::$variant => $text, )+ }
            }

            fn word(text: &str) -> Result<Self, Reject> {
                match text {
                    $( $text $(| $alias)* => return Ok($name::$variant), )+
                    $( $( $($refused)|+ => return Err(Reject::NotYet { value: text.to_string(), help: $help }), )+ )?
                    _ => {}
                }
                let words: &[&str] = &[$( $text $(, $alias)* ),+ ];
                Err(Reject::Because {
                    reason: format!("`{text}` is none of {}", words.join(", ")),
                    help: nearest(text, words.iter().copied()).map(|w| format!("did you mean `{w}`?")),
                })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl KeyType for $name {
            fn parse(node: &Node) -> Result<Self, Reject> {
                $name::word(scalar(node)?)
            }
            fn to_json(&self) -> Json {
                json!(self.as_str())
            }
            fn takes() -> String {
                let words: Vec<String> = $name::ALL.iter().map(|c| format!("`{c}`")).collect();
                words.join(", ")
            }
            fn schema() -> Json {
                json!({"enum": [$( $text $(, $alias)* ),+]})
            }
        }
    )* };
}

choices! {
    /// What is learnt from.
    Stage {
        /// Plain text, every token supervised.
        Pt = "pt",
        /// Conversations, the assistant's words supervised.
        #[default]
        Sft = "sft",
    }
    not_yet {
        "rm" | "ppo" | "dpo" | "kto" => "preference training is not built; `stage: sft` and `stage: pt` are",
    }

    /// Which weights are trained.
    FinetuningType {
        /// Low-rank matrices beside frozen weights.
        #[default]
        Lora = "lora",
        /// Rotations of what frozen weights read.
        Oft = "oft",
        /// Some layers, the rest frozen.
        Freeze = "freeze",
        /// Every weight.
        Full = "full",
    }

    /// Shape of the learning rate over the steps, after the warm-up.
    LrSchedulerType {
        /// Straight to 0.
        #[default]
        Linear = "linear",
        /// Half a cosine to 0.
        Cosine = "cosine",
        /// Cosines that jump back to the top.
        CosineWithRestarts = "cosine_with_restarts",
        /// A power of the remaining share.
        Polynomial = "polynomial",
        /// The same throughout, without warm-up.
        Constant = "constant",
        /// The same throughout, after a warm-up.
        ConstantWithWarmup = "constant_with_warmup",
        /// One over the root of the step.
        InverseSqrt = "inverse_sqrt",
        /// Half a cosine to a floor.
        CosineWithMinLr = "cosine_with_min_lr",
        /// The same, a step ahead, after a warm-up that does not begin at 0.
        CosineWarmupWithMinLr = "cosine_warmup_with_min_lr",
        /// Warm-up, a plateau, a decay.
        WarmupStableDecay = "warmup_stable_decay",
    }
    not_yet {
        "reduce_lr_on_plateau" | "greedy" => "use `cosine` or `linear`: a rate that depends on the evaluation is not built",
    }

    /// When something is done.
    IntervalStrategy {
        /// Never.
        #[default]
        No = "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF",
        /// Every so many steps.
        Steps = "steps",
        /// At the end of each epoch.
        Epoch = "epoch",
    }
    not_yet {
        "best" => "use `save_strategy: steps` with `load_best_model_at_end: true`, which keeps the best checkpoint",
    }

    /// Number format of the weights and of what flows between the layers.
    ComputeDtype {
        /// 32 bits throughout.
        #[default]
        Float32 = "float32" | "fp32",
        /// bfloat16 storage, float32 accumulation.
        Bfloat16 = "bfloat16" | "bf16",
    }
    not_yet {
        "float16" | "fp16" => "use `bfloat16`, which has the range of float32 and needs no loss scaling",
    }

    /// Whose rules frozen weights are quantised by.
    QuantizationMethod {
        /// bitsandbytes: 4 or 8 bits, no data needed.
        #[default]
        Bnb = "bnb" | "bitsandbytes",
    }
    not_yet {
        "hqq" | "eetq" | "quanto" => "use `quantization_method: bnb`",
        "gptq" | "awq" | "aqlm" | "fp8" | "mxfp4" => "these are made with data beforehand: take the model in bfloat16 with `quantization_method: bnb`",
    }

    /// What codes of 4 bits stand for.
    QuantizationType {
        /// Quantiles of the normal distribution.
        #[default]
        Nf4 = "nf4",
        /// A float of 4 bits.
        Fp4 = "fp4",
    }

    /// What rows of new tokens begin as.
    InitSpecialTokens {
        /// The mean of all rows and noise.
        #[default]
        Noise = "noise_init",
        /// The mean of the rows of the tokens of its description.
        Described = "desc_init",
        /// The same, and noise.
        DescribedWithNoise = "desc_init_w_noise",
    }

    /// Number format of the weights in chat and export.
    InferDtype {
        /// As the model's files have it.
        #[default]
        Auto = "auto",
        /// 32 bits.
        Float32 = "float32",
        /// bfloat16.
        Bfloat16 = "bfloat16",
    }
    not_yet {
        "float16" => "use `bfloat16` or `auto`",
    }

    /// How positions beyond the trained length are reached.
    RopeScaling {
        /// Positions divided by a factor.
        #[default]
        Linear = "linear",
        /// The base grows with the length.
        Dynamic = "dynamic",
        /// Frequencies scaled by band (YaRN).
        Yarn = "yarn",
        /// The bands of Llama 3.1.
        Llama3 = "llama3",
    }

    /// What becomes of rows longer than `cutoff_len`.
    OverLength {
        /// Cut by LLaMA-Factory's rule: both question and answer lose their tails.
        #[default]
        Truncate = "truncate",
        /// Left out, and counted.
        Drop = "drop",
        /// Conversations are parted between turns; a turn too long by itself is left out, and counted.
        Split = "split",
        /// The run does not begin.
        Refuse = "refuse",
    }

    /// What becomes of a step whose loss or gradient is NaN or infinite.
    OnNonFinite {
        /// The run ends before the update, and says where it happened.
        #[default]
        Stop = "stop",
        /// The step changes nothing, is counted, and the run goes on; ten in a row end it.
        SkipStep = "skip_step",
    }

    /// How several data sets become one.
    MixStrategy {
        /// One after the other (then shuffled).
        #[default]
        Concat = "concat",
        /// By turns until one of them ends.
        InterleaveUnder = "interleave_under",
        /// By turns until all have ended once; shorter ones begin anew.
        InterleaveOver = "interleave_over",
        /// By turns until all have ended; each row once.
        InterleaveOnce = "interleave_once",
    }

    /// The rule that turns gradients into updates.
    Optim {
        /// AdamW with decoupled weight decay; all of these names mean the same here, where nothing is paged.
        #[default]
        AdamwTorch = "adamw_torch" | "adamw_torch_fused" | "paged_adamw_32bit" | "paged_adamw",
        /// AdamW with moments in blocks of 8 bits (bitsandbytes).
        Adamw8bit = "adamw_8bit" | "adamw_bnb_8bit" | "paged_adamw_8bit",
        /// Plain gradient descent, with momentum if `optim_args` says so.
        Sgd = "sgd",
        /// Second moments of rows and columns alone.
        Adafactor = "adafactor",
        /// The sign of a momentum.
        Lion = "lion_32bit" | "paged_lion_32bit",
        /// The same with the momentum in blocks of 8 bits.
        Lion8bit = "lion_8bit" | "paged_lion_8bit",
        /// AdamW with a second, slow momentum.
        Ademamix = "ademamix" | "paged_ademamix_32bit",
        /// The same with moments in blocks of 8 bits.
        Ademamix8bit = "ademamix_8bit" | "paged_ademamix_8bit",
        /// AdamW whose average over the steps is what is evaluated and written.
        ScheduleFreeAdamw = "schedule_free_adamw",
    }
    not_yet {
        "galore_adamw" | "galore_adafactor" => "use `use_galore: true`, with `optim: adafactor` for the second",
        "galore_adamw_layerwise" | "galore_adafactor_layerwise" => "use `use_galore: true` and `galore_layerwise: true`, with `optim: adafactor` for the second",
        "apollo_adamw" => "use `use_apollo: true`",
        "apollo_adamw_layerwise" => "use `use_apollo: true` and `apollo_layerwise: true`",
        "adamw_torch_8bit" | "adamw_torch_4bit" => "use `adamw_8bit`",
        "schedule_free_radam" | "schedule_free_sgd" => "use `schedule_free_adamw`",
        "adagrad" | "rmsprop" | "rmsprop_bnb" | "rmsprop_bnb_8bit" | "rmsprop_bnb_32bit" | "galore_adamw_8bit"
        | "galore_adamw_8bit_layerwise" | "lomo" | "adalomo" | "grokadamw" | "stable_adamw" | "adamw_apex_fused"
        | "adamw_anyprecision" | "adamw_torch_xla" | "adamw_torch_npu_fused" | "adamw_hf" => "use `adamw_torch`",
    }

    /// Which side of a gradient GaLore projects.
    GaloreProjType {
        /// Right of matrices that are not wide, left of wide ones.
        #[default]
        Std = "std",
        /// The other way round.
        ReverseStd = "reverse_std",
        /// Always right.
        Right = "right",
        /// Always left.
        Left = "left",
        /// Both.
        Full = "full",
    }

    /// Where APOLLO's projections come from.
    ApolloProj {
        /// Drawn numbers.
        #[default]
        Random = "random",
        /// Singular vectors of a gradient.
        Svd = "svd",
    }

    /// Which side of a gradient APOLLO projects.
    ApolloProjType {
        /// Right of matrices that are not wide, left of wide ones.
        #[default]
        Std = "std",
        /// Always right.
        Right = "right",
        /// Always left.
        Left = "left",
    }

    /// What APOLLO scales by a factor of its own.
    ApolloScaleType {
        /// A row, or a column of a wide matrix.
        #[default]
        Channel = "channel",
        /// A matrix.
        Tensor = "tensor",
    }

    /// Which part of the model BAdam updates at a time.
    BadamMode {
        /// A block.
        #[default]
        Layer = "layer",
        /// A share of each matrix.
        Ratio = "ratio",
    }

    /// The order in which BAdam takes blocks.
    BadamSwitchMode {
        /// From the first one.
        #[default]
        Ascending = "ascending",
        /// From the last one.
        Descending = "descending",
        /// Drawn, each once.
        Random = "random",
        /// `badam_start_block` alone.
        Fixed = "fixed",
    }

    /// Which elements BAdam updates with `badam_mode: ratio`.
    BadamMaskMode {
        /// One after the other.
        #[default]
        Adjacent = "adjacent",
        /// Here and there.
        Scatter = "scatter",
    }

    /// The evaluation figure that says which checkpoint is best.
    BestMetric {
        /// Mean negative log-likelihood of the supervised tokens.
        #[default]
        EvalLoss = "eval_loss" | "loss",
        /// Its exponential.
        EvalPerplexity = "eval_perplexity" | "perplexity",
        /// Share of supervised tokens whose most likely prediction is right.
        EvalAccuracy = "eval_accuracy" | "accuracy",
        /// Likeness of answers to the expected ones by characters, with `predict_with_generate`.
        EvalBleu4 = "eval_bleu-4" | "bleu-4",
        /// The same by words.
        EvalRouge1 = "eval_rouge-1" | "rouge-1",
        /// By pairs of words.
        EvalRouge2 = "eval_rouge-2" | "rouge-2",
        /// By the longest common subsequence of words.
        EvalRougeL = "eval_rouge-l" | "rouge-l",
    }

    /// Where figures go besides the run's own files.
    Reporter {
        /// TensorBoard event files; `all` asks for every reporter that is there, and this is the one.
        #[default]
        Tensorboard = "tensorboard" | "all",
    }
    not_yet {
        "wandb" | "swanlab" | "mlflow" | "trackio" | "neptune" | "comet_ml" | "clearml" | "azure_ml"
        | "codecarbon" | "dagshub" | "dvclive" | "flyte" => "use `tensorboard` or `none`; trainer_log.jsonl is always written",
    }

    /// The device that merges an adapter for export.
    ExportDevice {
        /// The processor.
        #[default]
        Cpu = "cpu",
        /// The best one present.
        Auto = "auto",
    }

    /// Shape of the warm-up or the decay of `warmup_stable_decay`.
    RampShape {
        /// A straight line.
        #[default]
        Linear = "linear",
        /// A cosine.
        Cosine = "cosine",
        /// One minus a root.
        OneMinusSqrt = "1-sqrt",
    }
}

/// Reporters: a word or a list of words, where `none` adds nothing.
impl KeyType for Vec<Reporter> {
    fn parse(node: &Node) -> Result<Self, Reject> {
        let items = match &node.content {
            _ if node.is_null() => return Ok(Vec::new()),
            Content::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let named = items.iter().filter(|item| item.text() != Some("none"));
        let mut reporters: Vec<Reporter> = named.map(Reporter::parse).collect::<Result<_, _>>()?;
        reporters.dedup();
        Ok(reporters)
    }
    fn to_json(&self) -> Json {
        match self.is_empty() {
            true => json!("none"),
            false => json!(self.iter().map(|r| r.as_str()).collect::<Vec<_>>()),
        }
    }
    fn takes() -> String {
        "`none`, `tensorboard`, or a list of them".into()
    }
    fn schema() -> Json {
        let word = json!({"enum": ["none", "tensorboard", "all"]});
        json!({"anyOf": [word, {"type": "array", "items": word}, {"type": "null"}]})
    }
}

impl BestMetric {
    /// Whether it comes from the loss, so that less is better.
    pub fn is_loss(self) -> bool {
        matches!(self, BestMetric::EvalLoss | BestMetric::EvalPerplexity)
    }

    /// Whether it is of answers.
    pub fn is_of_answers(self) -> bool {
        !self.is_loss() && self != BestMetric::EvalAccuracy
    }
}

impl FinetuningType {
    /// Whether an adapter is trained beside frozen weights.
    pub fn is_adapter(self) -> bool {
        matches!(self, FinetuningType::Lora | FinetuningType::Oft)
    }
}
