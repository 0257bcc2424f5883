"""The keys of a GGUF file that bitconv writes, but for those of the tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import bitconv
from bitconv.pipeline.choice import file_type, layout_metadata

if TYPE_CHECKING:
    from bitconv.formats.gguf_writer import GgufWriter
    from bitconv.models import Hyperparameters
    from bitconv.tensor_types import TensorType
    from bitconv.tensor_types.tiles import Tile


def add_metadata(
    writer: GgufWriter,
    hp: Hyperparameters,
    model: str,
    wanted: TensorType,
    linears: Collection[tuple[TensorType, int, int, Tile | None]],
) -> None:
    """Add every key but those of the tokenizer; docs/FORMAT.md lists them.

    wanted: the type asked for; linears: (type, rows, cols, tile) of each matrix as it is written.
    """
    arch = hp.arch
    for key, text in (("type", "model"), ("name", model)):
        writer.add(f"general.{key}", text, "str")
    writer.add("general.quantization_version", 2, "u32")
    writer.add("general.file_type", file_type(wanted, (linear[0] for linear in linears)), "u32")
    for key, number in (
        ("vocab_size", hp.vocab),
        ("context_length", hp.context),
        ("embedding_length", hp.hidden),
        ("block_count", hp.n_layers),
        ("feed_forward_length", hp.ffn),
        ("rope.dimension_count", hp.head_dim),
        ("attention.head_count", hp.n_heads),
        ("attention.head_count_kv", hp.n_kv_heads),
        ("attention.key_length", hp.head_dim),
        ("attention.value_length", hp.head_dim),
    ):
        writer.add(f"{arch}.{key}", number, "u32")
    writer.add(f"{arch}.attention.layer_norm_rms_epsilon", hp.rms_eps, "f32")
    writer.add(f"{arch}.rope.freq_base", hp.rope_theta, "f32")
    writer.add(f"{arch}.hidden_activation", hp.activation, "str")
    writer.add("bitconv.version", bitconv.__version__, "str")
    for key, text in layout_metadata(linears).items():
        writer.add(key, text, "str")
    if not wanted.ternary:
        writer.add("bitconv.activation_bits", 8, "u32")
