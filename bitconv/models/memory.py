"""The memory that running a model takes, in numbers, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from bitconv import _kernels
from bitconv.models.family import Hyperparameters

_LARGEST_BATCH = 512
_SCRATCH_BYTES = 128 << 20  # larger models work in smaller batches


@dataclass(frozen=True)
class Memory:
    """Bytes that running takes: tensors, which stay in the mapped file, and keys and values of `context` positions.

    cache_type: that of keys and values, as `bitconv.load` takes it. rotary: the table of sines and cosines. scratch:
    working memory of the largest batch.
    """

    context: int
    tensors: int
    cache_type: str
    keys_and_values: int
    rotary: int
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.tensors + self.keys_and_values + self.rotary + self.scratch


def memory_of(hp: Hyperparameters, tensors: int, context: int | None = None, cache_type: str = "f16") -> Memory:
    """Return what a model with `tensors` bytes of weights takes. context: default, what the model was trained for."""
    if context is None:
        context = hp.context
    block = _kernels.cache_block_bytes(hp.head_dim, _kernels.CACHE_TYPES[cache_type])
    cache = -(-context // _kernels.KEYS) * hp.n_layers * hp.n_kv_heads * block
    scratch = scratch_bytes(hp, largest_batch(hp))
    return Memory(context, tensors, cache_type, cache, context * hp.head_dim * 4, scratch)


def scratch_bytes(hp: Hyperparameters, n_tokens: int) -> int:
    """Return the working memory of a batch."""
    return _kernels.scratch_bytes(
        n_tokens, hidden=hp.hidden, ffn=hp.ffn, n_heads=hp.n_heads, n_kv_heads=hp.n_kv_heads, head_dim=hp.head_dim
    )


def largest_batch(hp: Hyperparameters) -> int:
    """Return the tokens of one pass, at most; a longer prompt is computed in several."""
    per_token = scratch_bytes(hp, _LARGEST_BATCH) // _LARGEST_BATCH
    return max(16, min(_LARGEST_BATCH, _SCRATCH_BYTES // per_token))
