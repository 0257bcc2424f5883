"""A look at dead feed-forward channels, which tell an I2_S file in another layout than it is taken for.

Nothing in a file says how its I2_S tensors are laid out. But where training has killed channels of the feed-forward
network, a row of ffn_gate and ffn_up and the same column of ffn_down are all zero. Rows are the same in the layouts
x86-128 and arm64; columns are not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile

_WIDTHS = {"x86-128": 32, "arm64": 16}  # bytes of a block; its first quarter of weights is in the top bits
_ZEROS = 0x55  # four codes of weights that are 0
_DOWN = re.compile(r"blk\.\d+\.ffn_down\.weight")


def layout_doubt(gguf: GgufFile, layout: str) -> str | None:
    """Say that the dead channels of a file fit another I2_S layout than the given one, or None.

    Only where channels are dead, the given layout misplaces some of them and the other layout none.
    """
    if layout not in _WIDTHS:
        return None
    dead_channels, misplaced = 0, dict.fromkeys(_WIDTHS, 0)
    for name in filter(_DOWN.fullmatch, gguf.tensors):
        dead = _dead_rows(gguf, name)
        if dead is None or not dead.any():
            continue
        dead_channels += int(dead.sum())
        always_zero = _zero_bits(gguf, name)
        gguf.release(name)
        for one, width in _WIDTHS.items():
            misplaced[one] += int((_columns(always_zero, width) != dead).sum())
    fitting = [one for one in _WIDTHS if not misplaced[one]]
    if not misplaced[layout] or not fitting:
        return None
    return (
        f"{gguf.path}: the zero columns of ffn_down do not lie where its {dead_channels} dead channels are; in the "
        f"I2_S layout {fitting[0]} they do: --i2s-layout {fitting[0]} (i2s_layout='{fitting[0]}')"
    )


def _dead_rows(gguf: GgufFile, down: str) -> np.ndarray | None:
    """Return which channels have all-zero rows in ffn_gate and ffn_up, bool [ffn]; None unless all are I2_S."""
    infos = [gguf.tensors.get(down.replace("ffn_down", role)) for role in ("ffn_gate", "ffn_up", "ffn_down")]
    shapes = []
    for info in infos:
        if info is None or info.type_name != "I2_S" or len(info.shape) != 2:
            return None
        shapes.append(info.shape)
    if shapes[0] != shapes[1] or shapes[2] != shapes[0][::-1] or any(shape[1] % 128 for shape in shapes):
        return None
    rows, cols = shapes[0]
    dead = np.ones(rows, bool)
    for info in infos[:2]:
        if info is not None:
            dead &= _all_zeros(gguf.data(info.name)[: rows * cols // 4].reshape(rows, -1))
            gguf.release(info.name)
    return dead


def _all_zeros(packed: np.ndarray) -> np.ndarray:
    """Say which rows of uint8 [rows, cols / 4] hold zero weights alone; most are settled by their first byte."""
    zeros: np.ndarray = packed[:, 0] == _ZEROS
    for row in np.flatnonzero(zeros):
        zeros[row] = (packed[row] == _ZEROS).all()
    return zeros


def _zero_bits(gguf: GgufFile, name: str) -> np.ndarray:
    """Return uint8 [cols / 4] with the code of a zero weight exactly where every row has it."""
    rows, cols = gguf.tensors[name].shape
    packed = gguf.data(name)[: rows * cols // 4].reshape(rows, -1)
    # The code of zero is 01: in every row the high bit is clear and the low one set.
    high, low = np.bitwise_or.reduce(packed, axis=0) & 0xAA, np.bitwise_and.reduce(packed, axis=0) & _ZEROS
    zeros: np.ndarray = high | low
    return zeros


def _columns(packed: np.ndarray, width: int) -> np.ndarray:
    """Say which columns of one packed row are zero in the layout with blocks of `width` bytes, bool [cols]."""
    groups = packed.reshape(-1, width)
    return np.stack([(groups >> shift & 3) == 1 for shift in (6, 4, 2, 0)], axis=1).reshape(-1)
