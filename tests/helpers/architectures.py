"""A tiny random model of every causal-LM family that transformers has; a new family is one more line.

The sizes of :data:`SIZES` are set where a family's configuration has the field; a line says what else it needs, and
what becomes of its gradients: ``BATCHED``, or ``ALONE``, which is announced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dataflex.models.model import add_lora
from dataflex.testing import tiny_tokenizer

BATCHED, ALONE = "batched", "alone"
VOCABULARY = len(tiny_tokenizer())
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"], 48),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "num_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 256),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "index_topk", "sliding_window"], 16),
    **dict.fromkeys(["head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank", "index_head_dim"], 8),
    **dict.fromkeys(["encoder_layers", "first_k_dense_replace", "n_group", "topk_group", "n_shared_experts"], 1),
    **dict.fromkeys(["rotary_dim", "qk_rope_head_dim", "state_size", "mamba_d_state", "time_step_rank"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_experts_per_tok", "index_n_heads", "mamba_expand"], 2),
    "encoder_attention_heads": 4,
    "is_decoder": True,
    "conv_kernel": 4,
}
LATENT: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 4}  # heads of the rotary part
INDEXER: dict[str, Any] = {"index_n_heads": 32}  # with few, most scores are 0, and ties fall by the width of the batch
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA4: dict[str, Any] = SLIDING | {"global_head_dim": 8, "num_global_key_value_heads": 2}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
PER_LAYER: dict[str, Any] = {
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
}
LIMIT = 25
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 5.0, 7.0, 9.0],
    "original_max_position_embeddings": LIMIT,
}
LONG: dict[str, Any] = {"rope_parameters": LONGROPE, "original_max_position_embeddings": LIMIT}
DYNAMIC: dict[str, Any] = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
    "max_position_embeddings": LIMIT,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (BATCHED, {}),
    "apertus": (BATCHED, {}),
    "arcee": (BATCHED, {}),
    "aria_text": (BATCHED, {}),
    "axk1": (BATCHED, LATENT),
    "axk2": (BATCHED, LATENT),
    "bamba": (BATCHED, MAMBA | {"attn_layer_indices": [1]}),
    "bart": (BATCHED, {}),
    "bert": (BATCHED, {}),
    "bert-generation": (BATCHED, {}),
    "big_bird": (BATCHED, {}),
    "bigbird_pegasus": (BATCHED, {}),
    "biogpt": (BATCHED, {}),
    "bitnet": (BATCHED, {}),
    "blenderbot": (BATCHED, {}),
    "blenderbot-small": (BATCHED, {}),
    "bloom": (BATCHED, {}),
    "camembert": (BATCHED, {}),
    "codegen": (BATCHED, {}),
    "cohere": (BATCHED, {}),
    "cohere2": (BATCHED, {}),
    "cohere2_moe": (BATCHED, {}),
    "cohere_compass_text": (
        BATCHED,
        SLIDING | {"rope_parameters": dict.fromkeys(SLIDING["layer_types"], ROPE | {"mrope_section": [1, 1, 2]})},
    ),
    "cpmant": (
        ALONE,
        {
            "dim_head": 8,
            "dim_ff": 48,
            "position_bias_num_buckets": 32,
            "position_bias_max_distance": 64,
            "prompt_length": 4,
        },
    ),
    "ctrl": (BATCHED, {"dff": 48}),
    "cwm": (BATCHED, {}),
    "data2vec-text": (BATCHED, {}),
    "dbrx": (
        BATCHED,
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "deepseek_v2": (BATCHED, LATENT),
    "deepseek_v3": (BATCHED, LATENT),
    "deepseek_v3/dynamic": (BATCHED, LATENT | DYNAMIC),
    "deepseek_v32": (BATCHED, LATENT | INDEXER),
    "deepseek_v4": (BATCHED, {"o_lora_rank": 8, "o_groups": 1}),
    "diffllama": (BATCHED, {}),
    "doge": (BATCHED, {}),
    "dots1": (BATCHED, {}),
    "electra": (BATCHED, {}),
    "ernie": (BATCHED, {}),
    "ernie4_5": (BATCHED, {}),
    "ernie4_5_moe": (BATCHED, {}),
    "exaone4": (BATCHED, {}),
    "exaone_moe": (BATCHED, {}),
    "falcon": (BATCHED, {"head_dim": None}),
    "falcon_h1": (BATCHED, MAMBA | {"mamba_d_ssm": 32, "mamba_d_head": 8}),
    "falcon_mamba": (BATCHED, {}),
    "flex_olmo": (BATCHED, {}),
    "gemma": (BATCHED, {}),
    "gemma2": (BATCHED, {}),
    "gemma3_text": (BATCHED, {}),
    "gemma3_text/dynamic": (
        BATCHED,
        SLIDING
        | {
            "max_position_embeddings": LIMIT,
            "rope_parameters": {"sliding_attention": ROPE, "full_attention": DYNAMIC["rope_parameters"]},
        },
    ),
    "gemma3n_text": (BATCHED, SLIDING | PER_LAYER | {"laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]}),
    "gemma4_text": (BATCHED, GEMMA4 | PER_LAYER),
    "gemma4_unified_text": (BATCHED, GEMMA4),
    "glm": (BATCHED, {}),
    "glm4": (BATCHED, {}),
    "glm4_moe": (BATCHED, {}),
    "glm4_moe_lite": (BATCHED, LATENT),
    "glm_moe_dsa": (BATCHED, LATENT | INDEXER),
    "gpt-sw3": (BATCHED, {}),
    "gpt2": (BATCHED, {}),
    "gpt_bigcode": (BATCHED, {}),
    "gpt_neo": (BATCHED, {"attention_types": [[["global", "local"], 1]], "window_size": 16}),
    "gpt_neox": (BATCHED, {}),
    "gpt_neox/dynamic": (
        BATCHED,
        {**DYNAMIC, "rope_parameters": DYNAMIC["rope_parameters"] | {"partial_rotary_factor": 1.0}},
    ),
    "gpt_neox_japanese": (BATCHED, {}),
    "gpt_oss": (BATCHED, {}),
    "gptj": (BATCHED, {}),
    "granite": (BATCHED, {}),
    "granite_swa": (BATCHED, {}),
    "granitemoe": (BATCHED, {}),
    "granitemoe_swa": (BATCHED, {}),
    "granitemoehybrid": (BATCHED, MAMBA | {"layer_types": ["mamba", "attention"]}),
    "granitemoeshared": (BATCHED, {}),
    "helium": (BATCHED, {}),
    "hrm_text": (BATCHED, {}),
    "hunyuan_v1_dense": (BATCHED, {}),
    "hunyuan_v1_moe": (BATCHED, {}),
    "hy_v3": (BATCHED, {}),
    "hy_v4": (BATCHED, INDEXER),
    "hyperclovax": (BATCHED, {}),
    "inkling_text": (
        BATCHED,
        {"swa_num_attention_heads": 4, "swa_head_dim": 8, "rel_extent": 32, "swa_num_key_value_heads": 2},
    ),
    "jais2": (BATCHED, {}),
    "jamba": (BATCHED, {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "jetmoe": (BATCHED, {}),
    "kimi_linear": (BATCHED, LATENT | {"linear_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    "laguna": (BATCHED, {}),
    "lfm2": (BATCHED, {}),
    "lfm2_moe": (BATCHED, {"layer_types": ["conv", "full_attention"]}),
    "llama": (BATCHED, {}),
    "llama/dynamic": (BATCHED, DYNAMIC),
    "llama/longrope": (BATCHED, {"rope_parameters": LONGROPE}),
    "llama4_text": (BATCHED, {}),
    "longcat_flash": (ALONE, LATENT | {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16}),
    "mamba": (BATCHED, {}),
    "mamba2": (BATCHED, {"num_heads": 4, "head_dim": 16, "n_groups": 1}),
    "marian": (BATCHED, {}),
    "mbart": (BATCHED, {}),
    "megatron-bert": (BATCHED, {}),
    "mellum": (BATCHED, {}),
    "mimo_v2_flash": (BATCHED, {}),
    "minicpm3": (BATCHED, LATENT),
    "minimax": (BATCHED, {}),
    "minimax_m2": (BATCHED, {}),
    "minimax_m3_vl_text": (
        BATCHED,
        {"dense_intermediate_size": 48, "shared_intermediate_size": 16, "index_block_size": 8},
    ),
    "ministral": (BATCHED, {}),
    "ministral3": (BATCHED, {}),
    "mistral": (BATCHED, {}),
    "mixtral": (BATCHED, {}),
    "modernbert-decoder": (BATCHED, {}),
    "moshi": (BATCHED, {}),
    "mpt": (BATCHED, {}),
    "mvp": (BATCHED, {}),
    "nanochat": (BATCHED, {}),
    "nemotron": (BATCHED, {}),
    "nemotron_h": (
        BATCHED,
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "ssm_state_size": 4,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "olmo": (BATCHED, {}),
    "olmo2": (BATCHED, {}),
    "olmo3": (BATCHED, {}),
    "olmo_hybrid": (BATCHED, {}),
    "olmoe": (BATCHED, {}),
    "openai-gpt": (BATCHED, {}),
    "opt": (BATCHED, {}),
    "pegasus": (BATCHED, {}),
    "persimmon": (BATCHED, {}),
    "phi": (BATCHED, {}),
    "phi3": (BATCHED, {}),
    "phi3/longrope": (BATCHED, LONG),
    "phimoe": (BATCHED, {}),
    "phimoe/longrope": (BATCHED, LONG | {"rope_parameters": LONGROPE | {"short_mscale": 1.0, "long_mscale": 1.3}}),
    "plbart": (BATCHED, {}),
    "qwen2": (BATCHED, {}),
    "qwen2_moe": (BATCHED, {}),
    "qwen3": (BATCHED, {}),
    "qwen3/dynamic": (BATCHED, DYNAMIC),
    "qwen3_5_moe_text": (BATCHED, LINEAR),
    "qwen3_5_text": (BATCHED, LINEAR),
    "qwen3_moe": (BATCHED, {}),
    "qwen3_next": (BATCHED, LINEAR),
    "qwen4_exp_text": (
        BATCHED,
        LINEAR
        | {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "hc_lowrank": 8,
            "ngram_vocab_size_base": 400,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 2,
        },
    ),
    "recurrent_gemma": (BATCHED, {}),
    "rembert": (BATCHED, {"input_embedding_size": 16, "output_embedding_size": 16}),
    "roberta": (BATCHED, {}),
    "roberta-prelayernorm": (BATCHED, {}),
    "roc_bert": (
        BATCHED,
        {"pronunciation_embed_dim": 8, "pronunciation_vocab_size": 16, "shape_embed_dim": 8, "shape_vocab_size": 16},
    ),
    "roformer": (BATCHED, {}),
    "rwkv": (BATCHED, {}),
    "seed_oss": (BATCHED, {}),
    "smollm3": (BATCHED, {}),
    "solar_open": (BATCHED, {}),
    "stablelm": (BATCHED, {}),
    "starcoder2": (BATCHED, {}),
    "trocr": (BATCHED, {}),
    "vaultgemma": (BATCHED, {}),
    "whisper": (BATCHED, {}),
    "xglm": (BATCHED, {}),
    "xlm": (BATCHED, {}),
    "xlm-roberta": (BATCHED, {}),
    "xlm-roberta-xl": (BATCHED, {}),
    "xlnet": (ALONE, {"max_position_embeddings": None, "d_inner": 48, "mem_len": None}),
    "xlstm": (BATCHED, {"v_head_dim": None, "head_dim": None}),
    "xmod": (BATCHED, {"default_language": "en_XX"}),
    "youtu": (BATCHED, LATENT),
    "zamba": (
        BATCHED,
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "n_mamba_heads": 2,
            "attention_head_dim": 16,
            "attention_hidden_size": 64,
        },
    ),
    "zamba2": (BATCHED, {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 4, "mamba_ngroups": 1}),
    "zaya": (BATCHED, {"num_experts_per_tok": 1}),
}
"""By family, or ``family/variant``; a None takes a field of :data:`SIZES` away."""

EXCLUDED: dict[str, str] = {
    "blt": "reads bytes in patches that a second model cuts",
    "emu3": "reads images or sound beside text; its text model is a Llama",
    "fuyu": "reads images or sound beside text; its text model is persimmon",
    "gemma3": "reads images or sound beside text; its text model is gemma3_text",
    "gemma3n": "reads images or sound beside text; its text model is gemma3n_text",
    "gemma4": "reads images or sound beside text; its text model is gemma4_text",
    "gemma4_assistant": "drafts tokens for another model, from its hidden states",
    "gemma4_unified": "reads images or sound beside text; its text model is gemma4_unified_text",
    "gemma4_unified_assistant": "drafts tokens for another model, from its hidden states",
    "git": "reads images or sound beside text; its text model is a BERT",
    "got_ocr2": "reads images or sound beside text; its text model is qwen2",
    "llama4": "reads images or sound beside text; its text model is llama4_text",
    "mllama": "reads images or sound beside text; its text model is a Llama with cross-attention",
    "musicgen": "writes music from text: several codebooks a position",
    "musicgen_melody": "writes music from text: several codebooks a position",
    "phi4_multimodal": "reads images or sound beside text; its text model is phi3",
    "prophetnet": "its loss is NaN with transformers 5.19, alone and in a batch",
    "qwen3_5": "reads images or sound beside text; its text model is qwen3_5_text",
    "qwen3_5_moe": "reads images or sound beside text; its text model is qwen3_5_moe_text",
    "qwen4_exp": "reads images or sound beside text; its text model is qwen4_exp_text",
    "reformer": "its reversible layers give LoRA's weights no gradient",
}

FLOAT32 = {"xglm"}
"""Float64 is more than a constant of their code can hold."""
PADDED_LEFT = {"cpmant"}
"""Their own mask takes padding to be on the left: gradients, computed alone, are right; losses of batches are not."""
SILENT = {"xlstm"}
"""``generate`` of transformers 5.19 fails in their own code."""


def configuration(name: str) -> Any:
    """The tiny configuration of a line of the list."""
    family, _, _ = name.partition("/")
    kind = CONFIG_MAPPING[family]
    more = copy.deepcopy(FAMILIES[name][1])  # configurations write into what they are given
    default = kind()
    fields = {key: value for key, value in SIZES.items() if key not in more and _has(default, key)} | more
    return kind(**{key: value for key, value in fields.items() if value is not None})


def architecture(name: str) -> torch.nn.Module:
    """LoRA on all linear layers of a tiny model, no parameter zero or one, eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base: PreTrainedModel = AutoModelForCausalLM.from_config(configuration(name), experts_implementation="eager")
        _disturb(base.parameters())
        model = add_lora(base, rank=4)
        _disturb([values for key, values in model.named_parameters() if "lora_B" in key])
    return model.to(torch.float32 if name in FLOAT32 else torch.float64).eval()


def _disturb(parameters: Iterable[torch.Tensor]) -> None:
    with torch.no_grad():
        for values in parameters:
            values.add_(torch.randn_like(values) * 0.05)


def _has(config: Any, field: str) -> bool:
    try:
        return hasattr(config, field)
    except RuntimeError:
        return True
