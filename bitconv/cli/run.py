"""bitconv run: continue a prompt, streaming."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from bitconv.cli.options import (
    RunOptions,
    generation_options,
    json_option,
    model_options,
    read_text,
    sampling_options,
)
from bitconv.cli.state import State, state_options

if TYPE_CHECKING:
    from bitconv.runtime.generate import Generation


@click.command(epilog="Example: bitconv run model-i2_s.gguf -p 'Once upon a time' -n 64 --temp 0")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("-m", "--model", metavar="FILE", help="The GGUF file, instead of the first argument.")
@click.option("-p", "--prompt", help="The prompt; - reads stdin.")
@click.option(
    "-f", "--file", metavar="FILE", help="Read the prompt from a file; one newline at its end is cut."
)
@generation_options
@sampling_options
@model_options
@click.option("--no-display-prompt", is_flag=True, help="Print the generated text without the prompt.")
@click.option("-cnv", "--conversation", is_flag=True, help="Chat instead (see bitconv chat).")
@click.option("-sys", "--system-prompt", help="System prompt of a chat.")
@click.option("--chat-template", metavar="NAME|FILE", help="Jinja template of a chat.")
@json_option
@state_options
@click.pass_obj
def run(
    state: State,
    words: tuple[str, ...],
    model: str | None,
    prompt: str | None,
    file: str | None,
    no_display_prompt: bool,
    conversation: bool,
    system_prompt: str | None,
    chat_template: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Continue a prompt, streaming.

    The text goes to stdout, everything else to stderr; the text ends with one newline. Without -p and -f the
    prompt is read from stdin; with them, what stdin holds is appended. Ctrl-C ends the generation, a second
    one the program.
    """
    from bitconv.runtime.generate import generate

    options = RunOptions.take(values)
    path, prompt = model_and_prompt(words, model, prompt, file)
    if conversation:
        if as_json:
            raise click.UsageError("--json needs a single answer; leave out -cnv")
        from bitconv.cli.chat import converse

        converse(state, path, options, system=system_prompt, first=prompt, template=chat_template)
        return
    text = complete_prompt(prompt)
    started = time.perf_counter()
    loaded = options.load(path, state)
    generation = generate(loaded, text, n_ctx=options.ctx_size, **options.generation())
    load_seconds = time.perf_counter() - started
    if options.temp > 0 and options.seed < 0:
        state.note(f"seed: {generation.seed}")
    if as_json:
        with interruptible(generation):
            list(generation)
        click.echo(json.dumps(as_object(generation, load_seconds), ensure_ascii=False))
    else:
        if not no_display_prompt:
            write(text)
        stream(generation)
        write("\n")
    state.note(timings_block(generation, load_seconds))


def model_and_prompt(
    words: tuple[str, ...], model: str | None, prompt: str | None, file: str | None
) -> tuple[str, str | None]:
    """Sort out `run MODEL`, `run MODEL PROMPT`, `run -m MODEL`, `run -m MODEL PROMPT`, -p and -f."""
    rest = list(words)
    if model is None:
        if not rest:
            raise click.UsageError("which model? bitconv run MODEL.gguf -p '...'")
        model = rest.pop(0)
    if len(rest) + (prompt is not None) + (file is not None) > 1:
        raise click.UsageError("more than one prompt; quote it, and give one of PROMPT, -p and -f")
    if file is not None:
        return model, read_text(file).removesuffix("\n")
    if rest:
        prompt = rest[0]
    return model, prompt


def complete_prompt(prompt: str | None) -> str:
    """Add what stdin holds; one newline at its end is cut, as for -f."""
    if prompt == "-":
        prompt = None
    elif sys.stdin is None or sys.stdin.isatty():
        if prompt is None:
            raise click.UsageError("no prompt; give -p, -f or text on stdin, or -cnv for a chat")
        return prompt
    return (prompt or "") + read_text("-").removesuffix("\n")


def write(text: str) -> None:
    """Write to stdout at once: a reader at the other end of a pipe sees each piece as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def stream(generation: Generation) -> None:
    """Write the pieces as they come; Ctrl-C ends them."""
    with interruptible(generation):
        for piece in generation:
            write(piece)


@contextmanager
def interruptible(generation: Generation) -> Iterator[None]:
    """The first Ctrl-C cancels the generation, the next is a KeyboardInterrupt."""

    def handler(signum: int, frame: FrameType | None) -> None:
        if generation.finish_reason == "cancelled":
            raise KeyboardInterrupt
        generation.cancel()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def rate(tokens: int, seconds: float) -> float:
    """Tokens per second; 0 when nothing was computed."""
    return tokens / seconds if tokens and seconds > 0 else 0.0


def timings_block(generation: Generation, load_seconds: float) -> str:
    """The lines that people paste into issues."""
    t = generation.timings
    total = load_seconds + t.prompt_seconds + t.decode_seconds
    drafts = f"lookup  {t.accepted_tokens} of {t.drafted_tokens} drafted tokens accepted"
    return "\n".join(
        (
            "",
            f"load    {load_seconds:8.3f} s",
            f"prompt  {t.prompt_seconds:8.3f} s  {t.prompt_tokens:6d} tokens"
            f"  {rate(t.prompt_tokens, t.prompt_seconds):9.2f} tokens/s",
            f"decode  {t.decode_seconds:8.3f} s  {t.decode_tokens:6d} tokens"
            f"  {rate(t.decode_tokens, t.decode_seconds):9.2f} tokens/s",
            *([drafts] if t.drafted_tokens else []),
            f"total   {total:8.3f} s  {len(generation.ids):6d} generated, ended by {generation.finish_reason}",
        )
    )


def as_object(generation: Generation, load_seconds: float) -> dict[str, Any]:
    """The object of --json."""
    t = generation.timings
    return {
        "text": generation.text,
        "tokens": generation.ids,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.n_prompt,
        "seed": generation.seed,
        "timings": {
            "load_seconds": load_seconds,
            "prompt_tokens": t.prompt_tokens,
            "prompt_seconds": t.prompt_seconds,
            "prompt_tokens_per_second": rate(t.prompt_tokens, t.prompt_seconds),
            "decode_tokens": t.decode_tokens,
            "decode_seconds": t.decode_seconds,
            "decode_tokens_per_second": rate(t.decode_tokens, t.decode_seconds),
            "drafted_tokens": t.drafted_tokens,
            "accepted_tokens": t.accepted_tokens,
        },
    }
