"""Checkpoints in torch's own .bin files: pickles, loaded only when asked for, and only with weights_only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.formats.checkpoint import PICKLE, PICKLE_INDEX, Checkpoint, TensorEntry, check_weight_map
from bitconv.formats.config import Config

_DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip


class PickleCheckpoint(Checkpoint):
    """A checkpoint whose tensors torch holds, mapped from their files where the files allow it."""

    def __init__(
        self, path: Path, config: Config, entries: Mapping[str, TensorEntry], loaded: Mapping[str, Any]
    ) -> None:
        super().__init__(path, config, entries, {})
        self._loaded = dict(loaded)

    def close(self) -> None:
        """Let go of the tensors."""
        self._loaded.clear()

    def read(
        self, name: str, start: int = 0, rows: int | None = None, *, into: np.ndarray | None = None
    ) -> np.ndarray:
        """Return a fresh array with a tensor, or `rows` of it from `start` on, as Checkpoint.read does."""
        entry, shape, _, _ = self._slice(name, start, rows)
        if name not in self._loaded:
            raise ValueError(f"{self.path}: the checkpoint is closed")
        part = self._loaded[name].detach()
        if shape != entry.shape or start:
            part = part[start : start + shape[0]]
        part = part.clone().contiguous()
        if entry.dtype == "BF16":
            import torch

            return np.asarray(part.view(torch.int16).numpy()).view(np.uint16)
        return np.asarray(part.numpy())


def open_pickle(folder: Path, config: Config, weight_map: Mapping[str, str] | None) -> Checkpoint:
    """Load pytorch_model.bin, or the shards an index names.

    Raises InputError without torch or when a file cannot be read, FormatError when it does not load as a flat
    mapping of tensors, UnsupportedError for a dtype or layout that is not read.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f'{folder}: {PICKLE} weights need torch to be read: pip install "bitconv[convert]"'
        ) from None
    entries: dict[str, TensorEntry] = {}
    loaded: dict[str, Any] = {}
    for file in sorted(set(weight_map.values())) if weight_map is not None else [PICKLE]:
        for name, tensor in _load(torch, folder / file).items():
            if name in entries:
                raise FormatError(f"{folder / file}: tensor {name} is also in {entries[name].file.name}")
            entries[name] = _entry(torch, name, tensor, folder / file)
            loaded[name] = tensor
    if weight_map is not None:
        found = {name: entry.file.name for name, entry in entries.items()}
        check_weight_map(weight_map, found, str(folder / PICKLE_INDEX))
    return PickleCheckpoint(folder, config, entries, loaded)


def _load(torch: Any, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FormatError(f"{path}: missing, though the index names it")
    try:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 are no zip archives and cannot be mapped
            values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a hostile pickle may fail in any way the unpickler has
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path}: does not load as weights: {reason}") from error
    if not isinstance(values, dict) or not values:
        raise FormatError(f"{path}: must hold a mapping of tensor names to tensors")
    for name, tensor in values.items():
        if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, torch.Tensor):
            raise FormatError(f"{path}: entry {str(name)[:80]!r} is not a named tensor")
    return values


def _entry(torch: Any, name: str, tensor: Any, path: Path) -> TensorEntry:
    dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise UnsupportedError(f"{path}: tensor {name} is {kind}; read are dense {', '.join(_DTYPES)}")
    # its place in the file is torch's secret; nobody but torch reads it
    return TensorEntry(name, dtype, tuple(tensor.shape), path, 0, tensor.numel() * tensor.element_size())
