"""python -m finsent: the same as the console script `finsent`."""

from __future__ import annotations

import sys

from finsent.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
