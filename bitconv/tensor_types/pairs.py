"""Pairs of weights as nibbles, 3 * w0 + w1 + 4: four weights a byte, the first pair in the high nibble."""

from __future__ import annotations

import numpy as np

from bitconv.errors import FormatError

_CODES = np.arange(256, dtype=np.uint8)
_VALID = (_CODES >> 4 <= 8) & (_CODES & 15 <= 8)
LARGEST = 8


def bytes_of_pairs(trits: np.ndarray) -> np.ndarray:
    """Code weights: int8 [rows, cols] in {-1, 0, +1} -> uint8 [rows, cols / 4]."""
    codes = (trits + np.int8(1)).view(np.uint8)
    # The top byte of the product is 48 w0 + 16 w1 + 3 w2 + w3; lower sums stay below 64 and carry nothing.
    quads = codes.view("<u4") * np.uint32(48 << 24 | 16 << 16 | 3 << 8 | 1)
    return (quads >> np.uint32(24)).astype(np.uint8)


def _weights_of_byte() -> np.ndarray:
    pairs = np.stack([_CODES >> 4, _CODES & 15], axis=1).clip(max=LARGEST).astype(np.int8)
    return np.stack([pairs // 3 - 1, pairs % 3 - 1], axis=2).astype(np.int8).reshape(256, 4).view("<u4")[:, 0]


_WEIGHTS = _weights_of_byte()


def trits_of_pairs(packed: np.ndarray) -> np.ndarray:
    """Decode valid bytes: uint8 [rows, cols / 4] -> int8 [rows, cols]."""
    return _WEIGHTS[packed].view(np.int8)


def refuse_bad_pairs(kind: str, packed: np.ndarray, first_row: int, first_col: int) -> None:
    """Raise FormatError, naming row and column, when a nibble of uint8 [rows, cols / 4] is above 8."""
    valid = _VALID[packed]
    if valid.all():
        return
    row, byte = (int(i) for i in np.argwhere(~valid)[0])
    high, low = packed[row, byte] >> 4, packed[row, byte] & 15
    nibble, col = (high, 4 * byte) if high > LARGEST else (low, 4 * byte + 2)
    raise FormatError(
        f"{kind} nibble {nibble} at row {first_row + row}, column {first_col + col}; pairs are 0 to {LARGEST}"
    )
