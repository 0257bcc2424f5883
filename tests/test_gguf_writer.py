"""The GGUF writer: what is written comes back, and whatever goes wrong leaves no plausible file."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitconv.errors import InputError, ResourceError
from bitconv.formats import gguf_writer
from bitconv.formats.ggml_types import ggml_type, nbytes
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from tests.paths import REPOSITORY

F32, F16, Q8_0, BF16, I2_S, TL1, TL2 = 0, 1, 8, 30, 36, 38, 39

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.isprintable)
SCALARS = {
    "u8": st.integers(0, 2**8 - 1),
    "i8": st.integers(-(2**7), 2**7 - 1),
    "u16": st.integers(0, 2**16 - 1),
    "i16": st.integers(-(2**15), 2**15 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "u64": st.integers(0, 2**64 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1),
    "f32": st.floats(width=32),
    "f64": st.floats(),
    "bool": st.booleans(),
    "str": TEXT,
}
VALUES = st.sampled_from(sorted(SCALARS)).flatmap(
    lambda kind: st.one_of(
        st.tuples(st.just(kind), SCALARS[kind]),
        st.tuples(st.just(f"arr[{kind}]"), st.lists(SCALARS[kind], max_size=6)),
    )
)
# (type, shapes it can hold)
TENSORS = st.one_of(
    st.tuples(st.sampled_from([F32, F16, BF16]), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)),
    st.tuples(st.just(Q8_0), st.tuples(st.integers(1, 4), st.sampled_from([32, 96]))),
    st.tuples(st.sampled_from([I2_S, TL1]), st.tuples(st.integers(1, 5), st.sampled_from([128, 384]))),
    st.tuples(st.just(TL2), st.tuples(st.sampled_from([32, 96]), st.sampled_from([288, 352]))),
)


def pattern(size: int, seed: int) -> np.ndarray:
    return ((np.arange(size, dtype=np.uint64) * 7 + seed) % 251).astype(np.uint8)


def model(path: Path, *, overwrite: bool = False, rows: int = 64) -> bytes:
    """Write a small model; return the bytes of its big tensor."""
    big = pattern(nbytes(I2_S, (rows, 256)), 3)
    with GgufWriter(path, "bitnet-b1.58", overwrite=overwrite) as writer:
        writer.add("bitnet-b1.58.block_count", 1, "u32")
        writer.add("tokenizer.ggml.tokens", ["a", "b"], "arr[str]")
        writer.declare("w", (rows, 256), I2_S)
        writer.declare("n", (5,), F32)
        for start in range(0, len(big), 1000):
            writer.write("w", big[start : start + 1000])
        writer.write("n", np.arange(5, dtype=np.float32))
        writer.finish()
    return big.tobytes()


def nothing_but(folder: Path, *names: str) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(same(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, float) and math.isnan(wanted):
        return math.isnan(found)
    return bool(found == wanted)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    keys=st.dictionaries(NAMES.filter(lambda n: not n.startswith(("general.", "split."))), VALUES, max_size=6),
    tensors=st.dictionaries(NAMES, TENSORS, max_size=5),
    pieces=st.integers(1, 3),
)
def test_whatever_is_written_comes_back(tmp_path, keys, tensors, pieces):
    path = tmp_path / "m.gguf"
    contents = {}
    with GgufWriter(path, "llama", overwrite=True) as writer:
        for name, (kind, value) in keys.items():
            writer.add(name, value, kind)
        for name, (type_id, shape) in tensors.items():
            writer.declare(name, shape, type_id)
        for seed, (name, (type_id, shape)) in enumerate(tensors.items()):
            contents[name] = pattern(nbytes(type_id, shape), seed)
            for part in np.array_split(contents[name], pieces):
                if part.size:  # a tensor that is whole takes no more, not even nothing
                    writer.write(name, part)
        writer.finish()
    with open_gguf(path) as file:
        assert list(file.metadata) == ["general.architecture", *keys]
        for name, (kind, value) in keys.items():
            assert file.metadata_types[name] == kind
            assert same(file.metadata[name], value)
        assert list(file.tensors) == list(tensors)
        for name, (type_id, shape) in tensors.items():
            info = file.tensors[name]
            assert (info.type_id, info.type_name, info.shape) == (type_id, ggml_type(type_id).name, shape)
            assert np.array_equal(file.data(name), contents[name])
    nothing_but(tmp_path, "m.gguf")


def test_tensors_are_contiguous_and_padded_to_32_bytes(tmp_path):
    model(tmp_path / "m.gguf")
    file = open_gguf(tmp_path / "m.gguf")
    w, n = file.tensors["w"], file.tensors["n"]
    assert w.offset % 32 == 0 and n.offset == w.offset + 4128
    assert (tmp_path / "m.gguf").stat().st_size == n.offset + 32


def test_the_gguf_package_reads_our_files_identically(tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import quantize

    rng = np.random.default_rng(1)
    dense = rng.standard_normal((6, 64)).astype(np.float32)
    arrays = {"f32": dense, "f16": dense.astype(np.float16), "q8": quantize(dense, GGMLQuantizationType.Q8_0)}
    ids = {"f32": F32, "f16": F16, "q8": Q8_0}
    path = tmp_path / "m.gguf"
    with GgufWriter(path, "llama") as writer:
        writer.add("llama.block_count", 3, "u32")
        writer.add("tokenizer.ggml.tokens", ["a", "ä", ""], "arr[str]")
        writer.add("tokenizer.ggml.scores", np.array([0.5, -1, 2], np.float32), "arr[f32]")
        writer.add("tokenizer.ggml.add_bos_token", True, "bool")
        for name in arrays:
            writer.declare(name, (6, 64), ids[name])
        for name, array in arrays.items():
            writer.write(name, array)
        writer.finish()
    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name].data, array)
        assert found[name].shape.tolist() == [64, 6] and found[name].tensor_type == ids[name]
    contents = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert contents == {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "tokenizer.ggml.tokens": ["a", "ä", ""],
        "tokenizer.ggml.scores": [0.5, -1, 2],
        "tokenizer.ggml.add_bos_token": True,
    }


def test_the_same_input_gives_the_same_bytes(tmp_path):
    model(tmp_path / "a.gguf")
    model(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_existing_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already; --overwrite"):
        GgufWriter(path, "llama")
    assert path.read_bytes() == b"precious"
    nothing_but(tmp_path, "m.gguf")


def test_overwriting_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    with GgufWriter(path, "llama", overwrite=True) as writer:
        writer.declare("n", (5,), F32)
        writer.write("n", bytes(20))
        assert path.read_bytes() == b"precious"
    assert path.read_bytes() == b"precious"  # left without finish
    nothing_but(tmp_path, "m.gguf")
    model(path, overwrite=True)
    assert open_gguf(path).tensors["w"].nbytes == 4128


def test_a_file_that_appears_meanwhile_is_not_harmed(tmp_path):
    path = tmp_path / "m.gguf"
    with GgufWriter(path, "llama") as writer:
        path.write_bytes(b"precious")
        with pytest.raises(InputError, match="appeared"):
            writer.finish()
    assert path.read_bytes() == b"precious"
    nothing_but(tmp_path, "m.gguf")


def test_without_hard_links_the_file_is_renamed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    model(tmp_path / "m.gguf")
    nothing_but(tmp_path, "m.gguf")
    open_gguf(tmp_path / "m.gguf")


def test_an_exception_inside_removes_the_partial_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), GgufWriter(tmp_path / "m.gguf", "llama") as writer:
        writer.declare("n", (5,), F32)
        writer.write("n", bytes(4))
        nothing_but(tmp_path, "m.gguf.partial")
        raise KeyboardInterrupt
    nothing_but(tmp_path)


def test_two_writers_of_one_file_do_not_harm_each_other(tmp_path):
    path = tmp_path / "m.gguf"
    with GgufWriter(path, "llama") as first:
        first.declare("n", (5,), F32)
        first.write("n", bytes(20))
        with pytest.raises(InputError, match="another process"):
            GgufWriter(path, "llama")
        nothing_but(tmp_path, "m.gguf.partial")
        first.finish()
    assert open_gguf(path).tensors["n"].nbytes == 20


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    path = tmp_path / "m.gguf"
    (tmp_path / "m.gguf.partial").write_bytes(b"stale" * 10000)
    model(path)
    whole = path.read_bytes()
    # killed between link and unlink: the partial name still leads to the finished file
    os.link(path, tmp_path / "m.gguf.partial")
    with GgufWriter(path, "llama", overwrite=True) as writer:
        writer.declare("n", (5,), F32)
        writer.write("n", bytes(20))
        assert path.read_bytes() == whole
    assert path.read_bytes() == whole
    nothing_but(tmp_path, "m.gguf")


@pytest.mark.parametrize("kind", ["folder", "symlink"])
def test_a_partial_name_that_is_no_file_is_an_input_error(tmp_path, kind):
    partial = tmp_path / "m.gguf.partial"
    if kind == "folder":
        partial.mkdir()
    else:
        (tmp_path / "elsewhere").write_bytes(b"precious")
        partial.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="partial"):
        GgufWriter(tmp_path / "m.gguf", "llama")
    if kind == "symlink":
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_bad_targets_are_input_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in [tmp_path / "absent" / "m.gguf", tmp_path / "pipe", tmp_path]:
        with pytest.raises(InputError):
            GgufWriter(path, "llama", overwrite=True)


def test_misuse_is_a_value_error_and_leaves_nothing(tmp_path):
    def attempt(misuse, message):
        with pytest.raises(ValueError, match=message), GgufWriter(tmp_path / "m.gguf", "llama") as writer:
            writer.add("k", 1, "u32")
            writer.declare("a", (5,), F32)
            writer.declare("b", (5,), F32)
            misuse(writer)
        nothing_but(tmp_path)

    attempt(lambda w: w.add("k", 1, "u32"), "twice")
    attempt(lambda w: w.add("general.architecture", "x", "str"), "twice")
    attempt(lambda w: w.add("x", 1, "u128"), "u128")
    attempt(lambda w: w.add("x", -1, "u32"), "key x")
    attempt(lambda w: w.add("x", True, "u32"), "key x")
    attempt(lambda w: w.add("x", 1, "bool"), "key x")
    attempt(lambda w: w.add("x", 1e300, "f32"), "key x")
    attempt(lambda w: w.add("x", ["a", 3], "arr[str]"), "key x")
    attempt(lambda w: w.add("x", "\ud800", "str"), "key x")
    attempt(lambda w: w.declare("a", (5,), F32), "twice")
    attempt(lambda w: w.declare("c", (5,), 99), "type 99")
    attempt(lambda w: w.declare("c", (0,), F32), "shape")
    attempt(lambda w: w.declare("c", (), F32), "shape")
    attempt(lambda w: w.declare("c", (33,), Q8_0), "Q8_0")
    attempt(lambda w: w.write("z", b""), "not declared")
    attempt(lambda w: w.write("b", bytes(20)), "turn of a")
    attempt(lambda w: w.write("a", bytes(24)), "20 bytes; 24")
    attempt(lambda w: (w.write("a", bytes(20)), w.add("x", 1, "u32")), "header is written")
    attempt(lambda w: (w.write("a", bytes(20)), w.finish()), "0 of 20 bytes")


def test_a_disk_that_is_too_small_fails_before_anything_is_written(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)

    class Full:
        f_bavail, f_frsize, f_blocks = 1, 4096, real.f_blocks

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    monkeypatch.setattr(os, "write", lambda *_: pytest.fail("wrote"))
    with pytest.raises(ResourceError, match=r"needs 4\d\d\d bytes but its file system has 4096 free"):
        model(tmp_path / "m.gguf")
    nothing_but(tmp_path)


def count_calls(tmp_path, monkeypatch, name):
    calls = []
    real = getattr(os, name)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, lambda *a: (calls.append(a), real(*a))[1])
        model(tmp_path / "count.gguf")
    (tmp_path / "count.gguf").unlink()
    return len(calls)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("name", "code"), [
    ("write", errno.ENOSPC), ("write", errno.EDQUOT), ("write", errno.EIO), ("fsync", errno.ENOSPC),
    ("link", errno.ENOSPC), ("replace", errno.ENOSPC),
])  # fmt: skip
def test_a_refusal_of_the_system_at_any_call_leaves_nothing(tmp_path, monkeypatch, name, code, overwrite):
    if name == ("link" if overwrite else "replace"):
        pytest.skip("the other way of renaming")
    total = 1 if name in ("link", "replace", "fsync") else count_calls(tmp_path, monkeypatch, name)
    path = tmp_path / "m.gguf"
    real = getattr(os, name)
    for failing in range(total):
        if overwrite:
            path.write_bytes(b"precious")
        calls = iter(range(total + 1))

        def refuse(*args, failing=failing, calls=calls):
            if next(calls) == failing:
                raise OSError(code, os.strerror(code))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(ResourceError, match="cannot be written" if code == errno.EIO else "no space left"):
                model(path, overwrite=overwrite)
        nothing_but(tmp_path, *["m.gguf"] * overwrite)
        assert not overwrite or path.read_bytes() == b"precious"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:37]))
    big = model(tmp_path / "m.gguf")
    assert open_gguf(tmp_path / "m.gguf").data("w").tobytes() == big


CHILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.test_gguf_writer import model
print("ready", flush=True)
model(Path(sys.argv[1]), overwrite=True, rows=int(sys.argv[2]))
"""


def child(path: Path, rows: int, **options) -> subprocess.Popen:
    code = CHILD.format(root=str(REPOSITORY))
    command = [sys.executable, "-c", code, str(path), str(rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_file_size_limit_is_a_resource_error_and_leaves_nothing(tmp_path):
    limit = 20000
    process = child(
        tmp_path / "m.gguf", 1024,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ResourceError" in stderr and "File too large" in stderr
    nothing_but(tmp_path)


def test_kill_9_at_any_moment_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    finished = 0
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02):
        process = child(path, 20000)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if path.read_bytes() != b"precious":  # it won the race: then the file is whole
            finished += 1
            assert open_gguf(path).tensors["w"].nbytes == nbytes(I2_S, (20000, 256))
            path.write_bytes(b"precious")
    assert finished < 5
    model(path, overwrite=True)
    nothing_but(tmp_path, "m.gguf")


def test_reading_does_not_import_the_gguf_package():
    code = "import sys, bitconv.formats.gguf, bitconv.formats.gguf_writer; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_the_method_of_the_gguf_package_that_we_override_exists():
    # a release that renames it would pack arrays element by element, and refuse empty ones
    assert "_pack_val" in dir(type(gguf_writer._header_writer("llama")).__mro__[1])
