"""The matrices of a GGUF file that are ternary, whether packed or dense, as trits and a multiplier."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import numpy as np

from bitconv.errors import FormatError, ResourceError
from bitconv.formats.gguf import GgufFile, TensorInfo
from bitconv.models import LINEARS
from bitconv.tensor_types.stored import LAYOUT_KEY, Stored, StoredTernary, companion_name, naming, ternary_type
from bitconv.tensor_types.ternary import WeightStatistics, signs, storage_dtype
from bitconv.tensor_types.tiles import METADATA_KEYS, format_kernel_config, parse_kernel_config

STORAGE = ("F32", "F16", "BF16")
CHUNK_BYTES = 1 << 22
_LINEAR = re.compile(rf"blk\.\d+\.(?:{'|'.join(LINEARS)})\.weight")

Count = Callable[[int], None]
"""Told the bytes that were just read."""


class GgufLinears:
    """The linears of one open file: every matrix of a ternary type, and the dense ones that have the name of a linear.

    packed, dense: their names in file order. companions: names of the tensors that are part of a packed one.
    other: a linear of a type that holds no trits, such as Q4_K, by name.
    """

    def __init__(self, gguf: GgufFile, *, kernel_config: str | None = None, i2s_layout: str | None = None) -> None:
        self.gguf = gguf
        self.stored = StoredTernary(gguf, kernel_config=kernel_config, i2s_layout=i2s_layout)
        self.packed: list[str] = []
        self.dense: list[str] = []
        self.other: list[str] = []
        for info in gguf.tensors.values():
            group = self._group(info)
            if group is not None:
                group.append(info.name)
        found = {companion_name(name) for name in self.packed}
        self.companions = {name for name in found if name in gguf.tensors}

    def _group(self, info: TensorInfo) -> list[str] | None:
        if ternary_type(info) is not None:
            return self.packed
        if len(info.shape) != 2 or not _LINEAR.fullmatch(info.name):
            return None
        return self.dense if info.type_name in STORAGE else self.other

    def read(self, name: str) -> Stored:
        """Return a packed linear."""
        return self.stored.read(name)

    def trits(self, name: str) -> np.ndarray:
        """Return the trits of a packed linear, or the signs of a dense one: int8 [rows, cols].

        FormatError or UnsupportedError naming the tensor.
        """
        info = self.gguf.tensors[name]
        rows, cols = info.shape
        if ternary_type(info) is not None:
            stored = self.read(name)
            with naming(self.gguf, name):
                try:
                    return stored.unpack(rows, cols)
                except MemoryError as error:
                    raise ResourceError(f"{rows * cols} weights take more memory than there is") from error
        trits, ternarise, start = np.empty((rows, cols), np.int8), signs(info.type_name), 0
        for piece in pieces(self.gguf, name):
            storage = piece.view(storage_dtype(info.type_name)).reshape(-1, cols)
            trits[start : start + len(storage)] = ternarise(storage)
            start += len(storage)
        return trits

    def multiplier(self, name: str, count: Count | None = None) -> float | None:
        """Return the multiplier of a linear; None for a dense one that is not {-a, 0, +a}.

        A dense one is read for it. FormatError when a weight is not finite or all are zero.
        """
        info = self.gguf.tensors[name]
        if ternary_type(info) is not None:
            return self.read(name).scale
        statistics = WeightStatistics(info.type_name)
        for piece in pieces(self.gguf, name):
            statistics.add(piece.view(storage_dtype(info.type_name)))
            if count is not None:
                count(piece.size)
        with naming(self.gguf, name):
            if not math.isfinite(statistics.largest):
                raise FormatError("a weight is not finite")
            if statistics.largest == 0:
                raise FormatError("all weights are zero")
        return statistics.largest if statistics.smallest == statistics.largest else None


def unstated_config(gguf: GgufFile, kernel_config: str | None) -> str | None:
    """Return what a kernel config says about types whose tiles the file does not state itself."""
    given = parse_kernel_config(kernel_config) if kernel_config else {}
    return format_kernel_config({k: v for k, v in given.items() if METADATA_KEYS[k] not in gguf.metadata}) or None


def unstated_layout(gguf: GgufFile, i2s_layout: str | None) -> str | None:
    """Return the given I2_S layout for a file that does not state its own, else None."""
    return None if LAYOUT_KEY in gguf.metadata else i2s_layout


def pieces(gguf: GgufFile, name: str) -> Iterator[np.ndarray]:
    """Cut a tensor's bytes into whole rows of about CHUNK_BYTES, not for tensors that are tiled or have a tail."""
    info = gguf.tensors[name]
    data = gguf.data(name)
    row = info.nbytes // math.prod(info.shape[:-1])
    step = max(CHUNK_BYTES // row, 1) * row
    for start in range(0, info.nbytes, step):
        yield data[start : start + step]
