"""What a GGUF file holds, as plain values; works also on files that the runtime cannot execute."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitconv.errors import BitconvError
from bitconv.formats.ggml_types import file_type_name
from bitconv.formats.gguf import GgufFile, open_gguf
from bitconv.formats.vocabulary import TokenType, Vocabulary, read_vocabulary

SHOWN_ITEMS = 6
SHOWN_LETTERS = 160


@dataclass(frozen=True)
class TensorRow:
    """One line of the tensor table; shape is (rows, cols), offset counts from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class TypeRow:
    """All tensors of one type together."""

    type: str
    tensors: int
    weights: int
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Inspection:
    """A GGUF file, described. `problem` says why the runtime cannot execute it, or is None.

    metadata: key -> (type, value), long values shortened. tokenizer: facts, or {} where the file has none.
    """

    path: str
    file_bytes: int
    version: int
    alignment: int
    file_type: str | None
    problem: str | None
    metadata: Mapping[str, tuple[str, Any]]
    tokenizer: Mapping[str, Any]
    types: Sequence[TypeRow]
    tensors: Sequence[TensorRow]


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Describe a GGUF file; InputError, FormatError or UnsupportedError when its header cannot be read."""
    with open_gguf(path) as gguf:
        tokenizer, tokenizer_problem = _tokenizer(gguf)
        type_names = {info.type_name for info in gguf.tensors.values()}
        file_type = gguf.metadata.get("general.file_type")
        return Inspection(
            path=str(gguf.path),
            file_bytes=gguf.size,
            version=gguf.version,
            alignment=gguf.alignment,
            file_type=file_type_name(file_type, type_names) if type(file_type) is int else None,
            problem=_problem(gguf) or tokenizer_problem,
            metadata={key: (gguf.metadata_types[key], shorten(gguf.metadata[key])) for key in gguf.metadata},
            tokenizer=tokenizer,
            types=_type_rows(gguf),
            tensors=[
                TensorRow(
                    i.name, i.type_name, i.shape, i.offset, i.nbytes, _bits(i.nbytes, math.prod(i.shape))
                )
                for i in gguf.tensors.values()
            ],
        )


def metadata_value(path: str | os.PathLike[str], key: str) -> Any:
    """The whole value of one key as int, float, bool, str or list; InputError lists similar keys."""
    from difflib import get_close_matches

    from bitconv.errors import InputError

    with open_gguf(path) as gguf:
        if key not in gguf.metadata:
            near = get_close_matches(key, list(gguf.metadata), n=3, cutoff=0.3)
            hint = f"did you mean {' or '.join(near)}?" if near else "bitconv inspect FILE lists the keys"
            raise InputError(f"{path}: there is no key {key}\n{hint}")
        value = gguf.metadata[key]
        return value if isinstance(value, str) else plain(value)


def plain(value: Any) -> Any:
    """A value of the metadata as JSON can hold it; nan and infinities become text."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value


def shorten(value: Any) -> Any:
    """A value of the metadata cut to what a reader looks at: {"length": n, "first": [...]} for long arrays."""
    if isinstance(value, str):
        cut = len(value) - SHOWN_LETTERS
        return value if cut <= 0 else f"{value[:SHOWN_LETTERS]}... ({cut} more characters)"
    if isinstance(value, np.ndarray | Sequence):
        if len(value) <= SHOWN_ITEMS:
            return plain(value)
        return {"length": len(value), "first": [shorten(item) for item in plain(value[:SHOWN_ITEMS])]}
    return plain(value)


def _bits(nbytes: int, weights: int) -> float:
    return nbytes * 8 / weights


def _type_rows(gguf: GgufFile) -> list[TypeRow]:
    groups: dict[str, tuple[int, int, int]] = {}
    for info in gguf.tensors.values():
        count, weights, nbytes = groups.get(info.type_name, (0, 0, 0))
        groups[info.type_name] = count + 1, weights + math.prod(info.shape), nbytes + info.nbytes
    return [TypeRow(name, n, w, b, _bits(b, w)) for name, (n, w, b) in groups.items()]


def _problem(gguf: GgufFile) -> str | None:
    from bitconv.models import gguf_tensor_names, read_gguf
    from bitconv.tensor_types import tensor_type

    try:
        hyperparameters = read_gguf(gguf)
        for name in gguf_tensor_names(hyperparameters):
            info = gguf.tensors[name]
            if tensor_type(info.type_name if info.type_id == 39 else info.type_id).kernel is None:
                return f"tensor {name} is {info.type_name}, which cannot be run yet"
    except BitconvError as error:
        return str(error).splitlines()[0]
    return None


def _tokenizer(gguf: GgufFile) -> tuple[dict[str, Any], str | None]:
    if not any(key.startswith("tokenizer.") for key in gguf.metadata):
        return {}, "the file has no tokenizer"
    try:
        return _tokenizer_facts(read_vocabulary(gguf)), None
    except BitconvError as error:
        return {}, str(error).splitlines()[0]


def _tokenizer_facts(vocabulary: Vocabulary) -> dict[str, Any]:
    counts = {} if vocabulary.types is None else _count_types(vocabulary.types)
    special = {
        name: {"id": token, "text": vocabulary.tokens[token]}
        for name in ("bos", "eos", "eot", "eom", "unk", "pad")
        if (token := getattr(vocabulary, f"{name}_id")) is not None
    }
    return {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": len(vocabulary.tokens),
        "token_types": counts,
        "merges": len(vocabulary.merges),
        **special,
        "end_of_generation": sorted(vocabulary.eog_ids),
        "add_bos": vocabulary.add_bos,
        "add_eos": vocabulary.add_eos,
        "add_space_prefix": vocabulary.add_space_prefix,
        "chat_template": vocabulary.chat_template is not None,
        "huggingface_json": vocabulary.huggingface_json is not None,
    }


def _count_types(types: np.ndarray[Any, np.dtype[np.int32]]) -> dict[str, int]:
    values, counts = np.unique(types, return_counts=True)
    return {TokenType(v).name.lower(): int(n) for v, n in zip(values.tolist(), counts, strict=True)}
