"""TL1 and TL2: the bytes of the format for every legal tile, and back; what no writer produces is named."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats import ggml_types
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.tiles import Tile
from tests.paths import SHARED
from tests.ternary_matrices import g1, g2, random_trits

TL1, TL2 = tensor_type("TL1"), tensor_type("TL2")
KINDS = pytest.mark.parametrize("kind", [TL1, TL2], ids=lambda kind: kind.name)
TAIL = 32
ODD_SCALE = float(np.float32(0.1))


def pair(w0: int, w1: int) -> int:
    return 3 * w0 + w1 + 4


def tl1_by_the_book(w: np.ndarray, tile: Tile) -> list[int]:
    """The loops of docs/FORMAT.md, one byte at a time."""
    (m, k), (bm_rows, bk, bm) = w.shape, tile
    return [
        pair(w[row, c], w[row, c + 1]) << 4 | pair(w[row, c + 2], w[row, c + 3])
        for mt in range(m // bm_rows)
        for kt in range(k // bk)
        for rb in range(bm_rows // bm)
        for kb in range(bk * bm // 256)
        for i in range(bm // 16)
        for q in range(64 // bm)
        for row in range(mt * bm_rows + rb * bm + 16 * i, mt * bm_rows + rb * bm + 16 * i + 16)
        for c in [kt * bk + kb * 256 // bm + 4 * q]
    ]


def tl2_by_the_book(w: np.ndarray, tile: Tile) -> list[int]:
    """The loops of docs/FORMAT.md, one byte at a time: nibbles, signs, pairs, zeros up to the tail."""
    (m, k), (bm_rows, bk, _) = w.shape, tile
    k3 = k - k % bk
    order = [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]

    def triple(row: int, c: int) -> int:
        return 9 * int(w[row, c]) + 3 * int(w[row, c + 1]) + int(w[row, c + 2])

    out = []
    blocks = [(mt * bm_rows, kt * bk, rb * 32) for mt in range(m // bm_rows) for kt in range(k3 // bk) for rb in
              range(bm_rows // 32)]  # fmt: skip
    for first, col, group in blocks:
        for c in range(col, col + bk, 6):
            for j in order:
                row = first + group + j
                out.append(abs(triple(row, c)) << 4 | abs(triple(row, c + 3)))
    for first, col, group in blocks:
        for c in range(col, col + bk, 24):
            for lane in range(16):
                word = 0
                for q in range(8):
                    for h in range(2):
                        word |= (triple(first + group + 16 * h + lane, c + 3 * q) < 0) << (15 - 2 * q - h)
                out += word.to_bytes(2, "little")
    for first in range(0, m, bm_rows):
        for col in range(k3, k, 32):
            for group in range(0, bm_rows, 32):
                for c in range(col, col + 32, 4):
                    for j in order:
                        x = w[first + group + j, c : c + 4]
                        out.append(pair(x[0], x[1]) << 4 | pair(x[2], x[3]))
    return out + [0] * (TL2.nbytes(m, k) - TAIL - len(out))


BY_THE_BOOK = {"TL1": tl1_by_the_book, "TL2": tl2_by_the_book}


@st.composite
def tl1_cases(draw: st.DrawFn, most: int = 4) -> tuple[int, int, Tile]:
    step = draw(st.sampled_from([32, 64]))
    rows = step * draw(st.integers(1, 3))
    by = 256 // step
    cols = by * draw(st.integers(1, 256 // by))
    columns = cols * draw(st.integers(1, most))
    while columns % 16:
        columns += cols
    return rows * draw(st.integers(1, 2)), columns, Tile(rows, cols, step)


@st.composite
def tl2_cases(draw: st.DrawFn, most: int = 4) -> tuple[int, int, Tile]:
    rows = 32 * draw(st.integers(1, 3))
    cols = 24 * draw(st.integers(1, 10))
    triples = cols * draw(st.integers(-(-256 // cols), -(-256 // cols) + most))
    pairs = 32 * draw(st.integers(0, (cols - 1) // 32))
    return rows * draw(st.integers(1, 2)), triples + pairs, Tile(rows, cols)


CASES = {"TL1": tl1_cases, "TL2": tl2_cases}


@KINDS
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), scale=st.floats(2**-100, 2**100, width=32))
def test_unpacking_returns_what_was_packed_for_every_legal_tile(kind, data, seed, scale):
    rows, cols, tile = data.draw(CASES[kind.name](most=12))
    trits = random_trits(seed, rows, cols)
    packed = kind.pack(trits, scale, tile)
    assert packed.dtype == np.uint8
    assert packed.size == kind.nbytes(rows, cols) == ggml_types.nbytes(kind.gguf_id, (rows, cols))
    assert packed[-TAIL:].tobytes() == np.float32(scale).tobytes() + bytes(28)
    found, multiplier = kind.unpack(packed, rows, cols, tile)
    assert found.dtype == np.int8 and np.array_equal(found, trits)
    assert multiplier == scale == kind.read_scale(packed, rows, cols)


@KINDS
@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_bytes_are_those_of_the_documented_loops(kind, data, seed):
    rows, cols, tile = data.draw(CASES[kind.name](most=1))
    trits = random_trits(seed, rows, cols)
    expected = np.array(BY_THE_BOOK[kind.name](trits, tile), np.uint8)
    assert np.array_equal(kind.pack(trits, 1.0, tile)[:-TAIL], expected)


@pytest.mark.slow
@KINDS
@settings(max_examples=400, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_bytes_are_those_of_the_documented_loops_more_often(kind, data, seed):
    rows, cols, tile = data.draw(CASES[kind.name]())
    trits = random_trits(seed, rows, cols)
    packed = kind.pack(trits, ODD_SCALE, tile)
    assert np.array_equal(packed[:-TAIL], np.array(BY_THE_BOOK[kind.name](trits, tile), np.uint8))
    assert np.array_equal(kind.unpack(packed, rows, cols, tile)[0], trits)


@KINDS
@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_groups_of_rows_packed_in_any_order_make_the_same_bytes(kind, data, seed):
    rows, cols, tile = data.draw(CASES[kind.name]())
    rows *= 2
    trits = random_trits(seed, rows, cols)
    group = kind.row_group(rows, cols, tile)
    assert group == tile.rows
    cuts = sorted({0, rows, *(group * data.draw(st.integers(0, rows // group)) for _ in range(2))})
    pieces = data.draw(st.permutations(list(zip(cuts, cuts[1:], strict=False))))
    out = np.full(kind.nbytes(rows, cols), 0xAA, np.uint8)
    for start, stop in pieces:
        kind.pack_into(out, trits[start:stop], start, rows, ODD_SCALE, tile)
    assert np.array_equal(out, kind.pack(trits, ODD_SCALE, tile))


@KINDS
@pytest.mark.parametrize("shape", [(32, 256), (640, 2560), (1536, 1536), (96, 8640), (160, 288), (1024, 640)])
def test_the_default_tile_is_used_where_none_is_given(kind, shape):
    trits = random_trits(3, *shape)
    packed = kind.pack(trits, 1.0)
    assert np.array_equal(packed, kind.pack(trits, 1.0, kind.default_tile(*shape)))
    assert np.array_equal(kind.unpack(packed, *shape)[0], trits)
    assert kind.row_group(*shape) == kind.default_tile(*shape).rows


def test_the_library_knows_which_bytes_a_wrong_tile_of_tl2_cannot_have():
    """With another number of triple columns signs fall on zero triples; with the same number nothing shows."""
    trits = random_trits(5, 64, 512)
    packed = TL2.pack(trits, 1.0, Tile(64, 96))
    with pytest.raises(FormatError, match="TL2"):
        TL2.unpack(packed, 64, 512, Tile(64, 192))
    assert not np.array_equal(TL2.unpack(packed, 64, 512, Tile(32, 96))[0], trits)


@pytest.mark.parametrize(
    ("kind", "matrix", "tile", "offset", "expected"),
    [
        (TL1, g1(32, 64), (32, 64, 32), 0, "0051370051370051370051370051370014760714760714760714760714760714"),
        (TL1, g1(64, 64), (64, 32, 64), 0, "0051370051370051370051370051370051370051370051370051370051370051"),
        (TL1, g2(64, 128), (32, 64, 32), 0, "1345738071814343046348265375631845830612316668862085840557261517"),
        (TL2, g1(32, 288), (32, 96, 32), 0, "dc2324dc2324dc232324dc2324dc232424dc2324dc2324dcdc2324dc2324dc23"),
        (TL2, g1(32, 288), (32, 96, 32), 1536, "68a0d450bcf068a0d450bcf068a0d450bcf068a0d450bcf068a0d450bcf068a0"),
        (TL2, g1(32, 320), (32, 96, 32), 1920, "0455320455320455553204553204553232045532045532040455320455320455"),
        (TL2, g2(64, 352), (32, 96, 32), 0, "99972a4d5d3935233c4376584dc2444c42891b325ab4a9d404a33ca74a32dc7a"),
    ],
)
def test_documented_bytes(kind, matrix, tile, offset, expected):
    assert kind.pack(matrix, 0.75, Tile(*tile))[offset : offset + 32].tobytes().hex() == expected


@pytest.mark.parametrize(
    ("kind", "tile", "length", "expected"),
    [
        (TL1, (128, 64, 64), 589824, "b0a93d6c63d8cd67f2ec20d38294bf53b0fad25c90bebad41ef51c36753e69c4"),
        (TL2, (128, 192, 32), 507904, "d7be8679d22a81d4ff1828963a036df2617880897aeeecd7d6572d1d6a8e3d2b"),
    ],
)
def test_documented_hashes_of_a_large_tensor(kind, tile, length, expected):
    """Without a tile given: it is one of those that bitnet.cpp has."""
    assert kind.default_tile(1536, 1536) == tile
    packed = kind.pack(g1(1536, 1536), 1.0)
    assert hashlib.sha256(packed[:length].tobytes()).hexdigest() == expected
    assert not packed[length:-TAIL].any()


def vectors() -> list[str]:
    return [] if SHARED is None else sorted(path.stem for path in (SHARED / "spec" / "vectors").glob("tl[12]_*.npz"))


def test_the_reference_vectors_are_all_there():
    if SHARED is None:
        pytest.skip("reference vectors are not beside the checkout")
    assert len(vectors()) == 7


@pytest.mark.parametrize("name", vectors())
def test_reference_vectors_are_reproduced(name):
    assert SHARED is not None
    vector = np.load(SHARED / "spec" / "vectors" / f"{name}.npz")
    kind, numbers = tensor_type(name[:3]), [int(n) for n in re.findall(r"_(?:BM|BK|bm)(\d+)", name)]
    body, trits = vector["packed"], vector["W"]
    packed = kind.pack(trits, float(vector["scale"]), Tile(*numbers))
    assert np.array_equal(packed[: body.size], body)
    assert not packed[body.size : -TAIL].any()
    assert packed.size - body.size < 2 * TAIL
    found, scale = kind.unpack(packed, *trits.shape, Tile(*numbers))
    assert np.array_equal(found, trits) and scale == float(vector["scale"])


def where_it_lies(kind, rows, cols, tile, row, col, weight):
    """The bytes that differ between a matrix of zeros and one with a single weight: [(offset, xor)]."""
    trits = np.zeros((rows, cols), np.int8)
    empty = kind.pack(trits, 1.0, tile)
    trits[row, col] = weight
    change = kind.pack(trits, 1.0, tile) ^ empty
    return [(int(i), int(change[i])) for i in np.flatnonzero(change)]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), nibble=st.integers(9, 15), seed=st.integers(0, 99))
def test_a_pair_no_writer_produces_is_named_with_row_and_column(data, nibble, seed):
    kind = data.draw(st.sampled_from([TL1, TL2]))
    rows, cols, tile = data.draw(CASES[kind.name]())
    triples = cols - cols % tile.cols if kind is TL2 else 0
    if triples == cols:
        return
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(triples, cols - 1))
    ((offset, change),) = where_it_lies(kind, rows, cols, tile, row, col, 1)
    packed = kind.pack(random_trits(seed, rows, cols), 1.0, tile)
    high = change > 15
    packed[offset] = packed[offset] & 15 | nibble << 4 if high else packed[offset] & 0xF0 | nibble
    with pytest.raises(FormatError, match=f"{kind.name} nibble {nibble} at row {row}, column {col // 2 * 2};"):
        kind.unpack(packed, rows, cols, tile)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), nibble=st.integers(14, 15), seed=st.integers(0, 99))
def test_a_triple_no_writer_produces_is_named_with_row_and_column(data, nibble, seed):
    rows, cols, tile = data.draw(tl2_cases())
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - cols % tile.cols - 1))
    ((offset, change),) = where_it_lies(TL2, rows, cols, tile, row, col, 1)
    packed = TL2.pack(random_trits(seed, rows, cols), 1.0, tile)
    packed[offset] = packed[offset] & 15 | nibble << 4 if change > 15 else packed[offset] & 0xF0 | nibble
    with pytest.raises(FormatError, match=f"TL2 nibble {nibble} at row {row}, column {col // 3 * 3};"):
        TL2.unpack(packed, rows, cols, tile)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_sign_of_a_zero_triple_is_named_with_row_and_column(data, seed):
    rows, cols, tile = data.draw(tl2_cases())
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - cols % tile.cols - 1))
    _, (offset, bit) = where_it_lies(TL2, rows, cols, tile, row, col, -1)
    trits = random_trits(seed, rows, cols)
    trits[row, col // 3 * 3 : col // 3 * 3 + 3] = 0
    packed = TL2.pack(trits, 1.0, tile)
    packed[offset] |= bit
    with pytest.raises(FormatError, match=f"sign bit at row {row}, column {col // 3 * 3} belongs to a zero triple"):
        TL2.unpack(packed, rows, cols, tile)


@KINDS
def test_padding_and_bytes_after_the_scale_are_ignored(kind):
    trits = g1(32, 288)
    packed = kind.pack(trits, 0.5, Tile(32, 96))
    packed[-28:] = 0xAB
    if kind is TL2:
        packed[1920:-32] = 0xAB
    found, scale = kind.unpack(packed, 32, 288, Tile(32, 96))
    assert np.array_equal(found, trits) and scale == 0.5


@KINDS
@pytest.mark.parametrize(("rows", "cols"), [(31, 256), (48, 256), (32, 264), (32, 100), (0, 256), (32, 0)])
def test_a_shape_without_tile_is_refused(kind, rows, cols):
    reason = kind.illegal(rows, cols)
    assert reason is not None
    with pytest.raises(UnsupportedError, match=reason):
        kind.pack(np.zeros((rows, cols), np.int8), 1.0)
    with pytest.raises(FormatError, match=reason):
        kind.unpack(np.zeros(rows * cols // 4 + TAIL, np.uint8), rows, cols)


def test_tl2_needs_256_columns_and_tl1_does_not():
    assert TL2.illegal(32, 224) is not None
    assert TL1.illegal(32, 32) is None


@KINDS
def test_a_wrong_length_or_tile_is_an_error(kind):
    packed = kind.pack(g1(64, 512), 1.0)
    for wrong in (packed[:-1], np.append(packed, np.uint8(0)), packed[:0]):
        with pytest.raises(FormatError, match=f"takes {packed.size} bytes, found {wrong.size}"):
            kind.unpack(wrong, 64, 512)
    with pytest.raises(FormatError, match="BK = 60"):
        kind.unpack(packed, 64, 512, Tile(64, 60))
    with pytest.raises(UnsupportedError, match="BK = 60"):
        kind.pack(g1(64, 512), 1.0, Tile(64, 60))
