"""The packing kernels as the conversion sees them: statistics and packing of stored weights, exact and without the GIL.

What they compute is defined by tensor_types/: WeightStatistics, absmean_rounding, signs, unpack_hf, dense.py and the
pack of each ternary type. A ternary type without kernels is packed by its own pack_into.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from dataclasses import dataclass

import numpy as np

from bitconv.tensor_types import TensorType
from bitconv.tensor_types.ternary import Ternarise, absmean_rounding, signs
from bitconv.tensor_types.tiles import Tile

_TYPE_IDS = {"F32": 0, "F16": 1, "BF16": 30}
_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_GROUP = 32  # rows that TL1 and TL2 are packed by


@functools.cache
def _packer() -> str:
    from bitconv import _kernels

    return "plain" if os.environ.get("BITCONV_ISA") == "scalar" else _kernels.packers()[0]


class Survey:
    """WeightStatistics for several threads: pieces of one matrix may be added at once and in any order."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.n = 0
        self._sum = 0
        self._largest = 0
        self._smallest = 0
        self._lock = threading.Lock()

    def add(self, storage: np.ndarray) -> None:
        """Count one more piece of the matrix, as the checkpoint stores it."""
        from bitconv import _kernels

        data = np.ascontiguousarray(storage).reshape(-1).view(np.uint8)
        total, largest, smallest = _kernels.weight_statistics(data, _TYPE_IDS[self.dtype], _packer())
        with self._lock:
            self.n += storage.size
            self._sum += total
            self._largest = max(self._largest, largest)
            self._smallest = min(self._smallest or smallest, smallest or self._smallest)

    @property
    def largest(self) -> float:
        """max |w|, infinite or NaN when a weight is."""
        return float(np.uint32(self._largest).view(np.float32))

    @property
    def smallest(self) -> float:
        """min |w| over the weights that are not zero; infinite when all are."""
        return float(np.uint32(self._smallest).view(np.float32)) if self._smallest else math.inf

    def magnitude_sum(self) -> float:
        """Sum of |w| over the matrix, exact and then rounded once to float64."""
        return self._sum / (1 << 149)


@dataclass(frozen=True)
class Rounding:
    """How the stored weights of a matrix become trits: rounded after multiplication by scale, or by their signs."""

    dtype: str
    scale: np.float32 | None

    def ternarise(self) -> Ternarise:
        """Return the NumPy function from stored weights to trits."""
        return signs(self.dtype) if self.scale is None else absmean_rounding(self.dtype, self.scale)

    @functools.cached_property
    def threshold(self) -> int:
        """The least magnitude, as bits of the dtype, that becomes +1; that of infinity when none does."""
        if self.scale is None:
            return 1
        round_one = absmean_rounding("F32", self.scale)  # the definition itself; it is monotone in the magnitude
        low, high = 1, _INFINITY[self.dtype]
        while low < high:  # 64 at a time: the calls are what takes time
            step = -(-(high - low) // 64)
            tried = np.arange(low, high, step)
            with np.errstate(over="ignore"):
                below = int(np.count_nonzero(round_one(_magnitudes(tried, self.dtype)) == 0))
            if below < len(tried):
                high = int(tried[below])
            if below:
                low = int(tried[below - 1]) + 1
        return low


def _magnitudes(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Return the float32 values of bit patterns."""
    if dtype == "F16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << (16 if dtype == "BF16" else 0)).view(np.float32)


def convert_dense(storage: np.ndarray, dtype: str, kind: TensorType) -> np.ndarray | None:
    """Return stored weights in a dense type, uint8 [nbytes], as to_float32 and its pack_rows give them.

    None when there are no kernels for the pair, or a weight is not finite or too large: pack_rows then says so.
    """
    from bitconv import _kernels

    if dtype not in _TYPE_IDS or kind.gguf_id not in _kernels.DENSE_TYPES:
        return None
    out = np.empty(kind.nbytes(1, storage.size), np.uint8)
    data = np.ascontiguousarray(storage).reshape(-1).view(np.uint8)
    done = _kernels.convert_dense(out, kind.gguf_id, data, _TYPE_IDS[dtype], _packer())
    return out if done == storage.size else None


def can_pack(kind: TensorType) -> bool:
    """Whether there are kernels that pack this ternary type."""
    from bitconv import _kernels

    return kind.gguf_id in _kernels.PACKED_TYPES


def row_group(kind: TensorType, rows: int, cols: int, tile: Tile | None) -> int:
    """Return what the number of rows of a piece must be a multiple of."""
    return _GROUP if can_pack(kind) and tile is not None else kind.row_group(rows, cols, tile)


@dataclass(frozen=True)
class Target:
    """A ternary tensor that is being packed: out uint8 [nbytes] for [rows, cols], as pack_into takes them.

    head_rows: rows of the attention heads whose rotary order changes on the way, or 0. scale: what the bytes hold.
    """

    out: np.ndarray
    type: TensorType
    rows: int
    cols: int
    tile: Tile | None
    head_rows: int
    scale: float

    def pack_masters(self, storage: np.ndarray, start: int, rounding: Rounding) -> int:
        """Place rows start to start + n, stored as [n, cols] in whole heads; return how many weights are not 0."""
        from bitconv import _kernels

        stored = _kernels.STORED_32 if rounding.dtype == "F32" else _kernels.STORED_16
        return self._pack(storage, stored, start, start, start + storage.shape[0], rounding.threshold)

    def pack_packed(self, packed: np.ndarray, start: int, stop: int) -> int:
        """Place rows start to stop of a whole matrix in Hugging Face's 2-bit form; -1 when there is a code 3."""
        from bitconv import _kernels

        return self._pack(packed, _kernels.STORED_2BIT, 0, start, stop, 1)

    def finish(self) -> None:
        """Place what follows the rows: padding and tail."""
        no_rows = np.empty((0, self.cols), np.int8)
        self.type.pack_into(self.out, no_rows, self.rows, self.rows, self.scale, self.tile)

    def _pack(self, source: np.ndarray, stored: int, first: int, start: int, stop: int, threshold: int) -> int:
        from bitconv import _kernels

        data = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
        with np.errstate(over="ignore"):  # only blocks of TQ1_0 and TQ2_0 take d, and theirs fits
            d = np.float16(1 if self.type.companion_scale(self.scale) is not None else self.scale).view(np.uint16)
        return _kernels.pack(
            self.out, self.type.gguf_id, self.rows, self.cols, self.tile or (0, 0, 0), data, stored, first, start, stop,
            _packer(), threshold=threshold, head_rows=self.head_rows, d=int(d),
        )  # fmt: skip
