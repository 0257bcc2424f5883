"""bitconv: BitNet b1.58 checkpoints to GGUF, and GGUF to text on a CPU.

The public names below are imported on first use, so that `import bitconv` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bitconv.packing import pack, unpack
    from bitconv.pipeline.convert import ConvertReport, convert
    from bitconv.pipeline.quantize import QuantizeReport, quantize
    from bitconv.pipeline.verify import VerifyReport, verify
    from bitconv.runtime.model import Context, Model, load
    from bitconv.runtime.perplexity import Perplexity, perplexity

_HOMES = {
    "convert": "bitconv.pipeline.convert",
    "ConvertReport": "bitconv.pipeline.convert",
    "quantize": "bitconv.pipeline.quantize",
    "QuantizeReport": "bitconv.pipeline.quantize",
    "verify": "bitconv.pipeline.verify",
    "VerifyReport": "bitconv.pipeline.verify",
    "load": "bitconv.runtime.model",
    "Model": "bitconv.runtime.model",
    "Context": "bitconv.runtime.model",
    "perplexity": "bitconv.runtime.perplexity",
    "Perplexity": "bitconv.runtime.perplexity",
    "pack": "bitconv.packing",
    "unpack": "bitconv.packing",
}

__all__ = [
    "ConvertReport", "Context", "Model", "Perplexity", "QuantizeReport", "VerifyReport", "convert", "load", "pack",
    "perplexity", "quantize", "unpack", "verify", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bitconv' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
