"""Write a runnable random model of a published or dummy layout, straight in a packed type.

    python tools/make_dummy.py "dummy 700M" --type i2_s -o dummy-0.7b.gguf

For benchmarks: the shapes are real, the weights are random. Trits come from a counter-based generator (Philox), so the
bytes are the same on every machine and the matrices the same in every type; two thirds are not zero. The tokenizer is
that of models/tiny, padded with unused tokens. Streaming: memory holds one tensor, also of the 100B layout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bitconv.errors import BitconvError  # noqa: E402
from bitconv.formats.checkpoint import open_checkpoint  # noqa: E402
from bitconv.formats.gguf_writer import GgufWriter  # noqa: E402
from bitconv.formats.hf_tokenizer import read_hf_tokenizer  # noqa: E402
from bitconv.models import LINEARS, Hyperparameters, gguf_tensor_names  # noqa: E402
from bitconv.pipeline.choice import Choice, choose, choose_dense, stored_scale  # noqa: E402
from bitconv.pipeline.metadata import add_metadata  # noqa: E402
from bitconv.tensor_types import tensor_type  # noqa: E402
from bitconv.tensor_types.stored import companion_name  # noqa: E402
from tools.layouts import DUMMIES, LAYOUTS, Layout  # noqa: E402

SCALE = 0.03125  # exact in every type
PIECE = 1 << 21  # weights that a thread makes at a time; they stay in its cache
VOCABULARIES = {"bitnet-b1.58-2B-4T": 128256, "bitnet_b1_58-large": 32002, "bitnet_b1_58-3B": 32002}
VOCABULARIES |= {"Llama3-8B-1.58-100B-tokens": 128256}
VOCABULARIES |= {f"Falcon3-{size}-Instruct-1.58bit": 131072 for size in ("7B", "10B")}


def hyperparameters(layout: Layout) -> Hyperparameters:
    """Return what the runtime needs; what the layout leaves open is that of bitnet.cpp's dummy models."""
    relu2 = layout.name == "bitnet-b1.58-2B-4T"
    return Hyperparameters(
        arch="bitnet-b1.58" if relu2 else "bitnet", n_layers=layout.n_layers, hidden=layout.hidden, ffn=layout.ffn,
        n_heads=layout.n_heads, n_kv_heads=layout.n_kv_heads, head_dim=layout.head_dim,
        vocab=VOCABULARIES.get(layout.name, 32000), context=4096 if relu2 else 2048, rms_eps=1e-5, rope_theta=10000.0,
        rope_style="neox", activation="relu2" if relu2 else "silu", sub_norms=True, tied_head=True,
    )  # fmt: skip


def random_bytes(seed: int, start: int, count: int) -> np.ndarray:
    """Return bytes start to start + count of stream `seed`, a multiple of 32 each; any piece can be made alone."""
    generator = np.random.Philox(key=seed, counter=start // 32)  # one step of the counter makes four words
    return generator.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]


def trits(seed: int, start: int, rows: int, cols: int) -> np.ndarray:
    """Return rows start.. of matrix `seed`: int8 [rows, cols]; byte b of the stream is b % 3 - 1, and 0 for b = 255."""
    first = start * cols
    skip = first % 32
    raw = random_bytes(seed, first - skip, rows * cols + skip)[skip:]
    thirds = raw // np.uint8(3)  # NumPy divides with vector instructions, but does not take remainders so
    thirds *= np.uint8(3)
    values = np.subtract(raw, thirds, out=thirds).view(np.int8)
    values -= 1
    values += raw == 255
    return values.reshape(rows, cols)


def write_linear(
    writer: GgufWriter, name: str, shape: tuple[int, int], choice: Choice, seed: int, threads: int
) -> None:
    """Make and pack one ternary matrix in groups of rows, several at a time, and write it."""
    rows, cols = shape
    kind, tile = choice
    group = kind.row_group(rows, cols, tile)
    step = max(PIECE // cols // group, 1) * group
    packed = np.zeros(kind.nbytes(rows, cols), np.uint8)

    def pack(start: int) -> None:
        kind.pack_into(packed, trits(seed, start, min(step, rows - start), cols), start, rows, SCALE, tile)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(pack, range(0, rows, step)))
    writer.write(name, packed)


def write_matrix(writer: GgufWriter, name: str, shape: tuple[int, int], type_name: str, seed: int) -> None:
    """Write an embedding with uniform values of standard deviation 0.29."""
    kind = tensor_type(type_name)
    rows, cols = shape
    for start in range(0, rows, step := max(PIECE // 4 // cols, 1)):
        count = min(step, rows - start)
        first = start * cols * 2
        skip = first % 32
        words = random_bytes(seed, first - skip, count * cols * 2 + skip)[skip:].view("<u2")
        writer.write(name, kind.pack_rows((words.astype(np.float32) / 65536 - 0.5).reshape(count, cols)))


def make_dummy(layout: Layout, out: Path, type_name: str, embedding: str, threads: int, overwrite: bool) -> None:
    """Write the model; the type of a matrix that cannot have the wanted one falls back as in `bitconv convert`."""
    hp, wanted = hyperparameters(layout), tensor_type(type_name)
    shapes = gguf_tensor_names(hp)
    linears = {name: choose(wanted, *shape) for name, shape in shapes.items() if name.split(".")[-2] in LINEARS}
    head = choose_dense(tensor_type(embedding), hp.vocab, hp.hidden)
    with open_checkpoint(ROOT / "models" / "tiny") as tiny:
        vocabulary = read_hf_tokenizer(tiny, hp.vocab, keep_json=False)
    with GgufWriter(out, hp.arch, overwrite=overwrite) as writer:
        laid = [(choice.type, shapes[name][0], shapes[name][1], choice.tile) for name, choice in linears.items()]
        add_metadata(writer, hp, f"{layout.name}, random", wanted, laid)
        vocabulary.write(writer)
        for name, shape, companion in _declared(shapes, linears):
            dense = head if name == "token_embd.weight" else tensor_type("F32")
            writer.declare(name, shape, linears[name].type.gguf_id if name in linears else dense.gguf_id)
            if companion is not None:
                writer.declare(companion_name(name), (1,), 0)
        for seed, (name, shape, companion) in enumerate(tqdm(list(_declared(shapes, linears)), unit="tensor")):
            if name in linears:
                write_linear(writer, name, (shape[0], shape[1]), linears[name], seed, threads)
            elif name == "token_embd.weight":
                write_matrix(writer, name, (shape[0], shape[1]), head.name, seed)
            else:
                writer.write(name, np.ones(shape, np.float32).view(np.uint8))
            if companion is not None:
                writer.write(companion_name(name), np.array([companion], np.float32).view(np.uint8))
        writer.finish()


def _declared(
    shapes: dict[str, tuple[int, ...]], linears: dict[str, Choice]
) -> Iterator[tuple[str, tuple[int, ...], float | None]]:
    for name, shape in shapes.items():
        yield name, shape, stored_scale(linears[name].type, SCALE)[1] if name in linears else None


def main() -> int:
    """Run the command."""
    names = {layout.name: layout for layout in LAYOUTS if "embedding" not in layout.name}
    names |= {layout.name.removeprefix("dummy "): layout for layout in DUMMIES}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("layout", choices=list(names), metavar="LAYOUT", help=", ".join(names))
    parser.add_argument("--type", default="i2_s", help="tensor type of the linear layers")
    parser.add_argument("--embedding-type", default="f16", help="tensor type of the embedding, which is the head too")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    try:
        make_dummy(names[args.layout], args.out, args.type, args.embedding_type, args.threads, args.overwrite)
    except BitconvError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
