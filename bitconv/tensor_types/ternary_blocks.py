"""What TQ1_0 and TQ2_0 share: blocks of 256 weights of a row, the coded trits first, then a float16 d.

A weight is d * trit. All blocks of a tensor have the same d, except that a block of zeros has d = 0. A multiplier
that float16 does not hold is stored beside the tensor, in its companion `.scale`, and d is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.tensor_types import TensorType
from bitconv.tensor_types.tiles import Tile

BLOCK = 256
D_BYTES = 2
_BATCH = 4096  # blocks at a time, to bound the temporaries

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 codes (trit + 1) [blocks, 256] -> uint8 [blocks, bytes]"""
Decode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""uint8 [blocks, bytes] -> (int8 [blocks, 256], bool [blocks, 256]: the weights of bytes that no writer produces)"""


def float16_of(scale: float) -> float:
    """Round a multiplier to float16, which llama.cpp's plain form holds; UnsupportedError when that is 0 or inf."""
    with np.errstate(over="ignore"):
        rounded = float(np.float16(scale))
    if rounded == 0 or not math.isfinite(rounded):
        raise UnsupportedError(f"scale {scale:g} becomes {rounded:g} in float16; the exact form keeps it")
    return rounded


def companion_scale(scale: float) -> float | None:
    """Return the multiplier if it must be stored beside the tensor because float16 does not hold it, else None."""
    with np.errstate(over="ignore"):
        return None if float(np.float16(scale)) == scale else scale


@dataclass(frozen=True)
class TernaryBlocks:
    """The functions of a tensor type whose blocks are `code_bytes` bytes of codes and d."""

    name: str
    code_bytes: int
    encode: Encode
    decode: Decode

    def illegal(self, rows: int, cols: int) -> str | None:
        """Say why a [rows, cols] matrix has no form of this type, or None: a block must not straddle two rows."""
        return f"{self.name} needs a multiple of {BLOCK} columns and K = {cols} is none" if cols % BLOCK else None

    def nbytes(self, rows: int, cols: int) -> int:
        """Return the bytes of a [rows, cols] tensor."""
        return rows * cols // BLOCK * (self.code_bytes + D_BYTES)

    def pack_into(
        self, out: np.ndarray, trits: np.ndarray, start: int, rows: int, scale: float, tile: Tile | None = None
    ) -> None:
        """Place rows start to start + n of a tensor in `out` (uint8 [nbytes])."""
        width = trits.shape[1] // BLOCK
        blocks = self._blocks(out)[start * width : (start + trits.shape[0]) * width]
        weights = trits.reshape(-1, BLOCK)
        d = np.float16(scale if companion_scale(scale) is None else 1)
        for first in range(0, len(blocks), _BATCH):
            part = slice(first, first + _BATCH)
            blocks[part, : self.code_bytes] = self.encode((weights[part] + np.int8(1)).view(np.uint8))
            scales = np.where(weights[part].any(axis=1), d, np.float16(0)).astype("<f2")
            blocks[part, self.code_bytes :] = scales.view(np.uint8).reshape(-1, D_BYTES)

    def pack(self, trits: np.ndarray, scale: float, tile: Tile | None = None) -> np.ndarray:
        """Pack a whole tensor: int8 [rows, cols], multiplier -> uint8 [nbytes]; UnsupportedError when illegal."""
        reason = self.illegal(*trits.shape)
        if reason:
            raise UnsupportedError(reason)
        out = np.empty(self.nbytes(*trits.shape), np.uint8)
        self.pack_into(out, trits, 0, trits.shape[0], scale)
        return out

    def read_scale(self, data: np.ndarray, rows: int, cols: int) -> float:
        """Return the d of all blocks that have one; 1 for a tensor of zeros.

        UnsupportedError naming the block where two differ; FormatError when one is negative or not finite.
        """
        return _common(self.name, self._d(data), cols // BLOCK)

    def unpack(self, data: np.ndarray, rows: int, cols: int, tile: Tile | None = None) -> tuple[np.ndarray, float]:
        """Unpack a whole tensor: uint8 [nbytes] -> (int8 [rows, cols], d).

        FormatError on codes that no writer produces and on a shape or length that the type does not have;
        UnsupportedError when d differs between blocks.
        """
        reason = self.illegal(rows, cols)
        if reason is None and data.size != self.nbytes(rows, cols):
            reason = f"{self.name} [{rows}, {cols}] takes {self.nbytes(rows, cols)} bytes, found {data.size}"
        if reason:
            raise FormatError(reason)
        width, blocks, d = cols // BLOCK, self._blocks(data), self._d(data)
        scale = _common(self.name, d, width)
        trits = np.empty((rows * width, BLOCK), np.int8)
        for first in range(0, len(blocks), _BATCH):
            weights, bad = self.decode(blocks[first : first + _BATCH, : self.code_bytes])
            if bad.any():
                block, col = (int(i) for i in np.argwhere(bad)[0])
                row, index = divmod(first + block, width)
                where = f"row {row}, column {index * BLOCK + col}"
                raise FormatError(f"{self.name} code at {where} stands for no weights")
            ignored = (d[first : first + _BATCH] == 0) & weights.any(axis=1)
            if ignored.any():
                where = _place(first + int(np.argmax(ignored)), width)
                raise UnsupportedError(f"{self.name} {where} has d = 0, but its weights are not all zero")
            trits[first : first + _BATCH] = weights
        return trits.reshape(rows, cols), scale

    def _blocks(self, data: np.ndarray) -> np.ndarray:
        return data.reshape(-1, self.code_bytes + D_BYTES)

    def _d(self, data: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self._blocks(data)[:, self.code_bytes :]).view("<f2")[:, 0]

    def tensor_type(self, gguf_id: int, file_type: int) -> TensorType:
        """Return the type for the registry."""
        return TensorType(
            name=self.name, gguf_id=gguf_id, file_type=file_type, ternary=True, kernel=self.name.lower(),
            illegal=self.illegal, nbytes=self.nbytes, pack=self.pack, unpack=self.unpack, pack_into=self.pack_into,
            read_scale=self.read_scale, companion_scale=companion_scale,
        )  # fmt: skip


def _place(block: int, width: int) -> str:
    row, index = divmod(block, width)
    return f"block at row {row}, columns {index * BLOCK} to {index * BLOCK + BLOCK - 1}"


def _common(name: str, scales: np.ndarray, width: int) -> float:
    """Return the d of all blocks that have one, 1 when none has; errors name the first block that differs."""
    with np.errstate(invalid="ignore"):
        wrong = ~(np.isfinite(scales) & (scales >= 0))
    if wrong.any():
        block = int(np.argmax(wrong))
        raise FormatError(f"{name} {_place(block, width)} has d = {scales[block]:g}; expected a finite one, 0 or more")
    used = np.flatnonzero(scales)
    if not used.size:
        return 1.0
    first = used[0]
    differ = used[scales[used] != scales[first]]
    if differ.size:
        block = int(differ[0])
        raise UnsupportedError(
            f"{name} {_place(block, width)} has d = {scales[block]:g} and the {_place(int(first), width)} "
            f"d = {scales[first]:g}; only tensors with one scale are supported"
        )
    return float(scales[first])
