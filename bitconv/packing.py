"""One ternary matrix to the bytes of a tensor and back: bitconv.pack and bitconv.unpack."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from bitconv.errors import BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.tensor_types import TensorType, tensor_type, tensor_types
from bitconv.tensor_types.ternary_blocks import float16_of
from bitconv.tensor_types.tiles import Tile, parse_kernel_config

Config = str | Sequence[int] | None
"""A tile: (BM, BK, bm) or (BM, BK), or the text of `--kernel-config`, with or without "tl1:" or "tl2:" before it."""


def pack(
    trits: Any, scale: float, *, type: str | int, config: Config = None, tq_scale: Literal["exact", "f16"] = "exact"
) -> bytes:
    """Pack a ternary matrix as the bytes of one tensor, all of them, tail included.

    trits: [rows, cols], each -1, 0 or +1. scale: the multiplier, above 0; it is rounded to float32.
    type: "i2_s", "tl1", "tl2", "tq1_0" or "tq2_0". config: the tile of TL1 and TL2, by default that of the shape.
    tq_scale: for TQ1_0 and TQ2_0. "exact": where float16 does not hold the scale, it is not in the bytes but must be
        stored beside them as the tensor's companion `.scale`; a BitconvWarning says so. "f16": it is rounded.
    UnsupportedError: the type cannot hold the shape. InputError: anything else is wrong with the arguments.
    Source: docs/FORMAT.md, tensor types.
    """
    kind = _ternary_type(type)
    matrix = _matrix(trits)
    rows, cols = matrix.shape
    tile = _tile(kind, rows, cols, config)
    with np.errstate(over="ignore"):
        multiplier = float(np.float32(scale))
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise InputError(f"the scale is {scale:g}; expected a finite float32 above 0")
    if tq_scale == "f16" and kind.name.startswith("TQ"):
        multiplier = float16_of(multiplier)
    packed = kind.pack(matrix, multiplier, tile)
    if kind.companion_scale(multiplier) is not None:
        warnings.warn(
            f"float16 does not hold the scale {multiplier:g}: these {kind.name} bytes have scale 1, and the tensor "
            "needs a companion `.scale` with it",
            BitconvWarning,
            stacklevel=2,
        )
    return packed.tobytes()


def unpack(
    data: bytes | bytearray | memoryview | np.ndarray, rows: int, cols: int, *, type: str | int, config: Config = None
) -> tuple[np.ndarray, float]:
    """Unpack the bytes of one tensor: -> (trits int8 [rows, cols], multiplier).

    type, config: as for pack. The tile of TL1 and TL2 is that of the shape where none is given; a wrong one gives
    other weights without an error. The multiplier of TQ1_0 and TQ2_0 is to be multiplied by the companion's, if any.
    FormatError: not what a writer of the type produces, or not of the shape. UnsupportedError: TQ blocks that have
    different scales. InputError: the arguments are wrong.
    Source: docs/FORMAT.md, tensor types.
    """
    kind = _ternary_type(type)
    if min(rows, cols) < 1:
        raise InputError(f"the shape is [{rows}, {cols}]; expected at least one row and one column")
    tile = _tile(kind, rows, cols, config)
    trits, multiplier = kind.unpack(np.frombuffer(data, np.uint8), rows, cols, tile)
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise FormatError(f"the scale of the {kind.name} tensor is {multiplier:g}; expected a finite number above 0")
    return trits, multiplier


def _ternary_type(name: str | int) -> TensorType:
    kind = tensor_type(name)
    if not kind.ternary:
        known = ", ".join(one.name for one in tensor_types() if one.ternary)
        raise UnsupportedError(f"{kind.name} is not a ternary type; those are {known}")
    return kind


def _matrix(trits: Any) -> np.ndarray:
    values = np.asarray(trits)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iufb":
        raise InputError(f"expected a matrix of numbers, found {values.dtype} of shape {list(values.shape)}")
    good = (values == 0) | (values == 1) | (values == -1)
    if not good.all():
        row, col = (int(i) for i in np.argwhere(~good)[0])
        raise InputError(f"weight {values[row, col]} at row {row}, column {col}; expected -1, 0 or 1")
    return np.ascontiguousarray(values, np.int8)


def _tile(kind: TensorType, rows: int, cols: int, config: Config) -> Tile | None:
    if config is None:
        return None
    if kind.default_tile is None:
        raise InputError(f"{kind.name} has no tiles; leave config out")
    if isinstance(config, str):
        text = config if ":" in config else f"{kind.name.lower()}:{config}"
        tile = parse_kernel_config(text).get(kind.name, {}).get((rows, cols))
        if tile is None:
            raise InputError(f"the config {config!r} says nothing about {kind.name} of shape [{rows}, {cols}]")
        return tile
    count = 3 if kind.name == "TL1" else 2
    if len(config) not in (count, 3):
        raise InputError(f"the config {tuple(config)} is not ({', '.join(('BM', 'BK', 'bm')[:count])})")
    return Tile(*(int(n) for n in config))
