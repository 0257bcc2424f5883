"""bitconv quantize: a GGUF file becomes one of another tensor type."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from bitconv.cli.convert import TensorTypeName
from bitconv.cli.options import json_option, layout_options, tq_scale_option
from bitconv.cli.state import State, state_options


@click.command(epilog="Example: bitconv quantize model-i2_s.gguf model-tl2.gguf --type tl2")
@click.argument("source", metavar="IN")
@click.argument("rest", metavar="[OUT] [TYPE]", nargs=-1)
@click.option("--type", "kind", type=TensorTypeName(True), help="Linear layers; TYPE says the same.")
@click.option("--embedding-type", type=TensorTypeName(False), help="Token embeddings; default: as they are.")
@click.option(
    "--output-type",
    type=TensorTypeName(False),
    help="Output head, where it is not tied; default: as embeddings.",
)
@click.option(
    "--fallback",
    type=click.Choice(["tl2", "i2_s", "error"]),
    help="For a matrix that has no legal form in the type; default: tl2, and where that has none i2_s.",
)
@tq_scale_option
@layout_options
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads; default: all usable cores.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
@json_option
@state_options
@click.pass_obj
def quantize(
    state: State, source: str, rest: tuple[str, ...], kind: str | None, as_json: bool, **options: Any
) -> None:
    """Rewrite a GGUF file in another tensor type, exactly.

    Its ternary matrices go from any ternary type to any other, or from F32, F16 and BF16. Embeddings, norms and keys
    are carried over. OUT defaults to the name of IN with the new type at its end.

    The order of llama-quantize, IN OUT TYPE, works too.
    """
    import bitconv

    output, kind = _operands(rest, kind)
    with state.progress("quantize", "B") as progress:
        report = bitconv.quantize(source, output, type=kind, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(asdict(report), default=str))
        return
    click.echo(
        f"{report.path}: {report.n_tensors} tensors, {report.type}, {report.bytes_out} bytes, "
        f"from {report.bytes_in} bytes, in {report.seconds:.2f} s"
    )
    if options["tq_scale"] == "f16" and report.type.startswith("TQ"):
        click.echo("multipliers are float16, as llama.cpp reads them")


def _operands(rest: tuple[str, ...], kind: str | None) -> tuple[str | None, str]:
    """Return (OUT or None, type) from what follows IN."""
    if len(rest) > 2 or (len(rest) == 2 and kind is not None):
        raise click.UsageError("give IN, OUT and one type: IN [OUT] --type TYPE, or IN OUT TYPE")
    if kind is not None:
        return (rest[0] if rest else None), kind
    if not rest:
        raise click.UsageError("which type? bitconv quantize IN [OUT] --type TYPE")
    return (rest[0] if len(rest) == 2 else None), TensorTypeName(True).convert(rest[-1], None, None)
