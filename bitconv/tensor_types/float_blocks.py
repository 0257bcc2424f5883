"""What Q8_0 and Q6_K share: blocks of float32 values of a row, coded and decoded a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.tensor_types import TensorType

_BATCH = 1 << 17  # values at a time: the temporaries stay in the cache


@dataclass(frozen=True)
class FloatBlocks:
    """The functions of a dense tensor type whose blocks of `block` values take `block_bytes` bytes.

    encode: float32 [blocks, block] -> (uint8 [blocks, block_bytes], bool [blocks]: the block could be coded).
    decode: uint8 [blocks, block_bytes] -> float32 [blocks, block].
    """

    name: str
    block: int
    block_bytes: int
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    decode: Callable[[np.ndarray], np.ndarray]

    def illegal(self, rows: int, cols: int) -> str | None:
        """Say why a [rows, cols] matrix has no form of this type, or None: a block must not straddle two rows."""
        if cols % self.block:
            return f"{self.name} needs a multiple of {self.block} columns and K = {cols} is none"
        return None

    def nbytes(self, rows: int, cols: int) -> int:
        """Return the bytes of a [rows, cols] tensor."""
        return rows * cols // self.block * self.block_bytes

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Pack whole rows: float32 [rows, cols] -> uint8 [nbytes].

        UnsupportedError for an illegal shape, and for a value that is not finite or too large.
        """
        reason = self.illegal(*values.shape)
        if reason:
            raise UnsupportedError(reason)
        blocks = np.ascontiguousarray(values, np.float32).reshape(-1, self.block)
        out = np.empty((len(blocks), self.block_bytes), np.uint8)
        step = _BATCH // self.block
        for first in range(0, len(blocks), step):
            part = blocks[first : first + step]
            out[first : first + step], fits = self.encode(part)
            if not fits.all():
                bad = first + int(np.argmin(fits))
                self._refuse(values, bad)
        return out.reshape(-1)

    def unpack(self, data: np.ndarray, rows: int, cols: int) -> np.ndarray:
        """Unpack whole rows: uint8 [nbytes] -> float32 [rows, cols]; FormatError for a wrong shape or length."""
        reason = self.illegal(rows, cols)
        if reason is None and data.size != self.nbytes(rows, cols):
            reason = f"{self.name} [{rows}, {cols}] takes {self.nbytes(rows, cols)} bytes, found {data.size}"
        if reason:
            raise FormatError(reason)
        blocks = data.reshape(-1, self.block_bytes)
        values = np.empty((len(blocks), self.block), np.float32)
        step = _BATCH // self.block
        for first in range(0, len(blocks), step):
            with np.errstate(over="ignore", invalid="ignore"):  # a d that is not finite
                values[first : first + step] = self.decode(blocks[first : first + step])
        return values.reshape(rows, cols)

    def _refuse(self, values: np.ndarray, block: int) -> None:
        row, index = divmod(block, values.shape[1] // self.block)
        part = values[row, index * self.block : (index + 1) * self.block]
        size = np.where(np.isfinite(part), np.abs(part), np.inf)
        col = int(np.argmax(size))
        where = f"value {part[col]:g} at {[row, index * self.block + col]}"
        raise UnsupportedError(f"{where} does not fit {self.name}, whose scales are float16; use f32")

    def tensor_type(self, gguf_id: int, file_type: int) -> TensorType:
        """Return the type for the registry."""
        return TensorType(
            name=self.name, gguf_id=gguf_id, file_type=file_type, ternary=False, kernel=self.name.lower(),
            illegal=self.illegal, nbytes=self.nbytes, pack=self.pack, unpack=self.unpack, pack_rows=self.pack,
        )  # fmt: skip
