"""Random small Hugging Face checkpoints in every published form, for tests; needs numpy only.

`make_checkpoint` draws the model; `write_checkpoint` saves any tensors, for tests that want a damaged one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_tokenizer import write_tokenizer

LINEARS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
           "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip
FORMS = ("packed_bitlinear", "packed_autobitlinear", "online", "master", "dequantised")
FAMILIES = ("bitnet", "bitnet_silu", "llama")
_QUANTIZATION = {
    "packed_bitlinear": {"quant_method": "bitnet", "modules_to_not_convert": None},
    "packed_autobitlinear": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    "online": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
}  # fmt: skip
_NUMPY = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32, "F64": np.float64}
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
Stored = tuple[str, np.ndarray]
"""A safetensors dtype name and the storage array (BF16 as uint16)."""


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, half to even; returns the uint16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(values: np.ndarray, dtype: str) -> Stored:
    """Round float values to "float32", "float16" or "bfloat16" storage."""
    code = _STORED[dtype]
    return code, to_bf16(values) if code == "BF16" else values.astype(_NUMPY[code])


def widened(tensor: Stored) -> np.ndarray:
    """The exact float32 values of a stored float tensor."""
    code, array = tensor
    return from_bf16(array) if code == "BF16" else array.astype(np.float32)


def absmean_trits(weight: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Ternarise a float32 matrix with its absolute mean: (int8 trits, float32 multiplier)."""
    mean = np.float32(np.abs(weight.astype(np.float64)).mean())
    scale = np.float32(1) / max(mean, np.float32(1e-5))
    trits = np.clip(np.rint(weight.astype(np.float32) * scale), -1, 1).astype(np.int8)
    return trits, np.float32(1) / scale


def pack_rows(trits: np.ndarray) -> np.ndarray:
    """Hugging Face packing: row block i of ceil(rows / 4) rows lies in bits 2i and 2i+1."""
    rows, cols = trits.shape
    quarter = -(-rows // 4)
    codes = np.zeros((4 * quarter, cols), np.uint8)
    codes[:rows] = trits + 1
    return sum((codes[i * quarter : (i + 1) * quarter] << np.uint8(2 * i) for i in range(4)), np.uint8(0))


def write_safetensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (code, array) in tensors.items():
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def read_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint directory, as stored."""
    tensors: dict[str, Stored] = {}
    for file in sorted(path.glob("*.safetensors")):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = (start + offset for offset in entry["data_offsets"])
            kind = np.uint16 if entry["dtype"] == "BF16" else _NUMPY[entry["dtype"]]
            tensors[name] = entry["dtype"], np.frombuffer(data[begin:end], kind).reshape(entry["shape"])
    return tensors


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    *,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """Save config, tensors and a small byte-level BPE tokenizer as a Hugging Face directory.

    Shards cut the name order into equal parts, so that a weight and its scale may lie in different files.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    names = list(tensors)
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
    else:
        bounds = [len(names) * i // shards for i in range(shards + 1)]
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: tensors[name] for name in names[bounds[i] : bounds[i + 1]]}
            write_safetensors(path / file, part)
            weight_map |= dict.fromkeys(part, file)
        total = sum(array.nbytes for _, array in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    if tokenizer:
        write_tokenizer(path, config["vocab_size"])
    return path


def make_config(
    *, family: str, form: str, n_layers: int, hidden: int, ffn: int, n_heads: int, n_kv_heads: int,
    head_dim: int | None, vocab: int, dtype: str, tied: bool, rope_theta: float,
    rope_scaling: dict[str, Any] | None, rope_key: str, rms_eps: float, context: int,
) -> dict[str, Any]:  # fmt: skip
    """A config.json as the family publishes it; rope_key: the flat or the nested spelling of theta."""
    renamed = family == "bitnet_silu" and form == "master"
    bitnet = "BitnetForCausalLM" if renamed else "BitNetForCausalLM"
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if family == "llama" else bitnet],
        "model_type": "llama" if family == "llama" or renamed else "bitnet",
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "relu2" if family == "bitnet" else "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": ffn,
        "max_position_embeddings": context, "num_attention_heads": n_heads, "num_hidden_layers": n_layers,
        "num_key_value_heads": n_kv_heads, "rms_norm_eps": rms_eps, "tie_word_embeddings": tied,
        "torch_dtype": dtype, "use_cache": True, "vocab_size": vocab, "attention_bias": False,
    }  # fmt: skip
    if head_dim is not None:
        config["head_dim"] = head_dim
    if rope_key == "rope_parameters":
        config["rope_parameters"] = {"rope_type": "default", **(rope_scaling or {}), "rope_theta": rope_theta}
    else:
        config |= {"rope_theta": rope_theta, "rope_scaling": rope_scaling}
    if renamed:
        config |= {"weight_bits": 1, "input_bits": 8}
    if form in _QUANTIZATION:
        config["quantization_config"] = dict(_QUANTIZATION[form])
    return config


def _linear(name: str, master: np.ndarray, form: str, dtype: str) -> dict[str, Stored]:
    """One linear saved in the given form; the master is rounded to the storage type first."""
    weight = stored(master, dtype)
    if form in ("online", "master"):
        return {f"{name}.weight": weight}
    trits, multiplier = absmean_trits(widened(weight))
    if form == "dequantised":
        return {f"{name}.weight": stored(trits * multiplier, dtype)}
    scale = multiplier if form == "packed_autobitlinear" else 1 / multiplier
    return {
        f"{name}.weight": ("U8", pack_rows(trits)),
        f"{name}.weight_scale": stored(np.array([scale], np.float32), dtype),
    }


def random_tensors(config: Mapping[str, Any], form: str, dtype: str, seed: int) -> dict[str, Stored]:
    """Well-conditioned random weights: every linear keeps the variance of its input, norms lie near 1.

    A tied embedding is drawn small so that the logits' standard deviation is of order 1 to 2.
    """
    rng = np.random.default_rng(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    bitnet, renamed = config["architectures"][0] != "LlamaForCausalLM", "weight_bits" in config
    shapes = {"q": (heads * head_dim, hidden), "k": (kv_heads * head_dim, hidden),
              "v": (kv_heads * head_dim, hidden), "o": (hidden, heads * head_dim),
              "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}  # fmt: skip
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if bitnet:
        norms["self_attn.inner_attn_ln" if renamed else "self_attn.attn_sub_norm"] = heads * head_dim
        norms["mlp.ffn_layernorm" if renamed else "mlp.ffn_sub_norm"] = ffn

    def normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
        return (rng.standard_normal(shape) * std + mean).astype(np.float32)

    tied = config["tie_word_embeddings"]
    tensors = {"model.embed_tokens.weight": stored(normal((vocab, hidden), 0.1 if tied else 1.0), dtype)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm, size in norms.items():
            tensors[f"{prefix}{norm}.weight"] = stored(normal((size,), 0.1, 1.0), dtype)
        for role, shape in shapes.items():
            master = normal(shape, shape[1] ** -0.5)
            tensors |= _linear(prefix + LINEARS[role], master, form, dtype)
    tensors["model.norm.weight"] = stored(normal((hidden,), 0.1, 1.0), dtype)
    if not tied:
        tensors["lm_head.weight"] = stored(normal((vocab, hidden), 2 * hidden**-0.5), dtype)
    return tensors


def make_checkpoint(
    path: Path, *, family: str = "bitnet", form: str = "packed_autobitlinear", n_layers: int = 3,
    hidden: int = 256, ffn: int = 384, n_heads: int = 4, n_kv_heads: int = 2, head_dim: int | None = None,
    vocab: int = 301, dtype: str = "float32", shards: int = 1, tied: bool | None = None, seed: int = 0,
    rope_theta: float = 10000.0, rope_scaling: dict[str, Any] | None = None, rope_key: str = "rope_theta",
    rms_eps: float = 1e-5, context: int = 512, tokenizer: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a random small checkpoint and return its directory.

    family: "bitnet" (ReLU squared, sub-norms), "bitnet_silu" (SiLU, sub-norms; as form "master" it is a
    BitnetForCausalLM with its own sub-norm names) or "llama". form: one of FORMS; a llama "master" has no
    ternary weights at all and must be refused. head_dim is free for llama only; I2_S needs hidden, ffn and
    n_heads * head_dim to be multiples of 128. tied defaults to what the family publishes. config overrides
    keys of config.json after the tensors are drawn.
    """
    if family not in FAMILIES or form not in FORMS:
        raise ValueError(f"family {family!r} is not one of {FAMILIES}, or form {form!r} not one of {FORMS}")
    if family != "llama" and head_dim is not None and head_dim * n_heads != hidden:
        raise ValueError("a sub-norm model needs n_heads * head_dim == hidden")
    values = make_config(
        family=family, form=form, n_layers=n_layers, hidden=hidden, ffn=ffn, n_heads=n_heads,
        n_kv_heads=n_kv_heads, head_dim=head_dim, vocab=vocab, dtype=dtype,
        tied=family != "llama" if tied is None else tied, rope_theta=rope_theta, rope_scaling=rope_scaling,
        rope_key=rope_key, rms_eps=rms_eps, context=context,
    )  # fmt: skip
    tensors = random_tensors(values, form, dtype, seed)
    return write_checkpoint(path, {**values, **(config or {})}, tensors, shards=shards, tokenizer=tokenizer)
