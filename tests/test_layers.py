"""Imports point down only, heavy packages stay where they are allowed, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.paths import REPOSITORY

PACKAGE = REPOSITORY / "bitconv"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    "errors": 0,
    "_text": 0,
    "machine": 0,
    "formats": 1,
    "_kernels": 1,
    "tensor_types": 2,
    "models": 3,
    "packing": 3,
    "pipeline": 4,
    "runtime": 4,
    "cli": 5,
}
"""What a module may import: the same part, or a part of a lower number."""

ONLY_IN = {"click": "cli", "tqdm": "cli", "torch": "formats/pickle_checkpoint.py", "transformers": "nowhere"}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, only for type checking) of every import in a file, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                # `from bitconv import _kernels` names a part, `from bitconv.models import read_gguf` does not
                yield (
                    f"{base}.{alias.name}" if base == "bitconv" else base,
                    node.lineno,
                    id(node) in for_types,
                )


def test_there_is_something_to_check() -> None:
    assert {part_of(path) for path in MODULES} >= {
        "errors",
        "formats",
        "tensor_types",
        "models",
        "runtime",
        "cli",
    }


def test_imports_point_down() -> None:
    wrong = []
    for path in MODULES:
        own = part_of(path)
        if own in ("__init__", "__main__"):
            continue
        for module, line, _ in imports(path):
            part = module.split(".")[1] if module.startswith("bitconv.") else None
            if part in LAYERS and part != own and LAYERS[part] >= LAYERS[own]:
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports {module}")
            if own != "cli" and module == "bitconv.cli":
                wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports the command line")
    assert not wrong


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} - {"__init__", "__main__"} <= set(LAYERS)


def test_heavy_packages_stay_in_their_place() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {module}"
        for path in MODULES
        for module, line, _ in imports(path)
        if (place := ONLY_IN.get(module.split(".")[0]))
        and not str(path.relative_to(PACKAGE)).startswith(place)
    ]
    assert not wrong


def test_only_the_command_line_prints_or_exits() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} calls {ast.unparse(node.func)}"
        for path in MODULES
        if part_of(path) not in ("cli", "__main__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "exit", "sys.exit", "os._exit", "input")
    ]
    assert not wrong


def test_every_import_is_declared() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    extras = re.search(r"^\[project.optional-dependencies\](.*?)^\[", text, re.M | re.S)
    assert needed and extras
    declared = set(re.findall(r'"([A-Za-z0-9_-]+)', needed[1] + extras[1]))
    own = sys.stdlib_module_names | {"bitconv"}
    missing = {
        f"{module.split('.')[0]} ({path.name})"
        for path in MODULES
        for module, _, for_types in imports(path)
        if not for_types and module.split(".")[0] not in own | declared
    }
    assert not missing
