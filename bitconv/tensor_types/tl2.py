"""TL2, 5/3 bits a weight: triples of weights as a nibble and a sign bit, in tiles of BM rows by BK columns.

The columns that fill whole tiles, K - K mod BK of them, are coded as triples t = 9 w0 + 3 w1 + w2 from -13 to 13:
nibble |t| and one sign bit. The columns left are coded as pairs, as in TL1. Three sections, each with the rows
in groups of BM and inside a group tile by tile:

    nibbles  32 rows x 6 columns are 32 bytes, one a row, in each the triple at c high and the one at c + 3 low
    signs    32 rows x 24 columns are 16 words of 16 bits: word w holds triples q = 0..7 of rows w and w + 16
             in bits 15 - 2q and 14 - 2q
    pairs    32 rows x 4 columns are 32 bytes, one a row

The 32 bytes of nibbles and pairs take their rows in the order 0-7, 16-23, 8-15, 24-31. Zeros follow up to the size
that 256 columns of pairs would need and then to a multiple of 32, the float32 multiplier, and 28 zero bytes.
"""

from __future__ import annotations

import numpy as np

from bitconv.errors import FormatError
from bitconv.formats.ggml_types import tl2_nbytes
from bitconv.tensor_types import TensorType
from bitconv.tensor_types.i2_s import TAIL_BYTES, read_scale, tail
from bitconv.tensor_types.pairs import bytes_of_pairs, refuse_bad_pairs, trits_of_pairs
from bitconv.tensor_types.tiles import TL2_STEP, Tile, choose_tile, default_tile, illegal_shape, illegal_tile

NAME = "TL2"
PAIR_COLS = 32  # columns of a tile of pairs
LARGEST = 13


def illegal(rows: int, cols: int) -> str | None:
    """Say why a [rows, cols] matrix has no default TL2 tile, or None."""
    return illegal_shape(NAME, rows, cols)


def nbytes(rows: int, cols: int) -> int:
    """Return the bytes of a [rows, cols] tensor with its tail, whatever its tile."""
    return tl2_nbytes((rows, cols))


def default(rows: int, cols: int) -> Tile | None:
    """Return the tile used where none is given."""
    return default_tile(NAME, rows, cols)


def row_group(rows: int, cols: int, tile: Tile | None = None) -> int:
    """Return the rows that must be packed together: those of a tile."""
    return choose_tile(NAME, rows, cols, tile).rows


def sections(rows: int, cols: int, tile: Tile) -> tuple[tuple[int, int], ...]:
    """Return (offset, bytes a row) of nibbles, signs and pairs in a tensor; rows of a tile are contiguous in each."""
    pair_cols = cols % tile.cols
    triple_cols = cols - pair_cols
    widths = triple_cols // 6, triple_cols // 24, pair_cols // 4
    return (0, widths[0]), (rows * widths[0], widths[1]), (rows * (widths[0] + widths[1]), widths[2])


def pack_into(
    out: np.ndarray, trits: np.ndarray, start: int, rows: int, scale: float, tile: Tile | None = None
) -> None:
    """Place rows start to start + n (whole tiles) of a tensor in `out` (uint8 [nbytes]), and padding and tail."""
    n, cols = trits.shape
    tile = choose_tile(NAME, rows, cols, tile)
    triple_cols = cols - cols % tile.cols
    for first in range(0, n, tile.rows):  # a tile row at a time keeps the temporaries small
        part = trits[first : first + tile.rows]
        nibbles, signs, pairs = _tile_row(out, start + first, rows, cols, tile)
        triples = _triples(part[:, :triple_cols])
        magnitudes = np.abs(triples).view(np.uint8)
        _nibbles_tiled(nibbles, tile)[:] = _rows_of_32(magnitudes[:, ::2] << 4 | magnitudes[:, 1::2], tile.cols // 6)
        _signs_tiled(signs, tile)[:] = _words(np.packbits(triples < 0, axis=1), tile)
        if pairs.size:
            quads = bytes_of_pairs(np.ascontiguousarray(part[:, triple_cols:]))
            _pairs_tiled(pairs, tile)[:] = _rows_of_32(quads, PAIR_COLS // 4)
    if start + n == rows:
        offset, width = sections(rows, cols, tile)[2]
        out[offset + rows * width : -TAIL_BYTES] = 0
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

    FormatError on what no writer produces (a triple above 13, a pair above 8, the sign of a triple that is 0) and
    on a shape, tile or length that TL2 cannot have.
    """
    chosen = default(rows, cols) if tile is None else tile
    reason = illegal(rows, cols) if chosen is None else illegal_tile(NAME, rows, cols, chosen)
    if reason is None and data.size != nbytes(rows, cols):
        reason = f"TL2 [{rows}, {cols}] takes {nbytes(rows, cols)} bytes, found {data.size}"
    if chosen is None or reason:
        raise FormatError(reason or "")
    trits = np.empty((rows, cols), np.int8)
    triple_cols = cols - cols % chosen.cols
    for first in range(0, rows, chosen.rows):
        nibbles, signs, pairs = _tile_row(data, first, rows, cols, chosen)
        part = trits[first : first + chosen.rows]
        codes = np.empty((chosen.rows, triple_cols // 6), np.uint8)
        _rows_of_32(codes, chosen.cols // 6)[:] = _nibbles_tiled(nibbles, chosen)
        negative = np.unpackbits(_row_signs(signs, chosen, triple_cols // 24), axis=1)
        _place_triples(part[:, :triple_cols], codes, negative, first)
        if pairs.size:
            quads = np.empty((chosen.rows, (cols - triple_cols) // 4), np.uint8)
            _rows_of_32(quads, PAIR_COLS // 4)[:] = _pairs_tiled(pairs, chosen)
            refuse_bad_pairs(NAME, quads, first, triple_cols)
            part[:, triple_cols:] = trits_of_pairs(quads)
    return trits, read_scale(data, rows, cols)


def _tile_row(data: np.ndarray, first: int, rows: int, cols: int, tile: Tile) -> list[np.ndarray]:
    """View the nibbles, signs and pairs of the tiles whose first row is `first`."""
    stop = first + tile.rows
    return [data[offset + first * w : offset + stop * w] for offset, w in sections(rows, cols, tile)]


def _nibbles_tiled(nibbles: np.ndarray, tile: Tile) -> np.ndarray:
    """View nibbles of a tile row in file order: [kt, rb, kb, half, quarter, 8]."""
    return nibbles.reshape(-1, tile.rows // TL2_STEP, tile.cols // 6, 2, 2, 8)


def _pairs_tiled(pairs: np.ndarray, tile: Tile) -> np.ndarray:
    return pairs.reshape(-1, tile.rows // TL2_STEP, PAIR_COLS // 4, 2, 2, 8)


def _rows_of_32(by_row: np.ndarray, step: int) -> np.ndarray:
    """View bytes row after row, uint8 [BM, n], in the axes of _nibbles_tiled; `step` bytes of a row are a tile.

    Rows 8 to 15 and 16 to 23 of each 32 change places: the axes of halves and quarters are swapped.
    """
    axes = by_row.reshape(-1, 2, 2, 8, by_row.shape[1] // step, step)
    return axes.transpose(4, 0, 5, 2, 1, 3)


def _signs_tiled(signs: np.ndarray, tile: Tile) -> np.ndarray:
    """View the sign words of a tile row in file order: [kt, rb, kb, w]."""
    return signs.view("<u2").reshape(-1, tile.rows // TL2_STEP, tile.cols // 24, 16)


def _triples(trits: np.ndarray) -> np.ndarray:
    """Return 9 w0 + 3 w1 + w2 of each three columns: int8 [rows, cols] -> int8 [rows, cols / 3]."""
    sums = trits[:, ::3] * np.int8(9)
    sums += trits[:, 1::3] * np.int8(3)
    sums += trits[:, 2::3]
    return sums


def _spread(bits: np.ndarray) -> np.ndarray:
    """Move bit i of each byte to bit 2i of a word: uint8 -> uint16."""
    words: np.ndarray = bits.astype(np.uint16)
    for shift, mask in ((4, 0x0F0F), (2, 0x3333), (1, 0x5555)):
        words = (words | words << shift) & mask
    return words


def _gather(words: np.ndarray) -> np.ndarray:
    """Undo _spread; the odd bits of the words are ignored."""
    words = words & 0x5555
    for shift, mask in ((1, 0x3333), (2, 0x0F0F), (4, 0x00FF)):
        words = (words | words >> shift) & mask
    return words.astype(np.uint8)


def _words(by_row: np.ndarray, tile: Tile) -> np.ndarray:
    """Merge sign bytes, uint8 [BM, K / 24], of rows w and w + 16 into words, in the axes of _signs_tiled."""
    spread = _spread(by_row).reshape(-1, 2, 16, by_row.shape[1])
    words = spread[:, 0] << 1 | spread[:, 1]
    return words.reshape(*words.shape[:2], -1, tile.cols // 24).transpose(2, 0, 3, 1)


def _row_signs(signs: np.ndarray, tile: Tile, width: int) -> np.ndarray:
    """Return the sign bytes of a tile row, row after row: uint8 [BM, width], triple 0 in the top bit."""
    words = np.empty((tile.rows // TL2_STEP, 16, width), np.uint16)
    words.reshape(*words.shape[:2], -1, tile.cols // 24).transpose(2, 0, 3, 1)[:] = _signs_tiled(signs, tile)
    by_row = np.empty((tile.rows // TL2_STEP, 2, 16, width), np.uint8)
    by_row[:, 0] = _gather(words >> 1)
    by_row[:, 1] = _gather(words)
    return by_row.reshape(tile.rows, width)


# By sign << 4 | nibble: the three weights of a triple, and whether a writer produces it.
_U = np.concatenate([np.arange(16), -np.arange(16)]).clip(-LARGEST, LARGEST) + LARGEST
_WEIGHTS = np.stack([_U // 9 - 1, _U // 3 % 3 - 1, _U % 3 - 1]).astype(np.int8)
_VALID = np.array([i % 16 <= LARGEST and i != 16 for i in range(32)])


def _place_triples(trits: np.ndarray, nibbles: np.ndarray, negative: np.ndarray, first_row: int) -> None:
    """Decode triples of a tile row into trits int8 [BM, cols]: nibbles uint8 [BM, cols / 6], signs [BM, cols / 3]."""
    codes = negative << 4
    codes[:, ::2] |= nibbles >> 4
    codes[:, 1::2] |= nibbles & 15
    valid = _VALID[codes]
    if not valid.all():
        row, triple = (int(i) for i in np.argwhere(~valid)[0])
        code, where = int(codes[row, triple]), f"at row {first_row + row}, column {3 * triple}"
        if code == 16:
            raise FormatError(f"TL2 sign bit {where} belongs to a zero triple; is the tile the one it was packed with?")
        raise FormatError(f"TL2 nibble {code & 15} {where}; triples are 0 to {LARGEST}")
    for i in range(3):
        trits[:, i::3] = _WEIGHTS[i][codes]


TYPES = (
    TensorType(
        name=NAME, gguf_id=39, file_type=39, ternary=True, kernel="tl2",
        illegal=illegal, nbytes=nbytes, pack=pack, unpack=unpack, tail=tail,
        pack_into=pack_into, row_group=row_group, read_scale=read_scale, default_tile=default,
    ),
)  # fmt: skip
