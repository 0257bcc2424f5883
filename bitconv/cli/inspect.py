"""bitconv inspect: what is in a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bitconv.cli.options import CACHE_TYPES, json_option, layout_options
from bitconv.cli.state import State, state_options

if TYPE_CHECKING:
    from bitconv.pipeline.inspect import Inspection


@click.command(epilog="Example: bitconv inspect model-i2_s.gguf --tensors")
@click.argument("file", metavar="FILE")
@click.option("--tensors", is_flag=True, help="List every tensor; counts the weights of ternary ones.")
@click.option("--kv", metavar="KEY", help="Print the whole value of one metadata key and nothing else.")
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(min=1),
    help="Context in tokens that memory is computed for; default: the model's.",
)
@click.option(
    "-ctk",
    "--cache-type-k",
    "cache_type",
    type=click.Choice(CACHE_TYPES),
    default="f16",
    show_default=True,
    help="Type of the KV cache that memory is computed for.",
)
@click.option("--isa", metavar="NAME", help="Instruction set whose kernels are named; default: the best.")
@layout_options
@json_option
@state_options
@click.pass_obj
def inspect(
    state: State, file: str, tensors: bool, kv: str | None, ctx_size: int | None, cache_type: str, isa: str | None,
    as_json: bool, **options: str | None,
) -> None:  # fmt: skip
    """Show what a GGUF file holds.

    Metadata, tokenizer, tensor types with the kernels that run them, memory to run it; --tensors lists every tensor,
    and for ternary ones the scale and the shares of -1, 0 and +1.

    Works also on files that bitconv cannot run, such as vocabularies and unknown tensor types.
    """
    from bitconv.pipeline import inspect as library
    from bitconv.runtime.model import choose_isa

    if kv is not None:
        value = library.metadata_value(file, kv)
        text = value if isinstance(value, str) and not as_json else json.dumps(value, ensure_ascii=False)
        click.echo(printable(text, keep="\n\t"))
        return
    with state.progress("inspect", "B") as progress:
        found = library.inspect(
            file, count_weights=tensors, context=ctx_size, cache_type=cache_type, isa=choose_isa(isa),
            progress=progress, **options,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(as_object(found, tensors), ensure_ascii=False))
        return
    for line in report(found, tensors):
        click.echo(line)


WIDEST = 64


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal might obey."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def table(rows: Sequence[Sequence[Any]], right: Iterable[int] = ()) -> list[str]:
    """Align columns, those in `right` to the right; a cell beyond WIDEST sticks out and widens no other row."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [min(WIDEST, max(len(row[i]) for row in cells)) for i in range(len(cells[0]))] if cells else []
    numbers = set(right)
    return [
        "  "
        + "  ".join(
            c.rjust(w) if i in numbers else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def as_object(found: Inspection, tensors: bool) -> dict[str, Any]:
    """The object of --json; `tensors` only when asked for."""
    value = asdict(found)
    value["metadata"] = {key: {"type": kind, "value": v} for key, (kind, v) in found.metadata.items()}
    if found.memory is not None:
        value["memory"]["total"] = found.memory.total
    if not tensors:
        del value["tensors"]
    return value


def report(found: Inspection, tensors: bool) -> list[str]:
    """The text form."""
    lines = [
        f"{found.path}: GGUF version {found.version}, {found.file_bytes} bytes, {len(found.metadata)} keys, "
        f"{len(found.tensors)} tensors",
        "runs here: " + ("yes" if found.problem is None else f"no: {printable(found.problem)}"),
        *_memory(found),
        "",
        "metadata",
        *table([(key, kind, _shown(value)) for key, (kind, value) in found.metadata.items()]),
    ]
    if found.tokenizer:
        lines += ["", "tokenizer", *table([(key, _shown(value)) for key, value in found.tokenizer.items()])]
    if found.types:
        lines += ["", "tensor types", *_types(found)]
    if tensors:
        lines += ["", *_tensors(found)]
    return lines


def _memory(found: Inspection) -> list[str]:
    memory = found.memory
    if memory is None:
        return []
    parts = (
        f"{memory.tensors} tensors in the mapped file, {memory.keys_and_values} keys and values in "
        f"{memory.cache_type}, {memory.rotary} rotary table, {memory.scratch} scratch"
    )
    lines = [f"memory: {memory.total} bytes for a context of {memory.context}: {parts}"]
    available = found.memory_available
    if available is not None:
        fits = "it fits" if memory.total <= available else "it does not fit: every token may wait for the disk"
        lines.append(f"available: {available} bytes now; {fits}")
    return lines


def _types(found: Inspection) -> list[str]:
    header = ("type", "tensors", "weights", "bytes", "bits/weight", f"kernels ({found.isa})")
    rows = [
        (t.type, t.tensors, t.weights, t.bytes, f"{t.bits_per_weight:.3f}", " ".join(t.kernels)) for t in found.types
    ]
    weights, nbytes = (sum(getattr(t, name) for t in found.types) for name in ("weights", "bytes"))
    total = ("all", len(found.tensors), weights, nbytes, f"{nbytes * 8 / weights:.3f}", "")
    lines = table([header, *rows, total], right=(1, 2, 3, 4))
    return lines if found.file_type is None else [*lines, f"  general.file_type: {found.file_type}"]


def _tensors(found: Inspection) -> list[str]:
    head = ("tensor", "type", "shape", "offset", "bytes", "bits/weight", "scale", "-1", "0", "+1", "")
    body = []
    for t in found.tensors:
        shares = ["" if share is None else f"{100 * share:.2f} %" for share in (t.negative, t.zero, t.positive)]
        scale = "" if t.scale is None else f"{t.scale:.9g}"
        size = (t.offset, t.bytes, f"{t.bits_per_weight:.3f}")
        body.append((t.name, t.type, "x".join(map(str, t.shape)), *size, scale, *shares, printable(t.note or "")))
    return table([head, *body], right=range(3, 10))


def _shown(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"length", "first"}:
        first = ", ".join(_shown(item) for item in value["first"])
        return f"[{first}, ...] ({value['length']} items)"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, str):
        return printable(value)
    return str(value)
