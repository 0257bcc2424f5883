"""Where tests find files that lie outside the package."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_shared = Path(os.environ.get("BITCONV_SHARED", REPOSITORY.parent / "shared"))
SHARED: Path | None = _shared if _shared.is_dir() else None
"""Reference vectors and public tokenizers beside the checkout; tests that need them skip without."""
