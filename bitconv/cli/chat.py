"""bitconv chat: a conversation with the model's own template."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bitconv.cli.options import RunOptions, generation_options, model_options, read_text, sampling_options
from bitconv.cli.run import model_and_prompt, rate, stream, write
from bitconv.cli.state import State, state_options


@click.command(epilog="Example: bitconv chat model-i2_s.gguf -sys 'Answer in one sentence.'")
@click.argument("words", nargs=-1, metavar="[MODEL]")
@click.option("-m", "--model", metavar="FILE", help="The GGUF file, instead of the first argument.")
@click.option(
    "-sys", "--system-prompt", metavar="TEXT", help="What the model is told before the conversation."
)
@click.option("-p", "--prompt", metavar="TEXT", help="The first message; without -sys, the system prompt.")
@click.option("--chat-template", metavar="NAME|FILE", help="Jinja template instead of the model's own.")
@generation_options
@sampling_options
@model_options
@state_options
@click.pass_obj
def chat(
    state: State,
    words: tuple[str, ...],
    model: str | None,
    system_prompt: str | None,
    prompt: str | None,
    chat_template: str | None,
    **values: Any,
) -> None:
    """Talk to a model.

    Each line is a message; /exit or the end of the input (Ctrl-D) leaves. Ctrl-C stops a reply. When stdin is no
    terminal, each of its lines is one message.
    """
    path, first = model_and_prompt(words, model, prompt, None)
    converse(state, path, RunOptions.take(values), system=system_prompt, first=first, template=chat_template)


def converse(
    state: State,
    path: str,
    options: RunOptions,
    *,
    system: str | None,
    first: str | None,
    template: str | None,
) -> None:
    """Hold a conversation until the input ends; the KV cache is kept, so that a turn costs its own tokens."""
    from bitconv.runtime.chat import TEMPLATES, render
    from bitconv.runtime.generate import Session, generate

    if system is None:
        system, first = first, None
    if template is not None and template not in TEMPLATES and Path(template).is_file():
        template = read_text(template)
    model = options.load(path, state)
    session = Session(model.context(options.ctx_size or None))
    messages = [] if system is None else [{"role": "system", "content": system}]
    seed = options.seed
    for message in user_messages(first):
        messages.append({"role": "user", "content": message})
        ids = model.tokenizer.encode(render(model.vocabulary, messages, template=template))
        generation = generate(model, ids, session=session, **{**options.generation(), "seed": seed})
        if options.temp > 0 and seed < 0:
            seed = generation.seed
            state.note(f"seed: {seed}")
        stream(generation)
        write("\n")
        messages.append({"role": "assistant", "content": generation.text})
        t = generation.timings
        drafts = f"{t.accepted_tokens} of {t.drafted_tokens} drafted accepted, " if t.drafted_tokens else ""
        state.detail(
            f"[{t.prompt_tokens} prompt tokens at {rate(t.prompt_tokens, t.prompt_seconds):.1f}/s, "
            f"{t.decode_tokens} decoded at {rate(t.decode_tokens, t.decode_seconds):.1f}/s, {drafts}"
            f"context {session.context.n_past} of {session.context.n_ctx}]"
        )
        if generation.finish_reason == "length":
            state.note("[the reply was cut: token limit or end of the context]")


def user_messages(first: str | None) -> Iterator[str]:
    """The first message, then line after line of stdin, without empty ones, until /exit or the end."""
    if first is not None:
        yield first
    while True:
        line = _read_line()
        if line is None or line.strip() == "/exit":
            return
        if line.strip():
            yield line


def _read_line() -> str | None:
    if not sys.stdin.isatty():
        return _piped_line()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing for input()
    if not sys.stdout.isatty():
        click.echo("> ", err=True, nl=False)
        return _piped_line()
    try:
        return input("> ")
    except EOFError:
        click.echo(err=True)
        return None


def _piped_line() -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
