"""Checks a GGUF file by itself, or against another file or the checkpoint that it was made from."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitconv.errors import BitconvError, FormatError, InputError, UnsupportedError
from bitconv.formats.checkpoint import open_checkpoint
from bitconv.formats.gguf import GgufFile, open_gguf
from bitconv.models import read_gguf
from bitconv.models.dead_channels import layout_doubt
from bitconv.pipeline.compare import (
    DIFFERENT,
    ROUNDED,
    CheckpointModel,
    GgufModel,
    Model,
    Ternary,
    Verdict,
    compare_dense,
    compare_ternary,
)
from bitconv.pipeline.gguf_linears import GgufLinears, unstated_config, unstated_layout
from bitconv.pipeline.linears import chunk_bounds
from bitconv.pipeline.report import Notes
from bitconv.tensor_types import tensor_types
from bitconv.tensor_types.stored import naming

Progress = Callable[[int, int], None]
SOUND, MALFORMED, UNSUPPORTED, MISSING, UNKNOWN = "sound", "malformed", "unsupported", "missing", "unknown"
_UNSPECIFIED = 28  # bytes at the end of tensors with a tail that mean nothing


@dataclass(frozen=True)
class TensorCheck:
    """What was found about one tensor.

    result: "sound", "unknown" (a type that bitconv cannot read), "malformed" or "unsupported" (blocks with different
    scales, tiles that nobody states, MXFP4 under the id of TL2) in the file itself;
    beside another one "same", "rounded", "different" or "missing". message: one line about anything but sound and
    same. multiplier, negative, zero, positive (numbers of weights): of ternary matrices. differing, row, col: how
    many weights differ, and the first.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    result: str
    message: str | None = None
    multiplier: float | None = None
    negative: int | None = None
    zero: int | None = None
    positive: int | None = None
    other_type: str | None = None
    differing: int | None = None
    row: int | None = None
    col: int | None = None

    @property
    def fails(self) -> bool:
        """Whether this is a defect or a difference; a dense tensor rounded to its type is neither."""
        rounded = self.result == ROUNDED and self.multiplier is not None
        return rounded or self.result in (MALFORMED, UNSUPPORTED, DIFFERENT, MISSING)


@dataclass(frozen=True)
class VerifyReport:
    """The result of verify. problems: defects of the file as a whole; warnings: what else a user should know."""

    a: str
    b: str | None
    tensors: tuple[TensorCheck, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether every rule of the format holds."""
        return not self.problems and not any(t.result in (MALFORMED, UNSUPPORTED) for t in self.tensors)

    @property
    def equal(self) -> bool | None:
        """Whether both sides hold the same trits and multipliers; None without a second side."""
        return None if self.b is None else not any(t.fails for t in self.tensors)

    @property
    def only_rounding(self) -> bool:
        """Whether the two sides differ, but in nothing except multipliers rounded to the type that holds them."""
        failing = [t for t in self.tensors if t.fails]
        return bool(failing) and all(t.result == ROUNDED for t in failing)

    @property
    def ok(self) -> bool:
        """Sound, and equal where there was something to compare with."""
        return self.sound and self.equal is not False

    def raise_if_failed(self, *, rounding: bool = False) -> None:
        """Raise FormatError or UnsupportedError for a defect, BitconvError for a difference.

        rounding: let pass what differs only by rounding, because it was asked for.
        """
        if self.problems:
            raise FormatError(self.problems[0])
        for check in self.tensors:
            if check.result in (MALFORMED, UNSUPPORTED):
                kind = FormatError if check.result == MALFORMED else UnsupportedError
                raise kind(check.message or check.name)
        failing = [t for t in self.tensors if t.fails]
        if failing and not (rounding and self.only_rounding):
            first = failing[0]
            raise BitconvError(
                f"{self.a} and {self.b}: {len(failing)} of {len(self.tensors)} tensors differ\n"
                f"first {first.name}: {first.message}"
            )


def verify(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    *,
    tensors: str | None = None,
    kernel_config: str | None = None,
    i2s_layout: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a GGUF file, and compare it with another file or with a checkpoint.

    a: a GGUF file. b: a GGUF file, or the folder or Hub id of a checkpoint. tensors: a pattern such as "blk.0.*", to
    look at some only. kernel_config, i2s_layout: for files that do not state them. allow_pickle: for checkpoints.
    progress(done, total): bytes of a.
    Whatever can be said about a single tensor, good or bad, is in the report; see VerifyReport.raise_if_failed.
    InputError, FormatError, UnsupportedError: a file or checkpoint could not be read at all.
    """
    started = time.monotonic()
    notes = Notes()
    with contextlib.ExitStack() as stack:
        gguf = stack.enter_context(open_gguf(a))
        other = None if b is None else _open(stack, b, kernel_config, i2s_layout, allow_pickle)
        if isinstance(other, GgufModel):  # what is said may concern the other file alone
            kernel_config, i2s_layout = unstated_config(gguf, kernel_config), unstated_layout(gguf, i2s_layout)
        model = GgufModel(gguf, GgufLinears(gguf, kernel_config=kernel_config, i2s_layout=i2s_layout))
        names = [*model.shapes, *(name for name in (other.shapes if other else ()) if name not in model.shapes)]
        chosen = [name for name in names if tensors is None or fnmatch.fnmatchcase(name, tensors)]
        if tensors is not None and not chosen:
            raise InputError(f"{a}: no tensor is called {tensors!r}\nbitconv inspect --tensors lists them")
        problems = [*_gaps(gguf, notes), *_missing(gguf, notes)]
        for side in (model, other):
            doubt = layout_doubt(side.gguf, side.linears.stored.layout) if isinstance(side, GgufModel) else None
            if doubt:
                notes.warn(doubt)
        check = _Checker(model, other, notes, progress, sum(model.nbytes(n) for n in chosen if n in model.shapes))
        found = tuple(check.tensor(name) for name in chosen)
    return VerifyReport(
        str(a), None if b is None else str(b), found, tuple(problems), tuple(notes.messages), time.monotonic() - started
    )


def _open(
    stack: contextlib.ExitStack, b: str | os.PathLike[str], config: str | None, layout: str | None, pickle: bool
) -> Model:
    path = Path(b)
    if path.is_file() or (path.suffix == ".gguf" and not path.is_dir()):
        gguf = stack.enter_context(open_gguf(path))
        config, layout = unstated_config(gguf, config), unstated_layout(gguf, layout)
        return GgufModel(gguf, GgufLinears(gguf, kernel_config=config, i2s_layout=layout))
    return CheckpointModel(stack.enter_context(open_checkpoint(b, allow_pickle=pickle)))


def _gaps(gguf: GgufFile, notes: Notes) -> Iterator[str]:
    """Yield a sentence for each tensor that does not follow the previous one, as readers of other programs want.

    Bytes after the last tensor, which these do not mind, are noted.
    """
    expected = None
    for info in gguf.tensors.values():
        if expected is not None and info.offset != expected:
            yield (
                f"{gguf.path}: tensor {info.name} starts at offset {info.offset}; expected {expected}, right after the "
                "previous one"
            )
        expected = -(-(info.offset + info.nbytes) // gguf.alignment) * gguf.alignment
    if expected is not None and gguf.size > expected:
        notes.warn(f"{gguf.path}: {gguf.size - expected} bytes after the last tensor belong to nothing")


def _missing(gguf: GgufFile, notes: Notes) -> Iterator[str]:
    """Yield why the file is no model, when it claims to be one of a kind that bitconv knows."""
    try:
        read_gguf(gguf)
    except UnsupportedError as error:
        notes.warn(f"cannot be run here: {str(error).splitlines()[0]}")
    except FormatError as error:
        if gguf.tensors:  # else it is a vocabulary
            yield str(error)


class _Checker:
    """Checks tensors one by one; only one pair is in memory."""

    def __init__(self, a: GgufModel, b: Model | None, notes: Notes, progress: Progress | None, total: int) -> None:
        self.a, self.b, self.notes = a, b, notes
        self._progress, self._done, self._total = progress, 0, total

    def tensor(self, name: str) -> TensorCheck:
        """Check one tensor of either side."""
        if name not in self.a.shapes:
            assert self.b is not None
            kind, shape, nbytes = self.b.type_name(name), self.b.shapes[name], self.b.nbytes(name)
            return TensorCheck(name, kind, shape, nbytes, MISSING, f"not in {self.a.label}")
        info = self.a.gguf.tensors[name]
        try:
            check = self._sound(name)
        except (FormatError, UnsupportedError) as error:
            result = UNSUPPORTED if isinstance(error, UnsupportedError) else MALFORMED
            check = TensorCheck(name, info.type_name, info.shape, info.nbytes, result, str(error))
        for model in (self.a, self.b):
            if model is not None and name in model.shapes:
                model.release(name)
        self._done += info.nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)
        return check

    def _sound(self, name: str) -> TensorCheck:
        """Check a tensor against the rules of its type, then compare it; a BitconvError is a defect."""
        info = self.a.gguf.tensors[name]
        ternary = self.a.ternary(name)
        check = TensorCheck(name, info.type_name, info.shape, info.nbytes, SOUND)
        if ternary is not None:
            check = self._census(check, ternary)
        elif info.type_name == "MXFP4":  # the id of TL2: whoever checks such a file must not take it for that
            raise UnsupportedError(
                f"{self.a.label}: tensor {name} is MXFP4 (type id {info.type_id}, as TL2), which cannot be read"
            )
        elif not any(one.name == info.type_name for one in tensor_types()):
            check = replace(check, result=UNKNOWN, message=f"{info.type_name} cannot be read here")
        else:
            self._refuse_infinite(name)
            if name in self.a.linears.dense:
                check = replace(check, message="not ternary")
        if self.b is None:
            return check
        if name not in self.b.shapes:
            return replace(check, result=MISSING, message=f"not in {self.b.label}")
        verdict = self._compare(self.b, name, ternary)
        return replace(
            check, result=verdict.result, message=verdict.message or check.message, other_type=self.b.type_name(name),
            differing=verdict.differing, row=verdict.row, col=verdict.col,
        )  # fmt: skip

    def _compare(self, b: Model, name: str, left: Ternary | None) -> Verdict:
        if self.a.shapes[name] != b.shapes[name]:
            return Verdict(DIFFERENT, f"the shapes differ: {list(self.a.shapes[name])} and {list(b.shapes[name])}")
        known = {one.name for one in tensor_types()}
        for model in (self.a, b):
            if isinstance(model, GgufModel) and model.type_name(name) not in known:
                return Verdict(UNKNOWN, f"{model.type_name(name)} cannot be read here")
        right = b.ternary(name, like=left)
        left = left or self.a.ternary(name, like=right)
        if left is not None and right is not None:
            return compare_ternary(self.a, b, name, left, right)
        if left is not None or right is not None:
            dense = b if right is None else self.a
            return Verdict(DIFFERENT, f"it is not ternary in {dense.label}")
        return compare_dense(self.a, b, name)

    def _census(self, check: TensorCheck, ternary: Ternary) -> TensorCheck:
        rows, cols = check.shape
        trits = ternary.read(0, rows)
        nonzero, total = int(np.count_nonzero(trits)), int(trits.sum(dtype=np.int64))
        if check.name in self.a.linears.packed:
            self._note_odd_bytes(check.name, trits)
        return replace(
            check, multiplier=ternary.multiplier, negative=(nonzero - total) // 2, zero=rows * cols - nonzero,
            positive=(nonzero + total) // 2,
        )  # fmt: skip

    def _note_odd_bytes(self, name: str, trits: np.ndarray) -> None:
        """Warn of bytes that no writer of the type puts there, though they change no weight, such as padding."""
        stored = self.a.linears.read(name)
        if stored.type.kernel is None and stored.type.name == "I2_S":
            return
        raw = stored.type.read_scale(stored.data, *trits.shape)
        odd = stored.type.pack(trits, raw, stored.tile) != stored.data
        if stored.type.tail(1.0).size:
            odd[-_UNSPECIFIED:] = False
        if odd.any():
            at = int(np.argmax(odd))
            self.notes.warn(
                f"{self.a.label}: tensor {name}: byte {at} is {stored.data[at]}, which no writer of {stored.type.name} "
                "puts there; it changes no weight"
            )

    def _refuse_infinite(self, name: str) -> None:
        shape = self.a.shapes[name]
        for start, stop in chunk_bounds(math.prod(shape[:-1]), shape[-1]):
            values = self.a.values(name, start, stop)
            if not np.isfinite(values).all():
                row, col = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
                with naming(self.a.gguf, name):
                    raise FormatError(f"value {values[row, col]} at row {start + row}, column {col} is not finite")
