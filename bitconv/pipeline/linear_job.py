"""One ternary matrix of a checkpoint on its way into the output, packed by native kernels on several threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry
from bitconv.models.hf_config import WeightForm
from bitconv.pipeline import linears
from bitconv.pipeline.choice import stored_scale
from bitconv.pipeline.linears import Count, check_multiplier, check_statistics, packed_multiplier, settle_masters
from bitconv.pipeline.native import Rounding, Survey, Target, can_pack, row_group
from bitconv.pipeline.plan import PlannedTensor, naming, rotary_rows
from bitconv.pipeline.workers import Task
from bitconv.tensor_types.ternary import storage_dtype, unpack_hf

PART_WEIGHTS = 1 << 23  # of one task: large matrices are shared out
HELD_BYTES = 40 << 20  # of masters that a thread keeps between their survey and their packing

_scratch = threading.local()


@dataclass(frozen=True)
class Settled:
    """What a matrix becomes: its multiplier, and how its weights become trits (None: they are packed trits already).

    packed_scale: what the ternary bytes hold; companion: what is stored beside them, or None; see stored_scale.
    rounded_again: it is ternarised by absmean although its values are -a, 0 and +a already.
    inexact: a dense output type rounds the multiplier.
    """

    multiplier: float
    rounding: Rounding | None
    packed_scale: float
    companion: float | None = None
    rounded_again: bool = False
    inexact: bool = False


def scratch(nbytes: int) -> np.ndarray:
    """Return uint8 [nbytes] of this thread, whose memory its next call uses again."""
    buffer: np.ndarray | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.size < nbytes:
        buffer = _scratch.buffer = np.empty(nbytes, np.uint8)
    return buffer[:nbytes]


def read_piece(checkpoint: Checkpoint, entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    """Read rows into scratch memory of this thread."""
    into = scratch(entry.nbytes // entry.shape[0] * (stop - start))
    return checkpoint.read(entry.name, start, stop - start, into=into)


class LinearJob:
    """The conversion of one linear: `tasks`, or survey_tasks and, after them, pack_tasks.

    count: told the bytes that are read, on any thread.
    """

    def __init__(
        self, checkpoint: Checkpoint, tensor: PlannedTensor, form: WeightForm, tq_scale: str, count: Count
    ) -> None:
        if tensor.source is None:
            raise ValueError(f"{tensor.name} has no source")
        self.tensor, self.entry = tensor, tensor.source
        self._checkpoint, self._form, self._tq_scale, self._count = checkpoint, form, tq_scale, count
        self._lock = threading.Lock()
        self._packed: np.ndarray | None = None
        self._settled: Settled | None = None
        self._nonzero = 0
        self.survey = None if self.entry.dtype == "U8" else Survey(self.entry.dtype)
        self._parts_to_survey = 0
        self._surveyed = threading.Event()

    def survey_tasks(self) -> Iterator[Task]:
        """Yield what reads the whole matrix for its statistics; each results in None."""
        if self.survey is None:
            return
        bounds = list(linears.part_bounds(0, self.tensor.rows, self.tensor.cols, 1, PART_WEIGHTS))
        self._parts_to_survey = len(bounds)
        for start, stop in bounds:
            yield Task(partial(self._survey_part, start, stop), 0)

    def pack_tasks(self) -> Iterator[Task]:
        """Yield what reads the matrix and packs it; each results in the next bytes of the tensor, or None."""
        tensor = self.tensor
        if not tensor.type.ternary:
            for start, stop in linears.chunk_bounds(tensor.rows, tensor.cols, max(tensor.head_rows, 1)):
                yield Task(partial(self._dense_part, start, stop), tensor.nbytes // tensor.rows * (stop - start))
            return
        out = np.empty(tensor.nbytes, np.uint8)
        for start, stop in linears.part_bounds(0, tensor.rows, tensor.cols, self._group(), PART_WEIGHTS):
            # the last part results in all bytes: it may be done before the others, but results are taken in order
            run = partial(self._ternary_part, out, start, stop)
            yield Task(run, tensor.nbytes // tensor.rows * (stop - start))

    def tasks(self) -> Iterator[Task]:
        """Yield what surveys and packs the matrix: in one go, reading it once, where it is small enough for that."""
        if self.survey is not None and self.tensor.type.ternary and self.entry.nbytes <= HELD_BYTES:
            yield Task(self._held_matrix, self.tensor.nbytes)
            return
        yield from self.survey_tasks()
        yield from self.pack_tasks()

    @property
    def density(self) -> float:
        """Share of the weights that are not zero, once everything is packed; FormatError when all are."""
        if not self._nonzero:
            with naming(self.entry):
                raise FormatError("all weights are zero")
        return self._nonzero / (self.tensor.rows * self.tensor.cols)

    def settled(self) -> Settled:
        """Return what the matrix becomes; waits for the survey. FormatError: it is not what its form allows."""
        if self.survey is not None:
            self._surveyed.wait()
        with self._lock:
            if self._settled is None:
                with naming(self.entry):
                    self._settled = self._settle()
            return self._settled

    def _group(self) -> int:
        tensor = self.tensor
        group = row_group(tensor.type, tensor.rows, tensor.cols, tensor.tile)
        return math.lcm(group, max(tensor.head_rows, 1))

    def _survey_part(self, start: int, stop: int) -> None:
        try:
            self._survey_rows(start, stop, None)
        finally:  # after an error too: nobody may wait for ever, and the first error of all is the one that is raised
            with self._lock:
                self._parts_to_survey -= 1
                if not self._parts_to_survey:
                    self._surveyed.set()

    def _survey_rows(self, start: int, stop: int, held: np.ndarray | None) -> None:
        """Look at rows as they are read, into their place in `held` (uint8, the whole matrix) or scratch memory."""
        if self.survey is None:
            return
        width = self.entry.nbytes // self.tensor.rows
        for first, last in _pieces(start, stop, self.tensor.cols):
            into = scratch(width * (last - first)) if held is None else held[width * first : width * last]
            piece = self._checkpoint.read(self.entry.name, first, last - first, into=into)
            if held is not None and not np.may_share_memory(piece, held):
                into[:] = piece.reshape(-1).view(np.uint8)
            self._count(piece.nbytes)
            self.survey.add(piece)

    def _held_matrix(self) -> np.ndarray | None:
        held, out = scratch(self.entry.nbytes), np.empty(self.tensor.nbytes, np.uint8)
        with naming(self.entry):
            self._survey_rows(0, self.tensor.rows, held)
        self._surveyed.set()
        return self._ternary_part(out, 0, self.tensor.rows, held.view(storage_dtype(self.entry.dtype)))

    def _settle(self) -> Settled:
        kind, again = self.tensor.type, False
        rounding: Rounding | None = None
        if self.survey is None:
            multiplier = packed_multiplier(self._checkpoint, self.tensor, self._form)
        else:
            check_statistics(self.survey)
            multiplier, scale, again = settle_masters(self._checkpoint, self.tensor, self._form, self.survey)
            rounding = Rounding(self.survey.dtype, scale)
        check_multiplier(multiplier)
        if kind.ternary:
            packed_scale, companion = stored_scale(kind, multiplier, self._tq_scale)
            return Settled(multiplier, rounding, packed_scale, companion, again)
        stored = float(kind.unpack(kind.pack(np.array([[multiplier]], np.float32)), 1, 1)[0, 0])
        if stored == 0:
            raise UnsupportedError(f"multiplier {multiplier:g} becomes 0 in {kind.name}\nuse f32 or i2_s")
        return Settled(multiplier, rounding, multiplier, None, again, stored != multiplier)

    def _ternary_part(
        self, out: np.ndarray, start: int, stop: int, held: np.ndarray | None = None
    ) -> np.ndarray | None:
        settled, tensor = self.settled(), self.tensor
        target = Target(
            out, tensor.type, tensor.rows, tensor.cols, tensor.tile, tensor.head_rows, settled.packed_scale
        )
        with naming(self.entry):
            packed = self._whole() if settled.rounding is None else None
            pieces = [(start, stop)] if held is not None else _pieces(start, stop, tensor.cols, self._group())
            for first, last in pieces:
                self._count_nonzero(self._pack_rows(target, settled, packed, first, last, held))
        if stop < tensor.rows:
            return None
        if can_pack(target.type):
            target.finish()
        return out

    def _pack_rows(
        self, target: Target, settled: Settled, packed: np.ndarray | None, start: int, stop: int,
        held: np.ndarray | None,
    ) -> int:  # fmt: skip
        kind, tensor = target.type, self.tensor
        if not can_pack(kind):
            trits = self._trits(settled, packed, start, stop, held)
            kind.pack_into(target.out, trits, start, tensor.rows, settled.packed_scale, tensor.tile)
            return int(np.count_nonzero(trits))
        if settled.rounding is not None:
            return target.pack_masters(self._rows(start, stop, held), start, settled.rounding)
        nonzero = -1 if packed is None else target.pack_packed(packed, start, stop)
        if packed is not None and nonzero < 0:
            unpack_hf(packed, tensor.rows)  # knows how to say where
        return nonzero

    def _dense_part(self, start: int, stop: int) -> np.ndarray:
        settled = self.settled()
        with naming(self.entry):
            packed = self._whole() if settled.rounding is None else None
            trits = self._trits(settled, packed, start, stop)
            self._count_nonzero(int(np.count_nonzero(trits)))
            return self.tensor.type.pack_rows(trits * np.float32(settled.multiplier))

    def _trits(
        self, settled: Settled, packed: np.ndarray | None, start: int, stop: int, held: np.ndarray | None = None
    ) -> np.ndarray:
        """Return rows as trits, by NumPy: for types without packing kernels."""
        if packed is not None:
            trits = unpack_hf(packed, self.tensor.rows, start, stop)
        elif settled.rounding is not None:
            trits = settled.rounding.ternarise()(self._rows(start, stop, held))
        return rotary_rows(trits, self.tensor.head_rows) if self.tensor.head_rows else trits

    def _rows(self, start: int, stop: int, held: np.ndarray | None) -> np.ndarray:
        """Return rows as they are stored, from the whole matrix [rows * cols] when that is held."""
        if held is None:
            piece = read_piece(self._checkpoint, self.entry, start, stop)
        else:
            piece = held.reshape(self.tensor.rows, -1)[start:stop]
        self._count(piece.nbytes)
        return piece

    def _whole(self) -> np.ndarray:
        """Return the packed matrix, whose rows lie across it."""
        with self._lock:
            if self._packed is None:
                self._packed = self._checkpoint.read(self.entry.name)
                self._count(self.entry.nbytes)
            return self._packed

    def _count_nonzero(self, n: int) -> None:
        with self._lock:
            self._nonzero += n


def _pieces(start: int, stop: int, cols: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    return linears.part_bounds(start, stop, cols, multiple, linears.CHUNK_WEIGHTS)
