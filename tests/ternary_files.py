"""Small GGUF files of ternary tensors, right or wrong in their bytes, for tests."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitconv.formats.gguf import TensorInfo, open_gguf
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


def arm64(trits: np.ndarray, scale: float) -> Tensor:
    """I2_S in blocks of 64 weights in 16 bytes, from the definition."""
    codes = (trits + 1).astype(np.uint8).reshape(-1, 4, 16)
    return "I2_S", trits.shape, _with_tail(codes, scale)


def x4(trits: np.ndarray, scale: float) -> Tensor:
    """I2_S with the weights of four rows in a byte, from the definition."""
    codes = (trits + 1).astype(np.uint8).reshape(-1, 4, trits.shape[1])
    return "I2_S", trits.shape, _with_tail(codes, scale)


def _with_tail(codes: np.ndarray, scale: float) -> np.ndarray:
    body = (codes << np.array([6, 4, 2, 0], np.uint8)[:, None]).sum(axis=1, dtype=np.uint8).reshape(-1)
    return np.concatenate([body, np.frombuffer(struct.pack("<f28x", scale), np.uint8)])


def as_if_foreign(
    source: Path, target: Path, recode: Callable[[TensorInfo, np.ndarray], np.ndarray] = lambda info, data: data
) -> Path:
    """Write a file again without the keys of bitconv, its tensors as `recode` makes them."""
    with open_gguf(source) as gguf, GgufWriter(target, str(gguf.metadata["general.architecture"])) as writer:
        for key, value in gguf.metadata.items():
            if key != "general.architecture" and not key.startswith("bitconv."):
                writer.add(key, value, gguf.metadata_types[key])
        for info in gguf.tensors.values():
            writer.declare(info.name, info.shape, info.type_id)
        for info in gguf.tensors.values():
            writer.write(info.name, recode(info, gguf.data(info.name)))
        writer.finish()
    return target
