"""bitconv perplexity: how well a model predicts a text."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from bitconv.cli.options import json_option, load_model, model_options, read_text
from bitconv.cli.state import State, state_options
from bitconv.errors import BitconvError


@click.command(epilog="Example: bitconv perplexity model-i2_s.gguf -f wiki.test.raw --chunks 20")
@click.argument("words", nargs=-1, metavar="[MODEL]")
@click.option("-m", "--model", metavar="FILE", help="The GGUF file, instead of the first argument.")
@click.option("-f", "--file", required=True, metavar="FILE", help="The text; - reads stdin.")
@click.option("-c", "--ctx-size", type=int, default=512, show_default=True, help="Tokens per chunk.")
@click.option("--chunks", type=click.IntRange(min=1), help="Only the first so many chunks.")
@click.option("--max-ppl", type=float, metavar="X", help="Exit with 1 when the perplexity is above X.")
@model_options
@json_option
@state_options
@click.pass_obj
def perplexity(
    state: State,
    words: tuple[str, ...],
    model: str | None,
    file: str,
    ctx_size: int,
    chunks: int | None,
    max_ppl: float | None,
    threads: int | None,
    isa: str | None,
    hidden_act: str | None,
    cache_type_k: str | None,
    cache_type_v: str | None,
    no_mmap: bool,
    mlock: bool,
    as_json: bool,
) -> None:
    """Measure the perplexity of a text.

    The text is cut into chunks, and the second half of each is scored, as llama.cpp does; at least two chunks
    are needed.
    """
    import bitconv

    paths = [*words, *([model] if model else [])]
    if len(paths) != 1:
        raise click.UsageError("give one model: bitconv perplexity MODEL.gguf -f FILE")
    text = read_text(file)
    loaded = load_model(
        paths[0],
        threads=threads,
        isa=isa,
        hidden_act=hidden_act,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        mmap=not no_mmap,
        mlock=mlock,
    )
    with state.progress("perplexity", "chunk") as progress:
        result = bitconv.perplexity(loaded, text, ctx_size, chunks=chunks, progress=progress)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        click.echo(
            f"perplexity {result.perplexity:.4f} +/- {result.stderr:.4f} "
            f"({result.tokens} tokens scored in {result.chunks} chunks of {result.ctx})"
        )
    if max_ppl is not None and not result.perplexity <= max_ppl:
        raise BitconvError(
            f"perplexity {result.perplexity:.4f} is above the limit {max_ppl}\n"
            "compare the conversion with the checkpoint, or raise --max-ppl"
        )
