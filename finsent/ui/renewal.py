"""Runs finished while the page is being served appear without a restart.

Whoever opens the page gets it built on the artifacts as they are by then; a page that is open goes
on with the snapshot it was opened on. gradio gives every visitor's session its own table of
components and functions, taken from the `Blocks` being served when the session begins, so it is
enough to exchange that table. A damaged run, board or study is left out and named on the page; new
files that cannot be drawn leave the page as it was.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.results.catalog import Catalog, Damage
from finsent.results.manifest import MANIFEST
from finsent.results.runs import LEADERBOARD
from finsent.results.schema import ArtifactError
from finsent.study.rows import SUMMARY
from finsent.study.summary import read_summaries

First = Callable[[], Mapping[str, str]]
"""What a page shows first, by element id: it differs from visitor to visitor."""
Build = Callable[[Catalog, str], tuple[gr.Blocks, First]]
"""The page over a catalog; the text is what to say in the status line, if anything."""
Scope = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Any, Any], Awaitable[None]]

PAGE_PATHS = ("", "/config")
"""Where a browser and where gradio_client ask for the page."""

_log = logging.getLogger(__name__)


def read_catalog(root: Path | str) -> Catalog:
    """The runs, the board and the studies below `root`, without what is damaged."""
    root = Path(root)
    damaged: list[Damage] = []

    def note(path: Path, error: ArtifactError) -> None:
        damaged.append(Damage.of(path, root, error))

    return Catalog.read(root, read_summaries(root, note), damaged)


class LivePage:
    """A page that follows its artifacts folder. Safe to use from many threads."""

    def __init__(self, root: Path | str, build: Build) -> None:
        self._root = Path(root)
        self._build = build
        self._lock = threading.Lock()
        self._seen = fingerprint(self._root)
        self._catalog = read_catalog(self._root)
        self.demo, self._first = build(self._catalog, "")

    def renew(self) -> None:
        """Shows what is in the folder now. Takes milliseconds when nothing has changed."""
        with self._lock:
            self._follow()
            fill(self.demo, self._first())

    def _follow(self) -> None:
        """Builds the page anew where files have changed."""
        # Taken before reading: what changes meanwhile is noticed the next time.
        found = fingerprint(self._root)
        if found == self._seen:
            return
        self._seen = found
        try:
            catalog = read_catalog(self._root)
            fresh, first = self._build(catalog, "")
        except Exception as error:
            # Whatever is wrong with new files, the page stays up.
            _log.exception("new files in %s cannot be shown", self._root)
            said = f"New files cannot be shown, so this is what was there before: {error}"
            fresh, first = self._build(self._catalog, said)
        else:
            self._catalog = catalog
        exchange(self.demo, fresh)
        self._first = first


class RenewalMiddleware:
    """Renews the page when somebody opens it."""

    def __init__(self, app: AsgiApp, renew: Callable[[], None]) -> None:
        self._app, self._renew = app, renew

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") in PAGE_PATHS:
            await asyncio.to_thread(self._renew)
        await self._app(scope, receive, send)


def fill(served: gr.Blocks, values: Mapping[str, str]) -> None:
    """What whoever opens the page next sees first in the components with these element ids."""
    for component in served.config["components"]:
        name = component["props"].get("elem_id")
        if name in values:
            component["props"]["value"] = values[name]


def exchange(served: gr.Blocks, fresh: gr.Blocks) -> None:
    """Gives a page that is being served the contents of another one. Open sessions keep theirs."""
    served.children = fresh.children
    served.default_config = fresh.default_config
    served.default_config.root_block = served
    # What visitors upload and download goes when it is old, whichever page it was made by.
    known = {id(files) for files in served.temp_file_sets}
    served.temp_file_sets += [s for s in fresh.temp_file_sets if id(s) not in known]
    served.config = served.get_config_file()


def fingerprint(root: Path) -> frozenset[tuple[str, int, int]]:
    """Name, time and size of every file that a catalog is read from."""
    found = set()
    for path in (
        root / LEADERBOARD,
        root / MANIFEST,
        *root.glob(f"studies/*/{SUMMARY}"),
        *root.glob("*/*/*/seed-*/*"),
    ):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), status.st_mtime_ns, status.st_size))
    return frozenset(found)
