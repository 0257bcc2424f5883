"""The vocabulary of model families: hyperparameters, the declared data of a family, GGUF tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The matrices of a block that are ternary, in the order in which a file holds them."""


@dataclass(frozen=True)
class Hyperparameters:
    """Everything besides the weights that a forward pass needs.

    arch: value of `general.architecture`. hidden, ffn, vocab, context: sizes; context is what the model was
    trained for. rope_style: "norm" rotates pairs (2i, 2i+1), "neox" pairs (i, i + head_dim/2).
    activation: "silu" or "relu2". sub_norms: an RMSNorm before attn_output and before ffn_down.
    rope_factors: float32 [head_dim / 2] by which the inverse frequencies are divided, or None.
    tied_head: the output matrix is the token embedding.
    """

    arch: str
    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rms_eps: float
    rope_theta: float
    rope_style: str
    activation: str
    sub_norms: bool
    tied_head: bool
    rope_factors: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ModelFamily:
    """One family of models, declared.

    hf_names: GGUF name with `{n}` for the layer -> the names that checkpoints use for it, any one of them.
    activations: what `hidden_act` may be. rope_style, sub_norms: as in Hyperparameters.
    plain_form: what a checkpoint without quantization_config holds: "online" (masters that the reference
        ternarises by absmean as it runs) or "exact" (matrices that are already {-a, 0, +a}).
    gguf_arch(activation, tied_head): the architecture under which a file is written.
    gguf_activation(arch, vocab, hidden, ffn): activation of a GGUF file without `hidden_activation`, and a
        sentence for the user when it is a guess.
    default_rope_theta: theta of a config.json without one; None when it must be there.
    """

    name: str
    hf_architectures: tuple[str, ...]
    gguf_architectures: tuple[str, ...]
    hf_names: Mapping[str, tuple[str, ...]]
    activations: tuple[str, ...]
    rope_style: str
    sub_norms: bool
    plain_form: str
    gguf_arch: Callable[[str, bool], str]
    gguf_activation: Callable[[str, int, int, int], tuple[str, str | None]]
    default_rope_theta: float | None = None


_BLOCK = "model.layers.{n}."
DECODER_NAMES: Mapping[str, tuple[str, ...]] = {
    "token_embd.weight": ("model.embed_tokens.weight",),
    "output.weight": ("lm_head.weight",),
    "output_norm.weight": ("model.norm.weight",),
    "blk.{n}.attn_norm.weight": (_BLOCK + "input_layernorm.weight",),
    "blk.{n}.attn_q.weight": (_BLOCK + "self_attn.q_proj.weight",),
    "blk.{n}.attn_k.weight": (_BLOCK + "self_attn.k_proj.weight",),
    "blk.{n}.attn_v.weight": (_BLOCK + "self_attn.v_proj.weight",),
    "blk.{n}.attn_output.weight": (_BLOCK + "self_attn.o_proj.weight",),
    "blk.{n}.ffn_norm.weight": (_BLOCK + "post_attention_layernorm.weight",),
    "blk.{n}.ffn_gate.weight": (_BLOCK + "mlp.gate_proj.weight",),
    "blk.{n}.ffn_up.weight": (_BLOCK + "mlp.up_proj.weight",),
    "blk.{n}.ffn_down.weight": (_BLOCK + "mlp.down_proj.weight",),
}
"""Names that all decoders of this package share."""


def gguf_tensor_names(hp: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """Return the name and shape (rows, cols) of every tensor that the runtime uses, in file order."""
    attention, kv = hp.n_heads * hp.head_dim, hp.n_kv_heads * hp.head_dim
    names: dict[str, tuple[int, ...]] = {"token_embd.weight": (hp.vocab, hp.hidden)}
    if not hp.tied_head:
        names["output.weight"] = (hp.vocab, hp.hidden)
    names["output_norm.weight"] = (hp.hidden,)
    if hp.rope_factors is not None:
        names["rope_freqs.weight"] = (hp.head_dim // 2,)
    for n in range(hp.n_layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (hp.hidden,),
            "attn_q": (attention, hp.hidden),
            "attn_k": (kv, hp.hidden),
            "attn_v": (kv, hp.hidden),
            "attn_sub_norm": (attention,),
            "attn_output": (hp.hidden, attention),
            "ffn_norm": (hp.hidden,),
            "ffn_gate": (hp.ffn, hp.hidden),
            "ffn_up": (hp.ffn, hp.hidden),
            "ffn_sub_norm": (hp.ffn,),
            "ffn_down": (hp.hidden, hp.ffn),
        }
        for name, shape in block.items():
            if hp.sub_norms or not name.endswith("sub_norm"):
                names[f"blk.{n}.{name}.weight"] = shape
    return names
