"""bitconv tokenize: the tokens of a text."""

from __future__ import annotations

import json
import sys

import click

from bitconv.cli.options import read_text
from bitconv.cli.state import state_options


@click.command(epilog="Example: bitconv tokenize model-i2_s.gguf 'Hello world' --ids")
@click.argument("words", nargs=-1, metavar="[MODEL] [TEXT]")
@click.option("-m", "--model", metavar="FILE", help="The GGUF file, instead of the first argument.")
@click.option("-p", "--prompt", metavar="TEXT", help="The text, instead of the argument; - reads stdin.")
@click.option("-f", "--file", metavar="FILE", help="Read the text from a file, as it is.")
@click.option("--ids", is_flag=True, help="Print the ids alone, as a list in one line.")
@click.option("--no-bos", is_flag=True, help="Leave out the tokens that the model adds by itself.")
@state_options
def tokenize(
    words: tuple[str, ...], model: str | None, prompt: str | None, file: str | None, ids: bool, no_bos: bool
) -> None:
    """Print the tokens of a text.

    One a line with its id; works on vocabulary-only files too.
    """
    from bitconv.cli.run import model_and_prompt
    from bitconv.formats.gguf import open_gguf
    from bitconv.formats.vocabulary import read_vocabulary
    from bitconv.runtime.tokenizer import Tokenizer

    path, text = model_and_prompt(words, model, prompt, None)
    if file is not None:
        if text is not None:
            raise click.UsageError("give the text once: TEXT, -p or -f")
        text = read_text(file)
    elif text == "-" or (text is None and not sys.stdin.isatty()):
        text = read_text("-")
    if text is None:
        raise click.UsageError("no text; give it as an argument, with -f or on stdin")
    with open_gguf(path) as gguf:
        tokenizer = Tokenizer(read_vocabulary(gguf))
        tokens = tokenizer.encode(text, add_special=not no_bos)
        if ids:
            click.echo(json.dumps(tokens))
            return
        for token in tokens:
            piece = tokenizer.token_bytes(token, skip_special=False)
            click.echo(
                f"{token:6d}  {json.dumps(piece.decode('utf-8', 'backslashreplace'), ensure_ascii=False)}"
            )
