"""From the metadata and tensor table of a GGUF file to hyperparameters that the runtime can trust."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from bitconv.errors import BitconvWarning, FormatError, UnsupportedError
from bitconv.models.family import LINEARS, Hyperparameters, ModelFamily, gguf_tensor_names
from bitconv.tensor_types.stored import (
    LAYOUT_KEY,
    WRITTEN_LAYOUT,
    companion_name,
    companion_scale,
    naming,
    ternary_type,
)

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile

ACTIVATIONS = ("relu2", "silu")
_LARGEST_SIZE = 1 << 26
_LARGEST_LAYERS = 10_000
_LARGEST_HEAD = 1 << 16
_LARGEST_CONTEXT = 1 << 30

# Keys under the architecture that change the forward pass in ways the runtime does not know, with the values
# that leave it as it is.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "pooling_type": (0,),
    "residual_scale": (1.0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none", "linear"),
    "use_parallel_residual": (False,),
}


def read_gguf(gguf: GgufFile, *, hidden_act: str | None = None) -> Hyperparameters:
    """Read what a forward pass needs from a GGUF file and check that every tensor is there, in its shape.

    hidden_act: "silu" or "relu2", overrides what the file says or implies.
    FormatError: a key or tensor is missing, contradictory or of the wrong type or shape.
    UnsupportedError: another architecture, or a feature that the runtime does not have.
    A guessed activation is a BitconvWarning.
    """
    from bitconv.models import family_of_gguf

    arch = gguf.get("general.architecture", str)
    family = family_of_gguf(arch)
    _refuse_unknown_features(gguf, arch)
    hidden = _size(gguf, f"{arch}.embedding_length", _LARGEST_SIZE)
    ffn = _size(gguf, f"{arch}.feed_forward_length", _LARGEST_SIZE)
    n_heads = _size(gguf, f"{arch}.attention.head_count", 1 << 16)
    vocab = _vocabulary_size(gguf, arch, hidden)
    hp = Hyperparameters(
        arch=arch,
        n_layers=_size(gguf, f"{arch}.block_count", _LARGEST_LAYERS),
        hidden=hidden,
        ffn=ffn,
        n_heads=n_heads,
        n_kv_heads=_kv_heads(gguf, arch, n_heads),
        head_dim=_head_dim(gguf, arch, hidden, n_heads),
        vocab=vocab,
        context=_size(gguf, f"{arch}.context_length", _LARGEST_CONTEXT),
        rms_eps=_real(gguf, f"{arch}.attention.layer_norm_rms_epsilon", None, 0.0, 1.0),
        rope_theta=_real(gguf, f"{arch}.rope.freq_base", 10000.0, 1.0, 1e15),
        rope_style=family.rope_style,
        activation=hidden_act or _activation(gguf, family, arch, (vocab, hidden, ffn)),
        sub_norms=family.sub_norms,
        tied_head="output.weight" not in gguf.tensors,
        rope_factors=_rope_factors(gguf),
    )
    if hp.activation not in ACTIVATIONS:
        known, found = ", ".join(ACTIVATIONS), hp.activation
        raise UnsupportedError(f"{gguf.path}: activation {found!r} is not supported; supported: {known}")
    _check_tensors(gguf, hp)
    return hp


def _refuse_unknown_features(gguf: GgufFile, arch: str) -> None:
    layout = gguf.get(LAYOUT_KEY, str, WRITTEN_LAYOUT)
    if layout != WRITTEN_LAYOUT:
        raise UnsupportedError(f"{gguf.path}: I2_S layout {layout[:80]!r} is not supported; {WRITTEN_LAYOUT!r} is")
    for key, neutral in _NEUTRAL.items():
        value = gguf.metadata.get(f"{arch}.{key}")
        if value is not None and not (isinstance(value, int | float | str) and value in neutral):
            raise UnsupportedError(f"{gguf.path}: {arch}.{key} = {value!r} is not supported by this runtime")


def _size(gguf: GgufFile, key: str, largest: int, default: int | None = None) -> int:
    """Read a count; a per-layer array is accepted when every layer agrees."""
    value = gguf.metadata.get(key, default)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        if (value != value[0]).any():
            raise UnsupportedError(f"{gguf.path}: {key} differs between layers, which is not supported")
        value = int(value[0])
    elif value is None or value is not default:
        value = gguf.get(key, int)
    if not 1 <= value <= largest:
        raise FormatError(f"{gguf.path}: {key} is {value}; expected 1 to {largest}")
    return value


def _real(gguf: GgufFile, key: str, default: float | None, low: float, high: float) -> float:
    value = gguf.get(key, float) if default is None else gguf.get(key, float, default)
    if not (math.isfinite(value) and low <= value <= high):
        raise FormatError(f"{gguf.path}: {key} is {value}; expected {low:g} to {high:g}")
    return value


def _kv_heads(gguf: GgufFile, arch: str, n_heads: int) -> int:
    n_kv_heads = _size(gguf, f"{arch}.attention.head_count_kv", n_heads, n_heads)
    if n_heads % n_kv_heads:
        raise FormatError(f"{gguf.path}: {n_heads} heads cannot share {n_kv_heads} key-value heads")
    return n_kv_heads


def _head_dim(gguf: GgufFile, arch: str, hidden: int, n_heads: int) -> int:
    head_dim = _size(gguf, f"{arch}.attention.key_length", _LARGEST_HEAD, max(hidden // n_heads, 1))
    if f"{arch}.attention.key_length" not in gguf.metadata and hidden % n_heads:
        raise FormatError(f"{gguf.path}: {n_heads} heads do not divide embedding_length {hidden}")
    if head_dim % 2:
        raise FormatError(f"{gguf.path}: head dimension {head_dim} is odd, so it cannot be rotated in pairs")
    for key in ("attention.value_length", "rope.dimension_count"):
        other = _size(gguf, f"{arch}.{key}", _LARGEST_HEAD, head_dim)
        if other != head_dim:
            difference = f"{arch}.{key} is {other}, head dimension {head_dim}"
            raise UnsupportedError(f"{gguf.path}: {difference}; only equal ones are supported")
    return head_dim


def _vocabulary_size(gguf: GgufFile, arch: str, hidden: int) -> int:
    info = gguf.tensors.get("token_embd.weight")
    if info is None:
        raise FormatError(f"{gguf.path}: tensor token_embd.weight is missing")
    if len(info.shape) != 2 or info.shape[1] != hidden:
        shape = list(info.shape)
        raise FormatError(f"{gguf.path}: token_embd.weight is {shape}; expected [vocabulary, {hidden}]")
    rows = info.shape[0]
    tokens = gguf.get("tokenizer.ggml.tokens", list, None)
    claims = {f"{arch}.vocab_size": _size(gguf, f"{arch}.vocab_size", _LARGEST_SIZE, rows)}
    if tokens is not None:
        claims["the length of tokenizer.ggml.tokens"] = len(tokens)
    for what, count in claims.items():
        if count != rows:
            raise FormatError(f"{gguf.path}: token_embd.weight has {rows} rows but {what} is {count}")
    return rows


def _activation(gguf: GgufFile, family: ModelFamily, arch: str, sizes: tuple[int, int, int]) -> str:
    declared = gguf.get(f"{arch}.hidden_activation", str, None)
    if declared is not None:
        return declared
    activation, guess = family.gguf_activation(arch, *sizes)
    if guess:
        warnings.warn(f"{gguf.path}: {guess}", BitconvWarning, stacklevel=4)
    return activation


def _rope_factors(gguf: GgufFile) -> np.ndarray | None:
    info = gguf.tensors.get("rope_freqs.weight")
    if info is None:
        return None
    if info.type_name != "F32" or len(info.shape) != 1 or info.shape[0] > _LARGEST_HEAD:
        found = f"{info.type_name} {list(info.shape)}"
        raise UnsupportedError(f"{gguf.path}: rope_freqs.weight is {found}; only an F32 vector is supported")
    factors = gguf.data(info.name).view("<f4").copy()
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise FormatError(f"{gguf.path}: rope_freqs.weight holds a value that is not finite and positive")
    return factors


def _check_tensors(gguf: GgufFile, hp: Hyperparameters) -> None:
    left = set(gguf.tensors)
    for name, shape in gguf_tensor_names(hp).items():
        info = gguf.tensors.get(name)
        if info is None:
            raise FormatError(f"{gguf.path}: tensor {name} is missing")
        if info.shape != shape:
            raise FormatError(f"{gguf.path}: tensor {name} is {list(info.shape)}; expected {list(shape)}")
        left.discard(name)
    left -= _companions(gguf, hp)
    if left:
        # Leaving one out would compute another model.
        raise UnsupportedError(
            f"{gguf.path}: {len(left)} tensors that this runtime does not use, such as {min(left)} "
            "(biases, experts, further norms and scale companions of dense matrices are not supported)"
        )


def _companions(gguf: GgufFile, hp: Hyperparameters) -> set[str]:
    """Return the names of the tensors that hold a further multiplier of a ternary matrix; FormatError for a bad one."""
    found = set()
    for n in range(hp.n_layers):
        for linear in LINEARS:
            name = f"blk.{n}.{linear}.weight"
            if ternary_type(gguf.tensors[name]) is not None:
                with naming(gguf, name):
                    if companion_scale(gguf, name) is not None:
                        found.add(companion_name(name))
    return found
