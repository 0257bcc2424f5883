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
from bitconv.tensor_types.ternary import unpack_hf

PART_WEIGHTS = 1 << 23  # of one task: large matrices are shared out

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


def read_piece(checkpoint: Checkpoint, entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    """Read rows into memory of this thread that its next call uses again."""
    nbytes = entry.nbytes // entry.shape[0] * (stop - start)
    buffer: np.ndarray | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.size < nbytes:
        buffer = _scratch.buffer = np.empty(nbytes, np.uint8)
    return checkpoint.read(entry.name, start, stop - start, into=buffer)


class LinearJob:
    """The conversion of one linear. survey_tasks, where there are any, come before everything that needs `settled`.

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
        group = row_group(tensor.type, tensor.rows, tensor.cols, tensor.tile)
        group = math.lcm(group, max(tensor.head_rows, 1))
        for start, stop in linears.part_bounds(0, tensor.rows, tensor.cols, group, PART_WEIGHTS):
            # the last part results in all bytes: it may be done before the others, but results are taken in order
            run = partial(self._ternary_part, out, group, start, stop)
            yield Task(run, tensor.nbytes // tensor.rows * (stop - start))

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

    def _survey_part(self, start: int, stop: int) -> None:
        try:
            if self.survey is not None:
                for first, last in _pieces(start, stop, self.tensor.cols):
                    piece = read_piece(self._checkpoint, self.entry, first, last)
                    self._count(piece.nbytes)
                    self.survey.add(piece)
        finally:  # after an error too: nobody may wait for ever, and the first error of all is the one that is raised
            with self._lock:
                self._parts_to_survey -= 1
                if not self._parts_to_survey:
                    self._surveyed.set()

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

    def _ternary_part(self, out: np.ndarray, group: int, start: int, stop: int) -> np.ndarray | None:
        settled, tensor = self.settled(), self.tensor
        target = Target(
            out, tensor.type, tensor.rows, tensor.cols, tensor.tile, tensor.head_rows, settled.packed_scale
        )
        with naming(self.entry):
            packed = self._whole() if settled.rounding is None else None
            for first, last in _pieces(start, stop, tensor.cols, group):
                self._count_nonzero(self._pack_rows(target, settled, packed, first, last))
        if stop < tensor.rows:
            return None
        if can_pack(target.type):
            target.finish()
        return out

    def _pack_rows(
        self, target: Target, settled: Settled, packed: np.ndarray | None, start: int, stop: int
    ) -> int:
        kind, tensor = target.type, self.tensor
        if not can_pack(kind):
            trits = self._trits(settled, packed, start, stop)
            kind.pack_into(target.out, trits, start, tensor.rows, settled.packed_scale, tensor.tile)
            return int(np.count_nonzero(trits))
        if packed is None:
            if settled.rounding is None:
                raise ValueError(f"{tensor.name} is neither packed nor surveyed")
            return target.pack_masters(self._read(start, stop), start, settled.rounding)
        nonzero = target.pack_packed(packed, start, stop)
        if nonzero < 0:
            unpack_hf(packed, tensor.rows)  # knows how to say where
        return nonzero

    def _dense_part(self, start: int, stop: int) -> np.ndarray:
        settled = self.settled()
        with naming(self.entry):
            packed = self._whole() if settled.rounding is None else None
            trits = self._trits(settled, packed, start, stop)
            self._count_nonzero(int(np.count_nonzero(trits)))
            return self.tensor.type.pack_rows(trits * np.float32(settled.multiplier))

    def _trits(self, settled: Settled, packed: np.ndarray | None, start: int, stop: int) -> np.ndarray:
        """Return rows as trits, by NumPy: for types without packing kernels."""
        if packed is not None:
            trits = unpack_hf(packed, self.tensor.rows, start, stop)
        elif settled.rounding is not None:
            trits = settled.rounding.ternarise()(self._read(start, stop))
        return rotary_rows(trits, self.tensor.head_rows) if self.tensor.head_rows else trits

    def _read(self, start: int, stop: int) -> np.ndarray:
        piece = read_piece(self._checkpoint, self.entry, start, stop)
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
