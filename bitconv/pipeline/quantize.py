"""GGUF to GGUF: the same trits and the same multipliers in another tensor type, one tensor after the other."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bitconv
from bitconv.errors import InputError
from bitconv.formats.gguf import GgufFile, open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.pipeline.gguf_linears import GgufLinears, unstated_config
from bitconv.pipeline.quantize_plan import Job, Planner, Step, Wanted
from bitconv.pipeline.report import Notes
from bitconv.pipeline.workers import Progress, Task, default_threads, in_order
from bitconv.tensor_types import TensorType, tensor_types
from bitconv.tensor_types.stored import LAYOUT_KEY
from bitconv.tensor_types.tiles import METADATA_KEYS

VERSION_KEY = "bitconv.version"
BITS_KEY = "bitconv.activation_bits"
FILE_TYPE_KEY = "general.file_type"
_OWN_KEYS = (VERSION_KEY, LAYOUT_KEY, *METADATA_KEYS.values(), BITS_KEY)
_NOT_CARRIED = ("general.architecture", "general.alignment")  # the writer's own business
_AHEAD = 1 << 25  # weights that may be in work at once, unless a single job has more


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor of the output. multiplier and density (share of weights that are not zero): of ternary matrices."""

    name: str
    type: str
    source_type: str
    shape: tuple[int, ...]
    nbytes: int
    multiplier: float | None = None
    density: float | None = None


@dataclass(frozen=True)
class QuantizeReport:
    """What was rewritten. warnings: the sentences that were also issued as BitconvWarning; seconds: wall time."""

    path: Path
    source: Path
    type: str
    tensors: tuple[QuantizedTensor, ...]
    bytes_in: int
    bytes_out: int
    seconds: float
    warnings: tuple[str, ...]

    @property
    def n_tensors(self) -> int:
        """Number of tensors written."""
        return len(self.tensors)


def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    *,
    type: str,
    embedding_type: str | None = None,
    output_type: str | None = None,
    fallback: str | None = None,
    kernel_config: str | None = None,
    i2s_layout: str | None = None,
    tq_scale: str = "exact",
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeReport:
    """Rewrite the ternary matrices of a GGUF file in another tensor type, exactly.

    src: a file with matrices of a ternary type, or with F32, F16 or BF16 ones that are {-a, 0, +a}.
    dst: file, or folder for `<model>-<type>.gguf`; default: that name beside src.
    type: any ternary type, f32, f16 or bf16. embedding_type, output_type: any dense type; default: as they are,
        and output_type as embedding_type where that is given.
    fallback: "tl2", "i2_s" or "error", for a matrix that has no legal form in the type; default tl2, except that
        what a file of the very type already holds otherwise stays as it is.
    kernel_config: tiles to write, and to read a file with that does not state its own. i2s_layout: of src, where it
        is not x86-128. tq_scale: "exact", or "f16" to round the multipliers of TQ1_0 and TQ2_0.
    threads: default as convert. progress(done, total): bytes read, dense linears counted twice.
    Keys and all other tensors are carried over. The file appears under its name when it is whole; nothing is left
    behind by an error. Raises InputError, FormatError, UnsupportedError, ResourceError as errors.py describes them.
    """
    started = time.monotonic()
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected at least 1")
    wanted = Wanted.of(type, embedding_type, output_type, fallback, kernel_config, tq_scale)
    with open_gguf(src) as gguf:
        path = output_path(Path(src), dst, wanted.linear)
        linears = GgufLinears(gguf, kernel_config=unstated_config(gguf, kernel_config), i2s_layout=i2s_layout)
        notes = Notes()
        surveyed = [gguf.tensors[name] for name in linears.dense]
        counted = Progress(sum(info.nbytes for info in (*surveyed, *gguf.tensors.values())), progress)
        with GgufWriter(path, gguf.get("general.architecture", str), overwrite=overwrite) as writer:
            planner = Planner(gguf, linears, wanted, notes, counted)
            steps = planner.plan()
            eight_bits = not wanted.linear.ternary and (bool(linears.packed) or BITS_KEY in gguf.metadata)
            for key, value, kind in _metadata(gguf, planner.file_type(), planner.layout(), eight_bits):
                writer.add(key, value, kind)
            for step in steps:
                writer.declare(step.name, step.shape, step.type_id)
            rows = tuple(_write(writer, gguf, steps, threads or default_threads(), counted))
            writer.finish()
        return QuantizeReport(
            path, Path(src), wanted.linear.name, rows, gguf.size, path.stat().st_size,
            time.monotonic() - started, tuple(notes.messages),
        )  # fmt: skip


def output_path(src: Path, dst: str | os.PathLike[str] | None, kind: TensorType) -> Path:
    """Return the file to write; the name of src gives way to that of the new type where it ends in one."""
    if dst is not None and not Path(dst).is_dir():
        return Path(dst)
    stem, dash, last = src.name.removesuffix(".gguf").rpartition("-")
    known = {one.name.lower() for one in tensor_types()}
    model = stem if dash and last.lower() in known else src.name.removesuffix(".gguf")
    return (src.parent if dst is None else Path(dst)) / f"{model}-{kind.name.lower()}.gguf"


def _metadata(
    gguf: GgufFile, file_type: int, layout: Mapping[str, str], eight_bits: bool
) -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, value type) of the output: those of the source in its order, our own where ours are."""
    own: list[tuple[str, Any, str]] = [(VERSION_KEY, bitconv.__version__, "str")]
    own += [(key, text, "str") for key, text in layout.items()]
    own += [(BITS_KEY, 8, "u32")] if eight_bits else []
    for key, value_type in gguf.metadata_types.items():
        if key == VERSION_KEY:
            yield from own
        elif key == FILE_TYPE_KEY:
            yield FILE_TYPE_KEY, file_type, "u32"
        elif key not in _OWN_KEYS and key not in _NOT_CARRIED:
            yield key, gguf.metadata[key], value_type
    if FILE_TYPE_KEY not in gguf.metadata:
        yield FILE_TYPE_KEY, file_type, "u32"
    if VERSION_KEY not in gguf.metadata:
        yield from own


def _write(
    writer: GgufWriter, gguf: GgufFile, steps: list[Step], threads: int, progress: Progress
) -> Iterator[QuantizedTensor]:
    """Make and write every tensor in order; yield what became of each."""

    def run(step: Step, job: Job) -> tuple[Step, Job, np.ndarray]:
        data = job.run()
        progress.count(job.nbytes_in)
        return step, job, data

    tasks = (Task(partial(run, step, job), job.weights) for step in steps for job in step.jobs())
    results = in_order(tasks, threads=threads, budget=_AHEAD, progress=progress)
    with contextlib.closing(results):  # type: ignore[type-var]
        for step, job, data in results:
            writer.write(step.name, data)
            if job.last:
                gguf.release(step.source.name)
                density = None if step.nonzero is None else step.nonzero / step.weights
                yield QuantizedTensor(
                    step.name, step.type_name, step.source.type_name, step.shape, step.nbytes, step.multiplier, density
                )
