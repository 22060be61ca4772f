"""One tiny model for each family beside plain Llama; make.py runs it through the reference implementation.

  config  keys of the reference's config class          class   that class
  drop    keys taken out of the saved config.json       extra   keys put in
Together `drop` and `extra` give config.json the layout of the family's published checkpoints where that differs from
what the reference writes today.

Baichuan 2 is not part of the reference. Its golden model is computed by the reference's Llama with the packed matrix
split and every row of the head divided by its length; the files then get the packed matrix and the head as it was.
"""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

SHAPE = dict(vocab_size=256, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False)


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


MODELS = {
    # A window in the upper two layers alone.
    "tiny-qwen2": {
        "class": Qwen2Config,
        "config": dict(SHAPE, tie_word_embeddings=True, use_sliding_window=True, sliding_window=8, max_window_layers=1,
                       rope_parameters=rope(1000000.0)),
        "drop": ["rope_parameters", "layer_types"],
        "extra": {"rope_theta": 1000000.0},
    },
    "tiny-mistral": {
        "class": MistralConfig,
        "config": dict(SHAPE, sliding_window=8, head_dim=24, rope_parameters=rope(10000.0)),
        "drop": ["rope_parameters"],
        "extra": {"rope_theta": 10000.0},
    },
    "tiny-qwen3": {
        "class": Qwen3Config,
        "config": dict(SHAPE, head_dim=32, attention_bias=True, rope_parameters=rope(1000000.0)),
        "drop": ["rope_parameters", "layer_types"],
        "extra": {"rope_theta": 1000000.0},
    },
    "tiny-llama-bias": {
        "class": LlamaConfig,
        "config": dict(SHAPE, attention_bias=True, mlp_bias=True, rope_parameters=rope(10000.0)),
        "drop": ["rope_parameters"],
        "extra": {"rope_theta": 10000.0},
    },
    # The reference's own layout: layer_types and rope_parameters.
    "tiny-gemma2": {
        "class": Gemma2Config,
        "config": dict(SHAPE, num_hidden_layers=4, head_dim=24, tie_word_embeddings=True, sliding_window=8,
                       query_pre_attn_scalar=20, attn_logit_softcapping=2.5, final_logit_softcapping=0.6,
                       rope_parameters=rope(10000.0)),
        "drop": [],
        "extra": {},
    },
    # Two sliding layers, then a full one, twice.
    "tiny-gemma3": {
        "class": Gemma3TextConfig,
        "config": dict(SHAPE, num_hidden_layers=6, intermediate_size=96, num_key_value_heads=1, head_dim=16,
                       tie_word_embeddings=True, sliding_window=8, query_pre_attn_scalar=24, sliding_window_pattern=3),
        "drop": ["rope_parameters", "layer_types", "_sliding_window_pattern", "tie_word_embeddings"],
        "extra": {"rope_theta": 50000.0, "rope_local_base_freq": 1000.0, "sliding_window_pattern": 3,
                  "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    },
    "tiny-baichuan2": {
        "class": LlamaConfig,
        "config": dict(SHAPE, num_key_value_heads=4, rope_parameters=rope(10000.0)),
        "drop": ["rope_parameters"],
        "extra": {},
    },
}


def unit_head(model):
    """Divides the rows of the head by their lengths; returns the head as it was."""
    raw = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.nn.functional.normalize(raw) * 1.0)
    return raw


def as_baichuan(folder, raw_head):
    """Turns the files of a Llama into those of a Baichuan 2."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    for i in range(layers):
        prefix = f"model.layers.{i}.self_attn."
        parts = [tensors.pop(f"{prefix}{part}_proj.weight") for part in "qkv"]
        tensors[f"{prefix}W_pack.weight"] = torch.cat(parts)
    tensors["lm_head.weight"] = raw_head
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for key in ("attention_bias", "mlp_bias", "num_key_value_heads", "rope_theta", "head_dim", "pretraining_tp"):
        config.pop(key, None)
    config.update(architectures=["BaichuanForCausalLM"], model_type="baichuan", model_max_length=256)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
