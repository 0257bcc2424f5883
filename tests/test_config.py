"""Strict configuration reading: values of the right type or an error that names the key."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitconv.errors import BitconvError, FormatError, InputError, UnsupportedError
from bitconv.formats.config import Config, load_json, parse_json_object

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
KINDS = st.sampled_from([int, float, bool, str, list, dict])


@given(value=JSON, kind=KINDS)
def test_a_value_is_of_the_wanted_type_or_refused(value, kind):
    config = Config({"k": value}, "config.json")
    try:
        found = config.read(kind, "k")
    except FormatError as error:
        assert "config.json: k " in str(error)
        assert not (type(value) is kind and kind in (bool, str, list, dict))
    else:
        assert type(found) is kind and found == value
        if kind in (int, float):
            assert math.isfinite(found) and type(value) is not bool


@given(value=JSON)
def test_null_is_the_default_and_nothing_else_is(value):
    config = Config({"k": value}, "c")
    for kind in (int, str):
        try:
            assert (config.read(kind, "k", "default") == "default") == (value is None or value == "default")
        except FormatError:
            assert value is not None


@given(data=st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789eE+-.ntfalsrue\\uDd8 ').map(str.encode))
def test_any_bytes_parse_to_an_object_or_a_named_error(data):
    try:
        assert isinstance(parse_json_object(data, "x.json"), dict)
    except FormatError as error:
        assert str(error).startswith("x.json: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', '"a" occurs twice'),
        ('{"q": {"a": 1, "b": 1, "a": 1}}', '"a" occurs twice'),
        ("[1]", "must hold a JSON object"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * 100000, "nested too deeply"),
        ('{"a":' * 100000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_malformed_json_is_named(text, words):
    with pytest.raises(FormatError, match=words):
        parse_json_object(text.encode(), "x.json")


def test_bytes_that_are_no_utf8_name_the_place():
    with pytest.raises(FormatError, match="not UTF-8 at byte 1"):
        parse_json_object(b"{\xff}", "x.json")


def test_a_surrogate_pair_is_a_character():
    assert parse_json_object(b'{"a": "\\ud83d\\ude00"}', "x")["a"] == "\U0001f600"


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("2560", int, 'k must be an integer, found "2560"'),
        (2560.0, int, "k must be an integer, found 2560.0"),
        (True, int, "k must be an integer, found true"),
        (2**63, int, "k must be an integer, found 9223372036854775808"),
        (True, float, "k must be a number, found true"),
        (math.nan, float, "k must be a number, found NaN"),
        (math.inf, float, "k must be a number, found Infinity"),
        (10**400, float, "k must be a number"),
        (1, bool, "k must be true or false, found 1"),
        (["x"] * 100, str, "k must be a string, found ."),
        ({}, list, "k must be a list, found {}"),
        ([], dict, r"k must be an object, found \[\]"),
        (None, int, "k is null"),
    ],
)
def test_wrong_types_say_wanted_and_found(value, kind, words):
    with pytest.raises(FormatError, match="c.json: " + words):
        Config({"k": value}, "c.json").read(kind, "k")


def test_an_integer_is_a_number():
    assert Config({"k": 10000}, "c").read(float, "k") == 10000.0


def test_absent_keys():
    config = Config({}, "c.json")
    assert config.read(int, "k", 7) == 7 and config.read(int, "k", None) is None
    assert config.section("k") is None and config.expect("k", {"a"}, "a") == "a" and "k" not in config
    for read in (lambda: config.read(int, "k"), lambda: config.expect("k", {"a"})):
        with pytest.raises(FormatError, match="c.json: k is missing"):
            read()


@pytest.mark.parametrize("value", ["gelu", 1, True, ["silu"], {"a": 1}, math.nan])
def test_unexpected_values_list_what_is_supported(value):
    with pytest.raises(UnsupportedError, match='c.json: act is .*; supported: "relu2", "silu"'):
        Config({"act": value}, "c.json").expect("act", {"silu", "relu2"})


def test_true_is_not_one():
    assert Config({"k": True}, "c").expect("k", [True]) is True
    with pytest.raises(BitconvError):
        Config({"k": True}, "c").expect("k", [1])


def test_unread_keys_are_remembered_also_in_sections():
    config = Config({"a": 1, "b": 2, "q": {"c": 1, "d": 2}, "r": {"e": 1}, "n": None}, "c.json")
    config.read(int, "a")
    assert config.unread() == ["b", "q", "r", "n"]
    section = config.section("q")
    section.read(int, "c")
    assert config.unread() == ["b", "q.d", "r", "n"]
    assert config.section("q") is section and "q" in config and "n" not in config
    with pytest.raises(FormatError, match="c.json: q: d must be a string"):
        section.read(str, "d")


def test_files_are_limited_in_size(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    assert load_json(path)["a"] == "x" * 100
    with pytest.raises(FormatError, match="config.json: larger than 50 bytes"):
        load_json(path, limit=50)
    os.mkfifo(tmp_path / "pipe")
    for bad, words in [("absent.json", "cannot be read"), ("", "cannot be read"), ("pipe", "not a regular file")]:
        with pytest.raises(InputError, match=words):
            load_json(tmp_path / bad)
