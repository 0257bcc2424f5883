"""Checkpoint folders: every tensor is read as it is stored, and every fault names its file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.formats.checkpoint import STORAGE, open_checkpoint, to_float32
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


def test_symbolic_links_are_followed_as_in_a_download_cache(folder):
    single(folder)
    shutil.move(folder / "model.safetensors", folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert "a.bf16" in open_checkpoint(folder).tensors
    (folder / "blob").unlink()
    with pytest.raises(InputError, match="no weights"):
        open_checkpoint(folder)
