"""python -m bitconv: the same as the bitconv command."""

from __future__ import annotations

import sys

from bitconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
