"""How fast a model runs here, beside what this machine can do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitconv import _kernels
from bitconv.errors import InputError
from bitconv.models import LINEARS

if TYPE_CHECKING:
    from bitconv.runtime.model import Context, Model

_STREAMS = (1, 2, 3, 4, 6)
_PEAK_TRIES = 20


@dataclass(frozen=True)
class Limits:
    """What the machine reached: bytes a second of sequential reading, int8 multiply-adds a second (0: unknown)."""

    threads: int
    read: float
    multiply_add: float

    def best(self, other: Limits) -> Limits:
        """Return the larger of two measurements, taken before and after the runs."""
        return Limits(self.threads, max(self.read, other.read), max(self.multiply_add, other.multiply_add))


@dataclass(frozen=True)
class Row:
    """One result, named as llama-bench names it: pp512 is a prompt of 512 tokens, tg128 are 128 generated ones.

    limit: tokens a second that the machine's limits allow; fraction: of that limit, None where it is unknown.
    """

    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    threads: int
    isa: str
    type: str
    model: str
    params: int
    bytes: int
    tokens_per_second: float
    stddev: float
    limit: float | None
    fraction: float | None


@dataclass(frozen=True)
class KernelRow:
    """One product alone: decode of one token is held to reading (GB/s), prefill to int8 arithmetic (GMAC/s)."""

    kernel: str
    type: str
    rows: int
    cols: int
    tokens: int
    threads: int
    giga_per_second: float
    unit: str
    fraction: float | None


def measure_limits(threads: int, isa: str) -> Limits:
    """Measure this machine now: the best of all reading patterns and of 20 runs of the int8 loop."""
    buffer = np.ones(_beyond_the_caches(), dtype=np.uint8)
    patterns = [(t, streams) for t in range(1, threads + 1) for streams in _STREAMS]
    read = max(_kernels.read_bandwidth(buffer, t, streams) for _ in range(2) for t, streams in patterns)
    return Limits(threads, read, max(_kernels.int8_peak(isa, threads) for _ in range(_PEAK_TRIES)))


def _beyond_the_caches() -> int:
    """Bytes of a buffer that is eight times the last-level cache: 64 MiB to 1 GiB."""
    sizes = [1 << 25]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 0)
        if factor and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * factor)
    return min(max(8 * max(sizes), 1 << 26), 1 << 30)


def weight_bytes(model: Model) -> int:
    """Bytes of weights that each decoded token must read: all blocks, and the matrix of the logits."""
    head = "token_embd.weight" if model.hyperparameters.tied_head else "output.weight"
    return sum(i.nbytes for name, i in model.gguf.tensors.items() if name.startswith("blk.") or name == head)


def cache_bytes(model: Model, position: int) -> int:
    """Bytes of keys and values that a token at this position reads."""
    hp = model.hyperparameters
    block = _kernels.cache_block_bytes(hp.head_dim, _kernels.CACHE_TYPES[model.cache_type])
    return position * hp.n_layers * hp.n_kv_heads * block // _kernels.KEYS


def multiply_adds(model: Model) -> int:
    """Multiply-adds of the linear layers for one token."""
    tensors = model.gguf.tensors
    names = (f"blk.{n}.{linear}.weight" for n in range(model.hyperparameters.n_layers) for linear in LINEARS)
    return sum(tensors[name].shape[0] * tensors[name].shape[1] for name in names)


def bench(
    model: Model,
    *,
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    depth: int = 0,
    threads: Sequence[int] = (),
    repetitions: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], list[Limits]]:
    """Time prompts and generations of random tokens.

    depth: tokens in the cache before each run. threads: default those of the model. Each measurement is repeated
    after a warm-up; mean and standard deviation are of the repetitions. The machine's limits are measured before and
    after, in the same process. InputError when a size is out of range.
    """
    tests = [(n, 0) for n in prompts if n] + [(0, n) for n in generations if n]
    teams = list(threads) or [model.threads]
    if min([n for test in tests for n in test] + [depth, repetitions - 1, *(t - 1 for t in teams)]) < 0 or not tests:
        raise InputError("a size is out of range\ngive positive numbers of tokens, threads and repetitions")
    limits = {t: measure_limits(t, model.isa) for t in teams}
    runs: dict[tuple[int, int, int], list[float]] = {}
    total = len(teams) * len(tests) * (repetitions + 1)
    before = model.threads
    context = model.context(depth + max(max(test) for test in tests))
    try:
        for done, (team, test, repetition) in enumerate(_schedule(teams, tests, repetitions)):
            model.threads = team
            seconds = _time(context, test, depth)
            if repetition >= 0:
                runs.setdefault((team, *test), []).append(max(test) / seconds)
            if progress:
                progress(done + 1, total)
    finally:
        model.threads = before
    limits = {t: found.best(measure_limits(t, model.isa)) for t, found in limits.items()}
    rows = [_row(model, limits[team], n_prompt, n_gen, depth, got) for (team, n_prompt, n_gen), got in runs.items()]
    return rows, list(limits.values())


def _schedule(
    teams: Sequence[int], tests: Sequence[tuple[int, int]], repetitions: int
) -> Iterator[tuple[int, tuple[int, int], int]]:
    """Warm-ups first (repetition -1), then the repetitions interleaved, so that a busy phase hits all tests alike."""
    for repetition in range(-1, repetitions):
        for team in teams:
            for test in tests:
                yield team, test, repetition


def _time(context: Context, test: tuple[int, int], depth: int) -> float:
    rng = np.random.default_rng(0)
    n_prompt, n_gen = test
    vocab = context.model.vocab_size
    context.truncate(min(depth, context.n_past))
    if context.n_past < depth:
        context.forward(rng.integers(0, vocab, depth - context.n_past).tolist(), logits="none")
    tokens = rng.integers(0, vocab, max(test)).tolist()
    start = time.perf_counter()
    if n_prompt:
        context.forward(tokens)
    for token in tokens[:n_gen]:
        context.forward([token])
    return time.perf_counter() - start


def _row(model: Model, limits: Limits, n_prompt: int, n_gen: int, depth: int, got: Sequence[float]) -> Row:
    mean = statistics.fmean(got)
    limit = None
    if n_gen:
        limit = limits.read / (weight_bytes(model) + cache_bytes(model, depth + n_gen // 2))
    elif limits.multiply_add:
        limit = limits.multiply_add / multiply_adds(model)
    blocks = [i for name, i in model.gguf.tensors.items() if name.startswith("blk.") and len(i.shape) == 2]
    types = sorted({info.type_name for info in blocks})
    name = f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"
    return Row(
        test=name + (f" @ d{depth}" if depth else ""), n_prompt=n_prompt, n_gen=n_gen, n_depth=depth,
        threads=limits.threads, isa=model.isa, type="+".join(types), model=model.path.name, params=model.n_params,
        bytes=model.gguf.size, tokens_per_second=mean, stddev=statistics.stdev(got) if len(got) > 1 else 0.0,
        limit=limit, fraction=mean / limit if limit else None,
    )  # fmt: skip


def bench_kernels(
    model: Model, *, tokens: Sequence[int] = (1, 128, 512), threads: int | None = None, repetitions: int = 5
) -> tuple[list[KernelRow], Limits]:
    """Time the product of every distinct ternary type and shape of a model alone, on its own weights."""
    team = threads or model.threads
    limits = measure_limits(team, model.isa)
    shapes: dict[tuple[int, int, int], str] = {}
    for name in sorted(model.ternary):
        _, rows, cols, type_id, _, _ = model.weight(name)
        shapes.setdefault((type_id, rows, cols), name)
    found = []
    rng = np.random.default_rng(0)
    for (type_id, rows, cols), name in shapes.items():
        data, _, _, _, _, tiles = model.weight(name)
        for n in tokens:
            codes = rng.integers(-127, 128, (n, cols), dtype=np.int8)
            seconds = _kernels.time_linear(data, rows, cols, type_id, codes, model.isa, team, tiles, repetitions)
            found.append((name, type_id, rows, cols, n, seconds, data.nbytes))
    limits = limits.best(measure_limits(team, model.isa))
    return [_kernel_row(model, limits, *one) for one in found], limits


def _kernel_row(
    model: Model,
    limits: Limits,
    name: str,
    type_id: int,
    rows: int,
    cols: int,
    tokens: int,
    seconds: float,
    nbytes: int,
) -> KernelRow:
    decode = tokens < _kernels.GEMM_TOKENS
    rate = (nbytes if decode else rows * cols * tokens) / seconds
    limit = limits.read if decode else limits.multiply_add
    kernel = _kernels.kernel_names(model.isa, type_id)[0 if decode else 1]
    type_name = model.gguf.tensors[f"{name}.weight"].type_name
    return KernelRow(
        kernel, type_name, rows, cols, tokens, limits.threads, rate / 1e9, "GB/s" if decode else "GMAC/s",
        rate / limit if limit else None,
    )  # fmt: skip
