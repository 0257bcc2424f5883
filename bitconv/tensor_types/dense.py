"""F32, F16 and BF16: one number after the other, little-endian, row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bitconv.errors import UnsupportedError
from bitconv.tensor_types import TensorType

PLAIN = ("F32", "F16", "BF16")
"""What a ternary matrix may also be stored as: without blocks, every weight is trit * multiplier."""


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _to_f32(values: np.ndarray) -> np.ndarray:
    return _bytes(values.astype("<f4", copy=False))


def _to_f16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    _refuse_overflow(values, np.isfinite(halves), "F16", "65504")
    return _bytes(halves)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Half to even: a tie adds 0x7fff or 0x8000 depending on the bit that stays.
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    _refuse_overflow(values, (rounded & 0x7F80) != 0x7F80, "BF16", "3.39e38")
    return _bytes(rounded)


def _refuse_overflow(values: np.ndarray, finite: np.ndarray, name: str, largest: str) -> None:
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        value = f"value {values[index]:g} at {list(index)}"
        raise UnsupportedError(f"{value} does not fit {name} (largest {largest})\nuse f32")


def _from_f32(data: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return data.view("<f4").reshape(rows, cols)


def _from_f16(data: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return data.view("<f2").reshape(rows, cols).astype(np.float32)


def _from_bf16(data: np.ndarray, rows: int, cols: int) -> np.ndarray:
    return (data.view("<u2").reshape(rows, cols).astype(np.uint32) << 16).view(np.float32)


def _any_shape(rows: int, cols: int) -> str | None:
    return None


def _dense(
    name: str, gguf_id: int, file_type: int, size: int,
    pack: Callable[[np.ndarray], np.ndarray], unpack: Callable[[np.ndarray, int, int], np.ndarray],
) -> TensorType:  # fmt: skip
    return TensorType(
        name=name, gguf_id=gguf_id, file_type=file_type, ternary=False, kernel=name.lower(),
        illegal=_any_shape, nbytes=lambda rows, cols: rows * cols * size,
        pack=pack, unpack=unpack, pack_rows=pack,
    )  # fmt: skip


TYPES = (
    _dense("F32", 0, 0, 4, _to_f32, _from_f32),
    _dense("F16", 1, 1, 2, _to_f16, _from_f16),
    _dense("BF16", 30, 32, 2, _to_bf16, _from_bf16),
)
