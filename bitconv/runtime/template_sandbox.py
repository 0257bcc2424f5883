"""Renders an untrusted Jinja template: jinja2's sandbox, the functions of transformers, and a budget.

The sandbox keeps a template away from Python, but not from `for` loops in each other or texts that double
in size. Every loop step, call and filter here costs something, and so do long arguments; a template that
spends more than any conversation needs is stopped. This is a best effort: a template can still be slow for
seconds, not for hours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, Final

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from bitconv.errors import FormatError, InputError

STEPS: Final = 2_000_000
"""Budget of one rendering; a conversation of a thousand messages takes some fifty thousand."""
_LONGEST: Final = 16 << 20  # characters of the result, and of any text built on the way
_WIDEST: Final = 1_000_000  # for padding and repetition
_CHARACTERS_A_STEP = 256
_CALL_STEPS = 10  # calls are what costs time: about 5 us each
_CHEAP: Final = ("length", "count", "first", "last")  # whatever the length
_WIDENING: Final = ("batch", "center", "indent", "slice", "tojson")
_WIDE_PERCENT = re.compile(r"%[-#0 +.\d]*(?:\*|\d{7})")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*\d{7}")
_BRACES_IN_BRACES = re.compile(r"\{[^{}]*\{")


def render(source: str, variables: Mapping[str, Any], where: str) -> str:
    """Render a template with the given variables.

    Raises InputError with the template's own words where it calls raise_exception, FormatError where it is
    malformed, fails, or exceeds the budget; both name `where`.
    """
    if len(source) > _LONGEST:
        raise FormatError(f"{where}: a template of {len(source)} characters")
    try:
        environment = _Environment()
        template = environment.from_string(_Metered().visit(environment.parse(source)))
        pieces, length = [], 0
        for piece in template.generate(dict(variables)):
            pieces.append(piece)
            length += len(piece)
            if length > _LONGEST:
                raise _TooMuch
        return "".join(pieces)
    except _Raised as error:
        raise InputError(f"{where} refuses this conversation: {error.message}") from error
    except TemplateSyntaxError as error:
        raise FormatError(f"{where}: line {error.lineno}: {error.message}") from error
    except (_TooMuch, RecursionError, MemoryError, OverflowError) as error:
        raise FormatError(f"{where}: needs far more work or space than a conversation can") from error
    except Exception as error:  # the template is a program of somebody else's: anything can go wrong in it
        raise FormatError(f"{where}: fails: {type(error).__name__}: {str(error)[:200]}") from error


class _Raised(TemplateError):
    """The template called raise_exception."""


class _TooMuch(Exception):
    """The budget is spent."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # not optimized: what is computed while compiling would escape the budget
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[LoopControls, _Generation])
        self.left = STEPS
        self.filters = {
            name: function if name in _CHEAP else self._metered(name, function)
            for name, function in {**self.filters, "tojson": _tojson}.items()
        }
        self.filters["metered_items"] = self.items
        self.filters["metered_join"] = self.join
        del self.globals["lipsum"]
        self.globals["range"] = self.range
        self.globals["dict"] = _make_dict
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _TooMuch

    def items(self, iterable: Any) -> list[Any]:
        """What a loop runs over, paid for."""
        items = list(iterable)
        self.spend(1 + len(items))
        return items

    def join(self, values: list[Any]) -> str:
        """The operator ~."""
        return str(self._checked("".join(map(str, values))))

    def range(self, *arguments: int) -> range:
        numbers = range(*arguments)
        self.spend(1 + len(numbers))
        return numbers

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, values = getattr(method, "__self__", None), (*args, *kwargs.values())
        __self.spend(_CALL_STEPS)
        __self._pay((owner, *values))
        if isinstance(owner, str) and method is not __obj:
            _refuse_wide_braces(owner, values)
        elif isinstance(owner, str):
            _refuse_wide(values)
        if isinstance(__obj, LoopContext) and args:  # a recursive loop
            args = (__self.items(args[0]), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._pay((left, right))
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    _refuse_wide((len(value) * times,))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            _refuse_wide((bits,))
        if operator == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
            raise _TooMuch
        return self._checked(super().call_binop(context, operator, left, right))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # copies the mark that tells jinja2 which extra arguments a filter takes
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.spend(_CALL_STEPS)
            self._pay((*args, *kwargs.values()))
            if name in _WIDENING:
                _refuse_wide((*args[1:], *kwargs.values()))
            elif name == "format" and isinstance(args[0], str) and _WIDE_PERCENT.search(args[0]):
                raise _TooMuch
            return self._checked(function(*args, **kwargs))

        return metered

    def _pay(self, values: tuple[Any, ...]) -> None:
        texts = sum(len(value) for value in values if isinstance(value, str))
        items = sum(len(value) for value in values if isinstance(value, (list, tuple, dict, range)))
        self.spend(1 + texts // _CHARACTERS_A_STEP + items)

    def _checked(self, value: Any) -> Any:
        if isinstance(value, (str, list, tuple)) and len(value) > _LONGEST:
            raise _TooMuch
        return value


class _Metered(NodeTransformer):
    """Routes loops and the operator ~, which the sandbox does not see, through filters that count."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "metered_items", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "metered_join", [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; it changes nothing in the text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """jinja2's namespace without names that mean something to Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _refuse_private(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _refuse_wide(values: tuple[Any, ...]) -> None:
    """Stop paddings and repetitions that would make gigabytes in one step."""
    if any(isinstance(value, int) and abs(value) > _WIDEST for value in values):
        raise _TooMuch


def _refuse_wide_braces(pattern: str, values: tuple[Any, ...]) -> None:
    """The same for str.format, whose widths may come from its arguments."""
    if _WIDE_BRACES.search(pattern):
        raise _TooMuch
    if _BRACES_IN_BRACES.search(pattern.replace("{{", "")):  # doubled braces are braces in the text
        _refuse_wide(values)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: without HTML escapes, and with the options of json.dumps."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise _Raised(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
