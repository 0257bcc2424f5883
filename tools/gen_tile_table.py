"""Writes the table of default tiles into docs/FORMAT.md: python tools/gen_tile_table.py [--check]."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from bitconv.tensor_types.tiles import default_tile, known_tiles

TARGET = Path(__file__).resolve().parent.parent / "docs" / "FORMAT.md"
BEGIN, END = "<!-- tiles: begin; written by tools/gen_tile_table.py -->\n", "<!-- tiles: end -->\n"

HEADER = """\
| layout | matrices | M | K | TL1 BM, BK, bm | TL2 BM, BK | TL2 pair columns | I2_S (128) | TQ1_0, TQ2_0, Q6_K (256) |
|---|---|---|---|---|---|---|---|---|
"""


def layouts() -> Any:
    """Import layouts.py from this folder, however this file was started."""
    spec = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["layouts"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(layout: str, names: list[str], rows: int, cols: int) -> str:
    """One line of the table: matrices of a layout that have the same shape; ValueError where a type has no tile."""
    tl1, tl2 = default_tile("TL1", rows, cols), default_tile("TL2", rows, cols)
    if tl1 is None or tl2 is None:
        raise ValueError(f"{layout}: [{rows}, {cols}] has no tile of TL1 or of TL2")
    marks = ["*" if (rows, cols) in known_tiles(kind) else "" for kind in ("TL1", "TL2")]
    cells = [
        layout,
        ", ".join(names),
        str(rows),
        str(cols),
        f"{tl1.rows}, {tl1.cols}, {tl1.step} {marks[0]}".strip(),
        f"{tl2.rows}, {tl2.cols} {marks[1]}".strip(),
        str(cols % tl2.cols),
        *(f"no, {cols % block}" if cols % block else "yes" for block in (128, 256)),
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """The table, one line for each shape of each layout."""
    lines = []
    for layout in layouts().LAYOUTS:
        by_shape: dict[tuple[int, int], list[str]] = {}
        for name, shape in layout.linears().items():
            by_shape.setdefault(shape, []).append(name)
        lines += [row(layout.name, names, *shape) for shape, names in by_shape.items()]
    return HEADER + "\n".join(lines) + "\n"


def renewed(document: str) -> str:
    """The text of FORMAT.md with the table as it must be between the two markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{TARGET.name} lacks {(END if begin else BEGIN).strip()}")
    return before + BEGIN + table() + END + after


def main() -> int:
    """Renew the table, or with --check say whether it is current."""
    document = TARGET.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        return 0 if renewed(document) == document else 1
    TARGET.write_text(renewed(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
