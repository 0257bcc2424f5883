"""The work of one conversion: every tensor of the plan becomes tasks for several threads, their results a file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from bitconv.errors import FormatError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry, to_float32
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.models.hf_config import CheckpointSettings, WeightForm
from bitconv.pipeline.linear_job import LinearJob, read_piece
from bitconv.pipeline.linears import chunk_bounds
from bitconv.pipeline.native import convert_dense
from bitconv.pipeline.plan import Plan, PlannedTensor, naming
from bitconv.pipeline.report import Notes, TensorReport
from bitconv.pipeline.ternarity import not_ternary, refusal
from bitconv.pipeline.workers import Progress, Task, in_order
from bitconv.tensor_types import TensorType, tensor_type
from bitconv.tensor_types.stored import companion_name

BUDGET = 16 << 20  # bytes of results that wait for their turn, unless a single one is larger


class _Piece(NamedTuple):
    """Bytes of a tensor, and whether they are its last."""

    tensor: PlannedTensor
    data: np.ndarray | None
    last: bool


class Conversion:
    """The state of one conversion: progress, warnings, linears that were surveyed beforehand."""

    def __init__(
        self, checkpoint: Checkpoint, settings: CheckpointSettings, plan: Plan, tq_scale: str, threads: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self._checkpoint, self._settings, self.plan = checkpoint, settings, plan
        self._tq_scale, self._threads = tq_scale, threads
        self.notes = Notes()
        self._progress = Progress(_bytes_to_read(plan), progress)
        self._linears: dict[str, LinearJob] = {}
        self._inexact: list[str] = []
        self._rounded_again: list[str] = []
        for note in (*settings.notes, *plan.notes):
            self.notes.warn(note)

    def judge(self, force: bool) -> None:
        """Refuse, or with force only report, what config.json does not make a ternary model."""
        if self.plan.unused_head is not None and not self._same_as_embedding():
            name = self.plan.unused_head.name
            self.notes.warn(f"{name} differs from the embedding, but config.json ties them: it is left out")
        if self._settings.form is not WeightForm.EXACT:
            return
        linears = self._survey(self.plan.linears)
        dense = not_ternary(linears)
        if dense and not force:
            raise refusal(self._checkpoint, dense, len(linears))
        if dense:
            self.notes.warn(
                f"{len(dense)} of {len(linears)} linears are not ternary and were rounded by absmean (--force); "
                "the result computes something else than the checkpoint"
            )

    def settle(self) -> None:
        """Complete the plan by what only the weights tell: companion scales of types that may need them."""
        if self._tq_scale != "exact":
            return
        wanted = [tensor for tensor in self.plan.linears if _may_need_companion(tensor)]
        scales = {job.tensor.name: job.settled().companion for job in self._survey(wanted)}
        tensors: list[PlannedTensor] = []
        for tensor in self.plan.tensors:
            tensors.append(tensor)
            scale = scales.get(tensor.name)
            if scale is not None:
                values = np.array([scale], np.float32)
                name = companion_name(tensor.name)
                tensors.append(PlannedTensor(name, (1,), tensor_type("F32"), None, values=values))
        self.plan = replace(self.plan, tensors=tuple(tensors))

    def write(self, writer: GgufWriter) -> tuple[TensorReport, ...]:
        """Write every tensor, in order, and say what each became."""
        reports = []
        for piece in self._run(self._tasks()):
            if piece is None:
                continue
            if piece.data is not None:
                writer.write(piece.tensor.name, piece.data)
            if piece.last:
                reports.append(self._report(piece.tensor))
        self._warn_of_several()
        return tuple(reports)

    def _run(self, tasks: Iterable[Task]) -> Iterator[_Piece | None]:
        results = in_order(tasks, threads=self._threads, budget=BUDGET, progress=self._progress)
        with contextlib.closing(results):  # type: ignore[type-var]
            yield from results

    def _survey(self, tensors: Iterable[PlannedTensor]) -> list[LinearJob]:
        """Read linears for their statistics, those that were not yet."""
        new = [self._linear(tensor) for tensor in tensors if tensor.name not in self._linears]
        for _ in self._run(task for job in new for task in job.survey_tasks()):
            pass
        self._linears |= {job.tensor.name: job for job in new}
        return [self._linears[tensor.name] for tensor in tensors]

    def _linear(self, tensor: PlannedTensor) -> LinearJob:
        return LinearJob(self._checkpoint, tensor, self._settings.form, self._tq_scale, self._progress.count)

    def _tasks(self) -> Iterator[Task]:
        for tensor in self.plan.tensors:
            if tensor.linear:
                yield from self._linear_tasks(tensor)
            elif tensor.source is None:
                yield Task(partial(_computed, tensor), 0)
            else:
                yield from self._dense_tasks(tensor, tensor.source)

    def _linear_tasks(self, tensor: PlannedTensor) -> Iterator[Task]:
        surveyed = tensor.name in self._linears
        job = self._linears[tensor.name] if surveyed else self._linear(tensor)
        self._linears[tensor.name] = job
        tasks = list(job.pack_tasks() if surveyed else job.tasks())
        for i, task in enumerate(tasks):
            yield Task(partial(_run_piece, tensor, task, i == len(tasks) - 1), task.nbytes)

    def _dense_tasks(self, tensor: PlannedTensor, source: TensorEntry) -> Iterator[Task]:
        rows, cols = tensor.shape[0], math.prod(tensor.shape[1:])
        for start, stop in chunk_bounds(rows, cols):
            yield Task(partial(self._dense, tensor, source, start, stop), tensor.nbytes // rows * (stop - start))

    def _dense(self, tensor: PlannedTensor, source: TensorEntry, start: int, stop: int) -> _Piece:
        with naming(source):
            storage = read_piece(self._checkpoint, source, start, stop)
            self._progress.count(storage.nbytes)
            data = convert_dense(storage, source.dtype, tensor.type)
            if data is None:
                data = _dense_by_numpy(storage, source.dtype, tensor.type, start)
        return _Piece(tensor, data, stop == tensor.shape[0])

    def _report(self, tensor: PlannedTensor) -> TensorReport:
        source = tensor.source.name if tensor.source else None
        plain = TensorReport(tensor.name, tensor.type.name, tensor.shape, tensor.nbytes, source)
        if not tensor.linear:
            return plain
        job = self._linears.pop(tensor.name)
        settled = job.settled()
        if settled.rounded_again:
            self._rounded_again.append(tensor.name)
        if settled.inexact:
            self._inexact.append(tensor.name)
        return replace(plain, multiplier=settled.multiplier, density=job.density)

    def _warn_of_several(self) -> None:
        if self._rounded_again:
            self.notes.warn(
                f"{len(self._rounded_again)} linears, such as {self._rounded_again[0]}, hold {{-a, 0, +a}} already; "
                "absmean was applied again, as the reference does for this config.json, which shrinks the multiplier"
            )
        if self._inexact:
            kind = next(tensor.type.name for tensor in self.plan.linears)
            self.notes.warn(
                f"{kind} rounds the multiplier of {len(self._inexact)} tensors, such as {self._inexact[0]}; "
                "i2_s and f32 keep it exactly"
            )

    def _same_as_embedding(self) -> bool:
        head = self.plan.unused_head
        embedding = next(tensor.source for tensor in self.plan.tensors if tensor.name == "token_embd.weight")
        if head is None or embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
            return False
        for start, stop in chunk_bounds(*head.shape):
            pieces = [self._checkpoint.read(entry.name, start, stop - start) for entry in (head, embedding)]
            if pieces[0].tobytes() != pieces[1].tobytes():
                return False
        return True


def _computed(tensor: PlannedTensor) -> _Piece:
    return _Piece(tensor, tensor.type.pack(np.asarray(tensor.values)), True)


def _dense_by_numpy(storage: np.ndarray, dtype: str, kind: TensorType, start: int) -> np.ndarray:
    """Return rows from `start` on in a dense type; FormatError or UnsupportedError says which value is wrong."""
    values = to_float32(storage, dtype)
    if not np.isfinite(values).all():
        bad = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
        raise FormatError(f"value {values[tuple(bad)]} at {[bad[0] + start, *bad[1:]]} is not finite")
    packed = kind.pack_rows(values)
    return packed.copy() if np.shares_memory(packed, storage) else packed


def _run_piece(tensor: PlannedTensor, task: Task, last: bool) -> _Piece:
    return _Piece(tensor, task.run(), last)


def _may_need_companion(tensor: PlannedTensor) -> bool:
    """Whether there is a multiplier that the type cannot hold by itself."""
    return tensor.type.companion_scale(math.pi) is not None


def _bytes_to_read(plan: Plan) -> int:
    return sum(
        tensor.source.nbytes * (2 if tensor.linear and tensor.source.dtype != "U8" else 1)
        for tensor in plan.tensors
        if tensor.source is not None
    )
