"""TQ2_0, 2.06 bits a weight: blocks of 256, two bits a trit, the first 32 weights in the lowest bits.

Bytes 0 to 31 hold weights 0 to 127 and bytes 32 to 63 the others; byte p of either holds the codes (trit + 1) of
weights p, p + 32, p + 64 and p + 96:

    bits   7 6  | 5 4  | 3 2  | 1 0
    weight p+96 | p+64 | p+32 |  p

Bytes 64 and 65 are d.
"""

from __future__ import annotations

import numpy as np

from bitconv.tensor_types.ternary_blocks import BLOCK, TernaryBlocks

CODE_BYTES = 64
_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)[:, None]


def encode(codes: np.ndarray) -> np.ndarray:
    """Pack codes: uint8 0 to 2 [blocks, 256] -> uint8 [blocks, 64]."""
    groups = codes.reshape(-1, 2, 4, 32)
    packed = groups[:, :, 0].copy()
    for i in range(1, 4):
        packed |= groups[:, :, i] << (2 * i)
    return packed.reshape(-1, CODE_BYTES)


def decode(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack codes: uint8 [blocks, 64] -> (int8 [blocks, 256], where the code is 3)."""
    codes = ((packed.reshape(-1, 2, 1, 32) >> _SHIFTS) & 3).reshape(-1, BLOCK)
    return codes.view(np.int8) - np.int8(1), codes == 3


TYPES = (TernaryBlocks("TQ2_0", CODE_BYTES, encode, decode).tensor_type(35, 37),)
