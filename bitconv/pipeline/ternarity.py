"""Judges checkpoints that should hold {-a, 0, +a} matrices, and words the refusal of those that do not."""

from __future__ import annotations

import math

import numpy as np

from bitconv.errors import UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry, to_float32
from bitconv.pipeline.linear_job import LinearJob
from bitconv.pipeline.linears import check_statistics, chunk_bounds
from bitconv.pipeline.plan import naming
from bitconv.tensor_types.ternary import WeightStatistics, absmean_rounding, absmean_scale

_MANY = 1000
"""Distinct values are counted up to here."""


def not_ternary(linears: list[LinearJob]) -> list[LinearJob]:
    """Return the surveyed linears that have more than one magnitude besides zero.

    FormatError when a weight is not finite or a whole matrix zero.
    """
    found = []
    for linear in linears:
        if linear.survey is not None:
            with naming(linear.entry):
                check_statistics(linear.survey)
            if linear.survey.smallest != linear.survey.largest:
                found.append(linear)
    return found


def refusal(checkpoint: Checkpoint, linears: list[LinearJob], total: int) -> UnsupportedError:
    """Return the error for linears that are not ternary, with a line for each."""
    lines = [
        f"{checkpoint.path}: {len(linears)} of {total} linears are not ternary and config.json has no "
        "quantization_config, so this is no BitNet model",
        f"  {'tensor':48} {'distinct values':>15} {'distance from ternary':>21}",
    ]
    for linear in linears:
        distinct, distance = _judge(checkpoint, linear.entry)
        shown = f"> {_MANY}" if distinct > _MANY else str(distinct)
        lines.append(f"  {linear.entry.name:48} {shown:>15} {distance:>21.3f}")
    lines.append("--force (force=True) rounds them by absmean; expect a model that no longer works")
    return UnsupportedError("\n".join(lines))


def _judge(checkpoint: Checkpoint, entry: TensorEntry) -> tuple[int, float]:
    """Return the number of distinct values, at most _MANY + 1, and the relative RMS distance from absmean."""
    statistics = WeightStatistics(entry.dtype)
    for start, stop in chunk_bounds(*entry.shape):
        statistics.add(checkpoint.read(entry.name, start, stop - start))
    scale, multiplier = absmean_scale(statistics)
    ternarise = absmean_rounding(entry.dtype, scale)
    distinct, distance = statistics.distinct(), statistics.relative_distance(ternarise, multiplier)
    if distinct is not None and distance is not None:
        return distinct, distance
    values = np.empty(0, np.float32)
    error = power = 0.0
    for start, stop in chunk_bounds(*entry.shape):
        storage = checkpoint.read(entry.name, start, stop - start)
        piece = to_float32(storage, entry.dtype)
        if values.size <= _MANY:
            values = np.union1d(values, piece)
        wide = piece.astype(np.float64)
        error += float(((wide - multiplier * ternarise(storage)) ** 2).sum())
        power += float((wide**2).sum())
    return values.size, math.sqrt(error / power)
