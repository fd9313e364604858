//! Keys about the model: where it comes from and how it is loaded.

macro_rules! model_keys {
    ($next:ident $($rest:ident)* ; $($rows:tt)*) => { $next! { $($rest)* ; $($rows)* group "Model" {
        /// The model: a folder with `config.json`, safetensors and a tokenizer, or the name of one on a hub, as in
        /// `Qwen/Qwen2.5-0.5B-Instruct`, which is fetched once (docs/hubs.md). A folder goes first.
        model_name_or_path: String { required: [Train, Chat, Export, Data], read_by: "hub::model, model::loading" }
        /// Branch, tag or commit of a model from a hub (its adapters are taken from their main branch).
        model_revision: String { default: "main".to_string(), read_by: "hub::model" }
        /// Adapters to load: folders, or names on a hub. Chat and export use all of them. When training with LoRA, all but the last are merged into the model and
        /// the last is trained further; with `create_new_adapter` all are merged.
        adapter_name_or_path: Vec<String> { read_by: "model::adapter" }
        /// Folder inside each of `adapter_name_or_path` that the adapter is in; null is the folder itself.
        adapter_folder: Option<String> { read_by: "model::adapter" }
        /// Reach longer texts than the model was trained on; null leaves the model's own way.
        rope_scaling: Option<RopeScaling> { read_by: "model::rotary" }
        /// Models with experts: weight of the auxiliary loss that spreads tokens evenly over them, whose gradient the
        /// routers get; null for none. The logged loss is without it.
        moe_aux_loss_coef: Option<f64> { range: Range::at_least(0.0), read_by: "model::balance" }
        /// Give the embedding and the head rows for tokens that the tokenizer has and the model does not, as many as make a
        /// multiple of 64. Tokens that are added below turn it on. LoRA then trains embedding and head whole
        /// (`additional_target`), `freeze` too (`freeze_extra_modules`), unless those keys say what else.
        resize_vocab: bool { read_by: "train::setup, model::new_rows" }
        /// Tokens to add to the vocabulary as text, with commas between them.
        add_tokens: Vec<String> { read_by: "data::tokenize" }
        /// Tokens to add as special ones, which are no text and are left out of answers.
        add_special_tokens: Vec<String> { read_by: "data::tokenize" }
        /// A YAML file of special tokens to add, each with a description (`<think>: the beginning of a thought`). It goes
        /// before `add_special_tokens`.
        new_special_tokens_config: DescribedTokens { read_by: "data::tokenize, model::new_rows" }
        /// What new rows begin as; the two that describe take `new_special_tokens_config`.
        init_special_tokens: InitSpecialTokens { read_by: "model::new_rows" }
        /// Recomputing each layer in the backward pass saves memory and costs time. true never does it,
        /// false always; null for as many layers as it takes to make the memory plan fit. (LLaMA-Factory's default
        /// is false; the null is deliberate, results are the same.)
        disable_gradient_checkpointing: Option<bool> { read_by: "train::memory_plan" }
        /// Packing the frozen weights for their products once, before the first step, takes their memory twice and saves
        /// time in every step of LoRA. null does it in runs of 16 steps and more when the memory plan fits with it,
        /// except where products widen bfloat16, which takes four times the memory and saves nothing; results are the same.
        pack_weights: Option<bool> { read_by: "train::memory_plan" }
        /// QLoRA: keep the frozen linear layers in so many bits, 4 or 8; null for none. They are quantised while they are read,
        /// and products decode them a panel at a time.
        quantization_bit: Option<u32> { read_by: "model::quantization" }
        /// Whose rules they are quantised by.
        quantization_method: QuantizationMethod { read_by: "model::quantization" }
        /// What codes of 4 bits stand for.
        quantization_type: QuantizationType { read_by: "kernels::quantized" }
        /// Keep the scales of blocks in 8 bits too, which saves 0.37 bits of an element.
        double_quantization: bool { default: true, read_by: "kernels::quantized" }
        /// Begin with random weights of the model's shape instead of its own.
        train_from_scratch: bool { read_by: "model::loading" }
        /// Number format of the weights in chat and export; `auto` is that of the model, and float32 for float16.
        infer_dtype: InferDtype { read_by: "infer, export" }
    } } };
}

pub(super) const NO_EFFECT: &[super::NoEffectKeys] = &[
    (&["om_hub_token"], "the OpenMind hub is not asked"),
    (&["trust_remote_code"], "no code from a model folder is ever run"),
    (&["use_fast_tokenizer"], "there is one tokenizer, the fast one"),
    (&["low_cpu_mem_usage", "offload_folder"], "weights are mapped from their files"),
    (&["flash_attn"], "attention is always computed in tiles, over whole rows"),
    (
        &["use_reentrant_gc", "use_unsloth_gc"],
        "recomputation has one implementation; see disable_gradient_checkpointing",
    ),
    (&["use_unsloth", "enable_liger_kernel", "use_v1_kernels"], "sft's own kernels are always used"),
    (
        &["upcast_layernorm", "upcast_lmhead_output"],
        "norms, logits and the loss are always accumulated in float32",
    ),
    (&["use_kv_cache"], "chat always keeps its keys and values; answers are the same"),
    (&["print_param_status"], "the start-up table counts the trained parameters"),
    (
        &[
            "infer_backend",
            "vllm_maxlen",
            "vllm_gpu_util",
            "vllm_enforce_eager",
            "vllm_max_lora_rank",
            "vllm_config",
            "sglang_maxlen",
            "sglang_mem_fraction",
            "sglang_tp_size",
            "sglang_config",
            "sglang_lora_backend",
        ],
        "chat runs on sft's own engine",
    ),
    (&["quantization_device_map"], "a model is on one device"),
    (
        &[
            "image_max_pixels",
            "image_min_pixels",
            "image_do_pan_and_scan",
            "crop_to_patches",
            "video_max_pixels",
            "video_min_pixels",
            "video_fps",
            "video_maxlen",
            "use_audio_in_video",
            "audio_sampling_rate",
            "image_resolution",
            "video_resolution",
            "visual_inputs",
        ],
        "only text is trained on",
    ),
    (
        &[
            "kt_weight_path",
            "kt_expert_checkpoint_path",
            "kt_use_lora_experts",
            "kt_lora_expert_num",
            "kt_lora_expert_intermediate_size",
        ],
        "read only with `use_kt`, which is not built",
    ),
];

pub(super) const NOT_YET: &[super::NotYetKey] = &[
    ("split_special_tokens", "false", "leave it out"),
    ("shift_attn", "false", "leave it out: attention is exact at any length"),
    ("mixture_of_depths", "null", "leave it out"),
    ("use_kt", "false", "leave it out"),
];
