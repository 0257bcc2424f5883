"""Measure the conversion of a random bf16 checkpoint of the 0.7B layout beside `cp` of it and beside plain torch.

    python benchmarks/convert_speed.py --folder /a/disk --runs 5

Every run copies the checkpoint with cp, converts it with the command `bitconv convert`, a process of its own from start
to end, and with convert_torch.py; outputs are removed in between and the page cache is warm. Speeds are megabytes of
checkpoint a second; a ratio is cp's time through the other's of the same run, and the median of the runs is printed.
Peak memory is the "maximum resident set size" of the process. Another load on the machine shows in the load average.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "f16")
TORCH_TYPES = ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0")
HIDDEN, FFN, LAYERS, HEADS, VOCAB = 1536, 4096, 24, 16, 32002
CONFIG = {
    "architectures": ["BitnetForCausalLM"], "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "vocab_size": VOCAB, "weight_bits": 1, "input_bits": 8, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


class Measured(NamedTuple):
    """One process: seconds from start to end, and bytes of its largest resident set."""

    seconds: float
    peak: int


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor, as 1bitLLM names them."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        for norm, size in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN),
                           ("self_attn.inner_attn_ln", HIDDEN), ("mlp.ffn_layernorm", FFN)):  # fmt: skip
            yield f"{layer}{norm}.weight", (size,)
        for role in "qkvo":
            yield f"{layer}self_attn.{role}_proj.weight", (HIDDEN, HIDDEN)
        for role in ("gate", "up"):
            yield f"{layer}mlp.{role}_proj.weight", (FFN, HIDDEN)
        yield f"{layer}mlp.down_proj.weight", (HIDDEN, FFN)
    yield "model.norm.weight", (HIDDEN,)


def make_checkpoint(folder: Path, shards: int = 3) -> Path:
    """Write normal random weights as bfloat16 in three shards, with the tokenizer of models/tiny."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/tiny" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    tensors, weight_map = list(shapes()), {}
    for i in range(shards):
        part = tensors[len(tensors) * i // shards : len(tensors) * (i + 1) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {}, 0
        for name, shape in part:
            nbytes = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
            offset += nbytes
            weight_map[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for _, shape in part:
                values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02) + np.float32(len(shape) == 1)
                out.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def run(command: list[str]) -> Measured:
    """Run a process to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return Measured(seconds, usage.ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to read and write; default: the folder for temporary files")
    parser.add_argument("--checkpoint", type=Path, help="convert this one; default: a random one of the 0.7B layout")
    parser.add_argument("--types", default=",".join(TYPES), help=f"default: {','.join(TYPES)}")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of bitconv and of torch; default: theirs")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="only write the random checkpoint")
    arguments = parser.parse_args()
    if arguments.make:
        make_checkpoint(arguments.make)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="convert-speed-") as name:
        folder = Path(name)
        source = arguments.checkpoint or folder / "source"
        if arguments.checkpoint is None:
            subprocess.run([sys.executable, __file__, "--make", str(source)], check=True)
        files = [file for file in source.rglob("*") if file.is_file()]  # what cp -r copies
        nbytes = sum(file.stat().st_size for file in files)
        # warm the page cache; in a process of its own, like the making: children inherit this one's peak memory
        subprocess.run(["cat", *map(str, files)], stdout=subprocess.DEVNULL, check=True)
        print(f"{nbytes / 1e6:.0f} MB, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        measure(source, nbytes, folder, arguments)
        print(f"load average at the end {os.getloadavg()[0]:.1f}")


def measure(source: Path, nbytes: int, folder: Path, arguments: argparse.Namespace) -> None:
    """Run everything in turn, and print a table."""
    threads = ["--threads", str(arguments.threads)] if arguments.threads else []
    commands: dict[str, list[str]] = {}
    for kind in arguments.types.split(","):
        out = ["--type", kind, "-o", str(folder / "out")]
        commands[f"bitconv {kind}"] = [sys.executable, "-m", "bitconv", "convert", str(source), "-q", *out, *threads]
    for kind in [one for one in arguments.types.split(",") if one in TORCH_TYPES and not arguments.no_torch]:
        script = str(ROOT / "benchmarks/convert_torch.py")
        commands[f"torch {kind}"] = [sys.executable, script, str(source), str(folder / "out"), kind, *threads[1:]]
    found: dict[str, list[Measured]] = {name: [] for name in ("cp", *commands)}
    ratios: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            copied = run(["cp", "-r", str(source), str(folder / "copy")])
            shutil.rmtree(folder / "copy")
            result = run(command)
            (folder / "out").unlink()
            found["cp"].append(copied)
            found[name].append(result)
            ratios[name].append(copied.seconds / result.seconds)
    print(f"{'':16} {'seconds':>8} {'MB/s':>8} {'peak MB':>8} {'of cp':>6}   ratios")
    for name, results in found.items():
        seconds = statistics.median(one.seconds for one in results)
        line = f"{name:16} {seconds:8.2f} {nbytes / 1e6 / seconds:8.0f} {max(one.peak for one in results) / 1e6:8.0f}"
        if name in ratios:
            every = " ".join(f"{one:.2f}" for one in ratios[name])
            line += f" {statistics.median(ratios[name]):6.2f}   {every}"
        print(line)


if __name__ == "__main__":
    main()
