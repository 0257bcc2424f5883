"""Hugging Face checkpoint to GGUF: streaming, straight to the packed type, one tensor in memory at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from bitconv.errors import InputError, UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, open_checkpoint
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.formats.hf_tokenizer import read_hf_tokenizer
from bitconv.models.hf_config import read_hf
from bitconv.pipeline.choice import FALLBACKS, TQ_SCALES
from bitconv.pipeline.conversion import Conversion
from bitconv.pipeline.metadata import add_metadata
from bitconv.pipeline.plan import OutputTypes, Plan, plan_tensors
from bitconv.pipeline.report import ConvertReport
from bitconv.pipeline.workers import default_threads
from bitconv.tensor_types import tensor_type, tensor_types
from bitconv.tensor_types.dense import PLAIN
from bitconv.tensor_types.tiles import parse_kernel_config

__all__ = ["ConvertReport", "convert"]

Progress = Callable[[int, int], None]


def convert(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    type: str = "i2_s",
    embedding_type: str = "f16",
    output_type: str | None = None,
    fallback: str = "tl2",
    kernel_config: str | None = None,
    tq_scale: str = "exact",
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
    type: of the ternary matrices: i2_s, tl1, tl2, tq1_0, tq2_0, f32, f16 or bf16. embedding_type, output_type: f32,
        f16, bf16, q8_0 or q6_k (q8_0 where q6_k cannot hold the shape); output_type defaults to embedding_type.
    fallback: for matrices that have no legal form in a ternary type: tl2 (else i2_s), i2_s or error.
    kernel_config: tiles of TL1 and TL2, "tl1:M,K,BM,BK,bm;...;tl2:M,K,BM,BK;...", for shapes that shall not have the
        default. tq_scale: exact, or f16 to round the multipliers of TQ1_0 and TQ2_0, which is llama.cpp's form.
    force: ternarise by absmean what is not ternary, instead of refusing. allow_pickle: read .bin files.
    pre: name of the pre-tokenizer. hf_tokenizer: keep the whole tokenizer.json in the file.
    threads: that read, round and pack, besides the one that writes; default: the cores of this process, at most 8.
        The file does not depend on it.
    progress(done, total): bytes to be read, tensors that need two passes counted twice.
    The file appears under its name when it is whole; nothing is left behind by an error.
    Raises InputError, FormatError, UnsupportedError, ResourceError as errors.py describes them.
    """
    started = time.monotonic()
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected at least 1")
    if tq_scale not in TQ_SCALES:
        raise InputError(f"tq_scale is {tq_scale!r}; expected {' or '.join(TQ_SCALES)}")
    types = _output_types(type, embedding_type, output_type, fallback, kernel_config)
    with open_checkpoint(src, allow_pickle=allow_pickle) as checkpoint:
        model = _model_name(src, checkpoint)
        path = _output_path(src, out, f"{model}-{types.linear.name.lower()}.gguf")
        settings = read_hf(checkpoint.config, checkpoint.tensors)
        plan = plan_tensors(checkpoint, settings, types)
        job = Conversion(checkpoint, settings, plan, tq_scale, threads or default_threads(), progress)
        with GgufWriter(path, settings.hyperparameters.arch, overwrite=overwrite) as writer:
            vocab = settings.hyperparameters.vocab
            vocabulary = read_hf_tokenizer(checkpoint, vocab, pre=pre, keep_json=hf_tokenizer)
            job.judge(force)
            job.settle()
            linears = [(one.type, one.rows, one.cols, one.tile) for one in job.plan.linears]
            add_metadata(writer, settings.hyperparameters, model, types.linear, linears)
            vocabulary.write(writer)
            for tensor in job.plan.tensors:
                writer.declare(tensor.name, tensor.shape, tensor.type.gguf_id)
            rows = job.write(writer)
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


def _output_types(
    linear: str, embedding: str, head: str | None, fallback: str, kernel_config: str | None
) -> OutputTypes:
    if fallback not in FALLBACKS:
        raise InputError(f"fallback is {fallback!r}; expected {', '.join(FALLBACKS)}")
    kind, dense = tensor_type(linear), [tensor_type(name) for name in (embedding, head or embedding)]
    if not kind.ternary and kind.name not in PLAIN:
        known = [one.name.lower() for one in tensor_types() if one.ternary or one.name in PLAIN]
        raise UnsupportedError(f"linears cannot be {kind.name}; supported are {', '.join(known)}")
    for one in dense:
        if one.ternary:
            known = [other.name.lower() for other in tensor_types() if not other.ternary]
            raise UnsupportedError(f"embeddings and head cannot be {one.name}; supported are {', '.join(known)}")
    tiles = {} if kernel_config is None else parse_kernel_config(kernel_config)
    return OutputTypes(kind, dense[0], dense[1], fallback, tiles)


def _model_name(src: str | os.PathLike[str], checkpoint: Checkpoint) -> str:
    folder = Path(src)
    return folder.resolve().name if folder.is_dir() else str(src).rpartition("/")[2] or checkpoint.path.name


def _output_path(src: str | os.PathLike[str], out: str | os.PathLike[str] | None, name: str) -> Path:
    if out is None:
        return Path(src) / name if Path(src).is_dir() else Path(name)
    return Path(out) / name if Path(out).is_dir() else Path(out)


def _source_bytes(plan: Plan) -> int:
    used = [entry for tensor in plan.tensors for entry in (tensor.source, tensor.scale) if entry is not None]
    return sum(entry.nbytes for entry in used)
