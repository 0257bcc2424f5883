"""Two models tensor by tensor: trits and multipliers exactly, dense tensors by value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bitconv.errors import UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, to_float32
from bitconv.formats.gguf import GgufFile
from bitconv.models.hf_config import read_hf
from bitconv.pipeline.gguf_linears import STORAGE, GgufLinears
from bitconv.pipeline.linears import chunk_bounds, open_matrix
from bitconv.pipeline.plan import OutputTypes, naming, plan_tensors
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.stored import naming as naming_tensor

SAME, ROUNDED, DIFFERENT = "same", "rounded", "different"
_HALF_TYPES = {"TQ1_0": "F16", "TQ2_0": "F16", "F16": "F16", "BF16": "BF16"}
"""The precision in which a type holds a multiplier, where that is less than float32."""


@dataclass(frozen=True)
class Ternary:
    """A ternary matrix: its multiplier, and read(start, stop) -> int8 [rows, cols] at multiples of `group` rows."""

    multiplier: float
    read: Callable[[int, int], np.ndarray]
    group: int = 1


@dataclass(frozen=True)
class Verdict:
    """How two tensors compare. differing: weights that differ; row, col: the first of them."""

    result: str
    message: str | None = None
    differing: int | None = None
    row: int | None = None
    col: int | None = None


class Model(ABC):
    """Either side of a comparison: shapes of its tensors under the names of GGUF, and what they hold."""

    label: str
    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def type_name(self, name: str) -> str:
        """Return the type as stored, such as "TL2" or "BF16"."""

    @abstractmethod
    def nbytes(self, name: str) -> int:
        """Return the bytes as stored."""

    @abstractmethod
    def ternary(self, name: str, *, like: Ternary | None = None) -> Ternary | None:
        """Return a linear whose weights are {-a, 0, +a}; None for any other tensor.

        like: its ternary counterpart, if there is one; then a matrix may have any name.
        """

    @abstractmethod
    def values(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows of a dense tensor, a vector being one row: float32 [stop - start, cols]."""

    def rounds(self, name: str) -> bool:
        """Say whether a type that holds less than the original can be why the tensor differs from it."""
        return False

    def release(self, name: str) -> None:
        """Give back the memory that reading a tensor took."""
        return


class GgufModel(Model):
    """A GGUF file, read through its linears. FormatError and UnsupportedError name the tensor."""

    def __init__(self, gguf: GgufFile, linears: GgufLinears) -> None:
        self.label = str(gguf.path)
        self.gguf, self.linears = gguf, linears
        self.shapes = {name: i.shape for name, i in gguf.tensors.items() if name not in linears.companions}
        self._linears = {*linears.packed, *linears.dense}

    def type_name(self, name: str) -> str:
        return self.gguf.tensors[name].type_name

    def nbytes(self, name: str) -> int:
        return self.gguf.tensors[name].nbytes

    def ternary(self, name: str, *, like: Ternary | None = None) -> Ternary | None:
        info = self.gguf.tensors[name]
        could_be = name in self._linears or (like is not None and len(info.shape) == 2 and info.type_name in STORAGE)
        multiplier = self.linears.multiplier(name) if could_be else None
        if multiplier is None:
            return None
        trits = self.linears.trits(name)
        return Ternary(multiplier, lambda start, stop: trits[start:stop])

    def values(self, name: str, start: int, stop: int) -> np.ndarray:
        info = self.gguf.tensors[name]
        with naming_tensor(self.gguf, name):
            step = info.nbytes // math.prod(info.shape[:-1])
            data = self.gguf.data(name)[start * step : stop * step]
            values: np.ndarray = tensor_type(info.type_name).unpack(data, stop - start, info.shape[-1])
            return values

    def rounds(self, name: str) -> bool:
        return True

    def release(self, name: str) -> None:
        self.gguf.release(name)


class CheckpointModel(Model):
    """A Hugging Face checkpoint, read as a conversion reads it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.label = str(checkpoint.path)
        self._checkpoint = checkpoint
        self._settings = read_hf(checkpoint.config, checkpoint.tensors)
        f32 = tensor_type("F32")
        plan = plan_tensors(checkpoint, self._settings, OutputTypes(f32, f32, f32))
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self.shapes = {tensor.name: tensor.shape for tensor in plan.tensors}

    def type_name(self, name: str) -> str:
        source = self._tensors[name].source
        return "F32" if source is None else source.dtype

    def nbytes(self, name: str) -> int:
        source = self._tensors[name].source
        return 0 if source is None else source.nbytes

    def ternary(self, name: str, *, like: Ternary | None = None) -> Ternary | None:
        tensor = self._tensors[name]
        if not tensor.linear or tensor.source is None:
            return None
        with naming(tensor.source):
            matrix = open_matrix(self._checkpoint, tensor, self._settings.form, None, lambda nbytes: None)
            return Ternary(matrix.multiplier, matrix.read, max(tensor.head_rows, 1))

    def values(self, name: str, start: int, stop: int) -> np.ndarray:
        source = self._tensors[name].source
        if source is None:
            return np.asarray(self._settings.hyperparameters.rope_factors, np.float32).reshape(1, -1)
        storage = self._checkpoint.read(source.name, *(() if len(source.shape) == 1 else (start, stop - start)))
        return to_float32(storage, source.dtype).reshape(stop - start, -1)


def compare_ternary(a: Model, b: Model, name: str, left: Ternary, right: Ternary) -> Verdict:
    """Compare two ternary matrices of one shape: every trit, then the multipliers."""
    rows, cols = a.shapes[name]
    differing, first = 0, None
    for start, stop in chunk_bounds(rows, cols, math.lcm(left.group, right.group)):
        one, other = left.read(start, stop), right.read(start, stop)
        unequal = one != other
        count = int(np.count_nonzero(unequal))
        if count and first is None:
            row, col = (int(i) for i in np.argwhere(unequal)[0])
            first = start + row, col, int(one[row, col]), int(other[row, col])
        differing += count
    scales = _compare_multipliers(a, b, name, left.multiplier, right.multiplier)
    if first is None:
        return scales
    row, col, x, y = first
    message = f"{differing} of {rows * cols} weights differ, first at row {row}, column {col}: {x:+d} and {y:+d}"
    if scales.message:
        message += f"; {scales.message}"
    return Verdict(DIFFERENT, message, differing, row, col)


def _compare_multipliers(a: Model, b: Model, name: str, x: float, y: float) -> Verdict:
    if x == y:
        return Verdict(SAME, differing=0)
    for model, own, other in ((a, x, y), (b, y, x)):
        half = _HALF_TYPES.get(model.type_name(name))
        if half and model.rounds(name) and _rounded(half, np.array([[other]], np.float32)) == own:
            message = f"only the multiplier differs: {other:.9g} is rounded to {half} in {model.label}, {own:.9g}"
            return Verdict(ROUNDED, message, differing=0)
    return Verdict(DIFFERENT, f"the multipliers differ: {x:.9g} and {y:.9g}", differing=0)


def compare_dense(a: Model, b: Model, name: str) -> Verdict:
    """Compare two dense tensors of one shape: equal values, or else one the other rounded to its type."""
    shape = a.shapes[name]
    rows, cols = math.prod(shape[:-1]), shape[-1]
    rounding = [m for m in (a, b) if m.rounds(name) and a.type_name(name) != b.type_name(name)]
    differing, first = 0, None
    error = power = 0.0
    for start, stop in chunk_bounds(rows, cols):
        one, other = a.values(name, start, stop), b.values(name, start, stop)
        wide = one.astype(np.float64)
        power += float((wide**2).sum())
        unequal = (one != other) & ~(np.isnan(one) & np.isnan(other))
        count = int(np.count_nonzero(unequal))
        if not count:
            continue
        if first is None:
            row, col = (int(i) for i in np.argwhere(unequal)[0])
            first = start + row, col, float(one[row, col]), float(other[row, col])
        differing += count
        error += float(((wide - other) ** 2).sum())
        held = {id(a): (one, other), id(b): (other, one)}
        rounding = [m for m in rounding if _is_rounding(m.type_name(name), *held[id(m)])]
    if first is None:
        return Verdict(SAME, differing=0)
    if rounding:
        relative = math.sqrt(error / power) if power else 0.0
        kind, label = rounding[0].type_name(name), rounding[0].label
        return Verdict(ROUNDED, f"rounded to {kind} in {label}, relative RMS error {relative:.2g}", differing)
    row, col, x, y = first
    message = f"{differing} of {rows * cols} values differ, first at row {row}, column {col}: {x:.9g} and {y:.9g}"
    return Verdict(DIFFERENT, message, differing, row, col)


def _is_rounding(kind: str, values: np.ndarray, exact: np.ndarray) -> bool:
    """Say whether `values`, whole rows of a tensor, are what the type makes of the exact ones."""
    rounded = _rounded(kind, exact)
    return rounded is not None and bool((rounded == values).all())


def _rounded(kind: str, exact: np.ndarray) -> np.ndarray | None:
    """Return what a type makes of float32 [rows, cols]; None where it cannot hold them."""
    one = tensor_type(kind)
    try:
        rounded: np.ndarray = one.unpack(one.pack(exact), *exact.shape)
    except UnsupportedError:
        return None
    return rounded
