"""The Space: builds the demo and launches it. Everything else is in finsent/ui.

python app.py [--port 7860] [--host 127.0.0.1] [--artifacts artifacts] [--mcp]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

# Before gradio is imported: it reads this once and would otherwise report usage.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from finsent.ui.build import build_demo, launch
from finsent.ui.tabs.owner import owner_from_environment

ARTIFACTS = Path(__file__).resolve().parent / "artifacts"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, builds the page and serves it until interrupted."""
    parser = argparse.ArgumentParser(description="Compare the models in a browser.")
    parser.add_argument(
        "--port", type=int, help="port to listen on (default: GRADIO_SERVER_PORT, else from 7860)"
    )
    parser.add_argument(
        "--host", help="address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)"
    )
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of finished runs")
    parser.add_argument(
        "--mcp", action="store_true", help="serve the endpoints as MCP tools too (gradio[mcp])"
    )
    options = parser.parse_args(arguments)
    page = build_demo(options.artifacts, owner=owner_from_environment(options.artifacts))
    launch(page, host=options.host, port=options.port, mcp=options.mcp)


if __name__ == "__main__":
    main()
