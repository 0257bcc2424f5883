"""What quantize will write: type, tile and multiplier of every tensor, settled before the first byte is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.formats import ggml_types
from bitconv.formats.gguf import GgufFile, TensorInfo
from bitconv.models.dead_channels import layout_doubt
from bitconv.pipeline.choice import (
    FALLBACKS,
    TQ_SCALES,
    Choice,
    choose,
    choose_dense,
    describe_fallback,
    file_type,
    layout_metadata,
    stored_scale,
)
from bitconv.pipeline.gguf_linears import STORAGE, GgufLinears, pieces
from bitconv.pipeline.report import Notes
from bitconv.pipeline.workers import Progress
from bitconv.tensor_types import TensorType, tensor_type, tensor_types
from bitconv.tensor_types.stored import companion_name, naming, ternary_type
from bitconv.tensor_types.tiles import Shape, Tile, parse_kernel_config

Config = Mapping[str, Mapping[Shape, Tile]]

_SHOWN = 5
_ROWS_AT_ONCE = 1 << 20  # weights of a dense matrix that become float32 at once


@dataclass(frozen=True)
class Wanted:
    """What the caller asks for, checked; embedding and head are None where they stay as they are."""

    linear: TensorType
    embedding: TensorType | None
    head: TensorType | None
    fallback: str | None
    tq_scale: str
    config: Config

    @classmethod
    def of(
        cls, linear: str, embedding: str | None, head: str | None, fallback: str | None, config: str | None,
        tq_scale: str,
    ) -> Wanted:  # fmt: skip
        """Check the arguments of quantize; InputError or UnsupportedError lists what is possible."""
        if tq_scale not in TQ_SCALES:
            raise InputError(f"tq_scale is {tq_scale!r}; expected {' or '.join(TQ_SCALES)}")
        if fallback is not None and fallback not in FALLBACKS:
            raise InputError(f"fallback is {fallback!r}; expected {', '.join(FALLBACKS)}")
        kind = tensor_type(linear)
        if not kind.ternary and kind.name not in STORAGE:
            known = ", ".join(one.name.lower() for one in tensor_types() if one.ternary or one.name in STORAGE)
            raise UnsupportedError(f"the linear layers cannot be {kind.name}; supported are {known}")
        others = [None if name is None else tensor_type(name) for name in (embedding, head or embedding)]
        for other in others:
            if other is not None and other.ternary:
                known = ", ".join(one.name.lower() for one in tensor_types() if not one.ternary)
                raise UnsupportedError(f"embeddings and head cannot be {other.name}; supported are {known}")
        return cls(kind, others[0], others[1], fallback, tq_scale, parse_kernel_config(config) if config else {})


@dataclass(frozen=True)
class Job:
    """A piece of a tensor: how to make its bytes, in any thread; how many weights that keeps in memory."""

    weights: int
    nbytes_in: int
    run: Callable[[], np.ndarray]
    last: bool = True


@dataclass
class Step:
    """One tensor of the output, made from `source` by jobs that come in the order of its bytes.

    type: None for a copy. multiplier: as it is stored. nonzero: weights that are not zero, once the jobs have run.
    """

    name: str
    shape: tuple[int, ...]
    source: TensorInfo
    type: TensorType | None
    jobs: Callable[[], Iterator[Job]]
    multiplier: float | None = None
    tile: Tile | None = None
    nonzero: int | None = field(default=None, init=False)

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def type_id(self) -> int:
        """Type id in the output."""
        return self.source.type_id if self.type is None else self.type.gguf_id

    @property
    def type_name(self) -> str:
        """Name of the type in the output."""
        return self.source.type_name if self.type is None else self.type.name

    @property
    def nbytes(self) -> int:
        """Bytes in the output, without padding."""
        return self.source.nbytes if self.type is None else self.type.nbytes(math.prod(self.shape[:-1]), self.shape[-1])


class Planner:
    """Plans the steps of one file. progress: counts the bytes of the dense linears, which are read for it."""

    def __init__(self, gguf: GgufFile, linears: GgufLinears, wanted: Wanted, notes: Notes, progress: Progress) -> None:
        self.gguf, self.linears, self.wanted, self.notes, self._progress = gguf, linears, wanted, notes, progress
        self.steps: list[Step] = []
        self._rounded: list[str] = []
        self._f32 = tensor_type("F32")

    def plan(self) -> list[Step]:
        """Decide about every tensor, in the order of the source; companions follow their tensors."""
        doubt = layout_doubt(self.gguf, self.linears.stored.layout)
        if doubt:
            self.notes.warn(doubt)
        multipliers = self._multipliers()
        config = self._config()
        for info in self.gguf.tensors.values():
            if info.name in multipliers:
                self._plan_linear(info, multipliers[info.name], config)
            elif info.name not in self.linears.companions:
                self._plan_other(info)
        if self._rounded:
            exact = "--tq-scale exact" if self.wanted.linear.ternary else "a ternary type or f32"
            self.notes.warn(
                f"{self.wanted.linear.name} rounds the multiplier of {len(self._rounded)} tensors, such as "
                f"{self._rounded[0]}; {exact} keeps it"
            )
        return self.steps

    def layout(self) -> dict[str, str]:
        """Return the keys that say how the ternary matrices of the output are laid out."""
        ternary = [step for step in self.steps if step.type is not None and step.type.ternary]
        return layout_metadata((step.type, *step.shape, step.tile) for step in ternary)  # type: ignore[misc]

    def file_type(self) -> int:
        """Return the value of `general.file_type` of the output."""
        linears = {*self.linears.packed, *self.linears.dense}
        kinds = [step.type or tensor_type(step.source.type_name) for step in self.steps if step.name in linears]
        return file_type(self.wanted.linear, kinds)

    def _multipliers(self) -> dict[str, float]:
        """Return the multiplier of every linear that gets a new form; refuse what is not ternary."""
        linears, wanted = self.linears, self.wanted.linear
        if linears.other:
            info = self.gguf.tensors[linears.other[0]]
            raise UnsupportedError(
                f"{self.gguf.path}: tensor {info.name} is {info.type_name}; linears may be of a ternary type or "
                f"{', '.join(STORAGE)}"
            )
        recoded = [name for name in linears.dense if self.gguf.tensors[name].type_name != wanted.name]
        if not linears.packed and not linears.dense:
            raise UnsupportedError(f"{self.gguf.path}: holds no ternary matrices, such as blk.0.attn_q.weight")
        found: dict[str, float | None] = {}
        for name in (*linears.packed, *recoded):
            found[name] = linears.multiplier(name, self._progress.count)
            self.gguf.release(name)
            self._progress.tell()
        dense = [name for name, multiplier in found.items() if multiplier is None]
        if dense:
            more = f" and {len(dense) - _SHOWN} more" if len(dense) > _SHOWN else ""
            raise UnsupportedError(
                f"{self.gguf.path}: {len(dense)} of {len(found)} linears are not ternary, that is {{-a, 0, +a}}: "
                f"{', '.join(dense[:_SHOWN])}{more}\nconvert the checkpoint instead: bitconv convert"
            )
        return {name: multiplier for name, multiplier in found.items() if multiplier is not None}

    def _config(self) -> Config:
        """Return the tiles to write: those asked for, else those of the source."""
        merged: dict[str, dict[Shape, Tile]] = {}
        for name in self.linears.packed:
            info, tile = self.gguf.tensors[name], self.linears.stored.tiles(name)
            if any(tile):
                rows, cols = info.shape
                merged.setdefault(info.type_name, {})[rows, cols] = Tile(*tile)
        for kind, tiles in self.wanted.config.items():
            merged.setdefault(kind, {}).update(tiles)
        return merged

    def _choose(self, info: TensorInfo, config: Config) -> Choice:
        wanted, (rows, cols) = self.wanted, info.shape
        own = ternary_type(info)
        if own is not None and own is not wanted.linear and self._is_of_wanted_type():
            try:
                return choose(wanted.linear, rows, cols, fallback="error", kernel_config=config)
            except UnsupportedError:
                return choose(own, rows, cols, fallback="tl2", kernel_config=config)
        fallback = wanted.fallback or "tl2"
        choice = choose(wanted.linear, rows, cols, fallback=fallback, kernel_config=config)
        note = describe_fallback(wanted.linear, choice.type, info.name, rows, cols)
        if note:
            self.notes.warn(note)
        return choice

    def _is_of_wanted_type(self) -> bool:
        """Say whether the file is of the wanted type already, so that its fallbacks are to be left alone."""
        file_type = self.gguf.metadata.get("general.file_type")
        return self.wanted.fallback is None and type(file_type) is int and file_type == self.wanted.linear.file_type

    def _plan_linear(self, info: TensorInfo, multiplier: float, config: Config) -> None:
        with naming(self.gguf, info.name):
            kind, tile = self._choose(info, config)
            if kind.ternary:
                scale, companion = stored_scale(kind, multiplier, self.wanted.tq_scale)
            else:
                scale, companion = _rounded(kind, multiplier), None
        if scale != multiplier:
            self._rounded.append(info.name)
        step = Step(info.name, info.shape, info, kind, lambda: iter(()), scale, tile)
        run = self._packing(step, scale, companion) if kind.ternary else self._spreading(step, scale)
        step.jobs = lambda: iter([Job(step.weights, info.nbytes, run)])
        self.steps.append(step)
        if companion is not None:
            data = self._f32.pack(np.array([[companion]], np.float32))
            self.steps.append(
                Step(companion_name(info.name), (1,), info, self._f32, lambda: iter([Job(0, 0, lambda: data)]))
            )

    def _packing(self, step: Step, scale: float, companion: float | None) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            trits = self._trits(step)
            kind = step.type
            assert kind is not None
            if not step.nonzero and kind.name.startswith("TQ") and companion is None and scale != 1:
                raise UnsupportedError(
                    f"{self.gguf.path}: tensor {step.name}: all weights are zero, and {kind.name} cannot keep their "
                    f"multiplier {scale:g}"
                )
            return kind.pack(trits, scale, step.tile)

        return run

    def _spreading(self, step: Step, scale: float) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            trits = self._trits(step)
            kind = step.type
            assert kind is not None
            height = max(_ROWS_AT_ONCE // step.shape[1], 1)
            parts = [
                kind.pack_rows(trits[start : start + height] * np.float32(scale))
                for start in range(0, step.shape[0], height)
            ]
            return np.concatenate(parts)

        return run

    def _trits(self, step: Step) -> np.ndarray:
        trits = self.linears.trits(step.name)
        step.nonzero = int(np.count_nonzero(trits))
        return trits

    def _plan_other(self, info: TensorInfo) -> None:
        kind = {"token_embd.weight": self.wanted.embedding, "output.weight": self.wanted.head}.get(info.name)
        if kind is not None and len(info.shape) == 2:
            with naming(self.gguf, info.name):
                kind = choose_dense(kind, *info.shape)
                if info.type_name != kind.name:
                    source = tensor_type(info.type_name)
                    self.steps.append(
                        Step(info.name, info.shape, info, kind, lambda: self._recoding(info, source, kind))
                    )
                    return
        if info.type_name == "MXFP4" or ggml_types.ggml_type(info.type_id) is None:
            raise UnsupportedError(
                f"{self.gguf.path}: tensor {info.name} is {info.type_name} (type id {info.type_id}), which bitconv "
                "cannot write"
            )
        self.steps.append(Step(info.name, info.shape, info, None, lambda: self._copying(info)))

    def _copying(self, info: TensorInfo) -> Iterator[Job]:
        data, step = self.gguf.data(info.name), 1 << 24
        for start in range(0, info.nbytes, step):
            part = data[start : start + step]
            yield Job(0, part.size, lambda part=part: part, start + step >= info.nbytes)  # type: ignore[misc]

    def _recoding(self, info: TensorInfo, source: TensorType, kind: TensorType) -> Iterator[Job]:
        cols, row = info.shape[1], 0
        for part in pieces(self.gguf, info.name):
            rows = part.size * info.shape[0] // info.nbytes

            def run(part: np.ndarray = part, rows: int = rows, row: int = row) -> np.ndarray:
                with naming(self.gguf, info.name):
                    values = source.unpack(part, rows, cols)
                    if not np.isfinite(values).all():
                        bad, col = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
                        raise FormatError(f"value {values[bad, col]} at {[row + bad, col]} is not finite")
                    return kind.pack_rows(values)

            row += rows
            yield Job(rows * cols, part.size, run, row == info.shape[0])


def _rounded(kind: TensorType, multiplier: float) -> float:
    """Return the multiplier as a dense type holds it; UnsupportedError when that is 0 or infinite."""
    stored = float(kind.unpack(kind.pack(np.array([[multiplier]], np.float32)), 1, 1)[0, 0])
    if stored == 0:
        raise UnsupportedError(f"multiplier {multiplier:g} becomes 0 in {kind.name}\nuse f32 or i2_s")
    return stored
