"""What a conversion will write: every output tensor with its source, checked before a byte is read or written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bitconv.errors import BitconvError, FormatError, UnsupportedError
from bitconv.formats.checkpoint import Checkpoint, TensorEntry
from bitconv.models import LINEARS, gguf_tensor_names
from bitconv.models.hf_config import CheckpointSettings, WeightForm
from bitconv.pipeline.choice import KernelConfig, choose, choose_dense, describe_fallback
from bitconv.tensor_types import TensorType, tensor_type
from bitconv.tensor_types.tiles import Tile

PACKED = (WeightForm.PACKED_DIVIDE, WeightForm.PACKED_MULTIPLY)
_MASTERS = ("BF16", "F16", "F32")
_SHOWN = 5


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    name, shape (rows, cols), type: as the GGUF file will have them; tile: of a tiled type. source: where the
    checkpoint holds it, None for a tensor that is computed, whose float32 values then are `values`.
    linear: it is ternary; scale: its weight_scale, if any.
    head_rows: rows of one attention head whose rotary order changes, 0 for a tensor whose rows stay.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    source: TensorEntry | None
    linear: bool = False
    scale: TensorEntry | None = None
    head_rows: int = 0
    tile: Tile | None = None
    values: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Rows of the matrix; a vector is one row."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def cols(self) -> int:
        """Columns of the matrix."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the output."""
        return self.type.nbytes(self.rows, self.cols)


@dataclass(frozen=True)
class OutputTypes:
    """What is asked for: tensor types of the ternary matrices, the token embedding and the head; norms are F32.

    fallback, kernel_config: as choice.choose takes them.
    """

    linear: TensorType
    embedding: TensorType
    head: TensorType
    fallback: str = "tl2"
    kernel_config: KernelConfig = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Every output tensor in file order, and the checkpoint's head that a tied model leaves out, if any.

    notes: a sentence for each tensor that gets another type than was asked for, and for tiles that none uses.
    """

    tensors: tuple[PlannedTensor, ...]
    unused_head: TensorEntry | None
    notes: tuple[str, ...]

    @property
    def linears(self) -> tuple[PlannedTensor, ...]:
        """The ternary matrices, in file order."""
        return tuple(tensor for tensor in self.tensors if tensor.linear)


@contextlib.contextmanager
def naming(entry: TensorEntry) -> Iterator[None]:
    """Put file and tensor in front of the message of any BitconvError raised inside that lacks them."""
    try:
        yield
    except BitconvError as error:
        if str(entry.file) in str(error):
            raise
        raise type(error)(f"{entry.file}: tensor {entry.name}: {error}") from error


def plan_tensors(checkpoint: Checkpoint, settings: CheckpointSettings, types: OutputTypes) -> Plan:
    """Match the checkpoint's tensors with those of the output.

    FormatError: a tensor is missing, left over, of the wrong shape or not stored as config.json says.
    UnsupportedError: a bias, a norm inside a linear, or a shape that the wanted type cannot hold.
    """
    hp, left = settings.hyperparameters, dict(checkpoint.tensors)
    planned: list[PlannedTensor] = []
    missing: list[str] = []
    for name, shape in gguf_tensor_names(hp).items():
        if name == "rope_freqs.weight":
            factors = np.asarray(hp.rope_factors, np.float32)
            planned.append(PlannedTensor(name, shape, tensor_type("F32"), None, values=factors))
            continue
        entry = _take(left, _spellings(settings.family.hf_names, name))
        if isinstance(entry, str):
            missing.append(entry)
            continue
        planned.append(_plan_one(name, shape, entry, left, settings, types, missing))
    if missing:
        raise FormatError(f"{checkpoint.path}: {_tensors(missing)} missing: {_some(missing)}")
    unused_head = left.pop(_spellings(settings.family.hf_names, "output.weight")[0], None)
    _refuse_leftovers(checkpoint, list(left))
    settled = tuple(_settle_type(tensor, types) for tensor in planned)
    pairs = zip(planned, settled, strict=True)
    notes = [describe_fallback(a.type, b.type, a.name, a.rows, a.cols) for a, b in pairs]
    notes += _unused_tiles(settled, types)
    return Plan(settled, unused_head if hp.tied_head else None, tuple(note for note in notes if note))


def _spellings(hf_names: Mapping[str, tuple[str, ...]], name: str) -> list[str]:
    """Return the names that checkpoints use for a GGUF tensor."""
    if not name.startswith("blk."):
        return list(hf_names[name])
    _, layer, role = name.split(".", 2)
    return [pattern.replace("{n}", layer) for pattern in hf_names[f"blk.{{n}}.{role}"]]


def _take(left: dict[str, TensorEntry], spellings: list[str]) -> TensorEntry | str:
    """Remove and return the first of these tensors that is there; else the name to ask for."""
    for spelling in spellings:
        if spelling in left:
            return left.pop(spelling)
    return " or ".join(spellings)


def _plan_one(
    name: str, shape: tuple[int, ...], entry: TensorEntry, left: dict[str, TensorEntry],
    settings: CheckpointSettings, types: OutputTypes, missing: list[str],
) -> PlannedTensor:  # fmt: skip
    role = name.removeprefix("blk.").split(".")[1] if name.startswith("blk.") else name
    if role not in LINEARS:
        kind = {"token_embd.weight": types.embedding, "output.weight": types.head}.get(name, tensor_type("F32"))
        _check_shape(entry, shape)
        return PlannedTensor(name, shape, kind, entry)
    scale = None
    if settings.form in PACKED:
        found = _take(left, [entry.name + "_scale"])
        if isinstance(found, str):
            missing.append(found)
        else:
            scale = found
    _check_linear(entry, shape, settings.form)
    hp = settings.hyperparameters
    head_rows = hp.head_dim if hp.rope_style == "norm" and role in ("attn_q", "attn_k") else 0
    return PlannedTensor(name, shape, types.linear, entry, True, scale, head_rows)


def _check_shape(entry: TensorEntry, shape: tuple[int, ...]) -> None:
    if entry.shape != shape:
        raise FormatError(
            f"{entry.file}: tensor {entry.name} is {list(entry.shape)}; config.json implies {list(shape)}"
        )


def _check_linear(entry: TensorEntry, shape: tuple[int, ...], form: WeightForm) -> None:
    where = f"{entry.file}: tensor {entry.name}"
    if entry.dtype == "U8":
        if form not in PACKED:
            raise FormatError(f"{where} is packed (U8), but by config.json linears are {form.value}")
        _check_shape(entry, (-(-shape[0] // 4), shape[1]))
        return
    if entry.dtype not in _MASTERS:
        raise UnsupportedError(f"{where} is {entry.dtype}; linears may be {', '.join(_MASTERS)} or packed U8")
    if form is WeightForm.PACKED_DIVIDE:
        raise FormatError(f"{where} is {entry.dtype}, but by config.json linears are {form.value} (U8)")
    _check_shape(entry, shape)


def _refuse_leftovers(checkpoint: Checkpoint, left: list[str]) -> None:
    left = [name for name in left if not name.endswith("rotary_emb.inv_freq")]
    for name in left:
        if name.endswith((".bias", ".rms_norm.weight")):
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {name}: a linear with a bias or an RMSNorm of its own is not supported"
            )
    if left:
        raise FormatError(f"{checkpoint.path}: {_tensors(left)} unknown to this architecture: {_some(left)}")


def _settle_type(tensor: PlannedTensor, types: OutputTypes) -> PlannedTensor:
    """Give a tensor the type that can hold its shape; UnsupportedError when none may."""
    try:
        if not tensor.linear:
            return replace(tensor, type=choose_dense(tensor.type, tensor.rows, tensor.cols))
        chosen = choose(
            tensor.type, tensor.rows, tensor.cols, fallback=types.fallback, kernel_config=types.kernel_config
        )
    except UnsupportedError as error:
        where = f"{tensor.source.file}: tensor {tensor.source.name}" if tensor.source else tensor.name
        raise UnsupportedError(f"{where} [{tensor.rows}, {tensor.cols}] ({tensor.name}): {error}") from None
    return replace(tensor, type=chosen.type, tile=chosen.tile)


def _unused_tiles(tensors: Iterable[PlannedTensor], types: OutputTypes) -> list[str]:
    used = {(tensor.type.name, (tensor.rows, tensor.cols)) for tensor in tensors}
    return [
        f"kernel config: no {kind} tensor has the shape {list(shape)}"
        for kind, tiles in types.kernel_config.items()
        for shape in tiles
        if (kind, shape) not in used
    ]


def _tensors(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def rotary_rows(matrix: np.ndarray, head_rows: int) -> np.ndarray:
    """Reorder the rows of whole heads from halves (i, i + D/2) to pairs (2i, 2i + 1), D = head_rows.

    matrix: [heads * D, cols]; within each head row 2i + j of the result is row j * D/2 + i of the input.
    """
    rows, cols = matrix.shape
    return matrix.reshape(rows // head_rows, 2, head_rows // 2, cols).swapaxes(1, 2).reshape(rows, cols)
