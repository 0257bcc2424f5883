"""Checks on this very CPU that every kernel equals its scalar form bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from bitconv import _kernels
from bitconv.tensor_types import tensor_types


def self_test() -> list[tuple[str, str, bool]]:
    """Run every kernel of every usable instruction set on random data: (kernel, instruction set, equals scalar)."""
    rng = np.random.default_rng(2024)
    return [
        (name, isa, _same(run(isa), run("scalar")))
        for name, run in _cases(rng).items()
        for isa in _kernels.isas()
        if isa != "scalar"
    ]


def _cases(rng: np.random.Generator) -> dict[str, Callable[[str], np.ndarray]]:
    rows, cols = 37, 1280
    codes = rng.integers(-127, 128, cols, dtype=np.int8)
    x = rng.standard_normal((5, cols)).astype(np.float32)
    halves = rng.standard_normal((rows, cols)).astype(np.float16).view(np.uint8).reshape(-1)
    tokens = rng.integers(-127, 128, (cols // 4, 6, 4), dtype=np.int8)
    panel = rng.integers(0, 3, (2, cols // 4, 16, 4), dtype=np.uint8)
    q, k, v = (rng.standard_normal((n, 100)).astype(np.float32) for n in (2, 77, 77))
    cases: dict[str, Callable[[str], np.ndarray]] = {
        "activation codes": lambda isa: _kernels.quantise(x[0], isa)[0],
        "rms norm": lambda isa: _kernels.norm(x[0], x[1], 1e-5, isa),
        "silu": lambda isa: _kernels.gate_mul(x[0], x[1], False, isa),
        "squared relu": lambda isa: _kernels.gate_mul(x[0], x[1], True, isa),
        "attention, F16 cache": lambda isa: _kernels.attention(q, k, v, 1, 0.1, isa),
        "attention, F32 cache": lambda isa: _kernels.attention(q, k, v, 0, 0.1, isa),
        "F16 product": lambda isa: _kernels.dense(halves, rows, cols, 1, x, isa),
        "int8 tile": lambda isa: _kernels.tile(panel, tokens, isa),
    }
    many = 64  # tiles of TL1 and TL2 come in 32 rows
    trits = rng.integers(-1, 2, (many, cols), dtype=np.int8)
    for kind in tensor_types():
        if kind.ternary and kind.kernel:
            tile = kind.default_tile(many, cols) if kind.default_tile else None
            args = (kind.pack(trits, 1.0), many, cols, kind.gguf_id)
            tiles = (0, 0, 0) if tile is None else (tile.rows, tile.cols, tile.step)
            cases[f"{kind.name} decode"] = partial(_kernels.gemv, *args, codes, tiles=tiles)
            cases[f"{kind.name} prefill"] = partial(_kernels.panels, *args, 32, tiles=tiles)
    return cases


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()
