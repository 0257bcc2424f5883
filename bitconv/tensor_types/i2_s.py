"""I2_S, two bits a weight, in the interchange layout `x86-128`.

A row is cut into blocks of 128 weights, a block is 32 bytes. Byte p of a block holds the codes (trit + 1) of
weights p, p+32, p+64 and p+96, the first in the top two bits:

    bits   7 6 | 5 4  | 3 2  | 1 0
    weight  p  | p+32 | p+64 | p+96

After the rows come the float32 multiplier and 28 bytes without meaning, written as zeros.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.tensor_types import TensorType

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
    reason = illegal(rows, cols)
    if reason is None and data.size != nbytes(rows, cols):
        reason = f"I2_S [{rows}, {cols}] takes {nbytes(rows, cols)} bytes, found {data.size}"
    if reason:
        raise FormatError(reason)
    packed = data[: rows * cols // 4].reshape(-1, BLOCK // 4)
    groups = np.empty((packed.shape[0], 4, BLOCK // 4), np.uint8)
    for group in range(4):
        np.bitwise_and(packed >> (6 - 2 * group), 3, out=groups[:, group])
    codes = groups.reshape(rows, cols)
    if (codes == 3).any():
        row, col = (int(i) for i in np.argwhere(codes == 3)[0])
        raise FormatError(f"I2_S code 3 at row {row}, column {col}; only 0, 1 and 2 are weights")
    codes -= 1  # wraps to the bit pattern of -1 for code 0
    return codes.view(np.int8), read_scale(data, rows, cols)


TYPES = (
    TensorType(
        name="I2_S", gguf_id=36, file_type=40, ternary=True, kernel="i2_s",
        illegal=illegal, nbytes=nbytes, pack=pack, unpack=unpack, pack_rows=pack_rows, tail=tail,
        pack_into=pack_into, read_scale=read_scale,
    ),
)  # fmt: skip
