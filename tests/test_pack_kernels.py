"""The packing kernels: every packer equals the NumPy code of tensor_types/, on any weights, layout and cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitconv import _kernels
from bitconv.formats.checkpoint import to_float32
from bitconv.tensor_types import TensorType, tensor_type, tensor_types
from bitconv.tensor_types.ternary import (
    MASTER_DTYPES,
    WeightStatistics,
    absmean_rounding,
    absmean_scale,
    pack_hf,
    signs,
    storage_dtype,
)
from bitconv.tensor_types.tiles import Tile, illegal_tile

TERNARY = [kind.name for kind in tensor_types() if kind.ternary]
TYPE_IDS = {"F32": 0, "F16": 1, "BF16": 30}
INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
ONE = {"F32": 0x3F800000, "F16": 0x3C00, "BF16": 0x3F80}
MANTISSA = {"F32": 23, "F16": 10, "BF16": 7}
PACKERS = _kernels.packers()


def raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@st.composite
def masters(draw: st.DrawFn, rows: int = 1, cols: int | None = None) -> tuple[np.ndarray, str]:
    """Stored weights whose exponents spread around some middle, a little or over the whole range, zeros among them."""
    dtype = draw(st.sampled_from(MASTER_DTYPES))
    seed = draw(st.integers(0, 2**32 - 1))
    n = rows * (draw(st.integers(0, 5000)) if cols is None else cols)
    rng = np.random.default_rng(seed)
    middle = draw(st.integers(0, INFINITY[dtype] - 1))
    spread = draw(st.sampled_from([0, 1, 3, 8, 20, 40, 300])) << MANTISSA[dtype]
    bits = np.clip(middle + rng.integers(-spread - 200, spread + 201, n), 0, INFINITY[dtype] - 1)
    bits[rng.random(n) < draw(st.sampled_from([0, 0.01, 0.5, 1]))] = 0
    kind = np.uint32 if dtype == "F32" else np.uint16
    sign = rng.integers(0, 2, n) << (8 * np.dtype(kind).itemsize - 1)
    return (bits + sign).astype(kind).view(storage_dtype(dtype)).reshape(rows, -1), dtype


def check_statistics(storage: np.ndarray, dtype: str, packer: str) -> None:
    expected = WeightStatistics(dtype)
    expected.add(storage)
    total, largest, smallest = _kernels.weight_statistics(raw(storage), TYPE_IDS[dtype], packer)
    assert total / 2**149 == expected.magnitude_sum()
    assert float(np.uint32(largest).view(np.float32)) == expected.largest
    assert (float(np.uint32(smallest).view(np.float32)) if smallest else math.inf) == expected.smallest


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=150, deadline=None)
@given(master=masters())
def test_statistics_are_those_of_numpy(packer, master):
    check_statistics(*master, packer)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("dtype", MASTER_DTYPES)
def test_statistics_of_every_magnitude_and_of_extreme_blocks(packer, dtype):
    kind = np.uint32 if dtype == "F32" else np.uint16
    step = 4099 if dtype == "F32" else 1
    every = np.arange(0, INFINITY[dtype], step, dtype=kind)
    huge, tiny = np.full(9000, INFINITY[dtype] - 1, kind), np.ones(9000, kind)
    blocks = [every, every[::-1], np.random.default_rng(0).permutation(every), huge, tiny, np.concatenate((tiny, huge)),
              np.stack((tiny, huge), axis=1), huge[:1], tiny[:1], every[:0], np.zeros(5000, kind)]  # fmt: skip
    for block in blocks:
        check_statistics(np.ascontiguousarray(block).view(storage_dtype(dtype)), dtype, packer)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("dtype", MASTER_DTYPES)
@pytest.mark.parametrize("bad", ["infinity", "nan"])
@pytest.mark.parametrize("place", [0, 100, 2047, 2048, 4999])
def test_statistics_see_what_is_not_finite(packer, dtype, bad, place):
    weights = np.full(5000, ONE[dtype], np.uint32 if dtype == "F32" else np.uint16)
    weights[place] = INFINITY[dtype] + (bad == "nan")
    _, largest, _ = _kernels.weight_statistics(raw(weights), TYPE_IDS[dtype], packer)
    assert not np.isfinite(np.uint32(largest).view(np.float32))


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=100, deadline=None)
@given(master=masters(), to=st.sampled_from(MASTER_DTYPES))
def test_dense_conversion_is_that_of_numpy(packer, master, to):
    storage, dtype = master
    kind = tensor_type(to)
    check_dense(storage, dtype, kind, packer)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("dtype", MASTER_DTYPES)
@pytest.mark.parametrize("to", MASTER_DTYPES)
def test_dense_conversion_of_every_16_bit_pattern_and_of_the_ties_between(packer, dtype, to):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    storage = patterns
    if dtype == "F32":  # every float16 and bfloat16, half-way to the next one, and a bit to either side
        with np.errstate(invalid="ignore"):
            halves = patterns.view(np.float16).astype(np.float32).view(np.uint32)
        wide = np.concatenate((halves, patterns.astype(np.uint32) << 16))
        storage = np.concatenate([wide + np.uint32(d) for d in (0, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)])
    storage = storage.view(storage_dtype(dtype))
    for block in np.array_split(storage, 64):
        check_dense(np.ascontiguousarray(block), dtype, tensor_type(to), packer)


def check_dense(storage: np.ndarray, dtype: str, kind: TensorType, packer: str) -> None:
    """All weights up to the block of the first that is not finite or does not fit are those of NumPy."""
    out = np.zeros(kind.nbytes(1, storage.size), np.uint8)
    done = _kernels.convert_dense(out, kind.gguf_id, raw(storage), TYPE_IDS[dtype], packer)
    values = to_float32(storage, dtype)
    limit = {"F32": np.inf, "F16": 65520, "BF16": float(np.uint32(0x7F7F8000).view(np.float32))}[kind.name]
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(values.reshape(-1)) < limit)
    assert done == (int(np.argmax(bad)) // 2048 * 2048 if bad.any() else storage.size)
    expected = kind.pack_rows(values.reshape(-1)[:done])
    assert np.array_equal(out[: expected.size], expected)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[TensorType, int, int, Tile | None]:
    """A ternary type, a shape that it can hold, and a legal tile for tiled ones."""
    kind = tensor_type(draw(st.sampled_from(TERNARY)))
    if kind.default_tile is None:
        unit = 128 if kind.name == "I2_S" else 256
        return kind, draw(st.integers(1, 9)), unit * draw(st.integers(1, 5)), None
    tile_rows = 32 * draw(st.integers(1, 5))
    rows, step = tile_rows * draw(st.integers(1, 3)), 32
    if kind.name == "TL1":
        step = draw(st.sampled_from([32, 64])) if tile_rows % 64 == 0 else 32
        tile_cols = 256 // step * draw(st.integers(1, step))
        cols = tile_cols * 16 * draw(st.integers(1, 2)) // math.gcd(tile_cols, 16)
    else:
        tile_cols = 24 * draw(st.integers(1, 10))
        pairs = 32 * draw(st.integers(0, (tile_cols - 1) // 32))
        cols = tile_cols * draw(st.integers(-(-(256 - pairs) // tile_cols), 12)) + pairs
    tile = Tile(tile_rows, tile_cols, step)
    assert illegal_tile(kind.name, rows, cols, tile) is None
    return kind, rows, cols, tile


def packed(
    kind: TensorType, rows: int, cols: int, tile: Tile | None, source: np.ndarray, stored: int, packer: str,
    head_rows: int = 0, d: int = 0x3C00, cuts: tuple[int, ...] = (), **options: int,
) -> np.ndarray:  # fmt: skip
    """Pack a whole matrix with the kernels, in pieces, and let NumPy add what follows the rows."""
    out = np.full(kind.nbytes(rows, cols), 0xEE, np.uint8)
    bounds = [0, *cuts, rows]
    used = 0
    for start, stop in zip(bounds, bounds[1:], strict=False):
        first = start // head_rows * head_rows if head_rows else start
        piece = raw(source) if stored == _kernels.STORED_2BIT else raw(source[first:])
        first = 0 if stored == _kernels.STORED_2BIT else first
        where = (kind.gguf_id, rows, cols, tuple(tile or (0, 0, 0)), piece, stored, first, start, stop, packer)
        used += _kernels.pack(out, *where, head_rows=head_rows, d=d, **options)
    kind.pack_into(out, np.empty((0, cols), np.int8), rows, rows, 1.0, tile)
    trits, _ = kind.unpack(out, rows, cols, tile)
    assert used == np.count_nonzero(trits)
    return out


def cut(data: st.DataObject, rows: int, group: int) -> tuple[int, ...]:
    cuts = data.draw(st.lists(st.integers(0, rows // group), max_size=3))
    return tuple(sorted(group * one for one in cuts if group * one <= rows))


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=60, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32 - 1), form=st.sampled_from(["trits", "2bit"]), data=st.data())
def test_packed_trits_are_those_of_numpy(packer, layout, seed, form, data):
    kind, rows, cols, tile = layout
    trits = np.random.default_rng(seed).integers(-1, 2, (rows, cols)).astype(np.int8)
    trits[:, : cols // 3 * data.draw(st.integers(0, 1))] = 0  # blocks of zeros have a d of their own
    source, stored = (trits, _kernels.STORED_TRITS) if form == "trits" else (pack_hf(trits), _kernels.STORED_2BIT)
    cuts = cut(data, rows, 32 if tile else 1)
    found = packed(kind, rows, cols, tile, source, stored, packer, cuts=cuts)
    assert np.array_equal(found, kind.pack(trits, 1.0, tile))


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(("name", "tile"), [("TL1", Tile(2112, 64, 64)), ("TL2", Tile(2112, 96))])
def test_tiles_may_be_higher_than_what_the_kernels_execute(packer, name, tile):
    assert tile.rows > _kernels.MAX_TILE_ROWS
    trits = np.random.default_rng(0).integers(-1, 2, (2 * tile.rows, 320)).astype(np.int8)
    where = tensor_type(name), *trits.shape, tile
    found = packed(*where, pack_hf(trits), _kernels.STORED_2BIT, packer, cuts=(32, 2080, 2144))
    assert np.array_equal(found, where[0].pack(trits, 1.0, tile))


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=60, deadline=None)
@given(layout=layouts(), data=st.data())
def test_packed_masters_are_rounded_as_numpy_does(packer, layout, data):
    kind, rows, cols, tile = layout
    storage, dtype = data.draw(masters(rows, cols))
    statistics = WeightStatistics(dtype)
    statistics.add(storage)
    scale, _ = absmean_scale(statistics)
    ternarise = data.draw(st.sampled_from([absmean_rounding(dtype, scale), signs(dtype)]))
    stored = _kernels.STORED_32 if dtype == "F32" else _kernels.STORED_16
    # the least magnitude that becomes 1, found by trying all magnitudes that occur
    kinds = (np.uint32, 0x7FFFFFFF) if dtype == "F32" else (np.uint16, 0x7FFF)
    magnitudes = np.unique(storage.view(kinds[0]) & kinds[0](kinds[1]))
    ones = magnitudes[ternarise(magnitudes.view(storage_dtype(dtype))) == 1]
    threshold = int(ones[0]) if ones.size else INFINITY[dtype]
    cuts = cut(data, rows, 32 if tile else 1)
    found = packed(kind, rows, cols, tile, storage, stored, packer, threshold=threshold, cuts=cuts)
    assert np.array_equal(found, kind.pack(ternarise(storage), 1.0, tile))


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=40, deadline=None)
@given(layout=layouts(), data=st.data())
def test_heads_are_reordered_on_the_way(packer, layout, data):
    kind, rows, cols, tile = layout
    halves = [half for half in range(1, rows // 2 + 1) if rows % (2 * half) == 0]
    if not halves:
        return
    head_rows = 2 * data.draw(st.sampled_from(halves))
    trits = np.random.default_rng(rows + cols).integers(-1, 2, (rows, cols)).astype(np.int8)
    order = [row - k + k % 2 * (head_rows // 2) + k // 2 for row in range(rows) for k in [row % head_rows]]
    forms = [(trits, _kernels.STORED_TRITS), (pack_hf(trits), _kernels.STORED_2BIT)]
    source, stored = data.draw(st.sampled_from(forms))
    cuts = cut(data, rows, 32 if tile else 1)
    found = packed(kind, rows, cols, tile, source, stored, packer, head_rows=head_rows, cuts=cuts)
    assert np.array_equal(found, kind.pack(trits[order], 1.0, tile))


@pytest.mark.parametrize("packer", PACKERS)
@settings(max_examples=40, deadline=None)
@given(layout=layouts(), data=st.data())
def test_a_code_3_is_seen_wherever_it_is(packer, layout, data):
    kind, rows, cols, tile = layout
    codes = np.random.default_rng(rows).integers(0, 3, (-(-rows // 4) * 4, cols)).astype(np.uint8)
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    codes[row, col] = 3
    hf = pack_hf(codes.view(np.int8) - np.int8(1))
    out = np.empty(kind.nbytes(rows, cols), np.uint8)
    arguments = (kind.gguf_id, rows, cols, tuple(tile or (0, 0, 0)), raw(hf), _kernels.STORED_2BIT, 0, 0, rows, packer)
    assert _kernels.pack(out, *arguments) == -1


def test_what_does_not_fit_is_refused():
    out, source = np.zeros(64 * 256 // 4 + 32, np.uint8), np.zeros(64 * 256, np.uint8)
    good = {"type_id": 38, "rows": 64, "cols": 256, "tiles": (32, 64, 32), "source": source, "first": 0,
            "stored": _kernels.STORED_TRITS, "start": 0, "stop": 64, "packer": PACKERS[0]}  # fmt: skip
    assert _kernels.pack(out, **good) == 0
    for change in (
        {"rows": 65}, {"cols": 250}, {"tiles": (48, 64, 32)}, {"tiles": (32, 60, 32)}, {"tiles": (0, 0, 0)},
        {"type_id": 0}, {"source": source[:-1]}, {"stored": 9}, {"stored": _kernels.STORED_16}, {"start": -1},
        {"start": 1}, {"stop": 65}, {"stop": 33}, {"first": 1}, {"packer": "none"}, {"head_rows": 3},
        {"head_rows": 128}, {"first": 64, "start": 32}, {"d": 1 << 16},
        {"stored": _kernels.STORED_2BIT, "source": source[: 16 * 256 - 1]},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            _kernels.pack(out, **(good | change))
    with pytest.raises(ValueError):
        _kernels.pack(out[:-40], **good)
    for to, data, type_id in ((1, source[:8], 8), (8, source[:8], 1), (0, source[:8], 1), (1, source[:6], 0)):
        with pytest.raises(ValueError):
            _kernels.convert_dense(out[:4], to, data, type_id, PACKERS[0])
    for data, type_id in ((source[:3], 1), (source[:2], 0), (source, 8), (source[1:5], 0)):
        with pytest.raises(ValueError):
            _kernels.weight_statistics(data, type_id, PACKERS[0])


@given(shape=hnp.array_shapes(min_dims=1, max_dims=1, max_side=40))
def test_nothing_to_count_is_nothing(shape):
    total, largest, smallest = _kernels.weight_statistics(raw(np.zeros(shape, np.uint16)), 30, PACKERS[0])
    assert (total, largest, smallest) == (0, 0, 0)
