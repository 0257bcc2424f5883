"""Write the trained model in the form of the published Hugging Face checkpoints.

The form is that of BitNet b1.58 2B-4T: `BitNetForCausalLM`, packed ternary weights with a multiplying
`weight_scale` (linear_class "autobitlinear", quantization_mode "offline"), everything else bfloat16.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_bitnet import Shape, TinyBitNet, absmean
from tokenizers import Tokenizer
from torch import Tensor

LINEARS = {name: f"self_attn.{name}_proj" for name in "qkvo"}
LINEARS |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
NORMS = {
    "attn_norm": "input_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}


def pack(trits: Tensor) -> Tensor:
    """Four blocks of rows in one byte, the first block lowest: trits [rows, cols] -> uint8 [rows / 4, cols]."""
    blocks = (trits.to(torch.uint8) + 1).view(4, -1, trits.shape[1])
    return blocks[0] | blocks[1] << 2 | blocks[2] << 4 | blocks[3] << 6


def rounded(model: TinyBitNet) -> TinyBitNet:
    """A copy whose embeddings and norms are what the checkpoint stores, so that both compute the same."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if ".weights." not in name:
                parameter.copy_(parameter.bfloat16())
    return twin


def tensors(model: TinyBitNet) -> dict[str, Tensor]:
    """Every tensor of the checkpoint under its Hugging Face name."""
    out = {"model.embed_tokens.weight": model.embedding.bfloat16()}
    out["model.norm.weight"] = model.output_norm.bfloat16()
    for i, layer in enumerate(model.layers):
        for name, parameter in layer.norms.items():
            out[f"model.layers.{i}.{NORMS[name]}.weight"] = parameter.bfloat16()
        for name, parameter in layer.weights.items():
            trits, multiplier = absmean(parameter)
            out[f"model.layers.{i}.{LINEARS[name]}.weight"] = pack(trits.to(torch.int8))
            out[f"model.layers.{i}.{LINEARS[name]}.weight_scale"] = multiplier.bfloat16().reshape(1)
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


def configuration(shape: Shape, bos: int, eos: int) -> dict[str, Any]:
    """config.json as transformers 5 reads it."""
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "hidden_act": "relu2",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "use_cache": True,
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": None,
        },
    }


def export(model: TinyBitNet, tokenizer: Tokenizer, held_out: str, out: Path) -> None:
    """Write model, configuration, tokenizer and held-out text into the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (bos, bos_text), (eos, eos_text) = (
        (i, token.content) for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    )
    save_file(tensors(model), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # the library creates it unreadable for others
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos_text,
        "eos_token": eos_text,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model.shape.context,
    }
    for name, values in {
        "config.json": configuration(model.shape, bos, eos),
        "generation_config.json": {"bos_token_id": bos, "eos_token_id": eos},
        "tokenizer_config.json": tokenizer_config,
    }.items():
        (out / name).write_text(json.dumps(values, indent=2) + "\n")
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n")
    (out / "heldout.txt").write_text(held_out)
