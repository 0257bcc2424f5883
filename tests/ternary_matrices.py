"""Ternary matrices for tests of tensor types: the generators of the documented examples, and random ones."""

from __future__ import annotations

import numpy as np


def g1(rows: int, cols: int) -> np.ndarray:
    """The closed formula of the documented examples."""
    r, c = np.ogrid[:rows, :cols]
    return ((r * r + 7 * r * c + 3 * c + c // 5) % 3 - 1).astype(np.int8)


def g2(rows: int, cols: int) -> np.ndarray:
    """The pseudo-random generator of the documented examples."""
    state, values = 12345, []
    for _ in range(rows * cols):
        state = (state * 1103515245 + 12345) % 2**31
        values.append((state >> 16) % 3 - 1)
    return np.array(values, np.int8).reshape(rows, cols)


def random_trits(seed: int, rows: int, cols: int) -> np.ndarray:
    """Random trits, with a density that depends on the seed; a few rows are zero."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.02, 0.5, 2 / 3, 1.0])
    trits = rng.choice(np.array([-1, 0, 1], np.int8), (rows, cols), p=[density / 2, 1 - density, density / 2])
    trits[rng.random(rows) < 0.05] = 0
    return trits
