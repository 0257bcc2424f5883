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
from typing import TYPE_CHECKING, Any

import numpy as np

from bitconv.errors import UnsupportedError

if TYPE_CHECKING:
    from bitconv.tensor_types.tiles import Tile

PackRows = Callable[[np.ndarray], np.ndarray]


def not_by_rows(values: np.ndarray) -> np.ndarray:
    """Stand in for pack_rows of a type whose bytes are not row after row; pack_into places them."""
    raise UnsupportedError("this tensor type is not stored row by row")


def not_ternary(*arguments: Any) -> Any:
    """Stand in for what only ternary types have."""
    raise UnsupportedError("this tensor type is not ternary")


def any_row(rows: int, cols: int, tile: Tile | None = None) -> int:
    """Return the row group of a type that may be cut between any two rows."""
    return 1


def no_companion(scale: float) -> float | None:
    """Return the companion scale of a type that holds every float32 multiplier."""
    return None


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
    pack: ternary types (trits int8 [rows, cols], scale float, tile=None) -> uint8 [nbytes];
        dense types (float32 [rows, cols]) -> uint8 [nbytes], UnsupportedError when a finite value overflows.
    unpack: ternary types (data uint8 [nbytes], rows, cols, tile=None) -> (trits int8 [rows, cols], scale float);
        dense types (data, rows, cols) -> float32 [rows, cols]. FormatError for bytes that no writer produces.
    pack_rows, tail: the same bytes in pieces: pack_rows of consecutive groups of rows, then tail(scale);
        not for types that are tiled or keep the multiplier in each block.
    kernel: prefix of the native functions that execute it, None when there is none.

    Of ternary types only:
    pack_into(out uint8 [nbytes], trits int8 [n, cols], start, rows, scale, tile=None): place rows start to
        start + n of a tensor of `rows` rows; the last rows bring what follows them (padding, tail). Calls write
        disjoint bytes and may come in any order and from several threads.
    row_group(rows, cols, tile=None): n must be a multiple of it, and start too.
    read_scale(data uint8 [nbytes], rows, cols): the multiplier that unpack returns, without unpacking.
    companion_scale(scale): what must be stored beside the tensor, as its `.scale`, so that
        multiplier(unpack) * companion == scale; None when the bytes hold the multiplier themselves.
    default_tile(rows, cols): for tiled types the tile used where none is given, None for a shape without one.
        None for types without tiles; their functions accept the argument `tile` all the same.
    """

    name: str
    gguf_id: int
    file_type: int
    ternary: bool
    kernel: str | None
    illegal: Callable[[int, int], str | None]
    nbytes: Callable[[int, int], int]
    pack: Callable[..., np.ndarray]
    unpack: Callable[..., Any]
    pack_rows: PackRows = not_by_rows
    tail: Callable[[float], np.ndarray] = no_tail
    pack_into: Callable[..., None] = not_ternary
    row_group: Callable[..., int] = any_row
    read_scale: Callable[[np.ndarray, int, int], float] = not_ternary
    companion_scale: Callable[[float], float | None] = no_companion
    default_tile: Callable[[int, int], Tile | None] | None = None


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
