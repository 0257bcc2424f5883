"""TQ1_0, 1.69 bits a weight: blocks of 256, five trits a byte as digits of a number in base 3.

A byte is ceil(256 * v / 243), where v has the codes (trit + 1) of its weights as digits, the first the highest:

    bytes  0 to 31  weights p, p + 32, p + 64, p + 96, p + 128 of weights 0 to 159
    bytes 32 to 47  weights p, p + 16, p + 32, p + 48, p + 64  of weights 160 to 239
    bytes 48 to 51  weights p, p + 4, p + 8, p + 12            of weights 240 to 255, the fifth digit 0
    bytes 52, 53    d
"""

from __future__ import annotations

import numpy as np

from bitconv.tensor_types.ternary_blocks import BLOCK, TernaryBlocks

CODE_BYTES = 52
_GROUPS = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))  # first byte, bytes, first weight, digits

_STORED = ((256 * np.arange(243) + 242) // 243).astype(np.uint8)
_VALUES = np.zeros(256, np.uint8)  # by stored byte, the inverse of _STORED
_VALUES[_STORED] = np.arange(243)
_DIGITS = np.stack([_VALUES // 3**i % 3 for i in (4, 3, 2, 1, 0)]).view(np.int8) - np.int8(1)
_BAD = np.bincount(_STORED, minlength=256) == 0  # by stored byte: no number is stored so
_BAD_OF_DIGITS = {5: _BAD, 4: _BAD | (_VALUES % 3 != 0)}


def encode(codes: np.ndarray) -> np.ndarray:
    """Pack codes: uint8 0 to 2 [blocks, 256] -> uint8 [blocks, 52]."""
    packed = np.empty((len(codes), CODE_BYTES), np.uint8)
    for byte, n, first, digits in _GROUPS:
        group = codes[:, first : first + digits * n].reshape(-1, digits, n)
        value = group[:, 0]
        for i in range(1, digits):
            value = value * np.uint8(3) + group[:, i]
        packed[:, byte : byte + n] = _STORED[value if digits == 5 else value * np.uint8(3)]
    return packed


def decode(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack codes: uint8 [blocks, 52] -> (int8 [blocks, 256], where the byte is none that is stored)."""
    trits = np.empty((len(packed), BLOCK), np.int8)
    bad = np.zeros((len(packed), BLOCK), bool)
    for byte, n, first, digits in _GROUPS:
        part = packed[:, byte : byte + n]
        bad[:, first : first + n] = _BAD_OF_DIGITS[digits][part]
        for i in range(digits):
            trits[:, first + i * n : first + (i + 1) * n] = _DIGITS[i][part]
    return trits, bad


TYPES = (TernaryBlocks("TQ1_0", CODE_BYTES, encode, decode).tensor_type(34, 36),)
