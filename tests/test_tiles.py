"""Tiles of TL1 and TL2: which are legal, which is the default, how they are written and read; the table of layouts."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.tensor_types.tiles import (
    METADATA_KEYS,
    Tile,
    choose_tile,
    default_tile,
    format_kernel_config,
    format_tiles,
    illegal_shape,
    illegal_tile,
    known_tiles,
    parse_kernel_config,
    parse_tiles,
    tiles_of_file,
)
from tests.paths import REPOSITORY, SHARED

KINDS = ("TL1", "TL2")


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("gen_tile_table", REPOSITORY / "tools" / "gen_tile_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = tool()
LAYOUTS = TOOL.layouts()


def every_tile(kind: str, rows: int, cols: int) -> list[Tile]:
    """All tiles that might cut a shape."""
    return [
        Tile(tile_rows, tile_cols, step)
        for step in ((32, 64) if kind == "TL1" else (32,))
        for tile_rows in range(32, rows + 1, 32)
        for tile_cols in range(4, 300, 4)
        if illegal_tile(kind, rows, cols, Tile(tile_rows, tile_cols, step)) is None
    ]


def test_the_number_of_legal_tiles_is_that_of_an_independent_count():
    if SHARED is None:
        pytest.skip("the table of legal shapes is not beside the checkout")
    text = (SHARED / "spec" / "LEGALITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\d+) \| (\d+) \| [^|]* \| [^|]* \| (\d+) ok \| (\d+) ok, BK in \[([\d, ]+)\]", text)
    assert len(rows) > 80
    for m, k, tl1, tl2, tile_cols in sorted({row for row in rows if int(row[0]) < 2000}):
        shape = int(m), int(k)
        assert len(every_tile("TL1", *shape)) == int(tl1), shape
        found = every_tile("TL2", *shape)
        assert len(found) == int(tl2), shape
        assert {tile.cols for tile in found} == {int(n) for n in tile_cols.split(", ")}, shape


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(rows=st.integers(1, 40), cols=st.integers(1, 300))
def test_every_shape_of_32s_has_a_legal_default_tile(kind, rows, cols):
    shape = 32 * rows, 32 * cols
    tile = default_tile(kind, *shape)
    if kind == "TL2" and shape[1] < 256:
        assert tile is None
        return
    assert tile is not None
    assert illegal_tile(kind, *shape, tile) is None
    assert illegal_shape(kind, *shape) is None
    if shape in known_tiles(kind):
        return
    assert tile.rows == max(n for n in (128, 64, 32) if shape[0] % n == 0)
    assert tile.step == 32
    assert tile.cols == (96 if kind == "TL2" else 32 if cols % 2 else 64)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(rows=st.integers(-1, 300), cols=st.integers(-1, 700))
def test_a_shape_without_default_tile_has_a_reason_that_names_the_number(kind, rows, cols):
    reason = illegal_shape(kind, rows, cols)
    assert (reason is None) == (default_tile(kind, rows, cols) is not None)
    if rows % 32 or rows < 1:
        assert reason is not None and f"M = {rows}" in reason
    elif cols % 32 or cols < (256 if kind == "TL2" else 1):
        assert reason is not None and f"K = {cols}" in reason
    else:
        assert reason is None


@pytest.mark.parametrize(
    ("kind", "shape", "tile", "reason"),
    [
        ("TL1", (256, 256), (128, 64, 16), "bm must be 32 or 64"),
        ("TL1", (256, 256), (96, 64, 64), "BM = 96 is not a multiple of bm = 64"),
        ("TL1", (256, 256), (96, 64, 32), "M = 256 is not a multiple of BM = 96"),
        ("TL1", (256, 256), (128, 12, 32), "BK = 12 is not a multiple of 256 / bm = 8"),
        ("TL1", (256, 256), (128, 96, 32), "K = 256 is not a multiple of BK = 96"),
        ("TL1", (256, 24), (128, 24, 32), "K = 24 is not a multiple of 16"),
        ("TL1", (256, 512), (128, 512, 32), "BK must not exceed 256"),
        ("TL1", (256, 256), (0, 64, 32), "BM = 0"),
        ("TL1", (256, 256), (128, 0, 32), "BK = 0"),
        ("TL1", (0, 256), (128, 64, 32), "M = 0"),
        ("TL1", (256, 256), (-128, 64, 32), "BM = -128"),
        ("TL2", (256, 256), (128, 96, 64), "bm must be 32"),
        ("TL2", (256, 256), (48, 96, 32), "BM = 48 is not a multiple of 32"),
        ("TL2", (256, 256), (96, 96, 32), "M = 256 is not a multiple of BM = 96"),
        ("TL2", (256, 300), (128, 60, 32), "BK = 60 is not a multiple of 24"),
        ("TL2", (256, 192), (128, 96, 32), "K must be at least 256"),
        ("TL2", (256, 1056), (128, 264, 32), "BK must not exceed 258"),
        ("TL2", (256, 256), (128, 48, 32), "K mod BK = 16 is not a multiple of 32"),
        ("TL2", (256, 256), (128, 0, 32), "BK = 0"),
    ],
)
def test_an_illegal_tile_has_a_reason(kind, shape, tile, reason):
    found = illegal_tile(kind, *shape, Tile(*tile))
    assert found is not None and reason in found and str(list(shape)) in found
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        choose_tile(kind, *shape, Tile(*tile))


def test_known_tiles_are_legal_and_are_the_defaults():
    for kind in KINDS:
        assert len(known_tiles(kind)) == 10
        for shape, tile in known_tiles(kind).items():
            assert illegal_tile(kind, *shape, tile) is None
            assert default_tile(kind, *shape) == tile


def test_documented_tiles_are_those_of_the_code():
    text = (REPOSITORY / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    documented: dict[str, dict[tuple[int, int], tuple[int, ...]]] = {"TL1": {}, "TL2": {}}
    for shapes, tl1, tl2 in re.findall(r"^\| ([\d x,]+ x [\d x,]+) \| ([\d, ]+) \| ([\d, ]+) \|$", text, re.M):
        for shape in re.findall(r"(\d+) x (\d+)", shapes):
            rows, cols = (int(n) for n in shape)
            documented["TL1"][rows, cols] = tuple(int(n) for n in tl1.split(", "))
            documented["TL2"][rows, cols] = (*(int(n) for n in tl2.split(", ")), 32)
    assert documented == {kind: dict(known_tiles(kind)) for kind in KINDS}


@st.composite
def tables(draw: st.DrawFn, kind: str) -> dict[tuple[int, int], Tile]:
    shapes = st.tuples(st.integers(1, 8), st.integers(8, 20)).map(lambda s: (32 * s[0], 32 * s[1]))
    chosen = draw(st.lists(shapes, unique=True, max_size=4))
    return {shape: draw(st.sampled_from(every_tile(kind, *shape))) for shape in chosen}


@settings(max_examples=60, deadline=None)
@given(tl1=tables("TL1"), tl2=tables("TL2"))
def test_what_is_written_is_what_is_read(tl1, tl2):
    for kind, tiles in (("TL1", tl1), ("TL2", tl2)):
        text = format_tiles(kind, tiles)
        assert re.fullmatch(r"[0-9,;]*", text)
        if tiles:
            assert parse_tiles(kind, text, "x") == tiles
            shapes = [tuple(int(n) for n in entry.split(",")[:2]) for entry in text.split(";")]
            assert shapes == sorted(shapes)
    both = {kind: tiles for kind, tiles in (("TL1", tl1), ("TL2", tl2)) if tiles}
    if both:
        assert parse_kernel_config(format_kernel_config(both)) == both


def test_the_documented_spelling_of_a_kernel_config():
    text = "tl2:256,256,128,96;768,256,128,96"
    expected = {"TL2": {(256, 256): Tile(128, 96), (768, 256): Tile(128, 96)}}
    assert parse_kernel_config(text) == expected
    assert format_kernel_config(expected) == text
    assert parse_kernel_config("TL1:32,64,32,64,32;" + text)["TL1"] == {(32, 64): Tile(32, 64, 32)}


@pytest.mark.parametrize(
    "entries",
    [
        "", "256", "256,256,128", "256,256,128,96,32", "256,256,128,96;", ";256,256,128,96", "256, 256,128,96",
        "256,256,-128,96", "256,256,+128,96", "256,256,1_28,96", "0x100,256,128,96", "256,256,128,60",
        "256,256,0,96", "256,256,128,0", "256,256,128,96;256,256,64,96", "٢٥٦,256,128,96", "9" * 5000 + ",256,128,96",
    ],
)  # fmt: skip
def test_anything_but_legal_entries_is_refused(entries):
    with pytest.raises(InputError, match="kernel config"):
        parse_kernel_config("tl2:" + entries)
    with pytest.raises(FormatError, match="here: "):
        parse_tiles("TL2", entries, "here")


@pytest.mark.parametrize("text", ["", "tl2", "256,256,128,96", "i2_s:256,256,128,96", ":256,256,128,96"])
def test_a_kernel_config_without_type_is_refused(text):
    with pytest.raises(InputError, match="has no type"):
        parse_kernel_config(text)


def test_reading_takes_the_key_of_the_file():
    stored = "256,256,64,96;768,256,128,96"
    assert tiles_of_file("TL2", [(256, 256)], stored) == {(256, 256): Tile(64, 96)}
    assert tiles_of_file("TL2", [(256, 256)], stored, {(256, 256): Tile(64, 96)}) == {(256, 256): Tile(64, 96)}
    with pytest.raises(FormatError, match=r"m.gguf: bitconv.tl2.config has no entry .* \[512, 256\]"):
        tiles_of_file("TL2", [(256, 256), (512, 256)], stored, where="m.gguf")
    with pytest.raises(FormatError, match="m.gguf: bitconv.tl2.config: "):
        tiles_of_file("TL2", [(256, 256)], "256,256,64,60", where="m.gguf")
    with pytest.raises(InputError, match="256,256,64,96, the kernel config says 256,256,128,96"):
        tiles_of_file("TL2", [(256, 256)], stored, {(256, 256): Tile(128, 96)})


@pytest.mark.parametrize("kind", KINDS)
def test_reading_without_the_key_never_guesses(kind):
    known = {(3200, 8640), (4096, 4096)}
    assert tiles_of_file(kind, known, None) == {shape: known_tiles(kind)[shape] for shape in known}
    with pytest.raises(UnsupportedError, match=METADATA_KEYS[kind]) as error:
        tiles_of_file(kind, [*known, (768, 256), (256, 256)], None, where="m.gguf")
    proposal = re.search(r'--kernel-config "([^"]+)"', str(error.value))
    assert proposal is not None
    tiles = parse_kernel_config(proposal[1])[kind]
    assert set(tiles) == {(256, 256), (768, 256)}
    assert tiles_of_file(kind, [*known, *tiles], None, tiles).items() >= tiles.items()


def test_a_given_tile_of_a_foreign_file_must_be_legal_and_goes_before_the_known_one():
    assert tiles_of_file("TL2", [(1536, 1536)], None, {(1536, 1536): Tile(256, 96)}) == {(1536, 1536): Tile(256, 96)}
    with pytest.raises(InputError, match="BK = 60"):
        tiles_of_file("TL2", [(1536, 1536)], None, {(1536, 1536): Tile(256, 60)})


def test_every_known_layout_has_default_tiles_and_the_table_in_format_md_is_current():
    text = (REPOSITORY / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    assert text == TOOL.renewed(text), "run make docs"
    written = text.partition(TOOL.BEGIN)[2].partition(TOOL.END)[0].splitlines()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:5]): line for line in written[2:]}
    for layout in LAYOUTS.LAYOUTS:
        for name, (m, k) in layout.linears().items():
            (line,) = (line for key, line in rows.items() if key[0] == layout.name and name in key[1].split(", "))
            cells = [cell.strip(" *") for cell in line.split("|")[1:-1]]
            assert cells[2:4] == [str(m), str(k)]
            for kind, cell in (("TL1", cells[4]), ("TL2", cells[5])):
                tile = Tile(*(int(n) for n in cell.split(", ")))
                assert tile == default_tile(kind, m, k)
                assert illegal_tile(kind, m, k, tile) is None


def test_the_tool_mends_the_table_alone_and_needs_its_markers():
    text = (REPOSITORY / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    assert TOOL.renewed(text.replace("| dummy 125M |", "| dummy 126M |")) == text
    elsewhere = text.replace("## 1. Container", "## 1. Containers")
    assert TOOL.renewed(elsewhere) == elsewhere
    for marker in (TOOL.BEGIN, TOOL.END):
        with pytest.raises(ValueError, match="lacks <!-- tiles"):
            TOOL.renewed(text.replace(marker, ""))
    with pytest.raises(ValueError, match=r"x: \[100, 256\] has no tile"):
        TOOL.row("x", ["attn_q"], 100, 256)


def test_dummy_layouts_are_those_of_the_report():
    if SHARED is None:
        pytest.skip("the layouts are not beside the checkout")
    facts = json.loads((SHARED / "data" / "configs" / "bitnet-cpp-paper-dummy-shapes.json").read_text())
    found = {
        layout.name.removeprefix("dummy "): {
            "hidden_size": layout.hidden,
            "intermediate_size": layout.ffn,
            "num_hidden_layers": layout.n_layers,
            "num_attention_heads": layout.n_heads,
        }
        for layout in LAYOUTS.DUMMIES
    }
    assert found == {name: value for name, value in facts.items() if not name.startswith("_")}


def test_published_layouts_are_those_of_their_configs():
    if SHARED is None:
        pytest.skip("the configs are not beside the checkout")
    by_name = {layout.name: layout for layout in LAYOUTS.PUBLISHED}
    for name, file in (
        ("bitnet-b1.58-2B-4T", "bitnet-b1.58-2B-4T-bf16.config.json"),
        ("bitnet_b1_58-3B", "bitnet_b1_58-3B.config.partial.json"),
    ):
        config, layout = json.loads((SHARED / "data" / "configs" / file).read_text()), by_name[name]
        assert (layout.hidden, layout.ffn) == (config["hidden_size"], config["intermediate_size"])
        assert (layout.n_layers, layout.n_heads) == (config["num_hidden_layers"], config["num_attention_heads"])
        assert layout.n_kv_heads == config["num_key_value_heads"]
        assert layout.head_dim == config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def test_published_layouts_are_all_of_which_the_reference_states_the_sizes():
    if SHARED is None:
        pytest.skip("the reference is not beside the checkout")
    text = (SHARED / "spec" / "FORMATS.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| H / F / L / A / B / D \|.*$", text, re.M)
    stated = {tuple(map(int, found.split("/"))) for found in re.findall(r"\d+(?:/\d+){5}", row)}
    stated |= {(*sizes[:2], 40, *sizes[3:]) for sizes in stated if sizes[1] == 23040}  # "10B: same, 40 layers"
    (row,) = re.findall(r"^\| H/F/L/A/B/D \|.*$", text, re.M)  # the embedding models
    stated |= {tuple(map(int, found.split("/"))) for found in re.findall(r"\d+(?:/\d+){5}", row.replace("*", ""))}
    assert len(stated) == 8
    for one in LAYOUTS.PUBLISHED:
        stated.remove((one.hidden, one.ffn, one.n_layers, one.n_heads, one.n_kv_heads, one.head_dim))
    assert not stated
