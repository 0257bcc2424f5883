"""TL1, two bits a weight: nibbles that index tables of pairs, in tiles of BM rows by BK columns.

A byte holds four consecutive weights of one row, as two pairs (w0, w1) -> 3 * w0 + w1 + 4, the first in the
high nibble. Bytes follow the tiles, and inside a tile micro-tiles of bm rows by 256 / bm columns:

    for each tile row, tile column, group of bm rows, group of 256 / bm columns,
        16 rows, 4 columns:  16 bytes, one a row

After them come the float32 multiplier and 28 zero bytes. tiles.py says which BM, BK and bm.
"""

from __future__ import annotations

import numpy as np

from bitconv.errors import FormatError
from bitconv.tensor_types import TensorType
from bitconv.tensor_types.i2_s import TAIL_BYTES, nbytes, read_scale, tail
from bitconv.tensor_types.pairs import bytes_of_pairs, refuse_bad_pairs, trits_of_pairs
from bitconv.tensor_types.tiles import Tile, choose_tile, default_tile, illegal_shape, illegal_tile

NAME = "TL1"
LANES = 16  # rows that lie next to each other


def illegal(rows: int, cols: int) -> str | None:
    """Say why a [rows, cols] matrix has no default TL1 tile, or None."""
    return illegal_shape(NAME, rows, cols)


def default(rows: int, cols: int) -> Tile | None:
    """Return the tile used where none is given."""
    return default_tile(NAME, rows, cols)


def row_group(rows: int, cols: int, tile: Tile | None = None) -> int:
    """Return the rows that must be packed together: those of a tile."""
    return choose_tile(NAME, rows, cols, tile).rows


def pack_into(
    out: np.ndarray, trits: np.ndarray, start: int, rows: int, scale: float, tile: Tile | None = None
) -> None:
    """Place rows start to start + n (whole tiles) of a tensor in `out` (uint8 [nbytes]), and its tail."""
    n, cols = trits.shape
    tile = choose_tile(NAME, rows, cols, tile)
    packed = out[start * cols // 4 : (start + n) * cols // 4]
    for first in range(0, n, tile.rows):  # a tile row at a time keeps the temporaries small
        part = bytes_of_pairs(trits[first : first + tile.rows])
        _tiled(packed[first * cols // 4 : (first + tile.rows) * cols // 4], tile)[:] = _by_row(part, tile)
    if start + n == rows:
        out[-TAIL_BYTES:] = tail(scale)


def pack(trits: np.ndarray, scale: float, tile: Tile | None = None) -> np.ndarray:
    """Pack a whole tensor: int8 [rows, cols], multiplier -> uint8 [nbytes]; UnsupportedError when illegal."""
    rows, cols = trits.shape
    tile = choose_tile(NAME, rows, cols, tile)
    out = np.empty(nbytes(rows, cols), np.uint8)
    pack_into(out, trits, 0, rows, scale, tile)
    return out


def unpack(data: np.ndarray, rows: int, cols: int, tile: Tile | None = None) -> tuple[np.ndarray, float]:
    """Unpack a whole tensor: uint8 [nbytes] -> (int8 [rows, cols], multiplier).

    FormatError on a nibble above 8, which no writer produces, and on a shape, tile or length that TL1 cannot have.
    """
    chosen = default(rows, cols) if tile is None else tile
    reason = illegal(rows, cols) if chosen is None else illegal_tile(NAME, rows, cols, chosen)
    if reason is None and data.size != nbytes(rows, cols):
        reason = f"TL1 [{rows}, {cols}] takes {nbytes(rows, cols)} bytes, found {data.size}"
    if chosen is None or reason:
        raise FormatError(reason or "")
    trits = np.empty((rows, cols), np.int8)
    for first in range(0, rows, chosen.rows):
        part = np.empty((chosen.rows, cols // 4), np.uint8)
        packed = data[first * cols // 4 : (first + chosen.rows) * cols // 4]
        _by_row(part, chosen)[:] = _tiled(packed, chosen)
        refuse_bad_pairs(NAME, part, first, 0)
        trits[first : first + chosen.rows] = trits_of_pairs(part)
    return trits, read_scale(data, rows, cols)


def _tiled(packed: np.ndarray, tile: Tile) -> np.ndarray:
    """View the bytes of one tile row in file order: [kt, rb, kb, r16, q4, r]."""
    by = 256 // tile.step
    return packed.reshape(-1, tile.rows // tile.step, tile.cols // by, tile.step // LANES, by // 4, LANES)


def _by_row(part: np.ndarray, tile: Tile) -> np.ndarray:
    """View the bytes of one tile row, uint8 [BM, cols / 4] row after row, in the axes of _tiled."""
    by = 256 // tile.step
    axes = part.reshape(tile.rows // tile.step, tile.step // LANES, LANES, -1, tile.cols // by, by // 4)
    return axes.transpose(3, 0, 4, 1, 5, 2)


TYPES = (
    TensorType(
        name=NAME, gguf_id=38, file_type=38, ternary=True, kernel="tl1",
        illegal=illegal, nbytes=nbytes, pack=pack, unpack=unpack, tail=tail,
        pack_into=pack_into, row_group=row_group, read_scale=read_scale, default_tile=default,
    ),
)  # fmt: skip
