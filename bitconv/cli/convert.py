"""bitconv convert: a Hugging Face checkpoint becomes a GGUF file."""

from __future__ import annotations

import atexit
import gc
import json
from dataclasses import asdict
from typing import Any

import click

from bitconv.cli.options import json_option, tq_scale_option
from bitconv.cli.state import State, state_options
from bitconv.cli.verify import check_conversion


class TensorTypeName(click.ParamType):
    """The name of a tensor type; which there are is asked of the registry only when it is needed."""

    name = "type"

    def __init__(self, ternary: bool) -> None:
        self.ternary = ternary

    def names(self) -> list[str]:
        from bitconv.tensor_types import tensor_types
        from bitconv.tensor_types.dense import PLAIN

        known = [t for t in tensor_types() if (t.ternary or t.name in PLAIN if self.ternary else not t.ternary)]
        return [t.name.lower() for t in known]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value).lower()
        if name not in self.names():
            self.fail(f"{value!r} is not one of {', '.join(self.names())}", param, ctx)
        return name


@click.command(epilog="Example: bitconv convert ./bitnet-b1.58-2B-4T -o bitnet-2b-i2_s.gguf")
@click.argument("src", metavar="SRC")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Default: <name of SRC>-<type>.gguf in SRC; in the current directory for a Hub id.",
)
@click.option(
    "--type",
    "tensor_type",
    type=TensorTypeName(True),
    default="i2_s",
    show_default=True,
    help="Linear layers.",
)
@click.option(
    "--embedding-type", type=TensorTypeName(False), default="f16", show_default=True, help="Token embeddings."
)
@click.option(
    "--output-type",
    type=TensorTypeName(False),
    help="Output head, where it is not tied; default: as embeddings.",
)
@click.option(
    "--fallback",
    type=click.Choice(["tl2", "i2_s", "error"]),
    default="tl2",
    show_default=True,
    help="For a matrix that has no legal form in the type; tl2 is followed by i2_s.",
)
@tq_scale_option
@click.option(
    "--kernel-config",
    metavar="SPEC",
    help="Tiles of TL1 and TL2 instead of the defaults: tl1:M,K,BM,BK,bm;... or tl2:M,K,BM,BK;...",
)
@click.option("-t", "--threads", type=click.IntRange(min=1), help="Threads; default: all usable cores, at most 8.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
@click.option("--force", is_flag=True, help="Convert a model that is not ternary, by absmean.")
@click.option("--allow-pickle", is_flag=True, help="Read .bin/.pt checkpoints, with torch's weights_only.")
@click.option("--pre", metavar="NAME", help="Name of the pre-tokenizer, where it cannot be recognised.")
@click.option("--no-hf-tokenizer", is_flag=True, help="Leave the whole tokenizer.json out of the file.")
@click.option("--verify/--no-verify", default=False, help="Compare the file with SRC afterwards; default: no.")
@json_option
@state_options
@click.pass_obj
def convert(
    state: State,
    src: str,
    output: str | None,
    tensor_type: str,
    allow_pickle: bool,
    no_hf_tokenizer: bool,
    verify: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert a Hugging Face BitNet checkpoint to GGUF.

    SRC is a directory or a Hub id such as microsoft/bitnet-b1.58-2B-4T. The output appears under its name only
    when it is complete.
    """
    import bitconv

    atexit.register(gc.freeze)  # the search for cycles at exit would take as long as 100 MB of checkpoint
    with state.progress("convert", "B") as progress:
        report = bitconv.convert(
            src,
            output,
            type=tensor_type,
            allow_pickle=allow_pickle,
            hf_tokenizer=not no_hf_tokenizer,
            progress=progress,
            **options,
        )
    if verify:
        check_conversion(state, report.path, src, allow_pickle=allow_pickle)
    if report.ignored_keys:
        state.detail(f"keys of config.json that nothing depends on: {', '.join(report.ignored_keys)}")
    if as_json:
        click.echo(json.dumps(asdict(report), default=_plain))
        return
    click.echo(
        f"{report.path}: {report.n_tensors} tensors, {report.type}, {report.bytes_out} bytes, "
        f"from {report.bytes_in} bytes ({report.weight_form}), in {report.seconds:.2f} s"
    )
    if options["tq_scale"] == "f16" and report.type.startswith("TQ"):
        click.echo("multipliers are float16, as llama.cpp reads them")


def _plain(value: Any) -> Any:
    """What json does not know: paths, and the array of rotary factors."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
