"""Checkpoint folders: every tensor is read as it is stored, and every fault names its file."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.formats.checkpoint import STORAGE, open_checkpoint, to_float32
from bitconv.formats.safetensors_header import BITS, parse_header
from tests.paths import REPOSITORY

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    return tmp_path


def tensors() -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.bf16": torch.randn(10, 4, generator=generator).bfloat16(),
        "b.f16": torch.randn(3, generator=generator).half(),
        "c.f32": torch.randn(2, 3, 4, generator=generator),
        "d.u8": torch.arange(12, dtype=torch.uint8).reshape(3, 4),
        "e.f64": torch.randn(2, generator=generator).double(),
        "f.scalar": torch.tensor(2.5),
        "g.empty": torch.zeros(0, 4),
    }


def bits(tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def shard(folder: Path, files: dict[str, list[str]], suffix: str = "safetensors") -> dict[str, str]:
    """Write shards of the given tensors and their index; return the weight map."""
    every = tensors()
    for file, names in files.items():
        part = {name: every[name] for name in names}
        if suffix == "safetensors":
            safetensors_torch.save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    write_index(folder, weight_map, suffix)
    return weight_map


def write_index(folder: Path, weight_map: object, suffix: str = "safetensors") -> None:
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def single(folder: Path) -> None:
    safetensors_torch.save_file(tensors(), folder / "model.safetensors")


def three_shards(folder: Path) -> None:
    shard(folder, {"1.safetensors": ["a.bf16", "b.f16"], "2.safetensors": ["c.f32"],
                   "3.safetensors": ["d.u8", "e.f64", "f.scalar", "g.empty"]})  # fmt: skip


def pickled(folder: Path) -> None:
    torch.save(tensors(), folder / "pytorch_model.bin")


def pickled_shards(folder: Path) -> None:
    shard(folder, {"1.bin": ["a.bf16", "b.f16", "c.f32"], "2.bin": ["d.u8", "e.f64", "f.scalar", "g.empty"]}, "bin")


def pickled_the_old_way(folder: Path) -> None:
    torch.save(tensors(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


FORMS = [single, three_shards, pickled, pickled_shards, pickled_the_old_way]


@pytest.mark.parametrize("save", FORMS)
def test_every_form_gives_the_same_tensors(folder, save):
    save(folder)
    wanted = tensors()
    with open_checkpoint(folder, allow_pickle=True) as checkpoint:
        assert checkpoint.config.read(int, "hidden_size") == 4
        assert set(checkpoint.tensors) == set(wanted)
        for name, tensor in wanted.items():
            entry = checkpoint.tensors[name]
            assert (entry.shape, entry.nbytes) == (tuple(tensor.shape), tensor.numel() * tensor.element_size())
            found = checkpoint.read(name)
            assert found.dtype == STORAGE[entry.dtype] and np.array_equal(found, bits(tensor))
            if entry.dtype != "U8" and name != "e.f64":
                assert np.array_equal(to_float32(found, entry.dtype), tensor.float().numpy())
            found[...] = 0  # a fresh array: the next read is not affected
            assert np.array_equal(checkpoint.read(name), bits(tensor))


@pytest.mark.parametrize("save", [single, pickled])
def test_row_slices(folder, save):
    save(folder)
    with open_checkpoint(folder, allow_pickle=True) as checkpoint:
        for name in ("a.bf16", "c.f32", "b.f16"):
            whole = bits(tensors()[name])
            for start in range(len(whole) + 1):
                for rows in range(len(whole) - start + 1):
                    assert np.array_equal(checkpoint.read(name, start, rows), whole[start : start + rows])
                assert np.array_equal(checkpoint.read(name, start), whole[start:])
            for start, rows in [(0, len(whole) + 1), (-1, 1), (len(whole) + 1, 0), (1, -1)]:
                with pytest.raises(ValueError, match="rows"):
                    checkpoint.read(name, start, rows)
        with pytest.raises(FormatError, match="no tensor absent"):
            checkpoint.read("absent")
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read("a.bf16")


def test_short_reads_are_continued(folder, monkeypatch):
    single(folder)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, parts, at: real(handle, [parts[0][:5]], at))
    with open_checkpoint(folder) as checkpoint:
        assert np.array_equal(checkpoint.read("c.f32"), tensors()["c.f32"].numpy())


def test_a_file_that_shrinks_while_it_is_read_is_named(folder):
    single(folder)
    with open_checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 400)
        with pytest.raises(FormatError, match="model.safetensors: ended at"):
            for name in checkpoint.tensors:
                checkpoint.read(name)


def test_widening_is_exact_for_every_16_bit_pattern():
    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    bf16 = torch.from_numpy(every.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(to_float32(every, "BF16").view(np.uint32), bf16.view(np.uint32))
    f16 = torch.from_numpy(every.view(np.float16).copy()).float().numpy()
    assert np.array_equal(to_float32(every.view(np.float16), "F16"), f16, equal_nan=True)


def test_float64_is_widened_only_when_nothing_is_lost():
    exact = np.array([0.5, -3.0, np.inf, np.nan])
    assert np.array_equal(to_float32(exact, "F64"), exact.astype(np.float32), equal_nan=True)
    for lossy in ([0.1], [1e300], [1e-300]):
        with pytest.raises(UnsupportedError, match="float64"):
            to_float32(np.array(lossy), "F64")
    with pytest.raises(UnsupportedError, match="I64.*supported: F32"):
        to_float32(np.zeros(1, np.int64), "I64")


# ---------------------------------------------------------------- folders with faults


def test_no_weights_lists_what_was_looked_for(folder):
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        assert name in str(caught.value)


def test_pickles_are_refused_unless_allowed(folder):
    pickled(folder)
    with pytest.raises(InputError, match="--allow-pickle"):
        open_checkpoint(folder)


def test_without_torch_the_error_gives_the_pip_line(folder, monkeypatch):
    pickled(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r'pip install "bitconv\[convert\]"'):
        open_checkpoint(folder, allow_pickle=True)


def test_a_pickle_that_would_run_code_is_refused(folder):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch " + str(folder / "owned"),))

    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match="does not load as weights"):
        open_checkpoint(folder, allow_pickle=True)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, {3: "x"}, {"state_dict": {}}])
def test_a_pickle_that_is_no_mapping_of_tensors_is_refused(folder, content):
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match="pytorch_model.bin"):
        open_checkpoint(folder, allow_pickle=True)


def test_a_pickle_of_sparse_or_complex_tensors_is_unsupported(folder):
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64)):
        torch.save({"a": tensor}, folder / "pytorch_model.bin")
        with pytest.raises((UnsupportedError, FormatError), match="pytorch_model.bin"):
            open_checkpoint(folder, allow_pickle=True)


def test_a_truncated_pickle_is_a_format_error(folder):
    pickled(folder)
    data = (folder / "pytorch_model.bin").read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 5):
        (folder / "pytorch_model.bin").write_bytes(data[:size])
        with pytest.raises(FormatError, match="pytorch_model.bin"):
            open_checkpoint(folder, allow_pickle=True)


def test_config_faults_are_named(folder):
    single(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match="config.json: not valid JSON"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "..", "a/b", "a\\b", "a\0b", 7, None])
def test_shard_names_stay_inside_the_folder(folder, name):
    write_index(folder, {"a.bf16": name})
    with pytest.raises(FormatError, match=r"index.json: (weight_map|tensor a.bf16).*"):
        open_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(folder, weight_map):
    write_index(folder, weight_map)
    with pytest.raises(FormatError, match="weight_map"):
        open_checkpoint(folder)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_that_disagree_with_their_index(folder, suffix):
    files = {f"1.{suffix}": ["a.bf16", "b.f16"], f"2.{suffix}": ["c.f32", "d.u8"]}

    def expect(words, error=FormatError):
        with pytest.raises(error, match=words):
            open_checkpoint(folder, allow_pickle=True)

    weight_map = shard(folder, files, suffix)
    write_index(folder, {**weight_map, "c.f32": f"1.{suffix}"}, suffix)
    expect(rf"tensor c.f32 should be in 1.{suffix}")
    write_index(folder, {**weight_map, "z": f"1.{suffix}"}, suffix)
    expect(rf"tensor z should be in 1.{suffix}")
    write_index(folder, {k: v for k, v in weight_map.items() if k != "c.f32"}, suffix)
    expect(rf"2.{suffix} holds tensor c.f32")
    write_index(folder, {**weight_map, "z": f"3.{suffix}"}, suffix)
    expect(rf"3.{suffix}: missing")
    shard(folder, {**files, f"2.{suffix}": ["c.f32", "a.bf16"]}, suffix)
    expect(rf"2.{suffix}: tensor a.bf16 is also in 1.{suffix}")


def test_a_truncated_shard_is_named_with_both_sizes(folder):
    three_shards(folder)
    size = (folder / "2.safetensors").stat().st_size
    os.truncate(folder / "2.safetensors", size - 1)
    with pytest.raises(FormatError, match=rf"2.safetensors: .*{size}.*{size - 1} \(truncated"):
        open_checkpoint(folder)


def test_open_files_are_closed_when_opening_fails(folder):
    three_shards(folder)
    (folder / "3.safetensors").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FormatError):
        open_checkpoint(folder)
    assert len(os.listdir("/proc/self/fd")) == before


def test_sources_that_are_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(InputError, match="a checkpoint is a folder"):
        open_checkpoint(file)
    for bad in (tmp_path / "absent", "a/b/c", "../x", "absent-name", "a/../b"):
        with pytest.raises(InputError, match="no such folder"):
            open_checkpoint(bad)
    with pytest.raises(InputError, match="pip install huggingface_hub\n  hf download org/name --local-dir org/name"):
        open_checkpoint("org/name")


def test_a_hub_id_is_downloaded_without_pickles_unless_allowed(folder, monkeypatch):
    single(folder)
    asked = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        asked.append((name, "*.bin" in allow_patterns))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    for allow in (False, True):
        assert "a.bf16" in open_checkpoint("org/some.name-1", allow_pickle=allow).tensors
    assert asked == [("org/some.name-1", False), ("org/some.name-1", True)]


def test_a_download_that_fails_is_an_input_error(monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(InputError, match="the download failed: no route\nOn a machine"):
        open_checkpoint("org/name")


def test_other_files_of_the_folder(folder):
    single(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "bad.json").write_text("[")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.read_json("generation_config.json") == {"eos_token_id": [1, 2]}
        assert checkpoint.read_json("absent.json") is None and checkpoint.read_bytes("absent") is None
        assert checkpoint.read_bytes("bad.json") == b"["
        for name, words in [("bad.json", "bad.json: not valid JSON"), ("../config.json", "not a plain file name")]:
            with pytest.raises(FormatError, match=words):
                checkpoint.read_json(name)
        with pytest.raises(FormatError, match="larger than 3 bytes"):
            checkpoint.read_bytes("generation_config.json", limit=3)


def test_reading_safetensors_imports_no_torch(folder):
    single(folder)
    code = (
        "import sys; from bitconv.formats.checkpoint import open_checkpoint; "
        f"open_checkpoint({str(folder)!r}).read('a.bf16'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


# ---------------------------------------------------------------- the safetensors header against the library


def library_accepts(data: bytes) -> bool:
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(data)
    except SafetensorError:
        return False
    return True


def we_accept(folder: Path, data: bytes) -> str | None:
    """None when accepted, else the message."""
    (folder / "model.safetensors").write_bytes(data)
    try:
        open_checkpoint(folder).close()
    except FormatError as error:
        assert "model.safetensors" in str(error)
        return str(error)
    return None


def file_of(header: object, body: bytes = b"") -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + body


# what we refuse and the library lets pass, by the words of our message
STRICTER = ("occurs twice", "exactly dtype, shape and data_offsets", "control characters")
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 12, 16, 2**31, 2**62, 2**63, 2**64 - 1, 2**64, -1, True, 1.0, "4", None])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F32", "F32", "BF16", "I4", "f32", "", None, 7]),
        "shape": st.lists(SIZES, max_size=3) | st.sampled_from([[1], [2], [4], [2, 2], [], [0], None, "x", {}]),
        "data_offsets": st.lists(SIZES, max_size=3) | st.sampled_from([[0, 4], [4, 8], [0, 8], [8, 4], [0, 0], None]),
    },
    optional={"extra": st.none()},
)
HEADERS = st.dictionaries(st.text(max_size=2) | st.sampled_from(["a", "b"]), ENTRY, max_size=3).flatmap(
    lambda entries: st.one_of(
        st.just(entries),
        st.builds(lambda m: {**entries, "__metadata__": m}, st.sampled_from([None, {}, {"k": "v"}, {"k": 1}, [], "x"])),
    )
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(header=HEADERS, body=st.sampled_from([0, 1, 2, 4, 8, 12, 16]))
def test_headers_are_judged_as_the_library_judges_them(folder, header, body):
    data = file_of(header, bytes(body))
    message = we_accept(folder, data)
    if library_accepts(data):
        assert message is None or any(word in message for word in STRICTER), message
    else:
        assert message is not None


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_are_judged_as_the_library_judges_them(folder, data):
    good = safetensors_torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4).half()}, {"format": "pt"})
    at = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(max_size=3) | st.sampled_from([b" ", b"0", b"9", b"-", b".", b"[", b"\\", b'"', b","]))
    bad = good[:at] + junk + good[at + len(junk) * data.draw(st.integers(0, 1)) :]
    if data.draw(st.booleans()) and len(bad) >= 8:  # make the length right again, so that the JSON is reached
        end = bad.rfind(b"}") + 1 or len(bad)
        bad = struct.pack("<Q", max(end - 8, 0)) + bad[8:]
    message = we_accept(folder, bad)
    if library_accepts(bad):
        assert message is None or any(word in message for word in STRICTER), message
    else:
        assert message is not None


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda n: n.isprintable() and n != "__metadata__"),
        st.tuples(st.sampled_from(["float32", "float16", "bfloat16", "uint8", "int64", "bool"]),
                  st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)  # fmt: skip
def test_what_the_library_writes_is_read(folder, arrays):
    made = {name: torch.ones(shape).to(getattr(torch, dtype)) for name, (dtype, shape) in arrays.items()}
    (folder / "model.safetensors").write_bytes(safetensors_torch.save(made))
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(made)
        for name, tensor in made.items():
            assert np.array_equal(checkpoint.read(name), bits(tensor))


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
         4, '"a" occurs twice'),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}, 4, "tensor a: must have exactly"),
        ({"a": ["F32", [1], [0, 4]]}, 4, "tensor a: must have exactly"),
        ({"a\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4, "control characters"),
        ({"a": {"dtype": "I4", "shape": [2], "data_offsets": [0, 1]}}, 1, "unknown dtype 'I4'"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4, "tensor a: shape .2. of F32 needs 8 bytes"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, 2, "tensor a: shape .3. of F4 needs 2 bytes"),
        ({"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}, 0, "impossible"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 5, "belong to no tensor"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 3, "truncated"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8, "tensor a .*hole"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
          "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, 6, "tensor b .*overlaps"),
    ],
)  # fmt: skip
def test_header_faults_name_the_tensor(folder, header, body, words):
    data = file_of(header, bytes(body))
    with pytest.raises(FormatError, match="model.safetensors: " + "(.*)" + words):
        parse_header(data[8 : len(data) - body], len(data), "model.safetensors")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are no safetensors"),
        (b"1234567", "7 bytes are no safetensors"),
        (struct.pack("<Q", 100_000_001) + bytes(50), "claims a header of 100000001"),
        (struct.pack("<Q", 2**63) + bytes(50), "claims a header of 9223372036854775808"),
        (struct.pack("<Q", 90_000_000) + bytes(50), "needs 90000008 bytes for its header"),
        (file_of(b""), "not valid JSON"),
    ],
)
def test_file_faults_are_named(folder, data, words):
    assert words in (we_accept(folder, data) or "")


@pytest.mark.parametrize("shape", [[1] * 100, [0, 2**62]])
def test_shapes_that_numpy_cannot_hold_are_format_errors(folder, shape):
    size = 4 if 0 not in shape else 0
    data = file_of({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(size))
    assert library_accepts(data) and we_accept(folder, data) is None
    with open_checkpoint(folder) as checkpoint, pytest.raises(FormatError, match="impossible shape"):
        checkpoint.read("a")


def test_a_dtype_below_a_byte_is_unsupported(folder):
    (folder / "model.safetensors").write_bytes(
        file_of({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x")
    )
    with open_checkpoint(folder) as checkpoint, pytest.raises(UnsupportedError, match="tensor a is F4"):
        checkpoint.read("a")


def test_symbolic_links_are_followed_as_in_a_download_cache(folder):
    single(folder)
    shutil.move(folder / "model.safetensors", folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert "a.bf16" in open_checkpoint(folder).tensors
    (folder / "blob").unlink()
    with pytest.raises(InputError, match="no weights"):
        open_checkpoint(folder)
