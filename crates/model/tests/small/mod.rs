//! Configurations of small models: 4 layers of width 16, 4 heads of width 4 with 2 of keys and values, F = 20.

#![allow(dead_code, reason = "not every test file needs all of it")]

use serde_json::{Value, json};

/// The keys of a family that say more than the common ones.
pub fn keys(family: &str) -> Value {
    match family {
        // Smooth activations, but for the families that have another.
        "arcee" => json!({"model_type": family, "hidden_act": "relu2"}),
        "apertus" => json!({"model_type": family, "hidden_act": "xielu"}),
        "gemma4_text" => json!({
            "model_type": family, "head_dim": 4, "global_head_dim": 8, "hidden_size_per_layer_input": 6,
            "vocab_size_per_layer_input": 24,
        }),
        "lfm2" => json!({
            "model_type": family, "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_multiple_of": 4,
        }),
        "mamba2" => json!({
            "model_type": family, "num_heads": 4, "head_dim": 8, "n_groups": 2, "state_size": 6, "conv_kernel": 3,
            "time_step_limit": [0.0, {"__float__": "Infinity"}],
        }),
        "falcon_h1" => json!({
            "model_type": family, "mamba_n_heads": 4, "mamba_d_ssm": 16, "mamba_n_groups": 2, "mamba_d_state": 6,
            "ssm_multipliers": [0.7, 0.8, 1.2, 0.9, 1.1], "ssm_in_multiplier": 1.5, "ssm_out_multiplier": 0.8,
            "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.9, "key_multiplier": 0.6,
            "mlp_multipliers": [1.3, 0.7], "embedding_multiplier": 2.0, "lm_head_multiplier": 0.5,
        }),
        "qwen3_5_text" | "qwen3_next" => json!({
            "model_type": family, "head_dim": 8, "full_attention_interval": 2, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 4, "num_experts": 4,
            // All of them: a choice would make the loss jump.
            "num_experts_per_tok": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 10,
            "norm_topk_prob": true,
        }),
        // So that more than the best come within the distance: or weights are 1, and gradients 0.
        "phimoe" => json!({"model_type": family, "router_jitter_noise": 100.0}),
        "llama4_text" => json!({
            "model_type": family, "attention_chunk_size": 3, "floor_scale": 2, "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 24, "num_experts_per_tok": 1,
        }),
        // The class of the first version's smaller model, whose head is a plain one.
        "baichuan" => json!({"model_type": family, "architectures": ["BaiChuanForCausalLM"]}),
        "chatglm" => json!({
            "model_type": family, "padded_vocab_size": 24, "num_layers": 4, "multi_query_attention": true,
            "multi_query_group_num": 2, "add_qkv_bias": true,
        }),
        "minicpm" | "minicpm3" => json!({
            "model_type": family, "scale_emb": 3.0, "dim_model_base": 8, "scale_depth": 1.4, "num_experts": 0,
        }),
        _ => json!({"model_type": family}),
    }
}

/// A folder with a `config.json` that has these keys besides the common ones, which are those of all families.
pub fn folder(keys: Value) -> tempfile::TempDir {
    let mut config = json!({
        "vocab_size": 24, "initializer_range": 0.3, "init_std": 0.3, "sliding_window": 3, "hidden_act": "silu",
        "final_logit_softcapping": 3.0, "activation_function": "gelu_new",
        "hidden_size": 16, "n_embd": 16, "d_model": 16,
        "intermediate_size": 20, "n_inner": 20, "ffn_dim": 20, "ffn_hidden_size": 20,
        "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4,
        "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "n_positions": 64, "rotary_dim": 2,
        // Experts, and multi-head latent attention.
        "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
        "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 18, "n_shared_experts": 1, "moe_num_shared_experts": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 6, "kv_lora_rank": 5,
        "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 3,
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}
