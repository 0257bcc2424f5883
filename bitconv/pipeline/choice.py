"""Which tensor type a matrix really gets, with which tile and which stored scale; for convert and for quantize."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bitconv.errors import InputError, UnsupportedError
from bitconv.tensor_types import TensorType, tensor_type
from bitconv.tensor_types.ternary_blocks import float16_of
from bitconv.tensor_types.tiles import METADATA_KEYS, Shape, Tile, Tiles, format_tiles, illegal_tile

FALLBACKS: Mapping[str, tuple[str, ...]] = {"tl2": ("TL2", "I2_S"), "i2_s": ("I2_S",), "error": ()}
"""`--fallback`: what is tried, in this order, for a matrix that has no legal form in the wanted type."""
TQ_SCALES = ("exact", "f16")
"""`--tq-scale`: the multiplier as it is, in a companion tensor where float16 cannot hold it, or rounded to float16."""
KernelConfig = Mapping[str, Tiles]
"""What tiles.parse_kernel_config returns: "TL1" or "TL2" -> shape -> tile."""

_WAYS_OUT = {"tl2": "use --type f16 (type='f16')", "i2_s": "use --fallback tl2", "error": "use --fallback tl2"}


class Choice(NamedTuple):
    """The type of one matrix, and its tile when the type is tiled."""

    type: TensorType
    tile: Tile | None


def choose(
    wanted: TensorType, rows: int, cols: int, *, fallback: str = "tl2", kernel_config: KernelConfig | None = None
) -> Choice:
    """Return the type and tile for a [rows, cols] matrix: the wanted type if it can hold the shape, else a fallback.

    A tile of kernel_config for this shape goes before the default. Every choice is exact for trits and, with the
    companion of `stored_scale`, for the multiplier. Dense types come back as they are, if they can hold the shape.
    UnsupportedError when neither the type nor the fallback can; InputError for an unknown fallback.
    """
    if fallback not in FALLBACKS:
        raise InputError(f"fallback is {fallback!r}; expected {', '.join(FALLBACKS)}")
    found = _settle(wanted, rows, cols, kernel_config or {})
    if isinstance(found, Choice):
        return found
    reasons = [found]
    for name in FALLBACKS[fallback] if wanted.ternary else ():
        other = tensor_type(name)
        if other is wanted:
            continue
        alternative = _settle(other, rows, cols, kernel_config or {})
        if isinstance(alternative, Choice):
            return alternative
        reasons.append(alternative)
    raise UnsupportedError(f"{'; '.join(reasons)}\n{_WAYS_OUT[fallback]}")


def choose_dense(wanted: TensorType, rows: int, cols: int) -> TensorType:
    """Return the type for an embedding or head: the wanted one, or Q8_0 where Q6_K cannot hold the shape.

    UnsupportedError when the shape has no form in it.
    """
    reason = wanted.illegal(rows, cols)
    if reason is None:
        return wanted
    if wanted.name == "Q6_K":
        return choose_dense(tensor_type("Q8_0"), rows, cols)
    raise UnsupportedError(f"{reason}\nuse f16")


def describe_fallback(wanted: TensorType, chosen: TensorType, name: str, rows: int, cols: int) -> str | None:
    """Return the sentence that tells the user of a fallback, None when there was none."""
    if chosen is wanted:
        return None
    return f"{name} [{rows}, {cols}] is written as {chosen.name}: {wanted.illegal(rows, cols)}"


def stored_scale(kind: TensorType, multiplier: float, tq_scale: str = "exact") -> tuple[float, float | None]:
    """Return (the scale to pack a ternary tensor with, the value of its companion tensor or None).

    tq_scale "f16" rounds the multiplier of TQ1_0 and TQ2_0 to float16, which has no companion; UnsupportedError
    when that makes it 0 or infinite. InputError for another value than TQ_SCALES.
    """
    if tq_scale not in TQ_SCALES:
        raise InputError(f"tq_scale is {tq_scale!r}; expected {' or '.join(TQ_SCALES)}")
    companion = kind.companion_scale(multiplier)
    if companion is None or tq_scale == "exact":
        return multiplier, companion
    return float16_of(multiplier), None


def file_type(wanted: TensorType, linears: Iterable[TensorType]) -> int:
    """Return `general.file_type`: of the wanted type, or where no linear could have it, of the type that most have."""
    counts = Counter(kind.file_type for kind in linears)
    return wanted.file_type if wanted.file_type in counts or not counts else counts.most_common(1)[0][0]


def layout_metadata(tensors: Iterable[tuple[TensorType, int, int, Tile | None]]) -> dict[str, str]:
    """Return the string keys that say how the ternary tensors (type, rows, cols, tile) of a file are laid out.

    ValueError when two tensors of one shape and type have different tiles, which the keys cannot express.
    """
    keys: dict[str, str] = {}
    tiles: dict[str, dict[Shape, Tile]] = {}
    for kind, rows, cols, tile in tensors:
        if kind.name == "I2_S":
            keys["bitconv.i2_s.layout"] = "x86-128"
        if tile is not None and tiles.setdefault(kind.name, {}).setdefault((rows, cols), tile) != tile:
            raise ValueError(f"{kind.name} tensors of shape [{rows}, {cols}] have different tiles")
    return keys | {METADATA_KEYS[name]: format_tiles(name, tiles[name]) for name in sorted(tiles)}


def _settle(kind: TensorType, rows: int, cols: int, kernel_config: KernelConfig) -> Choice | str:
    """Return the choice, or why the type cannot hold the shape."""
    if kind.default_tile is None:
        return kind.illegal(rows, cols) or Choice(kind, None)
    tile = kernel_config.get(kind.name, {}).get((rows, cols))
    if tile is not None:
        return illegal_tile(kind.name, rows, cols, tile) or Choice(kind, tile)
    return kind.illegal(rows, cols) or Choice(kind, kind.default_tile(rows, cols))
