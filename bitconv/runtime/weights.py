"""From the tensors of a GGUF file to what the engine executes: pointers into the map wherever that is possible."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from bitconv import _kernels
from bitconv.errors import BitconvWarning, FormatError, UnsupportedError
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.stored import NO_TILES, Stored, StoredTernary, naming, ternary_type
from bitconv.tensor_types.ternary import three_values

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile

Weight = tuple[np.ndarray, int, int, int, float, tuple[int, int, int]]
"""(data uint8, rows, cols, type id, scale, tiles): what `_kernels.Engine` takes."""

_STORAGE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_DENSE = (*_STORAGE, "Q8_0", "Q6_K")
_PANEL = 128  # the engine pads a row of activation codes to this many columns
_WORTH_A_TEAM = 1 << 22  # bytes; on a busy machine waking threads costs more than reading less than this


class Weights:
    """The tensors of one open file, ready to run.

    kernel_config, i2s_layout: as `StoredTernary`. The key `bitconv.activation_bits` = 8 makes dense matrices that are
    {-a, 0, +a} execute as the ternary matrices that they are. FormatError and UnsupportedError name the tensor.
    """

    def __init__(
        self,
        gguf: GgufFile,
        *,
        threads: int = 1,
        kernel_config: str | None = None,
        i2s_layout: str | None = None,
    ) -> None:
        self._gguf, self._threads = gguf, threads
        self._stored = StoredTernary(gguf, kernel_config=kernel_config, i2s_layout=i2s_layout)
        self._said_slow = False
        self._unchecked: dict[str, Weight] = {}
        bits = gguf.get("bitconv.activation_bits", int, None)
        if bits not in (None, 8):
            raise UnsupportedError(f"{gguf.path}: bitconv.activation_bits is {bits}; only 8 is supported")
        self._ternary_when_dense = bits == 8

    def norm(self, name: str) -> np.ndarray:
        """Return a vector as float32, checked to be finite."""
        values = self._dense_values(name)
        if not np.isfinite(values).all():
            raise FormatError(f"{self._gguf.path}: tensor {name} holds a value that is not finite")
        return values

    def optional_norm(self, name: str) -> np.ndarray | None:
        """Return the vector, or None when the file has no such tensor."""
        return self.norm(name) if name in self._gguf.tensors else None

    def dense(self, name: str) -> Weight:
        """Return a matrix that runs in floating point: the embedding, the head, a dense linear layer."""
        info = self._gguf.tensors[name]
        if info.type_name not in _DENSE:
            raise UnsupportedError(
                f"{self._gguf.path}: tensor {name} is {info.type_name}; a matrix that is not ternary may be "
                f"{', '.join(_DENSE)}"
            )
        data = self._gguf.data(name)
        if info.offset % 4:  # a file with an odd alignment: the kernels read whole numbers
            data = data.copy()
        return data, info.shape[0], info.shape[1], info.type_id, 1.0, NO_TILES

    def linear(self, name: str) -> Weight:
        """Return the matrix of a linear layer, ternary or dense."""
        info = self._gguf.tensors[name]
        rows, cols = info.shape
        if info.type_name in _DENSE:
            ternary = self._as_ternary(name) if self._ternary_when_dense and info.type_name in _STORAGE else None
            return ternary or self.dense(name)
        if ternary_type(info) is None:
            raise UnsupportedError(f"{self._gguf.path}: tensor {name} is {info.type_name}, which cannot be run")
        stored = self._stored.read(name)
        if stored.type.kernel is None or stored.tiles[0] > _kernels.MAX_TILE_ROWS:
            return self._unpacked(name, stored)
        weight = stored.data, rows, cols, info.type_id, stored.scale, stored.tiles
        self._unchecked[name] = weight
        return weight

    def check(self) -> None:
        """Read the codes of all matrices that `linear` gave out as they lie in the file, once.

        FormatError for codes that no weight has: kernels of different instruction sets would not agree about them.
        The pages that a first pass touches are mapped by this.
        """
        names, weights = list(self._unchecked), list(self._unchecked.values())
        nbytes = sum(len(weight[0]) for weight in weights)
        wrong = _kernels.first_malformed(weights, self._threads if nbytes >= _WORTH_A_TEAM else 1)
        if wrong >= 0:
            kind = self._gguf.tensors[names[wrong]].type_name
            raise FormatError(f"{self._gguf.path}: tensor {names[wrong]} holds codes that no {kind} weight has")
        self._unchecked.clear()

    def _unpacked(self, name: str, stored: Stored) -> Weight:
        """Repack in memory what no kernel reads as it lies in the file."""
        if not self._said_slow:
            self._said_slow = True
            warnings.warn(
                f"{self._gguf.path}: its layout is unpacked at load, which takes time and memory; `bitconv quantize` "
                "rewrites the file",
                BitconvWarning,
                stacklevel=2,
            )
        with naming(self._gguf, name):
            rows, cols = self._gguf.tensors[name].shape
            return _as_i2_s(stored.unpack(rows, cols), stored.scale)

    def _dense_values(self, name: str) -> np.ndarray:
        info = self._gguf.tensors[name]
        if info.type_name not in _STORAGE:
            raise UnsupportedError(f"{self._gguf.path}: tensor {name} is {info.type_name}; expected F32 or F16")
        return tensor_type(info.type_id).unpack(self._gguf.data(name), 1, math.prod(info.shape)).reshape(-1).copy()

    def _as_ternary(self, name: str) -> Weight | None:
        """Return a dense matrix that is {-a, 0, +a} as a ternary one, None for any other."""
        info = self._gguf.tensors[name]
        rows, cols = info.shape
        values = self._gguf.data(name).view(_STORAGE[info.type_name]).reshape(rows, cols)
        found = three_values(values, info.type_name)
        if found is None:
            return None
        return _as_i2_s(*found)


def _as_i2_s(trits: np.ndarray, scale: float) -> Weight:
    """Pack a matrix as I2_S, with zero columns up to a whole block."""
    rows, cols = trits.shape
    padded = -(-cols // _PANEL) * _PANEL
    if padded != cols:
        trits = np.pad(trits, ((0, 0), (0, padded - cols)))
    i2_s = tensor_type("I2_S")
    return i2_s.pack(trits, scale)[: rows * padded // 4].copy(), rows, padded, i2_s.gguf_id, scale, NO_TILES
