"""The forward pass of a ternary model in plain NumPy float64, written from the formulas alone.

An oracle: it shares no code with bitconv or transformers. Weights come straight from a Hugging Face
checkpoint; matrices stay in its row order, and sites are named as in GGUF ("blk.0.attn_q").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import LINEARS, Stored, absmean_trits, read_tensors, widened

SITES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
         "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}  # fmt: skip

PINNED = 2e-5
"""How far logits may lie apart once activation codes are equal, in units of their standard deviation.

Only float32 rounding is left then: transformers and this file differ by 1e-6 to 3e-6 at 12 layers.
"""


@dataclass(frozen=True)
class Ternary:
    trits: np.ndarray  # int8 [rows, cols]
    multiplier: float


@dataclass(frozen=True)
class Network:
    config: dict[str, Any]
    embedding: np.ndarray  # [vocab, hidden]
    head: np.ndarray  # [vocab, hidden]
    norm: np.ndarray
    layers: list[dict[str, Any]]  # norms as float64 vectors, linears as Ternary, by short name


def unpack_rows(packed: np.ndarray, rows: int) -> np.ndarray:
    """The trits of a packed matrix: block i of the rows lies in bits 2i and 2i+1, code 0 is -1."""
    blocks = [(packed >> np.uint8(2 * i)) & np.uint8(3) for i in range(4)]
    return np.concatenate(blocks).astype(np.int8)[:rows] - np.int8(1)


def _linear(tensors: dict[str, Stored], name: str, rows: int, config: dict[str, Any]) -> Ternary:
    quantization = config.get("quantization_config")
    weight = tensors[f"{name}.weight"]
    if weight[0] == "U8":
        scale = float(widened(tensors[f"{name}.weight_scale"])[0])
        multiplies = quantization.get("linear_class") == "autobitlinear"
        return Ternary(unpack_rows(weight[1], rows), scale if multiplies else 1 / scale)
    values = widened(weight)
    if quantization or config["architectures"][0] != "LlamaForCausalLM":
        trits, multiplier = absmean_trits(values)
        return Ternary(trits, float(multiplier))
    largest = np.abs(values).max()
    trits = np.sign(values).astype(np.int8)
    if not np.array_equal(trits * largest, values):
        raise ValueError(f"{name} is not ternary")
    return Ternary(trits, float(largest))


def read_network(path: Path) -> Network:
    """Read a checkpoint of any form that `make_checkpoint` writes."""
    config = json.loads((path / "config.json").read_text())
    tensors = read_tensors(path)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    hidden, ffn, kv = config["hidden_size"], config["intermediate_size"], kv_heads * head_dim
    rows = {"q": heads * head_dim, "k": kv, "v": kv, "o": hidden, "gate": ffn, "up": ffn, "down": hidden}
    names = {"attn_norm": ("input_layernorm",), "ffn_norm": ("post_attention_layernorm",),
             "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
             "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm")}  # fmt: skip
    layers = []
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        layer: dict[str, Any] = {
            role: _linear(tensors, prefix + name, rows[role], config) for role, name in LINEARS.items()
        }
        for short, spellings in names.items():
            for name in spellings:
                if f"{prefix}{name}.weight" in tensors:
                    layer[short] = widened(tensors[f"{prefix}{name}.weight"]).astype(np.float64)
        layers.append(layer)
    embedding = widened(tensors["model.embed_tokens.weight"]).astype(np.float64)
    head = tensors.get("lm_head.weight")
    return Network(
        config, embedding, embedding if head is None else widened(head).astype(np.float64),
        widened(tensors["model.norm.weight"]).astype(np.float64), layers,
    )  # fmt: skip


def inverse_frequencies(config: dict[str, Any], head_dim: int) -> np.ndarray:
    """float32 [head_dim / 2], each step rounded as transformers rounds it; default and llama3 scaling."""
    flat = {**(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta")}
    rope = config.get("rope_parameters") or flat
    exponent = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    power = np.power(np.float64(rope["rope_theta"]), exponent.astype(np.float64)).astype(np.float32)
    plain = np.float32(1) / power
    if rope.get("rope_type", "default") == "default":
        return plain
    if rope["rope_type"] != "llama3":
        raise ValueError(rope["rope_type"])
    turns = rope["original_max_position_embeddings"] * plain.astype(np.float64) / (2 * np.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)  # 1: a short wave, left alone; 0: divided by factor
    return (plain * ((1 - share) / factor + share)).astype(np.float32)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    """Half-split rotary embedding of [tokens, heads, head_dim]; angles are float32 products."""
    angle = (np.arange(len(x), dtype=np.float32)[:, None] * inv_freq).astype(np.float64)[:, None, :]
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of q [tokens, heads, head_dim] over k, v [tokens, kv_heads, head_dim]."""
    tokens, heads, head_dim = q.shape
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(head_dim)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(tokens, heads * head_dim)


def through_q8_0(x: np.ndarray) -> np.ndarray:
    """x as a Q8_0 cache gives it back: for up to 32 of the last axis an f16 scale, max|x| / 127, and int8 codes."""
    out = np.empty(x.shape)
    for at in range(0, x.shape[-1], 32):
        group = x[..., at : at + 32].astype(np.float32)
        with np.errstate(over="ignore"):
            scale = (np.abs(group).max(-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
        codes = np.clip(np.rint(group / np.where(scale == 0, np.float32(1), scale)), -127, 127)
        out[..., at : at + 32] = codes.astype(np.float64) * scale
    return out


def through_cache(x: np.ndarray, cache: str) -> np.ndarray:
    """x as a cache of a type gives it back."""
    if cache == "q8_0":
        return through_q8_0(x)
    return x.astype(np.float16).astype(np.float64) if cache == "f16" else x


def keys_through_cache(k: np.ndarray, cache: str, *, interleaved: bool) -> np.ndarray:
    """Keys as a cache gives them back. interleaved: a GGUF file of the family has rows (i, i + D/2) side by side."""
    if not interleaved:
        return through_cache(k, cache)
    pairs = k.reshape(*k.shape[:-1], 2, -1).swapaxes(-1, -2)
    return through_cache(pairs.reshape(k.shape), cache).reshape(pairs.shape).swapaxes(-1, -2).reshape(k.shape)


class Activations:
    """Quantises the input of every linear, or takes the codes given; remembers unrounded values and scales."""

    def __init__(self, pinned: dict[str, np.ndarray] | None, quantise: bool) -> None:
        self.pinned, self.quantise = pinned, quantise
        self.unrounded: dict[str, np.ndarray] = {}  # [tokens, cols] by site
        self.scales: dict[str, np.ndarray] = {}  # [tokens]

    def apply(self, site: str, x: np.ndarray) -> np.ndarray:
        if not self.quantise:
            return x
        scale = 127 / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
        self.unrounded[site], self.scales[site] = x * scale, scale[:, 0]
        codes = np.rint(x * scale) if self.pinned is None else self.pinned[site]
        return codes / scale


def forward(
    network: Network, ids: list[int], *, pinned: dict[str, np.ndarray] | None = None, quantise: bool = True,
    cache: str = "f32",
) -> tuple[np.ndarray, Activations]:  # fmt: skip
    """Logits at every position, and what every linear's input was before rounding.

    pinned: the int8 codes to use at each site in place of rounding; the scales stay this pass's own.
    quantise=False runs the same matrices without activation quantisation.
    cache: the type that keys (after the rotary embedding) and values are rounded to; "f32" leaves them in float64.
    """
    config, tokens, eps = network.config, len(ids), network.config["rms_norm_eps"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    inv_freq = inverse_frequencies(config, head_dim)
    activations = Activations(pinned, quantise)
    x = network.embedding[ids]
    for i, layer in enumerate(network.layers):

        def linear(role: str, h: np.ndarray, layer: dict[str, Any] = layer, i: int = i) -> np.ndarray:
            matrix = layer[role].trits.astype(np.float64) * layer[role].multiplier
            return activations.apply(f"blk.{i}.{SITES[role]}", h) @ matrix.T

        h = rms_norm(x, layer["attn_norm"], eps)
        q = rotate(linear("q", h).reshape(tokens, heads, head_dim), inv_freq)
        k = rotate(linear("k", h).reshape(tokens, kv_heads, head_dim), inv_freq)
        v = linear("v", h).reshape(tokens, kv_heads, head_dim)
        k = keys_through_cache(k, cache, interleaved="Llama" in config["architectures"][0])
        o = attention(q, k, through_cache(v, cache))
        if "attn_sub_norm" in layer:
            o = rms_norm(o, layer["attn_sub_norm"], eps)
        x = x + linear("o", o)
        h = rms_norm(x, layer["ffn_norm"], eps)
        gate = linear("gate", h)
        gate = np.maximum(gate, 0) ** 2 if config["hidden_act"] == "relu2" else gate / (1 + np.exp(-gate))
        g = gate * linear("up", h)
        if "ffn_sub_norm" in layer:
            g = rms_norm(g, layer["ffn_sub_norm"], eps)
        x = x + linear("down", g)
    return rms_norm(x, network.norm, eps) @ network.head.T, activations
