"""What a GGUF file holds, as plain values; works also on files that the runtime cannot execute."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitconv import machine
from bitconv.errors import BitconvError, BitconvWarning
from bitconv.formats.ggml_types import file_type_name
from bitconv.formats.gguf import GgufFile, TensorInfo, open_gguf
from bitconv.formats.vocabulary import TokenType, Vocabulary, read_vocabulary
from bitconv.models import Hyperparameters, gguf_tensor_names, read_gguf
from bitconv.models.dead_channels import layout_doubt
from bitconv.models.memory import Memory, memory_of
from bitconv.pipeline.gguf_linears import GgufLinears
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.stored import companion_scale, ternary_type

SHOWN_ITEMS = 6
SHOWN_LETTERS = 160
_COUNTED = 1 << 30  # weights of the largest matrix whose weights are counted; real ones are far smaller

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TensorRow:
    """One line of the tensor table; shape is (rows, cols), offset counts from the start of the file.

    scale: the multiplier of a ternary matrix, its companion included. negative, zero, positive: shares of its
    weights, 0 to 1. note: why they are not known.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    bits_per_weight: float
    scale: float | None = None
    negative: float | None = None
    zero: float | None = None
    positive: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class TypeRow:
    """All tensors of one type together.

    kernels: the C functions that run a ternary type here, for single tokens and for prompts; () for other types.
    """

    type: str
    tensors: int
    weights: int
    bytes: int
    bits_per_weight: float
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """A GGUF file, described. `problem` says why the runtime cannot execute it, or is None.

    metadata: key -> (type, value), long values shortened. tokenizer: facts, or {} where the file has none.
    memory: None for a file that is no model of a known architecture. memory_available: bytes, now.
    isa: instruction set of the kernels.
    """

    path: str
    file_bytes: int
    version: int
    alignment: int
    file_type: str | None
    problem: str | None
    metadata: Mapping[str, tuple[str, Any]]
    tokenizer: Mapping[str, Any]
    types: Sequence[TypeRow]
    tensors: Sequence[TensorRow]
    isa: str
    memory: Memory | None
    memory_available: int | None


def inspect(
    path: str | os.PathLike[str],
    *,
    count_weights: bool = False,
    context: int | None = None,
    cache_type: str = "f16",
    isa: str | None = None,
    kernel_config: str | None = None,
    i2s_layout: str | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Describe a GGUF file; InputError, FormatError or UnsupportedError when its header cannot be read.

    count_weights: read every ternary matrix, for its scale and the shares of its weights. context: positions that
    memory is computed for; default: what the model was trained for. cache_type: "f16", "f32" or "q8_0", of keys and
    values. isa: whose kernels to name; default: the best.
    kernel_config, i2s_layout: for files that do not state them. progress(done, total): bytes of tensors.
    """
    from bitconv import _kernels

    isa = isa or _kernels.isas()[0]
    with open_gguf(path) as gguf:
        tokenizer, tokenizer_problem = _tokenizer(gguf)
        type_names = {info.type_name for info in gguf.tensors.values()}
        file_type = gguf.metadata.get("general.file_type")
        linears = GgufLinears(gguf, kernel_config=kernel_config, i2s_layout=i2s_layout)
        hp, problem = _model(gguf, linears)
        doubt = layout_doubt(gguf, linears.stored.layout) if count_weights else None
        if doubt:
            warnings.warn(doubt, BitconvWarning, stacklevel=2)
        census = _Census(gguf, linears, progress)
        return Inspection(
            path=str(gguf.path),
            file_bytes=gguf.size,
            version=gguf.version,
            alignment=gguf.alignment,
            file_type=file_type_name(file_type, type_names) if type(file_type) is int else None,
            problem=problem or tokenizer_problem,
            metadata={key: (gguf.metadata_types[key], shorten(gguf.metadata[key])) for key in gguf.metadata},
            tokenizer=tokenizer,
            types=_type_rows(gguf, isa),
            tensors=[census.row(i) if count_weights else _row(i) for i in gguf.tensors.values()],
            isa=isa,
            memory=memory_of(hp, gguf.tensor_bytes, context, cache_type) if hp else None,
            memory_available=machine.available_memory(),
        )


def _row(info: TensorInfo, **census: Any) -> TensorRow:
    bits = _bits(info.nbytes, math.prod(info.shape))
    return TensorRow(info.name, info.type_name, info.shape, info.offset, info.nbytes, bits, **census)


class _Census:
    """Counts the weights of ternary matrices; what cannot be counted gets a note instead."""

    def __init__(self, gguf: GgufFile, linears: GgufLinears, progress: Progress | None) -> None:
        self._gguf, self._linears, self._progress = gguf, linears, progress
        self._names = {*linears.packed, *linears.dense}
        self._done, self._total = 0, sum(info.nbytes for info in gguf.tensors.values())

    def row(self, info: TensorInfo) -> TensorRow:
        """Return the line of one tensor."""
        census: dict[str, Any] = {}
        if info.name in self._names:
            try:
                census = self._count(info)
            except BitconvError as error:
                census = {"scale": self._scale(info), "note": str(error).splitlines()[0]}
        self._done += info.nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)
        return _row(info, **census)

    def _count(self, info: TensorInfo) -> dict[str, Any]:
        scale = self._linears.multiplier(info.name)
        if scale is None:
            return {"note": "not ternary"}
        weights = math.prod(info.shape)
        if weights > _COUNTED:
            return {"scale": scale, "note": "too large to count"}
        trits = self._linears.trits(info.name)
        nonzero, total = int(np.count_nonzero(trits)), int(trits.sum(dtype=np.int64))
        self._gguf.release(info.name)
        return {
            "scale": scale, "negative": (nonzero - total) // 2 / weights, "zero": (weights - nonzero) / weights,
            "positive": (nonzero + total) // 2 / weights,
        }  # fmt: skip

    def _scale(self, info: TensorInfo) -> float | None:
        """Return the multiplier alone, which needs neither tiles nor layout; None where it is damaged."""
        kind = ternary_type(info)
        if kind is None or len(info.shape) != 2:
            return None
        try:
            scale = kind.read_scale(self._gguf.data(info.name), *info.shape)
            scale *= companion_scale(self._gguf, info.name) or 1
        except BitconvError:
            return None
        return scale if math.isfinite(scale) else None


def metadata_value(path: str | os.PathLike[str], key: str) -> Any:
    """The whole value of one key as int, float, bool, str or list; InputError lists similar keys."""
    from difflib import get_close_matches

    from bitconv.errors import InputError

    with open_gguf(path) as gguf:
        if key not in gguf.metadata:
            near = get_close_matches(key, list(gguf.metadata), n=3, cutoff=0.3)
            hint = f"did you mean {' or '.join(near)}?" if near else "bitconv inspect FILE lists the keys"
            raise InputError(f"{path}: there is no key {key}\n{hint}")
        value = gguf.metadata[key]
        return value if isinstance(value, str) else plain(value)


def plain(value: Any) -> Any:
    """A value of the metadata as JSON can hold it; nan and infinities become text."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value


def shorten(value: Any) -> Any:
    """A value of the metadata cut to what a reader looks at: {"length": n, "first": [...]} for long arrays."""
    if isinstance(value, str):
        cut = len(value) - SHOWN_LETTERS
        return value if cut <= 0 else f"{value[:SHOWN_LETTERS]}... ({cut} more characters)"
    if isinstance(value, np.ndarray | Sequence):
        if len(value) <= SHOWN_ITEMS:
            return plain(value)
        return {"length": len(value), "first": [shorten(item) for item in plain(value[:SHOWN_ITEMS])]}
    return plain(value)


def _bits(nbytes: int, weights: int) -> float:
    return nbytes * 8 / weights


def _type_rows(gguf: GgufFile, isa: str) -> list[TypeRow]:
    from bitconv import _kernels

    groups: dict[str, tuple[int, int, int]] = {}
    kernels: dict[str, tuple[str, ...]] = {}
    for info in gguf.tensors.values():
        count, weights, nbytes = groups.get(info.type_name, (0, 0, 0))
        groups[info.type_name] = count + 1, weights + math.prod(info.shape), nbytes + info.nbytes
        kernels[info.type_name] = _kernels.kernel_names(isa, info.type_id) if ternary_type(info) else ()
    return [TypeRow(name, n, w, b, _bits(b, w), kernels[name]) for name, (n, w, b) in groups.items()]


def _model(gguf: GgufFile, linears: GgufLinears) -> tuple[Hyperparameters | None, str | None]:
    """Return the hyperparameters, and why the runtime cannot execute the file; either may be None."""
    hp = None
    try:
        hp = read_gguf(gguf)
        for name in gguf_tensor_names(hp):
            info = gguf.tensors[name]
            if tensor_type(info.type_name).kernel is None:
                return hp, f"tensor {name} is {info.type_name}, which cannot be run"
            linears.stored.tiles(name)
    except BitconvError as error:
        return hp, str(error).splitlines()[0]
    return hp, None


def _tokenizer(gguf: GgufFile) -> tuple[dict[str, Any], str | None]:
    if not any(key.startswith("tokenizer.") for key in gguf.metadata):
        return {}, "the file has no tokenizer"
    try:
        return _tokenizer_facts(read_vocabulary(gguf)), None
    except BitconvError as error:
        return {}, str(error).splitlines()[0]


def _tokenizer_facts(vocabulary: Vocabulary) -> dict[str, Any]:
    counts = {} if vocabulary.types is None else _count_types(vocabulary.types)
    special = {
        name: {"id": token, "text": vocabulary.tokens[token]}
        for name in ("bos", "eos", "eot", "eom", "unk", "pad")
        if (token := getattr(vocabulary, f"{name}_id")) is not None
    }
    return {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": len(vocabulary.tokens),
        "token_types": counts,
        "merges": len(vocabulary.merges),
        **special,
        "end_of_generation": sorted(vocabulary.eog_ids),
        "add_bos": vocabulary.add_bos,
        "add_eos": vocabulary.add_eos,
        "add_space_prefix": vocabulary.add_space_prefix,
        "chat_template": vocabulary.chat_template is not None,
        "huggingface_json": vocabulary.huggingface_json is not None,
    }


def _count_types(types: np.ndarray[Any, np.dtype[np.int32]]) -> dict[str, int]:
    values, counts = np.unique(types, return_counts=True)
    return {TokenType(v).name.lower(): int(n) for v, n in zip(values.tolist(), counts, strict=True)}
