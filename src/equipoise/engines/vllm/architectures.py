"""Architectures that vLLM balances, and the quantisations that their experts may have."""

from __future__ import annotations

from equipoise.engines.transformers.config import ModelConfig

BALANCED = (
    "AXK1ForCausalLM",
    "AfmoeForCausalLM",
    "DeepseekForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV4ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "FlexOlmoForCausalLM",
    "Gemma4ForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "Glm5NextForCausalLM",
    "Glm5NextForConditionalGeneration",
    "GlmMoeDsaForCausalLM",
    "HunYuanMoEV1ForCausalLM",
    "InternS1ProForConditionalGeneration",
    "InternS2MobiusForConditionalGeneration",
    "InternS2PreviewForConditionalGeneration",
    "K2HorizonForCausalLM",
    "KimiLinearForCausalLM",
    "Lfm2MoeForCausalLM",
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "MellumForCausalLM",
    "MiMoV2FlashForCausalLM",
    "MiMoV2ForCausalLM",
    "MistralLarge3ForCausalLM",
    "MixtralForCausalLM",
    "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM",
    "PanguProMoEV2ForCausalLM",
    "PanguUltraMoEForCausalLM",
    "Param2MoEForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen4ExpForConditionalGeneration",
    "SarvamMLAForCausalLM",
    "Step3p5ForCausalLM",
)
"""Architectures of vLLM 0.32.0 with its interface MixtureOfExperts, without draft models."""

UNBALANCED_METHODS = ("awq", "gptq", "modelopt FP8", "bitsandbytes")
"""Quantisations whose experts vLLM 0.32.0 refuses to balance."""


def quantisation_notes(config: ModelConfig | None) -> tuple[str, ...]:
    """Return notes on balancing experts with this quantisation in vLLM."""
    if config is None or config.quantisation is None:
        return ()
    if config.quantisation in UNBALANCED_METHODS:
        return (
            f"Experts quantised by {config.quantisation}: vLLM 0.32.0 refuses to start with "
            "balancing for them.",
        )
    if config.quantisation == "compressed-tensors" and config.weight_type != "fp8":
        weights = config.weight_type or "other types"
        return (
            f"Experts of {weights} by compressed-tensors: vLLM 0.32.0 balances them with some of "
            "its MoE kernels only, and refuses to start with the others.",
        )
    return ()
