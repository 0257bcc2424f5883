"""bitconv demo: the whole way in a minute, on the checkpoint that lies in models/tiny."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitconv.cli.run import rate, stream, write
from bitconv.cli.state import State, state_options
from bitconv.errors import InputError

if TYPE_CHECKING:
    from bitconv.runtime.model import Model

PROMPT = "The function"
TOKENS = 64
CHUNKS = 20


@click.command(epilog="Example: bitconv demo")
@click.option(
    "--checkpoint", metavar="DIR", help="A checkpoint directory; default: models/tiny of the clone."
)
@click.option("-p", "--prompt", default=PROMPT, show_default=True, help="What the model continues.")
@state_options
@click.pass_obj
def demo(state: State, checkpoint: str | None, prompt: str) -> None:
    """Convert, run and measure the bundled checkpoint.

    It works in a temporary directory and leaves nothing behind.
    """
    import bitconv

    source = Path(checkpoint) if checkpoint else bundled_checkpoint()
    with tempfile.TemporaryDirectory(prefix="bitconv-demo-") as folder:
        output = Path(folder) / "demo-i2_s.gguf"
        started = time.perf_counter()
        bitconv.convert(source, output)
        size = output.stat().st_size
        original = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        click.echo(f"convert     {source} -> I2_S in {time.perf_counter() - started:.2f} s")
        click.echo(f"            {original} bytes of safetensors -> {size} bytes of GGUF")
        started = time.perf_counter()
        model = bitconv.load(output)
        click.echo(f"load        {time.perf_counter() - started:.3f} s, {model.isa}, {model.threads} threads")
        _run(model, prompt)
        _perplexity(model, source, state)


def bundled_checkpoint() -> Path:
    """models/tiny beside the package, which is there in a clone."""
    folder = Path(__file__).resolve().parents[2] / "models" / "tiny"
    if not (folder / "config.json").is_file():
        raise InputError(
            "the bundled checkpoint lies in models/tiny of the source tree, and this package was installed without it\n"
            "run it in a clone (make demo), or name a checkpoint: bitconv demo --checkpoint DIR"
        )
    return folder


def _run(model: Model, prompt: str) -> None:
    """Greedy text, then the speed of a prompt and of single tokens."""
    from bitconv.runtime.generate import generate

    click.echo(f"run         --temp 0 -p {prompt!r}\n")
    write(prompt)
    stream(generate(model, prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True))
    click.echo("\n")
    ids = [token % model.vocab_size for token in range(model.n_ctx_train - TOKENS)]
    generation = generate(model, ids, max_tokens=TOKENS, temperature=0, ignore_eos=True)
    list(generation)
    t = generation.timings
    click.echo(f"speed       prompt {rate(t.prompt_tokens, t.prompt_seconds):.0f} tokens/s", nl=False)
    click.echo(f", decode {rate(t.decode_tokens, t.decode_seconds):.0f} tokens/s")


def _perplexity(model: Model, source: Path, state: State) -> None:
    import bitconv

    text = source / "heldout.txt"
    if not text.is_file():
        click.echo(f"perplexity  not measured: {text} does not exist")
        return
    with state.progress("perplexity", "chunk") as progress:
        result = bitconv.perplexity(
            model,
            text.read_text(encoding="utf-8"),
            min(512, model.n_ctx_train),
            chunks=CHUNKS,
            progress=progress,
        )
    click.echo(
        f"perplexity  {result.perplexity:.2f} +/- {result.stderr:.2f} on {result.tokens} held-out tokens "
        f"(a model that knows nothing: {model.vocab_size})"
    )
