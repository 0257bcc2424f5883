"""Files of other programs, which do not state tiles or layouts: every command takes what its error asks for."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitconv
from bitconv import _kernels
from bitconv.errors import BitconvWarning, UnsupportedError
from bitconv.formats.gguf import TensorInfo
from bitconv.runtime import limits
from bitconv.tensor_types import tensor_type
from tests.checkpoints import make_checkpoint
from tests.ternary_files import arm64, as_if_foreign, x4

LAYOUTS = {"arm64": arm64, "x4": x4}
IDS = [1, 7, 42, 300, 8, 9, 10]
COMMANDS: dict[str, tuple[object, ...]] = {
    "run": ("-p", "ab", "-n", 6, "--temp", 0),
    "chat": ("-p", "ab", "-n", 2, "--temp", 0, "--chat-template", "chatml"),
    "perplexity": ("-f", "text.txt", "-c", 16, "--chunks", 1),
    "bench": ("-p", 4, "-n", 2, "-r", 1, "-o", "json"),
    "verify": (),
    "quantize": ("i2_s", "--overwrite"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in I2_S; its shapes are not among those of bitnet.cpp."""
    folder = tmp_path_factory.mktemp("foreign")
    make_checkpoint(folder / "model", n_layers=1, ffn=512)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        return bitconv.convert(folder / "model", folder / "a.gguf").path


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine is measured with small buffers, and text.txt is in the current folder."""
    monkeypatch.setattr(limits, "cache_bytes", lambda: 1 << 18)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("ab cd " * 100)


def unmarked(source: Path, target: Path, kind: str) -> Path:
    """The model in TL1 or TL2, without the key that states its tiles."""
    return as_if_foreign(bitconv.quantize(source, target.with_suffix(".tmp"), type=kind).path, target)


def relaid(source: Path, target: Path, layout: str, dead: tuple[int, ...] = ()) -> Path:
    """The model in another layout of I2_S, with some channels of its feed-forward networks dead."""

    def recode(info: TensorInfo, data: np.ndarray) -> np.ndarray:
        if info.type_name != "I2_S":
            return data
        trits, scale = tensor_type("i2_s").unpack(data, *info.shape)
        for channel in dead:
            if "ffn_down" in info.name:
                trits[:, channel] = 0
            elif "ffn" in info.name:
                trits[channel] = 0
        return LAYOUTS[layout](trits, scale)[2]

    return as_if_foreign(source, target, recode)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["tl1", "tl2"])
@pytest.mark.usefixtures("fast")
def test_a_command_works_with_the_kernel_config_that_its_error_prints(
    source: Path, tmp_path: Path, cli: Any, kind: str, command: str
) -> None:
    path = unmarked(source, tmp_path / "a.gguf", kind)
    refused = cli(command, path, *COMMANDS[command])
    assert refused.code == 5
    proposal = re.search(r'--kernel-config "([^"]+)"', refused.err)
    assert proposal is not None
    outcome = cli(command, path, *COMMANDS[command], "--kernel-config", proposal[1])
    assert outcome.code == 0, outcome.err
    expected = bitconv.load(source).logits(IDS)
    np.testing.assert_array_equal(bitconv.load(path, kernel_config=proposal[1]).logits(IDS), expected)
    if command == "run":
        assert outcome.out == cli(command, source, *COMMANDS[command]).out


@pytest.mark.parametrize("kind", ["tl1", "tl2"])
def test_load_names_the_config_to_try_and_inspect_shows_the_file_with_it(
    source: Path, tmp_path: Path, cli: Any, kind: str
) -> None:
    path = unmarked(source, tmp_path / "a.gguf", kind)
    with pytest.raises(UnsupportedError, match=f'bitconv.{kind}.config is missing.*\n.*--kernel-config "{kind}:'):
        bitconv.load(path)
    shown = cli("inspect", path)
    assert shown.code == 0 and f"bitconv.{kind}.config is missing" in shown.out
    rest = ",32" if kind == "tl1" else ""
    width = 64 if kind == "tl1" else 96
    shapes = [(m, k) for m, k in ((128, 256), (256, 256), (256, 512), (512, 256))]
    config = ";".join(f"{m},{k},128,{width}{rest}" for m, k in shapes)
    assert "runs here: yes" in cli("inspect", path, "--kernel-config", f"{kind}:{config}").out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_of_i2_s_run_as_the_same_model_and_say_that_they_are_slow(
    source: Path, tmp_path: Path, cli: Any, layout: str
) -> None:
    path = relaid(source, tmp_path / "a.gguf", layout)
    expected = bitconv.load(source).logits(IDS)
    assert (bitconv.load(path).logits(IDS) != expected).any(), "taken for x86-128 it is another model"
    with pytest.warns(BitconvWarning, match="unpacked at load, which takes time and memory; `bitconv quantize`"):
        model = bitconv.load(path, i2s_layout=layout)
    np.testing.assert_array_equal(model.logits(IDS), expected)
    options = COMMANDS["run"]
    outcome = cli("run", path, *options, "--i2s-layout", layout)
    assert (outcome.code, outcome.out) == (0, cli("run", source, *options).out)
    assert outcome.err.count("unpacked at load") == 1
    rewritten = bitconv.quantize(path, tmp_path / "b.gguf", type="i2_s", i2s_layout=layout).path
    assert bitconv.verify(rewritten, source).equal
    np.testing.assert_array_equal(bitconv.load(rewritten).logits(IDS), expected)


@pytest.mark.parametrize("kind", ["tl1", "tl2"])
def test_tiles_higher_than_the_kernels_take_are_run_too(tmp_path: Path, kind: str) -> None:
    rows = 2 * _kernels.MAX_TILE_ROWS
    make_checkpoint(tmp_path / "model", n_layers=1, ffn=rows)
    tile = f"{rows},64,64" if kind == "tl1" else f"{rows},96"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        plain = bitconv.convert(tmp_path / "model", tmp_path / "a.gguf").path
        config = f"{kind}:{rows},256,{tile}"
        high = bitconv.convert(tmp_path / "model", tmp_path / "b.gguf", type=kind, kernel_config=config).path
    with pytest.warns(BitconvWarning, match="unpacked at load"):
        model = bitconv.load(high)
    np.testing.assert_array_equal(model.logits(IDS), bitconv.load(plain).logits(IDS))


def test_load_warns_of_a_layout_that_dead_channels_contradict(source: Path, tmp_path: Path) -> None:
    path = relaid(source, tmp_path / "a.gguf", "arm64", dead=(3, 100, 411))
    with pytest.warns(BitconvWarning, match="i2s_layout='arm64'"):
        bitconv.load(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bitconv.load(path, i2s_layout="arm64")
    assert not [w for w in caught if "dead channels" in str(w.message)]
