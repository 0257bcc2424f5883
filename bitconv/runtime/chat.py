"""Messages of a conversation to the text that a model was trained on, by the model's own template."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakSet

from bitconv.errors import BitconvWarning, InputError
from bitconv.formats.vocabulary import Vocabulary

TEMPLATES: Final[Mapping[str, str]] = {
    # without the space that the model's own prompt has after "Assistant:": in the training text that space
    # belongs to the first token of the answer
    "bitnet": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "falcon3": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}
"""Templates by name, for models that bring none."""

_LEGACY_BITNET = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + '\n\nBITNETAssistant: ' + eos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_replaced: WeakSet[Vocabulary] = WeakSet()


def render(
    vocabulary: Vocabulary,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    template: str | None = None,
) -> str:
    """Write a conversation as one text, to be encoded with parse_special.

    messages: each with "role" and "content". template: a name of TEMPLATES or the text of a Jinja template,
    instead of the model's. The template of the published 2B-4T file, which the model was not trained on, is
    replaced with one BitconvWarning. Raises InputError when there is no template, a message is malformed or
    the template refuses the conversation, FormatError when the template is faulty.
    """
    from bitconv.runtime import template_sandbox  # jinja2: not before it is needed

    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"a message needs a role and a content, found {str(message)[:80]}")
    variables = {
        "messages": [_plain(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": _text(vocabulary, vocabulary.bos_id),
        "eos_token": _text(vocabulary, vocabulary.eos_id),
        "unk_token": _text(vocabulary, vocabulary.unk_id),
        "pad_token": _text(vocabulary, vocabulary.pad_id),
    }
    source = _own_template(vocabulary) if template is None else template_text(template)
    return template_sandbox.render(source, variables, "the chat template")


def template_text(name_or_text: str) -> str:
    """Return the template of a name, or the text itself if it is one; InputError lists the names."""
    if "{" in name_or_text:
        return name_or_text
    try:
        return TEMPLATES[name_or_text]
    except KeyError:
        raise InputError(
            f"there is no chat template {name_or_text[:80]!r}; known are {', '.join(TEMPLATES)}, and a file "
            "with a Jinja template"
        ) from None


def _own_template(vocabulary: Vocabulary) -> str:
    template = vocabulary.chat_template
    if template is None:
        raise InputError(
            "the model has no chat template; it may not be made for conversations. --chat-template takes "
            f"a name ({', '.join(TEMPLATES)}) or a file with a Jinja template"
        )
    if template.strip().replace("\\n", "\n") != _LEGACY_BITNET:
        return template
    if vocabulary not in _replaced:
        _replaced.add(vocabulary)
        warnings.warn(
            "the file's chat template is the one of bitnet.cpp's old converter, on which the model was not "
            "trained; the model's own (bitnet) is used instead",
            BitconvWarning,
            stacklevel=3,
        )
    return TEMPLATES["bitnet"]


def _text(vocabulary: Vocabulary, token_id: int | None) -> str:
    return "" if token_id is None else vocabulary.tokens[token_id]


def _plain(value: Any) -> Any:
    """Rebuild a value from plain types, so that a template meets no object with methods of its own."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
