"""Ternary tensors as a GGUF file stores them: type, layout or tile, multiplier and bytes, ready to unpack or run.

The one place that knows where a file keeps what a tensor's own bytes do not say: tiles of TL1 and TL2 in the
metadata, multipliers in companion tensors, the layout of I2_S with the user.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitconv.errors import BitconvError, FormatError, InputError, UnsupportedError
from bitconv.tensor_types import TensorType, tensor_types
from bitconv.tensor_types.i2_s import LAYOUTS
from bitconv.tensor_types.tiles import METADATA_KEYS, Tile, Tiles, parse_kernel_config, tiles_of_file

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile, TensorInfo

WRITTEN_LAYOUT = "x86-128"
LAYOUT_KEY = "bitconv.i2_s.layout"
NO_TILES = (0, 0, 0)
_LONGEST_CONFIG = 1 << 20  # some 30 000 shapes


class Stored(NamedTuple):
    """A ternary tensor of an open file.

    type: how its bytes are read; for I2_S in another layout than x86-128 a type whose kernel is None.
    tiles: (BM, BK, bm) of TL1 and TL2, else zeros. scale: the whole multiplier, companion included; finite, above 0.
    data: uint8 [nbytes], a view of the mapped file, tail included.
    """

    type: TensorType
    tiles: tuple[int, int, int]
    scale: float
    data: np.ndarray

    def unpack(self, rows: int, cols: int) -> np.ndarray:
        """Return the trits, int8 [rows, cols]; FormatError or UnsupportedError as `type.unpack`."""
        trits: np.ndarray = self.type.unpack(self.data, rows, cols, self.tile)[0]
        return trits

    @property
    def tile(self) -> Tile | None:
        """The tile as the functions of the type take it."""
        return Tile(*self.tiles) if any(self.tiles) else None


class StoredTernary:
    """The ternary tensors of one file; what concerns all of them is settled once, on first use.

    kernel_config: tiles for a file that does not state its own, as tiles.py reads them.
    i2s_layout: "x86-128", "arm64" or "x4", for I2_S tensors of files that do not state it; default x86-128.
    InputError where these are wrong or contradict the file.
    """

    def __init__(self, gguf: GgufFile, *, kernel_config: str | None = None, i2s_layout: str | None = None) -> None:
        self._gguf = gguf
        self._given = parse_kernel_config(kernel_config) if kernel_config else {}
        self.layout = _layout(gguf, i2s_layout)
        self._tiles: dict[str, Tiles] = {}

    def read(self, name: str) -> Stored:
        """Return a ternary tensor; FormatError or UnsupportedError naming it when it cannot be one."""
        info = self._gguf.tensors[name]
        with naming(self._gguf, name):
            kind = ternary_type(info)
            if kind is None or len(info.shape) != 2:
                raise FormatError(f"{info.type_name} {list(info.shape)} is not a ternary matrix")
            kind = LAYOUTS[self.layout] if kind.name == "I2_S" else kind
            rows, cols = info.shape
        tiles = self.tiles(name)
        with naming(self._gguf, name):
            reason = kind.illegal(rows, cols) if tiles == NO_TILES else None
            if reason:
                raise FormatError(reason)
            data = self._gguf.data(name)
            scale = _product(kind.read_scale(data, rows, cols), companion_scale(self._gguf, name))
        return Stored(kind, tiles, scale, data)

    def tiles(self, name: str) -> tuple[int, int, int]:
        """Return (BM, BK, bm) of a tensor of TL1 or TL2, zeros for one of another type.

        FormatError for wrong metadata. UnsupportedError where nothing is known, with the kernel config to try.
        """
        info = self._gguf.tensors[name]
        if info.type_name not in METADATA_KEYS or len(info.shape) != 2:
            return NO_TILES
        rows, cols, step = self._of_type(info.type_name)[info.shape]
        return rows, cols, step

    def _of_type(self, kind: str) -> Tiles:
        """All shapes at once, so that an error proposes the kernel config of the whole file."""
        if kind not in self._tiles:
            gguf = self._gguf
            shapes = [i.shape for i in gguf.tensors.values() if i.type_name == kind and len(i.shape) == 2]
            stored = gguf.get(METADATA_KEYS[kind], str, None)
            if stored is not None and len(stored) > _LONGEST_CONFIG:
                raise FormatError(f"{gguf.path}: {METADATA_KEYS[kind]} has {len(stored)} characters")
            self._tiles[kind] = tiles_of_file(kind, shapes, stored, self._given.get(kind), str(gguf.path))
        return self._tiles[kind]


def stored_ternary(
    gguf: GgufFile, name: str, *, kernel_config: str | None = None, i2s_layout: str | None = None
) -> Stored:
    """Return one ternary tensor of a file; StoredTernary does not settle the tiles anew for each."""
    return StoredTernary(gguf, kernel_config=kernel_config, i2s_layout=i2s_layout).read(name)


def ternary_type(info: TensorInfo) -> TensorType | None:
    """Return the ternary type of a tensor, None for any other; by name, because id 39 may be MXFP4."""
    return next((one for one in tensor_types() if one.ternary and one.name == info.type_name), None)


def companion_name(name: str) -> str:
    """Return the name of the tensor that holds a further multiplier of tensor `name`."""
    return name.removesuffix(".weight") + ".scale"


def companion_scale(gguf: GgufFile, name: str) -> float | None:
    """Return the companion's multiplier, None where there is none; FormatError when it is not one positive F32."""
    info = gguf.tensors.get(companion_name(name))
    if info is None:
        return None
    if info.type_name != "F32" or math.prod(info.shape) != 1:
        raise FormatError(f"its companion {info.name} is {info.type_name} {list(info.shape)}; expected F32 [1]")
    scale = float(gguf.data(info.name).view("<f4")[0])
    if not (math.isfinite(scale) and scale > 0):
        raise FormatError(f"its companion {info.name} is {scale:g}; expected a finite number above 0")
    return scale


@contextlib.contextmanager
def naming(gguf: GgufFile, name: str) -> Iterator[None]:
    """Put file and tensor in front of the message of any BitconvError raised inside."""
    try:
        yield
    except BitconvError as error:
        raise type(error)(f"{gguf.path}: tensor {name}: {error}") from error


def _product(scale: float, companion: float | None) -> float:
    if companion is not None:
        with np.errstate(over="ignore", under="ignore"):
            scale = float(np.float32(scale) * np.float32(companion))
    if not (math.isfinite(scale) and scale > 0):
        raise FormatError(f"its scale is {scale:g}; expected a finite number above 0")
    return scale


def _layout(gguf: GgufFile, given: str | None) -> str:
    known = ", ".join(LAYOUTS)
    if given is not None and given not in LAYOUTS:
        raise InputError(f"I2_S layout {given!r} is unknown\nuse one of {known}")
    stated = gguf.get(LAYOUT_KEY, str, None)
    if stated is not None and stated != WRITTEN_LAYOUT:
        raise UnsupportedError(f"{gguf.path}: I2_S layout {stated[:80]!r} is not supported; {WRITTEN_LAYOUT!r} is")
    if stated is not None and given not in (None, stated):
        raise InputError(f"{gguf.path}: {LAYOUT_KEY} says {stated}, but {given} was asked for\nleave the layout out")
    return given or WRITTEN_LAYOUT
