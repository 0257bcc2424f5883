"""How fast a model runs here, beside what this machine can do at best."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitconv import _kernels
from bitconv.errors import InputError
from bitconv.runtime.limits import Limits, Machine
from bitconv.tensor_types import tensor_type

if TYPE_CHECKING:
    from bitconv.runtime.model import Context, Model
    from bitconv.runtime.weights import Weight

_ENOUGH = 1 << 34  # multiply-adds: 0.04 s here


@dataclass(frozen=True)
class Row:
    """One result, named as llama-bench names it: pp512 is a prompt of 512 tokens, tg128 are 128 generated ones.

    tokens_per_second, stddev: mean and standard deviation of the repetitions; median, best: of the same. kernel: the C
    functions of the ternary matrices. limit: tokens a second that the machine's limits allow, None where it is unknown
    (also where the weights would stay in the caches); fraction: what the median reaches of it; exceeded: whether any
    repetition was faster, which means that the limit was measured too low. nearby: of generations, what each repetition
    reached of the best reading just before and after it, the median; None where the limit is.
    """

    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    threads: int
    isa: str
    kernel: str
    type: str
    model: str
    params: int
    bytes: int
    tokens_per_second: float
    stddev: float
    median: float
    best: float
    limit: float | None
    fraction: float | None
    exceeded: bool
    nearby: float | None


@dataclass(frozen=True)
class KernelRow:
    """One product alone: decode of one token is held to reading (GB/s), prefill to int8 arithmetic (GMAC/s).

    giga_per_second: the median of the repetitions; best: the fastest of them.
    """

    kernel: str
    type: str
    model: str
    rows: int
    cols: int
    tokens: int
    threads: int
    giga_per_second: float
    best: float
    unit: str
    fraction: float | None
    exceeded: bool


class Run(NamedTuple):
    """Tokens a second, and the best reading (bytes a second) just before and after."""

    speed: float
    reading: float


def cache_bytes(model: Model, n_gen: int, depth: int) -> float:
    """Bytes of keys and values that a token reads on average, of n_gen generated after `depth` others."""
    block = model.engine.cache_bytes(_kernels.KEYS, _kernels.CACHE_TYPES[model.cache_type])
    return (depth + (n_gen + 1) / 2) * block / _kernels.KEYS


def multiply_adds(model: Model) -> int:
    """Multiply-adds of the ternary matrices for one token."""
    return sum(math.prod(model.gguf.tensors[f"{name}.weight"].shape) for name in model.ternary)


def bench(
    models: Sequence[Model],
    *,
    prompts: Sequence[int] = (512,),
    generations: Sequence[int] = (128,),
    depth: int = 0,
    threads: Sequence[int] = (),
    repetitions: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], list[Limits]]:
    """Time prompts and generations of random tokens.

    depth: tokens in the cache before each run. threads: default those of the first model. After a warm-up every test
    of every model is run once a repetition, so that a busy phase of the machine hits all alike; the models take turns
    in being first. The machine's limits are measured before, between the runs and after. InputError when a size is out
    of range.
    """
    tests = [(n, 0) for n in prompts if n] + [(0, n) for n in generations if n]
    _check(models)
    teams = list(threads) or [models[0].threads]
    if min([n for test in tests for n in test] + [depth, repetitions - 1, *(t - 1 for t in teams)]) < 0 or not tests:
        raise InputError("a size is out of range\ngive positive numbers of tokens, threads and repetitions")
    machine = _machine(models, teams)
    runs: dict[tuple[int, tuple[int, int], int], list[Run]] = {}
    total = len(teams) * len(tests) * len(models) * (repetitions + 1)
    contexts = [model.context(depth + 1 + max(map(max, tests))) for model in models]
    done = 0
    for repetition in range(-1, repetitions):  # -1: the warm-up
        for team in teams:
            reading = machine.refresh(team)
            for test, turn in itertools.product(tests, range(len(models))):
                i = (repetition + turn) % len(models)
                speed, before = max(test) / _time(contexts[i], test, depth, team), reading
                if test[1]:
                    reading = machine.refresh(team)
                if repetition >= 0:
                    runs.setdefault((team, test, i), []).append(Run(speed, max(before, reading)))
                done += 1
                if progress:
                    progress(done, total)
    machine.search()
    rows = [
        _row(models[i], machine, team, test, depth, runs[team, test, i])
        for i, team, test in itertools.product(range(len(models)), teams, tests)
    ]
    return rows, [machine.limits(team) for team in teams]


def _check(models: Sequence[Model]) -> None:
    if len({model.isa for model in models}) != 1:
        raise InputError("there must be models, all with the same instruction set\ngive one or more files")


def _machine(models: Sequence[Model], teams: Sequence[int]) -> Machine:
    files = [model.gguf.tensor_data() for model in models]
    machine = Machine(models[0].isa, teams, max(files, key=len))
    machine.search()
    return machine


def _time(context: Context, test: tuple[int, int], depth: int, team: int) -> float:
    rng = np.random.default_rng(0)
    n_prompt, n_gen = test
    vocab = context.model.vocab_size
    context.truncate(min(depth, context.n_past))
    before, context.model.threads = context.model.threads, team
    try:
        if context.n_past < depth:
            context.forward(rng.integers(0, vocab, depth - context.n_past).tolist(), logits="none")
        tokens = rng.integers(0, vocab, max(test)).tolist()
        if n_gen:  # a step that is not timed: the first after the limits were measured is slow
            context.forward(tokens[:1], logits="none")
            context.truncate(depth)
        start = time.perf_counter()
        if n_prompt:
            context.forward(tokens)
        for token in tokens[:n_gen]:
            context.forward([token])
        return time.perf_counter() - start
    finally:
        context.model.threads = before


def _row(
    model: Model, machine: Machine, team: int, test: tuple[int, int], depth: int, runs: Sequence[Run]
) -> Row:  # fmt: skip
    (n_prompt, n_gen), limits, limit, nearby = test, machine.limits(team), None, None
    weights, work, got = model.engine.weight_bytes(), multiply_adds(model), [run.speed for run in runs]
    if n_gen and weights > 2 * machine.caches:  # smaller weights stay in the caches, partly
        nbytes = weights + cache_bytes(model, n_gen, depth)
        limit = limits.read / nbytes
        nearby = statistics.median(run.speed * nbytes / run.reading for run in runs)
    elif n_prompt and work and limits.multiply_add:
        limit = limits.multiply_add / work
    tensors = {model.gguf.tensors[f"{name}.weight"] for name in model.ternary}
    kinds = sorted({(info.type_name, info.type_id) for info in tensors})
    name = f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"
    median, best = statistics.median(got), max(got)
    return Row(
        test=name + (f" @ d{depth}" if depth else ""), n_prompt=n_prompt, n_gen=n_gen, n_depth=depth, threads=team,
        isa=model.isa, kernel=" + ".join(_kernels.kernel_name(model.isa, kind, n_prompt or 1) for _, kind in kinds),
        type="+".join(kind for kind, _ in kinds), model=model.path.name, params=model.n_params, bytes=model.gguf.size,
        tokens_per_second=statistics.fmean(got), stddev=statistics.stdev(got) if len(got) > 1 else 0.0, median=median,
        best=best, limit=limit, fraction=median / limit if limit else None, exceeded=bool(limit and best > limit),
        nearby=nearby,
    )  # fmt: skip


def bench_kernels(
    models: Sequence[Model],
    *,
    tokens: Sequence[int] = (1, 128, 512),
    threads: Sequence[int] = (),
    repetitions: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[KernelRow], list[Limits]]:
    """Time the product of every distinct ternary type and shape alone, on the weights of the models.

    One after another, the matrices of a shape are taken layer by layer, after the caches were filled with other memory,
    so that each is read from memory as in a real pass. Prefill, which takes longer, stops after _ENOUGH multiply-adds.
    """
    _check(models)
    teams = list(threads) or [models[0].threads]
    machine = _machine(models, teams)
    cases = [
        (model, shape, found, n)
        for model in models
        for shape, found in _shapes(model).items()
        for n in tokens
    ]
    runs: dict[tuple[int, int], list[float]] = {}
    total, done = len(cases) * len(teams) * (repetitions + 1), 0
    rng = np.random.default_rng(0)
    for repetition in range(-1, repetitions):  # -1: the warm-up
        for team, (i, (model, shape, weights, n)) in itertools.product(teams, enumerate(cases)):
            decode = n < _kernels.GEMM_TOKENS
            codes = rng.integers(-127, 128, (n, shape[2]), dtype=np.int8)
            walked = weights if decode else weights[: max(1, _ENOUGH // (n * shape[1] * shape[2]))]
            machine.refresh(team)
            machine.evict(team)
            seconds = _kernels.time_linears(walked, codes, model.isa, team)
            work = n * shape[1] * shape[2] if not decode else _kernels.weight_bytes(walked[0])
            if repetition >= 0:
                runs.setdefault((i, team), []).append(work * len(walked) / seconds)
            done += 1
            if progress:
                progress(done, total)
    machine.search()
    limits = {team: machine.limits(team) for team in teams}
    rows = [
        _kernel_row(model, shape, n, limits[team], runs[i, team])
        for (i, (model, shape, _, n)), team in itertools.product(enumerate(cases), teams)
    ]
    return rows, list(limits.values())


def _shapes(model: Model) -> dict[tuple[int, int, int], list[Weight]]:
    """(type id, rows, cols) -> the ternary weights of that shape, in the order of a pass."""
    found: dict[tuple[int, int, int], list[Weight]] = {}
    for name in sorted(model.ternary, key=lambda name: (int(name.split(".")[1]), name)):
        weight = model.weight(name)
        found.setdefault((weight[3], weight[1], weight[2]), []).append(weight)
    return found


def _kernel_row(
    model: Model, shape: tuple[int, int, int], tokens: int, limits: Limits, got: Sequence[float]
) -> KernelRow:  # fmt: skip
    decode = tokens < _kernels.GEMM_TOKENS
    limit = limits.read if decode else limits.multiply_add
    type_id, rows, cols = shape
    median, best = statistics.median(got), max(got)
    return KernelRow(
        kernel=_kernels.kernel_name(model.isa, type_id, tokens), type=tensor_type(type_id).name, model=model.path.name,
        rows=rows, cols=cols, tokens=tokens, threads=limits.threads, giga_per_second=median / 1e9, best=best / 1e9,
        unit="GB/s" if decode else "GMAC/s", fraction=median / limit if limit else None,
        exceeded=bool(limit and best > limit),
    )  # fmt: skip
