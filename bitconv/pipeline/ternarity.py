"""Judges checkpoints that should hold {-a, 0, +a} matrices, and words the refusal of those that do not."""

from __future__ import annotations

import math

import numpy as np

from bitconv.errors import UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry, to_float32
from bitconv.pipeline.linears import Count, chunk_bounds, survey
from bitconv.pipeline.plan import PlannedTensor, naming
from bitconv.tensor_types.ternary import WeightStatistics, absmean_rounding, absmean_scale

_MANY = 1000
"""Distinct values are counted up to here."""


def survey_linears(
    checkpoint: Checkpoint, tensors: list[PlannedTensor], count: Count
) -> dict[str, WeightStatistics]:
    """Read every linear once; return statistics by output name."""
    found = {}
    for tensor in tensors:
        if tensor.source is not None:
            with naming(tensor.source):
                found[tensor.name] = survey(checkpoint, tensor.source, count)
    return found


def not_ternary(tensors: list[PlannedTensor], statistics: dict[str, WeightStatistics]) -> list[PlannedTensor]:
    """Return the linears that have more than one magnitude besides zero."""
    return [
        tensor for tensor in tensors if statistics[tensor.name].smallest != statistics[tensor.name].largest
    ]


def refusal(
    checkpoint: Checkpoint, tensors: list[PlannedTensor], statistics: dict[str, WeightStatistics], total: int
) -> UnsupportedError:  # fmt: skip
    """Return the error for linears that are not ternary, with a line for each."""
    lines = [
        f"{checkpoint.path}: {len(tensors)} of {total} linears are not ternary and config.json has no "
        "quantization_config, so this is no BitNet model",
        f"  {'tensor':48} {'distinct values':>15} {'distance from ternary':>21}",
    ]
    for tensor in tensors:
        if tensor.source is not None:
            distinct, distance = _judge(checkpoint, tensor.source, statistics[tensor.name])
            shown = f"> {_MANY}" if distinct > _MANY else str(distinct)
            lines.append(f"  {tensor.source.name:48} {shown:>15} {distance:>21.3f}")
    lines.append("--force (force=True) rounds them by absmean; expect a model that no longer works")
    return UnsupportedError("\n".join(lines))


def _judge(checkpoint: Checkpoint, entry: TensorEntry, statistics: WeightStatistics) -> tuple[int, float]:
    """Return the number of distinct values, at most _MANY + 1, and the relative RMS distance from absmean."""
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
