"""What the page refuses: requests that other pages send, addresses that a request claims for
itself, requests too large to be one of ours, and who guesses at the owner's secret.

Behind a proxy that changes the host name, FINSENT_HOSTS names the hosts by which the page is
reached, separated by commas. A Space names its own in SPACE_HOST.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Any, Any], Awaitable[None]]

HOSTS = "FINSENT_HOSTS"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CLAIMS = (b"x-forwarded-host", b"x-gradio-server", b"forwarded")
"""Headers by which a request says under which address the page is seen."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LARGEST_REQUEST = 8_000_000
"""Bytes. The largest file that the page takes is less, as are 64 texts of 2,000 characters."""


def hosts_from_environment(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Host names by which the page is reached beside its own, in lower case."""
    named = [*environment.get(HOSTS, "").split(","), environment.get("SPACE_HOST", "")]
    return frozenset(name.strip().lower() for name in named if name.strip())


def is_local(host: str | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a server that is told to listen at `host` is reached from this machine alone."""
    return (host or environment.get("GRADIO_SERVER_NAME") or LOOPBACK[1]) in LOOPBACK


class RequestGuard:
    """Middleware in front of everything that the page serves."""

    def __init__(self, app: AsgiApp, hosts: Iterable[str] = (), local: bool = False) -> None:
        """local: the page is reached from this machine only, so that no other host name is its own:
        another page could else let its name stand for this machine."""
        self._app, self._hosts, self._local = app, frozenset(hosts), local

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Passes a request on or answers it with the reason why not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            # There is no other kind: the page opens no websocket.
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        claimed = _name(headers.get("x-forwarded-host", "").split(",")[0].strip())
        if claimed not in self._hosts:
            scope = {
                **scope,
                "headers": [h for h in scope["headers"] if h[0].lower() not in CLAIMS],
            }
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._app(scope, _bounded(receive), send)

    def _refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        known = {*self._hosts, *(LOOPBACK if self._local else ())}
        if self._local and _name(host) not in known:
            return 421, (
                f"this page is not {host!r}; where a proxy gives it that name, set {HOSTS} to it"
            )
        origin = headers.get("origin")
        own = (
            origin is None or _place(origin) == _place(f"//{host}") or _name(origin) in self._hosts
        )
        if method not in SAFE_METHODS and not own:
            return 403, (
                f"requests from {origin!r} are refused; where that is this page behind a proxy, "
                f"set {HOSTS} to its host name"
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > LARGEST_REQUEST:
            return 413, f"at most {LARGEST_REQUEST:,} bytes a request"
        return None


def _place(address: str) -> tuple[str, int | None]:
    """Host and port of an origin or `//host:port`; None is the scheme's own port."""
    try:
        parts = urlsplit(address)
        port = None if parts.port in (80, 443) else parts.port
        return (parts.hostname or "").lower(), port
    except ValueError:
        return "", -1


def _name(address: str) -> str:
    return _place(address if "//" in address else f"//{address}")[0]


def _bounded(receive: Any) -> Any:
    """`receive` that ends a request whose body is longer than it may be, whatever it claimed."""
    seen = 0

    async def bounded() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= LARGEST_REQUEST else {"type": "http.disconnect"}

    return bounded


async def _answer(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


FREE_GUESSES = 5
"""Wrong secrets of one address that cost no wait; each one more doubles it."""
FREE_GUESSES_OF_ALL = 50
"""Wrong secrets of all addresses together: an address is easily changed."""
FIRST_WAIT_SECONDS = 4.0
LONGEST_WAIT_SECONDS = 3600.0
ADDRESSES = 1000
"""Remembered at most."""
EVERYBODY = "everybody"


class Guesses:
    """How long somebody who gave wrong secrets has to wait. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Address -> wrong secrets in a row, and when the next one is looked at."""
        self._right: set[str] = set()

    def look(self, address: str, is_right: Callable[[], bool]) -> tuple[bool, float]:
        """Whether the secret that an address gives is right, if it is looked at, else the seconds
        until one is. At once for many: a hundred secrets sent together are still a hundred."""
        with self._lock:
            asked = (address,) if address in self._right else (address, EVERYBODY)
            until = max(self._wrong.get(name, (0, 0.0))[1] for name in asked)
            if (wait := until - self._clock()) > 0:
                return False, wait
            right = is_right()
            if right:
                self._right.add(address)
                self._wrong.pop(address, None)
            else:
                self._right.discard(address)
                self._count(address, FREE_GUESSES)
                self._count(EVERYBODY, FREE_GUESSES_OF_ALL)
            return right, 0.0

    def _count(self, name: str, free: int) -> None:
        count = self._wrong.pop(name, (0, 0.0))[0] + 1
        until = 0.0
        if count >= free:
            wait = FIRST_WAIT_SECONDS * 2 ** min(count - free, 20)
            until = self._clock() + min(wait, LONGEST_WAIT_SECONDS)
        self._wrong[name] = count, until
        while len(self._wrong) > ADDRESSES:
            self._wrong.popitem(last=False)
