"""Q6_K, 6.56 bits a value: blocks of 256 in 16 groups of 16; a value is (d * s) * q, q from -32 to 31.

Element 128 h + 32 l + p of a block, h < 2, l < 4, p < 32, has

    the low four bits of q + 32   in byte 64 h + 32 (l mod 2) + p, the low nibble for l < 2, else the high one
    the high two bits             in byte 128 + 32 h + p, bits 2l and 2l + 1

Bytes 192 to 207 are the int8 s of the groups, bytes 208 and 209 the float16 d.
"""

from __future__ import annotations

import numpy as np

from bitconv.tensor_types.float_blocks import FloatBlocks

BLOCK = 256
BLOCK_BYTES = 210
GROUP = 16
_LOWEST, _HIGHEST = np.float32(-32), np.float32(31)
# Codes that the value of largest magnitude in a group is tried at. Coarser steps for it mean finer ones for the
# rest; on normal values the best lies between 24 and 32.
_CANDIDATES = tuple(np.float32(n) for n in range(23, 33))


def encode(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code blocks: float32 [blocks, 256] -> (uint8 [blocks, 210], where d is finite).

    Looks for small squared error: the best step of each group of 16 by least squares over several candidates, then
    d from the largest step, then each group's s among the three integers nearest to its step.
    Only element-wise float32 arithmetic in a fixed order: the same bytes on every machine.
    """
    groups = np.ascontiguousarray(values.reshape(-1, GROUP).T)  # [16, n]: sums run over whole arrays
    with np.errstate(over="ignore", invalid="ignore"):
        steps = _best_steps(groups).reshape(-1, BLOCK // GROUP)
        d = _block_scales(steps)
        fits = np.isfinite(d) & np.isfinite(values).all(axis=1)
    d[~fits] = 0
    scales = _best_scales(np.where(fits.repeat(GROUP), groups, 0), np.where(fits[:, None], steps, 0), d)
    codes = _codes(np.where(fits.repeat(GROUP), groups, 0), (d.astype(np.float32)[:, None] * scales).reshape(-1))
    return _assemble((codes + np.float32(32)).astype(np.uint8).T.reshape(-1, BLOCK), scales, d), fits


def _reciprocal(steps: np.ndarray) -> np.ndarray:
    """Return 1 / steps, and 0 for 0."""
    return np.where(steps == 0, 0, np.float32(1) / np.where(steps == 0, 1, steps)).astype(np.float32)


def _best_steps(groups: np.ndarray) -> np.ndarray:
    """Return for each column of float32 [16, n] the step that, with its best codes, leaves the least squared error."""
    extreme = groups[np.abs(groups).argmax(axis=0), np.arange(groups.shape[1])]
    inverse = _reciprocal(extreme)
    best, steps = np.zeros_like(extreme), np.zeros_like(extreme)
    codes, products = np.empty_like(groups), np.empty_like(groups)
    for candidate in _CANDIDATES:
        np.multiply(groups, inverse * -candidate, out=codes)  # the sign makes the largest the code that reaches -32
        np.rint(codes, out=codes)
        np.minimum(codes, _HIGHEST, out=codes)
        cross = np.multiply(groups, codes, out=products).sum(axis=0)
        square = np.multiply(codes, codes, out=products).sum(axis=0)
        step = cross * _reciprocal(square)
        explained = cross * step
        better = explained > best
        best[better], steps[better] = explained[better], step[better]
    return steps


def _block_scales(steps: np.ndarray) -> np.ndarray:
    """Return d of each block, float16 [blocks], so that the largest of its steps [blocks, 16] is -128 d."""
    extreme = steps[np.arange(len(steps)), np.abs(steps).argmax(axis=1)]
    d = (extreme / np.float32(-128)).astype(np.float16)
    # Only among the coarse numbers next to 0 is a rounded d so small that -128 d falls short of the step.
    short = np.abs(extreme) > np.abs(d.astype(np.float32)) * np.float32(128.5)
    d = np.where(short, np.nextafter(d, np.copysign(np.float16(np.inf), d)), d)
    return np.where(extreme == 0, 0, d).astype(np.float16)  # not -0, which would make every zero a -0


def _best_scales(groups: np.ndarray, steps: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return s of each group, float32 [blocks, 16]: of the integers next to step / d the one of least error."""
    wide = d.astype(np.float32)[:, None]
    nearest = np.rint(steps * _reciprocal(wide))
    best = np.full(steps.shape, np.inf, np.float32)
    scales = np.zeros_like(steps)
    for offset in (0, -1, 1):
        tried = np.clip(nearest + np.float32(offset), -128, 127)
        step = (wide * tried).reshape(-1)
        error = _codes(groups, step)
        error *= -step
        error += groups
        error *= error
        sums = error.sum(axis=0).reshape(steps.shape)
        better = sums < best
        best[better], scales[better] = sums[better], tried[better]
    return scales


def _codes(groups: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the codes nearest to groups / steps: float32 [16, n], [n] -> float32 [16, n] from -32 to 31."""
    codes = groups * _reciprocal(steps)
    np.rint(codes, out=codes)
    return np.clip(codes, _LOWEST, _HIGHEST, out=codes)


def _assemble(codes: np.ndarray, scales: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Place codes uint8 0 to 63 [blocks, 256], s [blocks, 16] and d float16 [blocks] into uint8 [blocks, 210]."""
    out = np.empty((len(codes), BLOCK_BYTES), np.uint8)
    quarters = codes.reshape(-1, 2, 4, 32)
    low = quarters & 15
    out[:, :128] = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    high = quarters >> 4
    out[:, 128:192] = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(-1, 64)
    out[:, 192:208] = scales.astype(np.int8).view(np.uint8)
    out[:, 208:] = d.astype("<f2")[:, None].view(np.uint8)
    return out


def decode(blocks: np.ndarray) -> np.ndarray:
    """Decode blocks: uint8 [blocks, 210] -> float32 [blocks, 256]."""
    nibbles = blocks[:, :128].reshape(-1, 2, 2, 32)
    codes = np.empty((len(blocks), 2, 4, 32), np.uint8)
    np.bitwise_and(nibbles, 15, out=codes[:, :, :2])
    np.right_shift(nibbles, 4, out=codes[:, :, 2:])
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    for i in range(4):
        codes[:, :, i] |= (high >> (2 * i) & 3) << 4
    d = np.ascontiguousarray(blocks[:, 208:]).view("<f2").astype(np.float32)
    steps = d * blocks[:, 192:208].view(np.int8)
    values = codes.reshape(-1, GROUP, GROUP).astype(np.float32) - np.float32(32)
    return (values * steps[:, :, None]).reshape(-1, BLOCK)


TYPES = (FloatBlocks("Q6_K", BLOCK, BLOCK_BYTES, encode, decode).tensor_type(14, 18),)
