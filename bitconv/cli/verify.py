"""bitconv verify: is a GGUF file sound, and does it hold what another file or its checkpoint holds?"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitconv.cli.inspect import printable, table
from bitconv.cli.options import json_option, layout_options
from bitconv.cli.state import State, state_options

if TYPE_CHECKING:
    from bitconv.pipeline.verify import TensorCheck, VerifyReport


@click.command(epilog="Example: bitconv verify model-tl2.gguf model-i2_s.gguf")
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", required=False)
@click.option("--tensors", metavar="GLOB", help="Look only at tensors with such names, for example 'blk.0.*'.")
@layout_options
@click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt checkpoints, with torch's weights_only.")
@json_option
@state_options
@click.pass_obj
def verify(
    state: State, a: str, b: str | None, tensors: str | None, allow_pickle: bool, as_json: bool, **options: Any
) -> None:
    """Check a GGUF file, alone or against another.

    A alone: every rule of its tensor types, and a table of the ternary matrices with their multipliers and shares of
    weights. With B, a GGUF file or a checkpoint, every trit and every multiplier must be the same; dense tensors
    may be rounded to their type.

    Exit code 1 when A and B differ, 4 when A or B is damaged.
    """
    import bitconv

    with state.progress("verify", "B") as progress:
        report = bitconv.verify(a, b, tensors=tensors, allow_pickle=allow_pickle, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(as_object(report), default=str))
    else:
        for line in lines(report):
            click.echo(line)
    report.raise_if_failed()


def check_conversion(state: State, path: Path, src: str, *, allow_pickle: bool = False) -> None:
    """Compare a file just converted with its checkpoint; rounding was asked for and is no difference here."""
    import bitconv

    with state.progress("verify", "B") as progress:
        report = bitconv.verify(path, src, allow_pickle=allow_pickle, progress=progress)
    for line in summary(report):
        state.note(line)
    report.raise_if_failed(rounding=True)


def as_object(report: VerifyReport) -> dict[str, Any]:
    """The object of --json."""
    return {
        **asdict(report),
        "ok": report.ok,
        "sound": report.sound,
        "equal": report.equal,
        "only_rounding": report.only_rounding,
    }


def lines(report: VerifyReport) -> list[str]:
    """The text form: a table of the matrices, what is wrong, a summary."""
    rows = [_row(check) for check in report.tensors if check.multiplier is not None]
    head = ("tensor", "type", "shape", "multiplier", "-1", "0", "+1", "result")
    found = table([head, *rows], right=(3, 4, 5, 6)) if rows else []
    for check in report.tensors:
        message = printable(check.message or "")
        if message:
            name = "" if check.name in message else f"{check.name}: "
            found.append(f"{check.result}: {name}{message}")
    found += [f"malformed: {printable(problem)}" for problem in report.problems]
    return [*found, *_density(report), *summary(report)]


def _density(report: VerifyReport) -> list[str]:
    ternary = [check for check in report.tensors if check.multiplier is not None]
    weights = sum(check.shape[0] * check.shape[1] for check in ternary)
    zeros = sum(check.zero or 0 for check in ternary)
    if not weights:
        return []
    return [f"{len(ternary)} ternary matrices, {weights} weights, density {100 * (1 - zeros / weights):.2f} %"]


def summary(report: VerifyReport) -> list[str]:
    """One line with the numbers of results, one with the verdict."""
    results = Counter(check.result for check in report.tensors)
    counts = ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
    text = [f"{report.a}: tensors: {counts}; in {report.seconds:.2f} s"]
    if report.only_rounding:
        failing = sum(check.fails for check in report.tensors)
        text.append(f"all weights are the same; only the multipliers of {failing} tensors are rounded")
    elif report.equal and report.sound:
        text.append(f"same trits and multipliers as {report.b}")
    return text


def _row(check: TensorCheck) -> tuple[str, ...]:
    weights = check.shape[0] * check.shape[1]
    shares = [f"{100 * (count or 0) / weights:.2f} %" for count in (check.negative, check.zero, check.positive)]
    shape = "x".join(map(str, check.shape))
    return (check.name, check.type, shape, f"{check.multiplier:.9g}", *shares, check.result)
