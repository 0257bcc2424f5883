"""I2_S, two bits a weight, written in the interchange layout `x86-128`.

A row is cut into blocks of 128 weights, a block is 32 bytes. Byte p of a block holds the codes (trit + 1) of
weights p, p+32, p+64 and p+96, the first in the top two bits:

    bits   7 6 | 5 4  | 3 2  | 1 0
    weight  p  | p+32 | p+64 | p+96

After the rows come the float32 multiplier and 28 bytes without meaning, written as zeros.

Two more layouts are read, never written; no file says which it has. `arm64` has blocks of 64 weights, 16 bytes;
`x4` has the codes of four rows in one byte, the first row in the top bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.tensor_types import TensorType, any_row, no_tail, not_by_rows, not_ternary

if TYPE_CHECKING:
    from bitconv.tensor_types.tiles import Tile

BLOCK = 128
TAIL_BYTES = 32


def illegal(rows: int, cols: int) -> str | None:
    """Say why a [rows, cols] matrix has no I2_S form, or None: a block must not straddle two rows."""
    if cols % BLOCK:
        return f"I2_S needs a multiple of {BLOCK} columns and K = {cols} is none"
    return None


def nbytes(rows: int, cols: int) -> int:
    """Return the bytes of a [rows, cols] tensor with its tail."""
    return rows * cols // 4 + TAIL_BYTES


def pack_rows(trits: np.ndarray) -> np.ndarray:
    """Pack whole rows: int8 [rows, cols] in {-1, 0, +1} -> uint8 [rows * cols / 4]."""
    codes = (trits + np.int8(1)).view(np.uint8).reshape(-1, 4, BLOCK // 4)
    packed = codes[:, 0] << 6
    packed |= codes[:, 1] << 4
    packed |= codes[:, 2] << 2
    packed |= codes[:, 3]
    return packed.reshape(-1)


def tail(scale: float) -> np.ndarray:
    """Return the 32 bytes after the rows: the float32 multiplier, then zeros."""
    return np.frombuffer(struct.pack("<f28x", scale), np.uint8)


def pack_into(
    out: np.ndarray, trits: np.ndarray, start: int, rows: int, scale: float, tile: Tile | None = None
) -> None:
    """Place rows start to start + n of a tensor in `out` (uint8 [nbytes]), after the last of them the tail."""
    n, cols = trits.shape
    out[start * cols // 4 : (start + n) * cols // 4] = pack_rows(trits)
    if start + n == rows:
        out[-TAIL_BYTES:] = tail(scale)


def pack(trits: np.ndarray, scale: float, tile: Tile | None = None) -> np.ndarray:
    """Pack a whole tensor: int8 [rows, cols], multiplier -> uint8 [nbytes]; UnsupportedError when illegal."""
    reason = illegal(*trits.shape)
    if reason:
        raise UnsupportedError(reason)
    return np.concatenate((pack_rows(trits), tail(scale)))


def read_scale(data: np.ndarray, rows: int, cols: int) -> float:
    """Return the multiplier of a whole tensor, uint8 [nbytes]."""
    return float(data[-TAIL_BYTES : 4 - TAIL_BYTES].view("<f4")[0])


def unpack(data: np.ndarray, rows: int, cols: int, tile: Tile | None = None) -> tuple[np.ndarray, float]:
    """Unpack a whole tensor: uint8 [nbytes] -> (int8 [rows, cols], multiplier).

    FormatError on code 3, which no writer produces, and on a shape or length that I2_S does not have.
    """
    return _unpack(illegal(rows, cols), BLOCK // 4, data, rows, cols)


def _unpack(
    reason: str | None, width: int, data: np.ndarray, rows: int, cols: int
) -> tuple[np.ndarray, float]:
    """Unpack groups of `width` bytes, each of which holds 4 * width weights, the first in the top bits."""
    if reason is None and data.size != nbytes(rows, cols):
        reason = f"I2_S [{rows}, {cols}] takes {nbytes(rows, cols)} bytes, found {data.size}"
    if reason:
        raise FormatError(reason)
    packed = data[: rows * cols // 4].reshape(-1, width)
    groups = np.empty((packed.shape[0], 4, width), np.uint8)
    for group in range(4):
        np.bitwise_and(packed >> (6 - 2 * group), 3, out=groups[:, group])
    codes = groups.reshape(rows, cols)
    if codes.max(initial=0) == 3:
        row, col = (int(i) for i in np.argwhere(codes == 3)[0])
        raise FormatError(f"I2_S code 3 at row {row}, column {col}; only 0, 1 and 2 are weights")
    codes -= 1  # wraps to the bit pattern of -1 for code 0
    return codes.view(np.int8), read_scale(data, rows, cols)


def _illegal_arm64(rows: int, cols: int) -> str | None:
    return f"I2_S arm64 needs a multiple of 64 columns and K = {cols} is none" if cols % 64 else None


def _illegal_x4(rows: int, cols: int) -> str | None:
    return f"I2_S x4 needs a multiple of 4 rows and M = {rows} is none" if rows % 4 else None


def _unpack_arm64(data: np.ndarray, rows: int, cols: int, tile: Tile | None = None) -> tuple[np.ndarray, float]:
    return _unpack(_illegal_arm64(rows, cols), 16, data, rows, cols)


def _unpack_x4(data: np.ndarray, rows: int, cols: int, tile: Tile | None = None) -> tuple[np.ndarray, float]:
    return _unpack(_illegal_x4(rows, cols), cols, data, rows, cols)


def _refuse_to_pack(layout: str, trits: np.ndarray, scale: float, tile: Tile | None = None) -> np.ndarray:
    raise UnsupportedError(f"I2_S is written in the layout x86-128, not in {layout}")


TYPES = (
    TensorType(
        name="I2_S", gguf_id=36, file_type=40, ternary=True, kernel="i2_s",
        illegal=illegal, nbytes=nbytes, pack=pack, unpack=unpack, pack_rows=pack_rows, tail=tail,
        pack_into=pack_into, read_scale=read_scale,
    ),
)  # fmt: skip

_READ_ONLY = replace(
    TYPES[0], kernel=None, pack_rows=not_by_rows, tail=no_tail, pack_into=not_ternary, row_group=any_row
)
LAYOUTS: Mapping[str, TensorType] = {
    "x86-128": TYPES[0],
    "arm64": replace(
        _READ_ONLY, illegal=_illegal_arm64, unpack=_unpack_arm64, pack=partial(_refuse_to_pack, "arm64")
    ),
    "x4": replace(_READ_ONLY, illegal=_illegal_x4, unpack=_unpack_x4, pack=partial(_refuse_to_pack, "x4")),
}
"""By name of a layout the type that reads it. Only the first one is in the registry, and is written and executed."""
