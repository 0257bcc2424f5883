"""Matrices into trits: absmean of master weights, Hugging Face's 2-bit packing, and {-a, 0, +a}.

Storage arrays are what a checkpoint holds: uint16 for BF16, float16 for F16, float32 for F32. Everything
that looks at a whole matrix is an exact sum or an extremum, so that no order of the pieces can change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bitconv.errors import FormatError, UnsupportedError

MASTER_DTYPES = ("BF16", "F16", "F32")
SMALLEST_ABSMEAN = np.float32(1e-5)
_F32_INFINITY = 0x7F800000

Ternarise = Callable[[np.ndarray], np.ndarray]


def _widen(storage: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (storage.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return storage.astype(np.float32, copy=False)


def _all_patterns(dtype: str) -> np.ndarray:
    """Return the float32 value of each of the 65 536 bit patterns of a 16-bit type."""
    patterns = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # some of the patterns are signalling NaNs
        return _widen(patterns if dtype == "BF16" else patterns.view(np.float16), dtype)


class Magnitudes(Protocol):
    """What absmean needs to know of a matrix of n weights."""

    n: int

    @property
    def largest(self) -> float:
        """max |w|, infinite or NaN when a weight is."""

    @property
    def smallest(self) -> float:
        """min |w| over the weights that are not zero; infinite when all are."""

    def magnitude_sum(self) -> float:
        """Sum of |w| over the matrix, rounded once to float64."""


class WeightStatistics:
    """What one pass over a master matrix tells: exact sum of magnitudes, extrema, finiteness.

    Pieces may be added in any order and size. BF16 and F16 are counted per bit pattern and F32 is summed as
    integers per exponent, so that the sum is exact. Matrices hold at most 2^40 weights.
    """

    def __init__(self, dtype: str) -> None:
        if dtype not in MASTER_DTYPES:
            known = ", ".join(MASTER_DTYPES)
            raise UnsupportedError(f"weights of type {dtype} are not supported; supported are {known}")
        self.dtype = dtype
        self.n = 0
        self._counts = np.zeros(65536, np.int64)
        self._exponent_sums = [0] * 256
        self._largest_bits = 0
        self._smallest_bits = 0xFFFFFFFF

    def add(self, storage: np.ndarray) -> None:
        """Count one more piece of the matrix."""
        self.n += storage.size
        flat = storage.reshape(-1)
        if self.dtype != "F32":
            self._counts += np.bincount(flat.view(np.uint16), minlength=65536)
            return
        bits = flat.view(np.uint32) & np.uint32(0x7FFFFFFF)
        self._largest_bits = max(self._largest_bits, int(bits.max(initial=0)))
        # A zero wraps to the largest pattern, so that only non-zero weights compete.
        self._smallest_bits = min(self._smallest_bits, int((bits - np.uint32(1)).min(initial=0xFFFFFFFF)))
        exponents = bits >> 23
        mantissas = (bits & 0x7FFFFF) + ((exponents > 0).astype(np.uint32) << 23)
        # A mantissa has 24 bits: float64 sums of up to 2^29 of them are exact.
        for start in range(0, flat.size, 1 << 24):
            piece = slice(start, start + (1 << 24))
            sums = np.bincount(exponents[piece], weights=mantissas[piece], minlength=256)
            for exponent in np.flatnonzero(sums):
                self._exponent_sums[exponent] += int(sums[exponent])

    def _magnitudes(self) -> tuple[np.ndarray, np.ndarray]:
        present = np.flatnonzero(self._counts)
        with np.errstate(invalid="ignore"):  # a weight may be a signalling NaN
            return np.abs(_all_patterns(self.dtype)[present]).astype(np.float64), self._counts[present]

    @property
    def largest(self) -> float:
        """max |w|, infinite or NaN when a weight is."""
        if self.dtype == "F32":
            return float(np.uint32(self._largest_bits).view(np.float32))
        values, _ = self._magnitudes()
        return float(values.max(initial=0.0)) if np.isfinite(values).all() else math.nan

    @property
    def smallest(self) -> float:
        """min |w| over the weights that are not zero; infinite when all are."""
        if self.dtype == "F32":
            bits = (self._smallest_bits + 1) & 0xFFFFFFFF
            return float(np.uint32(bits).view(np.float32)) if bits else math.inf
        values, _ = self._magnitudes()
        return float(values[values > 0].min(initial=math.inf))

    def magnitude_sum(self) -> float:
        """Sum of |w| over the matrix, exact and then rounded once to float64."""
        if self.dtype == "F32":
            total = sum(part << max(exponent, 1) for exponent, part in enumerate(self._exponent_sums))
            return total / (1 << 150)
        values, counts = self._magnitudes()
        return math.fsum(values * counts)

    def distinct(self) -> int | None:
        """How many different values the matrix has, 0 and -0 being one; None for F32 (needs a rescan)."""
        if self.dtype == "F32":
            return None
        return int(np.unique(_all_patterns(self.dtype)[np.flatnonzero(self._counts)]).size)

    def relative_distance(self, ternarise: Ternarise, multiplier: float) -> float | None:
        """RMS of (w - its ternary form) over RMS of w; None for F32, which needs a rescan."""
        if self.dtype == "F32":
            return None
        values, counts = _all_patterns(self.dtype), self._counts
        present = np.flatnonzero(counts)
        w = values[present].astype(np.float64)
        trits = ternarise(np.arange(65536, dtype=np.uint16)[present].view(storage_dtype(self.dtype)))
        error = counts[present] * (w - multiplier * trits.astype(np.float64)) ** 2
        return math.sqrt(error.sum() / (counts[present] * w**2).sum())


def storage_dtype(dtype: str) -> np.dtype:
    """Return the numpy type in which weights of a checkpoint's dtype are stored."""
    return np.dtype({"BF16": "u2", "F16": "f2", "F32": "f4"}[dtype])


def absmean_scale(statistics: Magnitudes) -> tuple[np.float32, float]:
    """Return (s, multiplier): a = f32(sum |w| / n) but at least 1e-5, s = 1/a, multiplier = 1/s, all float32.

    FormatError when a weight is not finite.
    """
    if not math.isfinite(statistics.largest):
        raise FormatError("a weight is not finite")
    mean = np.float32(statistics.magnitude_sum() / max(statistics.n, 1))
    scale = np.float32(1) / max(mean, SMALLEST_ABSMEAN)
    return scale, float(np.float32(1) / scale)


def absmean_rounding(dtype: str, scale: np.float32) -> Ternarise:
    """Return the function from stored weights to clip(round_half_even(f32(w) * scale), -1, 1) as int8."""

    def direct(values: np.ndarray) -> np.ndarray:
        scaled = values * scale
        return np.clip(np.rint(scaled, out=scaled), -1, 1, out=scaled).astype(np.int8)

    return direct if dtype == "F32" else _by_table(dtype, direct)


def signs(dtype: str) -> Ternarise:
    """Return the function from stored weights to their signs, the trits of a matrix that is {-a, 0, +a}."""

    def direct(values: np.ndarray) -> np.ndarray:
        return (values > 0).view(np.int8) - (values < 0).view(np.int8)

    return direct if dtype == "F32" else _by_table(dtype, direct)


def _by_table(dtype: str, direct: Ternarise) -> Ternarise:
    with np.errstate(invalid="ignore", over="ignore"):
        table = direct(_all_patterns(dtype))  # non-finite patterns never occur: the statistics refused them
    return lambda storage: table[storage.view(np.uint16)]


def absmean(storage: np.ndarray, dtype: str) -> tuple[np.ndarray, float]:
    """Ternarise a master matrix by absmean.

    storage: [rows, cols] as a checkpoint holds it, dtype BF16, F16 or F32
        -> (trits int8 [rows, cols], multiplier).
    FormatError when a weight is not finite. Source: docs/FORMAT.md, absmean.
    """
    statistics = WeightStatistics(dtype)
    statistics.add(storage)
    scale, multiplier = absmean_scale(statistics)
    return absmean_rounding(dtype, scale)(storage), multiplier


def three_values(storage: np.ndarray, dtype: str) -> tuple[np.ndarray, float] | None:
    """Return (trits int8, a) when every weight is -a, 0 or +a exactly with a > 0, else None."""
    statistics = WeightStatistics(dtype)
    statistics.add(storage)
    if statistics.smallest != statistics.largest or math.isinf(statistics.largest):
        return None
    return signs(dtype)(storage), statistics.largest


def unpack_hf(packed: np.ndarray, rows: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Unpack rows start to stop of a matrix in Hugging Face's 2-bit form.

    packed: uint8 [ceil(rows / 4), cols]; row i * len(packed) + r lies in bits 2i and 2i + 1 of packed row r
        as trit + 1 -> trits int8 [stop - start, cols].
    FormatError names the row and column of a code 3.
    """
    stop = rows if stop is None else stop
    quarter = packed.shape[0]
    trits = np.empty((stop - start, packed.shape[1]), np.int8)
    codes = trits.view(np.uint8)
    row = start
    while row < stop:
        block, first = divmod(row, quarter)
        count = min(quarter - first, stop - row)
        target = codes[row - start : row - start + count]
        np.bitwise_and(packed[first : first + count] >> (2 * block), 3, out=target)
        row += count
    if codes.max(initial=0) == 3:
        bad, col = (int(i) for i in np.argwhere(codes == 3)[0])
        raise FormatError(f"code 3 at row {start + bad}, column {col}; only 0, 1 and 2 are weights")
    codes -= 1  # wraps to the bit pattern of -1 for code 0
    return trits


def pack_hf(trits: np.ndarray) -> np.ndarray:
    """Pack a matrix into Hugging Face's 2-bit form: int8 [rows, cols] -> uint8 [ceil(rows / 4), cols]."""
    rows, cols = trits.shape
    quarter = -(-rows // 4)
    packed = np.zeros((quarter, cols), np.uint8)
    for block in range(4):
        part = trits[block * quarter : (block + 1) * quarter]
        packed[: part.shape[0]] |= (part + np.int8(1)).view(np.uint8) << (2 * block)
    return packed
