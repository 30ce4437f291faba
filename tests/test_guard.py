"""What the page refuses: strangers' requests, claimed addresses, large bodies, guesses."""

from __future__ import annotations

import asyncio
import http.client
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import pytest

from finsent.entrants.guest import Guest
from finsent.ui import guard
from finsent.ui.guard import LARGEST_REQUEST, Guesses, RequestGuard, hosts_from_environment
from finsent.ui.tabs.owner import _Actions
from tests.app_fixtures import OWNER_TOKEN, made_up_owner

OWN = {"host": "127.0.0.1:7860"}


def asked(
    headers: dict[str, str], method: str = "POST", body: bytes = b"", **options: Any
) -> tuple[int, dict[str, str], int]:
    """Status, the headers that reached the page, and how many bytes of the body did."""
    reached: dict[str, str] = {}
    taken = 0
    status = 0

    async def page(scope: Any, receive: Any, send: Any) -> None:
        nonlocal taken
        reached.update({k.decode(): v.decode() for k, v in scope["headers"]})
        while (message := await receive())["type"] == "http.request":
            taken += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})

    parts = [body[i : i + 1_000_000] for i in range(0, len(body), 1_000_000)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "headers": raw}
    asyncio.run(RequestGuard(page, **options)(scope, receive, send))  # type: ignore[arg-type]
    return status, reached, taken


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:7860", 200),
        ("http://127.0.0.1:8000", 403),
        ("https://evil.example", 403),
        ("http://127.0.0.1.evil.example:7860", 403),
        ("null", 403),
        ("", 403),
        ("http://[::1", 403),
        ("https://Ours.example", 200),
    ],
)
def test_only_the_page_itself_and_programs_change_anything(origin: str | None, status: int) -> None:
    headers = OWN if origin is None else {**OWN, "origin": origin}
    assert asked(headers, hosts={"ours.example"})[0] == status
    assert asked(headers, "GET")[0] == 200


def test_a_name_that_was_made_to_mean_this_machine_is_refused() -> None:
    evil = {"host": "evil.example:7860", "origin": "http://evil.example:7860"}
    assert asked(evil, "GET", local=True)[0] == 421
    assert asked({"host": "[::1]:7860"}, "GET", local=True)[0] == 200
    assert asked({"host": "ours.example"}, local=True, hosts={"ours.example"})[0] == 200
    assert asked(evil, "GET", local=False)[0] == 200, "served to others: any name may be its own"


def test_the_address_that_a_request_claims_is_believed_only_where_it_is_configured() -> None:
    claims = {
        **OWN,
        "x-forwarded-host": "ours.example",
        "x-gradio-server": "http://evil.example",
        "forwarded": "host=evil.example",
    }
    assert not set(asked(claims)[1]) & {"x-forwarded-host", "x-gradio-server", "forwarded"}
    assert "x-forwarded-host" in asked(claims, hosts={"ours.example"})[1]
    environment = {"FINSENT_HOSTS": "Ours.example, other.example", "SPACE_HOST": "me.hf.space"}
    assert hosts_from_environment(environment) == {"ours.example", "other.example", "me.hf.space"}
    assert hosts_from_environment({}) == frozenset()


def test_a_body_that_is_too_large_is_not_read() -> None:
    length = {**OWN, "content-length": str(LARGEST_REQUEST + 1)}
    assert asked(length)[0] == 413
    assert asked({**OWN, "content-length": "9" * 5000})[0] == 413
    assert asked({**OWN, "content-length": "-1"})[0] == 413
    # One that says nothing of its length, or lies.
    assert asked(OWN, body=b"x" * (LARGEST_REQUEST + 1))[2] <= LARGEST_REQUEST


def test_wrong_secrets_cost_time_and_a_right_one_ends_it() -> None:
    now = 0.0
    guesses = Guesses(lambda: now)

    def ask(address: str, right: bool = False) -> tuple[bool, float]:
        return guesses.look(address, lambda: right)

    for _ in range(guard.FREE_GUESSES):
        assert ask("a") == (False, 0.0)
    assert ask("a", right=True) == (False, guard.FIRST_WAIT_SECONDS), "it is not even looked at"
    assert ask("b", right=True) == (True, 0.0), "who else is there does not wait"
    waits = []
    for _ in range(14):
        now += 1 + (waits[-1] if waits else guard.FIRST_WAIT_SECONDS)
        assert ask("a") == (False, 0.0)
        waits.append(ask("a")[1])
    assert waits[:3] == [8.0, 16.0, 32.0]
    assert waits[-1] == guard.LONGEST_WAIT_SECONDS
    # Addresses are easily changed; whoever knew the secret before does not wait for the others.
    for number in range(guard.FREE_GUESSES_OF_ALL):
        ask(f"c{number}")
    assert ask("d", right=True)[1] > 0
    assert ask("b", right=True) == (True, 0.0)
    now += guard.LONGEST_WAIT_SECONDS
    assert ask("d", right=True) == (True, 0.0)
    for number in range(2 * guard.ADDRESSES):
        now += guard.LONGEST_WAIT_SECONDS
        ask(str(number))
    assert len(guesses._wrong) <= guard.ADDRESSES


def test_a_hundred_guesses_are_not_a_hundred_looks(app_artifacts: Path) -> None:
    actions = _Actions(made_up_owner(app_artifacts), Guest())  # type: ignore[arg-type]
    request: Any = SimpleNamespace(client=SimpleNamespace(host="10.0.0.1"))
    said = []
    for number in range(100):
        with pytest.raises(gr.Error) as raised:
            actions.show(f"guess number {number}", False, None, request)
        said.append(raised.value.message)
    assert sum("Too many wrong secrets" in line for line in said) == 100 - guard.FREE_GUESSES
    with pytest.raises(gr.Error, match="Too many"):
        actions.show(OWNER_TOKEN, False, None, request)
    for strange in (7, ["x"], {"a": 1}, "\ud800", None):
        with pytest.raises(gr.Error):
            actions.show(strange, False, None, request)  # type: ignore[arg-type]
    other: Any = SimpleNamespace(client=SimpleNamespace(host="10.0.0.2"))
    assert "Idle" in actions.show(OWNER_TOKEN, False, None, other)[0]


def talk(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_the_running_page_refuses_what_it_should(app_url: str) -> None:
    call = json.dumps({"data": ["profit rose", ""]}).encode()
    kind = {"content_type": "application/json"}
    where = "/gradio_api/call/compare"
    assert talk(app_url, "POST", where, call, **kind)[0] == 200
    own = app_url.rstrip("/")
    assert talk(app_url, "POST", where, call, **kind, origin=own)[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        status, said = talk(app_url, "POST", where, call, **kind, origin=origin)
        assert status == 403
        assert b"FINSENT_HOSTS" in said
    assert talk(app_url, "GET", "/config", host="evil.example")[0] == 421
    _, config = talk(app_url, "GET", "/config", x_forwarded_host="evil.example")
    assert b"evil.example" not in config
    assert talk(app_url, "GET", "/openapi.json")[0] == 404
    assert talk(app_url, "GET", "/docs")[0] == 404
    for size, taken in ((100_000, True), (3_000_000, False), (50_000_000, False)):
        body = (
            b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'
            + b"a" * size
            + b"\r\n--x--\r\n"
        )
        multipart = {"content_type": "multipart/form-data; boundary=x"}
        try:
            status, _ = talk(app_url, "POST", "/gradio_api/upload", body, **multipart)
        except (BrokenPipeError, ConnectionResetError):
            status = 413  # it answered before all was sent
        assert (status == 200) is taken, (size, status)
