"""Inverse frequencies of rotary embeddings, the same on every machine."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np


def inverse_frequencies(theta: float, head_dim: int, factors: np.ndarray | None = None) -> np.ndarray:
    """Return float32 [head_dim / 2]: theta^(-2i / head_dim), divided by the factors where there are any.

    Each step rounds to float32 as transformers does (exponent, power, reciprocal). The power is computed in decimal,
    because the pow of libm, numpy and torch differ from CPU to CPU in the last bit.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with localcontext() as context:
        context.prec = 30
        powers = [float(Decimal(theta) ** Decimal(float(exponent))) for exponent in exponents]
    inverse = np.float32(1) / np.array(powers, dtype=np.float32)
    return inverse if factors is None else inverse / factors.astype(np.float32)
