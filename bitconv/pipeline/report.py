"""What a conversion tells its caller: the report, and the warnings on the way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from bitconv.errors import BitconvWarning
from bitconv.models import Hyperparameters


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the output; source: name in the checkpoint, None for one that was computed.

    multiplier and density (share of weights that are not zero) are None for a tensor that is not ternary.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    source: str | None
    multiplier: float | None = None
    density: float | None = None


@dataclass(frozen=True)
class ConvertReport:
    """What was converted. bytes_in: tensor bytes of the checkpoint that were used; seconds: wall time.

    weight_form: how the checkpoint stored its ternary matrices. ignored_keys: keys of config.json that
    nothing depends on. warnings: the sentences that were also issued as BitconvWarning.
    """

    path: Path
    type: str
    weight_form: str
    hyperparameters: Hyperparameters
    tensors: tuple[TensorReport, ...]
    bytes_in: int
    bytes_out: int
    seconds: float
    ignored_keys: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def n_tensors(self) -> int:
        """Number of tensors written."""
        return len(self.tensors)


class Notes:
    """Warnings of one conversion: issued at once and kept for the report."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        """Issue and keep one sentence."""
        self.messages.append(message)
        warnings.warn(message, BitconvWarning, stacklevel=3)
