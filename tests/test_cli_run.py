"""bitconv run and chat on the bundled model: prompts, stdin, output, options, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import bitconv
from bitconv import _kernels
from bitconv.cli.options import CACHE_TYPES
from bitconv.cli.run import interruptible
from bitconv.runtime.generate import generate
from tests.fake_model import scripted

GREEDY = ("-n", 8, "--temp", 0)


@pytest.fixture(scope="module")
def expected(tiny_gguf: Path) -> str:
    """What the library says after "Return the"."""
    return "".join(bitconv.load(tiny_gguf).generate("Return the", max_tokens=8, temperature=0))


def test_stdout_is_prompt_and_text_and_nothing_else(cli: Any, tiny_gguf: Path, expected: str) -> None:
    outcome = cli("run", tiny_gguf, "-p", "Return the", *GREEDY)
    assert outcome.code == 0
    assert outcome.out == f"Return the{expected}\n"
    assert "tokens/s" in outcome.err


@pytest.mark.parametrize(
    ("args", "stdin"),
    [
        (["-p", "Return the"], b""),
        (["Return the"], b""),
        ([], b"Return the"),
        ([], b"Return the\n"),
        (["-p", "-"], b"Return the\n"),
        (["-p", "Return"], b" the\n"),
        (["Return"], b" the"),
    ],
)
def test_prompt_from_arguments_and_stdin(
    cli: Any, tiny_gguf: Path, expected: str, args: list[str], stdin: bytes
) -> None:
    for model in (["-m", tiny_gguf], [tiny_gguf]):
        outcome = cli("run", *model, *args, *GREEDY, "--no-display-prompt", "-q", stdin=stdin)
        assert (outcome.code, outcome.out, outcome.err) == (0, expected + "\n", "")


def test_prompt_from_a_file(cli: Any, tiny_gguf: Path, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Return the\n")
    assert cli("run", tiny_gguf, "-f", file, *GREEDY).out == f"Return the{expected}\n"
    file.write_bytes(b"ab\xff")
    outcome = cli("run", tiny_gguf, "-f", file, *GREEDY)
    assert (outcome.code, "byte 2 is not UTF-8" in outcome.err) == (3, True)


def test_json_is_one_object(cli: Any, tiny_gguf: Path, expected: str) -> None:
    outcome = cli("run", tiny_gguf, "-p", "Return the", *GREEDY, "--json")
    value = json.loads(outcome.out)
    assert value["text"] == expected
    assert len(value["tokens"]) == 8
    assert value["finish_reason"] == "length"
    assert value["prompt_tokens"] == len(bitconv.load(tiny_gguf).tokenize("Return the"))
    assert value["timings"]["prompt_tokens"] == value["prompt_tokens"]
    assert value["timings"]["decode_tokens"] == 7


@pytest.mark.parametrize("options", [["--temp", 0], ["--temp", 0.3, "--seed", 5, "--repeat-penalty", 1.05]])
def test_lookup_changes_nothing_but_the_passes(cli: Any, tiny_gguf: Path, options: list[Any]) -> None:
    args = ("run", tiny_gguf, "-p", "1, 2, 3, 4, 1, 2, 3, 4, ", "-n", 40, *options)
    plain, guessed = (json.loads(cli(*args, "--json", *more).out) for more in ([], ["--lookup"]))
    timings, without = guessed.pop("timings"), plain.pop("timings")
    assert guessed == plain
    assert timings["decode_tokens"] == without["decode_tokens"]
    assert without["drafted_tokens"] == without["accepted_tokens"] == 0
    assert 0 < timings["accepted_tokens"] <= timings["drafted_tokens"]
    shown = cli(*args, "--lookup")
    assert shown.out == cli(*args).out
    counts = f"{timings['accepted_tokens']} of {timings['drafted_tokens']} drafted tokens accepted"
    assert f"lookup  {counts}" in shown.err.splitlines()


@pytest.mark.parametrize(
    "options",
    [
        ["-n", "8", "-temp", "0"],
        ["--predict", "8", "--temperature", "0"],
        ["--n-predict", "8", "--temp", "0", "-c", "64", "-t", "1"],
        ["--max-tokens", "8", "--temp", "0", "-b", "2", "-ub", "1", "-s", "3"],
        ["-n8", "--temp=0", "-c64", "-t1", "--isa", "scalar"],
        ["-n", "8", "--top-k", "1", "--seed", "4", "--repeat-penalty", "1", "--min-p", "0", "--top-p", "1"],
    ],
)
def test_spellings_and_settings_that_change_nothing(
    cli: Any, tiny_gguf: Path, expected: str, options: list[str]
) -> None:
    outcome = cli("run", tiny_gguf, "-p", "Return the", *options, "--no-display-prompt")
    assert (outcome.code, outcome.out) == (0, expected + "\n")


def test_gpu_layers_are_accepted_with_a_note(cli: Any, tiny_gguf: Path) -> None:
    outcome = cli("run", tiny_gguf, "-p", "x", "-n", 1, "-ngl", 99)
    assert outcome.code == 0
    assert "no GPU in this build" in outcome.err


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_a_type_of_cache_is_accepted_under_either_name(cli: Any, tiny_gguf: Path, kind: str) -> None:
    outcomes = [cli("run", tiny_gguf, "-p", "x", *GREEDY, *o) for o in (["-ctk", kind], ["-ctv", kind])]
    assert outcomes[0].code == 0 and outcomes[0].out == outcomes[1].out


def test_the_types_of_cache_are_those_of_the_kernels() -> None:
    assert set(CACHE_TYPES) == set(_kernels.CACHE_TYPES)


def test_minus_one_token_means_until_the_context_is_full(cli: Any, tiny_gguf: Path) -> None:
    outcome = cli("run", tiny_gguf, "-p", "Return", "-n", -1, "-c", 16, "--ignore-eos", "--json")
    value = json.loads(outcome.out)
    assert value["finish_reason"] == "length"
    assert value["prompt_tokens"] + len(value["tokens"]) == 17  # the last token needs no place in the cache


def test_prompt_longer_than_the_context_names_both_numbers(cli: Any, tiny_gguf: Path) -> None:
    outcome = cli("run", tiny_gguf, "-p", "x " * 100, "-c", 16)
    assert outcome.code == 3
    length = len(bitconv.load(tiny_gguf).tokenize("x " * 100))
    assert f"{length} tokens" in outcome.err
    assert "16" in outcome.err


def test_random_seed_is_printed_and_reproduces(cli: Any, tiny_gguf: Path) -> None:
    first = cli("run", tiny_gguf, "-p", "x", "-n", 12)
    seed = first.err.splitlines()[0].removeprefix("seed: ")
    assert cli("run", tiny_gguf, "-p", "x", "-n", 12, "--seed", seed).out == first.out


def test_stop_string_ends_the_text(cli: Any, tiny_gguf: Path, expected: str) -> None:
    stop = expected[3:6]
    outcome = cli("run", tiny_gguf, "-p", "Return the", *GREEDY, "-r", stop, "--json")
    value = json.loads(outcome.out)
    assert value["text"] == expected[: expected.index(stop)]
    assert value["finish_reason"] == "stop"


def test_first_interrupt_ends_the_generation_second_the_program() -> None:
    generation = generate(scripted("abcdef"), "ab", temperature=0)  # type: ignore[arg-type]
    with interruptible(generation):
        assert next(generation) == "a"
        os.kill(os.getpid(), signal.SIGINT)
        assert list(generation) == []
        assert generation.finish_reason == "cancelled"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupted_run_exits_with_0(cli: Any, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitconv.cli import run as module

    def write_and_interrupt(text: str) -> None:
        if text not in ("Return the", "\n"):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("bitconv.cli.run.write", write_and_interrupt)
    assert module is not None
    outcome = cli("run", tiny_gguf, "-p", "Return the", "--ignore-eos")
    assert outcome.code == 0
    assert "ended by cancelled" in outcome.err


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    return path


def test_chat_answers_each_line_and_leaves_at_the_end(cli: Any, tiny_gguf: Path, template: Path) -> None:
    outcome = cli("chat", tiny_gguf, "--chat-template", template, *GREEDY, "-q", stdin="Hello\n\nAgain\n")
    assert outcome.code == 0
    model = bitconv.load(tiny_gguf)
    begin = "<user>Hello\n<assistant>"
    first = "".join(model.generate(begin, max_tokens=8, temperature=0))
    second = "".join(model.generate(f"{begin}{first}\n<user>Again\n<assistant>", max_tokens=8, temperature=0))
    assert outcome.out == f"{first}\n{second}\n"


def test_a_turn_computes_only_what_the_cache_does_not_hold(cli: Any, tiny_gguf: Path, template: Path) -> None:
    outcome = cli("chat", tiny_gguf, "--chat-template", template, *GREEDY, "-v", stdin="Hello\nAgain\n")
    first, second = (int(line.split()[0][1:]) for line in outcome.err.splitlines() if "prompt tokens" in line)
    model = bitconv.load(tiny_gguf)
    assert first == len(model.tokenize("<user>Hello\n<assistant>"))
    assert second < first + 8


def test_lookup_changes_nothing_in_a_chat(cli: Any, tiny_gguf: Path, template: Path) -> None:
    args = ("chat", tiny_gguf, "--chat-template", template, "-n", 40, "--temp", 0, "-v")
    stdin = "1, 2, 3, 4, 1, 2, 3, 4, 1, 2\nAgain: 1, 2, 3, 4\n"
    plain, guessed = cli(*args, stdin=stdin), cli(*args, "--lookup", stdin=stdin)
    assert guessed.out == plain.out
    assert "drafted accepted, " in guessed.err
    assert "drafted" not in plain.err
    contexts = [re.findall(r"context \d+ of \d+", outcome.err) for outcome in (plain, guessed)]
    assert len(contexts[0]) == 2
    assert contexts[0] == contexts[1]


def test_exit_leaves_the_chat(cli: Any, tiny_gguf: Path, template: Path) -> None:
    outcome = cli("chat", tiny_gguf, "--chat-template", template, *GREEDY, "-q", stdin="/exit\nHello\n")
    assert (outcome.code, outcome.out) == (0, "")


@pytest.mark.parametrize("command", [["chat"], ["run", "-cnv"]])
def test_system_prompt_and_first_message(
    cli: Any, tiny_gguf: Path, template: Path, command: list[str]
) -> None:
    model = bitconv.load(tiny_gguf)
    for options, text in (
        (["-sys", "Be brief.", "-p", "Hello"], "<system>Be brief.\n<user>Hello\n<assistant>"),
        (["-sys", "Be brief."], "<system>Be brief.\n<user>Hello\n<assistant>"),
        (["-p", "Be brief."], "<system>Be brief.\n<user>Hello\n<assistant>"),
    ):
        stdin = "" if "Hello" in options else "Hello\n"
        outcome = cli(
            *command, "-m", tiny_gguf, *options, "--chat-template", template, *GREEDY, "-q", stdin=stdin
        )
        expected = "".join(model.generate(text, max_tokens=8, temperature=0))
        assert (outcome.code, outcome.out) == (0, expected + "\n")


def test_named_template_missing_template_and_unknown_name(cli: Any, tiny_gguf: Path) -> None:
    assert cli("chat", tiny_gguf, "--chat-template", "chatml", *GREEDY, stdin="Hello\n").code == 0
    for options, text in ((["--chat-template", "nonsense"], "nonsense"), ([], "no chat template")):
        outcome = cli("chat", tiny_gguf, *options, stdin="Hello\n")
        assert (outcome.code, text in outcome.err) == (3, True)
