"""finsent app: the page, served until it is interrupted."""

from __future__ import annotations

import argparse
import os
import socket

from finsent.commands.options import add_artifacts
from finsent.machine.memory import limit_arenas
from finsent.machine.places import artifacts_to_read


class AddressError(RuntimeError):
    """An address that nothing can be served at."""


def port(text: str) -> int:
    """A port as typed. Raises ArgumentTypeError for anything but a whole number up to 65,535."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a whole number up to 65535, not {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Address, folder of runs, and whether programs may use it by MCP."""
    parser.set_defaults(run=run, when_interrupted="stopped")
    add = parser.add_argument
    add("--port", type=port, help="port to listen on (default: GRADIO_SERVER_PORT, else from 7860)")
    add("--host", help="address to listen on (default: GRADIO_SERVER_NAME, else 127.0.0.1)")
    add_artifacts(parser)
    add("--mcp", action="store_true", help="serve the endpoints as MCP tools too (gradio[mcp])")


def run(options: argparse.Namespace) -> int:
    """Builds the page and serves it.

    Raises:
        PlaceError: There is no folder of runs.
        AddressError: Nothing can be served at the address.
        ServiceError: --mcp without the package that it needs.
    """
    artifacts = artifacts_to_read(options.artifacts)
    _check_address(options)
    limit_arenas()
    # Before gradio is imported: it reads this once and would otherwise report usage.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from finsent.ui.build import build_demo, launch
    from finsent.ui.guard import hosts_from_environment, is_local
    from finsent.ui.tabs.owner import owner_from_environment

    # A page that others reach would let them load whatever they like into this machine's memory.
    alone = is_local(options.host) and not hosts_from_environment()
    page = build_demo(artifacts, owner=owner_from_environment(artifacts), open_to_visitors=alone)
    launch(page, host=options.host, port=options.port, mcp=options.mcp)
    return 0


def _check_address(options: argparse.Namespace) -> None:
    """Before anything is loaded: gradio waits for ever on an address that is not this machine's."""
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    wanted = options.port
    named = os.environ.get("GRADIO_SERVER_PORT")
    if wanted is None and named:
        try:
            wanted = port(named)
        except argparse.ArgumentTypeError as error:
            raise AddressError(f"GRADIO_SERVER_PORT: {error}") from error
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, wanted or 0, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = host if wanted is None else f"{host}, port {wanted}"
        reason = getattr(error, "strerror", None) or error
        raise AddressError(f"cannot serve at {where}: {reason}") from error
