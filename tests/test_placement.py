"""Weights mapped, copied and locked give the same bits; what does not fit is refused or warned of, with numbers."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import bitconv
from bitconv import _kernels, machine
from bitconv.errors import BitconvWarning, ResourceError
from bitconv.formats.gguf import open_gguf
from bitconv.pipeline.inspect import inspect

IDS = list(range(40))


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        pytest.skip(f"this system does not tell {field}")
    return int(found[1]) << 10


def test_the_bits_do_not_depend_on_where_weights_lie(tiny_gguf):
    mapped = bitconv.load(tiny_gguf).logits(IDS)
    for options in ({"mmap": False}, {"mlock": True}, {"mmap": False, "mlock": True}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BitconvWarning)  # locking may not be permitted here
            model = bitconv.load(tiny_gguf, **options)
        assert model.logits(IDS).tobytes() == mapped.tobytes()
        assert model.tokenize("the") == bitconv.load(tiny_gguf).tokenize("the")


def test_a_copy_holds_the_tensors_and_stays(tiny_gguf):
    with open_gguf(tiny_gguf) as gguf, open_gguf(tiny_gguf) as copied:
        copied.read_into_memory(threads=3)
        assert copied.resident and not gguf.resident
        for name in gguf.tensors:
            copied.advise(name)
            copied.release(name)  # would lose what lies in memory only
            assert np.array_equal(copied.data(name), gguf.data(name))
        assert copied.metadata["general.architecture"] == gguf.metadata["general.architecture"]


def test_a_copy_in_pieces_is_the_same(tiny_gguf, monkeypatch):
    monkeypatch.setattr("bitconv.formats.gguf._COPIED", 4099)
    with open_gguf(tiny_gguf) as gguf, open_gguf(tiny_gguf) as copied:
        copied.read_into_memory(threads=2)
        assert all(np.array_equal(copied.data(name), gguf.data(name)) for name in gguf.tensors)


def test_locked_weights_are_locked(tiny_gguf, monkeypatch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = status("VmLck")
        model = bitconv.load(tiny_gguf, mlock=True)
        locked = status("VmLck") - before
    if not caught:
        assert locked >= model.gguf.tensor_bytes and model.gguf.resident


def test_locking_that_is_not_permitted_is_a_warning(tiny_gguf, monkeypatch):
    def refuse(address: int, nbytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(machine, "lock", refuse)
    with pytest.warns(BitconvWarning, match="cannot be locked.*Cannot allocate memory; `ulimit -l unlimited`"):
        model = bitconv.load(tiny_gguf, mlock=True)
    assert not model.gguf.resident


@pytest.mark.parametrize("options", [{"mmap": False}, {"mlock": True}])
def test_weights_that_must_be_in_memory_and_do_not_fit(tiny_gguf, monkeypatch, options):
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    with pytest.raises(ResourceError, match=r"take 0\.\d\d GB of memory; 0\.00 GB are available\nleave out --no-mmap"):
        bitconv.load(tiny_gguf, **options)


def warned(caught) -> list[str]:
    return [str(one.message) for one in caught if "of memory" in str(one.message)]


def test_a_context_that_does_not_fit_is_warned_of_once(tiny_gguf, monkeypatch):
    small, large = (inspect(tiny_gguf, context=n).memory for n in (64, 100_000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = bitconv.load(tiny_gguf)
        monkeypatch.setattr(machine, "available_memory", lambda: large.total - 1)
        model.context(64)
        assert not warned(caught)
        model.context(100_000)
        model.context(100_000)
    (message,) = warned(caught)
    assert f"context of 100000 takes {large.total / 1e9:.2f} GB of memory" in message
    assert f"({large.tensors / 1e9:.2f} weights, " in message
    assert f"{large.keys_and_values / 1e9:.2f} keys and values" in message and small.total < large.total


def test_weights_that_do_not_fit_are_warned_of_before_they_are_read(tiny_gguf, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    read = []
    monkeypatch.setattr(_kernels, "first_malformed", lambda weights, threads: read.append(len(weights)) or -1)
    with pytest.warns(BitconvWarning, match="context of 1 takes") as caught:
        model = bitconv.load(tiny_gguf)
        assert read
        model.context(64)
    assert len(warned(caught)) == 1


@pytest.mark.parametrize("command", ["run", "chat", "perplexity", "bench"])
def test_every_command_that_runs_a_model_warns_once(tiny_gguf, cli, monkeypatch, command):
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    text = Path("models/tiny/heldout.txt")
    args = {
        "run": ("-p", "a", "-n", "1"), "chat": (), "bench": ("-p", "1", "-n", "1", "-r", "1"),
        "perplexity": ("-f", text, "-c", "32", "--chunks", "1"),
    }[command]  # fmt: skip
    result = cli(command, "-m", tiny_gguf, *args)
    assert result.err.count("GB are available") == 1, result.err


def test_the_command_line_places_weights(tiny_gguf, cli):
    plain = cli("run", "-m", tiny_gguf, "-p", "the", "-n", "4", "--temp", "0").out
    assert cli("run", "-m", tiny_gguf, "-p", "the", "-n", "4", "--temp", "0", "--no-mmap", "--mlock").out == plain


def test_the_cache_becomes_memory_as_positions_are_used(tiny_gguf):
    """RSS of a child, where nothing else allocates: little at creation, a part after a few positions."""
    script = f"""
import re, bitconv
def rss(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
model = bitconv.load({str(tiny_gguf)!r}, threads=1)
model.context(64).forward([5])  # what a first pass allocates besides
before = rss()
context = model.context(400_000)
created = rss()
for _ in range(20):
    context.forward([5])
print(created - before, rss() - before, model.engine.cache_bytes(400_000, 1))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell how much memory is in use")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    created, used, whole = map(int, done.stdout.split())
    assert whole > 1 << 28
    # at most a few pages for each head and layer, and what Python itself allocates meanwhile
    assert created < 1 << 22 and used < 1 << 24
