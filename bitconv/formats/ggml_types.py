"""The ggml tensor types a GGUF file may hold: ids, names and byte sizes, not how they pack their bits."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

F32, F16, Q8_0, Q6_K, BF16, TQ1_0, TQ2_0 = 0, 1, 8, 14, 30, 34, 35
I2_S, TL1, TL2 = 36, 38, 39
MXFP4 = 39  # the same id as TL2: only the whole file can tell them apart, see _resolve_39 in gguf.py


@dataclass(frozen=True)
class GgmlType:
    """One storage type: `block` elements take `block_bytes` bytes; a tensor ends with `tail_bytes`."""

    id: int
    name: str
    block: int
    block_bytes: int
    tail_bytes: int = 0


_TYPES = {
    t.id: t
    for t in (
        GgmlType(F32, "F32", 1, 4),
        GgmlType(F16, "F16", 1, 2),
        GgmlType(2, "Q4_0", 32, 18),
        GgmlType(3, "Q4_1", 32, 20),
        GgmlType(6, "Q5_0", 32, 22),
        GgmlType(7, "Q5_1", 32, 24),
        GgmlType(Q8_0, "Q8_0", 32, 34),
        GgmlType(9, "Q8_1", 32, 40),
        GgmlType(10, "Q2_K", 256, 84),
        GgmlType(11, "Q3_K", 256, 110),
        GgmlType(12, "Q4_K", 256, 144),
        GgmlType(13, "Q5_K", 256, 176),
        GgmlType(Q6_K, "Q6_K", 256, 210),
        GgmlType(15, "Q8_K", 256, 292),
        GgmlType(16, "IQ2_XXS", 256, 66),
        GgmlType(17, "IQ2_XS", 256, 74),
        GgmlType(18, "IQ3_XXS", 256, 98),
        GgmlType(19, "IQ1_S", 256, 50),
        GgmlType(20, "IQ4_NL", 32, 18),
        GgmlType(21, "IQ3_S", 256, 110),
        GgmlType(22, "IQ2_S", 256, 82),
        GgmlType(23, "IQ4_XS", 256, 136),
        GgmlType(24, "I8", 1, 1),
        GgmlType(25, "I16", 1, 2),
        GgmlType(26, "I32", 1, 4),
        GgmlType(27, "I64", 1, 8),
        GgmlType(28, "F64", 1, 8),
        GgmlType(29, "IQ1_M", 256, 56),
        GgmlType(BF16, "BF16", 1, 2),
        GgmlType(TQ1_0, "TQ1_0", 256, 54),
        GgmlType(TQ2_0, "TQ2_0", 256, 66),
        GgmlType(I2_S, "I2_S", 4, 1, 32),
        GgmlType(TL1, "TL1", 4, 1, 32),
        GgmlType(TL2, "TL2", 1, 0, 32),  # has a rule of its own: tl2_nbytes
        GgmlType(40, "NVFP4", 64, 36),
        GgmlType(41, "Q1_0", 128, 18),
    )
}

# What general.file_type says. 38 to 40 mean one thing to BitNet runtimes and another to llama.cpp.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 1024: "guessed",
}  # fmt: skip
_TERNARY_FILE_TYPES = {38: "TL1", 39: "TL2", 40: "I2_S"}


def ggml_type(type_id: int) -> GgmlType | None:
    """Return the type with this id (39 as TL2), or None for an id that is not known here."""
    return _TYPES.get(type_id)


def nbytes(type_id: int, shape: tuple[int, ...]) -> int | None:
    """Return the bytes that a tensor takes in a file, without padding; None for an unknown id.

    shape: numpy order, (rows, cols) for a matrix. Id 39 is taken as TL2; see `mxfp4_nbytes`.
    Raises ValueError when the type cannot hold the shape.
    """
    kind = _TYPES.get(type_id)
    if kind is None:
        return None
    if type_id == TL2:
        return tl2_nbytes(shape)
    n = math.prod(shape)
    # I2_S and TL1 are sized by the flat element count; block types by whole blocks along a row
    if (n if kind.tail_bytes else shape[-1]) % kind.block:
        raise ValueError(f"{kind.name} needs a multiple of {kind.block} elements, the shape is {list(shape)}")
    return n // kind.block * kind.block_bytes + kind.tail_bytes


def tl2_nbytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of a TL2 tensor; ValueError below 256 columns, where writers disagree."""
    cols, rows = shape[-1], math.prod(shape[:-1])
    if cols < 256:
        raise ValueError(f"TL2 needs at least 256 columns, the shape is {list(shape)}")
    body = (cols - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return (body + 31) // 32 * 32 + 32


def mxfp4_nbytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of an MXFP4 tensor: 17 per 32 weights of a row."""
    if shape[-1] % 32:
        raise ValueError(f"MXFP4 needs a multiple of 32 columns, the shape is {list(shape)}")
    return math.prod(shape) // 32 * 17


def file_type_name(file_type: int, type_names: Collection[str] = ()) -> str:
    """Name a general.file_type value; `type_names`, the tensor types of the file, settle 38, 39 and 40."""
    ternary = _TERNARY_FILE_TYPES.get(file_type)
    if ternary is not None and ternary in type_names:
        return ternary
    return _FILE_TYPES.get(file_type, f"unknown({file_type})")
