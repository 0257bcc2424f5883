"""bitconv bench: tokens per second, each as a fraction of what the machine allows."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bitconv.cli.options import layout_options, placement_options
from bitconv.cli.state import State, state_options

if TYPE_CHECKING:
    from bitconv.runtime.bench import KernelRow, Limits, Row


BUSY = 0.85  # of the best reading; less between the runs means that others used the memory


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


@click.command(epilog="Example: bitconv bench model-i2_s.gguf model-tl2.gguf -p 128,512 -n 64 -t 1,2")
@click.argument("words", nargs=-1, metavar="MODEL...")
@click.option("-m", "--model", multiple=True, metavar="FILE", help="A GGUF file more; may be repeated.")
@click.option("-p", "--n-prompt", type=Numbers(), default="512", show_default=True, help="Prompt sizes; 0 is none.")
@click.option("-n", "--n-gen", type=Numbers(), default="128", show_default=True, help="Generated tokens; 0 is none.")
@click.option("-d", "--n-depth", type=click.IntRange(min=0), default=0, help="Tokens in the cache before each run.")
@click.option("-t", "--threads", type=Numbers(), help="Thread counts; default: one for each core this process may use.")
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each.")
@click.option("--isa", metavar="NAME", help="Instruction set of the kernels; default: the best.")
@click.option("-ctk", "--cache-type-k", default="f16", metavar="TYPE", help="Type of the KV cache; default: f16.")
@placement_options
@click.option("--kernels", is_flag=True, help="Time each ternary type and shape alone instead.")
@click.option("-o", "--output", type=click.Choice(["md", "json", "csv"]), default="md", help="Form of the result.")
@layout_options
@state_options
@click.pass_obj
def bench(
    state: State,
    words: tuple[str, ...],
    model: tuple[str, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    n_depth: int,
    threads: tuple[int, ...] | None,
    repetitions: int,
    isa: str | None,
    cache_type_k: Any,
    no_mmap: bool,
    mlock: bool,
    kernels: bool,
    output: str,
    **layout: Any,
) -> None:
    """Measure prompt processing (pp) and text generation (tg).

    Models are run in turn, repetition by repetition, so that they can be compared. The machine is measured in the
    same process, before, between and after: how fast it reads memory, by whichever of many patterns is best, and
    multiplies int8. Each median is printed as a fraction of that limit: a generated token must read all weights and
    its part of the cache once, a prompt token costs the multiply-adds of its matrices. Generation is also held to what
    was read just before and after each run, since memory may be faster at one time than at another.

    --kernels: one token reads the matrices of all layers from memory, more tokens repeat one matrix.
    """
    import bitconv
    from bitconv.runtime import bench as runs

    paths = [*words, *model]
    if not paths:
        raise click.UsageError("give a model: bitconv bench MODEL.gguf")
    options = {"isa": isa, "cache_type": cache_type_k, "mmap": not no_mmap, "mlock": mlock, **layout}
    loaded = [bitconv.load(path, **options) for path in paths]
    with state.progress("bench", "run") as progress:
        if kernels:
            sizes = tuple(sorted({1, *n_prompt} - {0}))
            found, limits = runs.bench_kernels(
                loaded, tokens=sizes, threads=threads or (), repetitions=repetitions, progress=progress
            )
        else:
            rows, limits = runs.bench(
                loaded, prompts=n_prompt, generations=n_gen, depth=n_depth, threads=threads or (),
                repetitions=repetitions, progress=progress,
            )  # fmt: skip
    if kernels:
        _write(output, found, limits, _kernel_cells)
    else:
        _write(output, rows, limits, _cells)


def _cells(row: Row) -> dict[str, str]:
    return {
        "model": row.model,
        "type": row.type,
        "size": f"{row.bytes / 2**20:.0f} MiB",
        "params": f"{row.params / 1e9:.2f} B",
        "kernel": row.kernel,
        "threads": str(row.threads),
        "test": row.test,
        "t/s": f"{row.tokens_per_second:.2f} ± {row.stddev:.2f}",
        "median": f"{row.median:.2f}",
        "of the limit": _percent(row),
        "of reading nearby": "" if row.nearby is None else f"{100 * row.nearby:.0f} %",
    }


def _kernel_cells(row: KernelRow) -> dict[str, str]:
    return {
        "model": row.model,
        "kernel": row.kernel,
        "type": row.type,
        "rows x cols": f"{row.rows} x {row.cols}",
        "tokens": str(row.tokens),
        "threads": str(row.threads),
        "median": f"{row.giga_per_second:.1f} {row.unit}",
        "best": f"{row.best:.1f} {row.unit}",
        "of the limit": _percent(row),
    }


def _percent(row: Row | KernelRow) -> str:
    if row.fraction is None:
        return "unknown"
    return f"{100 * row.fraction:.0f} %" + (" (a run exceeded the limit: it is wrong)" if row.exceeded else "")


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
        click.echo(_sentence(one))


def _sentence(limits: Limits) -> str:
    peak = f"{limits.multiply_add / 1e9:.0f} GMAC/s of int8" if limits.multiply_add else "an unknown int8 peak"
    text = f"Limits with {limits.threads} threads: {limits.read / 1e9:.1f} GB/s of reading ({limits.pattern}), {peak}."
    if limits.read_median < BUSY * limits.read:
        text += f" The machine was busy: between the runs reading reached {limits.read_median / 1e9:.1f} GB/s (median)."
    return text
