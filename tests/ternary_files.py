"""Small GGUF files of ternary tensors, right or wrong in their bytes, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitconv.formats.gguf_writer import GgufWriter
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.tiles import Tile

TERNARY = ("I2_S", "TL1", "TL2", "TQ1_0", "TQ2_0")
Tensor = tuple[str, tuple[int, ...], np.ndarray]
"""(type, shape, bytes)"""


def random_trits(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (rows, cols), dtype=np.int8)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], keys: dict[str, str] | None = None
) -> Path:
    """A file of (type, shape, bytes) by name, with these string keys; the bytes may be wrong in anything but number."""
    with GgufWriter(path, "parts") as writer:  # an architecture of which nobody knows what belongs to it
        for key, value in (keys or {}).items():
            writer.add(key, value, "str")
        for name, (kind, shape, _) in tensors.items():
            writer.declare(name, shape, tensor_type(kind).gguf_id)
        for name, (_, _, data) in tensors.items():
            writer.write(name, data)
        writer.finish()
    return path


def packed(kind: str, trits: np.ndarray, scale: float, tile: Tile | None = None) -> Tensor:
    return kind, trits.shape, tensor_type(kind).pack(trits, scale, tile)


def scalar(value: float) -> Tensor:
    return "F32", (1,), np.array([value], "<f4").view(np.uint8)
