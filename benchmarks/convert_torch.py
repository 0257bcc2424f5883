"""What convert_speed.py measures beside: the same work in plain torch, tensor after tensor, without a GGUF header.

    python benchmarks/convert_torch.py CHECKPOINT OUT i2_s|tl1|tl2|tq1_0|tq2_0 [THREADS]

Absmean, rounding and packing as tensor operations, embeddings as float16. The sum of |w| is torch's, in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitconv.formats import ggml_types
from bitconv.tensor_types.tiles import Tile, default_tile


def absmean(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return trits int8 and the multiplier."""
    wide = weight.float()
    scale = 1.0 / wide.abs().mean().clamp_(min=1e-5)
    return (wide * scale).round_().clamp_(-1, 1).to(torch.int8), (1.0 / scale).item()


def i2_s(trits: torch.Tensor) -> torch.Tensor:
    codes = (trits + 1).to(torch.uint8).view(-1, 4, 32)
    return codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]


def pairs(trits: torch.Tensor) -> torch.Tensor:
    """Return the bytes of two pairs each: int8 [rows, cols] -> uint8 [rows, cols / 4]."""
    codes = (trits + 1).to(torch.uint8).unflatten(1, (-1, 4))
    return 48 * codes[..., 0] + 16 * codes[..., 1] + 3 * codes[..., 2] + codes[..., 3]


def tl1(trits: torch.Tensor, tile: Tile) -> torch.Tensor:
    rows, by = trits.shape[0], 256 // tile.step
    steps = (rows // tile.rows, tile.rows // tile.step, tile.step // 16, 16, -1, tile.cols // by, by // 4)
    return pairs(trits).view(steps).permute(0, 4, 1, 5, 2, 6, 3).contiguous()


def of_32_rows(by_row: torch.Tensor, tile: Tile, step: int) -> torch.Tensor:
    """Put bytes of rows into the order of TL2: tiles, 32 rows, chunks of 32 bytes."""
    shape = (by_row.shape[0] // tile.rows, tile.rows // 32, 2, 2, 8, -1, step)
    return by_row.reshape(shape).permute(0, 5, 1, 6, 3, 2, 4).contiguous().view(-1)


def tl2(trits: torch.Tensor, tile: Tile) -> torch.Tensor:
    split = trits.shape[1] - trits.shape[1] % tile.cols
    thirds = trits[:, :split].unflatten(1, (-1, 3))
    triples = 9 * thirds[..., 0] + 3 * thirds[..., 1] + thirds[..., 2]
    sizes = triples.abs().to(torch.uint8).unflatten(1, (-1, 2))
    nibbles = of_32_rows(sizes[..., 0] << 4 | sizes[..., 1], tile, tile.cols // 6)
    negative = (triples < 0).to(torch.int32).reshape(trits.shape[0] // 32, 2, 16, -1, 8)
    places = torch.tensor([[15 - 2 * q - h for q in range(8)] for h in range(2)], dtype=torch.int32)
    words = (negative << places[:, None, None, :]).sum(dim=(1, 4), dtype=torch.int32).to(torch.int16)
    shape = (trits.shape[0] // tile.rows, tile.rows // 32, 16, -1, tile.cols // 24)
    signs = words.reshape(shape).permute(0, 3, 1, 4, 2).contiguous().view(torch.uint8).view(-1)
    parts = [nibbles, signs]
    if split < trits.shape[1]:
        parts.append(of_32_rows(pairs(trits[:, split:]), tile, 8))
    return torch.cat(parts)


def of_blocks(codes: torch.Tensor, trits: torch.Tensor) -> torch.Tensor:
    """Put d behind the codes of each block of 256: 1, or 0 for a block of zeros."""
    d = trits.view(-1, 256).any(dim=1).half().unsqueeze(1).view(torch.uint8)
    return torch.cat([codes, d], dim=1).view(-1)


def tq1_0(trits: torch.Tensor) -> torch.Tensor:
    blocks = (trits + 1).to(torch.int32).view(-1, 256)
    powers = torch.tensor([81, 27, 9, 3, 1], dtype=torch.int32)[:, None]
    parts = []
    for first, last, width in ((0, 160, 32), (160, 240, 16), (240, 256, 4)):
        digits = blocks[:, first:last].view(len(blocks), -1, width)
        parts.append((digits * powers[: digits.shape[1]]).sum(1, dtype=torch.int32))
    return of_blocks(((256 * torch.cat(parts, dim=1) + 242) // 243).to(torch.uint8), trits)


def tq2_0(trits: torch.Tensor) -> torch.Tensor:
    codes = (trits + 1).to(torch.uint8).view(-1, 2, 4, 32)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return of_blocks(packed.flatten(1), trits)


def pack(weight: torch.Tensor, kind: str) -> bytes:
    """Return the bytes of a tensor; those of TQ with d = 1, followed by the multiplier."""
    trits, multiplier = absmean(weight)
    if kind.startswith("tq"):
        packed = (tq1_0 if kind == "tq1_0" else tq2_0)(trits)
        return packed.numpy().tobytes() + torch.tensor([multiplier]).numpy().tobytes()
    tile = None if kind == "i2_s" else default_tile(kind.upper(), *trits.shape)
    packed = i2_s(trits) if tile is None else (tl1 if kind == "tl1" else tl2)(trits, tile)
    room = ggml_types.tl2_nbytes(tuple(trits.shape)) - 32 if kind == "tl2" else packed.numel()
    tail = torch.tensor([multiplier]).numpy().tobytes() + bytes(28)
    return packed.numpy().tobytes() + bytes(room - packed.numel()) + tail


def main() -> None:
    source, out, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if len(sys.argv) > 4:
        torch.set_num_threads(int(sys.argv[4]))
    names = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    with open(out, "wb") as file:
        for shard in sorted(set(names.values())):
            with safe_open(source / shard, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  not a dict
                    tensor = tensors.get_tensor(name)
                    if name.endswith("proj.weight"):
                        file.write(pack(tensor, kind))
                    else:
                        file.write((tensor.half() if tensor.dim() > 1 else tensor.float()).numpy().tobytes())


if __name__ == "__main__":
    main()
