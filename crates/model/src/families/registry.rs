//! The registry: `model_type` → what reads it, and what is known of it (`sft models` prints it).

use serde_json::Map;

use super::*;
use crate::spec::MoeSpec;

/// A family of models.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// What its `config.json` calls it.
    pub model_type: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Released models of it, not all.
    pub released: &'static str,
    /// Conversation templates that LLaMA-Factory trains some of those with.
    pub templates: &'static [&'static str],
    /// The family that tests compare it with, by equal weights, where transformers has no class of its own.
    pub twin: Option<&'static str>,
    pub(super) read: ReadSpec,
}

/// A row of the registry.
const fn family(
    model_type: &'static str,
    read: ReadSpec,
    [about, released]: [&'static str; 2],
    templates: &'static [&'static str],
) -> Family {
    Family { model_type, about, released, templates, twin: None, read }
}

impl Family {
    /// Experts of a model of it, if it has some.
    pub(super) fn experts(&self) -> Option<MoeSpec> {
        // Sizes do not matter; what else is not there is what the family's class has.
        let sizes =
            ["num_hidden_layers", "num_local_experts", "num_experts"].map(|key| (key.into(), 4.into()));
        let spec = (self.read)(&HfConfig::of(Map::from_iter(sizes)));
        spec.layers.into_iter().find_map(|layer| layer.moe)
    }

    /// Whether LoRA on all linear layers adapts routers, too; they take no DoRA.
    pub fn adapts_routers(&self) -> bool {
        self.experts().is_some_and(|experts| experts.router.is_linear)
    }

    /// The same, compared with another family in place of transformers.
    const fn like(self, twin: &'static str) -> Self {
        Self { twin: Some(twin), ..self }
    }
}

/// All of them, by name.
#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = &[
    family("apertus", apertus::spec, ["xIELU without a gate, norms of queries and keys", "Apertus 8B, 70B"], &[]),
    family("arcee", arcee::spec, ["Llama with ReLU² without a gate", "AFM 4.5B"], &["chatml"]),
    family("baichuan", baichuan::spec, ["Llama with one layer for queries, keys and values; ALiBi in 13B", "Baichuan 7B, 13B; Baichuan 2 7B, 13B"], &[]).like("llama"),
    family("bloom", bloom::spec, ["ALiBi, a norm of the embedding", "BLOOM 560M–176B; BLOOMZ"], &["default"]),
    family("chatglm", chatglm::spec, ["GLM under the names of its own code", "ChatGLM2 6B, ChatGLM3 6B, GLM-4 9B (glm-4-9b-chat)"], &["chatglm3", "glm4"]).like("glm"),
    family("cohere", cohere::cohere, ["parallel blocks, layer norms, scaled logits", "Command R 35B, R+ 104B; Aya 23"], &["cohere"]),
    family("cohere2", cohere::cohere2, ["Cohere with windows", "Command R7B"], &["cohere"]),
    family("cwm", cwm::spec, ["Llama 3 with windows", "Code World Model 32B"], &[]),
    family("deepseek_v2", deepseek::deepseek_v2, ["multi-head latent attention, experts", "DeepSeek-V2, V2-Lite, Coder-V2"], &["deepseek", "deepseekcoder"]),
    family("deepseek_v3", deepseek::deepseek_v3, ["V2 with scores by σ", "DeepSeek-V3, R1; Moonlight 16B"], &["deepseek3", "deepseekr1", "moonlight"]),
    family("dots1", dots1::spec, ["experts with scores by σ", "dots.llm1 142B"], &[]),
    family("ernie4_5", ernie4_5::spec, ["Llama with neighbouring pairs rotated", "ERNIE 4.5 0.3B"], &["ernie", "ernie_nothink"]),
    family("ernie4_5_moe", ernie4_5_moe::spec, ["the same with experts", "ERNIE 4.5 21B-A3B, 300B-A47B"], &["ernie", "ernie_nothink"]),
    family("exaone4", exaone4::spec, ["norms after the layers, windows in three of four", "EXAONE 4.0 1.2B, 32B"], &[]),
    family("falcon", falcon::spec, ["parallel blocks, multi-query attention", "Falcon 7B, 40B, 180B"], &["falcon"]),
    family("falcon_h1", falcon_h1::spec, ["attention and a state space side by side", "Falcon-H1 0.5B–34B"], &["falcon_h1"]),
    family("gemma", gemma::gemma, ["Llama with a scaled embedding", "Gemma 2B, 7B"], &["gemma"]),
    family("gemma2", gemma::gemma2, ["norms around the layers, caps, windows", "Gemma 2 2B, 9B, 27B"], &["gemma2"]),
    family("gemma3_text", gemma::gemma3, ["norms of queries and keys, two rotations", "Gemma 3 270M, 1B"], &["gemma3"]),
    family("gemma4_text", gemma4::spec, ["inputs of their own for every block", ""], &["gemma4"]),
    family("glm", glm::glm, ["half of each head rotated, gate and up fused", "GLM-4 9B, GLM-Edge (glm-4-9b-chat-hf)"], &["glm4"]),
    family("glm4", glm::glm4, ["the same with norms after the layers", "GLM-4 9B and 32B (0414), GLM-Z1"], &["glm4", "glmz1"]),
    family("glm4_moe", glm4_moe::spec, ["experts with scores by σ", "GLM-4.5, GLM-4.5-Air, GLM-4.6"], &["glm4_moe"]),
    family("gpt2", gpt2::spec, ["learned positions, layer norms", "GPT-2 124M–1.5B"], &["default"]),
    family("gpt_bigcode", gpt_bigcode::spec, ["GPT-2 with multi-query attention", "StarCoder 15B, WizardCoder 15B"], &["default"]),
    family("gpt_neox", gpt_neox::spec, ["parallel blocks, a part of each head rotated", "Pythia 14M–12B, GPT-NeoX 20B"], &["default"]),
    family("gpt_oss", gpt_oss::spec, ["experts, sinks, windows", "gpt-oss 20B, 120B (weights in bf16)"], &["gpt_oss"]),
    family("gptj", gptj::spec, ["parallel blocks, neighbouring pairs rotated", "GPT-J 6B"], &["default"]),
    family("granite", granite::spec, ["Llama with four multipliers", "Granite 3.0–3.3 2B, 8B"], &["granite3"]),
    family("granitemoe", granitemoe::spec, ["the same with experts", "Granite 3.0, 3.1 1B-A400M, 3B-A800M"], &["granite3"]),
    family("helium", helium::spec, ["Llama with neighbouring pairs rotated", "Helium 1 2B"], &[]),
    family("hunyuan_v1_dense", hunyuan_v1_dense::spec, ["norms of queries and keys after the rotation", "Hunyuan 0.5B–7B"], &["hunyuan_small"]),
    family("hunyuan_v1_moe", hunyuan_v1_moe::spec, ["the same with experts", "Hunyuan-A13B"], &["hunyuan"]),
    family("internlm2", internlm2::spec, ["Llama under other names, one layer for queries, keys and values", "InternLM2 and 2.5 1.8B, 7B, 20B"], &["intern2"]).like("llama"),
    family("internlm3", internlm3::spec, ["Llama with switches of its own for biases", "InternLM3 8B"], &["intern2"]).like("qwen2"),
    family("jais2", jais2::spec, ["layer norms, ReLU²", "Jais 2 8B, 70B"], &[]),
    family("lfm2", lfm2::spec, ["gated convolutions and attention", "LFM2 350M, 700M, 1.2B, 2.6B"], &["lfm2"]),
    family("llama", llama::spec, ["the shape that others vary", "Llama 1, 2, 3, 3.1, 3.2 (1B, 3B), 3.3; Yi; DeepSeek LLM; Vicuna; TinyLlama; SmolLM, SmolLM2; SOLAR; Megrez"], &["llama2", "llama3", "yi", "deepseek", "vicuna", "smollm", "smollm2", "solar"]),
    family("llama4_text", llama4::spec, ["experts in every or every other layer, chunked attention", "(of Llama 4 Scout and Maverick)"], &["llama4"]),
    family("mamba2", mamba2::spec, ["a state space in every block", "Mamba-2 (converted for transformers), Codestral Mamba 7B"], &[]),
    family("minicpm", minicpm::minicpm, ["Llama with three multipliers", "MiniCPM 1B, 2B; MiniCPM4 0.5B, 8B"], &["cpm4"]).like("granite"),
    family("minicpm3", minicpm::minicpm3, ["the same with multi-head latent attention", "MiniCPM3 4B"], &["chatml"]).like("deepseek_v3"),
    family("minimax_m2", minimax_m2::spec, ["experts, norms of queries and keys", "MiniMax-M2"], &["minimax2"]),
    family("ministral", ministral::spec, ["Mistral with windows by layer", "Ministral 8B"], &["ministral"]),
    family("ministral3", ministral::ministral3, ["queries that grow with their position", "(of Ministral 3)"], &["ministral3"]),
    family("mistral", mistral::spec, ["Llama with windows", "Mistral 7B, Nemo 12B, Small 24B"], &["mistral", "mistral_small"]),
    family("mixtral", mixtral::spec, ["Mistral with experts", "Mixtral 8x7B, 8x22B"], &["mistral"]),
    family("mpt", mpt::spec, ["ALiBi, no biases", "MPT 7B, 30B"], &[]),
    family("nanochat", nanochat::spec, ["norms without weights, ReLU²", "nanochat"], &[]),
    family("nemotron", nemotron::spec, ["layer norms, ReLU², a part of each head rotated", "Minitron 4B, 8B"], &[]),
    family("olmo", olmo::spec, ["layer norms without weights", "OLMo 1B, 7B"], &["olmo"]),
    family("olmo2", olmo2::spec, ["norms after the layers", "OLMo 2 1B–32B"], &["olmo"]),
    family("olmo3", olmo2::olmo3, ["the same with windows", "Olmo 3 7B, 32B"], &["olmo"]),
    family("olmoe", olmoe::spec, ["experts, norms of queries and keys", "OLMoE 1B-7B"], &["olmo"]),
    family("opt", opt::spec, ["learned positions, ReLU", "OPT 125M–66B"], &["default"]),
    family("persimmon", persimmon::spec, ["fused by heads, ReLU²", "Persimmon 8B"], &[]),
    family("phi", phi::spec, ["parallel blocks, a part of each head rotated", "Phi-1, Phi-1.5, Phi-2"], &["default"]),
    family("phi3", phi3::spec, ["Llama with fused layers, LongRoPE", "Phi-3 mini, medium; Phi-3.5 mini; Phi-4, Phi-4 mini"], &["phi", "phi4", "phi4_mini"]),
    family("phimoe", phimoe::spec, ["experts by a sparse mixer", "Phi-3.5-MoE"], &["phi"]),
    family("qwen", qwen::spec, ["Llama under GPT-2's names", "Qwen 1.8B, 7B, 14B, 72B; CodeFuse-DevOps 7B"], &["qwen"]).like("qwen2"),
    family("qwen2", qwen2::spec, ["Llama with biases on queries, keys and values", "Qwen1.5, Qwen2, Qwen2.5, Qwen2.5-Coder, Qwen2.5-Math, QwQ 32B; DeepSeek-R1-Distill-Qwen"], &["qwen", "deepseekr1"]),
    family("qwen2_moe", qwen_moe::qwen2_moe, ["the same with experts", "Qwen1.5-MoE A2.7B, Qwen2 57B-A14B"], &["qwen"]),
    family("qwen3", qwen3::spec, ["Llama with norms of queries and keys", "Qwen3 0.6B–32B"], &["qwen3", "qwen3_nothink"]),
    family("qwen3_5_text", qwen3_next::qwen3_5, ["linear attention in three blocks of four", "(of Qwen3.5)"], &["qwen3_5", "qwen3_5_nothink"]),
    family("qwen3_moe", qwen_moe::qwen3_moe, ["Qwen3 with experts", "Qwen3 30B-A3B, 235B-A22B; Qwen3-Coder"], &["qwen3", "qwen3_nothink"]),
    family("qwen3_next", qwen3_next::qwen3_next, ["linear attention in three blocks of four, experts", "Qwen3-Next 80B-A3B"], &["qwen3", "qwen3_nothink"]),
    family("seed_oss", seed_oss::spec, ["Llama with biases", "Seed-OSS 36B"], &["seed_oss"]),
    family("smollm3", smollm3::spec, ["Llama with blocks without positions", "SmolLM3 3B"], &[]),
    family("stablelm", stablelm::spec, ["layer norms, a part of each head rotated", "StableLM 2 1.6B, 12B; StableLM 3B"], &[]),
    family("starcoder2", starcoder2::spec, ["layer norms, windows", "StarCoder2 3B, 7B, 15B"], &["default"]),
    family("vaultgemma", gemma::vaultgemma, ["Gemma 2 without norms after the layers", "VaultGemma 1B"], &[]),
];
