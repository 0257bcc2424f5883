"""Tile configurations of TL1 and TL2: which are legal, which is used for a shape, and how they are written.

A tensor of these types is cut into tiles of BM rows and BK columns, and its bytes follow the tiles. The file
format itself does not say which tiles; equal shapes with other tiles are permutations of the same nibbles, so a
wrong choice cannot be detected. bitconv writes its choice as metadata and never guesses when it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bitconv.errors import FormatError, InputError, UnsupportedError

Shape = tuple[int, int]


class Tile(NamedTuple):
    """A tile of `rows` (BM) by `cols` (BK) weights, walked in steps of `step` (bm) rows; TL2 always steps by 32."""

    rows: int
    cols: int
    step: int = 32


Tiles = Mapping[Shape, Tile]

METADATA_KEYS = {"TL1": "bitconv.tl1.config", "TL2": "bitconv.tl2.config"}
TL2_STEP = 32
_ENTRY = {"TL1": "M,K,BM,BK,bm", "TL2": "M,K,BM,BK"}
_MAX_DIGITS = 9

# What bitnet.cpp's setup_env.py generates for its three models, and what its files are therefore packed with.
_BITNET_CPP: Mapping[str, Tiles] = {
    "TL1": {
        (1536, 4096): Tile(256, 128, 32),  # bitnet_b1_58-large
        (1536, 1536): Tile(128, 64, 64),
        (4096, 1536): Tile(256, 128, 32),
        (3200, 8640): Tile(160, 64, 32),  # bitnet_b1_58-3B
        (3200, 3200): Tile(320, 128, 64),
        (8640, 3200): Tile(320, 64, 32),
        (14336, 4096): Tile(256, 128, 32),  # Llama3-8B-1.58
        (4096, 14336): Tile(128, 64, 64),
        (1024, 4096): Tile(256, 128, 32),
        (4096, 4096): Tile(128, 64, 64),
    },
    "TL2": {
        (1536, 4096): Tile(256, 96),  # bitnet_b1_58-large
        (1536, 1536): Tile(128, 192),
        (4096, 1536): Tile(256, 96),
        (3200, 8640): Tile(160, 96),  # bitnet_b1_58-3B
        (3200, 3200): Tile(320, 96),
        (8640, 3200): Tile(320, 96),
        (14336, 4096): Tile(256, 96),  # Llama3-8B-1.58
        (4096, 14336): Tile(128, 96),
        (1024, 4096): Tile(256, 96),
        (4096, 4096): Tile(128, 96),
    },
}


def known_tiles(kind: str) -> Tiles:
    """Return the tiles of the shapes that bitnet.cpp knows, for "TL1" or "TL2"."""
    return _BITNET_CPP[kind]


def default_tile(kind: str, rows: int, cols: int) -> Tile | None:
    """Return the tile bitconv writes a shape with: bitnet.cpp's where it has one; None for an illegal shape."""
    known = _BITNET_CPP[kind].get((rows, cols))
    if known is not None:
        return known
    tile_rows = next((n for n in (128, 64, 32) if rows % n == 0), 32)
    tile = Tile(tile_rows, 96) if kind == "TL2" else Tile(tile_rows, 32 if cols % 64 else 64)
    return None if illegal_tile(kind, rows, cols, tile) else tile


def illegal_shape(kind: str, rows: int, cols: int) -> str | None:
    """Say why a shape has no default tile, or None when it has one."""
    if default_tile(kind, rows, cols) is not None:
        return None
    if rows < 1 or rows % 32:
        return f"{kind} needs a multiple of 32 rows and M = {rows} is none"
    if kind == "TL2" and cols < 256:
        return f"TL2 needs at least 256 columns and K = {cols}"
    return f"{kind} needs a multiple of 32 columns and K = {cols} is none"


def illegal_tile(kind: str, rows: int, cols: int, tile: Tile) -> str | None:
    """Say why a tile cannot cut a [rows, cols] tensor of type "TL1" or "TL2", or None when it can."""
    problem = _tl1_problem(rows, cols, tile) if kind == "TL1" else _tl2_problem(rows, cols, tile)
    if problem is None:
        return None
    step = f", bm = {tile.step}" if kind == "TL1" else ""
    return f"{kind} tile BM = {tile.rows}, BK = {tile.cols}{step} cannot cut [{rows}, {cols}]: {problem}"


def _tl1_problem(rows: int, cols: int, tile: Tile) -> str | None:
    if tile.step not in (32, 64):
        return "bm must be 32 or 64"
    by = 256 // tile.step
    problem = (
        _not_multiple("BM", tile.rows, tile.step, "bm = ")
        or _not_multiple("M", rows, tile.rows, "BM = ")
        or _not_multiple("BK", tile.cols, by, "256 / bm = ")
        or _not_multiple("K", cols, tile.cols, "BK = ")
        or _not_multiple("K", cols, 16)
    )
    # bitnet.cpp's kernels sum a tile in int16, up to 254 a pair of weights.
    return problem or ("BK must not exceed 256" if tile.cols > 256 else None)


def _tl2_problem(rows: int, cols: int, tile: Tile) -> str | None:
    if tile.step != TL2_STEP:
        return f"bm must be {TL2_STEP}"
    problem = (
        _not_multiple("BM", tile.rows, TL2_STEP)
        or _not_multiple("M", rows, tile.rows, "BM = ")
        or _not_multiple("BK", tile.cols, 24)
    )
    if problem:
        return problem
    if cols < 256:
        return "K must be at least 256"
    if tile.cols > 258:  # bitnet.cpp's kernels sum a tile in int16, up to 381 a triple of weights
        return "BK must not exceed 258"
    # The tensor's size leaves room for 256 columns of pairs; there are fewer, since BK is smaller than that.
    pairs = cols % tile.cols
    return f"K mod BK = {pairs} is not a multiple of 32" if pairs % 32 else None


def _not_multiple(name: str, value: int, unit: int, label: str = "") -> str | None:
    if value >= 1 and unit >= 1 and value % unit == 0:
        return None
    return f"{name} = {value} is not a multiple of {label}{unit}"


def choose_tile(kind: str, rows: int, cols: int, tile: Tile | None) -> Tile:
    """Return the tile to pack with: the given one or the default; UnsupportedError when there is no legal one."""
    chosen = default_tile(kind, rows, cols) if tile is None else tile
    reason = illegal_shape(kind, rows, cols) if chosen is None else illegal_tile(kind, rows, cols, chosen)
    if chosen is None or reason:
        raise UnsupportedError(reason or "")
    return chosen


def format_tiles(kind: str, tiles: Tiles) -> str:
    """Return the text of the metadata key: "M,K,BM,BK,bm;..." (TL2 without bm), ascending by (M, K)."""
    entries = []
    for shape, tile in sorted(tiles.items()):
        entries.append(",".join(str(n) for n in (*shape, *(tile if kind == "TL1" else tile[:2]))))
    return ";".join(entries)


def format_kernel_config(tiles: Mapping[str, Tiles]) -> str:
    """Return the text of `--kernel-config` for the tiles of each type: "tl2:M,K,BM,BK;..."."""
    return ";".join(f"{kind.lower()}:{format_tiles(kind, tiles[kind])}" for kind in sorted(tiles) if tiles[kind])


def parse_tiles(kind: str, text: str, where: str) -> dict[Shape, Tile]:
    """Read the text of a metadata key; FormatError, beginning with `where`, for anything but legal entries."""
    try:
        return _parse(kind, text.split(";"))
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from None


def parse_kernel_config(text: str) -> dict[str, dict[Shape, Tile]]:
    """Read the text of `--kernel-config`: type -> shape -> tile; InputError for anything but legal entries.

    A prefix "tl1:" or "tl2:" holds for the entries after it, up to the next.
    """
    where, kind = "kernel config", ""
    groups: dict[str, list[str]] = {}
    for entry in text.split(";"):
        prefix, colon, rest = entry.partition(":")
        if colon:
            kind, entry = prefix.upper(), rest
        if kind not in METADATA_KEYS:
            raise InputError(f'{where} {entry!r} has no type; expected "tl1:M,K,BM,BK,bm;..." or "tl2:M,K,BM,BK;..."')
        groups.setdefault(kind, []).append(entry)
    try:
        return {kind: _parse(kind, entries) for kind, entries in groups.items()}
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _parse(kind: str, entries: Iterable[str]) -> dict[Shape, Tile]:
    tiles: dict[Shape, Tile] = {}
    expected = _ENTRY[kind]
    for entry in entries:
        fields = entry.split(",")
        if len(fields) != expected.count(",") + 1 or not all(_is_number(field) for field in fields):
            raise ValueError(f"entry {entry[:80]!r} is not {expected} in decimal")
        rows, cols, *tile_numbers = (int(field) for field in fields)
        tile = Tile(*tile_numbers)
        reason = illegal_tile(kind, rows, cols, tile)
        if reason:
            raise ValueError(reason)
        if tiles.setdefault((rows, cols), tile) != tile:
            raise ValueError(f"the shape [{rows}, {cols}] has two different tiles")
    return tiles


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdigit() and len(field) <= _MAX_DIGITS


def tiles_of_file(
    kind: str, shapes: Iterable[Shape], stored: str | None, given: Tiles | None = None, where: str = "the file"
) -> dict[Shape, Tile]:
    """Settle the tile of every shape that a file holds as `kind`, without ever guessing.

    stored: the value of the file's metadata key, if it has one. given: what the user says, for files without.
    InputError when the two contradict each other; FormatError when the key is wrong or lacks a shape;
    UnsupportedError when nothing is known about a shape, with the kernel config to try.
    """
    wanted, key = sorted(set(shapes)), METADATA_KEYS[kind]
    given = given or {}
    if stored is None:
        found = {**_BITNET_CPP[kind], **given}
        _refuse_unknown(kind, [shape for shape in wanted if shape not in found], where)
        for (rows, cols), tile in given.items():
            reason = illegal_tile(kind, rows, cols, tile)
            if reason:
                raise InputError(reason)
        return {shape: found[shape] for shape in wanted}
    written = parse_tiles(kind, stored, f"{where}: {key}")
    for shape in wanted:
        if shape not in written:
            raise FormatError(f"{where}: {key} has no entry for the {kind} tensors of shape {list(shape)}")
        if given.get(shape, written[shape]) != written[shape]:
            said, wish = (format_tiles(kind, {shape: tiles[shape]}) for tiles in (written, given))
            raise InputError(f"{where}: {key} says {said}, the kernel config says {wish}")
    return {shape: written[shape] for shape in wanted}


def _refuse_unknown(kind: str, unknown: list[Shape], where: str) -> None:
    if not unknown:
        return
    proposal = {shape: tile for shape in unknown if (tile := default_tile(kind, *shape)) is not None}
    shapes = ", ".join(str(list(shape)) for shape in unknown)
    hint = f'try --kernel-config "{format_kernel_config({kind: proposal})}"' if proposal else "no tile fits them all"
    raise UnsupportedError(
        f"{where}: {METADATA_KEYS[kind]} is missing, and bitnet.cpp has no {kind} tiles for {shapes}\n{hint}, "
        "with the numbers of the kernels that the file was made for"
    )
