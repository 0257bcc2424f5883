"""verify finds every difference and every defect, says where, and finds none where there is none."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import BitconvError, BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats.gguf import open_gguf
from bitconv.pipeline.compare import GgufModel, Ternary
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.stored import companion_name
from bitconv.tensor_types.tiles import Tile
from tests import gguf_builder as gb
from tests.checkpoints import FAMILIES, FORMS, make_checkpoint, read_tensors, write_checkpoint
from tests.ternary_files import TERNARY, packed, random_trits, scalar, write_tensors
from tests.test_quantize import DAMAGED

pytestmark = pytest.mark.filterwarnings("ignore::bitconv.errors.BitconvWarning")

NAME = "blk.0.attn_q.weight"


def quietly(function: Any, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        return function(*args, **options)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with its I2_S file beside it."""
    folder = tmp_path_factory.mktemp("verify")
    make_checkpoint(folder / "model", n_layers=2)
    quietly(bitconv.convert, folder / "model", folder / "model-i2_s.gguf")
    return folder


def one_tensor(path: Path, kind: str, trits: np.ndarray, scale: float) -> Path:
    """A file of one matrix with the shape of a known tile, so that it needs no metadata."""
    tensors = {NAME: packed(kind, trits, scale)}
    companion = tensor_type(kind).companion_scale(scale)
    return write_tensors(path, tensors | ({} if companion is None else {companion_name(NAME): scalar(companion)}))


def config_key(kind: str, rows: int, cols: int) -> dict[str, str]:
    found = tensor_type(kind).default_tile
    tile = found(rows, cols) if found else None
    if tile is None:
        return {}
    return {f"bitconv.{kind.lower()}.config": ",".join(map(str, (rows, cols, *(tile if kind == "TL1" else tile[:2]))))}


# one file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERNARY)
def test_a_sound_file_gets_its_census(tmp_path: Path, kind: str) -> None:
    trits, scale = random_trits(64, 512), float(np.float32(0.1))
    trits[:, :100] = 0
    tensors = {NAME: packed(kind, trits, scale)}
    companion = tensor_type(kind).companion_scale(scale)
    if companion is not None:
        tensors[companion_name(NAME)] = scalar(companion)
    path = write_tensors(tmp_path / "a.gguf", tensors, config_key(kind, 64, 512))
    report = bitconv.verify(path)
    (check,) = report.tensors
    assert (report.ok, report.sound, report.equal) == (True, True, None)
    assert (check.type, check.result, check.multiplier) == (kind, "sound", scale)
    assert [check.negative, check.zero, check.positive] == [int((trits == value).sum()) for value in (-1, 0, 1)]
    report.raise_if_failed()


DEFECTS = {
    "I2_S": (0, 0x5F, "code 3 at row 0, column 64"), "TL1": (7, 0x94, "nibble 9 at row 7, column 0"),
    "TL2": (3, 0xEE, "nibble 14 at row 3, column 0"), "TQ1_0": (1, 1, "code at row 0, column 1"),
    "TQ2_0": (2, 3 << 6, "column 98"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_is_located_and_the_other_tensors_are_still_checked(tmp_path: Path, cli: Any, kind: str) -> None:
    at, value, message = DEFECTS[kind]
    good = packed(kind, random_trits(1536, 1536), 0.5)
    data = good[2].copy()
    data[at] = value
    path = write_tensors(tmp_path / "a.gguf", {NAME: (kind, good[1], data), "blk.0.attn_k.weight": good})
    report = bitconv.verify(path)
    assert [check.result for check in report.tensors] == ["malformed", "sound"]
    assert message in str(report.tensors[0].message) and NAME in str(report.tensors[0].message)
    assert not report.ok
    with pytest.raises(FormatError, match=message):
        report.raise_if_failed()
    outcome = cli("verify", path)
    assert outcome.code == 4
    assert message in outcome.err and "1 malformed, 1 sound" in outcome.out


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -0.5])
def test_a_wrong_multiplier_is_malformed(tmp_path: Path, scale: float) -> None:
    path = one_tensor(tmp_path / "a.gguf", "I2_S", random_trits(4, 128), scale)
    assert [check.result for check in bitconv.verify(path).tensors] == ["malformed"]


def test_blocks_with_different_scales_are_unsupported(tmp_path: Path, cli: Any) -> None:
    kind, shape, data = packed("TQ2_0", random_trits(2, 256), 0.5)
    data = data.copy()
    data[-2:] = np.frombuffer(struct.pack("<e", 0.25), np.uint8)
    path = write_tensors(tmp_path / "a.gguf", {NAME: (kind, shape, data)})
    assert [check.result for check in bitconv.verify(path).tensors] == ["unsupported"]
    outcome = cli("verify", path)
    assert outcome.code == 5 and "block at row 1" in outcome.err


def test_a_dense_value_that_is_not_finite_is_malformed(tmp_path: Path) -> None:
    values = np.ones((3, 40), np.float32)
    values[2, 7] = np.nan
    tensors = {"output_norm.weight": ("F32", (3, 40), values.reshape(-1).view(np.uint8))}
    path = write_tensors(tmp_path / "a.gguf", tensors)
    (check,) = bitconv.verify(path).tensors
    assert check.result == "malformed" and "row 2, column 7" in str(check.message)


def test_gaps_and_missing_tensors_are_problems_of_the_file(tmp_path: Path, model: Path, cli: Any) -> None:
    data = packed("I2_S", random_trits(4, 128), 0.5)[2].tobytes()
    records = [gb.tensor(f"blk.{i}.attn_q.weight", (128, 4), 36, 192 * i) for i in range(2)]
    keys = [gb.key("general.architecture", "str", "llama")]
    (tmp_path / "a.gguf").write_bytes(gb.Gguf(keys=keys, tensors=records, data=(data + bytes(32)) * 2).build())
    report = bitconv.verify(tmp_path / "a.gguf")
    assert not report.sound
    assert any("blk.1.attn_q.weight starts at offset" in problem for problem in report.problems)
    assert any("llama.embedding_length is missing" in problem for problem in report.problems)
    assert cli("verify", tmp_path / "a.gguf").code == 4


def test_bytes_after_the_last_tensor_are_noted(tmp_path: Path) -> None:
    path = one_tensor(tmp_path / "a.gguf", "I2_S", random_trits(4, 128), 0.5)
    whole = path.read_bytes()
    for more, said in ((0, False), (1, True), (4096, True)):
        path.write_bytes(whole + bytes(more))
        report = bitconv.verify(path)
        assert report.ok
        assert any(f"{more} bytes after the last tensor" in warning for warning in report.warnings) == said


def test_a_file_of_unknown_types_or_kind_is_no_error(tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "a.gguf"
    keys = [gb.key("general.architecture", "str", "x")]
    path.write_bytes(gb.simple([("a", (7, 3), 200, 64), ("b", (32, 2), 2, 36)], keys))
    report = bitconv.verify(path)
    assert report.ok and [check.result for check in report.tensors] == ["unknown", "unknown"]
    assert any("'x' is not supported" in warning for warning in report.warnings)
    assert cli("verify", path).code == 0


def test_odd_padding_is_a_warning(tmp_path: Path) -> None:
    kind, shape, data = packed("TL2", random_trits(1536, 1536), 0.5)
    data = data.copy()
    data[-28:] = 7  # means nothing
    path = write_tensors(tmp_path / "a.gguf", {NAME: (kind, shape, data)})
    assert not any("byte" in warning for warning in bitconv.verify(path).warnings)
    data[-40] = 7
    path = write_tensors(tmp_path / "b.gguf", {NAME: (kind, shape, data)})
    report = bitconv.verify(path)
    assert report.ok and any(f"byte {len(data) - 40} is 7" in warning for warning in report.warnings)


@pytest.mark.parametrize("damage", DAMAGED)
def test_every_damage_has_its_error_and_exit_code(tmp_path: Path, cli: Any, damage: str) -> None:
    tensor, keys, error, message = DAMAGED[damage]
    path = write_tensors(tmp_path / "a.gguf", {NAME: tensor}, keys)
    with pytest.raises(error, match=message):
        bitconv.verify(path).raise_if_failed()
    outcome = cli("verify", path)
    assert outcome.code == error("").exit_code  # type: ignore[attr-defined]
    assert str(path) in outcome.err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [NAME, "token_embd.weight"])
def test_mxfp4_is_not_taken_for_tl2(tmp_path: Path, cli: Any, name: str) -> None:
    data = packed("I2_S", random_trits(4, 256), 0.5)[2].tobytes() + bytes(64 * 256 // 32 * 17)
    records = [gb.tensor("blk.0.attn_k.weight", (256, 4), 36, 0), gb.tensor(name, (256, 64), 39, 288)]
    keys = [gb.key("general.architecture", "str", "parts"), gb.key("general.file_type", "u32", 39)]
    path = tmp_path / "a.gguf"
    path.write_bytes(gb.Gguf(keys=keys, tensors=records, data=data).build())
    assert [check.result for check in bitconv.verify(path).tensors] == ["sound", "unsupported"]
    for pair in ((path,), (path, path)):
        outcome = cli("verify", *pair, "--tensors", name)
        assert outcome.code == 5
        assert f"error: {path}: tensor {name} is MXFP4" in outcome.err
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_overlap_are_malformed(tmp_path: Path, cli: Any) -> None:
    data = packed("I2_S", random_trits(4, 128), 0.5)[2].tobytes()
    records = [gb.tensor(f"blk.{i}.attn_q.weight", (128, 4), 36, 32 * i) for i in range(2)]
    path = tmp_path / "a.gguf"
    keys = [gb.key("general.architecture", "str", "llama")]
    path.write_bytes(gb.Gguf(keys=keys, tensors=records, data=data * 2).build())
    good = write_tensors(tmp_path / "b.gguf", {NAME: packed("I2_S", random_trits(4, 128), 0.5)})
    for pair in ((path,), (path, good), (good, path)):
        outcome = cli("verify", *pair)
        assert outcome.code == 4
        assert f"{path}: tensor blk.0.attn_q.weight needs 160 bytes" in outcome.err
    assert sorted(tmp_path.iterdir()) == [path, good]


def test_a_truncated_file_and_a_missing_tile_are_errors(tmp_path: Path, model: Path, cli: Any) -> None:
    whole = (model / "model-i2_s.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:-100])
    with pytest.raises(FormatError, match="truncated"):
        bitconv.verify(tmp_path / "a.gguf")
    assert cli("verify", tmp_path / "a.gguf").code == 4
    path = write_tensors(tmp_path / "b.gguf", {NAME: packed("TL2", random_trits(64, 384), 0.5)})
    report = bitconv.verify(path)
    assert report.tensors[0].result == "unsupported"
    assert '--kernel-config "tl2:64,384,64,96"' in str(report.tensors[0].message)
    assert bitconv.verify(path, kernel_config="tl2:64,384,64,96").ok
    with pytest.raises(InputError, match="cannot be opened"):
        bitconv.verify(tmp_path / "absent.gguf")


# two files ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from(TERNARY), st.sampled_from(TERNARY), st.integers(0, 1535), st.integers(0, 1535))
@settings(max_examples=10, deadline=None)
def test_one_changed_weight_is_found(
    tmp_path_factory: pytest.TempPathFactory, kind: str, other: str, row: int, col: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    trits = random_trits(1536, 1536)
    a = one_tensor(folder / "a.gguf", kind, trits, 0.5)
    assert bitconv.verify(a, one_tensor(folder / "same.gguf", other, trits, 0.5)).equal
    changed = trits.copy()
    changed[row, col] = (changed[row, col] + 2) % 3 - 1
    report = bitconv.verify(a, one_tensor(folder / "b.gguf", other, changed, 0.5))
    (check,) = report.tensors
    assert (report.sound, report.equal, check.result) == (True, False, "different")
    assert (check.type, check.other_type, check.differing, check.row, check.col) == (kind, other, 1, row, col)
    assert f"row {row}, column {col}" in str(check.message)


def test_multipliers_are_compared_to_the_last_bit(tmp_path: Path, cli: Any) -> None:
    trits, scale = random_trits(32, 256), np.float32(0.1)
    a = one_tensor(tmp_path / "a.gguf", "I2_S", trits, float(scale))
    assert bitconv.verify(a, one_tensor(tmp_path / "b.gguf", "TQ1_0", trits, float(scale))).equal
    c = one_tensor(tmp_path / "c.gguf", "TQ1_0", trits, float(np.nextafter(scale, np.float32(1))))
    report = bitconv.verify(a, c)
    assert report.tensors[0].message == "the multipliers differ: 0.100000001 and 0.100000009"
    assert not report.equal and not report.only_rounding
    outcome = cli("verify", a, c)
    assert outcome.code == 1 and NAME in outcome.err


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "F16", "BF16"])
def test_a_rounded_multiplier_is_said_to_be_only_that(tmp_path: Path, model: Path, cli: Any, kind: str) -> None:
    exact = model / "model-i2_s.gguf"
    options = {"tq_scale": "f16", "fallback": "i2_s"} if kind.startswith("TQ") else {}
    rounded = quietly(bitconv.quantize, exact, tmp_path / "a.gguf", type=kind.lower(), **options).path
    for a, b in ((exact, rounded), (rounded, exact), (rounded, model / "model")):
        report = bitconv.verify(a, b)
        assert report.only_rounding and not report.equal
        report.raise_if_failed(rounding=True)
        with pytest.raises(BitconvError, match="is rounded to"):
            report.raise_if_failed()
        outcome = cli("verify", a, b)
        assert outcome.code == 1
        assert "all weights are the same; only the multipliers of" in outcome.out


def test_dense_tensors_may_be_rounded_to_their_type_but_not_changed(tmp_path: Path, cli: Any) -> None:
    values = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)

    def file(name: str, kind: str, values: np.ndarray) -> Path:
        return write_tensors(
            tmp_path / name, {"token_embd.weight": (kind, values.shape, tensor_type(kind).pack(values))}
        )

    a = file("a.gguf", "F32", values)
    for kind in ("F16", "BF16", "Q8_0", "Q6_K"):
        b = file(f"{kind}.gguf", kind, values)
        for pair in ((a, b), (b, a)):
            report = bitconv.verify(*pair)
            assert report.equal and report.tensors[0].result == "rounded"
            assert f"rounded to {kind}" in str(report.tensors[0].message)
    values[4, 9] += 0.01
    for kind in ("F32", "F16", "Q8_0"):
        report = bitconv.verify(a, file(f"changed-{kind}.gguf", kind, values))
        assert not report.equal and report.tensors[0].result == "different"
    report = bitconv.verify(a, tmp_path / "changed-F32.gguf")
    assert (report.tensors[0].row, report.tensors[0].col, report.tensors[0].differing) == (4, 9, 1)


def test_missing_tensors_and_other_shapes_are_differences(tmp_path: Path) -> None:
    one, two = packed("I2_S", random_trits(4, 128), 0.5), packed("I2_S", random_trits(8, 128), 0.5)
    a = write_tensors(tmp_path / "a.gguf", {"x.weight": one, "y.weight": one, "z.weight": one})
    b = write_tensors(tmp_path / "b.gguf", {"w.weight": one, "x.weight": two, "z.weight": one})
    found = {check.name: (check.result, check.message) for check in bitconv.verify(a, b).tensors}
    assert found["x.weight"] == ("different", "the shapes differ: [4, 128] and [8, 128]")
    assert found["y.weight"] == ("missing", f"not in {b}")
    assert found["w.weight"] == ("missing", f"not in {a}")
    assert found["z.weight"][0] == "same"
    assert bitconv.verify(a, b, tensors="z*").equal
    with pytest.raises(InputError, match="no tensor is called 'q'"):
        bitconv.verify(a, b, tensors="q")


def test_a_matrix_that_is_ternary_on_one_side_only_differs(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    a = one_tensor(tmp_path / "a.gguf", "I2_S", random_trits(4, 128), 0.5)
    b = write_tensors(tmp_path / "b.gguf", {NAME: ("F32", (4, 128), tensor_type("F32").pack(values))})
    assert bitconv.verify(a, b).tensors[0].message == f"it is not ternary in {b}"
    assert bitconv.verify(b).tensors[0].message == "not ternary"
    assert bitconv.verify(b, b).equal


@pytest.mark.parametrize("dense", ["F32", "F16"])
def test_a_matrix_of_any_name_is_compared_with_its_dense_form(tmp_path: Path, dense: str) -> None:
    trits = random_trits(128, 256)
    name = "no_linear.of_ours"
    one = write_tensors(tmp_path / "a.gguf", {name: packed("I2_S", trits, 0.5)})
    for changed, result in ((False, "same"), (True, "different")):
        values = trits * np.float32(0.5)
        if changed:
            values[3, 7] = 0.5 if values[3, 7] < 0 else -0.5
        held = dense, trits.shape, tensor_type(dense).pack(values)
        other = write_tensors(tmp_path / f"{result}.gguf", {name: held})
        for a, b in ((one, other), (other, one)):
            (check,) = bitconv.verify(a, b).tensors
            assert check.result == result, check.message


def test_a_defect_in_the_second_file_is_a_defect(tmp_path: Path) -> None:
    good = packed("I2_S", random_trits(4, 128), 0.5)
    data = good[2].copy()
    data[0] = 0xFF
    a = write_tensors(tmp_path / "a.gguf", {NAME: good})
    b = write_tensors(tmp_path / "b.gguf", {NAME: ("I2_S", (4, 128), data)})
    with pytest.raises(FormatError, match=str(b)):
        bitconv.verify(a, b).raise_if_failed()


def test_a_wrong_tile_of_the_same_triples_is_found_by_comparison_only(tmp_path: Path) -> None:
    trits = random_trits(64, 384)
    a = write_tensors(tmp_path / "a.gguf", {NAME: packed("I2_S", trits, 0.5)})
    b = write_tensors(
        tmp_path / "b.gguf", {NAME: packed("TL2", trits, 0.5, Tile(64, 96))}, {"bitconv.tl2.config": "64,384,32,96"}
    )
    assert bitconv.verify(b).ok
    assert not bitconv.verify(a, b).equal


def test_what_is_said_about_one_file_does_not_contradict_the_other(tmp_path: Path) -> None:
    trits = random_trits(64, 384)
    mute = write_tensors(tmp_path / "a.gguf", {NAME: packed("TL2", trits, 0.5, Tile(32, 192))})
    stating = write_tensors(
        tmp_path / "b.gguf", {NAME: packed("TL2", trits, 0.5, Tile(64, 96))}, {"bitconv.tl2.config": "64,384,64,96"}
    )
    for pair in ((mute, stating), (stating, mute)):
        assert bitconv.verify(*pair, kernel_config="tl2:64,384,32,192").equal
    with pytest.raises(InputError, match="the kernel config says"):
        bitconv.verify(stating, kernel_config="tl2:64,384,32,192").raise_if_failed()


# a file and a checkpoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_a_conversion_equals_its_checkpoint(tmp_path: Path, family: str, form: str) -> None:
    if (family, form) == ("llama", "master"):
        pytest.skip("not ternary")
    source = make_checkpoint(tmp_path / "model", family=family, form=form, n_layers=1, dtype="bfloat16")
    path = quietly(bitconv.convert, source, tmp_path / "a.gguf").path
    report = bitconv.verify(path, source)
    assert report.ok, [check for check in report.tensors if check.fails]
    assert sum(check.multiplier is not None for check in report.tensors) == 7


@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_another_checkpoint_differs_at_the_right_row(tmp_path: Path, family: str) -> None:
    form = "packed_autobitlinear" if family == "bitnet" else "packed_bitlinear"
    source = make_checkpoint(tmp_path / "model", family=family, form=form, n_layers=1)
    path = quietly(bitconv.convert, source, tmp_path / "a.gguf").path
    tensors = read_tensors(source)
    name = "model.layers.0.self_attn.q_proj.weight"
    code, array = tensors[name]
    array = array.copy()
    array[5, 77] ^= 1 if array[5, 77] & 3 == 0 else array[5, 77] & 3  # the trit at row 5 becomes another
    tensors[name] = code, array
    changed = write_checkpoint(tmp_path / "changed", json.loads((source / "config.json").read_text()), tensors)
    report = bitconv.verify(path, changed)
    (check,) = (check for check in report.tensors if check.fails)
    # head dimension 64: in the llama order row 5 of a head is row 2 * 5
    assert (check.name, check.differing, check.row, check.col) == (NAME, 1, 10 if family == "llama" else 5, 77)


def test_the_wrong_direction_of_the_scale_is_found(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", form="packed_autobitlinear", n_layers=1)
    path = quietly(bitconv.convert, source, tmp_path / "a.gguf").path
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet"}
    (source / "config.json").write_text(json.dumps(config))
    report = bitconv.verify(path, source)
    assert sum(check.result == "different" for check in report.tensors) == 7
    assert all("multipliers differ" in str(check.message) for check in report.tensors if check.fails)


# command line ---------------------------------------------------------------------------------------------------------


def test_command_line(model: Path, tmp_path: Path, cli: Any) -> None:
    path = model / "model-i2_s.gguf"
    outcome = cli("verify", path)
    assert (outcome.code, outcome.err) == (0, "")
    row = next(line.split() for line in outcome.out.splitlines() if line.split()[:1] == [NAME])
    with open_gguf(path) as gguf:
        assert row[1:3] == ["I2_S", "x".join(map(str, gguf.tensors[NAME].shape))]
    assert sum(float(share) for share in row[4:10:2]) == pytest.approx(100, abs=0.02)  # two decimals each
    value = json.loads(cli("verify", path, model / "model", "--json").out)
    assert value["ok"] and value["equal"] and not value["only_rounding"]
    assert {check["result"] for check in value["tensors"]} == {"same", "rounded"}
    assert cli("verify", path, "--tensors", "blk.0.*", "--json").out.count('"name"') == 11
    assert f"same trits and multipliers as {model / 'model'}" in cli("verify", path, model / "model").out
    assert cli("verify", path, tmp_path / "absent").code == 3
    seen: list[tuple[int, int]] = []
    bitconv.verify(path, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


def test_convert_verifies_what_it_wrote(
    model: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(name: str, *options: str) -> Any:
        return cli("convert", model / "model", "-o", tmp_path / name, "--verify", *options)

    outcome = convert("a.gguf", "--type", "tl2")
    assert outcome.code == 0 and f"same trits and multipliers as {model / 'model'}" in outcome.err
    outcome = convert("b.gguf", "--type", "f16")
    assert outcome.code == 0 and "only the multipliers of 14 tensors are rounded" in outcome.err
    whole = GgufModel.ternary

    def another(self: GgufModel, name: str, *, like: Ternary | None = None) -> Ternary | None:
        found = whole(self, name, like=like)
        return found and Ternary(found.multiplier * 2, found.read)

    monkeypatch.setattr(GgufModel, "ternary", another)
    outcome = convert("c.gguf")
    assert outcome.code == 1 and "14 of 24 tensors differ" in outcome.err


def test_unsupported_and_malformed_have_their_own_exit_codes() -> None:
    assert (FormatError("").exit_code, UnsupportedError("").exit_code, BitconvError("").exit_code) == (4, 5, 1)
