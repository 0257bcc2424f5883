"""TL1, TL2, TQ1_0 and TQ2_0 kernels: exact on every legal tiling, on any bytes, at the largest sums."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv import _kernels
from tests.paths import SHARED

TYPES = {"tq1_0": 34, "tq2_0": 35, "tl1": 38, "tl2": 39}
ISAS = _kernels.isas()
NO_TILES = (0, 0, 0)


def some_tiles(draw, bk: int) -> int:
    """A few tiles of bk columns, or more than one unpacked panel holds."""
    return draw(st.one_of(st.integers(1, 3), st.integers(1, 2).map(lambda n: n + _kernels.PANEL_COLS // bk)))


@st.composite
def tl1_shapes(draw):
    bm = draw(st.sampled_from([32, 64]))
    tile_rows = bm * draw(st.integers(1, 3))
    bk = 16 * draw(st.integers(1, 16))
    return tile_rows * draw(st.integers(1, 5)), bk * some_tiles(draw, bk), (tile_rows, bk, bm)


@st.composite
def tl2_shapes(draw):
    tile_rows, bk = 32 * draw(st.integers(1, 4)), 24 * draw(st.integers(1, 10))
    pairs = draw(st.sampled_from(list(range(0, min(bk, 257), 32))))
    return tile_rows * draw(st.integers(1, 2)), bk * some_tiles(draw, bk) + pairs, (tile_rows, bk, 32)


@st.composite
def tq_shapes(draw):
    return draw(st.integers(1, 40)), 256 * draw(st.integers(1, 6)), NO_TILES


SHAPES = {"tq1_0": tq_shapes(), "tq2_0": tq_shapes(), "tl1": tl1_shapes(), "tl2": tl2_shapes()}


def random_bytes(rng: np.random.Generator, name: str, rows: int, cols: int, tiles: tuple[int, int, int]) -> np.ndarray:
    """Bytes of a tensor's codes that a writer could have made; TQ: any bytes but code 3."""
    if name == "tq1_0":
        return rng.integers(0, 256, rows * cols // 256 * 54, dtype=np.uint8)
    if name == "tq2_0":
        pairs = rng.integers(0, 3, (rows * cols // 256 * 66, 4), dtype=np.uint8)
        return (pairs << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8)
    three_k = cols // tiles[1] * tiles[1] if name == "tl2" else 0
    triples = rng.integers(0, 14, (2, rows * three_k // 6), dtype=np.uint8)
    signs = rng.integers(0, 256, rows * three_k // 24, dtype=np.uint8)
    pairs = rng.integers(0, 9, (2, rows * (cols - three_k) // 4), dtype=np.uint8)
    return np.concatenate([triples[0] << 4 | triples[1], signs, pairs[0] << 4 | pairs[1]]).astype(np.uint8)


@pytest.mark.parametrize("name", TYPES)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_isa_computes_the_product_of_the_codes(name, data, seed):
    rows, cols, tiles = data.draw(SHAPES[name])
    rng = np.random.default_rng(seed)
    packed = random_bytes(rng, name, rows, cols, tiles)
    codes = [
        np.concatenate([_kernels.panels(packed, rows, cols, TYPES[name], r, isa, tiles) for r in range(0, rows, 32)])
        for isa in ISAS
    ]
    trits = codes[-1][:rows].astype(np.int64) - 1
    assert np.abs(trits).max(initial=0) <= 1
    q = rng.integers(-127, 128, cols, dtype=np.int8)
    for isa, got in zip(ISAS, codes, strict=True):
        assert np.array_equal(got[:rows], trits + 1), isa
        assert np.array_equal(_kernels.gemv(packed, rows, cols, TYPES[name], q, isa, tiles), trits @ q), isa
        if tiles == NO_TILES:
            many = rng.integers(-127, 128, (int(rng.integers(2, 5)), cols), dtype=np.int8)
            found = _kernels.few(packed, rows, cols, TYPES[name], many, isa)
            assert (found is not None) == (name == "tq2_0" and isa != "scalar" and not isa.startswith("neon")), isa
            assert found is None or np.array_equal(found, many @ trits.T), isa


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("name", "byte", "rows", "cols", "tiles"),
    [
        ("tq1_0", 255, 3, 4096, NO_TILES),  # 242 and above: every digit is 2
        ("tq2_0", 0xAA, 5, 4096, NO_TILES),
        ("tl1", 0x88, 192, 4096, (64, 256, 32)),
        ("tl1", 0x88, 192, 4096, (64, 256, 64)),
        ("tl2", 0xDD, 64, 4800, (64, 240, 32)),
    ],
)
def test_the_largest_sums_are_exact(name, byte, rows, cols, tiles, isa, sign):
    packed = np.full(rows * cols, byte, dtype=np.uint8)  # more than needed
    if name == "tl2":
        packed[rows * cols // 6 :] = 0  # no sign
    q = np.full(cols, 127 * sign, dtype=np.int8)
    assert _kernels.gemv(packed, rows, cols, TYPES[name], q, isa, tiles).tolist() == [127 * sign * cols] * rows


@pytest.mark.parametrize(
    ("type_id", "rows", "cols", "tiles"),
    [
        (38, 32, 64, (32, 64, 16)),
        (38, 32, 64, (64, 64, 32)),
        (38, 32, 512, (32, 512, 32)),
        (39, 32, 300, (32, 60, 32)),
        (39, 32, 97, (32, 96, 32)),
        (39, 2048, 96, (2048, 96, 32)),
        (38, 32, 64, (0, 0, 0)),
        (34, 1, 128, NO_TILES),
    ],
)
def test_an_illegal_shape_is_refused(type_id, rows, cols, tiles):
    with pytest.raises(ValueError, match=r"tiles|cannot hold"):
        _kernels.gemv(np.zeros(rows * cols, np.uint8), rows, cols, type_id, np.zeros(cols, np.int8), "scalar", tiles)


@pytest.mark.parametrize("name", ["i2_s", *TYPES])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_code_that_no_weight_has_is_found(name, data, seed):
    rows, cols, tiles = data.draw(SHAPES["tq2_0" if name == "i2_s" else name])
    rng = np.random.default_rng(seed)
    packed = random_bytes(rng, "tq2_0" if name == "i2_s" else name, rows, cols, tiles)
    type_id = 36 if name == "i2_s" else TYPES[name]
    if name == "tq2_0":
        packed.reshape(-1, 66)[:, 64:] = 0xFF  # scales may have any bits
    weight = (packed, rows, cols, type_id, 1.0, tiles)
    sound = (packed.copy(), *weight[1:])
    assert _kernels.first_malformed([weight, sound], 2) == -1
    three_k = cols // tiles[1] * tiles[1] if name == "tl2" else 0
    codes = rows * three_k // 6 or rows * cols // 4  # TL2: signs follow the nibbles
    at = int(rng.integers(0, codes))
    if name == "tq2_0":
        at += at // 64 * 2
    packed[at % packed.size] |= {"tl1": 0x90, "tl2": 0x0E, "tq1_0": 0xFF}.get(name, 0x30)
    assert _kernels.first_malformed([sound, weight, sound, weight], 2) == (-1 if name == "tq1_0" else 1)
    if name == "tl2" and cols > three_k:
        packed = random_bytes(rng, name, rows, cols, tiles)
        packed[-int(rng.integers(1, rows * (cols - three_k) // 4 + 1))] = 0x09
        assert _kernels.first_malformed([sound, (packed, *weight[1:])], 1) == 1


@pytest.mark.skipif(SHARED is None, reason="reference vectors are not beside the checkout")
@pytest.mark.parametrize("isa", ISAS)
def test_reference_bytes_are_executed_as_their_matrix(isa):
    seen = 0
    for path in sorted((SHARED / "spec" / "vectors").glob("t[lq]*.npz")):
        vector = np.load(path)
        trits = vector["W"].astype(np.int64)
        rows, cols = trits.shape
        name = path.name[:5] if path.name.startswith("tq") else path.name[:3]
        found = re.search(r"BM(\d+)_BK(\d+)(?:_bm(\d+))?", path.name)
        tiles = tuple(int(part or 32) for part in found.groups()) if found else NO_TILES
        q = np.random.default_rng(seen).integers(-127, 128, cols, dtype=np.int8)
        packed = vector["packed"].reshape(-1)
        assert np.array_equal(_kernels.gemv(packed, rows, cols, TYPES[name], q, isa, tiles), trits @ q), path.name
        seen += 1
    assert seen >= 10
