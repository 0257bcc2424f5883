"""Model families: what a checkpoint's or a GGUF file's names and settings mean; one file a family.

A family is declared data, found by discovery: which architectures of Hugging Face and of GGUF it answers
to, the names of its tensors on both sides, its activations, sub-norms and rotary style.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from bitconv.errors import UnsupportedError
from bitconv.models.family import LINEARS, Hyperparameters, ModelFamily, gguf_tensor_names
from bitconv.models.reading import read_gguf

__all__ = [
    "LINEARS", "Hyperparameters", "ModelFamily", "families", "family_of_gguf", "family_of_hf",
    "gguf_tensor_names", "read_gguf",
]  # fmt: skip


@functools.cache
def families() -> tuple[ModelFamily, ...]:
    """Return every model family of this package, ordered by name."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        family = getattr(importlib.import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if family is not None:
            found.append(family)
    return tuple(sorted(found, key=lambda family: family.name))


def family_of_hf(architecture: str) -> ModelFamily:
    """Return the family of an entry of config.json's `architectures`; UnsupportedError lists the known."""
    for family in families():
        if architecture in family.hf_architectures:
            return family
    known = ", ".join(name for family in families() for name in family.hf_architectures)
    raise UnsupportedError(f"architecture {architecture!r} is not supported; supported are {known}")


def family_of_gguf(architecture: str) -> ModelFamily:
    """Return the family of a value of `general.architecture`; UnsupportedError lists the known ones."""
    for family in families():
        if architecture in family.gguf_architectures:
            return family
    known = ", ".join(name for family in families() for name in family.gguf_architectures)
    raise UnsupportedError(f"general.architecture {architecture!r} is not supported; supported are {known}")
