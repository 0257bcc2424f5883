"""bitconv bench: tokens per second, each as a fraction of what the machine allows."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bitconv.cli.options import placement_options
from bitconv.cli.state import State, state_options

if TYPE_CHECKING:
    from bitconv.runtime.bench import KernelRow, Limits, Row


class Numbers(click.ParamType):
    """One or more whole numbers with commas between them."""

    name = "n[,n...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers; a usage error for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = (-1,)
        if min(numbers) < 0:
            self.fail(f"{value!r} is not a list of whole numbers such as 128,512", param, ctx)
        return numbers


@click.command(epilog="Example: bitconv bench model-i2_s.gguf -p 128,512 -n 64 -t 1,2")
@click.argument("words", nargs=-1, metavar="[MODEL]")
@click.option("-m", "--model", metavar="FILE", help="The GGUF file, instead of the first argument.")
@click.option("-p", "--n-prompt", type=Numbers(), default="512", show_default=True, help="Prompt sizes; 0 is none.")
@click.option("-n", "--n-gen", type=Numbers(), default="128", show_default=True, help="Generated tokens; 0 is none.")
@click.option("-d", "--n-depth", type=click.IntRange(min=0), default=0, help="Tokens in the cache before each run.")
@click.option("-t", "--threads", type=Numbers(), help="Thread counts; default: the cores this process may use.")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each.")
@click.option("--isa", metavar="NAME", help="Instruction set of the kernels; default: the best.")
@placement_options
@click.option("--kernels", is_flag=True, help="Time each ternary type and shape alone instead.")
@click.option("-o", "--output", type=click.Choice(["md", "json", "csv"]), default="md", help="Form of the result.")
@state_options
@click.pass_obj
def bench(
    state: State,
    words: tuple[str, ...],
    model: str | None,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: int,
    threads: tuple[int, ...] | None,
    repetitions: int,
    isa: str | None,
    no_mmap: bool,
    mlock: bool,
    kernels: bool,
    output: str,
) -> None:
    """Measure prompt processing (pp) and text generation (tg).

    The machine is measured in the same process, before and after: how fast it reads memory and multiplies int8.
    Each result is printed as a fraction of that limit: a generated token must read all weights and its part of
    the cache once, a prompt token costs the multiply-adds of its matrices.
    """
    import bitconv
    from bitconv.runtime import bench as runs

    paths = [*words, *([model] if model else [])]
    if len(paths) != 1:
        raise click.UsageError("give one model: bitconv bench MODEL.gguf")
    loaded = bitconv.load(paths[0], isa=isa, mmap=not no_mmap, mlock=mlock)
    if kernels:
        sizes = tuple(n for n in (1, *n_prompt) if n)
        found, limit = runs.bench_kernels(loaded, tokens=sizes, threads=max(threads or (loaded.threads,)))
        _write(output, found, [limit], _kernel_cells)
        return
    with state.progress("bench", "run") as progress:
        rows, limits = runs.bench(
            loaded, prompts=n_prompt, generations=n_gen, depth=n_depth, threads=threads or (),
            repetitions=repetitions, progress=progress,
        )  # fmt: skip
    _write(output, rows, limits, _cells)


def _cells(row: Row) -> dict[str, str]:
    return {
        "model": row.model,
        "type": row.type,
        "size": f"{row.bytes / 2**20:.0f} MiB",
        "params": f"{row.params / 1e9:.2f} B",
        "isa": row.isa,
        "threads": str(row.threads),
        "test": row.test,
        "t/s": f"{row.tokens_per_second:.2f} ± {row.stddev:.2f}",
        "of the limit": _percent(row.fraction),
    }


def _kernel_cells(row: KernelRow) -> dict[str, str]:
    return {
        "kernel": row.kernel,
        "type": row.type,
        "rows x cols": f"{row.rows} x {row.cols}",
        "tokens": str(row.tokens),
        "threads": str(row.threads),
        "rate": f"{row.giga_per_second:.1f} {row.unit}",
        "of the limit": _percent(row.fraction),
    }


def _percent(fraction: float | None) -> str:
    if fraction is None:
        return "unknown"
    return f"{100 * fraction:.0f} %" + (" (the limit is wrong: it was exceeded)" if fraction > 1 else "")


def _write(output: str, rows: Sequence[Any], limits: Sequence[Limits], cells: Any) -> None:
    if output == "json":
        click.echo(json.dumps({"rows": [asdict(row) for row in rows], "limits": [asdict(one) for one in limits]}))
        return
    if output == "csv":
        writer = csv.DictWriter(sys.stdout, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        return
    table = [cells(row) for row in rows]
    click.echo("| " + " | ".join(table[0]) + " |")
    click.echo("|" + "---|" * len(table[0]))
    for line in table:
        click.echo("| " + " | ".join(line.values()) + " |")
    click.echo()
    for one in limits:
        peak = f"{one.multiply_add / 1e9:.0f} GMAC/s of int8" if one.multiply_add else "an unknown int8 peak"
        click.echo(f"Limits with {one.threads} threads: {one.read / 1e9:.1f} GB/s of reading, {peak}.")
