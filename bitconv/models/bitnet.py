"""BitNet b1.58: Microsoft's 2B-4T (ReLU squared) and 1bitLLM's bitnet_b1_58-large and -3B (SiLU)."""

from __future__ import annotations

from bitconv.models.family import DECODER_NAMES, ModelFamily

_SILU_LAYOUTS = {(1536, 4096), (3200, 8640)}


def gguf_arch(activation: str, tied_head: bool) -> str:
    """Return `bitnet` for SiLU with a tied head, which is all that its graph in other runtimes knows."""
    return "bitnet" if activation == "silu" and tied_head else "bitnet-b1.58"


def gguf_activation(arch: str, vocab: int, hidden: int, ffn: int) -> tuple[str, str | None]:
    """Return the activation that a file without `hidden_activation` was made for."""
    if arch == "bitnet":
        return "silu", None
    if vocab == 32002 and (hidden, ffn) in _SILU_LAYOUTS:
        # One converter of July 2026 labels these SiLU models with the architecture of the ReLU squared one.
        return "silu", (
            f"architecture {arch} with vocabulary 32002 and layout {hidden}/{ffn} is a bitnet_b1_58 model: "
            "assuming SiLU (hidden_act relu2 overrides)"
        )
    return "relu2", None


FAMILY = ModelFamily(
    name="bitnet",
    hf_architectures=("BitNetForCausalLM", "BitnetForCausalLM"),
    gguf_architectures=("bitnet-b1.58", "bitnet-25", "bitnet"),
    hf_names={
        **DECODER_NAMES,
        "blk.{n}.attn_sub_norm.weight": (
            "model.layers.{n}.self_attn.attn_sub_norm.weight",
            "model.layers.{n}.self_attn.inner_attn_ln.weight",
        ),
        "blk.{n}.ffn_sub_norm.weight": (
            "model.layers.{n}.mlp.ffn_sub_norm.weight",
            "model.layers.{n}.mlp.ffn_layernorm.weight",
        ),
    },
    activations=("relu2", "silu"),
    rope_style="neox",
    sub_norms=True,
    plain_form="online",
    gguf_arch=gguf_arch,
    gguf_activation=gguf_activation,
)
