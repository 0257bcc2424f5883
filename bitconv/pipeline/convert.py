"""Hugging Face checkpoint to GGUF: streaming, straight to the packed type, one tensor in memory at a time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bitconv
from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry, open_checkpoint, to_float32
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.formats.hf_tokenizer import read_hf_tokenizer
from bitconv.models import Hyperparameters
from bitconv.models.hf_config import CheckpointSettings, WeightForm, read_hf
from bitconv.pipeline.linears import chunk_bounds, open_matrix
from bitconv.pipeline.plan import OutputTypes, Plan, PlannedTensor, naming, plan_tensors
from bitconv.pipeline.report import ConvertReport, Notes, TensorReport
from bitconv.pipeline.ternarity import not_ternary, refusal, survey_linears
from bitconv.tensor_types import TensorType, tensor_type, tensor_types
from bitconv.tensor_types.ternary import WeightStatistics

__all__ = ["ConvertReport", "convert"]

Progress = Callable[[int, int], None]


def convert(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    type: str = "i2_s",
    embedding_type: str = "f16",
    output_type: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    allow_pickle: bool = False,
    pre: str | None = None,
    hf_tokenizer: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a Hugging Face BitNet checkpoint to one GGUF file.

    src: folder or Hub id. out: file, or folder for `<model>-<type>.gguf`; default: in the folder of src.
    type: of the ternary matrices: i2_s, f32, f16 or bf16; embedding_type, output_type: f32, f16 or bf16;
        output_type defaults to embedding_type.
    force: ternarise by absmean what is not ternary, instead of refusing. allow_pickle: read .bin files.
    pre: name of the pre-tokenizer. hf_tokenizer: keep the whole tokenizer.json in the file.
    threads: accepted for later; conversion runs on one.
    progress(done, total): bytes to be read, tensors that need two passes counted twice.
    The file appears under its name when it is whole; nothing is left behind by an error.
    Raises InputError, FormatError, UnsupportedError, ResourceError as errors.py describes them.
    """
    started = time.monotonic()
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected at least 1")
    types = _output_types(type, embedding_type, output_type)
    with open_checkpoint(src, allow_pickle=allow_pickle) as checkpoint:
        model = _model_name(src, checkpoint)
        path = _output_path(src, out, f"{model}-{types.linear.name.lower()}.gguf")
        settings = read_hf(checkpoint.config, checkpoint.tensors)
        plan = plan_tensors(checkpoint, settings, types)
        job = _Conversion(checkpoint, settings, plan, progress)
        with GgufWriter(path, settings.hyperparameters.arch, overwrite=overwrite) as writer:
            vocab = settings.hyperparameters.vocab
            vocabulary = read_hf_tokenizer(checkpoint, vocab, pre=pre, keep_json=hf_tokenizer)
            job.judge(force)
            _add_metadata(writer, settings.hyperparameters, model, types.linear)
            vocabulary.write(writer)
            for tensor in plan.tensors:
                writer.declare(tensor.name, tensor.shape, tensor.type.gguf_id)
            rows = tuple(job.write(writer, tensor) for tensor in plan.tensors)
            job.close()
            writer.finish()
        ignored = tuple(checkpoint.config.unread())
    return ConvertReport(
        path=path,
        type=types.linear.name,
        weight_form=settings.form.value,
        hyperparameters=settings.hyperparameters,
        tensors=rows,
        bytes_in=_source_bytes(plan),
        bytes_out=path.stat().st_size,
        seconds=time.monotonic() - started,
        ignored_keys=ignored,
        warnings=tuple(job.notes.messages),
    )


def _output_types(linear: str, embedding: str, head: str | None) -> OutputTypes:
    known = [one for one in tensor_types() if one.kernel is not None]
    dense = [one.name.lower() for one in known if not one.ternary]
    found = [tensor_type(name) for name in (embedding, head or embedding)]
    for one in (tensor_type(linear), *found):
        if one not in known:
            names = ", ".join(kind.name.lower() for kind in known)
            raise UnsupportedError(f"{one.name} cannot be converted to yet; supported are {names}")
    for one in found:
        if one.ternary:
            raise UnsupportedError(f"embeddings and head cannot be {one.name}; supported are {', '.join(dense)}")
    return OutputTypes(tensor_type(linear), *found)


def _model_name(src: str | os.PathLike[str], checkpoint: Checkpoint) -> str:
    folder = Path(src)
    return folder.resolve().name if folder.is_dir() else str(src).rpartition("/")[2] or checkpoint.path.name


def _output_path(src: str | os.PathLike[str], out: str | os.PathLike[str] | None, name: str) -> Path:
    if out is None:
        return Path(src) / name if Path(src).is_dir() else Path(name)
    return Path(out) / name if Path(out).is_dir() else Path(out)


def _add_metadata(writer: GgufWriter, hp: Hyperparameters, model: str, linear: TensorType) -> None:
    """Add every key but those of the tokenizer; docs/FORMAT.md lists them."""
    arch = hp.arch
    for key, text in (("type", "model"), ("name", model)):
        writer.add(f"general.{key}", text, "str")
    writer.add("general.quantization_version", 2, "u32")
    writer.add("general.file_type", linear.file_type, "u32")
    for key, number in (
        ("vocab_size", hp.vocab),
        ("context_length", hp.context),
        ("embedding_length", hp.hidden),
        ("block_count", hp.n_layers),
        ("feed_forward_length", hp.ffn),
        ("rope.dimension_count", hp.head_dim),
        ("attention.head_count", hp.n_heads),
        ("attention.head_count_kv", hp.n_kv_heads),
        ("attention.key_length", hp.head_dim),
        ("attention.value_length", hp.head_dim),
    ):
        writer.add(f"{arch}.{key}", number, "u32")
    writer.add(f"{arch}.attention.layer_norm_rms_epsilon", hp.rms_eps, "f32")
    writer.add(f"{arch}.rope.freq_base", hp.rope_theta, "f32")
    writer.add(f"{arch}.hidden_activation", hp.activation, "str")
    writer.add("bitconv.version", bitconv.__version__, "str")
    if linear.name == "I2_S":
        writer.add("bitconv.i2_s.layout", "x86-128", "str")
    if not linear.ternary:
        writer.add("bitconv.activation_bits", 8, "u32")


def _source_bytes(plan: Plan) -> int:
    used = [entry for tensor in plan.tensors for entry in (tensor.source, tensor.scale) if entry is not None]
    return sum(entry.nbytes for entry in used)


class _Conversion:
    """The state of one conversion: progress, warnings, statistics of linears that were surveyed beforehand."""

    def __init__(
        self, checkpoint: Checkpoint, settings: CheckpointSettings, plan: Plan, progress: Progress | None
    ) -> None:
        self.checkpoint, self.settings, self.plan = checkpoint, settings, plan
        self.notes = Notes()
        self._progress = progress
        self._done = 0
        self._total = sum(
            tensor.source.nbytes * (2 if tensor.linear and tensor.source.dtype != "U8" else 1)
            for tensor in plan.tensors
            if tensor.source is not None
        )
        self._statistics: dict[str, WeightStatistics] = {}
        self._inexact: list[str] = []
        self._rounded_again: list[str] = []
        for note in settings.notes:
            self.notes.warn(note)

    def judge(self, force: bool) -> None:
        """Refuse, or with force only report, what config.json does not make a ternary model."""
        if self.plan.unused_head is not None and not self._same_as_embedding():
            name = self.plan.unused_head.name
            self.notes.warn(f"{name} differs from the embedding, but config.json ties them: it is left out")
        if self.settings.form is not WeightForm.EXACT:
            return
        linears = [tensor for tensor in self.plan.tensors if tensor.linear]
        self._statistics = survey_linears(self.checkpoint, linears, self._count)
        dense = not_ternary(linears, self._statistics)
        if dense and not force:
            raise refusal(self.checkpoint, dense, self._statistics, len(linears))
        if dense:
            self.notes.warn(
                f"{len(dense)} of {len(linears)} linears are not ternary and were rounded by absmean (--force); "
                "the result computes something else than the checkpoint"
            )

    def write(self, writer: GgufWriter, tensor: PlannedTensor) -> TensorReport:
        """Write one tensor and say what it became."""
        if tensor.source is None:
            factors = self.settings.hyperparameters.rope_factors
            writer.write(tensor.name, tensor.type.pack(np.asarray(factors, np.float32)))
            return _report(tensor)
        with naming(tensor.source):
            if tensor.linear:
                return self._write_linear(writer, tensor)
            self._write_dense(writer, tensor, tensor.source)
        return _report(tensor)

    def close(self) -> None:
        """Issue the warnings that concern several tensors."""
        if self._rounded_again:
            self.notes.warn(
                f"{len(self._rounded_again)} linears, such as {self._rounded_again[0]}, hold {{-a, 0, +a}} already; "
                "absmean was applied again, as the reference does for this config.json, which shrinks the multiplier"
            )
        if self._inexact:
            kind = next(tensor.type.name for tensor in self.plan.tensors if tensor.linear)
            self.notes.warn(
                f"{kind} rounds the multiplier of {len(self._inexact)} tensors, such as {self._inexact[0]}; "
                "i2_s and f32 keep it exactly"
            )

    def _count(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _write_dense(self, writer: GgufWriter, tensor: PlannedTensor, source: TensorEntry) -> None:
        for start, stop in chunk_bounds(tensor.shape[0], math.prod(tensor.shape[1:])):
            storage = self.checkpoint.read(source.name, start, stop - start)
            self._count(storage.nbytes)
            values = to_float32(storage, source.dtype)
            if not np.isfinite(values).all():
                bad = [int(i) for i in np.argwhere(~np.isfinite(values))[0]]
                raise FormatError(f"value {values[tuple(bad)]} at {[bad[0] + start, *bad[1:]]} is not finite")
            writer.write(tensor.name, tensor.type.pack_rows(values))

    def _write_linear(self, writer: GgufWriter, tensor: PlannedTensor) -> TensorReport:
        known = self._statistics.pop(tensor.name, None)
        matrix = open_matrix(self.checkpoint, tensor, self.settings.form, known, self._count)
        if matrix.rounded_again:
            self._rounded_again.append(tensor.name)
        pack = self._packer(tensor, matrix.multiplier)
        nonzero = 0
        for start, stop in chunk_bounds(tensor.rows, tensor.cols, max(tensor.head_rows, 1)):
            trits = matrix.read(start, stop)
            nonzero += int(np.count_nonzero(trits))
            writer.write(tensor.name, pack(trits))
        if not nonzero:
            raise FormatError("all weights are zero")
        tail = tensor.type.tail(matrix.multiplier)
        if tail.size:
            writer.write(tensor.name, tail)
        return _report(tensor, matrix.multiplier, nonzero / (tensor.rows * tensor.cols))

    def _packer(self, tensor: PlannedTensor, multiplier: float) -> Callable[[np.ndarray], np.ndarray]:
        kind = tensor.type
        if kind.ternary:
            return kind.pack_rows
        stored = float(kind.unpack(kind.pack(np.array([[multiplier]], np.float32)), 1, 1)[0, 0])
        if stored == 0:
            raise UnsupportedError(f"multiplier {multiplier:g} becomes 0 in {kind.name}\nuse f32 or i2_s")
        if stored != multiplier:
            self._inexact.append(tensor.name)
        return lambda trits: kind.pack_rows(trits * np.float32(multiplier))

    def _same_as_embedding(self) -> bool:
        head = self.plan.unused_head
        embedding = next(tensor.source for tensor in self.plan.tensors if tensor.name == "token_embd.weight")
        if head is None or embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
            return False
        for start, stop in chunk_bounds(*head.shape):
            pieces = [self.checkpoint.read(entry.name, start, stop - start) for entry in (head, embedding)]
            if pieces[0].tobytes() != pieces[1].tobytes():
                return False
        return True


def _report(tensor: PlannedTensor, multiplier: float | None = None, density: float | None = None) -> TensorReport:
    source = tensor.source.name if tensor.source else None
    return TensorReport(
        tensor.name, tensor.type.name, tensor.shape, tensor.nbytes, source, multiplier, density
    )
