"""From the tensors of a GGUF file to what the engine executes: pointers into the map wherever that is possible."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bitconv import _kernels
from bitconv.errors import FormatError, UnsupportedError
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.ternary import three_values

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile

NO_TILES = (0, 0, 0)
Weight = tuple[np.ndarray, int, int, int, float, tuple[int, int, int]]
"""(data uint8, rows, cols, type id, scale, tiles): what `_kernels.Engine` takes."""

_STORAGE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_DENSE = (*_STORAGE, "Q8_0", "Q6_K")
_PACKED = {"I2_S"}  # by name: id 39 may be MXFP4, and other ternary types keep their scale and tiles elsewhere
_PANEL = 128  # the engine pads a row of activation codes to this many columns


class Weights:
    """The tensors of one open file, ready for one instruction set.

    activation_bits: the key `bitconv.activation_bits`; 8 makes dense matrices that are {-a, 0, +a} execute as the
    ternary matrices that they are. FormatError and UnsupportedError name the tensor.
    """

    def __init__(self, gguf: GgufFile, isa: str) -> None:
        self._gguf, self._isa = gguf, isa
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
        if info.type_name not in _PACKED or not _kernels.kernel_names(self._isa, info.type_id):
            raise UnsupportedError(f"{self._gguf.path}: tensor {name} is {info.type_name}, which cannot be run yet")
        reason = tensor_type(info.type_id).illegal(rows, cols)
        if reason:
            raise FormatError(f"{self._gguf.path}: tensor {name}: {reason}")
        data = self._gguf.data(name)
        packed = rows * cols // 4
        scale = float(data[packed : packed + 4].view("<f4")[0])
        if not (math.isfinite(scale) and scale >= 0):
            raise FormatError(f"{self._gguf.path}: tensor {name} has the scale {scale}; expected a finite positive one")
        return data[:packed], rows, cols, info.type_id, scale, NO_TILES

    def _dense_values(self, name: str) -> np.ndarray:
        info = self._gguf.tensors[name]
        if info.type_name not in _STORAGE:
            raise UnsupportedError(f"{self._gguf.path}: tensor {name} is {info.type_name}; expected F32 or F16")
        return tensor_type(info.type_id).unpack(self._gguf.data(name), 1, math.prod(info.shape)).reshape(-1).copy()

    def _as_ternary(self, name: str) -> Weight | None:
        """Pack a dense matrix that is {-a, 0, +a} as I2_S, with zero columns up to a whole block."""
        info = self._gguf.tensors[name]
        rows, cols = info.shape
        values = self._gguf.data(name).view(_STORAGE[info.type_name]).reshape(rows, cols)
        found = three_values(values, info.type_name)
        if found is None:
            return None
        trits, scale = found
        padded = -(-cols // _PANEL) * _PANEL
        if padded != cols:
            trits = np.pad(trits, ((0, 0), (0, padded - cols)))
        i2_s = tensor_type("I2_S")
        return i2_s.pack(trits, scale)[: rows * padded // 4].copy(), rows, padded, i2_s.gguf_id, scale, NO_TILES
