"""A GGUF file, loaded and ready: tokens in, logits out."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bitconv import _kernels
from bitconv.errors import BitconvWarning, FormatError, InputError, ResourceError, UnsupportedError
from bitconv.formats.gguf import GgufFile, open_gguf
from bitconv.formats.vocabulary import Vocabulary, read_vocabulary
from bitconv.models import LINEARS, Hyperparameters, read_gguf
from bitconv.models.dead_channels import layout_doubt
from bitconv.models.memory import largest_batch
from bitconv.runtime.placement import place_weights, warn_of_shortage
from bitconv.runtime.rope import inverse_frequencies
from bitconv.runtime.threads import checked_threads
from bitconv.runtime.weights import Weight, Weights
from bitconv.tensor_types.stored import LAYOUT_KEY, WRITTEN_LAYOUT

if TYPE_CHECKING:
    from bitconv.runtime.generate import Generation
    from bitconv.runtime.tokenizer import Tokenizer

CacheType = Literal["f16", "f32", "q8_0"]
_SITES = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    cache_type: CacheType = "f16",
    isa: str | None = None,
    hidden_act: str | None = None,
    kernel_config: str | None = None,
    i2s_layout: str | None = None,
    mmap: bool = True,
    mlock: bool = False,
) -> Model:
    """Open a GGUF file for execution.

    threads: default as `bitconv doctor` says. cache_type: number type of keys and values; "q8_0", one f16 scale for 32
    int8 codes, takes 34/64 of the memory of "f16" at a small loss of accuracy. isa: "scalar", "avx2", ...; None means
    $BITCONV_ISA or the best of this CPU. hidden_act: "silu" or "relu2", overrides the file. kernel_config: tiles of TL1
    and TL2 tensors, such as "tl2:256,256,128,96", for files that do not state them. i2s_layout: "arm64" or "x4" for
    foreign I2_S files in these layouts.
    Weights stay in the mapped file, or without mmap are read into memory. mlock: keep them from being swapped or
    dropped; where that is not permitted, a warning. A warning too where less memory is available than running takes.
    Raises InputError, FormatError, UnsupportedError; ResourceError when weights that must be in memory do not fit.
    """
    if cache_type not in _kernels.CACHE_TYPES:
        raise InputError(f"cache type {cache_type!r} is unknown\nuse one of {', '.join(_kernels.CACHE_TYPES)}")
    gguf, chosen, team = open_gguf(path), choose_isa(isa), checked_threads(threads)
    hp = read_gguf(gguf, hidden_act=hidden_act)
    if LAYOUT_KEY not in gguf.metadata and (doubt := layout_doubt(gguf, i2s_layout or WRITTEN_LAYOUT)):
        warnings.warn(doubt, BitconvWarning, stacklevel=2)
    place_weights(gguf, mmap=mmap, mlock=mlock, threads=team)
    weights = Weights(gguf, threads=team, kernel_config=kernel_config, i2s_layout=i2s_layout)
    return Model(gguf, hp, weights, threads=team, cache_type=cache_type, isa=chosen)


def choose_isa(name: str | None = None) -> str:
    """Return the instruction set to use: name, else $BITCONV_ISA, else the best of this CPU."""
    wanted = name or os.environ.get("BITCONV_ISA") or _kernels.isas()[0]
    if wanted not in _kernels.isas():
        raise InputError(f"instruction set {wanted!r} is not available\nuse one of {', '.join(_kernels.isas())}")
    return wanted


class Model:
    """A loaded model; cheap to keep, safe to use from several threads through one `Context` each."""

    def __init__(
        self,
        gguf: GgufFile,
        hp: Hyperparameters,
        weights: Weights,
        *,
        threads: int,
        cache_type: CacheType,
        isa: str,
    ) -> None:
        self.gguf = gguf
        self.path: Path = gguf.path
        self.hyperparameters = hp
        self.threads, self.cache_type, self.isa = threads, cache_type, isa
        self.n_ctx_train, self.vocab_size = hp.context, hp.vocab
        self.n_params = sum(math.prod(info.shape) for info in gguf.tensors.values())
        self.inv_freq = inverse_frequencies(hp.rope_theta, hp.head_dim, hp.rope_factors)
        self.ternary: frozenset[str] = frozenset()
        self._weights = weights
        self._warned = False
        self.warn_of_shortage(1)  # before all weights are read for the first time
        self.engine = self._build()

    def _build(self) -> _kernels.Engine:
        hp, weights = self.hyperparameters, self._weights
        if hp.head_dim > _kernels.MAX_HEAD_DIM:
            raise FormatError(f"{self.path}: head dimension {hp.head_dim}; at most {_kernels.MAX_HEAD_DIM} can be run")
        embedding = weights.dense("token_embd.weight")
        engine = _kernels.Engine(
            isa=self.isa, n_layers=hp.n_layers, hidden=hp.hidden, ffn=hp.ffn, n_heads=hp.n_heads,
            n_kv_heads=hp.n_kv_heads, head_dim=hp.head_dim, relu2=hp.activation == "relu2",
            interleaved=hp.rope_style == "norm", eps=hp.rms_eps, attention_scale=1 / math.sqrt(hp.head_dim),
            output_norm=weights.norm("output_norm.weight"), embedding=embedding,
            head=embedding if hp.tied_head else weights.dense("output.weight"),
        )  # fmt: skip
        ternary = set()
        for n in range(hp.n_layers):
            linears = {name: weights.linear(f"blk.{n}.{name}.weight") for name in LINEARS}
            ternary |= {f"blk.{n}.{name}" for name, w in linears.items() if _kernels.kernel_names(self.isa, w[3])}
            gate, up = (linears[name][5][0] or 1 for name in ("ffn_gate", "ffn_up"))
            if math.lcm(gate, up) > _kernels.MAX_TILE_ROWS:
                raise UnsupportedError(
                    f"{self.path}: blk.{n}.ffn_gate and ffn_up have tiles of {gate} and {up} rows, which do not go "
                    "together\nrewrite the file with `bitconv quantize`"
                )
            engine.set_layer(
                n,
                attn_norm=weights.norm(f"blk.{n}.attn_norm.weight"),
                attn_sub_norm=weights.optional_norm(f"blk.{n}.attn_sub_norm.weight"),
                ffn_norm=weights.norm(f"blk.{n}.ffn_norm.weight"),
                ffn_sub_norm=weights.optional_norm(f"blk.{n}.ffn_sub_norm.weight"),
                **{name.removeprefix("attn_").removeprefix("ffn_"): weight for name, weight in linears.items()},
            )
        self.ternary = frozenset(ternary)
        weights.check()
        return engine

    def weight(self, name: str) -> Weight:
        """Return what the engine executes for a linear layer such as "blk.0.attn_q"."""
        return self._weights.linear(f"{name}.weight")

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's keys of the file; FormatError when they contradict each other."""
        return read_vocabulary(self.gguf)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, built on first use."""
        from bitconv.runtime.tokenizer import Tokenizer

        return Tokenizer(self.vocabulary)

    def tokenize(self, text: str) -> list[int]:
        """Turn text into token ids, with a BOS first where the model wants one."""
        return self.tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Undo tokenize: control tokens in full, without the BOS that it adds."""
        return self.tokenizer.detokenize(ids)

    def context(self, n_ctx: int | None = None) -> Context:
        """Return an empty key/value cache of n_ctx positions (default: what the model was trained for)."""
        return Context(self, n_ctx if n_ctx is not None else self.n_ctx_train)

    def warn_of_shortage(self, n_ctx: int) -> None:
        """Warn, once, where weights, cache and working memory exceed the memory available."""
        if not self._warned:
            self._warned = warn_of_shortage(self.gguf, self.hyperparameters, n_ctx, self.cache_type)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return float32 [tokens, vocab]: the logits after each position of one sequence, from an empty cache."""
        return self.context(max(len(ids), 1)).forward(ids, logits="all")

    def trace(self, ids: Sequence[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the activation codes of every BitLinear input of one sequence, for tests.

        "blk.0.attn_q" etc. -> (codes int8 [tokens, cols], scale float32 [tokens]); activations ~= codes / scale.
        """
        return self.context(max(len(ids), 1)).trace(ids)

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        """Continue a prompt: an iterator over pieces of text. Options: those of `bitconv.runtime.generate.generate`."""
        from bitconv.runtime.generate import generate

        return generate(self, prompt, **options)


class Context:
    """One sequence in a key/value cache of n_ctx positions, of which n_past are in use."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        if n_ctx < 1:
            raise InputError(f"the context size is {n_ctx}\nuse at least 1")
        self.model, self.n_ctx, self.n_past = model, n_ctx, 0
        self.team = 0
        """Threads that took part in the last forward pass."""
        model.warn_of_shortage(n_ctx)
        cache_type = _kernels.CACHE_TYPES[model.cache_type]
        try:
            self._cache = _kernels.Cache(model.engine, n_ctx, cache_type, model.inv_freq)
        except (MemoryError, OSError, ValueError, OverflowError) as error:
            need = model.engine.cache_bytes(n_ctx, cache_type)
            hint = "" if model.cache_type == "q8_0" else ", or a smaller type of cache (-ctk q8_0)"
            raise ResourceError(
                f"a context of {n_ctx} tokens needs {need / 1e9:.1f} GB, which cannot be had\n"
                f"use a smaller one (-c){hint}"
            ) from error
        self._batch = largest_batch(model.hyperparameters)

    def forward(self, ids: Sequence[int], *, logits: Literal["last", "all", "none"] = "last") -> np.ndarray:
        """Append tokens to the sequence.

        Returns float32 [1, vocab] after the last of them, [tokens, vocab] for "all", or [0, vocab] for "none".
        InputError when they do not fit the context or the vocabulary; FormatError when the model's numbers overflow.
        """
        self._check(ids)
        parts = []
        start = self.n_past
        for first in range(0, len(ids), self._batch):
            part = ids[first : first + self._batch]
            is_last = first + len(part) == len(ids)
            wanted = {"all": len(part), "last": int(is_last), "none": 0}[logits]
            try:
                parts.append(self._run(part, start + first, wanted)[0])
            except BaseException:
                self.n_past = start
                raise
        self.n_past = start + len(ids)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def trace(self, ids: Sequence[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Append tokens and return the activation codes of their BitLinear inputs, as `Model.trace`."""
        self._check(ids)
        _, (codes, scales) = self._run(ids, self.n_past, 0, trace=True)
        self.n_past += len(ids)
        hp = self.model.hyperparameters
        widths = (hp.hidden, hp.n_heads * hp.head_dim, hp.hidden, hp.ffn)
        return {
            f"blk.{n}.{name}": (codes[site][n, :, : widths[site]], scales[n, site])
            for n in range(hp.n_layers)
            for site, names in enumerate(_SITES)
            for name in names
            if f"blk.{n}.{name}" in self.model.ternary
        }

    def truncate(self, n: int) -> None:
        """Forget everything after the first n positions."""
        if not 0 <= n <= self.n_past:
            raise InputError(f"cannot keep {n} of {self.n_past} positions")
        self.n_past = n

    def _check(self, ids: Sequence[int]) -> None:
        vocab = self.model.vocab_size
        if len(ids) == 0:
            raise InputError("there are no tokens to process")
        if min(ids) < 0 or max(ids) >= vocab:
            raise InputError(f"token ids reach from {min(ids)} to {max(ids)}\nthose of this model are 0 to {vocab - 1}")
        if self.n_past + len(ids) > self.n_ctx:
            raise InputError(
                f"{len(ids)} tokens after {self.n_past} do not fit the context of {self.n_ctx}\nuse a larger one (-c)"
            )

    def _run(self, ids: Sequence[int], position: int, wanted: int, *, trace: bool = False) -> tuple[np.ndarray, Any]:
        """Run one batch; logits of its last `wanted` tokens."""
        logits, self.team, bad, traced = self._cache.extend(ids, position, wanted, self.model.threads, trace)
        if bad >= 0:
            name = _site_name(bad, self.model.hyperparameters.n_layers)
            raise FormatError(f"{self.model.path}: {name} is not finite: the model's weights or scales overflow")
        return logits, traced


def _site_name(bad: int, n_layers: int) -> str:
    layer, site = divmod(bad, _kernels.SITES)
    if layer < n_layers:
        return f"the input of blk.{layer}.{_SITES[site][0]}"
    return ("the input of the output norm", "a logit")[site]
