"""Llama with ternary linears: Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E."""

from __future__ import annotations

from bitconv.models.family import DECODER_NAMES, ModelFamily

FAMILY = ModelFamily(
    name="llama",
    hf_architectures=("LlamaForCausalLM",),
    gguf_architectures=("llama",),
    hf_names=DECODER_NAMES,
    activations=("silu",),
    rope_style="norm",
    sub_norms=False,
    plain_form="exact",
    gguf_arch=lambda activation, tied_head: "llama",
    gguf_activation=lambda arch, vocab, hidden, ffn: ("silu", None),
    # What a Llama config.json without theta has meant since the first release.
    default_rope_theta=10000.0,
)
