"""The text that the bundled checkpoint is trained on: documentation that every Python installation carries.

Docstrings of the standard library, read with `ast` (nothing is imported), and the topics of `pydoc`.
Whole modules are held out by a hash of their name, so the split needs no seed, no list and no tokenizer.
The text differs a little between Python versions; `python tools/stdlib_corpus.py` prints what this one gives.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_DIRECTORIES = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "_pyrepl", "ensurepip"}
)
HELD_OUT_ONE_IN = 10
"""One module in so many is held out."""


@dataclass(frozen=True)
class Corpus:
    """Training documents, one per module or pydoc topic, and the held-out text."""

    training: dict[str, str]
    held_out_modules: tuple[str, ...]
    held_out: str

    def training_lines(self) -> frozenset[str]:
        """Every distinct training line, without surrounding white space."""
        return frozenset(line.strip() for text in self.training.values() for line in text.splitlines())


def is_held_out(module: str) -> bool:
    """Decide by the SHA-256 of a module's dotted name whether the module is held out."""
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in SKIPPED_DIRECTORIES or part.startswith("config-") for part in parts):
            continue
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules are not our business
        return ast.parse(path.read_bytes())


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings in source order; those with anything but ASCII (a handful of names) are left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    for node in sorted(nodes, key=lambda node: node.body[0].lineno):
        text = ast.get_docstring(node)
        if text and text.strip() and text.isascii():
            yield text


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield name, inspect.cleandoc(text)


def build_corpus(root: Path | None = None) -> Corpus:
    """Read the standard library under `root` (default: that of the running Python) and split it.

    A docstring or topic that was seen before is left out; so is, in the held-out text, every line
    that also occurs in training (compared without surrounding white space).
    """
    documents: dict[str, list[str]] = {}
    for module, path in _sources(root or Path(sysconfig.get_paths()["stdlib"])):
        try:
            tree = _parse(path)
        except (SyntaxError, ValueError):  # fixtures that are invalid on purpose
            continue
        if module == "pydoc_data.topics" and not is_held_out(module):
            documents.update((f"{module}:{name}", [text]) for name, text in _topics(tree))
        else:
            documents[module] = list(_docstrings(tree))
    seen: set[str] = set()
    training: dict[str, str] = {}
    for name, texts in documents.items():
        if not is_held_out(name.split(":")[0]):
            fresh = [text for text in dict.fromkeys(texts) if text not in seen]
            seen.update(fresh)
            if fresh:
                training[name] = "\n\n".join(fresh) + "\n"
    held_out_modules = tuple(name for name in documents if is_held_out(name.split(":")[0]))
    known = Corpus(training, (), "").training_lines() | {""}
    lines = [
        line.rstrip()
        for name in held_out_modules
        for text in dict.fromkeys(documents[name])
        for line in text.splitlines()
        if line.strip() not in known
    ]
    return Corpus(training, held_out_modules, "\n".join(lines) + "\n")


def main() -> None:
    """Print the size of the corpus that this Python gives."""
    corpus = build_corpus()
    size = sum(len(text.encode()) for text in corpus.training.values())
    print(f"Python {sys.version.split()[0]}")
    print(f"training: {len(corpus.training)} documents, {size} bytes")
    print(f"held out: {len(corpus.held_out_modules)} modules, {len(corpus.held_out.encode())} bytes")
    print("  " + " ".join(corpus.held_out_modules))


if __name__ == "__main__":
    main()
