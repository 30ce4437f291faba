"""finsent app: the page, served until it is interrupted."""

from __future__ import annotations

import argparse
import os

from finsent.commands.options import add_artifacts
from finsent.machine.places import artifacts_to_read


def add_options(parser: argparse.ArgumentParser) -> None:
    """Address, folder of runs, and whether programs may use it by MCP."""
    parser.set_defaults(run=run, when_interrupted="stopped")
    add = parser.add_argument
    add("--port", type=int, help="port to listen on (default: GRADIO_SERVER_PORT, else from 7860)")
    add("--host", help="address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)")
    add_artifacts(parser)
    add("--mcp", action="store_true", help="serve the endpoints as MCP tools too (gradio[mcp])")


def run(options: argparse.Namespace) -> int:
    """Builds the page and serves it.

    Raises:
        PlaceError: There is no folder of runs.
        ServiceError: --mcp without the package that it needs.
    """
    artifacts = artifacts_to_read(options.artifacts)
    # Before gradio is imported: it reads this once and would otherwise report usage.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from finsent.ui.build import build_demo, launch
    from finsent.ui.tabs.owner import owner_from_environment

    page = build_demo(artifacts, owner=owner_from_environment(artifacts))
    launch(page, host=options.host, port=options.port, mcp=options.mcp)
    return 0
