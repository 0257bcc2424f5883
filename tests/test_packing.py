"""bitconv.pack and bitconv.unpack: every ternary type to every other and back, and what is refused."""

from __future__ import annotations

import itertools
import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.tensor_types import tensor_type, tensor_types
from bitconv.tensor_types.tiles import Tile, illegal_tile
from tests.ternary_matrices import g1, random_trits

TERNARY = [one.name for one in tensor_types() if one.ternary]
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 8).map(lambda n: 32 * n), st.integers(1, 3).map(lambda n: 256 * n))
any_scale = st.floats(2**-100, 2**100, width=32)


def matrix(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A matrix that is not all zero, so that it has a multiplier."""
    trits = random_trits(seed, *shape)
    trits[seed % shape[0], -1] = -1
    return trits


@st.composite
def tiles(draw: st.DrawFn, kind: str, rows: int, cols: int) -> Tile | None:
    """Any legal tile of TL1 or TL2 for a shape; None for the other types."""
    if kind not in ("TL1", "TL2"):
        return None
    step = draw(st.sampled_from([n for n in (32, 64) if rows % n == 0])) if kind == "TL1" else 32
    widths = [Tile(step, n, step) for n in range(4, 257, 4)]
    tile = draw(st.sampled_from([one for one in widths if illegal_tile(kind, rows, cols, one) is None]))
    return tile._replace(rows=draw(st.sampled_from([n for n in range(step, rows + 1, step) if rows % n == 0])))


def test_these_are_the_ternary_types():
    assert TERNARY == ["TQ1_0", "TQ2_0", "I2_S", "TL1", "TL2"]


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=seeds, scale=any_scale, data=st.data())
def test_every_type_to_every_type_and_back_is_the_identity(shape, seed, scale, data):
    """As a converter does it: trits and multiplier, the companion where the bytes do not hold the multiplier."""
    trits = matrix(seed, shape)
    tile = {name: data.draw(tiles(name, *shape)) for name in TERNARY}
    for path in itertools.permutations(TERNARY, 2):
        found, multiplier = trits, scale
        for kind in (tensor_type(name) for name in (*path, path[0])):
            packed, companion = kind.pack(found, multiplier, tile[kind.name]), kind.companion_scale(multiplier)
            found, multiplier = kind.unpack(packed, *shape, tile[kind.name])
            multiplier *= 1.0 if companion is None else companion
        assert np.array_equal(found, trits) and multiplier == scale


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=seeds, scale=st.floats(2**-24, 65504, width=16))
def test_bytes_alone_hold_trits_and_multiplier_that_float16_has(shape, seed, scale):
    trits = matrix(seed, shape)
    for first, second in itertools.permutations(TERNARY, 2):
        data = bitconv.pack(trits, scale, type=first)
        assert type(data) is bytes and len(data) == tensor_type(first).nbytes(*shape)
        again = bitconv.pack(*bitconv.unpack(data, *shape, type=first), type=second)
        found, multiplier = bitconv.unpack(again, *shape, type=second.lower())
        assert found.dtype == np.int8 and np.array_equal(found, trits)
        assert multiplier == scale
        assert bitconv.pack(found, multiplier, type=first) == data


@pytest.mark.parametrize("name", ["I2_S", "TL1", "TL2"])
@settings(max_examples=15, deadline=None)
@given(seed=seeds, scale=any_scale)
def test_types_with_a_tail_hold_every_float32(name, seed, scale):
    trits = matrix(seed, (32, 256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bitconv.unpack(bitconv.pack(trits, scale, type=name), 32, 256, type=name)[1] == scale


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_a_scale_that_the_bytes_do_not_hold_is_warned_of_or_rounded(name):
    trits = matrix(1, (32, 256))
    with pytest.warns(BitconvWarning, match=r"float16 does not hold the scale 0.1.*\.scale"):
        data = bitconv.pack(trits, 0.1, type=name)
    assert data == bitconv.pack(trits, 1.0, type=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounded = bitconv.pack(trits, 0.1, type=name, tq_scale="f16")
    assert bitconv.unpack(rounded, 32, 256, type=name)[1] == float(np.float16(0.1))
    with pytest.raises(UnsupportedError, match="float16"):
        bitconv.pack(trits, 1e-9, type=name, tq_scale="f16")


@pytest.mark.parametrize(
    ("name", "config", "tile"),
    [
        ("tl1", (64, 32, 64), (64, 32, 64)),
        ("tl1", "256,256,64,32,64", (64, 32, 64)),
        ("tl1", "tl1:128,256,128,64,32;256,256,64,32,64;tl2:256,256,128,96", (64, 32, 64)),
        ("tl2", (64, 192), (64, 192, 32)),
        ("tl2", [64, 192, 32], (64, 192, 32)),
        ("tl2", "256,256,64,192;768,256,128,96", (64, 192, 32)),
        ("tl2", "tl2:256,256,64,192", (64, 192, 32)),
        ("tl1", None, (128, 64, 32)),
        ("tl2", None, (128, 96, 32)),
    ],
)
def test_a_tile_may_be_given_as_numbers_or_as_a_kernel_config(name, config, tile):
    trits = matrix(2, (256, 256))
    data = bitconv.pack(trits, 0.5, type=name, config=config)
    assert data == tensor_type(name).pack(trits, 0.5, Tile(*tile)).tobytes()
    assert np.array_equal(bitconv.unpack(data, 256, 256, type=name, config=config)[0], trits)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("i2_s", (64, 32, 64), "I2_S has no tiles"),
        ("tl1", (64, 32), "(BM, BK, bm)"),
        ("tl2", (64,), "(BM, BK)"),
        ("tl2", "768,256,128,96", "says nothing about TL2 of shape [256, 256]"),
        ("tl2", "tl1:256,256,64,32,64", "says nothing about TL2"),
        ("tl2", "", "kernel config"),
        ("tl2", "64,192", "kernel config"),
    ],
)
def test_a_config_that_does_not_fit_the_type_is_refused(name, config, message):
    for call in (
        lambda: bitconv.pack(g1(256, 256), 1.0, type=name, config=config),
        lambda: bitconv.unpack(bytes(16416), 256, 256, type=name, config=config),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            call()


def test_an_illegal_tile_or_shape_is_refused():
    with pytest.raises(UnsupportedError, match="BK = 60"):
        bitconv.pack(g1(256, 256), 1.0, type="tl2", config=(64, 60))
    with pytest.raises(FormatError, match="BK = 60"):
        bitconv.unpack(bytes(16416), 256, 256, type="tl2", config=(64, 60))
    for name in TERNARY:
        with pytest.raises(UnsupportedError, match="K = 100"):
            bitconv.pack(g1(64, 100), 1.0, type=name)
        with pytest.raises(FormatError, match="takes"):
            bitconv.unpack(b"", 64, 256, type=name)


@pytest.mark.parametrize("trits", [[1, 0], [[[1]]], np.zeros((0, 256)), np.zeros((4, 256), complex), [["a"]]])
def test_only_matrices_of_numbers_are_packed(trits):
    with pytest.raises(InputError, match="expected a matrix"):
        bitconv.pack(trits, 1.0, type="i2_s")


@pytest.mark.parametrize("value", [2, -2, 127, -128, 0.5, math.nan, math.inf])
def test_a_weight_that_is_no_trit_is_named(value):
    weights = np.zeros((4, 256), np.float32)
    weights[3, 200] = value
    with pytest.raises(InputError, match="at row 3, column 200; expected -1, 0 or 1"):
        bitconv.pack(weights, 1.0, type="i2_s")


@pytest.mark.parametrize("dtype", ["i1", "i8", "f2", "f4", "f8"])
def test_any_numeric_type_and_memory_order_will_do(dtype):
    trits = g1(32, 256)
    data = bitconv.pack(trits, 1.0, type="tl2")
    for order in ("C", "F"):
        assert bitconv.pack(np.asarray(trits, dtype, order=order), 1.0, type="tl2") == data
    for container in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert np.array_equal(bitconv.unpack(container, 32, 256, type="tl2")[0], trits)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-50])
def test_a_scale_that_is_no_positive_float32_is_refused(scale):
    for name in TERNARY:
        with pytest.raises(InputError, match="scale"):
            bitconv.pack(g1(32, 256), scale, type=name)
    for name in ("I2_S", "TL1", "TL2"):
        data = bytearray(bitconv.pack(g1(32, 256), 1.0, type=name))
        with np.errstate(over="ignore"):
            data[-32:-28] = np.float32(scale).tobytes()
        with pytest.raises(FormatError, match="scale of the"):
            bitconv.unpack(data, 32, 256, type=name)


def test_types_are_given_by_name_or_id_and_others_are_refused():
    assert bitconv.pack(g1(32, 256), 1.0, type=39) == bitconv.pack(g1(32, 256), 1.0, type="tl2")
    for name in ("f16", "q6_k"):
        with pytest.raises(UnsupportedError, match="not a ternary type"):
            bitconv.pack(g1(32, 256), 1.0, type=name)
    with pytest.raises(UnsupportedError, match="q4_0"):
        bitconv.unpack(b"", 32, 256, type="q4_0")
    with pytest.raises(InputError, match="at least one row"):
        bitconv.unpack(b"", 0, 256, type="i2_s")
