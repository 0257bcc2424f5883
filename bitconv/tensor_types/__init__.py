"""Tensor types: how a matrix becomes the bytes of one GGUF tensor and back; one file a type.

The currency is the pair (trits int8 [rows, cols] in {-1, 0, +1}, one float32 multiplier): every ternary type
packs from it and unpacks to it, so that any type converts to any other exactly.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitconv.errors import UnsupportedError

PackRows = Callable[[np.ndarray], np.ndarray]


def no_tail(scale: float) -> np.ndarray:
    """Return the bytes after the last row of a type that stores none: uint8 [0]."""
    return np.empty(0, np.uint8)


@dataclass(frozen=True)
class TensorType:
    """One tensor type: its ids, which shapes it can hold, and its packing.

    name: as in text and `inspect`; `--type` takes it in lower case.
    gguf_id, file_type: the tensor's type id and the value of `general.file_type` of a file made of it.
    illegal(rows, cols): why the type cannot hold this shape, or None.
    nbytes(rows, cols): bytes of the whole tensor, tail included.
    pack: ternary types (trits int8 [rows, cols], scale float) -> uint8 [nbytes];
        dense types (float32 [rows, cols]) -> uint8 [nbytes], UnsupportedError when a finite value overflows.
    unpack(data uint8 [nbytes], rows, cols): ternary types -> (trits int8 [rows, cols], scale float);
        dense types -> float32 [rows, cols]. FormatError for bytes that no writer produces.
    pack_rows, tail: the same bytes in pieces: pack_rows of consecutive groups of rows, then tail(scale).
    kernel: prefix of the native functions that execute it, None when there is none.
    """

    name: str
    gguf_id: int
    file_type: int
    ternary: bool
    kernel: str | None
    illegal: Callable[[int, int], str | None]
    nbytes: Callable[[int, int], int]
    pack: Callable[..., np.ndarray]
    unpack: Callable[[np.ndarray, int, int], Any]
    pack_rows: PackRows
    tail: Callable[[float], np.ndarray] = no_tail


@functools.cache
def tensor_types() -> tuple[TensorType, ...]:
    """Return every tensor type of this package, ordered by GGUF id."""
    found: list[TensorType] = []
    for module in pkgutil.iter_modules(__path__):
        found.extend(getattr(importlib.import_module(f"{__name__}.{module.name}"), "TYPES", ()))
    return tuple(sorted(found, key=lambda one: one.gguf_id))


def tensor_type(name_or_id: str | int) -> TensorType:
    """Return the type with this name (any case) or GGUF id; UnsupportedError lists the known ones."""
    wanted = name_or_id.upper() if isinstance(name_or_id, str) else name_or_id
    for one in tensor_types():
        if wanted in (one.name, one.gguf_id):
            return one
    known = ", ".join(f"{one.name} (id {one.gguf_id})" for one in tensor_types())
    raise UnsupportedError(f"tensor type {name_or_id!r} is not supported; supported are {known}")
