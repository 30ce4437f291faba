"""The Space starts this file: it builds the page and serves it, as `finsent app` does.

python app.py [--port 7860] [--host 127.0.0.1] [--artifacts artifacts] [--mcp]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from finsent.commands import app, cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and serves the page until interrupted; returns the exit status."""
    parser = cli.Parser(description="Compare the models in a browser.")
    app.add_options(parser)
    return cli.execute(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
