"""Reads the ternary matrices of a checkpoint, whatever their form, as trits in groups of rows and a multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from bitconv.errors import FormatError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry, to_float32
from bitconv.models.hf_config import WeightForm
from bitconv.pipeline.plan import PlannedTensor, rotary_rows
from bitconv.tensor_types.ternary import (
    Magnitudes,
    Ternarise,
    WeightStatistics,
    absmean_rounding,
    absmean_scale,
    signs,
    unpack_hf,
)

CHUNK_WEIGHTS = 1 << 19  # at a time: their bytes are still in the cache when they are looked at

Count = Callable[[int], None]
"""Told the bytes that were just read."""


@dataclass(frozen=True)
class TernaryMatrix:
    """A matrix ready to be packed: its multiplier, and its rows as trits int8 [n, cols] from start to stop.

    rounded_again: it was ternarised by absmean although its values are -a, 0 and +a already.
    """

    multiplier: float
    read: Callable[[int, int], np.ndarray]
    rounded_again: bool = False


def chunk_bounds(rows: int, cols: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Cut `rows` into groups of about CHUNK_WEIGHTS weights, each but the last a multiple of `multiple` rows."""
    return part_bounds(0, rows, cols, multiple, CHUNK_WEIGHTS)


def part_bounds(start: int, stop: int, cols: int, multiple: int, weights: int) -> Iterator[tuple[int, int]]:
    """Cut rows start to stop into groups as chunk_bounds does, of about `weights` weights."""
    step = max(weights // cols // multiple, 1) * multiple
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def survey(checkpoint: Checkpoint, entry: TensorEntry, count: Count) -> WeightStatistics:
    """Read a matrix once for its statistics; FormatError when a weight is not finite or all are zero."""
    statistics = WeightStatistics(entry.dtype)
    for start, stop in chunk_bounds(*entry.shape):
        statistics.add(checkpoint.read(entry.name, start, stop - start))
        count(entry.nbytes // entry.shape[0] * (stop - start))
    check_statistics(statistics)
    return statistics


def open_matrix(
    checkpoint: Checkpoint, tensor: PlannedTensor, form: WeightForm, known: WeightStatistics | None, count: Count
) -> TernaryMatrix:  # fmt: skip
    """Find the multiplier of a linear and prepare the reading of its trits.

    known: statistics from an earlier survey of the same tensor, which then is not read again for them.
    FormatError: the weights or the scale are not what the form allows.
    """
    entry = tensor.source
    if entry is None:
        raise ValueError(f"{tensor.name} has no source")
    if entry.dtype == "U8":
        matrix = _open_packed(checkpoint, tensor, entry, form, count)
    else:
        multiplier, scale, again = settle_masters(checkpoint, tensor, form, known or survey(checkpoint, entry, count))
        ternarise = signs(entry.dtype) if scale is None else absmean_rounding(entry.dtype, scale)
        matrix = TernaryMatrix(multiplier, _reader(checkpoint, entry, ternarise, count), again)
    check_multiplier(matrix.multiplier)
    return matrix if not tensor.head_rows else _with_rotary_rows(matrix, tensor.head_rows)


def settle_masters(
    checkpoint: Checkpoint, tensor: PlannedTensor, form: WeightForm, statistics: Magnitudes
) -> tuple[float, np.float32 | None, bool]:
    """Return what masters become: multiplier; scale of absmean rounding, None for signs; and rounded_again.

    FormatError: the weights are not what the form allows.
    """
    exact = statistics.smallest == statistics.largest
    if form is WeightForm.PACKED_MULTIPLY and not exact:
        raise FormatError("quantization_mode is offline, but the weights are neither packed nor {-a, 0, +a}")
    scale: np.float32 | None = None
    multiplier = statistics.largest
    if form is WeightForm.ONLINE or not exact:
        scale, multiplier = absmean_scale(statistics)
    if tensor.scale is not None:
        multiplier = float(np.float32(multiplier) * _read_scale(checkpoint, tensor.scale))
    return multiplier, scale, exact and form is WeightForm.ONLINE


def packed_multiplier(checkpoint: Checkpoint, tensor: PlannedTensor, form: WeightForm) -> float:
    """Return the multiplier of a packed matrix, from its weight_scale."""
    if tensor.scale is None:
        raise ValueError(f"{tensor.name} is packed and has no scale")
    scale = _read_scale(checkpoint, tensor.scale)
    with np.errstate(over="ignore"):
        return float(np.float32(1) / scale if form is WeightForm.PACKED_DIVIDE else scale)


def check_multiplier(multiplier: float) -> None:
    """Raise FormatError unless it is finite and above 0."""
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise FormatError(f"its multiplier is {multiplier:g}; expected a finite float32 above 0")


def check_statistics(statistics: Magnitudes) -> None:
    """Raise FormatError when a weight is not finite or all are zero."""
    if not math.isfinite(statistics.largest):
        raise FormatError("a weight is not finite")
    if statistics.largest == 0:
        raise FormatError("all weights are zero")


def _open_packed(
    checkpoint: Checkpoint, tensor: PlannedTensor, entry: TensorEntry, form: WeightForm, count: Count
) -> TernaryMatrix:  # fmt: skip
    multiplier = packed_multiplier(checkpoint, tensor, form)
    packed = checkpoint.read(entry.name)
    count(entry.nbytes)
    return TernaryMatrix(multiplier, lambda start, stop: unpack_hf(packed, tensor.rows, start, stop))


def _read_scale(checkpoint: Checkpoint, entry: TensorEntry) -> np.float32:
    """Read a weight_scale, one positive number, exactly."""
    if math.prod(entry.shape) != 1:
        raise FormatError(f"{entry.name} is {list(entry.shape)}; expected one number for the whole matrix")
    value = to_float32(checkpoint.read(entry.name).reshape(-1), entry.dtype)[0]
    if not (np.isfinite(value) and value > 0):
        raise FormatError(f"{entry.name} is {value:g}; expected a finite number above 0")
    return np.float32(value)


def _reader(
    checkpoint: Checkpoint, entry: TensorEntry, ternarise: Ternarise, count: Count
) -> Callable[[int, int], np.ndarray]:
    def read(start: int, stop: int) -> np.ndarray:
        storage = checkpoint.read(entry.name, start, stop - start)
        count(entry.nbytes // entry.shape[0] * (stop - start))
        return ternarise(storage)

    return read


def _with_rotary_rows(matrix: TernaryMatrix, head_rows: int) -> TernaryMatrix:
    return replace(matrix, read=lambda start, stop: rotary_rows(matrix.read(start, stop), head_rows))
