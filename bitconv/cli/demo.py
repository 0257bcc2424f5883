"""bitconv demo: the whole way in a minute, on the checkpoint that lies in models/tiny."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from bitconv.cli.run import rate, stream, write
from bitconv.cli.state import State, state_options
from bitconv.errors import InputError

PROMPT = "The function"
TOKENS = 64
CHUNKS = 20
OTHER_TYPES = ("TL1", "TL2")


@click.command(epilog="Example: bitconv demo")
@click.option(
    "--checkpoint", metavar="DIR", help="A checkpoint directory; default: models/tiny of the clone."
)
@click.option("-p", "--prompt", default=PROMPT, show_default=True, help="What the model continues.")
@state_options
@click.pass_obj
def demo(state: State, checkpoint: str | None, prompt: str) -> None:
    """Convert, requantise, run and measure the bundled checkpoint.

    It works in a temporary directory and leaves nothing behind.
    """
    import bitconv
    from bitconv.runtime.generate import generate

    source = Path(checkpoint) if checkpoint else bundled_checkpoint()
    with tempfile.TemporaryDirectory(prefix="bitconv-demo-") as folder:
        first = Path(folder) / "demo-i2_s.gguf"
        started = time.perf_counter()
        bitconv.convert(source, first)
        original = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        click.echo(f"convert     {source} -> I2_S in {time.perf_counter() - started:.2f} s")
        click.echo(f"            {original} bytes of safetensors -> {first.stat().st_size} bytes of GGUF")
        paths = {"I2_S": first}
        for kind in OTHER_TYPES:
            paths[kind] = Path(folder) / f"demo-{kind.lower()}.gguf"
            bitconv.quantize(first, paths[kind], type=kind.lower())
            same = "the same matrices" if bitconv.verify(first, paths[kind]).ok else "OTHER MATRICES"
            click.echo(f"quantize    I2_S -> {kind}; verify: {same}")
        model = bitconv.load(first)
        click.echo(f"run         {model.isa}, {model.threads} threads, --temp 0 -p {prompt!r}\n")
        write(prompt)
        generation = generate(model, prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True)
        stream(generation)
        click.echo("\n")
        click.echo("type   bytes      bits per weight   prompt tokens/s   decode tokens/s   the same text")
        for kind, path in paths.items():
            click.echo(_measured(kind, path, prompt, generation.text))
        _perplexity(first, source, state)


def bundled_checkpoint() -> Path:
    """models/tiny beside the package, which is there in a clone."""
    folder = Path(__file__).resolve().parents[2] / "models" / "tiny"
    if not (folder / "config.json").is_file():
        raise InputError(
            "the bundled checkpoint lies in models/tiny of the source tree, and this package was installed without it\n"
            "run it in a clone (make demo), or name a checkpoint: bitconv demo --checkpoint DIR"
        )
    return folder


def _measured(kind: str, path: Path, prompt: str, text: str) -> str:
    """One line of the table: size, bits per ternary weight, speed, and whether the greedy text is `text`."""
    import bitconv
    from bitconv.runtime.generate import generate

    model = bitconv.load(path)
    again = generate(model, prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True)
    list(again)
    ids = [token % model.vocab_size for token in range(model.n_ctx_train - TOKENS)]
    long = generate(model, ids, max_tokens=TOKENS, temperature=0, ignore_eos=True)
    list(long)
    matrices = [model.gguf.tensors[f"{name}.weight"] for name in model.ternary]
    bits = 8 * sum(i.nbytes for i in matrices) / sum(i.shape[0] * i.shape[1] for i in matrices)
    t = long.timings
    return (
        f"{kind:6s} {path.stat().st_size:<10d} {bits:<17.3f} {rate(t.prompt_tokens, t.prompt_seconds):<17.0f} "
        f"{rate(t.decode_tokens, t.decode_seconds):<17.0f} {'yes' if again.text == text else 'NO'}"
    )


def _perplexity(path: Path, source: Path, state: State) -> None:
    import bitconv

    model, text = bitconv.load(path), source / "heldout.txt"
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
