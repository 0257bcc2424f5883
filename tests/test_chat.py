"""Chat templates: the text equals transformers', the old converter's template goes, hostile ones end."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from bitconv.errors import BitconvWarning, FormatError, InputError
from bitconv.formats.vocabulary import Vocabulary
from bitconv.runtime.chat import TEMPLATES, render
from tests.tokenizer_fixtures import DATA, needs_data

VOCABULARY = Vocabulary(
    model="gpt2", tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], bos_id=0, eos_id=1, eot_id=2
)
CONVERSATION = [
    {"role": "system", "content": "Be terse"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "more"},
]
PUBLISHED_2B_4T = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}{% elif message['role'] == "
    "'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As the notes on the published file spell it; a real file may hold line breaks for the escapes."""
GOLDEN_2B_4T = (
    "<|begin_of_text|>System: Be terse<|eot_id|>User: hi<|eot_id|>Assistant: hello<|eot_id|>User: more<|eot_id|>"
    "Assistant:"
)

TURN = st.fixed_dictionaries({"content": st.text(max_size=30)})


def by_transformers(template: str, messages: list[dict[str, str]], *, prompt: bool) -> str:
    rendered, _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=prompt,
        bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>",
    )  # fmt: skip
    return str(rendered[0])


@needs_data
@pytest.mark.parametrize("path", sorted((DATA / "templates").glob("*.jinja")), ids=lambda path: path.stem)
@given(turns=st.lists(TURN, min_size=1, max_size=4), system=st.booleans(), prompt=st.booleans())
@settings(max_examples=25, deadline=None)
def test_published_templates_render_as_in_transformers(
    path: Any, turns: list[dict[str, str]], system: bool, prompt: bool
) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], **turn} for i, turn in enumerate(turns)]
    if system and "gemma" not in path.name:
        messages.insert(0, {"role": "system", "content": " be terse "})
    template = path.read_text()
    ours = render(VOCABULARY, messages, template=template, add_generation_prompt=prompt)
    assert ours == by_transformers(template, messages, prompt=prompt)


def test_every_published_template_is_tried() -> None:
    if DATA.is_dir():
        assert len(list((DATA / "templates").glob("*.jinja"))) >= 4


FEATURES = [
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.length }}{{ loop.last }}{% endfor %}",
    "{%- for m in messages -%}  {{ m.role }}  {%- endfor %}\n\n{% if true %}\n  x\n{% endif %}\n",
    "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ {'é<': 1} | tojson }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n ~ none ~ 1 }}",
    "{% macro turn(m) %}<{{ m.role }}>{{ caller() if caller else '' }}{% endmacro %}{{ turn(messages[0]) }}",
    "{% generation %}{{ messages[-1]['content'].split('o')[0] }}{% endgeneration %}",
    "{% for key, value in messages[0].items() %}{{ key }}={{ value | upper }};{% endfor %}{{ messages[::-1][0].role }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
    "{{ strftime_now('%Y') | length }}{{ undefined_name }}{{ tools is none }}",
    "{{ 'a' * 3 }}{{ '%s!' % 'b' }}{{ 2 ** 5 }}{{ 7 % 4 }}{{ [1] + [2] }}",
    "{{ '**{}** {{}}'.format(1700000000) }}{{ '** %s' % '%*d {:9999999}' }}{{ 1700000000 | string | center(20) }}",
    "{{ dict(a=1).a }}{{ range(5) | list }}{{ '{} {}'.format(1, 2) }}{{ bos_token + eos_token }}",
]


@pytest.mark.parametrize("template", FEATURES)
def test_the_language_is_the_one_of_transformers(template: str) -> None:
    for prompt in (True, False):
        ours = render(VOCABULARY, CONVERSATION, template=template, add_generation_prompt=prompt)
        assert ours == by_transformers(template, CONVERSATION, prompt=prompt)


@pytest.mark.parametrize("spelling", [PUBLISHED_2B_4T, PUBLISHED_2B_4T.replace("\\n", "\n") + "\n"])
def test_the_published_2b_4t_template_is_replaced_with_one_warning(spelling: str) -> None:
    vocabulary = replace(VOCABULARY, chat_template=spelling)
    with pytest.warns(BitconvWarning, match="old converter") as caught:
        assert render(vocabulary, CONVERSATION) == GOLDEN_2B_4T
        assert render(vocabulary, CONVERSATION) == GOLDEN_2B_4T
    assert len(caught) == 1


def test_a_template_that_only_resembles_it_is_left_alone() -> None:
    vocabulary = replace(VOCABULARY, chat_template=PUBLISHED_2B_4T.replace("Human", "Person"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render(vocabulary, CONVERSATION[1:2]).startswith("<|begin_of_text|>Person: hi\n\nBITNET")


BUILT_IN = {
    "bitnet": GOLDEN_2B_4T,
    "chatml": (
        "<|im_start|>system\nBe terse<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello"
        "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    ),
    "falcon3": "<|system|>\nBe terse\n<|user|>\nhi\n<|assistant|>\nhello\n<|user|>\nmore\n<|assistant|>\n",
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe terse<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nmore<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_built_in_templates(name: str) -> None:
    assert render(VOCABULARY, CONVERSATION, template=name) == BUILT_IN[name]
    rest = render(VOCABULARY, CONVERSATION, template=name, add_generation_prompt=False)
    assert BUILT_IN[name].startswith(rest)
    assert len(rest) < len(BUILT_IN[name])


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"--chat-template.*bitnet, chatml, falcon3, llama3"):
        render(VOCABULARY, CONVERSATION)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"'zephyr'.*bitnet, chatml"):
        render(VOCABULARY, CONVERSATION, template="zephyr")


@pytest.mark.parametrize("messages", [["hi"], [{"content": "hi"}], [{"role": 1, "content": "hi"}]])
def test_a_malformed_message_is_an_input_error(messages: Any) -> None:
    with pytest.raises(InputError, match="role"):
        render(VOCABULARY, messages, template="bitnet")


def test_raise_exception_speaks_in_the_templates_words() -> None:
    with pytest.raises(InputError, match="roles must alternate"):
        render(VOCABULARY, CONVERSATION, template="{{ raise_exception('roles must alternate') }}")


def test_objects_in_messages_lose_their_methods() -> None:
    class Sly:
        def run(self) -> str:
            return "ran"

    message = {"role": "user", "content": Sly(), "parts": [{"a": (1, None)}]}
    assert render(VOCABULARY, [message], template="{{ messages[0].parts }}") == "[{'a': [1, None]}]"
    with pytest.raises(FormatError, match="no attribute 'run'"):
        render(VOCABULARY, [message], template="{{ messages[0].content.run() }}")


FAULTY = [
    "{{ x", "{% for %}", "{% nonsense %}", "{{ messages[0].a.b }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{% include 'x' %}",
    "{% extends 'x' %}", "{{ messages | nonsense }}", "{{ none() }}", "{{ ''.__class__.__mro__ }}",
    "{{ namespace(__class__=1) }}", "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ {{ }}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{% if 1 %}" * 300 + "{% endif %}" * 300,
]  # fmt: skip


@pytest.mark.parametrize("template", FAULTY, ids=lambda text: text[:30])
def test_a_faulty_template_is_a_format_error(template: str) -> None:
    with pytest.raises(FormatError, match="the chat template"):
        render(VOCABULARY, CONVERSATION, template=template)


ENDLESS = [
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for j in range(99999) | list %}{% for k in range(999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% for x in [99] recursive %}{% if x %}{{ loop([x - 1, x - 1]) }}{% endif %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set x = range(9999) | list %}{% for i in range(9999) %}{{ x | map('string') | join }}{% endfor %}",
    "{% for i in range(70000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{{ 'a' * 10 ** 9 }}", "{{ [1] * 10 ** 9 }}", "{{ 10 ** (10 ** 10) }}", "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a'.ljust(1000000000) }}", "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}", "{{ '{:1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "{{ 'a' | indent(1000000000, true) }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ENDLESS, ids=lambda text: text[:60])
def test_a_template_without_end_is_stopped(template: str) -> None:
    """A test that hangs or eats the memory here is what it guards against."""
    with pytest.raises(FormatError, match="far more work or space"):
        render(VOCABULARY, CONVERSATION, template=template)


@needs_data
def test_a_long_conversation_is_no_endless_one() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "some words " * 200} for i in range(2001)]
    for path in (DATA / "templates").glob("*.jinja"):
        assert len(render(VOCABULARY, messages, template=path.read_text())) > 4_000_000
