"""Q8_0, 8.5 bits a value: blocks of 32, a float16 d and 32 int8 q; a value is d * q."""

from __future__ import annotations

import numpy as np

from bitconv.tensor_types.float_blocks import FloatBlocks

BLOCK = 32
BLOCK_BYTES = 34


def encode(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code blocks: float32 [blocks, 32] -> (uint8 [blocks, 34], where d is finite); the bytes ggml writes."""
    largest = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(over="ignore", invalid="ignore"):
        d = largest.astype("<f2")
        fits = np.isfinite(d[:, 0])
        # Where float16 makes d zero, so is every value, and the reciprocal may overflow.
        inverse = np.where((d == 0) | ~np.isfinite(d), 0, np.float32(1) / np.where(d == 0, 1, largest))
        scaled = np.where(np.isfinite(d), values, 0) * inverse.astype(np.float32)
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate((d.view(np.uint8), codes.view(np.uint8)), axis=1), fits


def decode(blocks: np.ndarray) -> np.ndarray:
    """Decode blocks: uint8 [blocks, 34] -> float32 [blocks, 32]."""
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return d * blocks[:, 2:].view(np.int8)


TYPES = (FloatBlocks("Q8_0", BLOCK, BLOCK_BYTES, encode, decode).tensor_type(8, 7),)
