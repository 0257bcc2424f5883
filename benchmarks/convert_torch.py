"""What convert_speed.py measures beside: the same work in plain torch, tensor after tensor, without a GGUF header.

    python benchmarks/convert_torch.py CHECKPOINT OUT i2_s|tl1|tl2 [THREADS]

Absmean, rounding and packing as tensor operations, embeddings as float16. The sum of |w| is torch's, in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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


def pack(weight: torch.Tensor, kind: str) -> bytes:
    trits, multiplier = absmean(weight)
    tile = None if kind == "i2_s" else default_tile(kind.upper(), *trits.shape)
    packed = i2_s(trits) if tile is None else (tl1 if kind == "tl1" else tl2)(trits, tile)
    return packed.numpy().tobytes() + torch.tensor([multiplier]).numpy().tobytes() + bytes(28)


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
